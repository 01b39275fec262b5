# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of an operator, on the store of a stopped instance."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import time
from typing import Any

import pika
import pytest
from click.testing import CliRunner
from fedora_messaging import message as upstream

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.cli import main
from consumer_framework.cli import options as cli_options
from consumer_framework.core.attempt import NO_HISTORY, History, attempt_of
from consumer_framework.core.ordering import behind

from .quarantined import (
    CAUSE,
    FM_CONSUMER,
    HEADERS,
    OTHER_CAUSE,
    TOPIC,
    Operator,
    a_delivery,
    failures,
    make_operator,
)


def words_of(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else ""


@pytest.fixture
def operator(tmp_path):
    return make_operator(tmp_path)


@pytest.fixture
def three(operator):
    """Two messages of one cause, and one of another."""
    other = a_delivery(3, history=failures(5, OTHER_CAUSE, "'package'"), routing_key="org.build")
    operator.quarantines(a_delivery(1), a_delivery(2), other)
    return operator


# list


def test_list_groups_by_cause_and_names_a_row_of_each(three):
    lines = three.does("list").stdout.splitlines()
    assert lines[0].split() == ["COUNT", "ROW", "AGE", "ATTEMPTS", "TOPIC", "ERROR"]
    assert lines[1].split()[:2] == ["2", "1"]
    assert lines[1].endswith(f"{TOPIC}  ValueError: no such package")
    assert lines[2].strip() == CAUSE
    assert lines[3].split()[:2] == ["1", "3"]
    assert lines[4].strip() == OTHER_CAUSE
    assert "3 messages, 2 causes" in lines[6]


@pytest.fixture
def alike(operator):
    """Three messages of one cause, whose errors have different texts."""
    texts = ["'package'", "'package'", "'release'"]
    failed = [failures(1, OTHER_CAUSE, text) for text in texts]
    operator.quarantines(*(a_delivery(n, history=each) for n, each in enumerate(failed)))
    return operator


def test_list_shows_how_many_other_texts_the_errors_of_a_cause_have(alike):
    lines = alike.does("list").stdout.splitlines()
    assert lines[1].endswith("KeyError: 'package'")
    assert lines[2].strip() == f"{OTHER_CAUSE} and 1 other text"
    assert alike.shows("list")[0]["other_texts"] == 1


def test_drop_by_fingerprint_shows_the_errors_before_it_asks(alike):
    result = alike.does("drop", "--fingerprint", "KeyError in", input="n\n")
    assert f"{OTHER_CAUSE}: KeyError: 'package' and 1 other text" in result.stderr
    assert len(alike.rows()) == 3


def test_list_rows_has_a_line_for_each_message(three):
    lines = three.does("list", "--rows").stdout.splitlines()
    titles = ["ROW", "AGE", "ATTEMPTS", "TOPIC", "FINGERPRINT", "ERROR"]
    assert lines[0].split() == titles
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[3].split()[2:4] == ["5", "org.build"]
    assert " ".join(lines[3].split()).endswith(f"{OTHER_CAUSE} 'package'")


def test_list_reports_an_empty_quarantine(operator):
    operator.quarantines()
    assert operator.does("list").stdout == "nothing is quarantined\n"
    assert operator.does("list", "--rows").stdout == "nothing is quarantined\n"
    assert operator.does("list", "--state", "deferred").stdout == "nothing is deferred\n"
    assert operator.shows("list") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--topic", "*.bodhi.*"], [1, 2]),
        (["--topic", "nothing.*"], []),
        (["--fingerprint", "builds.py"], [3]),
        (["--queue", "sample"], [1, 2, 3]),
        (["--queue", "other"], []),
        (["--limit", "2"], [1, 2]),
        (["--after", "1"], [2, 3]),
        (["--after", "1", "--limit", "1"], [2]),
        (["--after", "3"], []),
        (["--state", "deferred"], [4]),
        (["--state", "any"], [1, 2, 3, 4]),
    ],
    ids=words_of,
)
def test_list_filters(three, words, expected):
    three.keeps(lambda store: store.defer(a_delivery(4), time.time() + 60))
    assert [row["id"] for row in three.shows("list", *words)] == expected


