# SPDX-License-Identifier: GPL-2.0-or-later
"""The ordering key of a message is found by its setting."""

import asyncio
import json
import logging
import threading
from typing import Any

import pika
import pytest
from fedora_messaging.message import Message

from consumer_framework import Consumer
from consumer_framework.adapters import codec
from consumer_framework.author.consumer import handler_of
from consumer_framework.core.ordering import behind, source_from, source_of
from consumer_framework.core.recovery import Policy
from consumer_framework.runtime.assembly.plan import Plan, source_for
from consumer_framework.runtime.lanes import SINGLE_LANE, Arrivals, lane_finder
from consumer_framework.settings import Framework
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

PATIENCE = 20

BODY = {
    "update": {"alias": "FEDORA-1", "n": 7, "ratio": 1.5, "list": ["x", {"y": "z"}], "none": None},
    "1": "one",
    "true": True,
}


def key(text, body: Any = None, headers=None, topic="org.example.t"):
    delivery = make_delivery(routing_key=topic, headers=headers)
    return source_of(text)(delivery, lambda: Message(topic=topic, body=body or BODY))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("topic", "org.example.t"),
        ("body:update.alias", "FEDORA-1"),
        ("body:update.n", "7"),
        ("body:update.ratio", "1.5"),
        ("body:update.list.0", "x"),
        ("body:update.list.1.y", "z"),
        ("body:1", "one"),
    ],
)
def test_a_key_is_a_text_or_a_number_at_a_place_in_the_message(text, expected):
    assert key(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "body:no",
        "body:update",
        "body:update.list",
        "body:update.none",
        "body:update.alias.more",
        "body:update.list.2",
        "body:update.list.-1",
        "body:update.list.x",
        "body:update.n.0",
        "header:no",
    ],
)
def test_a_message_with_nothing_of_that_kind_there_has_no_key(text):
    assert key(text, headers={"a": "b"}) == ""


def test_a_header_is_a_key_and_the_message_is_not_decoded_for_it():
    delivery = make_delivery(headers={"x-key": "k", "n": 3, "table": {}})

    def decode():
        raise AssertionError("not needed")

    assert source_of("header:x-key")(delivery, decode) == "k"
    assert source_of("header:n")(delivery, decode) == "3"
    assert source_of("header:table")(delivery, decode) == ""
    assert source_of("header:x-key")(make_delivery(headers=None), decode) == ""
    assert source_of("topic")(delivery, decode) == "a.topic"


@pytest.mark.parametrize(
    "text", ["", "topic:", "topics", "header", "header:", "body", "body:", "body:a..b", "body:.a"]
)
def test_a_place_that_cannot_be_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=r'"topic", "header:NAME" or "body:PATH"'):
        source_of(text)


def test_keys_that_are_not_equal_in_json_are_not_equal():
    numbers = [key("body:k", body={"k": value}) for value in (1, 1.5, "a", -1, 10**30)]
    assert len(set(numbers)) == 5
    assert key("body:k", body={"k": 0}) == "0", "zero is a key"


@pytest.mark.parametrize(("said", "expected"), [("k", "k"), (3, "3"), (None, ""), ([1], "")])
def test_an_author_s_method_finds_the_key(said, expected):
    asked = []

    def method(message):
        asked.append(message)
        return said

    assert source_from(method)(make_delivery(), lambda: "message") == expected
    assert asked == ["message"]


# In an instance.


class Plain(Consumer):
    def handle(self, message):
        pass


class WithKey(Plain):
    def ordering_key(self, message):
        return message.body["n"] % 2


def finder_for(consumer=Plain, **settings):
    framework = Framework.model_validate(settings)
    handler = handler_of(consumer({}), "test")
    policy = Policy(strict=settings.get("ordering") == "strict")
    plan = Plan("test", lambda: handler, policy, framework, source_for(framework, consumer))
    return lane_finder(plan, handler)


def delivery_of(body):
    headers = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    properties = pika.BasicProperties(headers=headers, content_encoding="utf-8", message_id="1")
    return make_delivery(body=raw)._replace(properties=properties)


def test_without_ordering_no_message_has_a_lane():
    assert finder_for() is None


def test_with_strict_ordering_all_messages_have_the_same_lane():
    finder = finder_for(ordering="strict")
    assert finder(make_delivery()).lane == SINGLE_LANE
    assert finder(make_delivery(routing_key="b", body=b"")).lane == SINGLE_LANE


def test_with_key_ordering_the_lane_is_the_key():
    by_topic = finder_for(ordering="key", ordering_key="topic")
    by_body = finder_for(ordering="key", ordering_key="body:n")
    by_method = finder_for(WithKey, ordering="key")
    assert by_topic(delivery_of({"n": 5})).lane == "a.topic"
    assert by_body(delivery_of({"n": 5})).lane == "5"
    assert by_method(delivery_of({"n": 5})).lane == "1"


def test_the_setting_stands_before_the_method():
    finder = finder_for(WithKey, ordering="key", ordering_key="body:n")
    assert finder(delivery_of({"n": 5})).lane == "5"


