# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer status`, with a program in the place of systemctl."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import pytest

from consumer_framework.cli import main
from consumer_framework.core.loss import Loss
from consumer_framework.operate import status
from consumer_framework.runtime.control import client

from .machine import make_host

if TYPE_CHECKING:
    from .machine import Host


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    return make_host(short_tmp_path, monkeypatch)


def test_workers_are_shown_below_their_name_with_their_sum(host):
    host.configures()
    (host.etc / "sample_2.toml").symlink_to("sample.toml")
    host.has_unit("sample", MainPID="42", StatusText="Consuming")
    since = (time.clock_gettime(time.CLOCK_MONOTONIC) - 60) * 1e6
    host.has_unit("sample_2", MainPID="43", ActiveEnterTimestampMonotonic=str(int(since)))
    host.keeps("sample_2", deferred=1, quarantined=1)
    with host.runs("sample"), host.runs("sample_2", counts={"acked": 8, "running": 0}):
        result = host.does("status")
        document = host.shows("sample")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "sample: 2 of 2 workers active; 15 handled, 1 running, 4 held, 1 deferred, 1 quarantined",
        "  ● sample    active (running), PID 42",
        "              consuming 1 queue, 0/s, 7 handled, up 9 s",
        "              now: 1 running, 2 held",
        "  ● sample_2  active (running) for 1m, PID 43",
        "              consuming 1 queue, 0/s, 7 handled, up 9 s",
        "              now: 2 held, 1 deferred (the next due in 59m), 1 quarantined",
        "              fm-consumer quarantine list sample_2",
    ]
    [group] = document["groups"]
    assert (group["name"], group["workers"], group["active"]) == ("sample", 2, 2)
    assert group["totals"] == {
        "handled": 15,
        "running": 1,
        "held": 4,
        "deferred": 1,
        "quarantined": 1,
    }
    assert [one["report"]["pid"] for one in group["instances"]] == [42, 42]


@pytest.mark.parametrize(
    ("condition", "shown"), [("idle", ", idle"), ("lagging", ", lagging"), ("consuming", "")]
)
def test_the_condition_is_shown_where_an_instance_does_not_just_consume(host, condition, shown):
    host.configures()
    with host.runs("sample", condition=condition):
        by_hand = host.does("status", "sample").stdout.splitlines()[0]
        host.has_unit("sample", MainPID="42")
        service = host.does("status", "sample").stdout.splitlines()[0]
    assert by_hand == f"● sample  runs by hand, PID 42{shown}"
    assert service == f"● sample  active (running), PID 42{shown}"


def test_a_loss_that_is_near_is_shown_with_its_cure(host):
    host.configures()
    host.has_unit("sample")
    loss = Loss("the disk is full", 3600.0, "make room on that disk")
    with host.runs("sample", status="consuming; loss in 60 min: the disk is full", loss=loss):
        assert "          against the loss: make room on that disk" in (
            host.does("status", "sample").stdout.splitlines()
        )
        [group] = host.shows("sample")["groups"]
    [instance] = group["instances"]
    assert instance["report"]["loss"] == asdict(loss)


def test_a_failed_instance_is_shown_with_the_next_step_and_the_exit_code_is_3(host):
    host.configures()
    (host.etc / "sample_2.toml").symlink_to("sample.toml")
    host.has_unit("sample")
    host.has_unit("sample_2", "failed", Result="exit-code", StatusText="no such user")
    result = host.does("status", "sample")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        "sample: 1 of 2 workers active",
        "  ● sample    active (running)",
        "  × sample_2  failed (exit-code)",  # noqa: RUF001 -- as systemctl marks it
        "              no such user",
        "              journalctl -u fm-consumer@sample_2 -n 50",
    ]