def test_a_list_that_was_cut_shows_that_there_is_more(three):
    assert "2 messages; there are more, with --after 2" in three.does("list", "--limit", "2").stdout
    assert "more" not in three.does("list", "--limit", "3").stdout


@pytest.mark.parametrize("words", [[], ["--rows"]], ids=["groups", "rows"])
def test_no_line_of_a_table_is_wider_than_the_terminal(three, words):
    long = a_delivery(4, history=failures(1, CAUSE, "x" * 300), routing_key="org." + "y" * 100)
    three.quarantines(long)
    lines = three.does("list", *words, env={"COLUMNS": "80"}).stdout.splitlines()
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 80
    assert any("…" in line for line in table)
    unlimited = three.does("list", "--rows").stdout
    assert "x" * 300 in unlimited


def test_show_prints_the_text_of_the_body_for_editors_that_round_numbers(operator):
    operator.quarantines(
        a_delivery(1, b'{"n": 12345678901234567890, "x": 1.0}'), a_delivery(2, b"{")
    )
    text = '{\n  "n": 12345678901234567890,\n  "x": 1.0\n}'
    assert operator.shows("show", "1")["text"] == text
    assert operator.shows("show", "2")["text"] is None


def test_the_text_of_a_publisher_does_not_control_the_terminal(operator):
    evil = a_delivery(1, {"n": "\x9b31m \u202e"}, routing_key="org.\x1b]0;title\x07")
    operator.quarantines(evil._replace(history=failures(1, CAUSE, "\x1b[2J")))
    for words in (["list"], ["list", "--rows"], ["show", "1"]):
        shown = operator.does(*words).stdout
        assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert "\\x1b]0;title\\x07" in shown


def test_colours_are_for_terminals_and_no_color_turns_them_off(three):
    assert "\x1b[" not in three.does("list").stdout
    assert "\x1b[1m" in three.does("list", color=True).stdout
    assert "\x1b[" not in three.does("list", color=True, env={"NO_COLOR": "1"}).stdout


# Keys


@pytest.fixture
def keyed(operator):
    """Three messages of one key, of which the first failed; one of another; one without."""
    one = "FEDORA-2024-" + "x" * 40
    operator.quarantines(a_delivery(1, {"n": "poison"})._replace(lane=one))
    followers = (a_delivery(n, history=NO_HISTORY)._replace(lane=one) for n in (2, 3))
    operator.quarantines(*followers, reason=behind(1))
    operator.quarantines(a_delivery(4)._replace(lane="other"), a_delivery(5))
    return operator


def test_a_list_has_a_column_of_keys_where_there_are_any(keyed):
    head, first, *others = keyed.does("list", "--rows").stdout.splitlines()[:6]
    assert head.split() == ["ROW", "AGE", "KEY", "ATTEMPTS", "TOPIC", "FINGERPRINT", "ERROR"]
    assert "  FEDORA-2024-xxxxxxxxxxx…  " in first
    assert [" other " in line for line in others] == [False, False, True, False]


def test_a_list_of_several_states_shows_the_state_and_the_due_time(three):
    now = time.time()
    for number, due in (4, now + 3700), (5, now - 5), (6, now - 5):
        lane = "key" if number > 4 else ""
        delivery = a_delivery(number)._replace(lane=lane)
        three.keeps(lambda store, d=delivery, at=due: store.defer(d, at))
    head, *lines = three.does("list", "--state", "any").stdout.splitlines()[:7]
    assert head.split()[:6] == ["ROW", "AGE", "STATE", "DUE", "KEY", "ATTEMPTS"]
    assert [" ".join(line.split()[2:5]) for line in lines[2:]] == [
        "quarantined 5 org.build",
        "deferred in 61m",
        "deferred now key",
        "deferred after 5",
    ]
    head = three.does("list", "--state", "deferred").stdout.splitlines()[0]
    assert head.split()[:4] == ["ROW", "AGE", "DUE", "KEY"]


