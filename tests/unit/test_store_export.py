# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages leave the store as lines that fedora-messaging reads."""

import asyncio
import json
from base64 import b64decode
from datetime import UTC, datetime

import pika
import pytest
from fedora_messaging import message as upstream
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.export import line_of
from consumer_framework.adapters.store.properties import unpack_value
from consumer_framework.testing import make_delivery

TRAPS = "\u2028\u2029\u0085\x0b\x0c\x1c\r\n\ud800\U0001f600é"


def received(message):
    """Return the delivery of a message that upstream publishes."""
    delivery = make_delivery(body=message._encoded_body, routing_key=message.topic, queue="q")
    return delivery._replace(properties=message._properties)


def raw(body, topic="a.topic", **properties):
    delivery = make_delivery(body=body, routing_key=topic)
    return delivery._replace(properties=pika.BasicProperties(**properties))


def test_a_message_is_exported_as_fedora_messaging_dumps_it():
    message = upstream.Message(
        topic="org.example", body={"ä": [1, None, {"z": 1.5}]}, headers={"x": "y"}
    )
    message.queue = "q"
    message.priority = 3
    assert line_of(received(message)) == upstream.dumps(message)


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.text(st.characters() | st.sampled_from(TRAPS), max_size=10) | st.integers(),
        max_size=4,
    )
)
def test_fedora_messaging_loads_exported_messages_with_any_characters(body):
    message = upstream.Message(topic="org.example", body=body)
    message.queue = "q"
    (loaded,) = upstream.loads(line_of(received(message)))
    assert loaded == message
    assert (loaded.id, loaded.queue, loaded.priority) == (message.id, "q", 0)


@given(
    st.binary(max_size=30) | st.text(st.characters(codec="utf-8")).map(str.encode),
    st.sampled_from(["utf-8", "gzip", "utf-16", "rot13", "\ud800", "a\0b", "", None, b"\xff"]),
    st.one_of(
        st.none(),
        st.dictionaries(
            st.text(max_size=3) | st.binary(max_size=3),
            st.none() | st.binary(max_size=3) | st.just(datetime(2024, 1, 1, tzinfo=UTC)),
            max_size=3,
        ),
    ),
)
def test_every_message_is_exported_as_one_line_of_json(body, encoding, headers):
    line = line_of(raw(body, content_encoding=encoding, headers=headers))
    assert line.endswith("\n")
    assert line.encode().decode().splitlines() == [line[:-1]]
    exported = json.loads(line)
    if "body" not in exported:
        assert b64decode(exported["body_base64"]) == body


@pytest.mark.parametrize(
    "body",
    [b"null", b"[]", b"0", b"", b"\xff", b"{", b"[" * 100_000, b'{"a": NaN}', b"9" * 5000],
    ids=["null", "list", "number", "empty", "no-text", "cut", "deep", "nan", "long"],
)
def test_invalid_bytes_are_exported_raw_and_are_no_message(body):
    line = line_of(raw(body, message_id="1", reply_to="x", headers={"a": b"\xff"}))
    exported = json.loads(line)
    assert b64decode(exported["body_base64"]) == body
    assert unpack_value(json.dumps(exported["properties"])) == {
        "message_id": "1",
        "reply_to": "x",
        "headers": {"a": b"\xff"},
    }
    with pytest.raises(Exception, match="body"):
        upstream.loads(line)


def test_a_body_is_read_in_the_encoding_that_its_properties_name():
    body = '{"a": "é"}'.encode("latin-1")
    exported = json.loads(line_of(raw(body, content_encoding="latin-1")))
    assert exported["body"] == {"a": "é"}


def test_a_message_without_an_id_has_none_in_the_line():
    assert "id" not in json.loads(line_of(raw(b"{}")))


def test_a_topic_that_is_no_text_is_readable():
    assert json.loads(line_of(raw(b"{}", topic=b"\xff.x")))["topic"] == "\\xff.x"


def test_rows_are_exported_in_the_given_order_without_missing_ones(tmp_path):
    store = Store.open(tmp_path, limits=Limits())

    async def fill():
        for number in range(3):
            await store.quarantine(make_delivery(message_id=str(number)), "spent")

    asyncio.run(fill())
    exported = [json.loads(line)["id"] for line in store.export([3, 99, 1])]
    store.close()
    assert exported == ["2", "0"]
