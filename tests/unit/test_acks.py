# SPDX-License-Identifier: GPL-2.0-or-later
"""Acknowledgements that are put together, against a model of the broker's end of the channel."""

from typing import Any

import pika.exceptions
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer_framework.adapters.amqp import Channels
from consumer_framework.adapters.amqp.channels import Acks
from consumer_framework.testing import make_delivery


class BrokerChannel:
    """What a broker makes of acknowledgements (AMQP 0-9-1, sections 1.8.3.13 and 1.8.3.14).

    Attributes:
        outstanding: The delivery tags that are delivered and not settled.
        acked: Those that are acknowledged.
        told: How many methods came.
    """

    is_open = True

    def __init__(self):
        self.outstanding: list[int] = []
        self.acked: set[int] = set()
        self.returned: set[int] = set()
        self.told = 0
        self._latest = 0

    def deliver(self):
        self._latest += 1
        self.outstanding.append(self._latest)
        return self._latest

    def basic_ack(self, delivery_tag=0, *, multiple=False):
        self.acked.update(self._settle(delivery_tag, multiple=multiple))

    def basic_nack(self, delivery_tag=0, *, multiple=False, requeue=True):
        self.returned.update(self._settle(delivery_tag, multiple=multiple))

    def basic_reject(self, delivery_tag=0, *, requeue=True):
        self.returned.update(self._settle(delivery_tag, multiple=False))

    def _settle(self, tag, *, multiple):
        self.told += 1
        assert tag in self.outstanding, f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"
        settled = [other for other in self.outstanding if other <= tag] if multiple else [tag]
        self.outstanding = [other for other in self.outstanding if other not in settled]
        return settled


def channels_of(*brokers):
    """Channels, the generation of each, and what the event loop is to call in its next turn."""
    calls: list[Any] = []
    channels: Any = Channels(calls.append)
    return channels, [channels.add(broker) for broker in brokers], calls


def run(calls):
    """Let the event loop turn for as long as it has something to do."""
    while calls:
        calls.pop()()


class Settles(RuleBasedStateMachine):
    """Deliveries of two channels, settled in any order; acknowledgements told now and then."""

    @initialize()
    def start(self):
        self.brokers = [BrokerChannel() for _ in range(2)]
        self.channels, self.generations, self.calls = channels_of(*self.brokers)
        self.unsettled: list[tuple[int, int]] = []
        self.acked: list[set[int]] = [set(), set()]
        self.returned: list[set[int]] = [set(), set()]

    @rule(which=st.integers(0, 1), count=st.integers(1, 5))
    def deliver(self, which, count):
        self.unsettled += [(which, self.brokers[which].deliver()) for _ in range(count)]

    @precondition(lambda self: self.unsettled)
    @rule(at=st.integers(0, 7), how=st.sampled_from(["ack", "ack", "ack", "give_back", "reject"]))
    def settle(self, at, how):
        which, tag = self.unsettled.pop(at % len(self.unsettled))
        delivery = make_delivery(generation=self.generations[which], delivery_tag=tag)
        assert getattr(self.channels, how)(delivery)
        (self.acked if how == "ack" else self.returned)[which].add(tag)

    @rule(which=st.integers(0, 1))
    def settle_all_that_came_so_far(self, which):
        for channel, tag in [entry for entry in self.unsettled if entry[0] == which]:
            delivery = make_delivery(generation=self.generations[channel], delivery_tag=tag)
            assert self.channels.ack(delivery)
            self.acked[channel].add(tag)
        self.unsettled = [entry for entry in self.unsettled if entry[0] != which]

    @precondition(lambda self: self.calls)
    @rule()
    def the_loop_turns(self):
        assert len(self.calls) == 1, "one call for all that was acknowledged"
        self.calls.pop()()

    @invariant()
    def the_broker_never_takes_for_settled_what_is_not(self):
        if not hasattr(self, "brokers"):
            return
        for which, broker in enumerate(self.brokers):
            assert broker.acked <= self.acked[which]
            assert broker.returned == self.returned[which], "what is given back is told at once"
            assert {tag for channel, tag in self.unsettled if channel == which} <= set(
                broker.outstanding
            )

    @invariant()
    def the_broker_knows_all_once_the_loop_has_turned(self):
        if not hasattr(self, "brokers") or self.calls:
            return
        for which, broker in enumerate(self.brokers):
            assert broker.acked == self.acked[which]

    def teardown(self):
        if hasattr(self, "channels"):
            self.channels.flush()
            self.calls.clear()
            self.the_broker_knows_all_once_the_loop_has_turned()


