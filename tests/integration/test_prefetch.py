# SPDX-License-Identifier: GPL-2.0-or-later
"""The prefetch count changes while messages are consumed, with a real broker."""

from __future__ import annotations

import json
from typing import Any

import pika
import pytest
import pytest_twisted
from fedora_messaging import config as upstream
from twisted.internet import defer, task

from consumer_framework.adapters import config
from consumer_framework.adapters.amqp import Channels, Session
from consumer_framework.core.stats import Snapshot

from .instance import publish, queue_table

# fedora-messaging's service causes this warning when it stops.
pytestmark = pytest.mark.filterwarnings("ignore:twisted.internet.defer.returnValue")


class Listening:
    """A session, and the events that it reports."""

    def __init__(self, settings, prefetch_count):
        # A late import, because pytest-twisted chooses the reactor.
        from twisted.internet import reactor  # noqa: PLC0415

        self.reactor: Any = reactor
        self.channels = Channels(lambda function: self.reactor.callLater(0, function))
        self.session = Session(
            settings, prefetch_count, self.channels, self, self.reactor, snapshot=Snapshot
        )
        self.deliveries: list[Any] = []
        self.events: list[str] = []

    def delivered(self, delivery):
        self.deliveries.append(delivery)

    def voided(self, generation):
        self.events.append("voided")

    def connected(self):
        self.events.append("connected")

    def subscribed(self):
        self.events.append("subscribed")

    def interrupted(self, reason):
        self.events.append(reason)

    def lost(self, reason, retry_in):
        self.events.append("lost")

    def progressed(self):
        self.events.append("progressed")

    def blocked(self, reason):
        self.events.append(f"blocked: {reason}")

    def failed(self, fault):
        self.events.append(str(fault))

    @property
    def numbers(self):
        return [json.loads(delivery.body)["n"] for delivery in self.deliveries]

    def ack(self, count):
        for delivery in self.deliveries[:count]:
            assert self.channels.ack(delivery)
        del self.deliveries[:count]

    async def has(self, count):
        await self.until(lambda: len(self.deliveries) >= count)

    async def until(self, condition):
        for _ in range(2000):
            if condition():
                return
            await task.deferLater(self.reactor, 0.01, lambda: None)
        raise AssertionError(self.events, self.numbers)

    async def quiet(self):
        """Wait for late events."""
        await task.deferLater(self.reactor, 0.3, lambda: None)


@pytest.fixture
def listening(broker, queue_name, tmp_path):
    before = dict(upstream.conf.items())
    made = []

    def make(prefetch_count, **more):
        file = tmp_path / "instance.toml"
        file.write_text(f'amqp_url = "{broker.url}"\n{queue_table(queue_name, **more)}')
        made.append(Listening(config.load(file), prefetch_count))
        made[-1].session.service.startService()
        return made[-1]

    yield make
    for one in made:
        pytest_twisted.blockon(defer.ensureDeferred(one.session.close()))
    upstream.conf.update(before)


def consumers(broker, queue):
    listed = json.loads(broker.ctl("list_consumers", "--formatter", "json"))
    return [consumer for consumer in listed if consumer["queue_name"] == queue]


async def consuming(one):
    await one.until(lambda: "subscribed" in one.events)


@pytest_twisted.ensureDeferred
async def test_a_higher_count_brings_more_and_what_came_before_can_be_settled(
    broker, queue_name, listening
):
    one = listening(2)
    await consuming(one)
    publish(broker.url, queue_name, range(20))
    await one.has(2)
    await one.quiet()
    assert one.numbers == [0, 1]
    assert one.session.set_prefetch(5) == []
    await one.has(5)
    await one.quiet()
    assert one.numbers == list(range(5)), "in order, nothing twice, and five with those before"
    assert not any(delivery.redelivered for delivery in one.deliveries)
    seen: list[int] = []
    while len(seen) < 20:
        await one.has(1)
        seen += one.numbers
        one.ack(len(one.deliveries))
    assert seen == list(range(20))
    await one.until(lambda: one.session.subscriptions[0].count == 5)
    assert broker.depth(queue_name) == (0, 1)
    assert one.events == ["connected", "subscribed"], "nobody was told of an interruption"
    (consumer,) = consumers(broker, queue_name)
    assert consumer["prefetch_count"] == 5


@pytest_twisted.ensureDeferred
async def test_a_lower_count_holds_from_the_next_messages_on(broker, queue_name, listening):
    one = listening(10)
    await consuming(one)
    publish(broker.url, queue_name, range(30))
    await one.has(10)
    one.session.set_prefetch(1)
    await one.quiet()
    assert len(one.deliveries) == 10, "no more while these are unsettled"
    assert one.session.is_complete
    one.ack(10)
    await one.has(1)
    await one.quiet()
    assert one.numbers == [10], "one at a time"
    seen: list[int] = []
    while len(seen) < 20:
        await one.has(1)
        seen += one.numbers
        one.ack(1)
    assert seen == list(range(10, 30))


