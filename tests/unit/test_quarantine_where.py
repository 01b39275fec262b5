# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders on all messages that fit a condition, and pages of long lists."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import time

import pytest
from click.testing import CliRunner

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.cli import main
from consumer_framework.core.attempt import History

from .quarantined import (
    CAUSE,
    FM_CONSUMER,
    OTHER_CAUSE,
    a_delivery,
    failures,
    make_operator,
)


@pytest.fixture
def operator(tmp_path):
    return make_operator(tmp_path)


@pytest.fixture
def four(operator):
    """Builds of kernel, bash and kernel, and bytes that are no JSON."""
    builds = failures(1, OTHER_CAUSE, "'package'")
    operator.quarantines(
        a_delivery(1, {"n": 1, "build": {"name": "kernel", "tags": ["f44"]}}),
        a_delivery(2, {"n": 2, "build": {"name": "bash"}}, history=builds),
        a_delivery(3, {"n": 3, "build": {"name": "kernel"}}, routing_key="org.build"),
        a_delivery(4, b"\xff{", history=History(), lane="a key"),
    )
    return operator


def listed(operator, *conditions):
    words = [word for condition in conditions for word in ("--where", condition)]
    return [row["id"] for row in operator.shows("list", *words)]


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        (["body.build.name=kernel"], [1, 3]),
        (["body.build.name=kernel", "topic=org.build"], [3]),
        (["body.build.tags=f44"], [1]),
        (["body.build.name!=kernel"], [2, 4]),
        (["body.n>=2"], [2, 3]),
        (["headers.fedora_messaging_severity=20"], [1, 2, 3, 4]),
        (["severity=20", "id=id-2"], [2]),
        (["error=KeyError"], [2]),
        (["error=KeyError: 'package'"], [2]),
        (["error~^no such"], [1, 3]),
        (["error"], [1, 2, 3]),
        (["cause~toddlers/builds"], [2]),
        (["reason~2 attempts"], [1, 2, 3, 4]),
        (["attempts>1"], [1, 3]),
        (["age<1h"], [1, 2, 3, 4]),
        (["age>1h"], []),
        (["key=a key"], [4]),
        (["queue=sample", "exchange=amq.topic"], [1, 2, 3, 4]),
    ],
)
def test_a_list_has_the_messages_that_fit_all_conditions(four, conditions, rows):
    assert listed(four, *conditions) == rows


def test_a_condition_on_the_age_counts_from_the_time_when_the_message_came_here(operator):
    operator.state.mkdir()
    past = time.time() - 3 * 3600
    store = Store.open(operator.state, limits=Limits(), now=lambda: past)
    asyncio.run(store.quarantine(a_delivery(1), "poison"))
    store.close()
    operator.quarantines(a_delivery(2))
    assert listed(operator, "age>2h") == [1]
    assert listed(operator, "age<=2h") == [2]


def test_causes_are_counted_among_the_messages_that_fit(four):
    [cause] = four.shows("list", "--causes", "--where", "body.build.name=kernel")
    assert (cause["fingerprint"], cause["count"], cause["sample"]["id"]) == (CAUSE, 2, 1)
    assert four.does("list", "--causes", "--where", "id=none").stdout == (
        "nothing is quarantined that fits\n"
    )


def test_causes_with_another_filter_are_refused(four):
    result = four.does("list", "--causes", "--queue", "sample")
    assert result.exit_code == 2
    assert "--causes goes with --where alone, not with --queue" in result.stderr


def test_a_long_list_is_read_page_by_page(four):
    first = four.does("list", "--limit", "3", "--where", "queue=sample").stdout
    assert "3 messages; there are more, with --after 3" in first
    assert [row["id"] for row in four.shows("list", "--limit", "2", "--after", "2")] == [3, 4]
    assert four.shows("list", "--limit", "2", "--after", "4") == []


