# SPDX-License-Identifier: GPL-2.0-or-later
"""The delivery limit of quorum queues, and the messages near it."""

import asyncio

import pytest
from fedora_messaging.message import Message

from consumer_framework import Halt, Retry
from consumer_framework.author.handler import Handler
from consumer_framework.core.errors import StoreError
from consumer_framework.core.limits import (
    broker_version,
    delivery_count,
    delivery_limit,
    is_near_limit,
)
from consumer_framework.core.recovery import Policy
from consumer_framework.runtime.assembly.plan import Plan, fitted
from consumer_framework.settings import Framework, parse
from consumer_framework.testing import Harness, make_delivery
from consumer_framework.testing.fake_store import FakeStore
from consumer_framework.testing.virtual_instance import VirtualInstance

QUORUM = {"x-queue-type": "quorum"}


@pytest.mark.parametrize(
    ("arguments", "version", "limit"),
    [
        ({}, (4, 1), None),
        (QUORUM, None, None),
        (QUORUM, (3, 13), None),
        (QUORUM, (4, 0, 5), 20),
        ({**QUORUM, "x-delivery-limit": 3}, (3, 10), 3),
        ({"x-delivery-limit": 3}, None, 3),
        ({**QUORUM, "x-delivery-limit": -1}, (4, 1), None),
        ({**QUORUM, "x-delivery-limit": True}, (4, 1), 20),
    ],
)
def test_the_limit_is_that_of_the_arguments_or_the_brokers_default(arguments, version, limit):
    assert delivery_limit(arguments, version) == limit


def test_a_queue_of_unknown_arguments_that_counts_is_a_quorum_queue():
    assert delivery_limit({}, (4, 1), is_quorum=True) == 20


@pytest.mark.parametrize(
    ("headers", "count"),
    [(None, None), ({}, None), ({"x-delivery-count": 2}, 2), ({"x-delivery-count": "2"}, None)],
)
def test_the_count_is_read_from_the_header_of_the_queue(headers, count):
    assert delivery_count(make_delivery(headers=headers)) == count


@pytest.mark.parametrize(("limit", "first"), [(0, 0), (1, 1), (2, 1), (3, 2), (20, 19)], ids=str)
def test_one_return_is_left_for_a_crash(limit, first):
    near = [is_near_limit(count, limit) for count in (first - 1, first, first + 1)]
    assert near == [False, True, True]


@pytest.mark.parametrize(
    ("text", "version"), [("4.1.2", (4, 1, 2)), ("3.10.0-rc.1", (3, 10, 0)), ("LavinMQ", None)]
)
def test_a_version_is_read_from_its_first_numbers(text, version):
    assert broker_version(text) == version


# An instance near the limit.


@pytest.fixture
def limited(monkeypatch):
    """Lets every queue of the harness have a limit."""
    make_slots = VirtualInstance._make_dispatcher

    def limited(limit):
        def make(self):
            slots = make_slots(self)
            slots.limit_of = lambda _delivery: limit
            return slots

        monkeypatch.setattr(VirtualInstance, "_make_dispatcher", make)

    return limited


def message(n, count=None):
    headers = {} if count is None else {"x-delivery-count": count}
    return Message(topic="org.example.test", body={"n": n}, headers=headers)


async def slow(message):
    await asyncio.sleep(10)


KEYED = {"ordering": "key", "ordering_key": "topic"}


@pytest.mark.parametrize("settings", [{}, KEYED])
def test_a_message_that_came_back_often_is_stored_before_it_waits_for_a_slot(limited, settings):
    limited(3)
    with Harness(slow, settings=settings) as harness:
        busy, often, seldom = messages = [message(0), message(1, 2), message(2, 1)]
        for one in messages:
            harness.deliver(one)
        harness.cut()
        harness.advance(1)
        # Behind one of its key that runs, it waits, or it would overtake that.
        assert harness.deferred == ([] if settings else [often])
        harness.advance(60)
        assert harness.acked == [busy, often, seldom]
        assert [len(harness.runs(one)) for one in messages] == [1, 1, 1]


def test_at_the_very_limit_it_is_stored_with_those_before_it_in_its_lane(limited):
    limited(3)
    with Harness(slow, settings=KEYED) as harness:
        messages = [message(0), message(1, 1), message(2, 3)]
        for one in messages:
            harness.deliver(one)
        harness.cut()
        harness.advance(1)
        assert harness.deferred == messages[1:]
        harness.advance(60)
        assert harness.acked == messages
        runs = [harness.runs(one) for one in messages]
        assert runs == sorted(runs)


@pytest.mark.parametrize("settings", [{}, KEYED, {"slots": 2}])
def test_nothing_goes_back_to_a_queue_that_would_drop_it(limited, settings):
    limited(0)
    with Harness(slow, settings=settings) as harness:
        messages = [message(n) for n in range(4)]
        for one in messages:
            harness.deliver(one)
        harness.restart()
        assert harness.requeued == []
        harness.advance(60)
        assert sorted(m.body["n"] for m in harness.acked) == [0, 1, 2, 3]
        if settings == KEYED:
            runs = [harness.runs(one)[0] for one in messages]
            assert runs == sorted(runs)


def test_a_message_that_is_held_is_stored_at_a_stop_before_those_of_its_key(limited):
    limited(0)
    failed: list[Message] = []

    async def fail_once(message):
        await asyncio.sleep(1)
        if not failed:
            failed.append(message)
            raise Retry(after=30)

    with Harness(fail_once, settings=KEYED) as harness:
        messages = [message(n) for n in range(3)]
        for one in messages:
            harness.deliver(one)
        harness.restart()
        assert harness.requeued == []
        harness.advance(200)
        assert harness.acked == messages
        last = [harness.runs(one)[-1] for one in messages]
        assert last == sorted(last)


def test_a_handler_that_halts_leaves_its_message_to_the_store(limited):
    limited(0)

    def halt(message):
        raise Halt(3, requeue=True)

    with Harness(halt) as harness:
        first = message(1)
        harness.deliver(first)
        assert harness.halted is not None
        assert harness.deferred == [first]


def test_a_store_that_cannot_be_read_lets_a_message_wait_as_any_other(limited, monkeypatch):
    limited(3)

    def is_open(self, delivery):
        raise StoreError("damaged")

    monkeypatch.setattr(FakeStore, "is_open", is_open)
    with Harness(slow) as harness:
        messages = [message(0), message(1, 2)]
        for one in messages:
            harness.deliver(one)
        harness.cut()
        harness.advance(60)
        assert sorted(m.body["n"] for m in harness.acked) == [0, 1]


def test_few_messages_are_asked_for_ahead_of_a_queue_with_a_limit():
    def prefetch(**arguments):
        kind = {"durable": True, "auto_delete": False, "exclusive": False}
        document = {
            "amqp_url": "amqp://",
            "queues": {"one": {**kind, "arguments": arguments}},
            "bindings": [],
        }
        settings = parse(document, default_bindings=True)
        plan = Plan("test", lambda: Handler("test", print), Policy(), Framework(slots=2))
        return fitted(plan, settings).prefetch_count

    assert prefetch() == Framework(slots=2).prefetch_count
    assert prefetch(**{"x-delivery-limit": 3}) == 5
    assert prefetch(**{"x-delivery-limit": 0}) == 3
