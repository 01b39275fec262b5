# SPDX-License-Identifier: GPL-2.0-or-later
"""The typed requests and answers of the control socket, and their lines of JSON."""

import json

import pytest
from pydantic import TypeAdapter

from consumer_framework.core.errors import Problem
from consumer_framework.runtime.control import schema
from consumer_framework.settings import Change, Takes

CHANGE = Change("amqp_url", Takes.RESTART)
REQUESTS = [
    (schema.Ping(), {"do": "ping"}),
    (schema.Status(), {"do": "status"}),
    (schema.RelayStatus(), {"do": "relaystatus"}),
    (schema.Drop((1, 2)), {"do": "drop", "rows": [1, 2]}),
    (schema.Edit(3, {"n": None}), {"do": "edit", "row": 3, "body": {"n": None}}),
    (schema.Edit(3, None), {"do": "edit", "row": 3, "body": None}),
    (schema.Replay((4,)), {"do": "replay", "rows": [4]}),
    (schema.Reload(), {"do": "reload"}),
    (
        schema.Reload(schema.FileText("/x", "a = '\udcff'")),
        {"do": "reload", "file": {"path": "/x", "text": "a = '\udcff'"}},
    ),
]
ANSWERS = [
    (schema.Ping(), schema.Pong(), {"pong": True}),
    (schema.Drop(()), schema.Dropped((1,)), {"dropped": [1]}),
    (schema.Edit(1, {}), schema.Edited(2), {"row": 2}),
    (schema.Edit(1, {}), schema.Edited(None), {"row": None}),
    (schema.Replay(()), schema.Step("waiting"), {"step": "waiting"}),
    (schema.Replay(()), schema.Begun(7), {"begun": 7}),
    (
        schema.Replay(()),
        schema.Replayed(7, "succeeded"),
        {"row": 7, "result": "succeeded", "reason": ""},
    ),
    (
        schema.Reload(),
        schema.ReloadReport("refused", (CHANGE,), (Problem("qos", "bad", "mend", "f", 3),), ("n",)),
        {
            "result": "refused",
            "changes": [{"path": "amqp_url", "takes": "restart", "text": "changed"}],
            "problems": [
                {"path": "qos", "message": "bad", "cure": "mend", "source": "f", "line": 3}
            ],
            "notes": ["n"],
        },
    ),
    (schema.Ping(), schema.Done(), {"done": True}),
    (schema.Ping(), schema.Done(error="no"), {"done": True, "error": "no"}),
]


@pytest.mark.parametrize(("request_", "document"), REQUESTS)
def test_a_request_is_one_line_and_comes_back_as_it_was(request_, document):
    line = schema.encode_request(request_)
    assert json.loads(line) == document
    assert b"\n" not in line
    assert schema.decode_request(line) == request_


@pytest.mark.parametrize(("request_", "answer", "document"), ANSWERS)
def test_an_answer_is_one_line_and_comes_back_as_it_was(request_, answer, document):
    line = schema.encode_answer(answer)
    assert json.loads(line) == document
    assert b"\n" not in line
    assert schema.decode_answer(request_, line) == answer


def test_a_status_comes_back_as_it_was():
    counts = schema.Counts(acked=3, running=1)
    report = schema.StatusReport(pid=1, queues=("a",), rate=0.5, lag=None, counts=counts)
    assert schema.decode_answer(schema.Status(), schema.encode_answer(report)) == report


def test_fields_of_a_later_release_are_ignored_and_those_of_an_earlier_one_have_defaults():
    assert schema.decode_request(b'{"do": "ping", "later": 1}') == schema.Ping()
    report = schema.decode_answer(schema.Status(), b'{"pid": 4, "later": {}}')
    assert report == schema.StatusReport(pid=4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "no JSON: Expecting value"),
        (b"\xff", "no JSON: "),
        (b"[" * 200_000, "no JSON: "),
        (b"[]", "no JSON object"),
        (b'{"rows": [1]}', "no such request: None"),
        (b'{"do": "nonsense"}', "no such request: 'nonsense'"),
        (b'{"do": ["drop"]}', r"no such request: \['drop'\]"),
        (b'{"do": "drop"}', "no such request: drop: rows: Field required"),
        (b'{"do": "drop", "rows": ["x"]}', "no such request: drop: rows.0: "),
        (b'{"do": "ping", "version": 2}', "version 2 is not understood; .* speaks version 1"),
        (b'{"do": "later", "version": "1.0"}', "version '1.0' is not understood"),
    ],
)
def test_a_line_that_is_no_request_is_refused_in_one_line(line, said):
    with pytest.raises(schema.ProtocolError, match=f"^{said}") as caught:
        schema.decode_request(line)
    assert "\n" not in str(caught.value)


def test_the_version_may_be_named():
    line = b'{"do": "ping", "version": %d}' % schema.VERSION
    assert schema.decode_request(line) == schema.Ping()


def test_an_answer_to_another_request_is_refused():
    with pytest.raises(schema.ProtocolError, match=r"^the answer is not understood: "):
        schema.decode_answer(schema.Drop((1,)), b'{"pong": true}')


def test_every_request_with_its_answers_can_be_listed_and_has_a_json_schema():
    assert list(schema.REQUESTS) == [
        *("ping", "status", "relaystatus", "drop", "edit", "replay", "reload"),
    ]
    answers = {name: schema.answers_of(kind) for name, kind in schema.REQUESTS.items()}
    assert answers["replay"] == (schema.Step, schema.Begun, schema.Replayed)
    assert answers["status"] == (schema.StatusReport,)
    for name, kind in schema.REQUESTS.items():
        for one in (kind, *answers[name]):
            document = TypeAdapter(one).json_schema()
            assert document["type"] == "object"
            assert (one.__doc__ or "").startswith(document.get("description", "")[:20])
