# SPDX-License-Identifier: GPL-2.0-or-later
"""A replay in stages meets stops, crashes, reloads, pauses and new messages of a real instance."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from .control import call
from .instance import FM_CONSUMER, publish, queue_table, until
from .reloading import config_of, reload

if TYPE_CHECKING:
    from pathlib import Path

    from .instance import Instance

# Fails until a file marks it as mended; then message 5 waits for a file, and 7 for its server.
HANDLER = """
import pathlib
here = pathlib.Path(__file__).parent
def handler(message):
    n = message.body["n"]
    if not (here / "mended").exists():
        raise KeyError(f"number {n}")
    note("run", message)
    end = time.monotonic() + 60
    while n == 5 and not (here / "released").exists() and time.monotonic() < end:
        time.sleep(0.02)
    if n == 7 and not (here / "server").exists():
        raise ConnectionError("the server is down")
    note("done", message)
"""
RECOVERY = """
[consumer_config.framework.recovery]
immediate = 1
delays = []
[consumer_config.framework.recovery.breaker]
consecutive = 1
probe = ["500ms"]
[[consumer_config.framework.recovery.rules]]
exceptions = ["ConnectionError"]
then = "dependency"
"""
COUNT = 12


class Operator:
    """An operator who replays the messages of an instance in stages."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.directory: Path = instance.configuration.parent
        self.answers: list[dict[str, Any]] = []

    def begins(self, *words: str) -> subprocess.Popen[str]:
        """Begin a replay."""
        command = [str(FM_CONSUMER), "quarantine", "replay", "--json", "--conf"]
        command += [str(self.instance.configuration), "--state-dir", str(self.instance.state)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.directory),
            "NOTES": str(self.directory / "notes"),
            "STATE_DIRECTORY": str(self.instance.state),
            "RUNTIME_DIRECTORY": str(self.directory),
        }
        return subprocess.Popen(
            [*command, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ends(self, replay: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for the end of a replay; return its exit code and its complaints."""
        output, complaint = replay.communicate(timeout=60)
        self.answers += map(json.loads, output.splitlines())
        return replay.returncode, complaint

    def touch(self, *names: str) -> None:
        for name in names:
            (self.directory / name).touch()

    def numbers(self, event: str) -> list[int]:
        return [note["body"]["n"] for note in self.instance.notes(event)]

    def quarantined(self) -> list[int]:
        return [row.id for row in self.instance.store() if row.state == "quarantined"]


@pytest.fixture
def operator(broker, queue_name, start):
    """Start an instance that has quarantined all messages."""
    person = Operator(start(broker.url, queue_table(queue_name), HANDLER, extra=RECOVERY).ready())
    publish(broker.url, queue_name, range(COUNT))
    until(lambda: len(person.quarantined()) == COUNT, lambda: person.instance.log)
    person.touch("mended", "server")
    return person


def begun(operator, *words):
    """Begin a replay in stages, and wait until message 5 is in its handler."""
    replay = operator.begins("--all", "--ramp", "25,100", *words)
    until(lambda: 5 in operator.numbers("run"), lambda: operator.instance.log)
    return replay


@pytest.mark.parametrize(
    ("number", "restarted"),
    [(signal.SIGTERM, False), (signal.SIGKILL, True)],
    ids=["stopped_and_in_place", "killed_and_by_the_instance"],
)
def test_a_replay_goes_on_where_a_stop_or_a_crash_interrupted_it(operator, number, restarted):
    replay = begun(operator)
    operator.instance.send(number)
    if number == signal.SIGTERM:
        until(lambda: "stopping: " in operator.instance.log, lambda: operator.instance.log)
    operator.touch("released")
    operator.instance.wait()
    code, complaint = operator.ends(replay)
    assert code == 1, operator.answers
    if number == signal.SIGKILL:
        assert "go on with fm-consumer quarantine replay" in complaint
    if restarted:
        operator.instance.start().ready()
    assert operator.ends(operator.begins("--resume"))[0] == 0, operator.instance.log
    assert operator.instance.store() == []
    done = operator.numbers("done")
    assert done == list(range(COUNT)), "each message once, for none had ended when it was killed"
    assert operator.answers[-1]["ended"] == "done"
    assert operator.ends(operator.begins("--resume"))[0] == 2, "nothing is left to go on with"


def test_a_reload_and_a_new_connection_leave_out_no_message_of_the_replay(operator, broker):
    replay = begun(operator)
    queues = operator.instance.configuration.read_text().partition("\n[queues")[2]
    extra = f"[qos]\nprefetch_count = 3\n{RECOVERY}"
    config_of(operator.instance, broker.url, f"[queues{queues}", extra)
    operator.touch("released")
    assert reload(operator.instance).returncode == 0
    code, _ = operator.ends(replay)
    if code:
        # A message that waited for its slot was given back.
        assert operator.answers[-1]["ended"] == "interrupted"
        assert operator.ends(operator.begins("--resume"))[0] == 0
    assert operator.numbers("done") == list(range(COUNT))
    assert operator.instance.store() == []


def test_new_messages_are_handled_meanwhile_and_are_not_part_of_the_replay(
    operator, broker, queue_name
):
    replay = begun(operator)
    publish(broker.url, queue_name, [100])
    operator.touch("released")
    assert operator.ends(replay)[0] == 0
    until(lambda: 100 in operator.numbers("done"), lambda: operator.instance.log)
    rows = [answer["row"] for answer in operator.answers if "row" in answer]
    assert len(rows) == COUNT


def test_a_broken_dependency_pauses_the_replay_until_it_works_again(operator, broker, queue_name):
    (operator.directory / "server").unlink()
    replay = begun(operator)
    operator.touch("released")
    until(lambda: "the server is down; next probe" in operator.instance.log, operator.instance.log)
    operator.touch("server")
    publish(broker.url, queue_name, [100])
    assert operator.ends(replay)[0] == 1
    results = [answer["result"] for answer in operator.answers if "row" in answer]
    assert results == ["succeeded"] * 7 + ["defer"] + ["succeeded"] * 4
    assert operator.answers[-1]["ended"] == "done"
    everything = [*range(COUNT), 100]
    until(lambda: sorted(operator.numbers("done")) == everything, lambda: operator.instance.log)


def test_a_replay_goes_on_during_a_pause_that_an_operator_ordered(operator, broker, queue_name):
    replay = begun(operator)
    control = operator.directory / "control"
    assert call(control, "POST", "/v1/pause", {"reason": "a look"})[0] == 200
    publish(broker.url, queue_name, [100])
    operator.touch("released")
    assert operator.ends(replay)[0] == 0
    assert operator.answers[-1]["ended"] == "done"
    assert operator.numbers("done") == list(range(COUNT)), "and no other message"
    assert call(control, "POST", "/v1/resume")[0] == 200
    until(lambda: 100 in operator.numbers("done"), lambda: operator.instance.log)


def test_a_program_replays_in_stages_over_the_socket_and_may_go_away(operator):
    control = operator.directory / "control"
    order = {"where": ["error~number"], "expect": COUNT + 1, "ramp": [25, 100]}
    status, [problem] = call(control, "POST", "/v1/quarantine/replay", order)
    assert status == 409
    assert f"the rows are {COUNT} now, not {COUNT + 1}" in problem["detail"]
    assert call(control, "GET", "/v1/quarantine/replay")[0] == 404
    body = json.dumps(order | {"expect": COUNT}).encode()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as program:
        program.connect(str(control))
        head = f"POST /v1/quarantine/replay HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        program.sendall(head.encode() + b"\r\n\r\n" + body)
        until(lambda: 5 in operator.numbers("run"), lambda: operator.instance.log)
    operator.touch("released")

    def stopped():
        [report] = call(control, "GET", "/v1/quarantine/replay")[1]
        return not report["running"] and report

    report = until(stopped, lambda: operator.instance.log)
    assert (report["rows"], report["ran"], report["succeeded"]) == (COUNT, 6, 6)
    answers = call(control, "POST", "/v1/quarantine/replay", {"resume": True})[1]
    assert answers[0] == {"selected": COUNT - 6}
    assert answers[-2:] == [{"ended": "done", "reason": "", "left": 0}, {"done": True}]
    assert operator.numbers("done") == list(range(COUNT))
