# SPDX-License-Identifier: GPL-2.0-or-later
"""Binds queues with other keys while they are consumed from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pika.exceptions

from . import faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from consumer_framework.core.bindings import Bound

    from .connection import Client
    from .consumers import Consumers

_log = logging.getLogger(__name__)


class Rebinding:
    """The bindings that are still to be changed."""

    def __init__(self) -> None:
        self._to_bind: list[Bound] = []
        self._to_unbind: list[Bound] = []

    @property
    def is_due(self) -> bool:
        """Whether there are any."""
        return bool(self._to_bind or self._to_unbind)

    def add(self, bound: Sequence[Bound], unbound: Sequence[Bound]) -> None:
        """Note bindings to be added, and others to be removed; the latest word counts."""
        self._to_bind = [one for one in (*self._to_bind, *bound) if one not in unbound]
        self._to_unbind = [one for one in (*self._to_unbind, *unbound) if one not in bound]

    async def carry_out(self, client: Client, consumers: Consumers) -> None:
        """Change them, once, for the queues that have a consumer.

        Raises:
            BadDeclaration: The broker refused a new one.
        """
        bound, self._to_bind = self._to_bind, []
        await bind(client, bound, consumers.names)
        unbound, self._to_unbind = self._to_unbind, []
        await unbind(client, unbound, consumers.names)


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
