# SPDX-License-Identifier: GPL-2.0-or-later
"""After any faults of the network in any order: no message is lost, none runs twice at once.

A model of a broker, and of handlers that end when the machine ends them, around the real pipeline,
its memory of runs and of attempts, its holds and its intake, with several slots. A delivery that is
handed over waits for a slot, and is withdrawn when its channel goes.

Equal messages cannot be told apart, so the invariants hold for all equal messages together: there
are never more settles than runs, and never more runs at once than messages.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer_framework.core import settler
from consumer_framework.core.delivery import Failed, Succeeded, Withdrawn
from consumer_framework.core.disposition import Hold
from consumer_framework.core.errors import Drop, Retry
from consumer_framework.core.intake import Holds, Intake
from consumer_framework.core.memory import MEMORY_SECONDS, Histories, LostAcks, UnsettledRuns
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.recovery import OnExhausted, Policy
from consumer_framework.core.settler import Settler
from consumer_framework.testing import FakeAcknowledger, FakeClock, FakeObserver, make_delivery
from consumer_framework.testing.fake_store import FakeStore
from consumer_framework.testing.fakes import FakeFlightRecorder

STEPS = 40
# Held as often as the schedule says, and for as long as it takes; then back to the broker.
POLICY = Policy(schedule=(0.0, 10.0), hold_ceiling=float("inf"), on_exhausted=OnExhausted.REQUEUE)
OUTCOMES = {"success": Succeeded(), "retry": Failed(Retry()), "drop": Failed(Drop())}


@dataclass(eq=False)
class Stored:
    """One message on the broker; *kind* is all that a consumer sees of it."""

    kind: str
    redelivered: bool = False


@dataclass(eq=False)
class Run:
    kind: str
    outcome: asyncio.Future[None] = field(repr=False)
    how: str = ""


class Handlers:
    """So many slots; each run in one ends when the machine says so."""

    is_quick = False

    def __init__(self, slots, runs):
        self.waiting = {}
        self._free = slots
        self._runs = runs
        self._flight = FakeFlightRecorder(places=slots)

    async def run(self, delivery):
        begun = self.waiting[delivery] = asyncio.get_running_loop().create_future()
        self._fill()
        if not await begun:
            return Withdrawn()
        run = Run(delivery.message_id, asyncio.get_running_loop().create_future())
        self._runs.append(run)
        place = self._flight.took_off(delivery)
        await run.outcome
        self._flight.landed(place)
        self._free += 1
        self._fill()
        return OUTCOMES[run.how]

    def stop(self):
        raise AssertionError("nothing stops here")

    def withdraw(self, which=lambda _delivery: True):
        withdrawn, self.waiting = self.waiting, {}
        for begun in withdrawn.values():
            begun.set_result(False)
        return len(withdrawn)

    def _fill(self):
        while self._free and self.waiting:
            self._free -= 1
            self.waiting.pop(next(iter(self.waiting))).set_result(True)


class Host(RuleBasedStateMachine):
    """An instance and a network that fails. Its bundles are lists, which a cut empties."""

    @initialize(slots=st.integers(1, 4), handed_over=st.integers(0, 4))
    def start(self, slots, handed_over):
        self.loop = asyncio.new_event_loop()
        self.acknowledger = FakeAcknowledger()
        self.generation = 1
        self.tag = 0
        self.cuts = 0
        self.is_stalled = False
        self.settles_seen = 0
        self.settled: Counter[tuple[str, str]] = Counter()
        self.published: Counter[str] = Counter()
        self.ready: list[Stored] = []
        self.unsettled: dict[int, Stored] = {}
        self.runs: list[Run] = []
        self.intake = Intake(FakeClock())
        self.clock = FakeClock()
        self.handlers = Handlers(slots, self.runs)
        self.holds = Holds(1000, self.clock)
        self.histories = Histories()
        self.settler = Settler(
            self.acknowledger,
            FakeStore(),
            FakeFlightRecorder(),
            FakeObserver(),
            self.holds,
            self.histories,
            UnsettledRuns(self.clock),
            LostAcks(self.clock),
            store_failed=lambda _: None,
            store_works=lambda: None,
            done=lambda _what, _told: None,
            clock=self.clock,
            spawn=self.loop.create_task,
        )
        pipeline = Pipeline(
            handler=self.handlers,
            policy=POLICY,
            store=self.settler.store,
            observer=self.settler.observer,
            clock=self.clock,
            chance=lambda: 0.5,
            settler=self.settler,
        )
        at_once = slots + handed_over
        self.workers = [self.loop.create_task(self.work(pipeline)) for _ in range(at_once)]

    async def work(self, pipeline):
        while (delivery := await self.intake.take()) is not None:
            _, decision = await pipeline.process(delivery)
            if isinstance(decision.disposition, Hold):
                self.look(self.clock.time())

    @property
    def running(self):
        return [run for run in self.runs if not run.how]

    @rule(kinds=st.lists(st.sampled_from("aab"), min_size=1, max_size=3))
    def publish(self, kinds):
        self.published.update(kinds)
        self.ready += [Stored(kind) for kind in kinds]

    @precondition(lambda self: not self.is_stalled)
    @rule()
    def stall(self):
        """Let the connection be dead, which nobody notices before it is cut."""
        self.is_stalled = True

    @precondition(lambda self: self.ready and not self.is_stalled)
    @rule(data=st.data())
    def deliver(self, data):
        for _ in range(data.draw(st.integers(1, len(self.ready)))):
            self.deliver_at(data.draw(st.integers(0, len(self.ready) - 1)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["success", "success", "retry", "drop"]))
    def end_a_run(self, data, how):
        self.end(data.draw(st.sampled_from(range(len(self.running)))), how)

    @precondition(lambda self: len(self.holds) > 0)
    @rule()
    def bring_back_what_is_due(self):
        self.bring_back(self.clock.time())

    @precondition(lambda self: self.unsettled or self.is_stalled)
    @rule()
    def cut(self):
        self.acknowledger.close(self.generation)
        self.settler.lost_acks.voided(self.generation)
        self.is_stalled = False
        self.intake.discard(self.generation)
        for delivery in self.holds.discard(self.generation):
            self.histories.keep(delivery)
        self.handlers.withdraw()
        self.generation = self.acknowledger.open()
        self.cuts += len(self.unsettled)
        self.tag = 0
        for stored in self.unsettled.values():
            stored.redelivered = True
            self.ready.append(stored)
        self.unsettled.clear()
        self.turn()

    @rule(seconds=st.floats(0, MEMORY_SECONDS / STEPS))
    def let_time_pass(self, seconds):
        self.clock.advance(seconds)

    def deliver_at(self, position):
        stored = self.ready.pop(position)
        self.tag += 1
        self.unsettled[self.tag] = stored
        delivery = make_delivery(
            message_id=stored.kind,
            generation=self.generation,
            delivery_tag=self.tag,
            redelivered=stored.redelivered,
            received_at=self.clock.time(),
            arrived_at=self.clock.monotonic(),
        )
        if not self.settler.answers(delivery):
            self.intake.put(delivery)
        self.turn()

    def bring_back(self, now):
        self.look(now)
        self.turn()

    def look(self, now):
        for delivery in reversed(self.holds.due(now)):
            self.intake.put_first(delivery)

    def end(self, number, how):
        run = self.running[number]
        run.how = how
        run.outcome.set_result(None)
        self.turn()

    def turn(self):
        """Let the slots do all they can, then let the broker hear of it."""
        # A requeue happens at once, since there is no real time.
        with mock.patch.object(settler, "REQUEUE_PAUSE", 0):
            self.loop.run_until_complete(self.many_turns())
        for worker in self.workers:
            assert not worker.done(), worker
        for delivery, settle in self.acknowledger.told[self.settles_seen :]:
            if not self.is_stalled:
                self.hear(delivery, settle)
        self.settles_seen = len(self.acknowledger.told)

    async def many_turns(self):
        for _ in range(20):
            await asyncio.sleep(0)

    def hear(self, delivery, settle):
        assert delivery.generation == self.generation, "a settle for a channel that is gone"
        stored = self.unsettled.pop(delivery.delivery_tag)
        self.settled[stored.kind, settle] += 1
        if settle in {"requeue", "give_back"}:
            stored.redelivered = True
            self.ready.append(stored)

    @invariant()
    def no_settle_is_without_a_run_of_its_own(self):
        # Nobody can tell which of two equal messages comes back.
        for kind in self.published:
            how = Counter(run.how for run in self.runs if run.kind == kind)
            ended = self.settled[kind, "ack"] + self.settled[kind, "reject"]
            assert ended <= how["success"] + how["drop"], f"{ended} of {kind!r} ended: {how}"
            assert self.settled[kind, "requeue"] <= how["retry"], f"{kind!r}: {how}"

    @invariant()
    def no_handler_runs_again_on_what_it_is_done_with(self):
        done = Counter(run.kind for run in self.runs if run.how in ("success", "drop"))
        for kind, count in done.items():
            assert count <= self.published[kind], f"{count} runs of {kind!r}"

    @invariant()
    def no_handler_runs_beside_itself(self):
        for kind, count in Counter(run.kind for run in self.running).items():
            stored = [s for s in (*self.ready, *self.unsettled.values()) if s.kind == kind]
            assert count <= len(stored), f"{count} runs for {len(stored)} messages {kind!r}"

    @invariant()
    def no_message_runs_more_often_than_its_schedule_between_two_requeues(self):
        for kind, count in Counter(run.kind for run in self.runs if run.how == "retry").items():
            again = self.settled[kind, "requeue"] + self.published[kind] + self.cuts
            assert count <= again * (1 + len(POLICY.schedule)), kind

    @invariant()
    def what_is_held_is_unsettled(self):
        assert len(self.holds) <= len(self.unsettled)

    @invariant()
    def a_slot_never_rests_while_a_delivery_waits(self):
        # A slot is busy with a run, or waits for one as a redelivery of its message does.
        if len(self.intake) or self.handlers.waiting:
            assert self.running

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        try:
            self.everything_is_settled_when_the_network_holds()
        finally:
            for worker in self.workers:
                worker.cancel()
            self.loop.run_until_complete(asyncio.gather(*self.workers, return_exceptions=True))
            self.loop.close()

    def everything_is_settled_when_the_network_holds(self):
        if self.is_stalled:
            self.cut()
        while self.ready or self.running or len(self.holds):
            self.bring_back(float("inf"))
            if self.ready:
                self.deliver_at(0)
            if self.running:
                self.end(0, "success")
        assert self.unsettled == {}
        for kind, count in self.published.items():
            assert count == self.settled[kind, "ack"] + self.settled[kind, "reject"]
        self.no_settle_is_without_a_run_of_its_own()
        self.no_handler_runs_again_on_what_it_is_done_with()


TestHost = Host.TestCase
TestHost.settings = settings(
    max_examples=100, stateful_step_count=STEPS, deadline=None, report_multiple_bugs=False
)
