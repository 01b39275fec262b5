# SPDX-License-Identifier: GPL-2.0-or-later
"""Binds queues with other keys while they are consumed from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pika.exceptions

from . import faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from consumer_framework.core.bindings import Bound

    from .connection import Client

_log = logging.getLogger(__name__)


async def bind(client: Client, bound: Iterable[Bound], names: Mapping[str, str]) -> None:
    """Add bindings.

    Args:
        client: The connection.
        bound: The bindings.
        names: The broker's names of queues, by the configured ones; others are left out.

    Raises:
        BadDeclaration: The broker refused one; those before it are there.
    """
    arguments = [_arguments(one, names) for one in bound if one.queue in names]
    if arguments:
        await client.bind_queues(arguments)


async def unbind(client: Client, bound: Iterable[Bound], names: Mapping[str, str]) -> None:
    """Remove bindings, as far as the broker lets us; a warning tells of those that stay.

    Args:
        client: The connection.
        bound: The bindings.
        names: As for :func:`bind`.
    """
    for one in bound:
        if one.queue not in names:
            continue
        # One that is refused takes its channel with it.
        channel = await client._allocate_channel()  # noqa: SLF001 -- see connection.py
        try:
            await channel.queue_unbind(**_arguments(one, names))
        except pika.exceptions.ChannelClosed as error:
            reason = faults.one_line(error)
            _log.warning("still bound, and messages still come by it: %s: %s", one, reason)
        else:
            channel.close()


def _arguments(one: Bound, names: Mapping[str, str]) -> Any:
    return {
        "queue": names[one.queue],
        "exchange": one.exchange,
        "routing_key": one.routing_key,
        "arguments": one.arguments,
    }
