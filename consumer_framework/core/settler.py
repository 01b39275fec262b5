# SPDX-License-Identifier: GPL-2.0-or-later
"""Carries dispositions out: the durable effect first, then the answer to the broker.

:data:`.disposition.SETTLE_RULES` says the effect and the answer of each disposition. Here is the
order of the steps, and the patience with a disk that does not take a write.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from .delivery import Failed
from .disposition import Ack, Defer, Reject, rule_for
from .errors import StoreError
from .limits import NEAR_LIMIT
from .ports import Settled
from .recovery import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .delivery import Delivery, Outcome, Published
    from .disposition import Hold, SettleRule
    from .intake import Holds
    from .memory import HandlerRun, Histories, LostAcks, UnsettledRuns
    from .ports import (
        Acknowledger,
        Clock,
        FlightRecorder,
        Future,
        Observer,
        Outbox,
        Store,
        Task,
        Write,
    )

# Seconds between two attempts at a commit that the disk does not take.
COMMIT_RETRY = 5.0
# Seconds before a message that nobody could handle goes back to its queue.
REQUEUE_PAUSE = 1.0


class Decided(NamedTuple):
    """One delivery with everything that its settle needs."""

    delivery: Delivery
    run: HandlerRun | None
    outcome: Outcome
    decision: Decision


@dataclass(slots=True)
class Settler:
    """Settles deliveries, those of the broker and those of the store.

    Attributes:
        store_failed: Called with the reason when a commit fails. The message is not acknowledged.
        store_works: Called when every commit that failed has succeeded after all.
        done: Called when a settle is complete; the second argument is False if it was void.
        clock: The time.
        spawn: Runs a commit beside the slots.
        watch: Called with a commit that failed by a defect: its message is not acknowledged.
        must_keep: Tells of a message that would go back to its queue whether it goes to the store.
        outbox: Keeps the messages that handlers published; None where no handler can.
        dropped: Rows of the store that an operator dropped, and that are not settled yet.
        is_stopping: Whether nobody waits for a database that does not work.
    """

    acknowledger: Acknowledger
    store: Store
    flight: FlightRecorder
    observer: Observer
    holds: Holds
    histories: Histories
    unsettled: UnsettledRuns
    lost_acks: LostAcks
    store_failed: Callable[[str], None]
    store_works: Callable[[], None]
    done: Callable[[Decided, bool], None]
    clock: Clock
    spawn: Callable[[Coroutine[Any, Any, None]], Task]
    watch: Callable[[Any], object] = lambda _task: None
    must_keep: Callable[[Delivery], bool] = lambda _delivery: False
    outbox: Outbox | None = None
    dropped: set[int] = field(default_factory=set)
    is_stopping: bool = False
    _commits: dict[Task, Delivery] = field(default_factory=dict)
    _failing: int = 0
    _waiters: list[Future[None]] = field(default_factory=list)

    def recall(self, redelivery: Delivery) -> Delivery:
        """Return *redelivery* with the history that this process, or the one before, has of it.

        A row of the store has its attempts with it. Only the flight recorder knows how often the
        process died while the handler had the message.
        """
        known = redelivery if redelivery.row else self.histories.recall(redelivery)
        crashes = max(known.history.crashes, self.flight.crashes_of(redelivery))
        return known._replace(history=replace(known.history, crashes=crashes))

    def answers(self, delivery: Delivery) -> bool:
        """Settle *delivery* at once if its message was settled and the broker did not hear it.

        Call it for every delivery of the broker's, in the order of their arrival.

        Returns:
            True if it is settled.
        """
        outcome = self.lost_acks.arrived(delivery)
        if outcome is None:
            return False
        again = Reject(str(outcome.error)) if isinstance(outcome, Failed) else Ack()
        self.settle(Decided(delivery, None, outcome, Decision(again, delivery.history)))
        return True

    def settle(self, decided: Decided) -> None:
        """Settle now, or begin a commit that settles later; the slot waits for neither."""
        rule = rule_for(decided.decision.disposition)
        row = decided.delivery.row
        write = rule.write_row if row else rule.write
        published = decided.outcome.published if rule.publishes else None
        if rule.answer == "give_back" and self._is_kept(decided.delivery):
            kept = Decision(Defer(0.0, NEAR_LIMIT), decided.decision.history)
            decided = decided._replace(decision=kept)
            self._begin(decided, self._commit(decided, rule_for(kept.disposition)))
        elif (
            published is not None and write is None and self.acknowledger.is_open(decided.delivery)
        ):
            self._publish(decided, rule, published)
        elif published is not None or write is not None:
            self._begin(decided, self._commit(decided, rule))
        elif rule.answer == "requeue" and not row:
            self._begin(decided, self._requeue_later(decided, rule))
        else:
            self._finish(decided, rule, told=self._answer(decided, rule))

    async def publish(self, published: Published) -> bool:
        """Store the messages of one run ahead of the settle, however long the database takes.

        Returns:
            False if it does not take them, and the instance stops.
        """
        assert self.outbox is not None  # noqa: S101 -- without one, no run publishes
        is_stored = failed = False
        while not is_stored:
            try:
                await self.outbox.store(published)
                is_stored = True
            except Exception as error:  # noqa: BLE001 -- as in _commit
                self._commit_failed(error, is_first=not failed)
                failed = True
                if self.is_stopping:
                    break
                await self.clock.sleep(COMMIT_RETRY)
        self._committed(failed=failed)
        return is_stored

    async def commits(self) -> None:
        """Wait for the end of all commits, for a drain; give up commits that fail."""
        while self._commits:
            if self._failing:
                for commit in self._commits:
                    commit.cancel()
            await self._commits_changed()

    async def written(self) -> None:
        """Wait for the end of all commits, or until one fails."""
        while self._commits and not self._failing:
            await self._commits_changed()

    def _is_kept(self, delivery: Delivery) -> bool:
        is_of_broker = not delivery.row and self.acknowledger.is_open(delivery)
        return is_of_broker and self.must_keep(delivery)

    def _answer(self, decided: Decided, rule: SettleRule) -> bool:
        """Answer the broker; return False if the channel is gone."""
        delivery = decided.delivery
        if delivery.row:
            # A row that came from the store stays there; the broker no longer knows it.
            return True
        match rule.answer:
            case "ack":
                return self.acknowledger.ack(delivery)
            case "reject":
                return self.acknowledger.reject(delivery)
            case "requeue":
                self.histories.keep(_with_history(decided))
                return self.acknowledger.requeue(delivery)
            case "give_back":
                self.histories.keep(_with_history(decided))
                return self.acknowledger.give_back(delivery)
            case "hold":
                return self._hold(decided)

    def _hold(self, decided: Decided) -> bool:
        # Where the channel is gone, the redelivery is held, with the outcome of this run.
        is_open = self.acknowledger.is_open(decided.delivery)
        if is_open:
            until = cast("Hold", decided.decision.disposition).until
            self.holds.put(_with_history(decided), until)
        return is_open

    def _finish(self, decided: Decided, rule: SettleRule, *, told: bool) -> None:
        delivery, run, outcome, decision = decided
        if run is not None:
            self.unsettled.end(run, settled=told)
        if told:
            if not delivery.row and rule.answer != "hold":
                self.lost_acks.answered(delivery, rule.answer, decision.disposition.reason)
            if rule.is_final:
                self.flight.forget(delivery)
            stays = rule.write is not None
            if (rule.is_final or stays) and self.store.has_steps:
                self.store.settled(delivery, stays=stays)
        elif run is None:
            # Otherwise the run knows it.
            self.histories.keep(_with_history(decided))
        self.dropped.discard(delivery.row)
        self.observer.notify(Settled(delivery, outcome, decision, not told))
        self.done(decided, told)

    # Commits.

    def _begin(self, decided: Decided, settling: Coroutine[Any, Any, None]) -> None:
        task = self.spawn(settling)
        self._commits[task] = decided.delivery
        task.add_done_callback(self._ended)

    def _ended(self, task: Task) -> None:
        delivery = self._commits.pop(task)
        if task.cancelled():
            # The drain gives up on the disk: explicitly, before the channel closes.
            self.acknowledger.give_back(delivery)
        elif task.exception() is not None:
            self.watch(task)
        if not self._commits:
            self._tell_waiters()

    def _publish(self, decided: Decided, rule: SettleRule, published: Published) -> None:
        """Store the messages of a run. Most runs may have some, so this takes no task."""
        assert self.outbox is not None  # noqa: S101 -- without one, no run publishes
        write = self.outbox.store(published)
        self._commits[write] = decided.delivery
        write.add_done_callback(partial(self._published, decided, rule))

    def _published(self, decided: Decided, rule: SettleRule, write: Write) -> None:
        if write.cancelled():
            self._ended(write)
            return
        del self._commits[write]
        if write.exception() is not None:
            self._begin(decided, self._commit(decided, rule, write))
            return
        try:
            self._finish(decided, rule, told=self._answer(decided, rule))
        except Exception as error:  # noqa: BLE001 -- a defect, of which the instance must know
            self._begin(decided, _raise(error))
        if not self._commits:
            self._tell_waiters()

    async def _commits_changed(self) -> None:
        waiter: Future[None] = self.clock.create_future()
        self._waiters.append(waiter)
        await waiter

    def _tell_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _requeue_later(self, decided: Decided, rule: SettleRule) -> None:
        # The broker delivers the message again at once: without a pause it would be a hot loop.
        await self.clock.sleep(REQUEUE_PAUSE)
        self._finish(decided, rule, told=self._answer(decided, rule))

    async def _commit(self, decided: Decided, rule: SettleRule, first: Write | None = None) -> None:
        """Make the durable effect, however long the disk takes, and then answer the broker.

        *first* is the first attempt, if it was made.
        """
        failed = False
        while decided.delivery.row or self.acknowledger.is_open(decided.delivery):
            try:
                await (first or self._write(decided, rule))
            except Exception as error:  # noqa: BLE001 -- a defect there must not lose the message
                first = None
                self._commit_failed(error, is_first=not failed)
                failed = True
                await self.clock.sleep(COMMIT_RETRY)
            else:
                self._committed(failed=failed)
                self._finish(decided, rule, told=self._answer(decided, rule))
                return
        self._committed(failed=failed)
        self._finish(decided, rule, told=False)

    async def _write(self, decided: Decided, rule: SettleRule) -> None:
        published = decided.outcome.published
        if rule.publishes and published is not None:
            assert self.outbox is not None  # noqa: S101 -- without one, no run publishes
            await self.outbox.store(published)
        write = rule.write_row if decided.delivery.row else rule.write
        if write is not None:
            await write(self.store, _with_history(decided), decided.decision.disposition)

    def _commit_failed(self, error: Exception, *, is_first: bool) -> None:
        if is_first:
            self._failing += 1
            self._tell_waiters()
        known = isinstance(error, StoreError)
        self.store_failed(str(error) if known else f"the store failed: {error!r}")

    def _committed(self, *, failed: bool) -> None:
        if failed:
            self._failing -= 1
            if not self._failing:
                self.store_works()


async def _raise(error: Exception) -> None:
    raise error


def _with_history(decided: Decided) -> Delivery:
    return decided.delivery._replace(history=decided.decision.history)
