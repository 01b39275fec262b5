# SPDX-License-Identifier: GPL-2.0-or-later
"""The delivery path: the file to read first.

::

    Delivery -> decode -> handler -> Outcome -> recovery.decide -> Disposition -> settle -> record

Nothing flows back. Deciding never acts, settling never decides. A settle makes the durable effect
first, then tells the broker. A process that dies between the two gets the message again, finds
what it wrote, and does not write it a second time: at least once, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .delivery import Crashed, Known, Undecodable
from .errors import JournalError
from .recovery import Situation, decide
from .settler import Settled

if TYPE_CHECKING:
    from .delivery import Delivery, Outcome
    from .ports import Chance, Clock, Decoder, FlightRecorder, HandlerRunner, Journal, Recorder
    from .recovery import Decision, Policy
    from .redelivery import Run
    from .settler import Settler


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What one delivery goes through, and what it goes through it with."""

    decode: Decoder
    handler: HandlerRunner
    policy: Policy
    journal: Journal
    flight: FlightRecorder
    recorder: Recorder
    clock: Clock
    chance: Chance
    settler: Settler

    async def process(self, delivery: Delivery) -> tuple[Outcome, Decision]:
        """Take *delivery* from its arrival to its settle, or to the start of its commit.

        A redelivery is recognised: where the journal has the message it is acknowledged, where
        this process has run it, or runs it now, it is settled with the outcome of that run.

        Returns:
            What the handler did, and what becomes of the delivery. The caller stops the
            instance for a :class:`.Halt`, and pauses it for a broken dependency.
        """
        if delivery.redelivered or delivery.row:
            delivery = self.settler.recall(delivery)
        run, outcome = await self._outcome(delivery)
        situation = Situation(self.clock.time(), self.chance(), self.settler.holds.has_room)
        decision = decide(delivery, outcome, self.policy, situation)
        self.settler.settle(Settled(delivery, run, outcome, decision))
        return outcome, decision

    async def _outcome(self, delivery: Delivery) -> tuple[Run | None, Outcome]:
        # What the journal brings back is in the journal, however it came to this process first.
        redelivered = delivery.redelivered and not delivery.row
        if redelivered and self._is_in_journal(delivery):
            return None, Known()
        run = self.settler.unsettled.claim(delivery) if redelivered else None
        if run is not None:
            return run, await run.outcome
        if self._is_too_deadly(delivery):
            return None, Crashed(delivery.history.crashes)
        run = self.settler.unsettled.begin(delivery)
        outcome = await self._handle(delivery)
        run.outcome.set_result(outcome)
        return run, outcome

    def _is_in_journal(self, delivery: Delivery) -> bool:
        try:
            return self.journal.is_open(delivery)
        except JournalError:
            # It runs a second time, at the worst; what cannot be written pauses the instance.
            return False

    def _is_too_deadly(self, delivery: Delivery) -> bool:
        return delivery.history.crashes >= self.policy.crash_attempts and not delivery.replayed

    async def _handle(self, delivery: Delivery) -> Outcome:
        self.recorder.started(delivery)
        try:
            message = self.decode(delivery)
        except Exception as error:  # noqa: BLE001 -- whatever a publisher or a schema class did
            return Undecodable(error)
        place = self.flight.took_off(delivery)
        try:
            return await self.handler.run(message)
        finally:
            self.flight.landed(place)
