# SPDX-License-Identifier: GPL-2.0-or-later
"""Remembers runs whose outcome the broker could not be told.

When a channel goes while a handler runs, the broker delivers the message again on the next
channel. The run that this process already has, finished or not, answers for that redelivery:
the handler does not run a second time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .delivery import Delivery, Outcome
    from .ports import Clock

# A redelivery comes at once after a closed channel, and at the latest when the broker has missed
# the heartbeats of a dead connection. Long past that, an equal message is more likely one that
# was published again, and it must run.
MEMORY_SECONDS = 3600.0
# Only handlers that were running when their channel went leave a run behind.
MEMORY_RUNS = 1024


@dataclass(eq=False, slots=True)
class Run:
    """One run of the handler.

    Attributes:
        delivery: The latest delivery that the run answers for.
        outcome: What the handler did; None while it runs.
        ended_at: When its settle was tried, in seconds of the clock; None until then.
    """

    delivery: Delivery
    outcome: Outcome | None = None
    ended_at: float | None = None
    _waiter: asyncio.Future[Outcome] | None = None

    def end(self, outcome: Outcome) -> None:
        """Note what the handler did."""
        self.outcome = outcome
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(outcome)

    async def result(self) -> Outcome:
        """Wait for what the handler does."""
        if self.outcome is not None:
            return self.outcome
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._waiter)


class Unsettled:
    """The runs that go on, and the ended ones whose settle was void."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runs: dict[Run, None] = {}

    def begin(self, delivery: Delivery) -> Run:
        """Note that the handler starts on *delivery*."""
        run = Run(delivery)
        self._runs[run] = None
        return run

    def claim(self, redelivery: Delivery) -> Run | None:
        """Find the run that answers for *redelivery*.

        It then answers for no other delivery on that channel: of two equal messages, only one
        has run.
        """
        self._forget_old()
        for run in self._runs:
            if redelivery.redelivers(run.delivery):
                run.delivery = redelivery
                return run
        return None

    def end(self, run: Run, *, settled: bool) -> None:
        """Note that *run* is over; it is remembered unless the broker knows of it."""
        if settled:
            self._runs.pop(run, None)
        else:
            run.ended_at = self._clock.monotonic()

    def _forget_old(self) -> None:
        oldest = self._clock.monotonic() - MEMORY_SECONDS
        running = [run for run in self._runs if run.ended_at is None]
        ended = [run for run in self._runs if run.ended_at is not None and run.ended_at > oldest]
        self._runs = dict.fromkeys([*ended[-MEMORY_RUNS:], *running])