def test_show_prints_the_key_and_the_row_that_blocks_the_message(keyed):
    text = keyed.does("show", "2").stdout
    assert "behind row 1 of the same key, quarantined" in " ".join(text.split())
    assert "key FEDORA-2024-" in " ".join(text.split())
    assert text.splitlines()[-1].endswith(" 1")
    text = keyed.does("show", "5").stdout
    assert "key " not in text
    assert text.splitlines()[-1].endswith(" 5")


def test_show_prints_when_a_deferred_message_runs(operator):
    first, second = (a_delivery(n)._replace(lane="key") for n in (1, 2))
    due = time.time() + 3700
    operator.keeps(lambda store: store.defer(first, due))
    operator.keeps(lambda store: store.defer(second, due))
    assert "runs again in 61m" in " ".join(operator.does("show", "1").stdout.split())
    assert "runs again after row 1" in " ".join(operator.does("show", "2").stdout.split())


def test_show_lists_the_steps_that_a_replay_skips(operator):
    done = a_delivery(1)
    steps = {"file-bug": '{"number": 17}', "route:built": '["done", 0, "", 0]', "comment": "null"}
    for name, result in steps.items():
        operator.keeps(
            lambda store, step=(name, result): asyncio.wrap_future(store.record_step(done, *step))
        )
    operator.quarantines(done, a_delivery(2))
    text = operator.does("show", "1").stdout
    section = text[text.index("Steps that are done") :].splitlines()[1:3]
    assert [line.split(None, 1) for line in section] == [
        ["file-bug", '{"number": 17}'],
        ["comment", "null"],
    ]
    assert "Steps" not in operator.does("show", "2").stdout
    assert operator.shows("show", "1")["steps"] == {"file-bug": {"number": 17}, "comment": None}


def test_json_has_the_key_and_the_row_that_blocks_a_message(keyed):
    rows = keyed.shows("list", "--rows")
    assert [(row["lane"][:6], row["behind"]) for row in rows] == [
        ("FEDORA", None),
        ("FEDORA", 1),
        ("FEDORA", 1),
        ("other", None),
        ("", None),
    ]
    assert keyed.shows("show", "3")["behind"] == 1
    assert keyed.shows("stats")["blocked_lanes"] == 2
    assert "2 of which the first message is quarantined" in keyed.does("stats").stdout


def test_a_replay_keeps_the_order_of_a_key_and_stops_it_where_one_fails(keyed):
    result = keyed.runs("replay", "3", "1", "5", "2", "--json")
    answers = [json.loads(line) for line in result.stdout.splitlines()][:-1]
    lane = keyed.shows("show", "1")["lane"]
    reason = f"behind row 1 of key {lane}: replay or drop that one first"
    assert [(a["row"], a["result"]) for a in answers] == [
        (1, "failed"),
        (2, "skipped"),
        (5, "succeeded"),
        (3, "skipped"),
    ]
    assert [a["reason"] for a in answers if a["result"] == "skipped"] == [reason] * 2
    assert result.returncode == 1
    (keyed.directory / "mended").touch()
    assert keyed.runs("replay", "--all").returncode == 0
    assert keyed.seen() == ["id-1 poison", "id-5 5", "id-1 poison", "id-2 2", "id-3 3", "id-4 4"]
    assert keyed.rows() == {}


def test_an_edited_message_of_a_key_is_tried_first(keyed):
    keyed.keeps(lambda store: store.supersede(1, b'{"n": "food"}'))
    assert keyed.runs("replay", "--first", "1").returncode == 0
    assert keyed.seen() == ["id-1 food"]


def test_messages_behind_a_dropped_one_wait_for_an_operator(keyed):
    assert keyed.does("drop", "1", "--yes").exit_code == 0
    assert keyed.rows() == dict.fromkeys((2, 3, 4, 5), "quarantined")
    assert keyed.runs("replay", "2").returncode == 0


