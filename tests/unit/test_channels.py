# SPDX-License-Identifier: GPL-2.0-or-later
"""Settles on channels, and acknowledgements put together, against a model of the broker's end.

tests/integration/test_acknowledger_conformance.py has them against a broker.
"""

from typing import Any

import pika.exceptions
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer_framework.adapters.amqp import Channels
from consumer_framework.adapters.amqp.channels import OpenChannel
from consumer_framework.testing import make_delivery


class Channel:
    """A channel of pika's Twisted adapter, as far as settles go."""

    def __init__(self, error=None):
        self.told = []
        self.is_open = not isinstance(error, pika.exceptions.AMQPError)
        self._error = error

    def _tell(self, *what):
        if self._error:
            raise self._error
        self.told.append(what)

    def basic_ack(self, delivery_tag=0, *, multiple=False):
        self._tell("ack", delivery_tag, multiple)

    def basic_nack(self, delivery_tag=None, *, multiple=False, requeue=True):
        self._tell("nack", delivery_tag, multiple, requeue)

    def basic_reject(self, delivery_tag, *, requeue=True):
        self._tell("reject", delivery_tag, requeue)


class Loop:
    """An event loop that turns when it is told to, for as long as there is something to do."""

    def __init__(self):
        self._calls = []

    def call_soon(self, function):
        self._calls.append(function)

    def run(self):
        while self._calls:
            self._calls.pop(0)()


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
def channels_with(loop):
    def make(*channels):
        acknowledger = Channels(loop.call_soon)
        return acknowledger, [acknowledger.add(channel) for channel in channels]

    return make


def test_channels_are_numbered_upwards_and_no_number_is_given_twice(channels_with):
    channels, numbers = channels_with(Channel(), Channel())
    channels.remove(numbers[1])
    assert [*numbers, channels.add(Channel())] == [1, 2, 3]


@pytest.mark.parametrize(
    ("settle", "told"),
    [
        ("ack", ("ack", 7, False)),
        ("give_back", ("nack", 7, False, True)),
        ("reject", ("reject", 7, False)),
    ],
)
def test_each_settle_goes_to_the_channel_of_its_delivery_and_concerns_it_alone(
    channels_with, loop, settle, told
):
    first, second = Channel(), Channel()
    channels, (_, generation) = channels_with(first, second)
    assert getattr(channels, settle)(make_delivery(generation=generation, delivery_tag=7))
    loop.run()
    assert first.told == []
    assert second.told == [told]


@pytest.mark.parametrize("settle", ["ack", "give_back", "reject"])
def test_a_settle_for_a_channel_that_is_gone_is_void_and_sends_nothing(channels_with, loop, settle):
    first, second = Channel(), Channel()
    channels, (gone, _) = channels_with(first, second)
    channels.remove(gone)
    channels.remove(gone)
    assert not getattr(channels, settle)(make_delivery(generation=gone))
    assert not getattr(channels, settle)(make_delivery(generation=99))
    loop.run()
    assert first.told == second.told == []


@pytest.mark.parametrize("settle", ["ack", "give_back", "reject"])
@pytest.mark.parametrize(
    "error",
    [
        pika.exceptions.ChannelWrongStateError("Channel is closed."),
        pika.exceptions.ConnectionWrongStateError("Connection is closed."),
    ],
)
def test_a_channel_that_closes_before_it_was_removed_makes_the_settle_void(
    channels_with, settle, error
):
    channels, (generation,) = channels_with(Channel(error))
    assert not getattr(channels, settle)(make_delivery(generation=generation))


def test_any_other_error_of_a_channel_is_a_defect_and_is_raised(channels_with, loop):
    channels, (generation,) = channels_with(Channel(ValueError("no such tag")))
    channels.ack(make_delivery(generation=generation))
    with pytest.raises(ValueError, match="no such tag"):
        loop.run()


