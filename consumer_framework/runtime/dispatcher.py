# SPDX-License-Identifier: GPL-2.0-or-later
"""Hands deliveries to slots, and keeps them from their arrival to their settle.

::

    broker ─▶ put ─▶ Arrivals ─▶ Intake ─▶ TaskPool ─▶ Pipeline ─▶ Settler ─▶ broker or store
                     lanes         ▲       slots       handler         │
                                   └──── Scheduler ◀── held, deferred ─┘

A delivery waits in the intake until a task of the pool takes it through the pipeline. The scheduler
puts held and deferred deliveries back into the intake when they are due. A delivery that must not
go back to its queue, because the queue would drop it, waits in the store instead.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import Withdrawn
from consumer_framework.core.disposition import Defer, GiveBack, Halt, Hold, rule_for
from consumer_framework.core.errors import StoreError
from consumer_framework.core.gate import GateEvent
from consumer_framework.core.intake import Holds, Intake
from consumer_framework.core.limits import (
    NEAR_LIMIT,
    Breaker,
    TokenBucket,
    delivery_count,
    is_near_limit,
)
from consumer_framework.core.memory import Histories, LostAcks, UnsettledRuns
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.recovery import Decision
from consumer_framework.core.settler import Decided, Settler

from .assembly import routes
from .lanes import SINGLE_LANE, Arrivals
from .pauses import Pauses
from .scheduler import LONGEST_SLEEP, Scheduler
from .suspects import SuspectIsolation
from .task_pool import TaskPool

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.gate import Gate, Reason
    from consumer_framework.core.ports import (
        Acknowledger,
        Chance,
        Clock,
        FlightRecorder,
        HandlerRunner,
        Observer,
        Outbox,
        Store,
    )
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.settings import Framework

    from .lanes import LaneFinder


# Why a held message is deferred.
MAKES_ROOM = "the messages behind it, with the same key, kept those with other keys waiting"


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside of a dispatcher.

    Attributes:
        acknowledger: Answers the broker.
        store: Keeps messages that the broker may forget.
        flight: Remembers the deliveries that were in a handler when the process died.
        observer: Told of each run and each settle.
        clock: The time.
        chance: Spreads delays.
        outbox: Keeps the messages that handlers published; None where no handler can.
    """

    acknowledger: Acknowledger
    store: Store
    flight: FlightRecorder
    observer: Observer
    clock: Clock
    chance: Chance = random.random
    outbox: Outbox | None = None