# show


def test_show_prints_the_message_and_every_attempt_with_its_time(operator):
    error = attempt_of(ValueError("first line\nsecond line"), 0.0)
    history = History((*failures(2).attempts, error, error))
    operator.quarantines(a_delivery(1, {"n": 1, "who": "jürgen"}, history=history))
    shown = operator.does("show", "1").stdout
    for text in (TOPIC, "id-1", "sample", "amq.topic", "fedora_messaging_severity  20"):
        assert text in shown
    assert '    "who": "jürgen"\n' in shown
    assert "Traceback of ValueError\n    number 1\n" in shown
    assert "Attempt 1 of 4, 1970-01-01" in shown
    assert "ValueError: first line\n      second line\n" in shown
    assert "Attempt 4 of 4" in shown
    assert ": the traceback of attempt 3\n" in shown
    assert shown.count("second line") == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"plain text", "  plain text\n"),
        (b"\xff\x00\x01", "  000000  ff 00 01"),
        (b"[" * 100_000, "bytes more"),
        (b"", "Body (0 bytes, not JSON)"),
    ],
    ids=["text", "bytes", "deep", "empty"],
)
def test_show_prints_a_body_that_is_no_json_safely(operator, body, expected):
    operator.quarantines(a_delivery(1, body))
    result = operator.does("show", "1")
    assert result.exit_code == 0
    assert expected in result.stdout
    assert len(result.stdout) < 10_000


def test_show_prints_a_message_of_a_lying_encoding(operator):
    operator.quarantines(a_delivery(1, content_encoding="klingon"))
    assert '  {"n": 1}\n' in operator.does("show", "1").stdout


def test_show_as_json_has_everything(operator):
    operator.quarantines(a_delivery(1, {"n": 1}))
    shown = operator.shows("show", "1")
    assert shown["message"]["body"] == {"n": 1}
    assert shown["properties"]["headers"] == HEADERS
    assert [failure["at"] for failure in shown["failures"]] == [1000.0, 2000.0]
    assert shown["state"] == "quarantined"


