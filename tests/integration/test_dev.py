# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer dev` runs a project's consumer on a broker of its own, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fedora_messaging.message import Message

from consumer_framework.kit.development.messages import Sendable
from consumer_framework.kit.development.private_broker import PrivateBroker, PrivateBrokerError
from consumer_framework.testing.broker import Broker

from .instance import FM_CONSUMER, until

TOML = """
amqp_url = "amqps://broker.invalid/vhost"
callback = "sample:Sample"
passive_declares = true

[tls]
ca_cert = "/missing/ca.pem"

[queues.sample]
durable = false
auto_delete = true
exclusive = true
arguments = {}

[[bindings]]
queue = "sample"
exchange = "special"
routing_keys = ["org.example.*.build"]
"""
HANDLER = """
import os, time
from fedora_messaging import config
from consumer_framework import Consumer, Halt

class Sample(Consumer):
    def handle(self, message):
        BODY
"""


@pytest.fixture
def project(tmp_path):
    if lacking := Broker.missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    directory = tmp_path / "project"
    (directory / "src").mkdir(parents=True)
    (directory / "pyproject.toml").touch()
    (directory / "sample.toml").write_text(TOML)
    return directory


def write(project, body):
    (project / "src/sample.py").write_text(HANDLER.replace("BODY", body))


class Session:
    """The command in a project, at a terminal or not."""

    def __init__(self, project: Path, *options: str, terminal: int | None = None) -> None:
        self.place = project.parent / "tmp"
        self.place.mkdir(exist_ok=True)
        self._file = project.parent / "output"
        output = self._file.open("wb")
        self.process = subprocess.Popen(
            [str(FM_CONSUMER), "dev", *options],
            cwd=project,
            env={**os.environ, "TMPDIR": str(self.place), "COLUMNS": "80"},
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        output.close()

    @property
    def output(self) -> str:
        return self._file.read_text(errors="replace")

    def shows(self, text: str, count: int = 1) -> None:
        until(lambda: self.output.count(text) >= count, lambda: f"{count} x {text}\n{self.output}")

    def processes(self) -> list[int]:
        """Return the processes that work in its directory of temporary files, or know it."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and str(self.place).encode() in (
                    (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
        return found

    def is_gone(self) -> bool:
        return not self.processes() and not list(self.place.iterdir())


@pytest.fixture
def start(project):
    sessions = []

    def start_session(*options, **more):
        sessions.append(Session(project, *options, **more))
        return sessions[-1]

    yield start_session
    for session in sessions:
        session.process.terminate()
        session.process.wait(30)


def test_a_run_for_ci_fails_unless_all_messages_are_acknowledged(project, start):
    recorded = project / "recorded.jsonl"
    topic = "org.example.prod.build"
    recorded.write_text(
        "".join(json.dumps({"topic": topic, "body": {"n": n}}) + "\n" for n in (0, 1))
    )
    write(project, 'print(config.conf["amqp_url"], config.conf["tls"], 1 // message.body["n"])')
    options = ("--messages", str(recorded), "--callback-file", "src/sample.py:Sample")
    session = start("--once", "2", "--retry-delay", "50ms", *options)
    assert session.process.wait(60) == 1, session.output
    assert session.output.count("acknowledged    org.example.prod.build  attempt 1") == 1
    assert "ZeroDivisionError: integer division or modulo by zero (5 attempts)" in session.output
    assert session.output.count("Traceback") == 1
    assert "amqp://guest:guest@127.0.0.1" in session.output
    assert "missing/ca.pem" not in session.output
    assert (project / "sample.toml").read_text() == TOML
    assert session.is_gone()


def test_the_consumer_is_restarted_when_its_files_change_and_nothing_outlives_the_terminal(
    project, start
):
    write(project, "print('first', message.topic)")
    own, theirs = pty.openpty()
    session = start(terminal=theirs)
    session.shows("Enter: one message")
    os.write(own, b"\n")
    session.shows("first org.example.dev.build")

    # A syntax error is shown, and waited out.
    write(project, "print('second', message.topic")
    session.shows("SyntaxError: '(' was never closed")
    session.shows("waiting for a change")
    os.write(own, b"2\n")
    session.shows("waits in its queue for the consumer", 2)
    assert session.output.count("SyntaxError") == 1
    write(project, "print('second', message.topic)")
    session.shows("second org.example.dev.build", 2)
    session.shows("acknowledged", 3)

    # So is a configuration that cannot be used.
    (project / "sample.toml").write_text(TOML + "[")
    session.shows("is not TOML")
    (project / "sample.toml").write_text(TOML.replace("*.build", "*.other"))
    session.shows("are made anew")
    session.shows("the consumer is ready", 3)
    write(project, "raise Halt(3, 'enough')")
    session.shows("the consumer is ready", 4)
    os.write(own, b"\n")
    session.shows("halted          org.example.dev.other")
    session.shows("the consumer ended with exit code 3")
    os.write(own, b"help\nr\n")
    session.shows("Enter: one message", 2)
    session.shows("the consumer is ready", 5)

    # The terminal is closed while a handler runs.
    write(project, "print('begins'); time.sleep(1)")
    session.shows("the consumer is ready", 6)
    os.write(own, b"1\n")
    session.shows("begins")
    os.close(theirs)
    os.close(own)
    # The end of the input may come before the signal, and begins the stop.
    time.sleep(0.3)
    session.process.send_signal(signal.SIGHUP)
    assert session.process.wait(60) == 0, session.output
    assert "5 messages sent: 4 acknowledged, 1 halted" in session.output
    assert session.is_gone()


def document(queue, key, **arguments):
    queues = {queue: {"arguments": arguments}}
    exchange = f"{queue}.exchange"
    bindings = [{"queue": queue, "exchange": exchange, "routing_keys": [key]}]
    return {"queues": queues, "bindings": bindings, "publish_exchange": "amq.topic"}


def sendable(exchange, topic):
    return Sendable.of(exchange, Message(topic=topic, body={}))


def test_queues_are_made_anew_only_if_they_have_changed(broker, queue_name):
    exchange = f"{queue_name}.exchange"
    with closing(PrivateBroker(broker.url)) as private:
        assert not private.declare(document(queue_name, "a.#"))
        assert private.publish(sendable(exchange, "a.b"))
        assert not private.declare(document(queue_name, "a.#"))
        assert broker.depth(queue_name) == (1, 0)
        assert private.declare(document(queue_name, "b"))
        assert broker.depth(queue_name) == (0, 0)
        assert not private.publish(sendable(exchange, "a.b"))


def test_a_refusal_of_the_broker_is_told_and_the_next_try_may_succeed(broker, queue_name):
    with closing(PrivateBroker(broker.url)) as private:
        wrong = {"x-queue-type": "nonsense"}
        with pytest.raises(PrivateBrokerError, match="x-queue-type"):
            private.declare(document(queue_name, "a", **wrong))
        private.declare(document(queue_name, "a"))
        with pytest.raises(PrivateBrokerError, match="no exchange"):
            private.publish(sendable("missing", "a"))
        assert private.publish(sendable(f"{queue_name}.exchange", "a"))


def test_nothing_outlives_a_session_that_is_killed(project, start):
    rest = "print('began'); os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '600'); time.sleep(600)"
    write(project, f"if message.body['n'] == 1: return\n        {rest}")
    session = start("--rate", "5", "--json")
    session.shows('"disposition": "ack"')
    session.shows("began")
    session.process.kill()
    session.process.wait()
    until(session.is_gone, lambda: f"{session.processes()} {list(session.place.iterdir())}")
