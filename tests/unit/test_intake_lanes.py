# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries with ordering keys that wait for a slot, against a model of all that waits."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.delivery import Delivery
from consumer_framework.core.gate import Gate
from consumer_framework.core.intake import Intake
from consumer_framework.core.limits import TokenBucket
from consumer_framework.testing import FakeClock, make_delivery

PATIENCE = 20
LANES = ("", "a", "b", "c")


def play(scenario):
    """Run *scenario*; one that would wait for ever fails."""
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


def of(lane, tag, generation=1, row=0, arrived_at=0.0):
    return make_delivery(
        lane=lane, delivery_tag=tag, generation=generation, row=row, arrived_at=arrived_at
    )


async def taken(intake, count):
    return [(await intake.take()).delivery_tag for _ in range(count)]


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_delivery_waits_until_the_one_before_it_in_its_lane_has_left():
    async def scenario():
        intake = Intake(SystemClock())
        for delivery in (of("a", 1), of("a", 2), of("b", 3), of("", 4)):
            intake.put(delivery)
        assert await taken(intake, 3) == [1, 3, 4]
        slot = asyncio.create_task(intake.take())
        await turns()
        assert not slot.done()
        intake.left(of("a", 1))
        assert await slot == of("a", 2)

    play(scenario())


def test_deliveries_without_a_lane_do_not_wait_for_each_other():
    async def scenario():
        intake = Intake(SystemClock())
        for tag in (1, 2, 3):
            intake.put(of("", tag))
        intake.left(of("", 1))
        assert await taken(intake, 3) == [1, 2, 3]

    play(scenario())


def test_the_next_delivery_of_a_lane_precedes_later_arrivals():
    async def scenario():
        intake = Intake(SystemClock())
        for delivery in (of("a", 1), of("a", 2), of("", 3), of("", 4)):
            intake.put(delivery)
        assert await taken(intake, 1) == [1]
        intake.left(of("a", 1))
        assert await taken(intake, 3) == [2, 3, 4]

    play(scenario())


def test_an_old_delivery_goes_with_all_deliveries_behind_it():
    intake = Intake(SystemClock())
    for tag, lane in enumerate(["a", "", "b", "a", "b", ""]):
        intake.put(of(lane, tag, arrived_at=float(tag)))
    old = intake.older_than(2.0)
    assert [delivery.delivery_tag for delivery in old] == [0, 3, 1]
    assert len(intake) == 3
    assert intake.older_than(2.0) == []

    async def scenario():
        assert await taken(intake, 2) == [2, 5]
        intake.left(of("b", 2))
        assert await taken(intake, 1) == [4]
        intake.put(of("a", 9))
        assert await taken(intake, 1) == [9]

    play(scenario())


def test_a_row_of_the_store_is_never_too_old():
    intake = Intake(SystemClock())
    intake.put_first(of("a", 1, generation=0, row=1))
    intake.put(of("a", 2))
    intake.put_first(of("a", 3, generation=0, row=2))
    assert intake.older_than(100.0) == [of("a", 2)]
    assert len(intake) == 2


def test_with_a_rate_the_order_of_a_lane_is_the_same():
    async def scenario():
        gate = Gate()
        intake = Intake(SystemClock(), TokenBucket(1e6, burst=1), gate=gate)
        for delivery in (of("a", 1), of("a", 2), of("b", 3)):
            intake.put(delivery)
        assert await taken(intake, 2) == [1, 3]
        slots = [asyncio.create_task(intake.take()) for _ in range(3)]
        await turns()
        intake.left(of("a", 1))
        assert await slots[0] == of("a", 2)
        gate.close()
        assert await asyncio.gather(*slots[1:]) == [None, None]

    play(scenario())


def test_with_a_rate_a_slot_takes_no_token_for_a_delivery_that_is_not_there():
    async def scenario():
        gate = Gate()
        intake = Intake(FakeClock(), TokenBucket(0.001, burst=2), gate)
        slots = [asyncio.create_task(intake.take()) for _ in range(3)]
        await turns()
        intake.put(of("", 1))
        intake.discard(1)
        await turns()
        intake.put(of("", 2))
        assert await slots[0] == of("", 2)
        intake.put(of("", 3))
        assert await slots[1] == of("", 3)
        intake.put(of("", 4))
        await turns()
        assert not slots[2].done()
        gate.close()
        assert await slots[2] is None
        assert intake.clear() == [of("", 4)]

    play(scenario())


@dataclass
class Model:
    """The waiting deliveries in the order of their arrival, and those in slots.

    Attributes:
        lanes: The deliveries that have not left their lane, in the order of their arrival.
        out: The deliveries in slots.
        held: The deliveries that were in a slot, and wait for their time.
    """

    lanes: dict[str, list[Delivery]] = field(default_factory=lambda: {k: [] for k in LANES})
    out: list[Delivery] = field(default_factory=list)
    held: list[Delivery] = field(default_factory=list)

    def waiting(self):
        return [d for lane in self.lanes.values() for d in lane if not self.is_away(d)]

    def is_away(self, delivery):
        return delivery in self.out or delivery in self.held

    def ready(self):
        """Return the deliveries that a slot may take: the first of each lane that is not away."""
        heads = [lane[0] for name, lane in self.lanes.items() if name and lane]
        plain = [d for d in self.lanes[""] if not self.is_away(d)]
        first = [next((d for d in plain if bool(d.row) == row), None) for row in (False, True)]
        return [d for d in [*heads, *filter(None, first)] if not self.is_away(d)]

    def remove(self, deliveries):
        for delivery in deliveries:
            self.lanes[delivery.lane].remove(delivery)