def test_a_message_without_a_readable_key_has_no_lane_and_that_is_logged_once(caplog):
    finder = finder_for(WithKey, ordering="key")
    with caplog.at_level(logging.WARNING):
        assert finder(delivery_of(b"no json")).lane == ""
        assert finder(delivery_of({"m": 5})).lane == ""
        assert finder(delivery_of({"m": 6})).lane == ""
    assert len(caplog.records) == 2, "one for each cause"
    assert all("no ordering key" in record.getMessage() for record in caplog.records)


def test_the_reason_of_a_follower_names_the_blocking_row():
    assert "17" in behind(17)


class Arriving:
    """Arrivals with a finder whose decoding can be watched, and held up."""

    def __init__(self, monkeypatch, **settings):
        self.flight = FakeFlightRecorder(places=1, crashed=settings.pop("crashed", None))
        self.put: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.flying: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.arrivals = Arrivals(self.flight, self.put.append)
        self.lane_of = finder_for(**{"ordering": "key", "ordering_key": "body:n", **settings})
        self.decode = codec.decode
        monkeypatch.setattr(codec, "decode", self.watched)

    def watched(self, delivery):
        self.gate.wait(PATIENCE)
        self.threads.append(threading.current_thread())
        self.flying.append(len(self.flight.in_flight))
        return self.decode(delivery)

    def comes(self, *deliveries):
        for delivery in deliveries:
            self.arrivals.put(delivery, self.lane_of)

    async def all(self, count):
        async with asyncio.timeout(PATIENCE):
            while len(self.put) < count:  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0)
        self.arrivals.close()
        return self.put


def numbered(tag, body=None, **what):
    return delivery_of({"n": tag} if body is None else body)._replace(delivery_tag=tag, **what)


def test_for_its_key_a_body_is_decoded_once_off_the_event_loop_and_in_flight(monkeypatch):
    async def scenario():
        arriving = Arriving(monkeypatch)
        arriving.comes(*map(numbered, range(5)))
        assert arriving.put == []
        found = await arriving.all(5)
        assert [(d.delivery_tag, d.lane) for d in found] == [(n, str(n)) for n in range(5)]
        assert threading.current_thread() not in arriving.threads
        assert arriving.flying == [1] * 5
        messages = [arriving.decode(delivery) for delivery in found]
        assert [message.body for message in messages] == [{"n": n} for n in range(5)]
        assert len(arriving.threads) == 5, "the handler gets what was decoded"
        again = arriving.decode(found[0])
        assert again is not messages[0], "the next attempt gets a message of its own"

    asyncio.run(scenario())


def test_nothing_overtakes_a_message_that_waits_for_its_key(monkeypatch):
    async def scenario():
        arriving = Arriving(monkeypatch)
        arriving.gate.clear()
        arriving.comes(numbered(1), numbered(2, b"no json"))
        arriving.arrivals.put(numbered(3), None)
        await asyncio.sleep(0)
        assert arriving.put == []
        arriving.gate.set()
        assert [d.delivery_tag for d in await arriving.all(3)] == [1, 2, 3]
        assert [d.lane for d in arriving.put] == ["1", "", ""]

    asyncio.run(scenario())


def test_messages_that_wait_for_their_key_are_forgotten_with_their_channel_or_given_back(
    monkeypatch,
):
    async def scenario():
        arriving = Arriving(monkeypatch)
        arriving.gate.clear()
        arriving.comes(numbered(1), numbered(2, generation=2), numbered(3))
        arriving.arrivals.discard(1)
        assert [d.delivery_tag for d in arriving.arrivals.clear()] == [2]
        arriving.gate.set()
        arriving.comes(numbered(4))
        assert [d.delivery_tag for d in await arriving.all(1)] == [4]

    asyncio.run(scenario())


def test_a_message_that_killed_too_often_is_not_decoded_for_its_key(monkeypatch):
    async def scenario():
        once, twice = (numbered(n, redelivered=True) for n in (1, 2))
        crashed = {_key(once): 1, _key(twice): 2}
        arriving = Arriving(monkeypatch, crashed=crashed)
        arriving.comes(once, twice)
        assert [d.lane for d in await arriving.all(2)] == ["1", ""]
        assert len(arriving.threads) == 1

    asyncio.run(scenario())


def test_a_large_message_is_not_kept_in_memory_for_its_handler(monkeypatch):
    async def scenario():
        arriving = Arriving(monkeypatch)
        arriving.comes(numbered(1, {"n": 1, "much": "x" * (1 << 20)}))
        (found,) = await arriving.all(1)
        assert found.lane == "1"
        assert found.decoded is None

    asyncio.run(scenario())


def test_a_key_outside_the_body_needs_no_thread(monkeypatch):
    async def scenario():
        arriving = Arriving(monkeypatch, ordering_key="topic")
        arriving.comes(numbered(1))
        assert [d.lane for d in arriving.put] == ["a.topic"]
        assert arriving.threads == []

    asyncio.run(scenario())


def test_where_no_thread_can_be_started_keys_are_found_all_the_same(monkeypatch):
    def refused(_thread):
        raise RuntimeError("can't start new thread")

    async def scenario():
        arriving = Arriving(monkeypatch)
        monkeypatch.setattr(threading.Thread, "start", refused)
        arriving.comes(numbered(1), numbered(2))
        assert [d.lane for d in await arriving.all(2)] == ["1", "2"]

    asyncio.run(scenario())


def _key(delivery):
    return delivery.queue, delivery.message_id, delivery.routing_key, delivery.body
