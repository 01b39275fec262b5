# SPDX-License-Identifier: GPL-2.0-or-later
"""Replays in stages from the command line, of a stopped instance."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import threading

import pytest

from .quarantined import FM_CONSUMER, a_delivery, make_operator


@pytest.fixture
def operator(tmp_path):
    return make_operator(tmp_path)


@pytest.fixture
def ten(operator):
    """Ten messages, of which the third fails until it is mended."""
    bodies = [{"n": "poison" if number == 3 else number} for number in range(1, 11)]
    operator.quarantines(*(a_delivery(n, body) for n, body in enumerate(bodies, 1)))
    return operator


def test_a_replay_in_stages_stops_at_its_limit_and_goes_on_when_told(ten):
    first = ten.runs("replay", "--all", "--ramp", "1,50,100")
    assert first.returncode == 1
    assert first.stdout.splitlines()[:-1] == [
        "stage 1 of 3, up to 1%: 1 message",
        "row 1 succeeded",
        "stage 2 of 3, up to 50%: 4 messages",
        "row 2 succeeded",
        "row 3 failed again: RuntimeError: still broken",
        "2 of 10 succeeded",
        "stopped: 1 of 4 in stage 2 of 3 failed; the limit is 5%",
        first.stdout.splitlines()[-2],
    ]
    assert first.stdout.splitlines()[-2].startswith(
        "not run: 7 messages; go on: fm-consumer quarantine replay --conf"
    )
    assert ten.shows("stats")["replay"] == {
        "started": ten.shows("stats")["replay"]["started"],
        "rows": 10,
        "ran": 3,
        "succeeded": 2,
        "failed": 1,
        "ramp": [1, 50, 100],
        "rate": None,
        "stop_at": 5,
    }
    assert "a replay of 10 messages began " in ten.does("stats").stdout
    second = ten.runs("replay", "--resume", "--json")
    assert second.returncode == 0
    assert "a replay of 10 messages began " in second.stderr
    answers = [json.loads(line) for line in second.stdout.splitlines()]
    assert answers[0] == {"stage": 2, "stages": 3, "percent": 50, "rows": 2}
    end = {"done": True, "rows": 7, "results": {"succeeded": 7}}
    assert answers[-1] == end | {"ended": "done", "reason": "", "left": 0}
    assert list(ten.rows()) == [3]
    assert ten.shows("stats")["replay"] is None


def test_a_replay_may_end_before_the_last_message(ten):
    result = ten.runs("replay", "--all", "--ramp", "20", "--rate", "1000/s")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-2:] == ["2 of 10 succeeded", "not run: 8 messages"]
    assert list(ten.rows()) == list(range(3, 11))
    assert ten.runs("replay", "--resume").returncode == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--all", "--ramp", "5,1"], "each stage is greater than the one before"),
        (["--all", "--ramp", "many"], "no list of percentages such as 1,5,20,100"),
        (["--all", "--stop-at", "5"], "'--stop-at': '5' is no percentage such as 5%"),
        (["--all", "--rate", "10"], "'--rate': must be a rate such as \"100/s\""),
        (["--resume", "--all"], "--resume goes on with a replay as it was begun"),
        (["--resume", "1"], "--resume goes on with a replay as it was begun"),
        (["--resume", "--rate", "1/s"], "--resume goes on with a replay as it was begun"),
        (["--resume", "--first", "1"], "--resume goes on with a replay as it was begun"),
        (["--resume"], "there is no replay to go on with; begin one with --ramp"),
    ],
    ids=" ".join,
)
def test_a_replay_that_makes_no_sense_is_refused_with_the_cure(ten, words, told):
    result = ten.does("replay", *words)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert len(ten.rows()) == 10


INTERRUPTS = """
import os, pathlib, signal, time
once = pathlib.Path(__file__).with_name("interrupted")
def handler(message):
    if message.body["n"] != 4 or once.exists():
        return
    once.touch()
    time.sleep(0.2)  # as an operator would, who sees that it runs
    for _ in range({times}):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    time.sleep({lasts})
"""


@pytest.mark.parametrize(
    ("times", "lasts", "left"),
    [(1, 0, [5, 6, 7, 8, 9, 10]), (2, 60, [4, 5, 6, 7, 8, 9, 10])],
    ids=["once", "twice"],
)
def test_a_replay_that_was_interrupted_at_the_keyboard_goes_on(ten, times, lasts, left):
    file = ten.directory / "interrupts.py"
    file.write_text(INTERRUPTS.format(times=times, lasts=lasts))
    callback = ["--callback-file", f"{file}:handler"]
    result = ten.runs("replay", "--all", "--ramp", "100", *callback)
    assert result.returncode == 130
    assert f"interrupted: {len(left)} messages left in quarantine; go on: fm-consumer" in (
        result.stderr
    )
    assert list(ten.rows()) == left
    assert ten.runs("replay", "--resume", *callback).returncode == 0
    assert ten.rows() == {}


def test_a_file_gets_the_failures_of_a_long_replay_and_a_line_for_each_stage(operator):
    bodies = [{"n": "poison" if number == 30 else number} for number in range(1, 31)]
    operator.quarantines(*(a_delivery(n, body) for n, body in enumerate(bodies, 1)))
    first = operator.runs("replay", "--all", "--ramp", "10,100", "--stop-at", "50%")
    assert first.stdout.splitlines()[:-1] == [
        "stage 1 of 2, up to 10%: 3 of 3 succeeded",
        "row 30 failed again: RuntimeError: still broken",
        "stage 2 of 2, up to 100%: 26 of 27 succeeded",
        "29 of 30 succeeded",
    ]
    assert first.returncode == 1


def test_a_terminal_shows_a_bar_with_the_stage_and_then_the_causes(operator):
    bodies = [{"n": "poison" if number == 30 else number} for number in range(1, 31)]
    operator.quarantines(*(a_delivery(n, body) for n, body in enumerate(bodies, 1)))
    ours, theirs = pty.openpty()
    command = [str(FM_CONSUMER), "quarantine", "replay", *operator.instance, "--all"]
    environment = {**os.environ, "PYTHONPATH": str(operator.directory), "TERM": "xterm"}
    with subprocess.Popen(
        [*command, "--ramp", "10,100"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        os.close(theirs)
        too_late = threading.Timer(60, process.kill)
        too_late.start()
        shown = b""
        # A pseudo-terminal ends with an error once its other side is closed (Linux).
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        assert process.wait(60) == 1
        too_late.cancel()
    assert b"stage 2 of 2, up to 100%" in shown
    assert b"30/30" in shown
    assert b"1 failed again: RuntimeError: still broken" in shown
    assert b"29 of 30 succeeded" in shown
