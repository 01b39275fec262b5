# SPDX-License-Identifier: GPL-2.0-or-later
"""An operator repairs the poison messages of a real broker."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from fedora_messaging import message as upstream

from .instance import FM_CONSUMER, Instance, publish, queue_table, until

if TYPE_CHECKING:
    from pathlib import Path

# Fails on messages with an odd number, until a file marks it as mended.
HANDLER = """
import pathlib
def handler(message):
    note("run", message)
    if not message.body["n"] % 2:
        note("done", message)
        return
    if not (pathlib.Path(__file__).parent / "mended").exists():
        raise KeyError(f"odd {message.body['n']}")
    end = time.monotonic() + 60
    while message.body.get("slow") and time.monotonic() < end:
        if (pathlib.Path(__file__).parent / "released").exists():
            break
        time.sleep(0.05)
    note("done", message)
"""

RECOVERY = "[consumer_config.framework.recovery]\nimmediate = 1\ndelays = []\n"


class Operator:
    """An operator at the keyboard, and the operator's instance."""

    def __init__(self, start: Any, url: str, queue: str, state: Path) -> None:
        self.state = state
        options = ["--state-dir", str(state)]
        # Started by hand, so that the control socket is in the state directory.
        by_hand = {"STATE_DIRECTORY": "", "RUNTIME_DIRECTORY": ""}
        self.instance: Instance = start(
            url, queue_table(queue), HANDLER, options=options, extra=RECOVERY, environment=by_hand
        )
        self.directory = self.instance.configuration.parent

    def does(self, verb: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(FM_CONSUMER), "quarantine", verb]
        command += ["--conf", str(self.instance.configuration), "--state-dir", str(self.state)]
        return subprocess.run(
            [*command, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={
                **os.environ,
                "PYTHONPATH": str(self.directory),
                "NOTES": str(self.directory / "notes"),
                **environment,
            },
        )

    def rows(self, *words: str) -> list[dict[str, Any]]:
        result = self.does("list", "--rows", "--json", *words)
        assert result.returncode == 0, result.stderr
        rows: list[dict[str, Any]] = json.loads(result.stdout)
        return rows

    def waits_for(self, count: int) -> list[int]:
        """Wait until *count* messages are quarantined, and return their rows."""

        def quarantined() -> list[int]:
            return [row.id for row in self.instance.store() if row.state == "quarantined"]

        until(lambda: len(quarantined()) == count, f"{count} quarantined\n{self.instance.log}")
        return quarantined()

    def mends(self) -> None:
        (self.directory / "mended").touch()

    def done(self) -> list[int]:
        return [note["body"]["n"] for note in self.instance.notes("done")]


@pytest.fixture
def operator(broker, queue_name, start, tmp_path):
    """Start an instance that has quarantined messages 1, 3 and 5, and handled 0, 2 and 4."""
    person = Operator(start, broker.url, queue_name, tmp_path / "instance_0" / "state")
    person.instance.ready()
    publish(broker.url, queue_name, range(6))
    person.waits_for(3)
    return person


def test_list_and_show_read_what_a_running_instance_quarantines(operator, queue_name):
    assert operator.done() == [0, 2, 4]
    lines = operator.does("list").stdout.splitlines()
    assert lines[1].split()[0] == "3"
    assert lines[2].strip().startswith("KeyError in instance_0/")
    row = operator.rows("--topic", queue_name)[0]
    assert (row["queue"], row["attempts"], row["error"]) == (queue_name, 2, "KeyError")
    shown = operator.does("show", str(row["id"])).stdout
    assert '"n": 1' in shown
    assert "Attempt 2 of 2" in shown
    assert "KeyError: 'odd 1'" in shown
    stats = json.loads(operator.does("stats", "--json").stdout)
    assert stats["quarantined"] == 3
    assert list(stats["fingerprints"].values()) == [3]


def test_a_service_is_found_by_the_directories_that_systemd_names(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), HANDLER, extra=RECOVERY).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: [row.state for row in instance.store()] == ["quarantined"], instance.log)
    (instance.configuration.parent / "mended").touch()
    runtime = instance.configuration.parent
    assert (runtime / "control").exists()
    environment = {
        **os.environ,
        "STATE_DIRECTORY": str(instance.state),
        "RUNTIME_DIRECTORY": str(runtime),
    }
    command = [str(FM_CONSUMER), "quarantine", "replay", "--all", "--conf"]
    command.append(str(instance.configuration))
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert len(instance.noted("done", 1)) == 1