def test_returns_are_left_to_the_end_of_their_channel_and_other_settles_are_sent(
    channels_with, loop
):
    first, second = Channel(), Channel()
    channels, (left, other) = channels_with(first, second)
    channels.return_at_close(left)
    assert channels.give_back(make_delivery(generation=left, delivery_tag=7))
    assert channels.ack(make_delivery(generation=left, delivery_tag=8))
    assert channels.give_back(make_delivery(generation=other, delivery_tag=9))
    loop.run()
    assert first.told == [("ack", 8, False)]
    assert second.told == [("nack", 9, False, True)]
    channels.remove(left)
    assert not channels.returns_at_close(left)
    assert not channels.give_back(make_delivery(generation=left, delivery_tag=7))


def test_every_kind_of_settle_is_counted_for_its_channel(channels_with):
    acknowledger, (first, second) = channels_with(Channel(), Channel())
    acknowledger.ack(make_delivery(generation=first, delivery_tag=1))
    acknowledger.give_back(make_delivery(generation=first, delivery_tag=3))
    acknowledger.reject(make_delivery(generation=second, delivery_tag=1))
    assert (acknowledger.settled_count(first), acknowledger.settled_count(second)) == (2, 1)
    acknowledger.remove(first)
    assert acknowledger.settled_count(first) == 0


# Acknowledgements that are put together.


class BrokerChannel:
    """A broker's end of a channel (AMQP 0-9-1, sections 1.8.3.13 and 1.8.3.14).

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
    """Channels, the generation of each, and the calls for the next turn of the event loop."""
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


def open_channel():
    nothing: Any = None
    return OpenChannel(nothing)


def told(tags, *, settled=()):
    channel = open_channel()
    for tag in settled:
        channel.settle(tag)
    for tag in tags:
        channel.ack(tag)
    return channel.take_untold()


def test_successes_in_a_row_are_one_acknowledgement():
    assert told(range(1, 101)) == [(100, True)]


def test_one_ack_covers_deliveries_that_ended_in_any_order():
    assert told([3, 1, 4, 2]) == [(4, True)]


def test_one_alone_is_acknowledged_alone():
    assert told([1]) == [(1, False)]


def test_a_delivery_behind_an_unsettled_one_is_acknowledged_alone():
    assert told([1, 2, 4, 6]) == [(2, True), (4, False), (6, False)]


def test_a_delivery_that_was_given_back_is_no_gap():
    assert told([1, 3, 4], settled=[2]) == [(4, True)]


def test_a_delivery_that_was_acknowledged_alone_is_no_gap_later():
    channel = open_channel()
    channel.ack(2)
    assert channel.take_untold() == [(2, False)]
    channel.ack(1)
    assert channel.take_untold() == [(1, False)]
    channel.ack(3)
    channel.ack(4)
    assert channel.take_untold() == [(4, True)]


def test_no_acknowledgement_is_sent_twice():
    channel = open_channel()
    for tag in (1, 2, 3):
        channel.ack(tag)
    channel.take_untold()
    assert channel.take_untold() == []


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
def test_a_settle_that_was_sent_at_once_leaves_no_gap_in_the_acknowledgements(how):
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
def test_a_channel_that_is_gone_before_the_turn_of_the_loop_does_not_affect_others(gone):
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


def test_deliveries_that_pass_a_held_one_take_no_memory():
    channel = open_channel()
    for tag in range(2, 100_000):
        channel.ack(tag)
    assert len(channel._last) == len(channel._first) == 1
    assert len(channel.take_untold()) == 99_998, "each of them is told alone"
    channel.ack(1)
    channel.ack(100_000)
    assert channel.take_untold() == [(100_000, True)]
    assert not channel._last


def test_settled_deliveries_are_counted_with_and_without_gaps():
    channel = open_channel()
    for tag, count in ((1, 1), (3, 2), (7, 3), (6, 4), (2, 5), (9, 6)):
        channel.settle(tag)
        assert channel.settled_count == count
