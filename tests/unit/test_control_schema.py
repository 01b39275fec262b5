# SPDX-License-Identifier: GPL-2.0-or-later
"""The typed requests and answers of the control socket, their JSON, and their routes."""

import json

import pytest
from pydantic import TypeAdapter

from consumer_framework.core.errors import Problem, StoreError
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.routes import (
    ROUTE_OF,
    ROUTES,
    Call,
    Page,
    Refusal,
    page_for,
    read_call,
    refusal_of,
    write_call,
)
from consumer_framework.settings import Change, Takes

CHANGE = Change("amqp_url", Takes.RESTART)
REQUESTS = [
    (schema.Ping(), Call("GET", "/v1")),
    (schema.Status(), Call("GET", "/v1/status")),
    (schema.RelayStatus(), Call("GET", "/v1/outbox")),
    (schema.Drop((1, 2)), Call("POST", "/v1/quarantine/drop", b'{"rows": [1, 2]}')),
    (
        schema.Edit(3, {"n": None}),
        Call("POST", "/v1/quarantine/edit", b'{"row": 3, "body": {"n": null}}'),
    ),
    (schema.Edit(3, None), Call("POST", "/v1/quarantine/edit", b'{"row": 3, "body": null}')),
    (schema.Replay((4,)), Call("POST", "/v1/quarantine/replay", b'{"rows": [4]}')),
    (schema.Reload(), Call("POST", "/v1/reload", b"{}")),
    (
        schema.Reload(schema.FileText("/x", "a = '\udcff'")),
        Call("POST", "/v1/reload", b'{"file": {"path": "/x", "text": "a = \'\\udcff\'"}}'),
    ),
]
ANSWERS = [
    (
        schema.Ping(),
        schema.Pong(product="1.2", instance="sample", pid=3),
        {"pong": True, "version": 1, "product": "1.2", "instance": "sample", "pid": 3},
    ),
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


@pytest.mark.parametrize(("request_", "call"), REQUESTS)
def test_a_request_is_one_call_and_comes_back_as_it_was(request_, call):
    assert write_call(request_) == call
    assert read_call(call) == (ROUTE_OF[type(request_)], request_)


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
    assert read_call(Call("GET", "/v1?later=1"))[1] == schema.Ping()
    drop = Call("POST", "/v1/quarantine/drop", b'{"rows": [], "later": 1}')
    assert read_call(drop)[1] == schema.Drop(())
    report = schema.decode_answer(schema.Status(), b'{"pid": 4, "later": {}}')
    assert report == schema.StatusReport(pid=4)


def test_fields_may_come_in_the_query_of_any_request():
    assert read_call(Call("POST", "/v1/quarantine/drop?rows=1&rows=2"))[1] == schema.Drop((1, 2))
    assert read_call(Call("GET", "/v1/status/?x=%20"))[1] == schema.Status()


DROP = "/v1/quarantine/drop"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "no JSON: Expecting property name"),
        (b"\xff", "no JSON: "),
        (b"[" * 200_000, "no JSON: "),
        (b"[]", "no JSON object"),
        (b'{"everything": 2}', "POST /v1/quarantine/drop: everything: "),
        (b'{"rows": ["x"]}', r"POST /v1/quarantine/drop: rows\.0: "),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_one_line(body, said):
    with pytest.raises(schema.ProtocolError, match=f"^{said}") as caught:
        read_call(Call("POST", DROP, body))
    assert "\n" not in str(caught.value)
    assert refusal_of(caught.value).status == 400


def test_a_query_that_is_none_is_refused():
    with pytest.raises(schema.ProtocolError, match="the query 'a' is none"):
        read_call(Call("GET", "/v1/status?a"))


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/", 404, "there is no /$"),
        ("GET", "/nonsense", 404, "there is no /nonsense"),
        ("GET", "/v1/nonsense", 404, "there is no /v1/nonsense"),
        ("GET", "*", 404, "there is no "),
        ("GET", "/v2/status", 404, "version 2 is not understood; .* speaks version 1"),
        ("POST", "/v1/status", 405, "/v1/status takes GET, not POST"),
        ("get", "/v1/status", 405, "/v1/status takes GET, not get"),
        ("DELETE", "/v1/quarantine/drop", 405, "/v1/quarantine/drop takes POST, not DELETE"),
    ],
)
def test_a_call_without_a_route_is_refused(method, path, status, said):
    with pytest.raises(Refusal, match=said) as caught:
        read_call(Call(method, path))
    assert caught.value.status == status
    assert ("Allow" in caught.value.headers) is (status == 405)


def test_a_page_is_found_by_its_path_and_takes_no_orders():
    def page(accept):
        return Page(accept.encode())

    assert page_for(Call("GET", "/metrics?x=1"), {"/metrics": page}) is page
    assert page_for(Call("GET", "/v1"), {"/metrics": page}) is None
    with pytest.raises(Refusal, match="/metrics takes GET, not POST"):
        page_for(Call("POST", "/metrics"), {"/metrics": page})


def test_a_refusal_is_a_problem_document():
    assert json.loads(Refusal(404, "there is no /x").body) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no /x",
    }


def test_a_store_that_fails_is_no_defect(caplog):
    assert refusal_of(StoreError("the disk is full")).status == 503
    assert not caplog.records
    assert refusal_of(ValueError("a defect")).status == 500
    assert "a request on the control socket failed" in caplog.text


def test_an_answer_to_another_request_is_refused():
    with pytest.raises(schema.ProtocolError, match=r"^the answer is not understood: "):
        schema.decode_answer(schema.Drop((1,)), b'{"pong": true}')


def test_every_request_with_its_answers_has_one_route_and_a_json_schema():
    assert len(ROUTE_OF) == len(ROUTES)
    assert schema.answers_of(schema.Reload) == (schema.Step, schema.ReloadReport)
    assert schema.answers_of(schema.Status) == (schema.StatusReport,)
    for route in ROUTES:
        assert route.path.startswith("/v1")
        assert route.method in {"GET", "POST"}
        for one in (route.request, *schema.answers_of(route.request)):
            document = TypeAdapter(one).json_schema()
            assert document["type"] == "object"
            assert (one.__doc__ or "").startswith(document.get("description", "")[:20])