# Failures: one line, a cure, no traceback.


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["show", "99"], "there is no row 99"),
        (["show", "x"], "'x' is no row"),
        (["drop", "1", "99"], "there is no row 99"),
        (["drop"], "say which"),
        (["drop", "1", "--all"], "say which"),
        (["drop", "--fingerprint", "nothing"], "nothing quarantined has the fingerprint"),
        (["drop", "--fingerprint", "process"], "'process' is in 2 fingerprints"),
        (["replay", "99"], "there is no row 99"),
        (["replay", "--all", "--edit"], "--edit takes one ROW"),
        (["replay", "--all", "--body", os.devnull], "--body takes one ROW"),
        (["export", "99"], "there is no row 99"),
    ],
    ids=words_of,
)
def test_an_impossible_order_is_one_line_and_exit_code_2(three, words, line):
    result = three.does(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("fm-consumer: ")
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert three.rows() == dict.fromkeys([1, 2, 3], "quarantined")


def test_an_instance_must_be_named(operator):
    result = CliRunner().invoke(main, ["quarantine", "list"])
    assert result.exit_code == 2
    assert "name an INSTANCE" in result.stderr


def test_an_impossible_instance_name_is_reported_in_one_line(operator):
    result = CliRunner().invoke(main, ["quarantine", "list", "no/such"])
    assert result.exit_code == 78
    assert result.stderr.count("\n") == 1
    assert "'no/such' is no instance name" in result.stderr


def test_an_unknown_instance_is_reported_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_options, "CONFIGURATION_DIRECTORY", tmp_path)
    (tmp_path / "toddlers.toml").touch()
    command = ["quarantine", "list", "todlers", "--state-dir", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 78
    assert "there is no instance 'todlers'" in result.stderr
    assert "the instances here are toddlers" in result.stderr


def test_the_name_of_an_instance_is_enough(three, monkeypatch):
    monkeypatch.setattr(cli_options, "CONFIGURATION_DIRECTORY", three.directory)
    monkeypatch.setenv("STATE_DIRECTORY", str(three.state))
    command = ["quarantine", "show", "sample", "3"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "org.build" in result.stdout
    assert "fm-consumer quarantine replay sample 3" in result.stdout


@pytest.mark.parametrize("verb", ["list", "stats", "export"])
def test_an_instance_that_never_ran_is_reported_in_one_line(operator, verb):
    result = operator.does(verb)
    assert result.exit_code == 78
    assert result.stderr.count("\n") == 1
    assert "there is no store" in result.stderr


def test_a_file_that_is_no_store_is_reported_in_one_line(operator):
    operator.state.mkdir()
    (operator.state / "store.sqlite3").write_text("not a database, but long enough to be one")
    result = operator.does("list")
    assert result.exit_code == 78
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="must be root to become somebody else")
def test_a_store_that_may_not_be_read_is_reported_with_a_cure(three):
    three.state.chmod(0o700)
    command = [str(FM_CONSUMER), "quarantine", "list", *three.instance]
    # Nobody may not write where the coverage of the tests is measured, and would say so.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    result = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in result.stderr or "execute" in result.stderr:
        pytest.skip("nobody may not run the command from where it is installed")
    assert result.returncode == 78
    assert "use sudo" in result.stderr
    assert result.stderr.count("\n") == 1


# drop


def test_drop_asks_first_and_no_means_no(three):
    result = three.does("drop", "1", input="n\n")
    assert result.exit_code == 1
    assert "Lose 1 message of sample for ever?" in result.stderr
    assert three.rows() == dict.fromkeys([1, 2, 3], "quarantined")


def test_drop_deletes_the_named_messages_and_no_others(three):
    assert three.does("drop", "1", input="y\n").stdout == "1 message dropped\n"
    assert list(three.rows()) == [2, 3]
    assert three.shows("drop", "--fingerprint", "KeyError", "--yes") == {"dropped": [3], "kept": []}
    assert three.does("drop", "--all", "--yes").exit_code == 0
    assert three.rows() == {}
    assert three.does("drop", "--all", "--yes").stdout == "nothing is quarantined\n"


def test_drop_does_not_touch_claimed_messages(three):
    store = Store.open(three.state, limits=Limits())
    try:
        assert asyncio.run(store.claim(1))
        result = three.does("drop", "1", "2", "--yes")
    finally:
        store.close()
    assert result.exit_code == 2
    assert "row 1 is in a replay" in result.stderr


def test_a_store_in_use_is_reported_in_one_line(three):
    store = Store.open(three.state, instance="sample", limits=Limits())
    try:
        result = three.does("drop", "1", "--yes")
    finally:
        store.close()
    assert result.exit_code == 78
    assert "in use by process" in result.stderr
    assert result.stderr.count("\n") == 1


# export and stats


def test_an_export_can_be_read_by_fedora_messaging(three):
    messages = list(upstream.loads(three.does("export").stdout))
    assert [message.id for message in messages] == ["id-1", "id-2", "id-3"]
    assert [message.body for message in messages] == [{"n": 1}, {"n": 2}, {"n": 3}]
    [only] = upstream.loads(three.does("export", "2").stdout)
    assert only.topic == TOPIC


def test_an_export_to_a_file_is_private_and_overwrites_nothing(three, tmp_path):
    target = tmp_path / "out.jsonl"
    result = three.does("export", "--fingerprint", "builds", "--output", str(target))
    assert result.stderr == f"1 message written to {target}\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert json.loads(target.read_text())["id"] == "id-3"
    again = three.does("export", "--output", str(target))
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_stats_count(three):
    three.keeps(lambda store: store.defer(a_delivery(4), time.time() + 3600))
    shown = three.shows("stats")
    assert (shown["quarantined"], shown["deferred"], shown["replaying"]) == (3, 1, 0)
    assert shown["fingerprints"] == {CAUSE: 2, OTHER_CAUSE: 1}
    assert shown["disk_bytes"] > shown["bytes"] > 0
    text = three.does("stats").stdout
    assert "deferred" in text
    assert "the next one due in" in text
    assert f"2  {CAUSE}" in text


# replay, in this process


def test_replay_of_a_stopped_instance_runs_its_handler(operator):
    operator.quarantines(a_delivery(1), a_delivery(2))
    result = operator.runs("replay", "--all")
    assert result.stdout == "row 1 succeeded\nrow 2 succeeded\n2 of 2 succeeded\n"
    assert (result.returncode, result.stderr) == (0, "")
    assert operator.seen() == ["id-1 1", "id-2 2"]
    assert operator.rows() == {}


def test_a_message_that_fails_again_stays_with_one_more_attempt(operator):
    operator.quarantines(a_delivery(1, {"n": "poison"}), a_delivery(2))
    result = operator.runs("replay", "1", "2")
    assert result.returncode == 1
    assert "row 1 failed again: RuntimeError: still broken" in result.stdout
    assert "1 of 2 succeeded" in result.stdout
    shown = operator.shows("show", "1")
    assert [failure["error"] for failure in shown["failures"]] == [
        "ValueError",
        "ValueError",
        "RuntimeError",
    ]
    assert operator.rows() == {1: "quarantined"}


def test_a_replay_of_the_first_message_runs_no_other(operator):
    operator.quarantines(*(a_delivery(n, {"n": "poison"}) for n in (1, 2, 3)))
    assert operator.runs("replay", "--first", "1").returncode == 1
    assert operator.seen() == ["id-1 poison"]
    (operator.directory / "mended").touch()
    assert operator.runs("replay", "--first", "1").returncode == 0
    assert operator.runs("replay", "--all").returncode == 0
    assert operator.rows() == {}


def test_a_handler_that_halts_ends_the_replay_and_its_message_stays(operator):
    operator.quarantines(a_delivery(1, {"n": "halt"}), a_delivery(2))
    result = operator.runs("replay", "--all")
    assert result.returncode == 1
    assert "row 1 halted the instance: enough" in result.stdout
    assert operator.rows() == {1: "quarantined", 2: "quarantined"}


def test_a_handler_may_drop_a_replayed_message(operator):
    operator.quarantines(a_delivery(1, {"n": "drop"}))
    result = operator.runs("replay", "1", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"row": 1, "result": "reject", "reason": "unwanted"},
        {"done": True, "rows": 1, "results": {"reject": 1}},
    ]
    assert operator.rows() == {}


