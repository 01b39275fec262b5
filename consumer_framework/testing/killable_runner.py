# SPDX-License-Identifier: GPL-2.0-or-later
"""A runner of handlers that lets the process die while the handler has a message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from consumer_framework.adapters import codec
from consumer_framework.adapters.executor import Executor
from consumer_framework.core.handler import is_coroutine_callable

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedora_messaging.message import Message

    from consumer_framework.adapters.executor import Limits
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.handler import Handler

    from .fake_flight import FakeFlightRecorder


class _Killed(BaseException):
    """The process is dead: nothing that it does counts any more."""


class KillableRunner:
    """Runs the handler, or lets the process die while the handler has the message.

    Args:
        handler: What the consumer does.
        limits: Of its executor.
        flight: Has what the handler had when the process died.
        begin: Called with each delivery that a slot begins with; returns whether that kills.

    Attributes:
        executor: What runs the handler.
        is_coroutine: Whether the handler is one.
        is_killed: Whether the process is dead.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        flight: FakeFlightRecorder,
        begin: Callable[[Delivery], bool],
    ) -> None:
        self.executor = Executor(handler, self._decode, self, limits)
        self.is_coroutine = is_coroutine_callable(handler.call_batch or handler.call)
        self.is_killed = False
        self._flight = flight
        self._begin = begin

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the handler; where that kills the process, for ever."""
        try:
            return await self.executor.run(delivery)
        except _Killed:
            self.is_killed = True
            never: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            return await never

    def stop(self) -> None:
        """As :meth:`.Executor.stop`."""
        self.executor.stop()

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        """As :meth:`.Executor.withdraw`."""
        return self.executor.withdraw(which)

    @property
    def is_quick(self) -> bool:
        """As :attr:`.Executor.is_quick`."""
        return self.executor.is_quick

    def took_off(self, delivery: Delivery) -> int:
        """As a flight recorder's; a dead process begins with nothing."""
        if self.is_killed:
            raise _Killed
        return self._flight.took_off(delivery)

    def landed(self, place: int) -> None:
        """As a flight recorder's."""
        self._flight.landed(place)

    def crashes_of(self, delivery: Delivery) -> int:
        """As a flight recorder's."""
        return self._flight.crashes_of(delivery)

    def has_hung(self, delivery: Delivery) -> bool:
        """As a flight recorder's."""
        return self._flight.has_hung(delivery)

    def forget(self, delivery: Delivery) -> None:
        """As a flight recorder's."""
        self._flight.forget(delivery)

    def _decode(self, delivery: Delivery) -> Message:
        if self._begin(delivery):
            self.is_killed = True
            raise _Killed
        return codec.decode(delivery)