class Dispatcher:
    """The deliveries of one instance, from their arrival to their settle.

    Args:
        plan: How messages are handled.
        ports: The outside.
        reactor: Twisted's reactor.
        gate: The gate of the instance.
        halt: Called when a delivery halts the instance.

    Attributes:
        lane_of: Finds the lane of a delivery; None if no delivery has one.
        limit_of: Returns the delivery limit of a delivery's queue; None for no limit.
    """

    def __init__(
        self,
        plan: Plan,
        ports: Ports,
        reactor: Any,
        gate: Gate,
        halt: Callable[[Halt], None],
    ) -> None:
        self._plan = plan
        self._ports = ports
        self._gate = gate
        self._halt = halt
        self.lane_of: LaneFinder | None = None
        self.limit_of: Callable[[Delivery], int | None] = lambda _delivery: None
        self._isolation: SuspectIsolation | None = None
        self._handler: HandlerRunner | None = None
        self._pipeline: Pipeline | None = None
        # Lanes whose deliveries go to the store, behind one that went there.
        self._stored_lanes: set[str] = set()
        self._replays: dict[int, asyncio.Future[Disposition]] = {}
        clock, recovery = ports.clock, plan.framework.recovery
        self._arrivals = Arrivals(ports.flight, self._admit)
        self._intake = Intake(clock, _bucket(plan.framework), gate)
        self._pool = TaskPool(self._intake.take, self._process, gate)
        self._holds = Holds(recovery.hold_slots, clock)
        self._scheduler = Scheduler(
            self._holds, ports.store, self._intake, clock, reactor, gate, self._tidy
        )
        self._scheduler.longest_sleep = min(LONGEST_SLEEP, plan.tidy_interval)
        breaker = Breaker(recovery.breaker.consecutive, recovery.breaker.probe)
        self._pauses = Pauses(breaker, self._scheduler, reactor, gate, ports.observer)
        self._settler = self._make_settler(ports, plan.prefetch_count)
        gate.listen(self._gate_changed)

    def _make_settler(self, ports: Ports, prefetch_count: int) -> Settler:
        return Settler(
            ports.acknowledger,
            ports.store,
            ports.flight,
            ports.observer,
            self._holds,
            Histories(),
            UnsettledRuns(ports.clock),
            LostAcks(ports.clock, prefetch_count),
            self._pauses.store_failed,
            self._pauses.store_works,
            self._settled,
            ports.clock,
            asyncio.create_task,
            must_keep=self._goes_to_store,
            outbox=ports.outbox,
        )

    def start(
        self,
        handler: HandlerRunner,
        lane_of: LaneFinder | None,
        watch: Callable[[asyncio.Task[None]], object] = lambda _task: None,
    ) -> None:
        """Let the slots take deliveries, in tasks that end once the gate is closed.

        Args:
            handler: Runs the author's code, in as many slots as the plan has.
            lane_of: Finds the lane of a delivery; None if no delivery has one.
            watch: Called with each of the tasks, also after :meth:`resize`, and with a commit that
                failed by a defect.
        """
        ports = self._ports
        self._settler.watch = watch
        self._isolation = SuspectIsolation(handler, ports.clock, self._gate)
        self._handler = routes.routed(
            self._isolation,
            self._plan,
            self._settler,
            ports.chance,
            lambda: self._plan.framework.slots,
        )
        self.lane_of = lane_of
        self._pipeline = Pipeline(
            handler=self._handler,
            policy=self._plan.policy,
            store=ports.store,
            observer=ports.observer,
            clock=ports.clock,
            chance=ports.chance,
            settler=self._settler,
        )
        self._pool.start(self._plan.framework.at_once, watch)
        self.store_changed()

    def resize(self, at_once: int) -> None:
        """Take so many deliveries at once from now on; fewer disturb none that is taken.

        The number of handlers that run at once is the handler runner's; change it there as well.
        """
        self._pool.resize(at_once)

    def apply(self, plan: Plan) -> None:
        """Handle messages by another plan with the same ordering; see also :meth:`resize`."""
        former, recovery = self._plan.framework, plan.framework.recovery
        self._plan = plan
        if self._pipeline is not None:
            self._pipeline = replace(self._pipeline, policy=plan.policy)
        routes.apply(self._handler, plan)
        if (plan.framework.rate, plan.framework.burst) != (former.rate, former.burst):
            self._intake.limit(_bucket(plan.framework))
        self._settler.lost_acks.resize(plan.prefetch_count)
        self._holds.resize(recovery.hold_slots)
        self._scheduler.longest_sleep = min(LONGEST_SLEEP, plan.tidy_interval)
        self._pauses.resize(recovery.breaker.consecutive, recovery.breaker.probe)

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is GateEvent.CLOSE:
            self._arrivals.close()
            self._settler.is_stopping = True
            if self._handler is not None:
                self._handler.stop()

    @property
    def is_behind(self) -> bool:
        """True if more deferred messages are due than the slots take in a moment."""
        return self._scheduler.is_behind

    def oldest_waiting(self, limit: int) -> Iterator[Delivery]:
        """Yield the broker's deliveries that no slot has taken; *limit* at most."""
        return self._intake.oldest(limit)

    @property
    def waiting(self) -> int:
        """The number of deliveries that no slot has taken."""
        return len(self._intake)

    @property
    def held(self) -> int:
        """The number of held deliveries."""
        return len(self._holds)

    # Arrival.

    def put(self, delivery: Delivery) -> None:
        """Let the next free slot take *delivery*, after those before it in its lane."""
        if self._settler.answers(delivery):
            return
        self._arrivals.put(delivery, self.lane_of)

    def _admit(self, delivery: Delivery) -> None:
        """Let *delivery* wait for a slot; in the store, if its queue might drop it meanwhile.

        Behind others of its lane it waits with them, and does not overtake them, until the queue
        would drop it when it comes back the next time.
        """
        keeps = self._ports.store.keeps
        limit = self.limit_of(delivery) if delivery.redelivered and keeps else None
        count = 0 if limit is None else delivery_count(delivery) or 0
        if limit is None or not is_near_limit(count, limit) or self._is_known(delivery):
            self._enter(delivery)
            return
        if delivery.lane and self._intake.has_lane(delivery.lane):
            if count < limit:
                self._enter(delivery)
                return
            for follower in self._intake.followers(delivery.lane):
                if self._is_known(follower):
                    self._intake.put(follower)
                else:
                    self._move_to_store(follower)
        else:
            # The next ones must not overtake it while it is written.
            self._intake.occupy(delivery)
        self._move_to_store(delivery)

    def _enter(self, delivery: Delivery) -> None:
        self._intake.put(delivery)
        if delivery.lane:
            self._clear_read_ahead()

    def _clear_read_ahead(self) -> None:
        """Defer the held heads whose followers use up the read-ahead of other keys.

        The followers go to the store behind their heads, in order, when they reach a slot.
        """
        most = self._plan.most_behind
        if most is None or self._intake.behind <= most or not self._ports.store.keeps:
            return
        for head, until in self._holds.take(lambda held: self._intake.has_followers(held.lane)):
            decision = Decision(Defer(until, MAKES_ROOM), head.history)
            self._settler.settle(Decided(head, None, Withdrawn(), decision))

    def _is_known(self, delivery: Delivery) -> bool:
        """Return True if a run of this process, or the store, has the message."""
        if self._settler.unsettled.knows(delivery):
            return True
        try:
            return self._ports.store.is_open(delivery)
        except StoreError:
            return False

    def _move_to_store(self, delivery: Delivery) -> None:
        """Defer *delivery*, which is due at once."""
        if not delivery.row:
            known = self._settler.recall(delivery)
            decision = Decision(Defer(self._ports.clock.time(), NEAR_LIMIT), known.history)
            self._settler.settle(Decided(known, None, Withdrawn(), decision))

    def is_near_limit(self, delivery: Delivery) -> bool:
        """Return True if the queue might drop *delivery*, and the store can keep it."""
        limit = self.limit_of(delivery) if self._ports.store.keeps else None
        return limit is not None and is_near_limit(delivery_count(delivery) or 0, limit)

    def _goes_to_store(self, delivery: Delivery) -> bool:
        return delivery.lane in self._stored_lanes or self.is_near_limit(delivery)

    # In the slots.

    async def _process(self, delivery: Delivery) -> bool:
        """Take a delivery to its settle; returns True if more should be ready for the slots."""
        pipeline = self._pipeline
        assert pipeline is not None  # noqa: S101 -- the pool works from start() on
        outcome, decision = await pipeline.process(delivery)
        self._pauses.judge(outcome, decision)
        if isinstance(decision.disposition, Halt):
            self._halt(decision.disposition)
        elif isinstance(decision.disposition, Hold):
            self._scheduler.bring()
            self._clear_read_ahead()
        # A token of the rate is for a delivery that runs, and not for one that is ready.
        return pipeline.handler.is_quick and self._plan.framework.rate is None

    def _settled(self, decided: Decided, told: bool) -> None:  # noqa: FBT001 -- a callback
        delivery, disposition = decided.delivery, decided.decision.disposition
        if delivery.lane:
            self._leave_lane(delivery, disposition, told=told)
        if delivery.row:
            self._row_settled(delivery, disposition)
        if isinstance(disposition, Defer):
            # Only now the row is in the store.
            self._scheduler.deferred(disposition.until)

    def _leave_lane(self, delivery: Delivery, disposition: Disposition, *, told: bool) -> None:
        effect = rule_for(disposition).lane
        if effect == "wait" and told:
            return
        if effect == "go_back":
            # It will come again, and its followers behind it.
            for follower in self._intake.followers(delivery.lane):
                self._give_back(follower)
        self._intake.left(delivery)
        if not self._intake.has_lane(delivery.lane):
            self._stored_lanes.discard(delivery.lane)
        self._check_order()

    def _row_settled(self, delivery: Delivery, disposition: Disposition) -> None:
        if isinstance(disposition, GiveBack):
            self._scheduler.given_back(delivery)
        else:
            self._scheduler.done(delivery)
        replay = self._replays.pop(delivery.row, None)
        if replay is not None and not replay.done():
            replay.set_result(disposition)

    def _check_order(self) -> None:
        """With strict order, pause while the store has a message: it goes before all others."""
        if not self._plan.policy.strict or self._gate.is_closed:
            return
        try:
            self._pauses.order_is(blocked=self._ports.store.is_blocked(SINGLE_LANE))
        except StoreError as error:
            self._pauses.order_is_unknown(str(error))

    def _tidy(self) -> None:
        """Give back deliveries that wait so long that the broker would close their channel."""
        longest = self._isolation.longest if self._isolation is not None else 0.0
        patience = self._plan.patience(longest * routes.most_of(self._handler))
        self.give_back_old(self._ports.clock.monotonic() - patience)
        self._check_order()

    # Orders of operators.

    def pause(self, text: str) -> None:
        """Begin with nothing but replays; *text* says who ordered it, and why."""
        self._pauses.ordered(text)

    def resume(self) -> None:
        """End the pause that an operator ordered; other reasons for a pause stay."""
        self._pauses.order_is_over()

    def store_changed(self) -> None:
        """Read the store again; a command may have changed it."""
        self._scheduler.read_store()
        self._check_order()

    def drop_rows(self, rows: Collection[int]) -> None:
        """Begin with none of *rows* any more; an operator removed them from the store."""
        out = set(filter(self._scheduler.is_out, rows))
        self._settler.dropped |= out
        if self._handler is not None and out:
            self._handler.withdraw(lambda delivery: delivery.row in out)

    async def replay(self, delivery: Delivery) -> Disposition:
        """Run a claimed row of the store once, after the deliveries that run now.

        Returns:
            The disposition, once it is committed: :class:`.Ack` for a success, :class:`.GiveBack`
            if the row did not run because the instance stops or pauses.
        """
        if self._gate.is_closed:
            return GiveBack()
        done: asyncio.Future[Disposition] = asyncio.get_running_loop().create_future()
        self._replays[delivery.row] = done
        # It may be deferred before its replay is over.
        self._scheduler.took(delivery)
        history = delivery.history.for_replay
        self._intake.put_first(delivery._replace(history=history, replayed=True))
        try:
            return await done
        finally:
            self._replays.pop(delivery.row, None)

    # Giving back.

    def voided(self, generation: int) -> None:
        """Forget the deliveries of a channel that is gone: the broker will deliver them again."""
        self._settler.lost_acks.voided(generation)
        self._arrivals.discard(generation)
        waiting = self._intake.discard(generation)
        held = self._holds.discard(generation)
        for delivery in held:
            self._intake.left(delivery)
        for delivery in [*waiting, *held]:
            self._settler.histories.keep(delivery)
        if self._handler is not None:
            self._handler.withdraw(lambda delivery: delivery.generation == generation)
        self._pauses.probe_again()

    def give_back_waiting(self) -> int:
        """Give back the deliveries that no slot took; returns their number.

        A delivery near the delivery limit of its queue goes to the store, with all of its lane, in
        order. Behind a delivery of the lane that has begun, it stays.
        """
        spared = self._intake.behind_heads(self.is_near_limit)
        waiting = [*self._intake.clear(spared), *self._arrivals.clear()]
        to_store = {d.lane for d in waiting if d.lane and self._goes_to_store(d)}
        self._stored_lanes |= spared | to_store
        for delivery in waiting:
            self._give_back(delivery)
        withdrawn = self._handler.withdraw() if self._handler is not None else 0
        return sum(not delivery.row for delivery in waiting) + withdrawn

    def give_back_old(self, before: float = math.inf) -> int:
        """Give back deliveries of the broker that no slot took; returns their number.

        Args:
            before: Only those that arrived before this monotonic time.
        """
        old = self._intake.older_than(before)
        if before == math.inf:
            old += self._arrivals.clear()
        for delivery in old:
            self._give_back(delivery)
        if self._handler is None:
            return len(old)
        return len(old) + self._handler.withdraw(lambda d: d.arrived_at < before and not d.row)

    def give_back_held(self) -> int:
        """Give back the held deliveries; returns their number."""
        held = self._holds.clear()
        for delivery in held:
            if self._goes_to_store(delivery):
                self._give_back(delivery)
            else:
                self._ports.acknowledger.give_back(delivery)
        return len(held)

    def _give_back(self, delivery: Delivery) -> None:
        decision = Decision(GiveBack(), delivery.history)
        self._settler.settle(Decided(delivery, None, Withdrawn(), decision))

    # Waiting for an end.

    async def idle(self) -> None:
        """Wait until nothing runs nor is being written; call it while the gate lets nothing begin.

        Deliveries that wait for a slot of the handler go back to the queue.
        """
        if self._handler is not None:
            self._handler.withdraw()
        await self._pool.idle()
        await self._settler.written()

    async def finish(self) -> None:
        """Wait for running deliveries and their commits; call it behind a closed gate."""
        await self._pool.finish()
        await self._settler.commits()

    async def give_back_rest(self) -> None:
        """Give back the deliveries that are left after :meth:`finish`.

        A delivery that ran may be held now, and others of its lane may wait behind it.
        """
        self.give_back_held()
        await self._settler.commits()
        self.give_back_waiting()
        await self._settler.commits()
        # The followers of deliveries that could not be written.
        for delivery in self._intake.clear():
            self._give_back(delivery)
        await self._settler.commits()


def _bucket(framework: Framework) -> TokenBucket | None:
    return TokenBucket(framework.rate, framework.burst) if framework.rate else None
