# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs messages that a process died with one by one, so that the culprit is known.

With several slots, all messages that were in handlers are suspects when the process dies. A suspect
runs alone: nothing else begins before it is done. If it kills the process again, no other message
was there, and no innocent one comes closer to its quarantine.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from consumer_framework.core.delivery import Withdrawn
from consumer_framework.core.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.ports import Clock, HandlerRunner

    Waiter = asyncio.Future[bool]

# The share of the longest run that counts after each further run: some hundred runs forget it.
_FADES = 0.99


class SuspectIsolation:
    """A :class:`.HandlerRunner` that lets a suspect run alone, and others side by side.

    Args:
        runner: Runs the handler.
        clock: The time.
        gate: Once it is closed, no delivery begins; None for one that is always open.

    Attributes:
        longest: Seconds that the longest of the last runs took, its wait for a slot included.
    """

    def __init__(
        self,
        runner: HandlerRunner,
        clock: Clock,
        gate: Gate | None = None,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._gate = gate or Gate()
        self.longest = 0.0
        self._running = 0
        # Suspects that run or wait.
        self._suspects = 0
        self._waiting: dict[Waiter, Delivery] = {}

    @property
    def is_quick(self) -> bool:
        """As :attr:`.HandlerRunner.is_quick`."""
        return self._runner.is_quick

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the handler on *delivery*: alone where a process died with it."""
        is_suspect = delivery.history.crashes > 0
        if not is_suspect and not self._suspects:
            self._running += 1
        else:
            self._suspects += is_suspect
            if not await self._may_begin(delivery):
                return Withdrawn()
        began_at = self._clock.monotonic()
        try:
            return await self._runner.run(delivery)
        finally:
            self.longest = max(self._clock.monotonic() - began_at, self.longest * _FADES)
            self._running -= 1
            self._leave(delivery)

    def stop(self) -> None:
        """As :meth:`.HandlerRunner.stop`; call it behind a closed gate."""
        self._runner.stop()

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        """End the runs that no slot has begun with, as :class:`.Withdrawn`."""
        gone = {waiter: one for waiter, one in self._waiting.items() if which(one)}
        for waiter, delivery in gone.items():
            del self._waiting[waiter]
            self._suspects -= delivery.history.crashes > 0
            waiter.set_result(False)
        self._admit()
        return len(gone) + self._runner.withdraw(which)

    async def _may_begin(self, delivery: Delivery) -> bool:
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = delivery
        self._admit()
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiting.pop(waiter, None) is None and not waiter.cancelled():
                # It was let in, or withdrawn, in the same turn.
                was_admitted = waiter.result()
                self._running -= was_admitted
                if not was_admitted:
                    raise
            self._leave(delivery)
            raise

    def _leave(self, delivery: Delivery) -> None:
        self._suspects -= delivery.history.crashes > 0
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        """Let the first suspect begin once nothing runs, or all where none is a suspect."""
        if self._gate.is_closed:
            return
        suspects = [w for w, delivery in self._waiting.items() if delivery.history.crashes]
        if suspects:
            admitted = [] if self._running else suspects[:1]
        else:
            admitted = [] if self._suspects else list(self._waiting)
        for waiter in admitted:
            del self._waiting[waiter]
            self._running += 1
            waiter.set_result(True)
