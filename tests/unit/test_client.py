# SPDX-License-Identifier: GPL-2.0-or-later
"""The client of the control socket, against instances that behave and others."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from consumer_framework.runtime import state_files
from consumer_framework.runtime.control import client
from consumer_framework.runtime.control.client import ControlError, connected, connected_to
from consumer_framework.runtime.control.schema import (
    Begun,
    Drop,
    Dropped,
    Replay,
    Replayed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DONE = b'{"done": true}\n'
PONG = b'{"pong": true}'


def stream(*lines: bytes) -> bytes:
    """Return a response with a stream of answers; the last one ends it."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines)
    head = b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n"
    return b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + chunks


def one(body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    """Return a response with one answer."""
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


def problem(detail: bytes, status: bytes = b"404 Not Found") -> bytes:
    return one(b'{"detail": "%b"}' % detail, status, b"application/problem+json")


@pytest.fixture
def instance(tmp_path) -> Iterator[Instance]:
    running = Instance(str(tmp_path / "control"))
    yield running
    running.close()


class Instance:
    """Listens, answers the call of each connection with the next of its answers, and hangs up."""

    def __init__(self, path: str) -> None:
        self.requests: list[Any] = []
        self.answers: list[bytes] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        self._listening.settimeout(10)
        self._hang_up = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def says(self, *answers: bytes) -> None:
        """Answer a ping, and then so."""
        self.answers = [one(PONG), *answers]
        self._thread.start()

    def _serve(self) -> None:
        for answer in self.answers:
            connection, _ = self._listening.accept()
            with connection, connection.makefile("rb") as call:
                self.requests.append(_read(call))
                connection.sendall(answer)
                if not answer:
                    self._hang_up.wait(10)

    def close(self) -> None:
        self._hang_up.set()
        if self._thread.ident:
            self._thread.join(20)
        self._listening.close()


def _read(call: Any) -> tuple[str, Any]:
    """Return the line of a call, without its version, and its JSON; None for no body."""
    first = call.readline().decode().rpartition(" ")[0]
    length = 0
    while line := call.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return first, json.loads(call.read(length)) if length else None


def answers(directory: Any, *requests: Any) -> Iterable[Any]:
    with connected(directory, "sample") as running:
        assert running is not None
        return [answer for request in requests for answer in running.ask(request)]


def test_an_order_is_given_and_its_answers_come_back(instance, tmp_path):
    row = b'{"row": 1, "result": "failed", "reason": "why"}\n'
    instance.says(stream(b'{"begun": 1}\n', row, DONE, b""))
    assert answers(tmp_path, Replay((1, 2))) == [Begun(1), Replayed(1, "failed", "why")]
    assert instance.requests == [
        ("GET /v1", None),
        ("POST /v1/quarantine/replay", {"rows": [1, 2]}),
    ]


def test_several_orders_are_given_one_after_the_other(instance, tmp_path):
    instance.says(one(b'{"dropped": [1]}'), one(b'{"dropped": [2, 3]}'))
    assert answers(tmp_path, Drop((1,)), Drop((2, 3))) == [Dropped((1,)), Dropped((2, 3))]


def test_without_a_socket_the_instance_does_not_run(tmp_path):
    with connected(tmp_path, "sample") as running:
        assert running is None


def test_a_socket_without_a_listener_means_that_the_instance_does_not_run(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    with connected(tmp_path, "sample") as running:
        assert running is None


def test_a_directory_whose_name_is_too_long_for_a_socket_has_none(tmp_path):
    with connected(tmp_path / ("x" * 120), "sample") as running:
        assert running is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (problem(b"there is no\\n /v1/x"), "the instance says: there is no /v1/x"),
        (one(b"?", b"404 Not Found", b"application/problem+json"), "says: HTTP status 404"),
        (stream(b'{"done": true, "error": "a defect"}\n', b""), "the instance says: a defect"),
        (stream(b'{"begun": 1}\n'), "the instance stopped before it was done"),
        (stream(b'{"begun": 1}\n', b""), "the instance stopped before it was done"),
        (stream(b'{"begun": 1}\n{"ro'), "the instance stopped before it was done"),
        (stream(b'{"later": 1}\n'), "may run another version; restart it: the answer is not und"),
        (stream(b"\xff\n"), "may run another version; restart it: no JSON"),
        (one(b'{"done": true}'), "may run another version; restart it: an end without an answer"),
        (b"\x00\n", "the instance runs another version than this command"),
        (b"", "the instance runs, and does not answer"),
    ],
    ids=[
        *("refused", "refused oddly", "failed", "gone", "ended", "torn", "unknown", "garbage"),
        *("empty", "other protocol", "hangs"),
    ],
)
def test_each_failure_is_one_line_with_the_socket(instance, tmp_path, monkeypatch, answer, said):
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 0.5)
    instance.says(answer)
    with pytest.raises(ControlError, match=said) as raised:
        answers(tmp_path, Replay((1,)))
    assert str(tmp_path / "control") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_instance_that_goes_away_before_its_answer_is_named(instance, tmp_path):
    instance.says()
    with connected(tmp_path, "sample") as running:
        assert running is not None
        instance.close()
        with pytest.raises(ControlError, match="the instance stopped before it was done; what"):
            list(running.ask(Replay((1,))))


