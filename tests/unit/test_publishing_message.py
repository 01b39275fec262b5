# SPDX-License-Identifier: GPL-2.0-or-later
"""Every fault of a message is found before it is stored; an accepted message can be sent."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import jsonschema
import pytest
from fedora_messaging import message as upstream
from fedora_messaging.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st
from pika import data as amqp

from consumer_framework.publishing.message import (
    MAX_HEADERS,
    PublishError,
    outgoing,
    restored,
    with_headers,
)


class Strict(upstream.Message):
    topic = "strict"
    body_schema = {  # noqa: RUF012 -- as upstream has it
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
    }


@pytest.fixture(autouse=True)
def _register(monkeypatch):
    upstream.get_name(upstream.Message)
    monkeypatch.setitem(upstream._class_to_schema_name, Strict, "Strict")
    monkeypatch.setitem(upstream._schema_name_to_class, "Strict", Strict)


def a_message(topic: Any = "app.done", body: Any = None, **options: Any) -> upstream.Message:
    return upstream.Message(topic=topic, body=body or {}, **options)


def prepare(message: upstream.Message, **options: Any) -> Any:
    return outgoing(message, **{"exchange": "amq.topic", "now": 5.0, **options})


def deep(levels: int) -> Any:
    body: dict[str, Any] = {}
    for _ in range(levels):
        body = {"in": body}
    return body


def test_an_accepted_message_has_the_data_that_upstream_sends():
    message = a_message(body={"text": "žluťoučký"}, severity=upstream.WARNING)
    accepted = prepare(message, topic_prefix="org.example", ordering_key="key")
    assert accepted.id == message.id
    assert accepted.topic == "org.example.app.done"
    assert accepted.body == message._encoded_body
    assert accepted.size == len(message._encoded_body)
    assert accepted.headers == message._headers
    assert (accepted.exchange, accepted.ordering_key, accepted.created) == ("amq.topic", "key", 5.0)
    again = restored(accepted)
    assert (again.id, again.body, again.severity) == (message.id, message.body, upstream.WARNING)


def test_a_message_stays_as_it_was_and_later_changes_do_not_reach_the_accepted_one():
    message = a_message(body={"list": [1]})
    before = copy.deepcopy((message.body, message._headers, message.topic, message.id))
    accepted = prepare(message, topic_prefix="org")
    assert (message.body, message._headers, message.topic, message.id) == before
    message.body["list"].append(2)
    message._headers["later"] = "x"
    assert json.loads(accepted.body) == {"list": [1]}
    assert "later" not in accepted.headers
    with pytest.raises(dataclasses.FrozenInstanceError):
        accepted.topic = "other"


@pytest.mark.parametrize(
    ("prefix", "topic", "joined"),
    [
        ("", "a.b", "a.b"),
        ("org.example", "a.b", "org.example.a.b"),
        ("org.example.", "a.b", "org.example.a.b"),
        ("org", ".a", "org..a"),
    ],
)
def test_the_prefix_is_joined_with_one_dot(prefix, topic, joined):
    assert prepare(a_message(topic), topic_prefix=prefix).topic == joined


@pytest.mark.parametrize("priority", [None, 0, 7])
def test_a_priority_is_kept_and_none_is_none(priority):
    message = a_message()
    if priority is not None:
        message.priority = priority
    assert prepare(message).priority == priority


@pytest.mark.parametrize(
    ("key", "kept"), [(None, ""), ("", ""), ("k", "k"), ("ř" * 127, "ř" * 127)]
)
def test_an_ordering_key_is_text_or_nothing(key, kept):
    assert prepare(a_message(), ordering_key=key).ordering_key == kept


@pytest.mark.parametrize("topic", ["t" * 255, "ž" * 127])
def test_a_topic_may_have_255_bytes(topic):
    assert prepare(a_message(topic)).topic == topic


@pytest.mark.parametrize(
    ("message", "options", "what"),
    [
        (a_message("t" * 256), {}, "the topic has 256 bytes; 255 are allowed"),
        (a_message("ž" * 128), {}, "the topic has 256 bytes"),
        (a_message("t" * 250), {"topic_prefix": "org.example"}, "the topic has 262 bytes"),
        (upstream.Message(), {}, "has no topic"),
        (upstream.Message(), {"topic_prefix": "org"}, "has no topic"),
        (a_message("a\ud800"), {}, "the topic is no text"),
        (a_message("a\0b"), {}, "the topic has a NUL character"),
        (a_message(), {"exchange": "e" * 256}, "the exchange has 256 bytes"),
        (a_message(), {"ordering_key": "k" * 256}, "the ordering key has 256 bytes"),
        (a_message(), {"ordering_key": "\udfff"}, "the ordering key is no text"),
        (a_message(), {"ordering_key": "a\0"}, "the ordering key has a NUL"),
        (a_message(), {"ordering_key": 7}, "the ordering key is no text: 7"),
        (a_message(), {"ordering_key": b"k"}, "the ordering key is no text"),
    ],
)
def test_texts_that_amqp_or_a_database_has_no_room_for_are_refused(message, options, what):
    with pytest.raises(PublishError, match=what):
        prepare(message, **options)


@pytest.mark.parametrize("identity", ["i" * 256, "a\ud800", "a\0", 7, None])
def test_a_message_id_must_be_short_text(identity):
    message = a_message()
    message.id = identity
    with pytest.raises(PublishError, match="the message id"):
        prepare(message)


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", object(), float("nan"), float("inf"), {"a": {(1,): 2}}]
)
def test_a_body_that_is_no_json_is_refused(value):
    with pytest.raises(PublishError, match=r"the body of message .* is no JSON"):
        prepare(a_message(body={"value": value}))


def test_a_body_that_contains_itself_or_is_too_deep_is_refused():
    body: dict[str, Any] = {}
    body["self"] = body
    with pytest.raises(PublishError, match="is no JSON"):
        prepare(a_message(body=body))
    with pytest.raises(PublishError, match="the body of message"):
        prepare(a_message(body=deep(100_000)))


def test_validation_that_is_too_deep_is_refused():
    def validate(_):
        raise RecursionError

    with pytest.raises(PublishError, match="nested too deeply"):
        prepare(a_message(), validate=validate)


def test_a_lone_surrogate_in_a_body_is_escaped_as_upstream_does():
    accepted = prepare(a_message(body={"text": "\ud800"}))
    assert accepted.body == b'{"text": "\\ud800"}'


def test_a_body_may_have_so_many_bytes_and_no_more():
    body = {"x": "y" * 91}
    assert prepare(a_message(body=body), max_body=100).size == 100
    with pytest.raises(PublishError, match="has 101 bytes; 100 are allowed"):
        prepare(a_message(body={"x": "y" * 92}), max_body=100)


@pytest.mark.parametrize("body", [{}, {"n": "text"}, ["list"], 3])
def test_a_body_that_does_not_fit_its_schema_is_refused(body):
    with pytest.raises(ValidationError) as caught:
        prepare(Strict(body=body))
    assert isinstance(caught.value.args[0], jsonschema.ValidationError)


@pytest.mark.parametrize("severity", [15, "20", None])
def test_a_severity_that_is_none_of_four_is_refused(severity):
    message = a_message()
    message._headers["fedora_messaging_severity"] = severity
    with pytest.raises(ValidationError):
        prepare(message)


@pytest.mark.parametrize(
    "value", ["text", "ž", 0, -(2**63), 2**63 - 1, True, None, [1, ["a"]], {"a": {"b": None}}]
)
def test_a_header_may_have_each_value_that_amqp_has(value):
    accepted = prepare(a_message(headers={"own": value}))
    assert accepted.headers["own"] == value
    amqp.encode_table([], dict(accepted.headers))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("own", b"bytes", "are no JSON"),
        ("own", {1}, "are no JSON"),
        ("own", deep(100_000), "are no JSON"),
        ("own", 2**63, "'own' has more than 64 bits"),
        ("own", -(2**63) - 1, "has more than 64 bits"),
        ("own", 1.5, "'own' is a float: write it as text"),
        ("own", float("nan"), "is a float"),
        ("own", (1,), "is a tuple"),
        ("own", "a\ud800", "lone surrogate"),
        ("own", [1, {"a": 0.5}], "is a float"),
        ("own", {"a" * 256: 1}, "is no name"),
        ("n" * 256, 1, "is no name: use text of at most 255 bytes"),
        ("\ud800", 1, "is no name"),
        (7, 1, "is no name"),
        ("own", "x" * MAX_HEADERS, f"{MAX_HEADERS} are allowed"),
    ],
    ids=range(15),
)
def test_headers_that_amqp_cannot_carry_are_refused(name, value, what):
    with pytest.raises(PublishError, match=r"the headers of message") as caught:
        prepare(a_message(headers={name: value}))
    assert what in str(caught.value)


def test_further_headers_are_checked_and_added_to_a_copy():
    accepted = prepare(a_message())
    changed = with_headers(accepted, {"author": "me"})
    assert changed.headers == {**accepted.headers, "author": "me"}
    assert "author" not in accepted.headers
    assert with_headers(accepted, None) is accepted
    with pytest.raises(PublishError, match="is a float"):
        with_headers(accepted, {"cost": 0.5})
    with pytest.raises(PublishError, match="has a header 'author' of its own"):
        with_headers(changed, {"author": "you"})


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(), max_size=300), _values, max_size=4))
def test_headers_are_accepted_only_if_amqp_carries_them_unchanged(headers):
    try:
        accepted = prepare(a_message(headers={f"own-{name}": v for name, v in headers.items()}))
    except PublishError:
        return
    table: list[bytes] = []
    amqp.encode_table(table, dict(accepted.headers))
    assert amqp.decode_table(b"".join(table), 0)[0] == accepted.headers
