# SPDX-License-Identifier: GPL-2.0-or-later
"""The delivery path: the file to read first.

::

    Delivery -> decode -> handler -> Outcome -> recovery.decide -> Disposition -> settle -> observe

Nothing flows back. Deciding never acts, and settling never decides. A settle makes the durable
effect first, then answers the broker. A process that dies between the two gets the message again,
finds its row in the store, and does not write a second one: at least once, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .delivery import Blocked, Crashed, Routed, SettledBefore, Withdrawn
from .errors import StoreError
from .ports import Ran
from .recovery import Situation, decide
from .settler import Decided

if TYPE_CHECKING:
    from typing import TypeAlias

    from .delivery import Delivery, Outcome
    from .memory import HandlerRun
    from .ports import Chance, Clock, HandlerRunner, Observer, Store
    from .recovery import Decision, Policy
    from .settler import Settler

    # The run whose outcome it is; None if the handler had no part in it.
    _RunAndOutcome: TypeAlias = tuple[HandlerRun | None, Outcome]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The path of a delivery from its arrival to its settle, with all that it needs on the way."""

    handler: HandlerRunner
    policy: Policy
    store: Store
    observer: Observer
    clock: Clock
    chance: Chance
    settler: Settler

    async def process(self, delivery: Delivery) -> tuple[Outcome, Decision]:
        """Take *delivery* from its arrival to its settle, or to the start of its commit.

        A redelivery is recognised. If the store has the message, the redelivery is acknowledged. If
        this process has run the message, or runs it now, the redelivery is settled with the outcome
        of that run.

        Returns:
            The outcome and the decision. The caller stops the instance for a :class:`.Halt`, and
            pauses it for a broken dependency.
        """
        if delivery.redelivered or delivery.row:
            delivery = self.settler.recall(delivery)
            known = await self._known(delivery)
        else:
            known = None
        run, outcome = known or self._refused(delivery) or await self._run(delivery)
        if run is not None and run.history is not delivery.history:
            # The run began before this redelivery of its message came.
            delivery = delivery._replace(history=run.history)
        waited = self.clock.monotonic() - delivery.arrived_at
        may_hold = self.settler.holds.has_room
        situation = Situation(self.clock.time(), self.chance(), may_hold, waited, self.store.keeps)
        decision = decide(delivery, outcome, self.policy, situation)
        self.settler.settle(Decided(delivery, run, outcome, decision))
        return outcome, decision

    async def _known(self, delivery: Delivery) -> _RunAndOutcome | None:
        """Return the outcome of a message that comes again; None for one that may run."""
        if delivery.row:
            return (None, SettledBefore()) if delivery.row in self.settler.dropped else None
        # A row of the store is in the store, of course: only the broker's deliveries are looked up.
        if self._is_in_store(delivery):
            return None, SettledBefore()
        while (earlier := self.settler.unsettled.claim(delivery)) is not None:
            outcome = await earlier.wait(self.clock)
            if not _is_withdrawn(outcome):
                return earlier, outcome
        return None

    def _refused(self, delivery: Delivery) -> _RunAndOutcome | None:
        """Return the outcome of a message that must not run; None for one that may."""
        if delivery.history.crashes >= self.policy.crash_attempts and not delivery.replayed:
            flight = self.settler.flight
            hung, route = flight.has_hung(delivery), flight.route_of(delivery)
            return None, Crashed(delivery.history.crashes, hung, route)
        if delivery.lane and self._is_blocked(delivery):
            return None, Blocked()
        return None

    def _is_in_store(self, delivery: Delivery) -> bool:
        try:
            return self.store.is_open(delivery)
        except StoreError:
            # At the worst it runs a second time. A failed write pauses the instance anyway.
            return False

    def _is_blocked(self, delivery: Delivery) -> bool:
        try:
            return self.store.is_blocked(delivery.lane, delivery.row)
        except StoreError:
            # It must not overtake a row that cannot be read. It will wait for the store, too.
            return True

    async def _run(self, delivery: Delivery) -> _RunAndOutcome:
        run = self.settler.unsettled.begin(delivery)
        outcome = await self.handler.run(delivery)
        run.end(outcome)
        if isinstance(outcome, Withdrawn):
            # The handler has not seen it: its redelivery must run.
            self.settler.unsettled.end(run, settled=True)
            return None, outcome
        self.observer.notify(Ran(delivery, outcome))
        if isinstance(outcome, Routed) and outcome.is_withdrawn:
            # A route has not seen it.
            self.settler.unsettled.end(run, settled=True)
            return None, outcome
        return run, outcome


def _is_withdrawn(outcome: Outcome) -> bool:
    return isinstance(outcome, Withdrawn) or (isinstance(outcome, Routed) and outcome.is_withdrawn)
