# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes deliveries through the pipeline, and looks after those that wait meanwhile.

The tasks that take deliveries: as many as are in handlers, and more for a quick handler.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consumer_framework.core.attempt import History
from consumer_framework.core.delivery import Withdrawn
from consumer_framework.core.disposition import Defer, GiveBack, Halt, Hold, rule_for
from consumer_framework.core.errors import StoreError
from consumer_framework.core.gate import GateEvent
from consumer_framework.core.intake import Holds, Intake
from consumer_framework.core.limits import NEAR_LIMIT, Breaker, TokenBucket, count_of, is_near
from consumer_framework.core.memory import Histories, LostAcks, OneByOne, Unsettled
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.recovery import Decision
from consumer_framework.core.settler import Decided, Settler

from .lanes import SINGLE_LANE, Arrivals
from .pauses import Pauses
from .scheduler import LONGEST_SLEEP, Scheduler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine
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
        Store,
    )
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.settings import Framework

    from .lanes import LaneFinder

    Task = asyncio.Task[None]

# Deliveries that are ready for the slots besides those that are in them: a quick handler takes its
# next without waiting for the event loop.
HAND_OVER = 32


class TaskPool:
    """Takes deliveries, one after the other in each task.

    Args:
        take: Waits for the next delivery; returns None once there will be no more.
        process: Takes a delivery to its settle; returns whether the next ones should be ready
            for the slots already.
        gate: The tasks end once it is closed.
    """

    def __init__(
        self,
        take: Callable[[], Awaitable[Delivery | None]],
        process: Callable[[Delivery], Awaitable[bool]],
        gate: Gate,
    ) -> None:
        self._take = take
        self._process = process
        self._gate = gate
        gate.listen(self._gate_changed)
        self._watch: Callable[[Task], object] = lambda _task: None
        self._tasks: set[Task] = set()
        self._size = 0
        self._surplus = 0
        self._busy = 0
        self._idle: list[asyncio.Future[None]] = []
        self._is_quick = asyncio.Event()

    def start(self, size: int, watch: Callable[[Task], object]) -> None:
        """Begin to take deliveries.

        Args:
            size: How many are in handlers at the most.
            watch: Called with each task, those that come later included.
        """
        self._watch = watch
        self.resize(size)
        for _ in range(HAND_OVER):
            self._spawn(self._work_ahead())

    def resize(self, size: int) -> None:
        """Let *size* tasks take deliveries; one too many ends with the delivery that it has."""
        self._surplus += self._size - size
        self._size = size
        while self._surplus < 0:
            self._surplus += 1
            self._spawn(self._work())

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is GateEvent.CLOSE:
            self._is_quick.set()

    async def finish(self) -> None:
        """Wait for the end of all tasks."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def busy(self) -> int:
        """How many deliveries were taken, and are not settled, nor on their way to the disk."""
        return self._busy

    async def idle(self) -> None:
        """Wait until every delivery that was taken is settled, or on its way to the disk."""
        if self._busy:
            self._idle.append(asyncio.get_running_loop().create_future())
            await self._idle[-1]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._watch(task)

    async def _work(self) -> None:
        """Take what the slots need."""
        while (delivery := await self._take()) is not None:
            await self._handle(delivery)
            if self._surplus > 0:
                self._surplus -= 1
                return

    async def _work_ahead(self) -> None:
        """Take what a quick handler needs next."""
        while not self._gate.is_closed:
            await self._is_quick.wait()
            delivery = await self._take()
            if delivery is not None:
                await self._handle(delivery)

    async def _handle(self, delivery: Delivery) -> None:
        self._busy += 1
        try:
            is_quick = await self._process(delivery)
        finally:
            self._busy -= 1
            if self._idle and not self._busy:
                self._say_idle()
        if is_quick:
            self._is_quick.set()
        elif not self._gate.is_closed:
            self._is_quick.clear()

    def _say_idle(self) -> None:
        waiting, self._idle = self._idle, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


# Why a message is deferred that was held.
MAKES_ROOM = "the messages behind it, with the same key, kept those with other keys waiting"


class Dispatcher:
    """The deliveries of an instance, from their arrival to their settle.

    Args:
        plan: How the handler is run.
        acknowledger: Tells the broker.
        store: Keeps what the broker may forget.
        flight: Remembers what was in a handler.
        observer: Told of each run and each settle.
        clock: The time.
        reactor: Twisted's reactor.
        gate: The gate of the instance.
        halt: Called when a delivery halts the instance.
        chance: Spreads delays.

    Attributes:
        lane_of: Finds the lane of what comes; None where nothing has one.
        limit_of: Says how often the queue lets a message come back; None for no limit.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- it is put together here, and nowhere else
        self,
        plan: Plan,
        acknowledger: Acknowledger,
        store: Store,
        flight: FlightRecorder,
        observer: Observer,
        clock: Clock,
        reactor: Any,
        gate: Gate,
        halt: Callable[[Halt], None],
        chance: Chance = random.random,
    ) -> None:
        framework = plan.framework
        self._plan = plan
        self._acknowledger = acknowledger
        self._store = store
        self._observer = observer
        self._clock = clock
        self._chance = chance
        self._gate = gate
        self._halt = halt
        self._handler: OneByOne | None = None
        self.lane_of: LaneFinder | None = None
        self.limit_of: Callable[[Delivery], int | None] = lambda _delivery: None
        self._pipeline: Pipeline | None = None
        self._kept_lanes: set[str] = set()
        self._replays: dict[int, asyncio.Future[Disposition]] = {}
        self._intake = Intake(_bucket(framework), clock.monotonic, gate)
        self._arrivals = Arrivals(flight, self._admit)
        self._pool = TaskPool(self._intake.take, self._process, gate)
        self._holds = Holds(framework.recovery.hold_slots, clock)
        self._scheduler = Scheduler(
            self._holds, store, self._intake, clock, reactor, gate, self._tidy
        )
        self._scheduler.longest_sleep = min(LONGEST_SLEEP, plan.tidy_interval)
        breaker = Breaker(framework.recovery.breaker.consecutive, framework.recovery.breaker.probe)
        self._pauses = Pauses(breaker, self._scheduler, reactor, gate)
        self._settler = Settler(
            acknowledger,
            store,
            flight,
            observer,
            self._holds,
            Histories(),
            Unsettled(clock),
            LostAcks(clock, plan.prefetch_count),
            self._pauses.store_failed,
            self._pauses.store_works,
            self._done,
            must_keep=self._must_keep,
        )
        gate.listen(self._gate_changed)

    def start(
        self,
        handler: HandlerRunner,
        lane_of: LaneFinder | None,
        watch: Callable[[asyncio.Task[None]], object] = lambda _task: None,
    ) -> None:
        """Let the slots take deliveries, in tasks that end once the gate is closed.

        Args:
            handler: Runs the author's code, in as many slots as the plan says.
            lane_of: Finds the lane of a delivery; None where none has one.
            watch: Called with each of the tasks, those that :meth:`resize` makes included, and with
                a commit that failed by a defect.
        """
        self._settler.watch = watch
        self._handler = OneByOne(handler, self._clock.monotonic, self._gate)
        self.lane_of = lane_of
        self._pipeline = Pipeline(
            handler=self._handler,
            policy=self._plan.policy,
            store=self._store,
            observer=self._observer,
            clock=self._clock,
            chance=self._chance,
            settler=self._settler,
        )
        self._pool.start(self._plan.framework.at_once, watch)
        self.look()

    def resize(self, at_once: int) -> None:
        """Take so many deliveries at once from now on; what is taken is not disturbed by fewer.

        How many handlers run at once is the handler runner's, and to be changed there as well.
        """
        self._pool.resize(at_once)

    def apply(self, plan: Plan) -> None:
        """Take deliveries by another plan from now on, one with the same ordering.

        How many at once is for :meth:`resize`.
        """
        former, recovery = self._plan.framework, plan.framework.recovery
        self._plan = plan
        if self._pipeline is not None:
            self._pipeline = replace(self._pipeline, policy=plan.policy)
        if (plan.framework.rate, plan.framework.burst) != (former.rate, former.burst):
            self._intake.limit(_bucket(plan.framework))
        self._settler.lost_acks.resize(plan.prefetch_count)
        self._holds.resize(recovery.hold_slots)
        self._scheduler.longest_sleep = min(LONGEST_SLEEP, plan.tidy_interval)
        self._pauses.resize(recovery.breaker.consecutive, recovery.breaker.probe)

    async def idle(self) -> None:
        """Wait until nothing runs nor is being written; call it while the gate lets nothing begin.

        What waits for a slot goes back to the queue.
        """
        if self._handler is not None:
            self._handler.withdraw()
        await self._pool.idle()
        await self._settler.written()

    def put(self, delivery: Delivery) -> None:
        """Let the next free slot take *delivery*, after those before it in its lane."""
        if self._settler.answers(delivery):
            return
        self._arrivals.put(delivery, self.lane_of)

    def _enter(self, delivery: Delivery) -> None:
        self._intake.put(delivery)
        if delivery.lane:
            self._clear_read_ahead()

    def _clear_read_ahead(self) -> None:
        """Defer the held heads whose followers use the read-ahead of other keys.

        Their followers go to the store behind them, in their order, each as it meets a slot.
        """
        most = self._plan.most_behind
        if most is None or self._intake.behind <= most or not self._store.keeps:
            return
        for head, until in self._holds.take(lambda held: self._intake.has_followers(held.lane)):
            decision = Decision(Defer(until, MAKES_ROOM), head.history)
            self._settler.settle(Decided(head, None, Withdrawn(), decision))

    def _admit(self, delivery: Delivery) -> None:
        """Let *delivery* wait for a slot, in the store where its queue might drop it meanwhile.

        Behind others of its lane it waits with them, so that it does not overtake them, until the
        queue would drop it the next time that it comes back.
        """
        limit = self.limit_of(delivery) if delivery.redelivered and self._store.keeps else None
        count = count_of(delivery) or 0
        if limit is None or not is_near(count, limit) or self._is_known(delivery):
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
                    self._keep(follower)
        else:
            # What comes next must not overtake it while it is written.
            self._intake.occupy(delivery)
        self._keep(delivery)

    def _is_known(self, delivery: Delivery) -> bool:
        """Whether a run, or the store, answers for *delivery*."""
        if self._settler.unsettled.knows(delivery):
            return True
        try:
            return self._store.is_open(delivery)
        except StoreError:
            return False

    def _keep(self, delivery: Delivery) -> None:
        """Move *delivery* to the store, from which it runs at once."""
        if not delivery.row:
            known = self._settler.recall(delivery)
            decision = Decision(Defer(self._clock.time(), NEAR_LIMIT), known.history)
            self._settler.settle(Decided(known, None, Withdrawn(), decision))

    def is_near_limit(self, delivery: Delivery) -> bool:
        """Whether *delivery*, if it went back, might be dropped, and the store can keep it."""
        limit = self.limit_of(delivery) if self._store.keeps else None
        return limit is not None and is_near(count_of(delivery) or 0, limit)

    def _must_keep(self, delivery: Delivery) -> bool:
        """Whether *delivery* goes to the store and not back to its queue."""
        return delivery.lane in self._kept_lanes or self.is_near_limit(delivery)

    def look(self) -> None:
        """Bring back what is due; somebody may have changed the store."""
        self._scheduler.read_store()
        self._look_at_order()

    def voided(self, generation: int) -> None:
        """Forget what waits of a channel that is gone: the broker will deliver it again."""
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

    @property
    def is_behind(self) -> bool:
        """Whether more deferred messages are due than the slots take in a moment."""
        return self._scheduler.is_behind

    @property
    def held(self) -> int:
        """How many deliveries are held."""
        return len(self._holds)

    def give_back_waiting(self) -> int:
        """Give back to the broker what no slot took; returns how many those were.

        What is near the delivery limit of its queue goes to the store, and so does what is of
        its lane, in order: it stays where an earlier one of the lane has begun.
        """
        spared = self._intake.behind_heads(self.is_near_limit)
        waiting = [*self._intake.clear(spared), *self._arrivals.clear()]
        self._kept_lanes |= spared | {d.lane for d in waiting if d.lane and self._must_keep(d)}
        for delivery in waiting:
            self._give_back(delivery)
        withdrawn = self._handler.withdraw() if self._handler is not None else 0
        return sum(not delivery.row for delivery in waiting) + withdrawn

    def give_back_old(self, before: float = math.inf) -> int:
        """Give back what no slot took, and the broker delivered *before* that monotonic moment.

        What is of the store stays: no broker has it.

        Returns:
            How many messages that were.
        """
        old = self._intake.older_than(before)
        if before == math.inf:
            old += self._arrivals.clear()
        for delivery in old:
            self._give_back(delivery)
        if self._handler is None:
            return len(old)
        return len(old) + self._handler.withdraw(lambda d: d.arrived_at < before and not d.row)

    def _give_back(self, delivery: Delivery) -> None:
        decision = Decision(GiveBack(), delivery.history)
        self._settler.settle(Decided(delivery, None, Withdrawn(), decision))

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is GateEvent.CLOSE:
            self._arrivals.close()
            if self._handler is not None:
                self._handler.stop()

    def give_back_held(self) -> int:
        """Give back to the broker what is held; returns how many those were."""
        held = self._holds.clear()
        for delivery in held:
            if self._must_keep(delivery):
                self._give_back(delivery)
            else:
                self._acknowledger.give_back(delivery)
        return len(held)

    async def finish(self) -> None:
        """Wait for what runs, and for what is being committed."""
        await self._pool.finish()
        await self._settler.commits()

    async def give_back_rest(self) -> None:
        """Give back what is left when nothing runs any more, after :meth:`finish`.

        What was running may be held now, and others of its lane may wait behind it.
        """
        self.give_back_held()
        await self._settler.commits()
        self.give_back_waiting()
        await self._settler.commits()
        # Behind what the disk did not take.
        for delivery in self._intake.clear():
            self._give_back(delivery)
        await self._settler.commits()

    def dropped(self, rows: Collection[int]) -> None:
        """Begin with none of *rows* any more; the store has lost them on an operator's order."""
        out = set(filter(self._scheduler.is_out, rows))
        self._settler.dropped |= out
        if self._handler is not None and out:
            self._handler.withdraw(lambda delivery: delivery.row in out)

    async def replay(self, delivery: Delivery) -> Disposition:
        """Run a claimed row of the store once, after what runs now.

        Returns:
            What became of it, once that is committed: :class:`.Ack` for a success,
            :class:`.GiveBack` where it did not run because the instance stops or pauses.
        """
        if self._gate.is_closed:
            return GiveBack()
        done: asyncio.Future[Disposition] = asyncio.get_running_loop().create_future()
        self._replays[delivery.row] = done
        # It may be deferred before its replay is over.
        self._scheduler.took(delivery)
        # What happened before stays known; how often the process died does not count again.
        history = History(delivery.history.attempts)
        self._intake.put_first(replace(delivery, history=history, replayed=True))
        try:
            return await done
        finally:
            self._replays.pop(delivery.row, None)

    async def _process(self, delivery: Delivery) -> bool:
        """Take a delivery to its settle; returns whether the handler is quick."""
        pipeline = self._pipeline
        assert pipeline is not None  # noqa: S101 -- the crew works from start() on
        outcome, decision = await pipeline.process(delivery)
        self._pauses.judge(outcome, decision)
        if isinstance(decision.disposition, Halt):
            self._halt(decision.disposition)
        elif isinstance(decision.disposition, Hold):
            self._scheduler.bring()
            self._clear_read_ahead()
        # With a limit, a token is for what runs, not for what is ready.
        return pipeline.handler.is_quick and self._plan.framework.rate is None

    # What follows a settle.

    def _done(self, what: Decided, told: bool) -> None:  # noqa: FBT001 -- the settler's callback
        delivery, disposition = what.delivery, what.decision.disposition
        if delivery.lane:
            self._leave_lane(delivery, disposition, told=told)
        if delivery.row:
            self._row_done(delivery, disposition)
        if isinstance(disposition, Defer):
            # It is in the store only now.
            self._scheduler.deferred(disposition.until)

    def _leave_lane(self, delivery: Delivery, disposition: Disposition, *, told: bool) -> None:
        effect = rule_for(disposition).lane
        if effect == "wait" and told:
            return
        if effect == "go_back":
            # It will come again, and they behind it.
            for follower in self._intake.followers(delivery.lane):
                self._give_back(follower)
        self._intake.left(delivery)
        if not self._intake.has_lane(delivery.lane):
            self._kept_lanes.discard(delivery.lane)
        self._look_at_order()

    def _row_done(self, delivery: Delivery, disposition: Disposition) -> None:
        if isinstance(disposition, GiveBack):
            self._scheduler.given_back(delivery)
        else:
            self._scheduler.done(delivery)
        waiting = self._replays.pop(delivery.row, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(disposition)

    def _look_at_order(self) -> None:
        """Where nothing may overtake anything, what is in the store stops all the others."""
        if not self._plan.policy.strict or self._gate.is_closed:
            return
        try:
            self._pauses.order_is(blocked=self._store.is_blocked(SINGLE_LANE))
        except StoreError as error:
            self._pauses.order_is_unknown(str(error))

    def _tidy(self) -> None:
        """Give back what waits for so long that the broker would close the channel."""
        longest = self._handler.longest if self._handler is not None else 0.0
        self.give_back_old(self._clock.monotonic() - self._plan.patience(longest))
        self._look_at_order()


def _bucket(framework: Framework) -> TokenBucket | None:
    return TokenBucket(framework.rate, framework.burst) if framework.rate else None
