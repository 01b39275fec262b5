# SPDX-License-Identifier: GPL-2.0-or-later
"""Carries dispositions out: the durable effect first, then the word to the broker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .delivery import Failed
from .disposition import Ack, Defer, GiveBack, Halt, Hold, Quarantine, Reject, Requeue
from .errors import StoreError
from .limits import NEAR_LIMIT
from .recovery import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .delivery import Delivery, Outcome
    from .disposition import Disposition
    from .intake import Holds
    from .memory import Histories, LostAcks, Run, Unsettled
    from .ports import Acknowledger, FlightRecorder, Recorder, Store

# Seconds between two tries of a commit that the disk did not take.
COMMIT_RETRY = 5.0
# Seconds before a message that nobody could handle goes back to its queue.
REQUEUE_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Settled:
    """One delivery with everything that its settle needs."""

    delivery: Delivery
    run: Run | None
    outcome: Outcome
    decision: Decision


@dataclass(slots=True)
class Settler:
    """Settles deliveries, those of the broker and those of the store.

    Attributes:
        store_failed: Called when a commit fails, with the reason; nothing is acknowledged.
        store_works: Called when every commit that failed has succeeded after all.
        done: Called when a settle is complete, and whether it was not void.
        dropped: Rows of the store that an operator dropped, and that are not settled yet.
        must_keep: Says whether a message goes to the store that would go back to its queue.
        watch: Called with a commit that failed by a defect: its message is not acknowledged.
    """

    acknowledger: Acknowledger
    store: Store
    flight: FlightRecorder
    recorder: Recorder
    holds: Holds
    histories: Histories
    unsettled: Unsettled
    lost_acks: LostAcks
    store_failed: Callable[[str], None]
    store_works: Callable[[], None]
    done: Callable[[Settled, bool], None]
    watch: Callable[[asyncio.Task[None]], object] = lambda _task: None
    must_keep: Callable[[Delivery], bool] = lambda _delivery: False
    dropped: set[int] = field(default_factory=set)
    _commits: set[asyncio.Task[None]] = field(default_factory=set)
    _failing: int = 0

    def recall(self, redelivery: Delivery) -> Delivery:
        """Return *redelivery* with what this process, and the one before, know of its message.

        What comes from the store has its attempts with it; how often the process died while
        the handler had it is in the flight recorder alone.
        """
        known = redelivery if redelivery.row else self.histories.recall(redelivery)
        crashes = max(known.history.crashes, self.flight.crashes_of(redelivery))
        return replace(known, history=replace(known.history, crashes=crashes))

    def answers(self, delivery: Delivery) -> bool:
        """Settle *delivery* at once where its message is settled, and the broker did not hear it.

        Call it for every delivery of the broker's, in the order of their arrival.

        Returns:
            Whether it is settled.
        """
        outcome = self.lost_acks.arrived(delivery)
        if outcome is None:
            return False
        again = Reject(str(outcome.error)) if isinstance(outcome, Failed) else Ack()
        self.settle(Settled(delivery, None, outcome, Decision(again, delivery.history)))
        return True

    def settle(self, what: Settled) -> None:
        """Settle now, or start a commit that settles later; the slot waits for neither."""
        match what.decision.disposition:
            case Hold(until):
                self._hold(what, until)
            case GiveBack() | Halt(requeue=True) if self._is_kept(what.delivery):
                kept = Decision(Defer(0.0, NEAR_LIMIT), what.decision.history)
                self._spawn(self._commit(replace(what, decision=kept)))
            case GiveBack():
                self._finish(what, told=self._tell(what))
            case Defer() | Quarantine():
                self._spawn(self._commit(what))
            case _ if what.delivery.row:
                self._spawn(self._commit(what))
            case Requeue():
                self._spawn(self._requeue(what))
            case _:
                self._finish(what, told=self._tell(what))

    async def commits(self) -> None:
        """Wait until no commit is under way, for a drain; those that fail are given up."""
        while self._commits:
            if self._failing:
                for commit in self._commits:
                    commit.cancel()
            await asyncio.wait(self._commits, timeout=COMMIT_RETRY)

    async def written(self) -> None:
        """Wait until no commit is under way; not for those that fail again and again."""
        while self._commits and not self._failing:
            await asyncio.wait(self._commits, timeout=COMMIT_RETRY)

    def _is_kept(self, delivery: Delivery) -> bool:
        is_of_broker = not delivery.row and self.acknowledger.is_open(delivery)
        return is_of_broker and self.must_keep(delivery)

    def _hold(self, what: Settled, until: float) -> None:
        is_open = self.acknowledger.is_open(what.delivery)
        if is_open:
            self.holds.put(replace(what.delivery, history=what.decision.history), until)
        # Otherwise its redelivery is held, with the outcome of this run.
        self._finish(what, told=is_open)

    def _tell(self, what: Settled) -> bool:
        """Tell the broker what is decided, or that the store has the message now."""
        delivery = what.delivery
        match what.decision.disposition:
            case Requeue():
                self.histories.keep(replace(delivery, history=what.decision.history))
                return self.acknowledger.requeue(delivery)
            case GiveBack():
                # What is of the store stays there: no broker waits for it.
                self.histories.keep(delivery)
                return bool(delivery.row) or self.acknowledger.give_back(delivery)
            case Halt(requeue=True):
                return self.acknowledger.give_back(delivery)
            case Reject():
                return self.acknowledger.reject(delivery)
            case Ack() | Halt() | Defer() | Quarantine() | Hold():
                return self.acknowledger.ack(delivery)

    def _finish(self, what: Settled, *, told: bool) -> None:
        if what.run is not None:
            self.unsettled.end(what.run, settled=told)
        if told:
            self._told(what.delivery, what.decision.disposition)
        elif what.run is None:
            # Otherwise the run knows it.
            self.histories.keep(what.delivery)
        self.dropped.discard(what.delivery.row)
        self.recorder.settled(what.delivery, what.outcome, what.decision.disposition, void=not told)
        self.done(what, told)

    def _told(self, delivery: Delivery, disposition: Disposition) -> None:
        if not (delivery.row or isinstance(disposition, Hold)):
            self.lost_acks.told(delivery, disposition)
        if _is_final(disposition):
            self.flight.forget(delivery)

    # What the store has to take first.

    def _spawn(self, settling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(settling)
        self._commits.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.watch(task)

    async def _requeue(self, what: Settled) -> None:
        # The broker delivers it again at once: without a pause it would be a hot loop.
        await asyncio.sleep(REQUEUE_PAUSE)
        self._finish(what, told=self._tell(what))

    async def _commit(self, what: Settled) -> None:
        try:
            await self._commit_until_it_succeeds(what)
        except asyncio.CancelledError:
            # The drain gives up on the disk: by name, before the channel closes.
            self.acknowledger.give_back(what.delivery)
            raise

    async def _commit_until_it_succeeds(self, what: Settled) -> None:
        failed = False
        while what.delivery.row or self.acknowledger.is_open(what.delivery):
            try:
                await self._write(what)
            except Exception as error:  # noqa: BLE001 -- a defect there must not lose the message
                self._failing += not failed
                failed = True
                known = isinstance(error, StoreError)
                self.store_failed(str(error) if known else f"the store failed: {error!r}")
                await asyncio.sleep(COMMIT_RETRY)
            else:
                self._committed(failed=failed)
                self._finish(what, told=bool(what.delivery.row) or self._tell(what))
                return
        self._committed(failed=failed)
        self._finish(what, told=False)

    async def _write(self, what: Settled) -> None:
        delivery = replace(what.delivery, history=what.decision.history)
        match what.decision.disposition:
            case Defer(until):
                await self.store.defer(delivery, until)
            case Quarantine(reason):
                await self.store.quarantine(delivery, reason)
            case Ack() | Reject() | Halt(requeue=False):
                await self.store.remove(delivery.row)
            case Requeue(reason):
                # The broker has it no more: an operator decides.
                await self.store.quarantine(delivery, reason)
            case Halt() | Hold() | GiveBack():
                pass  # its row stays as it is

    def _committed(self, *, failed: bool) -> None:
        if failed:
            self._failing -= 1
            if not self._failing:
                self.store_works()


def _is_final(disposition: Disposition) -> bool:
    """Whether the message will not come to this instance's handler again."""
    match disposition:
        case Hold() | Requeue() | GiveBack() | Defer() | Halt(requeue=True):
            return False
    return True
