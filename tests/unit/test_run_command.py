# SPDX-License-Identifier: GPL-2.0-or-later
"""`RunCommand` runs a command for each message, and its exit code decides."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path

import pytest
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.message import Message

from consumer_framework.adapters.executor import Executor
from consumer_framework.author.consumer import Consumer, handler_of
from consumer_framework.core.disposition import Ack, Hold, Quarantine, Reject
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.testing import Harness
from consumer_framework.testing.fakes import FakeFlightRecorder

CONSUMER = "consumer_framework.kit.command:RunCommand"
ONE_ATTEMPT = {"recovery": {"immediate": 0, "delays": []}}


def harness(*, settings=None, **config):
    return Harness(CONSUMER, config=config, settings=settings or ONE_ATTEMPT)


def message(**body):
    return Message(topic="org.example.build", body=body)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def soon(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def open_files() -> set[str]:
    return {file.name for file in Path("/proc/self/fd").iterdir()}


def test_the_command_gets_the_message_as_a_line_of_json(tmp_path):
    out = tmp_path / "out"
    sent = message(package="bash", name="ü")
    with harness(shell=f"cat > {out}") as run:
        assert isinstance(run.deliver(sent), Ack)
    [line] = out.read_text().splitlines()
    found = json.loads(line)
    assert found["topic"] == "org.example.build"
    assert found["id"] == sent.id
    assert found["body"] == {"package": "bash", "name": "ü"}
    assert found["headers"]["fedora_messaging_schema"] == "base.message"


@pytest.mark.parametrize(("stdin", "expected"), [("body", '{"n": 1}\n'), ("none", "")])
def test_the_standard_input_may_be_the_body_alone_or_nothing(tmp_path, stdin, expected):
    out = tmp_path / "out"
    with harness(shell=f"cat > {out}", stdin=stdin) as run:
        run.deliver(message(n=1))
    assert out.read_text() == expected


def test_the_environment_has_the_message_and_nothing_of_the_instance(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/secret")
    monkeypatch.setenv("PASSED", "yes")
    sent = message()
    command = ["/bin/sh", "-c", f"env > {tmp_path}/out"]
    with harness(command=command, environment={"OWN": "1"}, pass_environment=["PASSED"]) as run:
        run.deliver(sent)
    lines = (tmp_path / "out").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert found["FM_ID"] == sent.id
    assert found["FM_TOPIC"] == "org.example.build"
    assert found["FM_SCHEMA"] == "base.message"
    assert found["FM_SEVERITY"] == "20"
    assert found["FM_ATTEMPT"] == "1"
    assert found["OWN"] == "1"
    assert found["PASSED"] == "yes"
    ours = {name for name in found if name.startswith("FM_")}
    # The shell adds the last two.
    assert set(found) - ours <= {"PATH", "LANG", "OWN", "PASSED", "PWD", "SHLVL", "_"}


def test_no_text_of_a_publisher_is_run_by_the_shell(tmp_path):
    sent = Message(topic=f"a.$(touch {tmp_path}/run)`touch {tmp_path}/run`;touch {tmp_path}/run")
    with harness(shell=f'printf %s "$FM_TOPIC" > {tmp_path}/out') as run:
        run.deliver(sent)
    assert (tmp_path / "out").read_text() == sent.topic
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, Ack), (75, Hold), (1, Quarantine), (10, Reject), (11, Quarantine), (12, Ack), (13, Ack)],
)
def test_the_exit_code_decides(code, kind):
    settings = {"recovery": {"immediate": 1, "delays": ["10s"]}} if code == 75 else ONE_ATTEMPT
    codes = {
        "success_exit_codes": [0, 12],
        "drop_exit_codes": [10],
        "quarantine_exit_codes": [11],
        "skip_exit_codes": [13],
    }
    with harness(settings=settings, shell=f"exit {code}", **codes) as run:
        sent = message()
        run.deliver(sent)
        assert isinstance(run._queue.latest(sent).disposition, kind)


def test_an_exit_code_may_pause_the_instance_or_halt_it():
    codes = {"dependency_exit_codes": [2], "halt_exit_codes": [3]}
    with harness(shell="echo no database >&2; exit 2", **codes) as run:
        sent = message()
        run.deliver(sent)
        assert run.held == [sent]
        assert "no database" in str(run._queue.latest(sent).disposition)
    with harness(shell="exit 3", **codes) as run:
        run.deliver(message())
        assert run.halted is not None
        assert run.halted.exit_code == 1
        assert len(run.queued) == 1


def test_a_failure_has_the_end_of_the_standard_error():
    with harness(shell="echo first >&2; echo 'cannot find x' >&2; exit 4") as run:
        sent = message()
        run.deliver(sent)
        [attempt] = run.attempts(sent)
    assert "exit code 4" in str(attempt)
    assert "cannot find x" in str(attempt)


def test_a_command_that_a_signal_ends_has_failed():
    with harness(shell="kill -SEGV $$") as run:
        sent = message()
        run.deliver(sent)
        assert "SIGSEGV" in str(run.attempts(sent))


def test_the_time_limit_ends_the_command_and_all_its_processes(tmp_path):
    shell = f"sleep 600 & echo $! > {tmp_path}/child; sleep 600"
    with harness(shell=shell, timeout="300ms") as run:
        sent = message()
        run.deliver(sent)
        assert "took longer than" in str(run.attempts(sent))
    child = int((tmp_path / "child").read_text())
    assert soon(lambda: is_gone(child))


def test_a_command_that_ignores_sigterm_is_killed():
    with harness(shell="trap '' TERM; sleep 600", timeout="200ms", kill_after="200ms") as run:
        sent = message()
        run.deliver(sent)
        assert "took longer than" in str(run.attempts(sent))


def test_processes_that_the_command_leaves_behind_are_ended(tmp_path):
    with harness(shell=f"sleep 600 & echo $! > {tmp_path}/child") as run:
        assert isinstance(run.deliver(message()), Ack)
    assert soon(lambda: is_gone(int((tmp_path / "child").read_text())))


def test_a_process_that_left_the_group_delays_nothing(tmp_path):
    shell = f"setsid sleep 30 & echo $! > {tmp_path}/child; sleep 0.2; exit 0"
    began = time.monotonic()
    with harness(shell=shell, timeout="20s") as run:
        assert isinstance(run.deliver(message()), Ack)
    assert time.monotonic() - began < 15
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_a_command_need_not_read_its_input():
    with harness(command=["true"]) as run:
        assert isinstance(run.deliver(message(text="x" * 300_000)), Ack)


def test_a_large_input_and_a_large_output_do_not_block_each_other(tmp_path):
    with harness(shell=f"tee {tmp_path}/out", output="discard") as run:
        assert isinstance(run.deliver(message(text="x" * 300_000)), Ack)
    assert len((tmp_path / "out").read_text()) > 300_000


def test_the_log_has_the_output_line_by_line(caplog):
    caplog.set_level(logging.INFO, "consumer_framework")
    shell = r"printf 'one\ntwo'; printf '\033[2Jerr\n' >&2; printf %5000d 7"
    with harness(shell=shell) as run:
        run.deliver(message())
    lines = [r for r in caplog.records if r.name == "consumer_framework.kit.command"]
    assert {"one"} < {r.getMessage() for r in lines if r.levelno == logging.INFO}
    assert [r.getMessage() for r in lines if r.levelno == logging.WARNING] == [r"\x1b[2Jerr"]
    assert max(len(r.getMessage()) for r in lines) <= 4096


def test_inherited_output_goes_to_the_outputs_of_the_instance(capfd):
    with harness(shell="echo out; echo err >&2", output="inherit") as run:
        run.deliver(message())
    captured = capfd.readouterr()
    assert captured.out == "out\n"
    assert captured.err == "err\n"


def test_many_runs_leave_no_descriptor_and_no_zombie():
    with harness(command=["true"]) as run:
        run.deliver(message())
        before = open_files()
        for _ in range(20):
            run.deliver(message())
        after = open_files()
    assert len(after) <= len(before)
    children = Path("/proc/self/task").glob("*/children")
    pids = [pid for file in children for pid in file.read_text().split()]
    assert not [pid for pid in pids if is_gone(int(pid))]


def test_the_instance_stops_after_the_given_number_of_messages():
    with harness(command=["true"], stop_after=2) as run:
        first, second, third = message(), message(), message()
        for each in (first, second, third):
            run.deliver(each)
        assert run.acked == [first, second]
        assert run.halted is not None
        assert run.halted.exit_code == 0
        assert run.queued == [third]


def test_the_working_directory_is_the_consumers_own_unless_one_is_named(tmp_path):
    with harness(shell=f"pwd > {tmp_path}/out") as run:
        run.deliver(message())
    assert "fm-consumer-" in (tmp_path / "out").read_text()
    with harness(shell="pwd > out", directory=str(tmp_path)) as run:
        run.deliver(message())
    assert (tmp_path / "out").read_text() == f"{tmp_path}\n"


def test_a_program_that_is_not_there_ends_the_start():
    with (
        pytest.raises(ConfigurationException, match=r"no-such-program.*PATH"),
        harness(command=["no-such-program"]),
    ):
        pass
    with (
        pytest.raises(ConfigurationException, match="/nowhere is no directory"),
        harness(command=["true"], directory="/nowhere"),
    ):
        pass


def test_a_program_that_vanishes_is_a_broken_dependency(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with harness(command=["program"], environment={"PATH": str(tmp_path)}) as run:
        assert isinstance(run.deliver(message()), Ack)
        program.unlink()
        again = message()
        run.deliver(again)
        assert run.held == [again]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "needs either command"),
        ({"command": ["a"], "shell": "b"}, "needs either command"),
        ({"command": []}, "consumer_config.command"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"shell": "a", "timeout": 0}, "consumer_config.timeout"),
        ({"shell": "a", "directory": "here"}, "absolute"),
        ({"shell": "a", "environment": {"FM_ID": "1"}}, "FM_"),
        ({"shell": "a", "environment": {"A=B": "1"}}, "no name"),
        ({"shell": "a", "drop_exit_codes": [75]}, "retry_exit_codes and in drop_exit_codes"),
        ({"shell": "a", "drop_exit_codes": [256]}, "drop_exit_codes"),
        ({"shell": "a", "comand": ["x"]}, "comand"),
    ],
)
def test_a_wrong_configuration_is_explained(config, problem):
    with pytest.raises(ConfigurationError, match=problem):
        Harness(CONSUMER, config=config)


def test_a_stop_that_the_consumer_cannot_take_is_no_error_of_the_stop(caplog):
    class Failing(Consumer):
        def handle(self, message):
            pass

        def stop_requested(self):
            raise RuntimeError("cannot stop")

    async def announce():
        handler = handler_of(Failing(None), "module:Failing")
        executor = Executor(handler, lambda _: "message", FakeFlightRecorder(places=1))
        executor.announce_stop()
        executor.close()

    asyncio.run(announce())
    assert "stop_requested of module:Failing failed" in caplog.text
