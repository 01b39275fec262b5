# SPDX-License-Identifier: GPL-2.0-or-later
"""The promises of the port Acknowledger; each suite has a fixture `world` that operates its own."""

import abc
import functools
from typing import Any

import pytest

SETTLES = ("ack", "give_back", "reject")


class World(abc.ABC):
    """A queue with the messages "a", "b" and "c", and the channel of an acknowledger."""

    acknowledger: Any
    # True where the acknowledger notices the end of a channel at once.
    notices = True

    @abc.abstractmethod
    def play(self, scenario):
        """Run a coroutine; the test returns the result of this."""

    @abc.abstractmethod
    async def deliver(self, count):
        """Deliver the first *count* messages of the queue on the open channel."""

    @abc.abstractmethod
    async def cut(self):
        """Lose the channel, and open another one."""

    @abc.abstractmethod
    async def left(self):
        """Close the channel; return the bodies of the messages that are on the queue then."""


def scenario(coroutine_function):
    @functools.wraps(coroutine_function)
    def test(self, world, **parameters):
        return world.play(coroutine_function(self, world, **parameters))

    return test


class AcknowledgerSuite:
    """Tests for a fixture `world`, which each suite has."""

    @scenario
    async def test_an_acked_message_is_forgotten(self, world):
        first, second = await world.deliver(2)
        assert world.acknowledger.ack(first) is True
        assert await world.left() == {second.body, b"c"}

    @scenario
    async def test_a_rejected_message_is_forgotten(self, world):
        first, second = await world.deliver(2)
        assert world.acknowledger.reject(second) is True
        assert await world.left() == {first.body, b"c"}

    @scenario
    async def test_a_message_that_is_given_back_is_on_its_queue(self, world):
        (first,) = await world.deliver(1)
        assert world.acknowledger.give_back(first) is True
        assert await world.left() == {b"a", b"b", b"c"}

    @scenario
    async def test_each_settle_concerns_its_own_delivery_alone(self, world):
        first, second, third = await world.deliver(3)
        assert world.acknowledger.ack(third)
        assert await world.left() == {first.body, second.body}

    @scenario
    async def test_deliveries_may_be_settled_in_any_order_and_manner(self, world):
        first, second, third = await world.deliver(3)
        assert world.acknowledger.give_back(third)
        assert world.acknowledger.ack(second)
        assert world.acknowledger.reject(first)
        assert await world.left() == {third.body}

    @pytest.mark.parametrize("settle", SETTLES)
    @scenario
    async def test_a_settle_for_a_channel_that_is_gone_is_void(self, world, settle):
        (first,) = await world.deliver(1)
        await world.cut()
        assert getattr(world.acknowledger, settle)(first) is False
        assert await world.left() == {b"a", b"b", b"c"}

    @scenario
    async def test_a_delivery_is_open_until_its_channel_is_known_to_be_gone(self, world):
        (before,) = await world.deliver(1)
        assert world.acknowledger.is_open(before) is True
        await world.cut()
        (after,) = await world.deliver(1)
        assert world.acknowledger.is_open(before) is not world.notices
        assert world.acknowledger.is_open(after) is True
        assert await world.left() == {b"a", b"b", b"c"}

    @scenario
    async def test_asking_whether_a_delivery_is_open_settles_nothing(self, world):
        (first,) = await world.deliver(1)
        assert world.acknowledger.is_open(first)
        assert world.acknowledger.is_open(first)
        assert world.acknowledger.ack(first) is True
        assert await world.left() == {b"b", b"c"}

    @pytest.mark.parametrize("settle", SETTLES)
    @scenario
    async def test_a_void_settle_spares_what_has_its_tag_on_the_new_channel(self, world, settle):
        (before,) = await world.deliver(1)
        await world.cut()
        (after,) = await world.deliver(1)
        assert after.delivery_tag == before.delivery_tag
        assert after.generation > before.generation
        assert getattr(world.acknowledger, settle)(before) is False
        assert world.acknowledger.ack(after) is True
        assert await world.left() == {b"a", b"b", b"c"} - {after.body}