def test_a_configuration_that_can_never_work_is_shown_with_its_exit_code_and_reason(host):
    host.configures()
    text = "Not started: sample.toml: callback: there is no callback"
    more = {"Result": "exit-code", "ExecMainStatus": "78", "StatusText": text}
    host.has_unit("sample", "failed", **more)
    lines = host.does("status", "sample").stdout.splitlines()
    assert lines[0].endswith("sample  failed (exit code 78)")
    assert lines[1].strip() == text


def test_restarts_are_counted_and_a_reload_begins_no_new_time(host):
    host.configures()
    ago = time.clock_gettime(time.CLOCK_MONOTONIC)
    times = {
        "ActiveEnterTimestampMonotonic": ago - 3600,
        "StateChangeTimestampMonotonic": ago - 5,
        "InactiveExitTimestampMonotonic": ago - 3700,
    }
    stamps = {key: str(int(value * 1e6)) for key, value in times.items()}
    host.has_unit("sample", MainPID="42", NRestarts="3", **stamps)
    [line, *_] = host.does("status", "sample").stdout.splitlines()
    assert line == "● sample  active (running) for 60m, PID 42, 3 restarts"


def test_an_instance_with_a_blocked_event_loop_runs_and_does_not_answer(host, monkeypatch):
    monkeypatch.setattr(client, "LOOK_TIMEOUT", 0.05)
    state = host.directory / "h/fedora-messaging/by-hand"
    state.mkdir()
    lock = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, state], stdout=subprocess.PIPE, text=True
    )
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(state / "control"))
    listening.listen(0)
    with listening, lock:
        assert lock.stdout is not None
        lock.stdout.readline()
        found = host.does("status", "by-hand")
        # The queue of connections is full by now.
        again = host.does("status", "by-hand")
        lock.terminate()
    for result in (found, again):
        assert result.exit_code == 0, result.output
        assert "● by-hand  runs by hand, and does not answer" in result.stdout
        assert "its event loop is blocked; see its log" in result.stdout
    (state / "control").unlink()
    assert host.does("status", "by-hand").exit_code == 4


HOLDS_THE_LOCK = """
import sys, time, pathlib
from consumer_framework.adapters.store import Store, Limits
store = Store.open(pathlib.Path(sys.argv[1]), limits=Limits())
print(flush=True)
time.sleep(60)
"""


def test_one_that_does_not_answer_is_known_by_its_store(host):
    host.configures()
    host.has_unit("sample", "activating", SubState="auto-restart")
    host.keeps("sample", deferred=1)
    result = host.does("status", "sample")
    assert "↻ sample  activating (auto-restart)" in result.stdout
    assert "now: 1 deferred (the next due in 59m)" in result.stdout
    [instance] = host.shows()["groups"][0]["instances"]
    assert (instance["report"], instance["deferred"]) == (None, 1)


def test_an_overdue_message_is_shown_as_due_now(host, monkeypatch):
    host.configures()
    host.keeps("sample", deferred=1)
    later = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: later)
    assert "now: 1 deferred (due now)" in host.does("status").stdout


def test_without_a_name_an_instance_that_is_not_enabled_does_not_count(host):
    host.configures()
    host.configures("fedora")
    host.has_unit("sample")
    assert "○ fedora  inactive (dead), disabled" in host.does("status").stdout
    assert host.does("status").exit_code == 0
    assert host.does("status", "fedora").exit_code == 3
    assert host.does("status", "fedora", "sample").exit_code == 3
    host.has_unit("fedora", "inactive", SubState="dead")
    assert host.does("status").exit_code == 3, "it is enabled"


def test_a_name_shows_its_workers_and_a_worker_itself_alone(host):
    host.configures()
    host.configures("other")
    (host.etc / "sample_2.toml").symlink_to("sample.toml")
    host.has_unit("sample")
    host.has_unit("sample_2")
    host.has_unit("gone_2")

    def names(*given: str) -> list[list[str]]:
        groups = host.shows(*given)["groups"]
        return [[one["name"] for one in group["instances"]] for group in groups]

    assert names() == [["gone_2"], ["other"], ["sample", "sample_2"]]
    assert names("sample") == [["sample", "sample_2"]]
    assert names("sample_2", "other") == [["other"], ["sample_2"]]
    assert "without a configuration file" in host.does("status", "gone_2").stdout