def test_the_control_socket_is_for_its_user_alone(operator):
    control = (operator.state / "control").stat().st_mode
    assert stat.S_ISSOCK(control)
    assert stat.S_IMODE(control) == 0o600


def test_a_canary_then_all_are_replayed_by_the_running_instance(operator, broker, queue_name):
    rows = operator.waits_for(3)
    canary = operator.does("replay", "--first", "1")
    assert canary.returncode == 1
    assert f"row {rows[0]} failed again: KeyError: 'odd 1'" in canary.stdout
    assert operator.waits_for(3) == rows
    operator.mends()
    assert operator.does("replay", "--first", "1").returncode == 0
    assert operator.waits_for(2) == rows[1:]
    result = operator.does("replay", "--all", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"row": rows[1], "result": "succeeded", "reason": ""},
        {"row": rows[2], "result": "succeeded", "reason": ""},
        {"done": True, "rows": 2, "results": {"succeeded": 2}},
    ]
    assert result.returncode == 0
    assert operator.does("list").stdout == "nothing is quarantined\n"
    assert operator.done() == [0, 2, 4, 1, 3, 5]
    # The replay runs in the instance's slot, not in the process of the command.
    assert {note["thread"] for note in operator.instance.notes("done")} == {"slot-0"}
    publish(broker.url, queue_name, [8])
    operator.instance.noted("done", 7)
    assert operator.instance.stop() == 0


def test_an_edited_message_is_replayed_by_the_running_instance(operator):
    [row, *rest] = operator.waits_for(3)
    result = operator.does("replay", str(row), "--edit", VISUAL="sed -i 's/1/10/'")
    assert result.returncode == 0, result.stderr
    assert "succeeded" in result.stdout
    assert operator.done() == [0, 2, 4, 10]
    assert [r["id"] for r in operator.rows("--state", "any")] == rest


def test_a_stopped_instance_is_replayed_in_place(operator):
    rows = operator.waits_for(3)
    assert operator.instance.stop() == 0
    again = operator.does("replay", str(rows[0]))
    assert (again.returncode, again.stderr) == (1, "")
    operator.mends()
    result = operator.does("replay", "--all")
    assert (result.returncode, result.stderr) == (0, "")
    assert operator.done() == [0, 2, 4, 1, 3, 5]
    assert operator.rows("--state", "any") == []


def test_a_killed_instance_leaves_a_socket_behind_that_means_it_is_stopped(operator):
    operator.mends()
    operator.instance.stop(signal.SIGKILL)
    assert (operator.state / "control").exists()
    assert operator.does("replay", "--all").returncode == 0
    assert operator.rows("--state", "any") == []


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_dropped_messages_are_gone_whether_it_runs_or_not(operator, stopped):
    rows = operator.waits_for(3)
    if stopped:
        assert operator.instance.stop() == 0
    result = operator.does("drop", str(rows[1]), "--yes", "--json")
    assert json.loads(result.stdout) == {"dropped": [rows[1]], "kept": []}
    assert operator.waits_for(2) == [rows[0], rows[2]]
    assert operator.does("drop", "--fingerprint", "KeyError", "--yes").returncode == 0
    assert operator.rows("--state", "any") == []


def test_an_exported_message_that_is_published_again_is_handled(operator, broker, queue_name):
    exported = operator.directory / "quarantined.jsonl"
    assert operator.does("export", "--output", str(exported)).returncode == 0
    assert operator.does("drop", "--all", "--yes").returncode == 0
    operator.mends()
    messages = list(upstream.loads(exported.read_text()))
    assert [message.topic for message in messages] == [queue_name] * 3
    for message in messages:
        headers = message._properties.headers
        publish(
            broker.url, queue_name, [message._encoded_body], message_id=message.id, headers=headers
        )
    operator.instance.noted("done", 6)
    assert operator.done() == [0, 2, 4, 1, 3, 5]


