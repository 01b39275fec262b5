# SPDX-License-Identifier: GPL-2.0-or-later
"""Room for another message, and late deliveries.

tests/integration/test_prefetch.py has other counts with a broker.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from consumer_framework.adapters.amqp import Channels
from consumer_framework.adapters.amqp.consumers import Consumers, Subscription
from consumer_framework.testing import make_delivery


@pytest.fixture
def channels():
    return Channels(lambda flush: None)


@pytest.fixture
def has_room(channels):
    anything: Any = None
    consumers = Consumers(anything, 10, channels, anything, anything, anything)
    channel: Any = SimpleNamespace(is_open=True)

    def ask(count, came, acked):
        generation = channels.add(channel)
        made = Subscription("q", "q", channel, generation, {}, count=count, latest_tag=came)
        for tag in range(1, acked + 1):
            delivery: Any = SimpleNamespace(generation=generation, delivery_tag=tag, body=b"")
            channels.ack(delivery)
        assert channels.settled_up_to(generation) == acked
        return consumers.has_room(made)

    return ask


def test_a_consumer_that_got_a_part_of_the_count_has_no_more_room_than_that(has_room):
    assert not has_room(count=4, came=6, acked=2), "the broker sends it nothing, and it is not lost"
    assert has_room(count=4, came=6, acked=3)


def test_without_a_limit_there_is_always_room(has_room):
    assert has_room(count=0, came=1000, acked=0)


def test_nothing_is_settled_on_a_channel_that_is_gone(channels):
    assert channels.settled_up_to(7) == 0


def test_what_comes_too_late_goes_back_but_what_its_queue_would_drop_is_taken(channels):
    taken: list[Any] = []
    given_back: list[int] = []
    anything: Any = None
    recipient: Any = SimpleNamespace(delivered=taken.append)
    channel: Any = SimpleNamespace(basic_nack=lambda tag, **_more: given_back.append(tag))
    consumers = Consumers(anything, 10, channels, recipient, anything, anything)
    consumers.must_take = lambda delivery: delivery.delivery_tag % 2 == 0
    generation = channels.add(channel)
    subscription = consumers._subscriptions["q"] = Subscription("q", "q", channel, generation, {})
    deliveries = [make_delivery(generation=generation, delivery_tag=tag) for tag in (1, 2)]
    assert [consumers.give_back_from(delivery) for delivery in deliveries] == [True, False]
    receive = consumers._receiver(subscription)
    for tag in (3, 4):
        receive(tag, False, "amq.topic", "key", anything, b"body")
    assert given_back == [1, 3]
    assert [delivery.delivery_tag for delivery in taken] == [4]