def test_a_handler_that_cannot_be_built_is_reported_in_one_line_and_no_message_runs(operator):
    operator.quarantines(a_delivery(1))
    result = operator.runs("replay", "1", "--callback", "no.such:module")
    assert result.returncode == 78
    assert result.stderr.count("\n") == 1
    file = operator.directory / "broken.py"
    file.write_text("class C:\n  def __init__(self): 1 / 0\n  def __call__(self, m): pass\n")
    result = operator.runs("replay", "1", "--callback-file", f"{file}:C")
    assert result.returncode == 13
    assert "cannot be set up: ZeroDivisionError" in result.stderr
    assert result.stderr.count("\n") == 1
    assert operator.rows() == {1: "quarantined"}


INTERRUPTS = """
import os, signal, threading, time
def handler(message):
    time.sleep(0.2)  # as an operator would, who sees that it runs
    for _ in range({times}):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    time.sleep({lasts})
"""


def interrupted(operator, times, lasts):
    operator.quarantines(a_delivery(1), a_delivery(2))
    file = operator.directory / "slow.py"
    file.write_text(INTERRUPTS.format(times=times, lasts=lasts))
    result = operator.runs("replay", "--all", "--callback-file", f"{file}:handler")
    assert result.returncode == 130
    assert "Ctrl-C again to stop now" in result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_an_interrupted_replay_lets_its_message_end_and_reports_the_result(operator):
    result = interrupted(operator, times=1, lasts=0)
    assert "row 1 succeeded" in result.stdout
    assert "interrupted: 1 message left in quarantine" in result.stderr
    assert operator.rows() == {2: "quarantined"}