def test_an_unknown_name_is_an_error_that_lists_the_known_names(host):
    host.configures()
    result = host.does("status", "sampel")
    assert result.exit_code == 4
    assert "there is no instance 'sampel'; the instances here are sample" in result.stderr
    assert host.does("status", "no.name").exit_code == 78
    (host.etc / "sample.toml").unlink()
    assert "'fm-consumer run --help' tells more" in host.does("status", "sample").stderr
    empty = host.does("status")
    assert empty.exit_code == 0
    assert "no instance is configured in" in empty.stdout


def test_one_that_was_started_by_hand_is_found_in_its_state_directory(host, monkeypatch):
    home = "h/fedora-messaging"
    with host.runs("by-hand", home):
        assert host.does("status").stdout.startswith("● by-hand  runs by hand, PID 42\n")
        assert host.does("status", "by-hand").exit_code == 0
        monkeypatch.setenv("PATH", "/nonexistent")
        result = host.does("status")
        assert result.exit_code == 0
        assert "systemd was not asked: there is no systemctl in $PATH" in result.stdout
        assert host.shows()["systemd"] is False
    assert host.does("status", "by-hand").exit_code == 4


def test_only_the_named_state_directory_is_read(host):
    with host.runs("mine", "elsewhere"):
        state = str(host.directory / "elsewhere/mine")
        result = host.does("status", "mine", "--state-dir", state)
    assert result.exit_code == 0, result.output
    assert "runs by hand, PID 42" in result.stdout
    assert host.does("status", "--state-dir", state).exit_code == 2


def test_an_instance_that_this_user_may_not_ask_is_shown_with_the_reason(host, monkeypatch):
    def refuse(*_: Any) -> None:
        raise client.ControlError("control: permission denied; use sudo")

    host.configures()
    host.has_unit("sample", StatusText="Consuming")
    monkeypatch.setattr(status, "connected", refuse)
    result = host.does("status")
    assert result.exit_code == 0
    assert "control: permission denied; use sudo" in result.stdout
    (host.directory / "lib/sample").mkdir()
    (host.directory / "lib/sample/store.sqlite3").write_text("no database" * 100)
    [instance] = host.shows()["groups"][0]["instances"]
    assert instance["problem"] == "control: permission denied; use sudo"
    assert instance["deferred"] is None


def test_an_instance_of_an_older_version_is_shown_without_its_counts(host, monkeypatch):
    host.configures()
    host.has_unit("sample")

    def unknown(*_: Any) -> None:
        raise client.ControlError("control: the instance says: no such request: 'status'")

    monkeypatch.setattr(status, "_report", unknown)
    assert "no such request: 'status'" in host.does("status").stdout


@pytest.mark.parametrize("command", ["scale", "status"])
def test_names_complete_like_those_of_the_other_commands(host, command):
    host.configures()
    found = main.get_command(click.Context(main), command)
    assert found is not None
    argument = found.params[0]
    context = click.Context(found)
    assert [item.value for item in argument.shell_complete(context, "sa")] == ["sample"]


def test_messages_of_a_removed_instance_are_shown_and_can_be_replayed(host):
    file = host.configures("builds")
    host.keeps("removed", quarantined=1)
    host.keeps("empty")
    shown = host.does("status").stdout
    assert "removed" in shown
    assert "does not run, without a configuration file" in shown
    assert "1 quarantined" in shown
    assert "empty" not in shown
    place = ("--conf", str(file), "--state-dir", str(host.directory / "lib/removed"))
    result = host.does("quarantine", "list", *place)
    assert "poison" in result.stdout, result.output