TestSettles = Settles.TestCase
TestSettles.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def told(tags, *, settled=()):
    acks = Acks()
    for tag in settled:
        acks.settled(tag)
    for tag in tags:
        acks.ack(tag)
    return acks.take()


def test_successes_in_a_row_are_one_acknowledgement():
    assert told(range(1, 101)) == [(100, True)]


def test_in_whatever_order_they_ended():
    assert told([3, 1, 4, 2]) == [(4, True)]


def test_one_alone_is_acknowledged_alone():
    assert told([1]) == [(1, False)]


def test_what_ended_before_another_is_acknowledged_alone():
    assert told([1, 2, 4, 6]) == [(2, True), (4, False), (6, False)]


def test_what_was_given_back_is_no_gap():
    assert told([1, 3, 4], settled=[2]) == [(4, True)]


def test_what_was_acknowledged_alone_is_no_gap_later():
    acks = Acks()
    acks.ack(2)
    assert acks.take() == [(2, False)]
    acks.ack(1)
    assert acks.take() == [(1, False)]
    acks.ack(3)
    acks.ack(4)
    assert acks.take() == [(4, True)]


def test_nothing_is_told_twice():
    acks = Acks()
    for tag in (1, 2, 3):
        acks.ack(tag)
    acks.take()
    assert acks.take() == []


def test_thousands_of_successes_cost_an_acknowledgement_in_a_few_turns_of_the_loop():
    broker = BrokerChannel()
    channels, (generation,), calls = channels_of(broker)
    for turn in range(20):
        for _ in range(100):
            channels.ack(make_delivery(generation=generation, delivery_tag=broker.deliver()))
        run(calls)
        assert broker.told == turn + 1
    assert broker.outstanding == []
    assert len(broker.acked) == 2000


@pytest.mark.parametrize("how", ["give_back", "requeue", "reject"])
def test_what_was_told_at_once_leaves_no_gap_in_what_is_acknowledged(how):
    broker = BrokerChannel()
    channels, (generation,), calls = channels_of(broker)
    for _ in range(5):
        tag = broker.deliver()
        settle = getattr(channels, how) if tag == 2 else channels.ack
        assert settle(make_delivery(generation=generation, delivery_tag=tag))
    run(calls)
    assert broker.told == 2
    assert broker.acked == {1, 3, 4, 5}
    assert broker.returned == {2}


@pytest.mark.parametrize("gone", [0, 1])
def test_a_channel_that_is_gone_before_the_turn_of_the_loop_costs_the_others_nothing(gone):
    brokers = [BrokerChannel(), BrokerChannel()]
    channels, generations, calls = channels_of(*brokers)
    for generation, broker in zip(generations, brokers, strict=True):
        channels.ack(make_delivery(generation=generation, delivery_tag=broker.deliver()))
    channels.remove(generations[gone])
    run(calls)
    assert brokers[gone].acked == set()
    assert brokers[1 - gone].acked == {1}


class ClosedChannel(BrokerChannel):
    """One that pika knows to be closed, before anybody was told."""

    def basic_ack(self, delivery_tag=0, *, multiple=False):
        raise pika.exceptions.ChannelWrongStateError("Channel is closed.")


def test_a_channel_that_has_closed_unnoticed_costs_the_others_nothing():
    closed, broker = ClosedChannel(), BrokerChannel()
    channels, generations, calls = channels_of(closed, broker)
    for generation in generations:
        for tag in (1, 3):
            channels.ack(make_delivery(generation=generation, delivery_tag=tag))
    for _ in range(3):
        broker.deliver()
    run(calls)
    assert broker.acked == {1, 3}


def test_what_passes_a_held_delivery_takes_no_room():
    acks = Acks()
    for tag in range(2, 100_000):
        acks.ack(tag)
    assert len(acks._last) == len(acks._first) == 1
    assert len(acks.take()) == 99_998, "each of them is told alone"
    acks.ack(1)
    acks.ack(100_000)
    assert acks.take() == [(100_000, True)]
    assert not acks._last


def test_what_is_settled_is_counted_gaps_or_not():
    acks = Acks()
    for tag, count in ((1, 1), (3, 2), (7, 3), (6, 4), (2, 5), (9, 6)):
        acks.settled(tag)
        assert acks.count == count
