# SPDX-License-Identifier: GPL-2.0-or-later
"""The control API of a running instance, with our commands and with other programs."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .control import call
from .instance import FM_CONSUMER, publish, queue_table, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .instance import Instance

DOCS = Path(__file__).parents[2] / "docs"

# Waits for a file of its message's number, or fails.
HANDLER = """
import logging, pathlib
from consumer_framework import Defer
log = logging.getLogger("authors")
def handler(message):
    note("run", message)
    number = message.body["n"]
    log.debug("details of %s", number)
    if number < 0:
        raise KeyError("negative")
    if number == 7 and not seen(number):
        raise Defer(time.time() + 2)
    end = time.monotonic() + 60
    while number >= 100 and time.monotonic() < end and not released(number).exists():
        time.sleep(0.02)
    note("done", message)
def released(number):
    return pathlib.Path(__file__).parent / f"released-{number}"
def seen(number):
    path = pathlib.Path(__file__).parent / f"seen-{number}"
    try:
        return path.exists()
    finally:
        path.touch()
"""
RECOVERY = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n"


class Host:
    """An instance, and an operator who looks at it."""

    def __init__(self, instance: Instance, url: str, queue: str) -> None:
        self.instance = instance
        self.url, self.queue = url, queue
        self.directory = instance.configuration.parent
        self.socket = self.directory / "control"

    def asks(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        status, (answer,) = call(self.socket, method, target, body)
        return status, answer

    def does(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(command, *words),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=self.environment,
        )

    def command(self, command: str, *words: str) -> list[str]:
        at = ["--conf", str(self.instance.configuration), "--state-dir", str(self.instance.state)]
        return [str(FM_CONSUMER), command, *at, *words]

    @property
    def environment(self) -> dict[str, str]:
        found = {
            "STATE_DIRECTORY": str(self.instance.state),
            "RUNTIME_DIRECTORY": str(self.directory),
        }
        return {**os.environ, **found}

    def publishes(self, *numbers: int) -> None:
        publish(self.url, self.queue, numbers)

    def releases(self, number: int) -> None:
        (self.directory / f"released-{number}").touch()

    def done(self) -> list[int]:
        return [note["body"]["n"] for note in self.instance.notes("done")]

    def in_flight(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.asks("GET", "/v1/in-flight")[1]["messages"]
        return found


@pytest.fixture
def host(broker, queue_name, start) -> Iterator[Host]:
    instance = start(broker.url, queue_table(queue_name), HANDLER, extra=RECOVERY).ready()
    yield Host(instance, broker.url, queue_name)
    for number in range(100, 110):
        (instance.configuration.parent / f"released-{number}").touch()
    assert instance.stop() == 0


def test_an_instance_is_looked_at_while_its_handler_has_a_message(host):
    status, pong = host.asks("GET", "/v1")
    assert (status, pong["version"], pong["instance"]) == (200, 1, "instance")
    assert pong["pid"] == host.instance.process_id
    assert host.in_flight() == []
    assert host.does("in-flight").stdout == "the handler has no message\n"
    host.publishes(100)
    host.instance.noted("run", 1)
    (message,) = host.in_flight()
    assert (message["message_id"], message["queue"]) == ("100", host.queue)
    assert (message["attempt"], message["slot"], message["row"]) == (1, "slot-0", 0)
    assert re.match(r"(handler|released) \(.*handlers_\w+\.py, line \d+\)$", message["place"])
    shown = host.does("in-flight")
    assert shown.returncode == 0, shown.stderr
    assert "slot-0" in shown.stdout
    assert "1 message\n" in shown.stdout
    assert json.loads(host.does("in-flight", "--json").stdout)["messages"][0]["age"] > 0
    stacks = host.asks("GET", "/v1/stacks")[1]
    (slot,) = [stack for stack in stacks["threads"] if stack["name"] == "slot-0"]
    assert "handler" in [frame["function"] for frame in slot["frames"]]
    assert any("_Exchange._serve" in task["name"] for task in stacks["tasks"])
    text = host.does("stacks").stdout
    assert "Thread slot-0\n" in text
    assert re.search(r"^  handler  .*handlers_\w+\.py:\d+$", text, re.MULTILINE)
    host.releases(100)
    until(lambda: host.in_flight() == [], "the handler is done")


def test_a_pause_lets_messages_wait_in_the_queue_until_it_is_over(host, broker):
    host.publishes(100)
    host.instance.noted("run", 1)
    paused = host.does("pause", "--reason", "the database \x1b[31mmoves")
    assert paused.returncode == 0, paused.stderr
    assert re.search(r"paused: ordered by \w+ \(the database", paused.stdout)
    assert "; 1 message to finish" in paused.stdout
    assert "\x1b" not in paused.stdout
    host.publishes(1, 2)
    host.releases(100)
    until(lambda: host.done() == [100], "the handler finishes the message that it had")
    status = host.asks("GET", "/v1/status")[1]
    assert status["state"] == "paused"
    assert status["status"].startswith("Paused: ordered by ")
    until(lambda: broker.depth(host.queue)[0] == 2, "both wait in the queue")
    # A reload is no end of the pause.
    assert host.does("reload").returncode == 0
    assert host.asks("GET", "/v1/status")[1]["state"] == "paused"
    assert host.asks("POST", "/v1/pause", {"reason": "still"})[1]["is_paused"] is True
    resumed = host.does("resume", "--json")
    (answer,) = json.loads(resumed.stdout)["instances"]
    assert (answer["is_paused"], answer["reasons"]) == (False, [])
    until(lambda: host.done() == [100, 1, 2], lambda: f"in their order\n{host.instance.log}")
    assert host.does("resume").stdout == "instance: takes messages\n"
    assert re.search(r"paused: ordered by \w+ \(the database", host.instance.log)
    assert "resumed by an operator" in host.instance.log


def test_a_replay_runs_during_a_pause_and_a_retry_does_not(host):
    host.publishes(-1, 7)
    until(lambda: len(host.instance.store()) == 1, "one is quarantined")
    held = host.instance.noted("run", 2)[1]
    host.asks("POST", "/v1/pause")
    (row,) = [row.id for row in host.instance.store() if row.state == "quarantined"]
    answers = call(host.socket, "POST", "/v1/quarantine/replay", {"rows": [row]})[1]
    assert answers[1]["result"] == "failed"
    until(lambda: time.monotonic() > held["at"] + 2.5, "the held message is due")
    assert len(host.instance.notes("run")) == 3
    host.asks("POST", "/v1/resume")
    until(lambda: host.done() == [7], lambda: host.instance.log)


def test_events_are_told_as_they_happen(host):
    command = host.command("events", "--json", "--kind", "settled", "--kind", "paused")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=host.environment
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"watching": "instance"}
        host.publishes(1, -1)
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert (first["event"], first["result"], first["message_id"]) == ("settled", "ack", "1")
        assert (second["result"], second["topic"]) == ("quarantine", host.queue)
        assert "KeyError" in second["reason"]
        host.asks("POST", "/v1/pause", {"reason": "why"})
        paused = json.loads(process.stdout.readline())
        assert paused["result"] == "paused"
        # It names no login: the call had none.
        assert re.fullmatch(r"ordered by user \d+ \(why\)", paused["reason"])
        process.terminate()
        process.wait(60)
    host.asks("POST", "/v1/resume")


def test_the_log_level_changes_and_comes_back(host):
    host.publishes(1)
    until(lambda: host.done() == [1], "the first is done")
    changed = host.does("log-level", "debug", "--for", "1s")
    assert changed.returncode == 0, changed.stderr
    assert "everything is logged from DEBUG up until" in changed.stdout
    host.publishes(2)
    until(lambda: "details of 2" in host.instance.log, lambda: host.instance.log)
    assert "details of 1" not in host.instance.log
    # An order for one logger does not touch the others, and the last one is in force.
    host.asks("POST", "/v1/log-level", {"level": "ERROR", "logger": "authors", "seconds": 50})
    status, problem = host.asks("POST", "/v1/log-level", {"level": "LOUD"})
    assert status == 400
    assert "level: Input should be 'DEBUG'" in problem["detail"]


def test_the_quarantine_is_listed_in_portions(host):
    host.publishes(-1, -2, -3)
    until(lambda: len(host.instance.store()) == 3, "three are quarantined")
    page = host.asks("GET", "/v1/quarantine?limit=2")[1]
    assert len(page["rows"]) == 2
    rest = host.asks("GET", f"/v1/quarantine?limit=2&after={page['next']}")[1]
    assert (len(rest["rows"]), rest["next"]) == (1, None)
    (cause,) = host.asks("GET", "/v1/quarantine/causes")[1]["causes"]
    assert cause["count"] == 3
    row = page["rows"][0]["id"]
    shown = host.asks("GET", f"/v1/quarantine/{row}")[1]
    assert shown["message"]["body"] == {"n": -1}
    assert "KeyError" in shown["failures"][0]["traceback"]
    status, problem = host.asks("GET", "/v1/quarantine/999999")
    assert (status, problem["detail"]) == (404, "row 999999 is not, or no longer, there")
    assert host.asks("GET", "/v1/quarantine/x")[0] == 400


def test_the_settings_in_force_are_shown_also_where_the_file_has_changed(host):
    file = host.instance.configuration
    file.write_text(file.read_text().replace("[consumer_config.framework", "[consumer_config.new"))
    document = json.loads(host.does("settings", "--json").stdout)
    assert document["in_force"] is True
    assert document["settings"] == host.asks("GET", "/v1/settings")[1]["settings"]
    shown = {one["path"]: one for one in document["settings"]}
    assert json.loads(shown["consumer_config.framework.recovery"]["value"])["immediate"] == 0
    assert "consumer_config.new" not in shown
    assert "guest:guest" not in shown["amqp_url"]["value"]


def test_an_instance_that_does_not_run_is_named(host):
    for command in ("in-flight", "stacks", "events", "pause", "resume"):
        done = subprocess.run(
            [str(FM_CONSUMER), command, "--conf", str(host.instance.configuration)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "STATE_DIRECTORY": str(host.directory / "empty")},
        )
        assert (done.returncode, done.stderr) == (1, "fm-consumer: instance does not run\n")


def test_an_instance_that_connects_cannot_be_paused(queue_name, start):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://127.0.0.1:{silent.getsockname()[1]}"
        instance = start(url, queue_table(queue_name), HANDLER)
        path = instance.configuration.parent / "control"
        until(path.exists, lambda: instance.log)
        status, (problem,) = call(path, "POST", "/v1/pause")
        assert status == 409
        assert problem["detail"].startswith("it is starting, and cannot be paused")
        assert instance.stop() == 0


def test_the_examples_of_the_reference_work_with_curl(host):
    if not (curl := shutil.which("curl")):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("curl is not installed")
    host.publishes(-1)
    until(lambda: len(host.instance.store()) == 1, "one is quarantined")
    (row,) = [row.id for row in host.instance.store()]
    page = (DOCS / "reference/control-api.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    examples = [line for block in blocks for line in block.splitlines() if line.startswith("curl ")]
    assert len(examples) >= 8
    for example in examples:
        words = shlex.split(example.replace("$USER", "hazel").replace("41", str(row)))
        path = words.index("--unix-socket") + 1
        assert words[path] == "/run/fedora-messaging/sample/control"
        words[path] = str(host.socket)
        is_endless = words[-1].endswith("/events")
        more = ["--fail-with-body", "--silent", "--show-error", "--write-out", "%{http_code}"]
        more += ["--max-time", "1"] if is_endless else ["--max-time", "30"]
        done = subprocess.run(
            [curl, *words[1:], *more], capture_output=True, text=True, check=False, timeout=60
        )
        # 28: the time that --max-time allows is over.
        assert done.returncode == (28 if is_endless else 0), f"{example}\n{done.stdout}"
        assert done.stdout.endswith("200"), f"{example}\n{done.stdout}"
    assert "hazel (uid " in host.instance.log


def garbage(chance: random.Random) -> bytes:
    """Return a call that no instance can carry out."""
    path = chance.choice(["/v1/quarantine/drop", "/v1/pause", "/v1/status", "/v1/../etc", "*"])
    body = chance.choice([b"{", b'{"rows": [{}], "reason": 7}', b"\xff", b"[" * 2000])
    head = chance.choice(["POST {} HTTP/1.1", "PUT {} HTTP/1.1", "POST {} HTTP/1.0", "{}"])
    length = chance.choice(["Content-Length: {}", "Content-Length: {}0", "Content-Length: -{}"])
    lines = [head.format(path), "Host: x", length.format(len(body))]
    whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    return chance.choice([whole, whole * 3, chance.randbytes(200), whole[: len(whole) // 2]])


def connects(client: socket.socket, path: Path) -> bool:
    """Connect; return False while the queue of the socket is full."""
    with suppress(BlockingIOError):
        client.connect(str(path))
        return True
    return False


def test_an_instance_consumes_while_its_socket_gets_garbage(host):
    chance = random.Random(7)  # noqa: S311 -- it chooses garbage
    host.publishes(-1)
    until(lambda: len(host.instance.store()) == 1, "one is quarantined")
    with ExitStack() as stack:
        for _ in range(20):
            # These send a byte, and then no more.
            slow = stack.enter_context(socket.socket(socket.AF_UNIX))
            slow.connect(str(host.socket))
            slow.sendall(b"G")
        host.publishes(*range(50))
        for number in range(1000):
            with socket.socket(socket.AF_UNIX) as client, suppress(BrokenPipeError):
                client.settimeout(20)
                until(partial(connects, client, host.socket), "the instance takes clients")
                client.sendall(garbage(chance))
                if number % 100 == 0:
                    host.publishes(50 + number // 100)
                    client.sendall(b"x" * (2 << 20))
        until(lambda: len(host.done()) == 60, lambda: host.instance.log)
        assert host.asks("GET", "/v1")[0] == 200
    assert [row.state for row in host.instance.store()] == ["quarantined"]
    assert host.asks("GET", "/v1/status")[1]["state"] == "consuming"
    assert "a request on the control socket failed" not in host.instance.log
    assert host.instance.log.count("Traceback") == 1, "that of the quarantined message"
