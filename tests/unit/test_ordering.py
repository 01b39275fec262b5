# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the ordering key of a message is found."""

import json
import logging
from dataclasses import replace
from typing import Any

import pika
import pytest
from fedora_messaging.message import Message

from consumer_framework import Consumer
from consumer_framework.core.consumer import handler_of
from consumer_framework.core.ordering import behind, source_from, source_of
from consumer_framework.core.recovery import Policy
from consumer_framework.core.settings import Framework
from consumer_framework.host.lane import EVERYTHING, lane_of
from consumer_framework.host.ordering import source_for
from consumer_framework.host.plan import Plan
from consumer_framework.testing import make_delivery

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


def lane_finder(consumer=Plain, **settings):
    framework = Framework.model_validate(settings)
    handler = handler_of(consumer({}), "test")
    policy = Policy(strict=settings.get("ordering") == "strict")
    plan = Plan("test", lambda: handler, policy, framework, source_for(framework, consumer))
    return lane_of(plan, handler)


def delivery_of(body):
    headers = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    properties = pika.BasicProperties(headers=headers, content_encoding="utf-8", message_id="1")
    return replace(make_delivery(body=raw), properties=properties)


def test_without_ordering_no_message_has_a_lane():
    assert lane_finder() is None


def test_with_strict_ordering_all_messages_have_the_same_lane():
    finder = lane_finder(ordering="strict")
    assert finder(make_delivery()) == finder(make_delivery(routing_key="b", body=b"")) == EVERYTHING


def test_with_key_ordering_the_lane_is_the_key():
    by_topic = lane_finder(ordering="key", ordering_key="topic")
    by_body = lane_finder(ordering="key", ordering_key="body:n")
    by_method = lane_finder(WithKey, ordering="key")
    assert by_topic(delivery_of({"n": 5})) == "a.topic"
    assert by_body(delivery_of({"n": 5})) == "5"
    assert by_method(delivery_of({"n": 5})) == "1"


def test_the_setting_stands_before_the_method():
    finder = lane_finder(WithKey, ordering="key", ordering_key="body:n")
    assert finder(delivery_of({"n": 5})) == "5"


def test_a_message_whose_key_cannot_be_found_has_no_lane_and_that_is_said_once(caplog):
    finder = lane_finder(WithKey, ordering="key")
    with caplog.at_level(logging.WARNING):
        assert finder(delivery_of(b"no json")) == ""
        assert finder(delivery_of({"m": 5})) == ""
        assert finder(delivery_of({"m": 6})) == ""
    assert len(caplog.records) == 2, "one for each cause"
    assert all("no ordering key" in record.getMessage() for record in caplog.records)


def test_who_is_behind_says_which_row_is_in_the_way():
    assert "17" in behind(17)
