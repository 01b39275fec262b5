# SPDX-License-Identifier: GPL-2.0-or-later
"""Both servers of the control socket: that of an instance, and that of a process with threads."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pwd
import socket
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from consumer_framework.core import secrets
from consumer_framework.core.errors import StoreError
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.operators import (
    ORDERED_BY,
    Operator,
    login_of_this_process,
    operator_at,
    order_fields,
    who_orders,
)
from consumer_framework.runtime.control.routes import LONGEST_REQUEST, MOST_CLIENTS, Page
from consumer_framework.runtime.control.server import ControlFactory
from consumer_framework.runtime.control.threaded import ControlThread

if TYPE_CHECKING:
    from email.message import Message

SECRET = "fL4k3s&of/the=control"  # noqa: S105 -- it is none


def ping(_request):
    yield schema.Pong()


def fail(_request):
    yield schema.Step("one")
    raise RuntimeError("broken")


def fail_at_once(_request):
    raise StoreError("the disk is full")
    yield


def reload(_request):
    yield schema.Step(f"connecting with {SECRET}")
    yield schema.ReloadReport("unchanged")


def edit(request):
    yield schema.Edited(request.row)


BY_TYPE: dict[Any, Any] = {
    schema.Ping: ping,
    schema.Replay: fail,
    schema.Drop: fail_at_once,
    schema.Reload: reload,
    schema.Edit: edit,
}
PAGES = {"/metrics": lambda accept: Page(f"up 1 {accept}\n".encode(), "text/x", 503)}


@dataclass
class Response:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class _Bytes:
    """A socket for HTTPResponse."""

    def __init__(self, data: io.BytesIO) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(cast("io.RawIOBase", _Open(self._data)))


class _Open(io.RawIOBase):
    """The bytes of several responses, which no response closes."""

    def __init__(self, data: io.BytesIO) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # One byte at a time, so that nothing of the next response is read.
        part = self._data.read(1)
        buffer[: len(part)] = part
        return len(part)


def responses_in(text: bytes) -> list[Response]:
    data, found = io.BytesIO(text), []
    while data.tell() < len(text):
        response = HTTPResponse(cast("socket.socket", _Bytes(data)))
        response.begin()
        found.append(Response(response.status, response.msg, response.read()))
    return found


def _asynchronous(respond):
    async def answers(request):
        for answer in respond(request):
            yield answer

    return answers


OWN = Operator(os.geteuid(), os.getpid(), "hazel")


def factory_of(by_type, pages=None, operator=OWN) -> Any:
    """Return the server of an instance, whose clients are *operator*."""
    return ControlFactory(by_type, pages, lambda _transport, _login: operator)


def through_twisted(_directory, *parts: bytes, operator: Operator = OWN) -> bytes:
    """Feed *parts* to the server of an instance, and return its bytes."""

    async def run() -> bytes:
        transport = StringTransport()
        by_type = {kind: _asynchronous(respond) for kind, respond in BY_TYPE.items()}
        client = factory_of(by_type, PAGES, operator).buildProtocol(None)
        client.makeConnection(transport)
        for part in parts:
            if not transport.disconnecting:
                client.dataReceived(part)
            for _ in range(20):
                await asyncio.sleep(0)
        client.connectionLost(None)
        return bytes(transport.value())

    return asyncio.run(run())


def through_threads(directory, *parts: bytes) -> bytes:
    control = ControlThread(directory / "control", BY_TYPE, PAGES)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(directory / "control"))
            # A server that refuses a call does not read it to its end.
            with suppress(BrokenPipeError):
                for part in parts:
                    client.sendall(part)
                client.shutdown(socket.SHUT_WR)
            found = b""
            with suppress(ConnectionResetError):
                while part := client.recv(65536):
                    found += part
            return found
    finally:
        control.close()


@pytest.fixture(params=[through_twisted, through_threads], ids=["instance", "relay"])
def send(request, short_tmp_path):
    """Sends bytes to a server, and returns its bytes."""

    def send(*parts: bytes) -> bytes:
        return cast("bytes", request.param(short_tmp_path, *parts))

    return send


@pytest.fixture
def call(send):
    """Makes one call, and returns the response."""

    def call(method, target, body=b"", *headers):
        head = [f"{method} {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        text = "\r\n".join([*head, *headers]).encode() + b"\r\n\r\n" + body
        (response,) = responses_in(send(text))
        return response

    return call


def test_a_request_with_one_answer_gets_one_json_object(call):
    response = call("GET", "/v1")
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Server"].startswith("consumer_framework/")
    assert response.json["pong"] is True


def test_a_request_with_several_answers_gets_one_a_line_and_an_end(call):
    response = call("POST", "/v1/reload", b"{}")
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert [*response.lines[1]] == ["result", "changes", "problems", "notes"]
    assert response.lines[2:] == [{"done": True}]


def test_no_secret_goes_over_the_socket(call):
    secrets.hide(SECRET, "credential:flakes")
    assert call("POST", "/v1/reload").lines[0] == {"step": "connecting with <credential:flakes>"}


def test_fields_come_in_the_body(call):
    assert call("POST", "/v1/quarantine/edit", b'{"row": 7, "body": {}}').json == {"row": 7}


def test_a_connection_carries_several_calls_also_before_the_first_is_answered(send):
    one = b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n"
    stream = b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    found = responses_in(send(one + stream + one))
    assert [response.status for response in found] == [200, 200, 200]
    assert found[1].lines[-1] == {"done": True}


def test_a_call_may_come_in_small_parts(send):
    text = b'POST /v1/quarantine/edit HTTP/1.1\r\nContent-Length: 22\r\n\r\n{"row": 7, "body": {}}'
    (response,) = responses_in(send(*(text[i : i + 1] for i in range(len(text)))))
    assert response.json == {"row": 7}


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "said"),
    [
        ("GET", "/v1/nonsense", b"", 404, "there is no /v1/nonsense"),
        ("GET", "/v1/status", b"", 404, "/v1/status: this process does not answer that"),
        ("GET", "/v9/status", b"", 404, "version 9 is not understood; "),
        ("DELETE", "/v1", b"", 405, "/v1 takes GET, not DELETE"),
        ("POST", "/metrics", b"", 405, "/metrics takes GET, not POST"),
        ("POST", "/v1/quarantine/edit", b"no JSON", 400, "no JSON: Expecting value"),
        ("POST", "/v1/quarantine/edit", b"{}", 400, "POST /v1/quarantine/edit: row: Field req"),
        ("POST", "/v1/quarantine/drop", b'{"rows": [1]}', 503, "the disk is full"),
    ],
)
def test_a_call_that_is_not_carried_out_gets_a_problem_document(
    call, caplog, method, target, body, status, said
):
    response = call(method, target, body)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (response.status, response.json["status"]) == (status, status)
    assert response.json["detail"].startswith(said)
    assert ("Allow" in response.headers) is (status == 405)
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


def test_a_request_that_fails_in_the_middle_says_so_at_the_end_and_the_log_has_the_traceback(
    call, caplog
):
    assert call("POST", "/v1/quarantine/replay", b'{"rows": [1]}').lines == [
        {"step": "one"},
        {"done": True, "error": "RuntimeError: broken"},
    ]
    assert "a request on the control socket failed" in caplog.text


def test_a_page_is_sent_as_it_is(call):
    response = call("GET", "/metrics", b"", "Accept: text/plain")
    assert (response.status, response.body) == (503, b"up 1 text/plain\n")
    assert response.headers["Content-Type"] == "text/x"


def test_a_header_may_have_any_bytes(send):
    text = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: \xff\r\n\r\n"
    (response,) = responses_in(send(text))
    assert (response.status, response.body.decode()) == (503, "up 1 \xff\n")


def test_a_body_that_is_too_long_is_refused_without_being_read(send):
    head = b"POST /v1/quarantine/drop HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
    (response,) = responses_in(send(head % (LONGEST_REQUEST + 1), b"[" * 70_000))
    assert response.status == 413
    assert response.headers["Connection"] == "close"


def test_a_program_that_speaks_the_former_protocol_is_told_in_its_own_terms(send):
    answer = json.loads(send(b'{"do": "ping"}\n'))
    assert answer["done"] is True
    assert "its socket speaks HTTP; update this command" in answer["error"]


def test_bytes_that_are_no_http_end_the_connection_with_a_word(send):
    assert send(b"\x16\x03\x01 hello there all of you\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_long_body_without_a_length_is_refused_when_it_becomes_too_long():
    chunk = b"%x\r\n%b\r\n" % (1 << 16, b"[" * (1 << 16))
    head = b"POST /v1/reload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    count = LONGEST_REQUEST // (1 << 16) + 1
    (response,) = responses_in(through_twisted(None, head, *[chunk] * count, b"0\r\n\r\n"))
    assert response.status == 413


def test_a_body_in_chunks_is_read():
    head = b"POST /v1/quarantine/edit HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'16\r\n{"row": 7, "body": {}}\r\n0\r\n\r\n'
    (response,) = responses_in(through_twisted(None, head + body))
    assert response.json == {"row": 7}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Transfer-Encoding: chunked", 411),
        ("Content-Length: many", 400),
        ("Content-Length: \N{SUPERSCRIPT TWO}", 400),
    ],
)
def test_a_process_with_threads_asks_for_the_length(short_tmp_path, header, status):
    text = f"POST /v1/reload HTTP/1.1\r\n{header}\r\n\r\n".encode("latin-1")
    (response,) = responses_in(through_threads(short_tmp_path, text))
    assert response.status == status
    assert response.headers["Content-Type"] == "application/problem+json"


def test_a_stream_waits_while_its_client_does_not_read():
    async def run() -> None:
        asked = 0

        async def replay(_request):
            nonlocal asked
            while True:
                asked += 1
                yield schema.Begun(asked)
                await asyncio.sleep(0)

        transport = StringTransport()
        client = factory_of({schema.Replay: replay}).buildProtocol(None)
        client.makeConnection(transport)
        client.dataReceived(b"POST /v1/quarantine/replay?rows=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0)
        assert transport.producer is not None
        transport.producer.pauseProducing()
        for _ in range(3):
            await asyncio.sleep(0)
        before = asked
        for _ in range(10):
            await asyncio.sleep(0)
        assert asked == before > 0
        transport.producer.resumeProducing()
        for _ in range(10):
            await asyncio.sleep(0)
        assert asked > before
        client.connectionLost(None)

    asyncio.run(run())


def test_a_client_that_goes_away_ends_its_stream():
    async def run() -> None:
        is_over = asyncio.Event()

        async def replay(_request):
            try:
                yield schema.Begun(1)
                await asyncio.Event().wait()
            finally:
                is_over.set()

        client = factory_of({schema.Replay: replay}).buildProtocol(None)
        client.makeConnection(StringTransport())
        client.dataReceived(b"POST /v1/quarantine/replay?rows=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not is_over.is_set()
        client.connectionLost(None)
        await asyncio.wait_for(is_over.wait(), 10)

    asyncio.run(run())


# Rights, and the trace of orders.

SOMEBODY = Operator(4711, 99, "hazel")


@pytest.mark.parametrize(
    ("operator", "statuses"),
    [
        (Operator(0, 99), [200, 200, 200, 503]),
        (OWN, [200, 200, 200, 503]),
        (SOMEBODY, [200, 200, 403, 403]),
    ],
    ids=["root", "own user", "operator"],
)
def test_each_operator_may_make_the_requests_of_their_right(operator, statuses):
    calls = [
        (b"GET /v1", b""),
        (b"POST /v1/reload", b"{}"),
        (b"POST /v1/reload", b'{"file": {"path": "/x", "text": ""}}'),
        (b"POST /v1/quarantine/drop", b'{"rows": [1]}'),
    ]
    head = b"%b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b"
    text = b"".join(head % (call, len(body), body) for call, body in calls)
    found = responses_in(through_twisted(None, text, operator=operator))
    assert [response.status for response in found] == statuses


def test_a_refusal_names_the_cure_and_leaves_a_trace(caplog):
    text = b'POST /v1/quarantine/drop HTTP/1.1\r\nContent-Length: 13\r\n\r\n{"rows": [1]}'
    (response,) = responses_in(through_twisted(None, text, operator=SOMEBODY))
    assert response.json["detail"].endswith("; use sudo, or ask an administrator")
    (record,) = caplog.records
    assert record.message == "hazel (uid 4711, pid 99) is refused: POST /v1/quarantine/drop"
    assert (record.FM_OPERATOR_UID, record.FM_OPERATOR_LOGIN) == ("4711", "hazel")


def test_an_order_leaves_a_trace_and_a_look_does_not(send, caplog):
    caplog.set_level(logging.INFO)
    send(b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not caplog.records
    send(b"POST /v1/reload HTTP/1.1\r\nFM-Login: hazel\r\nContent-Length: 0\r\n\r\n")
    (record,) = [r for r in caplog.records if r.levelno == logging.INFO]
    who = f"hazel (uid {os.geteuid()}, pid {os.getpid()})"
    assert record.message == f"{who} orders POST /v1/reload"
    assert str(os.getpid()) == record.FM_OPERATOR_PID


def test_the_kernel_names_the_peer_and_the_peer_its_login():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        operator = operator_at(one, "ha\x1bzel" * 20)
    assert (operator.uid, operator.pid) == (os.geteuid(), os.getpid())
    assert "\x1b" not in operator.login
    assert len(operator.login) < 100


def test_without_an_order_nobody_is_named():
    assert ORDERED_BY.get() is None
    assert order_fields() == {}
    assert who_orders() == "an operator"
    assert str(Operator(1, 2)) == "somebody (uid 1, pid 2)"
    assert "FM_OPERATOR_LOGIN" not in Operator(1, 2).fields


def test_the_login_is_known_from_before_sudo(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda _path, encoding: str(2**32 - 1))
    monkeypatch.setenv("SUDO_USER", "hazel")
    assert login_of_this_process() == "hazel"
    monkeypatch.delenv("SUDO_USER")
    assert login_of_this_process() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: (_ for _ in ()).throw(KeyError))
    assert login_of_this_process() == ""


def test_operators_cannot_keep_root_out_by_many_connections():
    async def run() -> None:
        operators: list[Operator] = [SOMEBODY] * (MOST_CLIENTS + 1) + [Operator(0, 1)]
        factory = ControlFactory({}, {}, lambda transport, _login: transport.operator)
        transports: list[Any] = []
        for operator in operators:
            transport: Any = StringTransport()
            transport.operator = operator
            client: Any = factory.buildProtocol(None)
            client.makeConnection(transport)
            transports.append((client, transport))
        refused = [transport.value() for _, transport in transports if transport.value()]
        assert len(refused) == 1
        assert refused[0] == transports[MOST_CLIENTS][1].value()
        assert b"503 Service Unavailable" in refused[0]
        for client, _ in transports:
            client.connectionLost(None)
        again: Any = factory.buildProtocol(None)
        transport = StringTransport()
        transport.operator = SOMEBODY
        again.makeConnection(transport)
        assert transport.value() == b""
        again.connectionLost(None)

    asyncio.run(run())


def test_a_client_that_sends_a_byte_now_and_then_is_hung_up_on():
    clock = Clock()
    client = factory_of({}).buildProtocol(None)
    client.callLater = clock.callLater
    transport = StringTransport()
    client.makeConnection(transport)
    for byte in b"GET /v1":
        client.dataReceived(bytes([byte]))
        clock.advance(8)
    assert not transport.disconnecting
    client.dataReceived(b" HTTP")
    clock.advance(8)
    assert transport.disconnecting
    client.connectionLost(None)
    assert clock.getDelayedCalls() == []
