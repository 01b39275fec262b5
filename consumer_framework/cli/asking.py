# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks running instances, for the commands that look at one or give it an order."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from . import terminal
from .options import may_exist, no_such_instance

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.runtime.control.client import Client
    from consumer_framework.runtime.control.schema import Request

    from .options import Where

T = TypeVar("T")


@contextmanager
def running(at: Where) -> Iterator[Client]:
    """Connect to the instance, which has to run.

    Raises:
        click.exceptions.Exit: It does not; that was printed.
        ControlError: It runs, but this user may not send it requests, or it does not answer.
    """
    from consumer_framework.runtime.control.client import (  # noqa: PLC0415
        connected_to,
        sockets_for_operators,
    )

    with connected_to(sockets_for_operators(at.directory, at.instance)) as client:
        if client is None:
            _complain_of_absence(at)
            raise click.exceptions.Exit(1)
        yield client


def ask(at: Where, request: Request[T], otherwise: str) -> T:
    """Return the one answer to *request*.

    Args:
        at: The instance.
        request: The request.
        otherwise: The consequence, for the error, if the instance stops meanwhile.

    Raises:
        click.exceptions.Exit: As :func:`running`.
        ControlError: The request was refused or failed, or the instance went away meanwhile.
    """
    with running(at) as client:
        [answer] = client.ask(request, otherwise)
        return answer


def _complain_of_absence(at: Where) -> None:
    if may_exist(at.file):
        click.echo(f"fm-consumer: {at.instance} does not run", err=True)
    else:
        terminal.complain(no_such_instance(at.instance, at.file))