def test_a_replay_that_is_interrupted_twice_ends_at_once_and_keeps_its_message(operator):
    result = interrupted(operator, times=2, lasts=60)
    assert "interrupted: 2 messages left in quarantine" in result.stderr
    assert operator.rows() == {1: "quarantined", 2: "quarantined"}


# --edit


def editor(operator: Operator, source: str) -> str:
    """Return a program that edits the given file; `text` is its contents in Python."""
    script = operator.directory / "editor.py"
    script.write_text(
        "import pathlib, sys\nfile = pathlib.Path(sys.argv[1])\n"
        f"text = file.read_text()\n{source}\nfile.write_text(text)\n"
    )
    return f"{sys.executable} {script}"


def test_an_edited_copy_stands_for_its_original_and_both_go_when_it_succeeds(operator):
    operator.quarantines(a_delivery(1, {"n": "poison"}))
    program = editor(operator, "text = text.replace('poison', 'food')")
    result = operator.runs("replay", "1", "--edit", VISUAL=program)
    assert result.stdout == "row 1, as edited, is row 2\nrow 2 succeeded\n"
    assert operator.seen() == ["id-1 food"]
    assert operator.rows() == {}


def test_an_edited_copy_that_fails_stays_and_keeps_its_original(operator):
    operator.quarantines(a_delivery(1, b"no JSON at all"))
    program = editor(operator, """text = '{"n": "poison"}'""")
    assert operator.runs("replay", "1", "--edit", VISUAL=program).returncode == 1
    assert operator.rows() == {1: "superseded", 2: "quarantined"}
    assert "edited from  row 1" in " ".join(operator.does("show", "2").stdout.split("      "))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("pass", "nothing was edited"),
        ("text = text + ' '", "the message is what it was"),
        ("text = text.replace('{', '[')", "that is no JSON"),
        ("text = '[1]'", "that is no JSON object"),
    ],
    ids=["untouched", "same", "invalid", "array"],
)
def test_an_edit_without_a_change_or_without_json_changes_nothing(operator, tmp_path, source, line):
    operator.quarantines(a_delivery(1))
    folder = tmp_path / "tmp"
    folder.mkdir()
    program = editor(operator, source)
    result = operator.runs("replay", "1", "--edit", VISUAL=program, TMPDIR=str(folder))
    assert result.returncode == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert operator.rows() == {1: "quarantined"}
    assert operator.seen() == []
    # The work of an operator is kept, and its place named.
    assert all(str(file) in result.stderr for file in folder.iterdir())


def test_a_program_gives_the_edited_body_on_standard_input(operator):
    operator.quarantines(a_delivery(1, {"n": "poison"}))
    body = operator.directory / "body.json"
    body.write_text('{"n": "food"}')
    command = [str(FM_CONSUMER), "quarantine", "replay", *operator.instance, "1", "--body", "-"]
    environment = {**os.environ, "PYTHONPATH": str(operator.directory)}
    with body.open() as standard_input:
        done = subprocess.run(
            command,
            check=False,
            stdin=standard_input,
            capture_output=True,
            env=environment,
            timeout=60,
        )
    assert done.stdout.decode() == "row 1, as edited, is row 2\nrow 2 succeeded\n"
    assert operator.seen() == ["id-1 food"]
    assert operator.rows() == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"n": 1}', "the message is what it was; nothing was replayed"),
        ("{", "that is no JSON"),
        ("[1]", "that is no JSON object; nothing was replayed"),
        ('{"n": NaN}', "that is no JSON (Out of range float values"),
    ],
    ids=["same", "invalid", "array", "not a number"],
)
def test_a_body_without_a_change_or_that_is_no_object_changes_nothing(operator, text, line):
    operator.quarantines(a_delivery(1))
    body = operator.directory / "body.json"
    body.write_text(text)
    result = operator.runs("replay", "1", "--body", str(body))
    assert result.returncode == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert operator.rows() == {1: "quarantined"}


