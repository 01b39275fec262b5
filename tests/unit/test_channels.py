# SPDX-License-Identifier: GPL-2.0-or-later
"""Which channel is told what; what the broker makes of it is tested against a broker."""

import pika.exceptions
import pytest

from consumer_framework.adapters.amqp import Channels
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
def test_each_settle_is_told_to_the_channel_of_its_delivery_and_concerns_it_alone(
    channels_with, loop, settle, told
):
    first, second = Channel(), Channel()
    channels, (_, generation) = channels_with(first, second)
    assert getattr(channels, settle)(make_delivery(generation=generation, delivery_tag=7))
    loop.run()
    assert first.told == []
    assert second.told == [told]


@pytest.mark.parametrize("settle", ["ack", "give_back", "reject"])
def test_a_settle_for_a_channel_that_is_gone_is_void_and_tells_nobody(channels_with, loop, settle):
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


def test_what_is_left_goes_back_with_its_channel_and_everything_else_is_told(channels_with, loop):
    first, second = Channel(), Channel()
    channels, (left, other) = channels_with(first, second)
    channels.leave(left)
    assert channels.give_back(make_delivery(generation=left, delivery_tag=7))
    assert channels.ack(make_delivery(generation=left, delivery_tag=8))
    assert channels.give_back(make_delivery(generation=other, delivery_tag=9))
    loop.run()
    assert first.told == [("ack", 8, False)]
    assert second.told == [("nack", 9, False, True)]
    channels.remove(left)
    assert not channels.is_left(left)
    assert not channels.give_back(make_delivery(generation=left, delivery_tag=7))


def test_what_is_settled_is_counted_for_each_channel_in_whatever_way(channels_with):
    acknowledger, (first, second) = channels_with(Channel(), Channel())
    acknowledger.ack(make_delivery(generation=first, delivery_tag=1))
    acknowledger.give_back(make_delivery(generation=first, delivery_tag=3))
    acknowledger.reject(make_delivery(generation=second, delivery_tag=1))
    assert (acknowledger.settled(first), acknowledger.settled(second)) == (2, 1)
    acknowledger.remove(first)
    assert acknowledger.settled(first) == 0