@pytest.mark.parametrize("verb", ["show", "to-test"])
def test_the_oldest_message_that_fits_is_taken_where_one_is_wanted(four, verb):
    result = four.does(verb, "--where", "body.build.name=kernel")
    assert result.exit_code == 0, result.stderr
    assert "2 messages fit; row 1 is the oldest of them" in result.stderr
    assert "kernel" in result.stdout
    nothing = four.does(verb, "--where", "body.build.name=zsh")
    assert nothing.exit_code == 2
    assert "nothing quarantined fits" in nothing.stderr
    both = four.does(verb, "1", "--where", "id=id-1")
    assert both.exit_code == 2
    assert "name one ROW, or give --where" in both.stderr


def test_an_export_has_the_messages_that_fit(four):
    lines = four.does("export", "--where", "body.build.name=kernel").stdout.splitlines()
    assert [json.loads(line)["body"]["n"] for line in lines] == [1, 3]


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("build.name=kernel", "write body.build.name for a key of the body"),
        ("age>soon", "a length of time such as 2h"),
        ("error~(?=x)", "look-around, including look-ahead and look-behind, is not supported"),
    ],
)
def test_a_wrong_condition_is_refused_with_its_cure(four, condition, told):
    result = four.does("list", "--where", condition)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


@pytest.mark.parametrize("verb", ["drop", "replay"])
def test_an_order_on_all_that_fit_is_refused_where_nobody_can_be_asked(four, verb):
    result = four.does(verb, "--where", "body.build.name=kernel", input="2\n")
    assert result.exit_code == 2
    assert "nobody is asked about 2 messages: say --yes, or --expect 2" in result.stderr
    assert len(four.rows()) == 4


def test_an_order_is_refused_where_another_number_of_messages_fits_now(four):
    words = ["--where", "body.build.name=kernel", "--expect"]
    refused = four.does("drop", *words, "1", "--yes")
    assert refused.exit_code == 2
    assert "there are 2 messages now, not 1; nothing was done" in refused.stderr
    assert four.shows("drop", *words, "2") == {"dropped": [1, 3], "kept": []}
    assert list(four.rows()) == [2, 4]


def test_a_replay_runs_the_messages_that_fit(four):
    result = four.runs("replay", "--where", "body.build.name=kernel", "--yes")
    assert result.returncode == 0, result.stderr
    assert four.seen() == ["id-1 1", "id-3 3"]
    assert list(four.rows()) == [2, 4]


@pytest.mark.parametrize(
    ("typed", "left"), [("2", [2, 4]), ("y", [1, 2, 3, 4]), ("", [1, 2, 3, 4])]
)
def test_on_a_terminal_the_number_of_messages_has_to_be_typed(four, typed, left):
    ours, theirs = pty.openpty()
    command = [str(FM_CONSUMER), "quarantine", "drop", *four.instance]
    command += ["--where", "body.build.name=kernel"]
    try:
        process = subprocess.Popen(
            command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        os.write(ours, f"{typed}\n".encode())
        _, errors = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Type 2 to drop 2 messages of sample" in errors
    assert process.returncode == (0 if typed == "2" else 1)
    assert list(four.rows()) == left


def test_a_condition_that_fits_nothing_is_no_error(four):
    result = four.does("drop", "--where", "id=none")
    assert (result.exit_code, result.stdout) == (0, "nothing is quarantined that fits\n")


@pytest.mark.parametrize(
    ("command", "begun", "expected"),
    [
        ("fm-consumer quarantine list sample --where ", "a", ["attempts", "age"]),
        ("fm-consumer tail --where ", "to", ["topic"]),
    ],
)
def test_the_first_word_of_a_condition_is_completed(monkeypatch, command, begun, expected):
    monkeypatch.setenv("_FM_CONSUMER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", command + begun)
    monkeypatch.setenv("COMP_CWORD", str(len(command.split())))
    result = CliRunner().invoke(main, prog_name="fm-consumer")
    assert result.stdout.splitlines() == [f"plain,{word}" for word in expected]