def test_a_message_that_no_edit_can_mend_is_not_edited(operator):
    operator.quarantines(a_delivery(1, content_encoding="klingon"))
    result = operator.runs("replay", "1", "--edit", VISUAL="false")
    assert result.returncode == 2
    assert "cannot be mended by an edit" in result.stderr


@pytest.mark.parametrize("verb", ["list", "show", "replay", "drop", "export", "stats"])
def test_every_help_text_has_an_example(verb):
    text = CliRunner().invoke(main, ["quarantine", verb, "--help"]).stdout
    assert "Examples:" in text
    assert f"  fm-consumer quarantine {verb} sample" in text
    assert "--json" in text


# Texts of strangers.

HOSTILE = "first\nERROR forged\x1b[2J\x9b\u2028\x85\u202e"


@pytest.fixture
def hostile(operator):
    """A message with control characters wherever there may be text, and one that is no UTF-8."""
    failed = failures(1, message=HOSTILE)
    odd: Any = a_delivery(1, routing_key=HOSTILE, history=failed)._replace(exchange=HOSTILE)
    odd.properties.message_id = odd.properties.app_id = HOSTILE
    bytes_: Any = {"routing_key": b"\xff.topic", "exchange": b"\xfd"}
    no_text = a_delivery(2)._replace(**bytes_)
    properties: Any = no_text.properties
    properties.message_id = b"\xfe"
    properties.headers = {b"\xff": b"\xfe", HOSTILE: HOSTILE}
    operator.quarantines(odd, no_text, reason=HOSTILE)
    return operator


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("list", "--json"),
        ("list", "--rows"),
        ("list", "--rows", "--json"),
        ("list", "--topic", "*topic"),
        ("show", "1"),
        ("show", "1", "--json"),
        ("show", "2"),
        ("show", "2", "--json"),
        ("export",),
        ("stats",),
        ("stats", "--json"),
        ("drop", "1", "2", "--yes"),
    ],
    ids=" ".join,
)
def test_nothing_that_a_publisher_wrote_reaches_the_terminal_or_stops_a_command(hostile, words):
    result = hostile.does(*words)
    assert result.exit_code == 0, result.output
    assert not set("\x1b\x9b\u2028\x85\u202e") & set(result.output)
    assert not any(line.startswith("ERROR") for line in result.output.splitlines())


@pytest.mark.parametrize("encoding", ["punycode", "unicode_escape", "gzip"])
@pytest.mark.parametrize("verb", ["show", "export"])
def test_a_body_is_not_decoded_by_a_codec_that_is_no_text_encoding(operator, encoding, verb):
    operator.quarantines(a_delivery(1, content_encoding=encoding))
    result = operator.does(verb, "1")
    assert "body_base64" in result.output or "not JSON" in result.output


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_headers_with_numbers_that_json_has_not_are_valid_json(operator, number):
    delivery = a_delivery()
    headers = {**HEADERS, "n": [{"n": number}]}
    operator.quarantines(delivery._replace(properties=pika.BasicProperties(headers=headers)))
    for words in (["show", "1", "--json"], ["export"]):
        json.loads(operator.does(*words).stdout, parse_constant=pytest.fail)
    assert operator.shows("show", "1")["properties"]["headers"]["n"] == [{"n": str(number)}]


@pytest.mark.parametrize("depth", [500, 700, 940])
def test_a_body_that_is_nested_very_deeply_is_shown_as_json(operator, depth):
    operator.quarantines(a_delivery(body=b'{"a":' + b"[" * depth + b"]" * depth + b"}"))
    shown = json.loads(operator.does("show", "1", "--json").stdout)
    assert "body" in shown["message"] or "body_base64" in shown["message"]