class Waiting(RuleBasedStateMachine):
    """Deliveries of several channels and of the store, and everything that happens to them."""

    @initialize()
    def start(self):
        self.loop = asyncio.new_event_loop()
        self.intake = Intake(SystemClock())
        self.model = Model()
        self.generation = 1
        self.number = 0

    def teardown(self):
        if hasattr(self, "loop"):
            try:
                self.everything_comes_out_in_the_end()
            finally:
                self.loop.close()

    def take(self):
        taking = self.loop.create_task(self.intake.take())
        self.loop.run_until_complete(turns())
        assert taking.done() or taking.cancel() is None, "something is ready"
        return taking.result()

    # Events.

    @rule(lane=st.sampled_from(["", "a", "a", "b", "c"]), older=st.booleans())
    def deliver(self, lane, older):
        """On the latest channel, or on the one before."""
        self.number += 1
        generation = self.generation + 1 - older
        delivery = of(lane, self.number, generation, arrived_at=float(self.number))
        self.model.lanes[lane].append(delivery)
        self.intake.put(delivery)

    @rule(lane=st.sampled_from(LANES))
    def bring_from_the_store(self, lane):
        self.number += 1
        delivery = of(lane, self.number, 0, row=self.number, arrived_at=1.0)
        self.model.lanes[lane].insert(0 if not lane else len(self.model.lanes[lane]), delivery)
        self.intake.put_first(delivery)

    @precondition(lambda self: self.model.ready())
    @rule()
    def a_slot_takes_one(self):
        delivery = self.take()
        assert delivery in self.model.ready()
        self.model.out.append(delivery)

    @precondition(lambda self: self.model.out)
    @rule(data=st.data())
    def a_slot_is_done(self, data):
        delivery = data.draw(st.sampled_from(self.model.out))
        self.model.out.remove(delivery)
        self.model.remove([delivery])
        self.intake.left(delivery)

    @precondition(lambda self: self.model.out)
    @rule(data=st.data())
    def one_is_held(self, data):
        delivery = data.draw(st.sampled_from(self.model.out))
        self.model.out.remove(delivery)
        self.model.held.append(delivery)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def a_held_one_is_due(self, data):
        delivery = data.draw(st.sampled_from(self.model.held))
        self.model.held.remove(delivery)
        if not delivery.lane:
            self.model.lanes[""].remove(delivery)
            self.model.lanes[""].insert(0, delivery)
        self.intake.put_first(delivery)

    @precondition(lambda self: any(d.lane for d in self.model.out))
    @rule(data=st.data())
    def one_is_given_back_and_those_behind_it(self, data):
        delivery = data.draw(st.sampled_from([d for d in self.model.out if d.lane]))
        behind = self.model.lanes[delivery.lane][1:]
        assert self.intake.followers(delivery.lane) == behind
        self.intake.left(delivery)
        self.model.out.remove(delivery)
        self.model.remove([delivery, *behind])

    @rule()
    def the_channel_goes(self):
        """Forget waiting and held deliveries at once, and those in slots when they are done."""
        gone = [d for d in self.model.waiting() if d.generation == self.generation]
        found = self.intake.discard(self.generation)
        assert sorted(found, key=id_of) == sorted(gone, key=id_of)
        self.model.remove(gone)
        for delivery in [d for d in self.model.held if d.generation == self.generation]:
            self.model.held.remove(delivery)
            self.model.remove([delivery])
            self.intake.left(delivery)
        self.generation += 1

    @rule(back=st.integers(0, 10))
    def what_is_too_old_is_given_back(self, back):
        moment = float(self.number - back)
        waiting = [d for d in self.model.waiting() if not d.row]
        old = [d for d in waiting if d.arrived_at < moment]
        lanes = {d.lane for d in old if d.lane}
        expected = [d for d in waiting if d in old or d.lane in lanes]
        found = self.intake.older_than(moment)
        assert sorted(found, key=id_of) == sorted(expected, key=id_of)
        self.in_the_order_of_its_lane(found)
        self.model.remove(found)

    @rule()
    def all_that_waits_is_given_back(self):
        found = self.intake.clear()
        assert sorted(found, key=id_of) == sorted(self.model.waiting(), key=id_of)
        self.in_the_order_of_its_lane(found)
        self.model.remove(found)

    def in_the_order_of_its_lane(self, found):
        for name, lane in self.model.lanes.items():
            # Without a lane, the broker's and the store's wait apart.
            kinds = ({True, False},) if name else ({False}, {True})
            for kind in kinds:
                mine = [d for d in found if d.lane == name and bool(d.row) in kind]
                assert mine == [d for d in lane if d in mine]

    # Invariants.

    @invariant()
    def nothing_is_forgotten(self):
        if hasattr(self, "loop"):
            assert len(self.intake) == len(self.model.waiting())

    @invariant()
    def no_two_of_a_lane_are_away_at_once(self):
        if hasattr(self, "loop"):
            away = [d.lane for d in [*self.model.out, *self.model.held] if d.lane]
            assert len(away) == len(set(away))

    def everything_comes_out_in_the_end(self):
        while self.model.held:
            delivery = self.model.held.pop()
            if not delivery.lane:
                self.model.lanes[""].remove(delivery)
                self.model.lanes[""].insert(0, delivery)
            self.intake.put_first(delivery)
        while self.model.ready() or self.model.out:
            while self.model.ready():
                delivery = self.take()
                assert delivery in self.model.ready()
                self.model.out.append(delivery)
            for delivery in self.model.out:
                self.model.remove([delivery])
                self.intake.left(delivery)
            self.model.out.clear()
        assert len(self.intake) == 0
        assert not any(self.model.lanes.values())


def id_of(delivery):
    return delivery.generation, delivery.delivery_tag


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
