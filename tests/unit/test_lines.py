# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages are read from lines of JSON as they were recorded."""

import json
import os
from pathlib import Path

import anitya_schema
import pytest
from fedora_messaging import message as upstream

from consumer_framework.publishing.lines import LineError, LineReader, schemas
from consumer_framework.publishing.message import outgoing

RECORDED = os.environ.get("RECORDED_MESSAGES", "")
ROOT = Path(__file__).resolve().parents[2]


def line(**values):
    return json.dumps(values).encode()


def read(data, **options):
    return list(LineReader(**options).read(data))


def dumped(message):
    return upstream.dumps(message).encode()


def a_record():
    project = {"id": 1, "name": "foo", "homepage": "https://example.org", "regex": None}
    project |= {"backend": "x", "created_on": 1.0, "updated_on": 2.0, "ecosystem": "e"}
    project |= {"version": None, "version_url": None, "version_prefix": None, "versions": []}
    return anitya_schema.ProjectCreated(
        topic="org.example.anitya.project.add",
        body={"project": project, "distro": None, "message": {"agent": "me", "project": "foo"}},
        severity=upstream.WARNING,
    )


def test_a_recorded_message_is_read_as_the_message_that_was_sent():
    sent = a_record()
    sent._headers["sent-at"] = "2012-08-07T14:36:40+00:00"
    sent._headers["own"] = "kept"
    sent.priority = 3
    [found] = read(dumped(sent))
    assert type(found) is anitya_schema.ProjectCreated
    assert (found.id, found.topic, found.body) == (sent.id, sent.topic, sent.body)
    assert found._headers == sent._headers
    assert (found.severity, found.priority, found.queue) == (upstream.WARNING, 3, None)


def test_new_ids_make_a_message_that_nobody_has_seen():
    sent = a_record()
    sent._headers["sent-at"] = "2012-08-07T14:36:40+00:00"
    [one] = read(dumped(sent), new_ids=True)
    [other] = read(dumped(sent), new_ids=True)
    assert len({sent.id, one.id, other.id}) == 3
    assert one._headers["sent-at"] > "2020"
    assert {**one._headers, "sent-at": ""} == {**sent._headers, "sent-at": ""}


def test_a_message_counts_as_kept_only_with_the_id_of_its_line():
    reader = LineReader()
    [without] = reader.read(line(topic="a", body={}))
    assert without.id
    assert reader.kept_ids == 0
    [with_id] = reader.read(line(topic="a", body={}, id="mine"))
    assert (with_id.id, reader.kept_ids) == ("mine", 1)


def test_a_line_needs_only_topic_and_body():
    [found] = read(line(topic="a.b", body={"n": 1}))
    plain = upstream.Message(topic="a.b", body={"n": 1})
    assert found._headers == {**plain._headers, "sent-at": found._headers["sent-at"]}
    assert outgoing(found, exchange="x", now=0.0).priority is None


def test_a_message_whose_class_is_not_installed_keeps_the_name_of_its_class():
    reader = LineReader()
    headers = {"fedora_messaging_schema": "not.here", "fedora_messaging_severity": 10}
    for _ in range(2):
        [found] = reader.read(line(topic="a", body={}, headers=headers))
    assert type(found) is upstream.Message
    assert found._headers == {**headers, "sent-at": found._headers["sent-at"]}
    assert reader.unknown_schemas == {"not.here": 2}


def test_a_page_of_datagrepper_on_one_line_has_several_messages():
    entries = [{"topic": "a", "body": {"n": n}, "id": str(n)} for n in range(3)]
    found = read(line(raw_messages=entries, count=3))
    assert [message.body["n"] for message in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("timestamp", "sent_at"),
    [(1344350200, "2012-08-07T14:36:40+00:00"), ("2012-08-07", "2012-08-07")],
)
def test_a_message_of_fedmsg_keeps_its_id_and_time(timestamp, sent_at):
    [found] = read(line(topic="a.b", msg={"n": 1}, msg_id="2012-x", timestamp=timestamp, i=4))
    assert (found.id, found.body) == ("2012-x", {"n": 1})
    assert found._headers["sent-at"] == sent_at


def test_a_message_of_fedmsg_without_a_time_gets_the_present_one():
    [found] = read(line(topic="a.b", msg={}))
    assert found._headers["sent-at"] > "2020"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"{", "is no JSON"),
        (b'{"topic": "a", "body": {"n": NaN}}', "NaN is no number of JSON"),
        (b"[]", "is no JSON object"),
        (b"\xff{}", "is no UTF-8"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (line(body={}), 'has no "topic"'),
        (line(topic="", body={}), 'has no "topic"'),
        (line(topic=1, body={}), 'has no "topic"'),
        (line(topic="a"), 'has no "body"'),
        (line(topic="a", body=[]), 'has no "body"'),
        (line(topic="a", body={}, headers=[]), '"headers" is no object'),
        (line(topic="a", body={}, headers={"fedora_messaging_schema": 1}), "is no text"),
        (line(topic="a", body={}, headers={"fedora_messaging_severity": 11}), "severity is 11"),
        (line(topic="a", body={}, headers={"fedora_messaging_severity": "20"}), "severity is '20'"),
        (line(topic="a", body={}, priority="high"), '"priority" is no integer'),
        (line(topic="a", body={}, priority=True), '"priority" is no integer'),
        (line(topic="a", body={}, id=7), '"id" is no text'),
        (line(topic="a", body={}, id=""), '"id" is no text'),
        (line(topic="a", body_base64="AA=="), "were no valid message"),
        (line(raw_messages=[1]), "an entry that is no object"),
        (line(topic="a", msg={}, headers=3), '"headers" is no object'),
        (line(topic="a", msg={}, timestamp=[]), '"timestamp" is'),
        (line(topic="a", msg={}, timestamp=1e300), '"timestamp" is'),
    ],
)
def test_a_line_that_is_no_message_is_refused_with_a_cure(data, what):
    with pytest.raises(LineError) as caught:
        read(data)
    assert what in str(caught.value)
    assert str(caught.value).endswith(f"; {caught.value.cure}")


def test_the_installed_message_classes_are_known_by_name():
    assert {"base.message", "anitya.project.added"} & set(schemas())


def test_real_recorded_messages_are_read_as_they_were_written():
    files = sorted(ROOT.parent.glob(RECORDED)) if RECORDED else []
    if not files:
        pytest.skip("RECORDED_MESSAGES names no files")
    for file in files:
        for data in file.read_bytes().splitlines():
            [found] = read(data)
            assert json.loads(upstream.dumps(found))["headers"] == json.loads(data)["headers"]