@pytest_twisted.ensureDeferred
async def test_flipping_the_count_leaves_no_more_unsettled_than_it_says(
    broker, queue_name, listening
):
    one = listening(5)
    await consuming(one)
    publish(broker.url, queue_name, range(400))
    await one.has(5)
    for turn in range(60):
        count = (20, 5)[turn % 2]
        one.session.set_prefetch(count)
        await task.deferLater(one.reactor, 0.02, lambda: None)
        one.ack(1)
        assert len(one.deliveries) <= 20
    one.session.set_prefetch(5)
    while len(one.deliveries) > 4:
        one.ack(1)
        await task.deferLater(one.reactor, 0.02, lambda: None)
    for _ in range(20):
        await one.has(1)
        await task.deferLater(one.reactor, 0.05, lambda: None)
        assert len(one.deliveries) <= 5
        one.ack(1)
    assert one.numbers == sorted(one.numbers)


@pytest_twisted.ensureDeferred
async def test_one_message_that_is_held_keeps_nothing_else_back(broker, queue_name, listening):
    """The held message counts; once it is settled, the whole count is in force."""
    one = listening(4)
    await consuming(one)
    publish(broker.url, queue_name, range(60))
    await one.has(4)
    held = one.deliveries.pop(0)
    one.session.set_prefetch(2)
    one.ack(3)
    for _ in range(20):
        await one.has(1)
        await task.deferLater(one.reactor, 0.01, lambda: None)
        assert len(one.deliveries) == 1, "with the one that is held, two"
        one.ack(1)
    assert one.channels.ack(held)
    await one.until(
        lambda: bool(one.ack(len(one.deliveries)) or one.session.subscriptions[0].count == 2)
    )


@pytest_twisted.ensureDeferred
async def test_pauses_leave_no_more_unsettled_than_the_count_says(broker, queue_name, listening):
    one = listening(3)
    await consuming(one)
    publish(broker.url, queue_name, range(30))
    await one.has(3)
    for times in range(2, 5):
        one.session.pause()
        await one.quiet()
        one.session.resume()
        await one.until(lambda times=times: one.events.count("subscribed") == times)
        await one.quiet()
        assert one.numbers == [0, 1, 2]
    one.ack(3)
    await one.has(3)


@pytest_twisted.ensureDeferred
async def test_the_last_of_several_changes_is_the_one_that_counts(broker, queue_name, listening):
    one = listening(3)
    await consuming(one)
    for count in (7, 1, 9, 4):
        one.session.set_prefetch(count)
        await task.deferLater(one.reactor, 0.001, lambda: None)
    await one.until(lambda: one.session.subscriptions[0].count == 4)
    (consumer,) = consumers(broker, queue_name)
    assert consumer["prefetch_count"] == 4
    assert one.events == ["connected", "subscribed"]


@pytest_twisted.ensureDeferred
async def test_a_change_before_there_is_a_connection_is_for_that_one(broker, queue_name, listening):
    one = listening(3)
    one.session.set_prefetch(8)
    await consuming(one)
    assert consumers(broker, queue_name)[0]["prefetch_count"] == 8


@pytest_twisted.ensureDeferred
async def test_a_change_during_a_pause_is_for_the_time_after_it(broker, queue_name, listening):
    one = listening(3)
    await consuming(one)
    one.session.pause()
    assert one.session.set_prefetch(8) == []
    await one.quiet()
    assert consumers(broker, queue_name) == []
    one.session.resume()
    await one.until(lambda: one.events.count("subscribed") == 2)
    assert consumers(broker, queue_name)[0]["prefetch_count"] == 8


@pytest_twisted.ensureDeferred
async def test_a_pause_right_after_a_change_leaves_no_consumer(broker, queue_name, listening):
    one = listening(3)
    await consuming(one)
    one.session.set_prefetch(8)
    one.session.pause()
    await one.quiet()
    assert consumers(broker, queue_name) == []
    one.session.resume()
    await one.until(lambda: one.events.count("subscribed") == 2)
    assert consumers(broker, queue_name)[0]["prefetch_count"] == 8


@pytest.mark.parametrize(("count", "padding"), [(1500, 0), (60, 300_000)], ids=["small", "large"])
@pytest_twisted.ensureDeferred
async def test_messages_that_come_all_the_time_come_once_and_in_order(
    broker, queue_name, listening, count, padding
):
    """Large messages pass through pika, which would reject those of a canceled consumer."""
    one = listening(4)
    await consuming(one)
    bodies = (json.dumps({"n": n, "padding": "." * padding}).encode() for n in range(count))
    publish(broker.url, queue_name, bodies)
    seen: list[int] = []
    for turn in range(100_000):
        if turn % 7 == 0:
            one.session.set_prefetch(1 + turn % 50)
        await task.deferLater(one.reactor, 0.002, lambda: None)
        seen += one.numbers
        assert not any(delivery.redelivered for delivery in one.deliveries)
        one.ack(len(one.deliveries))
        if len(seen) >= count:
            break
    assert seen == list(range(count))
    await one.quiet()
    assert broker.depth(queue_name)[0] == 0


@pytest_twisted.ensureDeferred
async def test_a_queue_with_a_single_active_consumer_keeps_it(broker, queue_name, listening):
    one = listening(2, arguments={"x-single-active-consumer": True})
    await consuming(one)
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        others: list[Any] = []
        channel.basic_consume(queue_name, lambda *what: others.append(what))
        publish(broker.url, queue_name, range(6))
        await one.has(2)
        assert one.session.set_prefetch(4) == [queue_name]
        await one.quiet()
        connection.process_data_events(0)
        assert others == []
        assert one.numbers == [0, 1]
