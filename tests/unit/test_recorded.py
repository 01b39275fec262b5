# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded messages: each known format, and everything that is none."""

import io
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pika
import pytest
from fedora_messaging import message as upstream
from hypothesis import given

from consumer_framework.adapters.codec import decode
from consumer_framework.adapters.store.export import expired_line_of, line_of
from consumer_framework.kit.recorded import BadRecordError, Recorded, read
from consumer_framework.testing import make_delivery

GOOD = b'{"topic": "a", "body": {}}\n'


@pytest.fixture
def found(tmp_path):
    def read_text(text, queues=()):
        file = tmp_path / "recorded.jsonl"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return list(read(file, queues))

    return read_text


def topics(found):
    return [each.delivery.routing_key for each in found]


def reasons(found):
    return [str(each).rpartition("/")[2] for each in found if isinstance(each, BadRecordError)]


def test_a_line_of_fedora_messaging_is_the_message_that_it_was_made_of(found):
    message = upstream.Message(topic="a.b", body={"name": "Žižkov \u2028"}, severity=40)
    message.priority = 7
    [recorded] = found(upstream.dumps(message))
    again = decode(recorded.delivery)
    assert (again, again.id, again.priority, again.severity) == (message, message.id, 7, 40)
    assert again._headers == message._headers


def test_a_message_of_another_queue_comes_from_the_consumers_own(found):
    line = json.dumps({"topic": "a", "body": {}, "queue": "b"})
    for queues, queue in [((), "b"), (("a", "b"), "b"), (("a", "c"), "a")]:
        assert found(line, queues)[0].delivery.queue == queue
    assert found('{"topic": "a", "body": {}}')[0].delivery.queue == "recorded"


@pytest.mark.parametrize("body", [b"\xff\x00", b"{", b"[1]", b'{"a": NaN}'])
def test_bytes_that_are_no_message_come_back_from_an_export_as_they_were(found, body):
    properties = pika.BasicProperties(
        content_encoding="utf-8", headers={"when": b"\xff"}, message_id="m"
    )
    delivery = make_delivery(body=body)._replace(properties=properties)
    [recorded] = found(line_of(delivery))
    assert recorded.delivery.body == body
    assert recorded.delivery.properties == properties


def test_a_line_of_expired_messages_is_its_message(found):
    row: Any = SimpleNamespace(
        id=1, reason="r", fingerprint="f", created=0.0, crashes=0, parent=None
    )
    properties = pika.BasicProperties(content_encoding="utf-8", message_id="m")
    delivery = make_delivery(body=b'{"a": 1}')._replace(properties=properties)
    [recorded] = found(expired_line_of(row, delivery))
    assert recorded.delivery.body == b'{"a": 1}'


def test_a_page_of_datagrepper_is_its_messages(found):
    # As https://apps.fedoraproject.org/datagrepper/v2/search answers.
    message: dict[str, Any] = {
        "id": "1",
        "topic": "a",
        "headers": {},
        "body": {},
        "queue": None,
        "priority": 0,
    }
    page = {"count": 2, "pages": 1, "total": 2, "raw_messages": [message, {**message, "id": "2"}]}
    for text in (json.dumps(page), json.dumps(page, indent=2)):
        assert [each.delivery.message_id for each in found(text)] == ["1", "2"]


def test_a_message_of_fedmsg_is_one_of_fedora_messaging(found):
    old = {"topic": "a", "msg": {"n": 1}, "msg_id": "2012-1", "timestamp": 1344350200.0, "i": 1}
    [recorded] = found(json.dumps(old))
    assert recorded.delivery.message_id == "2012-1"
    assert decode(recorded.delivery)._headers["sent-at"] == "2012-08-07T14:36:40+00:00"


def test_documents_with_indents_are_read_and_each_has_its_line(found):
    one = {"topic": "a", "body": {"n": [1, 2]}}
    whole = json.dumps(one, indent=2)
    assert [(each.line, each.delivery.routing_key) for each in found(f"\n{whole}\n{whole}")] == [
        (2, "a"),
        (2 + whole.count("\n") + 1, "a"),
    ]
    assert topics(found(json.dumps([one, one], indent=1))) == ["a", "a"]
    assert topics(found(json.dumps([one, one]))) == ["a", "a"]


def test_a_bad_line_is_told_with_its_file_and_a_cure_and_the_others_are_read(found):
    good = '{"topic": "a", "body": {}}'
    read_ones = found(f"{good}\n\nnonsense\n{good}\n")
    assert topics(each for each in read_ones if isinstance(each, Recorded)) == ["a", "a"]
    [reason] = reasons(read_ones)
    assert reason.startswith("recorded.jsonl:3: is no JSON")
    assert reason.endswith("write one JSON object on each line")


def test_a_first_line_that_is_damaged_takes_no_file_into_memory(monkeypatch):
    class Endless(io.RawIOBase):
        """A file that is larger than the memory."""

        def __init__(self):
            self.parts = itertools.chain([b'ic": "cut", "body": {}}\n'], itertools.repeat(GOOD))

        def readable(self):
            return True

        def readall(self):
            pytest.fail("the whole file is read")

        def readinto(self, buffer):
            part = next(self.parts)
            buffer[: len(part)] = part
            return len(part)

    stream = io.BufferedReader(Endless())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    bad, *good = itertools.islice(read(Path("-")), 5)
    assert (str(bad).partition(": is")[0], topics(good)) == ("standard input:1", ["a"] * 4)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "is no JSON"),
        ("3", "is no JSON object"),
        ("[3]", "is no JSON object"),
        ("[", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        (b'{"\xff"}', "is no UTF-8"),
        ('{"body": {}}', 'has no "topic"'),
        ('{"topic": 3, "body": {}}', '"topic" is no text'),
        ('{"topic": "%s", "body": {}}' % ("a" * 256), '"topic" has more than 255 bytes'),
        ('{"topic": "a"}', 'has no "body"'),
        ('{"topic": "a", "body": {}, "id": 3}', '"id" is no text'),
        ('{"topic": "a", "body": {}, "headers": []}', '"headers" is no object'),
        ('{"topic": "a", "body": {}, "priority": "1"}', '"priority" is no integer'),
        ('{"topic": "a", "msg": {}, "timestamp": []}', '"timestamp" is []'),
        ('{"topic": "a", "body_base64": "*"}', '"body_base64" is no base64'),
        ('{"topic": "a", "body_base64": ""}', '"properties" cannot be read'),
        ('{"topic": "a", "damaged": "gone"}', "is a damaged row"),
    ],
)
def test_a_line_that_is_no_message_says_so(found, line, reason):
    [told] = reasons(found(line))
    assert told.startswith(f"recorded.jsonl:1: {reason}")
    assert len(told) < 500


def test_a_body_that_is_no_object_is_left_to_the_consumer(found):
    [recorded] = found('{"topic": "a", "body": [1, "\\ud800"]}')
    assert json.loads(recorded.delivery.body) == [1, "\ud800"]


def test_standard_input_is_read_too(monkeypatch):
    text = io.BytesIO(b'{"topic": "a", "body": {}}\n{')
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=text))
    good, bad = read(Path("-"))
    assert (good.file, str(bad).partition(": ")[0]) == ("standard input", "standard input:2")


@given(st.binary(max_size=200))
def test_whatever_a_file_has_each_line_is_a_message_or_an_error(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("any") / "recorded"
    file.write_bytes(data)
    assert all(isinstance(each, Recorded | BadRecordError) for each in read(file))
