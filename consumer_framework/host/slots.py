# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes deliveries through the pipeline, and looks after those that wait meanwhile."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import codec
from consumer_framework.core.attempt import History
from consumer_framework.core.breaker import Breaker
from consumer_framework.core.disposition import Defer, Halt, Hold
from consumer_framework.core.histories import Histories
from consumer_framework.core.holds import Holds
from consumer_framework.core.intake import Intake
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.redelivery import Unsettled
from consumer_framework.core.settler import Settled, Settler

from .circuit import Circuit
from .scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import (
        Acknowledger,
        Chance,
        Clock,
        FlightRecorder,
        HandlerRunner,
        Journal,
        Recorder,
    )
    from consumer_framework.core.recovery import Policy
    from consumer_framework.core.settings import Recovery

# One handler at a time, as fedora-messaging promises: handlers need not be thread-safe.
SLOTS = 1


class Slots:
    """The deliveries of an instance, from their arrival to their settle.

    Args:
        policy: Decides.
        recovery: Its settings.
        acknowledger: Tells the broker.
        journal: Keeps what the broker may forget.
        flight: Remembers what was in a handler.
        recorder: Counts and logs.
        clock: The time.
        reactor: Twisted's reactor.
        halt: Called when a delivery halts the instance.
        pause: Called with a reason when nothing more should be consumed.
        resume: Called when that is over.
        chance: Spreads delays.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- it is put together here, and nowhere else
        self,
        policy: Policy,
        recovery: Recovery,
        acknowledger: Acknowledger,
        journal: Journal,
        flight: FlightRecorder,
        recorder: Recorder,
        clock: Clock,
        reactor: Any,
        halt: Callable[[Halt], None],
        pause: Callable[[str], None],
        resume: Callable[[], None],
        chance: Chance = random.random,
    ) -> None:
        self._policy = policy
        self._acknowledger = acknowledger
        self._journal = journal
        self._flight = flight
        self._recorder = recorder
        self._clock = clock
        self._chance = chance
        self._halt = halt
        self._workers: list[asyncio.Task[None]] = []
        self._is_closed = False
        self._replays: dict[int, asyncio.Future[Disposition]] = {}
        self._intake = Intake()
        self._holds = Holds(recovery.hold_slots)
        self._scheduler = Scheduler(self._holds, journal, self._intake, clock, reactor)
        breaker = Breaker(recovery.breaker.consecutive, recovery.breaker.probe)
        self._circuit = Circuit(breaker, self._scheduler, reactor, pause, resume)
        self._settler = Settler(
            acknowledger,
            journal,
            flight,
            recorder,
            self._holds,
            Histories(),
            Unsettled(clock),
            self._circuit.journal_failed,
            self._circuit.journal_works,
            self._done,
        )

    def start(self, handler: HandlerRunner) -> list[asyncio.Task[None]]:
        """Let the slots take deliveries; the tasks end after :meth:`close`."""
        pipeline = Pipeline(
            decode=codec.decode,
            handler=handler,
            policy=self._policy,
            journal=self._journal,
            flight=self._flight,
            recorder=self._recorder,
            clock=self._clock,
            chance=self._chance,
            settler=self._settler,
        )
        loop = asyncio.get_running_loop()
        self._workers = [loop.create_task(self._work(pipeline)) for _ in range(SLOTS)]
        self._scheduler.look()
        return self._workers

    def put(self, delivery: Delivery) -> None:
        """Let the next free slot take *delivery*."""
        self._intake.put(delivery)

    def voided(self, generation: int) -> None:
        """Forget what waits of a channel that is gone: the broker will deliver it again."""
        self._intake.discard(generation)
        for delivery in self._holds.discard(generation):
            self._settler.histories.keep(delivery)

    @property
    def held(self) -> int:
        """How many deliveries are held."""
        return len(self._holds)

    def give_back_waiting(self) -> int:
        """Give back to the broker what no slot took; returns how many those were."""
        given_back = 0
        for delivery in self._intake.clear():
            if delivery.row:
                self._put_away(delivery)
            else:
                self._settler.histories.keep(delivery)
                given_back += self._acknowledger.give_back(delivery)
        return given_back

    def _put_away(self, delivery: Delivery) -> None:
        """Leave a delivery of the journal's to a later look, and a replay to the operator."""
        self._scheduler.done(delivery)
        waiting = self._replays.pop(delivery.row, None)
        if waiting is not None:
            waiting.cancel()

    def close(self) -> None:
        """Let no slot take a delivery any more, and nothing come back."""
        self._is_closed = True
        self._intake.close()
        self._scheduler.pause()
        self._circuit.stop()
        for waiting in self._replays.values():
            waiting.cancel()

    def give_back_held(self) -> int:
        """Give back to the broker what is held; returns how many those were."""
        return sum(self._acknowledger.give_back(delivery) for delivery in self._holds.clear())

    async def finish(self) -> None:
        """Wait for what runs, and for what is being committed."""
        if self._workers:
            await asyncio.wait(self._workers)
        await self._settler.commits()

    async def replay(self, delivery: Delivery) -> Disposition:
        """Run a claimed row of the journal once, after what runs now.

        Returns:
            What became of it, once that is committed: :class:`.Ack` for a success.

        Raises:
            asyncio.CancelledError: The instance stops.
        """
        if self._is_closed:
            raise asyncio.CancelledError
        done: asyncio.Future[Disposition] = asyncio.get_running_loop().create_future()
        self._replays[delivery.row] = done
        # What happened before stays known; how often the process died does not count again.
        history = History(delivery.history.attempts)
        self._intake.put_first(replace(delivery, history=history, replayed=True))
        try:
            return await done
        finally:
            self._replays.pop(delivery.row, None)

    def _done(self, what: Settled, _told: bool) -> None:  # noqa: FBT001 -- the settler's callback
        self._scheduler.done(what.delivery)
        if isinstance(what.decision.disposition, Defer):
            # It is in the journal only now.
            self._scheduler.look()
        waiting = self._replays.pop(what.delivery.row, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(what.decision.disposition)

    async def _work(self, pipeline: Pipeline) -> None:
        """One slot."""
        while (delivery := await self._intake.take()) is not None:
            outcome, decision = await pipeline.process(delivery)
            self._circuit.judge(outcome, decision)
            if isinstance(decision.disposition, Halt):
                self._halt(decision.disposition)
            elif isinstance(decision.disposition, Hold):
                self._scheduler.look()
