# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the network does, in whatever order: no message is lost, none runs twice at once.

A model of a broker and of handlers that end when the machine says so, around the real pipeline,
its memory of runs and of attempts, its holds and its intake, with several slots.

Messages that are equal cannot be told apart, so what holds for a message is said of all equal ones
together: there are never more settles than runs, and never more runs at once than messages.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer_framework.core.delivery import Failed, Succeeded
from consumer_framework.core.errors import Drop, Retry
from consumer_framework.core.histories import Histories
from consumer_framework.core.holds import Holds
from consumer_framework.core.intake import Intake
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.recovery import OnExhausted, Policy
from consumer_framework.core.redelivery import MEMORY_SECONDS, Unsettled
from consumer_framework.core.settler import Settler
from consumer_framework.testing import FakeAcknowledger, FakeClock, FakeRecorder, make_delivery
from consumer_framework.testing.fake_flight import FakeFlightRecorder
from consumer_framework.testing.fake_journal import FakeJournal

STEPS = 40
SETTLED_BY = {"ack": "success", "give_back": "retry", "reject": "drop"}
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


class Host(RuleBasedStateMachine):
    """Its bundles are plain lists, for what waits is gone after a cut."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots):
        self.loop = asyncio.new_event_loop()
        self.acknowledger = FakeAcknowledger()
        self.generation = 1
        self.tag = 0
        self.cuts = 0
        self.settles_seen = 0
        self.settled: Counter[tuple[str, str]] = Counter()
        self.published: Counter[str] = Counter()
        self.ready: list[Stored] = []
        self.unsettled: dict[int, Stored] = {}
        self.runs: list[Run] = []
        self.intake = Intake()
        self.clock = FakeClock()
        flight = FakeFlightRecorder(places=slots)
        self.holds = Holds(1000)
        self.histories = Histories()
        self.settler = Settler(
            self.acknowledger,
            FakeJournal(),
            flight,
            FakeRecorder(),
            self.holds,
            self.histories,
            Unsettled(self.clock),
            journal_failed=lambda _: None,
            journal_works=lambda: None,
            done=lambda _what, _told: None,
        )
        pipeline = Pipeline(
            decode=lambda delivery: delivery.message_id,
            handler=self,
            policy=POLICY,
            journal=self.settler.journal,
            flight=flight,
            recorder=self.settler.recorder,
            clock=self.clock,
            chance=lambda: 0.5,
            settler=self.settler,
        )
        self.slots = [self.loop.create_task(self.work(pipeline)) for _ in range(slots)]

    async def work(self, pipeline):
        while (delivery := await self.intake.take()) is not None:
            await pipeline.process(delivery)

    async def run(self, message):
        """The handler."""
        run = Run(message, self.loop.create_future())
        self.runs.append(run)
        await run.outcome
        return OUTCOMES[run.how]

    @property
    def running(self):
        return [run for run in self.runs if not run.how]

    @rule(kinds=st.lists(st.sampled_from("aab"), min_size=1, max_size=3))
    def publish(self, kinds):
        self.published.update(kinds)
        self.ready += [Stored(kind) for kind in kinds]

    @precondition(lambda self: self.ready)
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

    @precondition(lambda self: self.unsettled)
    @rule()
    def cut(self):
        self.acknowledger.close(self.generation)
        self.intake.discard(self.generation)
        for delivery in self.holds.discard(self.generation):
            self.histories.keep(delivery)
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
        self.intake.put(
            make_delivery(
                message_id=stored.kind,
                generation=self.generation,
                delivery_tag=self.tag,
                redelivered=stored.redelivered,
                received_at=self.clock.time(),
            )
        )
        self.turn()

    def bring_back(self, now):
        for delivery in self.holds.due(now):
            self.intake.put_first(delivery)
        self.turn()

    def end(self, number, how):
        run = self.running[number]
        run.how = how
        run.outcome.set_result(None)
        self.turn()

    def turn(self):
        """Let the slots do all they can, then let the broker hear of it."""
        self.loop.run_until_complete(self.many_turns())
        for slot in self.slots:
            assert not slot.done(), slot
        for delivery, settle in self.acknowledger.told[self.settles_seen :]:
            self.hear(delivery, settle)
        self.settles_seen = len(self.acknowledger.told)

    async def many_turns(self):
        for _ in range(20):
            await asyncio.sleep(0)

    def hear(self, delivery, settle):
        assert delivery.generation == self.generation, "a settle for a channel that is gone"
        stored = self.unsettled.pop(delivery.delivery_tag)
        self.settled[stored.kind, settle] += 1
        if settle == "give_back":
            stored.redelivered = True
            self.ready.append(stored)

    @invariant()
    def no_settle_is_without_a_run_of_its_own(self):
        for (kind, settle), count in self.settled.items():
            ended = [run for run in self.runs if (run.kind, run.how) == (kind, SETTLED_BY[settle])]
            assert count <= len(ended), f"{count} x {settle} of {kind!r} for {ended}"

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
    def no_message_runs_more_often_than_its_schedule_between_two_give_backs(self):
        for kind, count in Counter(run.kind for run in self.runs if run.how == "retry").items():
            again = self.settled[kind, "give_back"] + self.published[kind] + self.cuts
            assert count <= again * (1 + len(POLICY.schedule)), kind

    @invariant()
    def what_is_held_is_unsettled(self):
        assert len(self.holds) <= len(self.unsettled)

    @invariant()
    def a_slot_never_rests_while_a_delivery_waits(self):
        # A slot is busy with a run, or waits for one as a redelivery of its message does.
        if len(self.intake):
            assert self.running

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        try:
            self.everything_is_settled_when_the_network_holds()
        finally:
            for slot in self.slots:
                slot.cancel()
            self.loop.run_until_complete(asyncio.gather(*self.slots, return_exceptions=True))
            self.loop.close()

    def everything_is_settled_when_the_network_holds(self):
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
TestHost.settings = settings(max_examples=100, stateful_step_count=STEPS, deadline=None)