def test_an_instance_that_stops_during_a_replay_keeps_the_message(broker, operator, queue_name):
    publish(broker.url, queue_name, [b'{"n": 7, "slow": true}'], message_id="slow")
    *_, row = operator.waits_for(4)
    operator.mends()
    command = [str(FM_CONSUMER), "quarantine", "replay", "--conf"]
    command += [str(operator.instance.configuration), "--state-dir", str(operator.state), str(row)]
    runs = len(operator.instance.notes("run"))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as replay:
        operator.instance.noted("run", runs + 1)
        operator.instance.stop(signal.SIGKILL)
        _, complaint = replay.communicate(timeout=20)
    assert replay.returncode == 1
    assert "the instance stopped before it was done" in complaint
    assert complaint.count("\n") == 1
    [other, *_] = operator.waits_for(3)
    assert operator.does("replay", str(other)).returncode == 0
    assert row in operator.waits_for(3)


def test_a_replay_survives_its_command_and_no_other_one_runs_beside_it(
    broker, operator, queue_name
):
    publish(broker.url, queue_name, [b'{"n": 7, "slow": true}'], message_id="slow")
    *_, row = operator.waits_for(4)
    operator.mends()
    command = [str(FM_CONSUMER), "quarantine", "replay", "--conf"]
    command += [str(operator.instance.configuration), "--state-dir", str(operator.state), str(row)]
    runs = len(operator.instance.notes("run"))
    # A background job of a shell inherits an ignored SIGINT.
    command = ["env", "--default-signal=INT", *command]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as replay:
        operator.instance.noted("run", runs + 1)
        # Its command hears of the run a moment after the handler began.
        time.sleep(2)
        replay.send_signal(signal.SIGINT)
        _, complaint = replay.communicate(timeout=20)
    assert replay.returncode == 130
    assert f"interrupted: row {row} goes on in the instance" in complaint
    assert "is in a replay" in operator.does("drop", str(row), "--yes").stderr
    second = [*command[:-1], "--all"]
    with subprocess.Popen(second, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as two:
        assert two.stderr is not None
        assert "waiting for the replay that is under way" in (
            two.stderr.readline() + two.stderr.readline()
        )
        assert len(operator.instance.notes("run")) == runs + 1
        (operator.directory / "released").touch()
        two.communicate(timeout=20)
    assert operator.done() == [0, 2, 4, 7, 1, 3, 5]
    assert operator.instance.store() == []
    assert operator.instance.stop() == 0


BY_HAND = {"STATE_DIRECTORY": "", "RUNTIME_DIRECTORY": ""}
DEFERRING = """
import pathlib
from consumer_framework import Defer
seen = set()
def handler(message):
    note("run", message)
    if message.id not in seen:
        seen.add(message.id)
        raise Defer(1)
    while not (pathlib.Path(__file__).parent / "released").exists():
        time.sleep(0.05)
    raise ValueError("poison")
"""


def test_a_deferred_message_that_is_dropped_while_it_runs_does_not_come_back(
    broker, queue_name, start, tmp_path
):
    """A dropped message that waits for the slot does not run either."""
    state = tmp_path / "instance_0" / "state"
    instance = start(
        broker.url, queue_table(queue_name), DEFERRING, options=["--state-dir", str(state)],
        extra=f"{RECOVERY}hold_slots = 0\n", environment=BY_HAND,
    ).ready()  # fmt: skip
    publish(broker.url, queue_name, range(2))
    instance.noted("run", 3)
    rows = [str(row.id) for row in instance.store()]
    assert len(rows) == 2
    command = [str(FM_CONSUMER), "quarantine", "drop", "--conf", str(instance.configuration)]
    command += ["--state-dir", str(state), "--yes", *rows]
    assert subprocess.run(command, check=False).returncode == 0
    publish(broker.url, queue_name, [2])
    (instance.configuration.parent / "released").touch()
    instance.noted("run", 4)
    assert instance.stop() == 0
    assert [note["body"]["n"] for note in instance.notes("run")][:4] in ([0, 1, 0, 2], [0, 1, 1, 2])
    assert [row.message_id for row in instance.store()] == ["2"]