def test_an_instance_of_a_former_version_is_named_with_the_cure(tmp_path):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "control"))
    listening.listen()
    listening.settimeout(10)

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as lines:
            # It answers each line, as the former protocol does.
            lines.readline()
            connection.sendall(b'{"done": true, "error": "no JSON: Expecting value"}\n')

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        pytest.raises(ControlError, match=r"another version than this .* speaks HTTP; restart it$"),
        connected(tmp_path, "sample"),
    ):
        pass
    thread.join(20)
    listening.close()


def test_a_failure_of_a_relay_names_the_relay(tmp_path):
    path = tmp_path / "relay-control"
    with closing(Instance(str(path))) as relay:
        relay.says(stream(b'{"begun": 1}\n'))
        with connected_to([path]) as running:
            assert running is not None
            answers = running.ask(Replay((1,)))
            with pytest.raises(ControlError, match=f"{path}: the relay stopped before it was"):
                list(answers)


def test_an_instance_is_looked_for_where_its_service_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "SYSTEM_STATE", tmp_path / "lib")
    monkeypatch.setattr(client, "SYSTEM_RUNTIME", tmp_path / "run")
    state = tmp_path / "lib" / "sample"
    assert client.sockets(state, "sample") == [
        tmp_path / "run" / "sample" / "control",
        tmp_path / "run" / "sample" / "operators" / "control",
        state / "control",
    ]
    # Another directory is another instance, whatever it is called.
    assert client.sockets(tmp_path, "sample") == [tmp_path / "control"]


def test_a_request_about_a_running_instance_reaches_the_one_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "SYSTEM_RUNTIME", tmp_path / "run")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    own = state_files.users_directory("sample")
    found = client.sockets_for_operators(own, "sample")
    assert found[0] == own / "control"
    runtime = tmp_path / "run" / "sample"
    assert found[-2:] == [runtime / "operators" / "control", runtime / "control"]
    # Who names a directory means that instance, and no other.
    assert client.sockets_for_operators(tmp_path, "sample") == [tmp_path / "control"]


def test_a_closed_socket_is_passed_over_for_an_open_one(instance, tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    connect = socket.socket.connect

    def refuse(own: socket.socket, address: str) -> None:
        if address == str(closed):
            raise PermissionError(13, "Permission denied")
        connect(own, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    instance.says()
    with connected_to([closed, tmp_path / "control"]) as running:
        assert running is not None
    with (
        pytest.raises(ControlError, match=r"closed: the instance cannot be asked: permission den"),
        connected_to([closed, tmp_path / "nothing"]),
    ):
        pass


def test_the_runtime_directory_of_another_service_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    assert client.sockets(tmp_path, "sample") == [tmp_path / "control"]
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert client.sockets(tmp_path, "sample")[0] == state_files.control_socket(tmp_path)
