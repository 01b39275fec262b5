# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that look at a running instance, or give it an order, with a fake instance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.routes import Refusal

from .machine import make_host

if TYPE_CHECKING:
    from .machine import Host

IN_FLIGHT = schema.InFlightReport(
    (
        schema.MessageInFlight(
            "id-1", "org.example.t", "sample", "", 0, 2, 75.0, "slot-0", "handle (a.py, line 3)"
        ),
        schema.MessageInFlight("", "org.example.\x1b", "sample", "", 41, 1, 0.5, "", ""),
    )
)
STACKS = schema.StacksReport(
    (schema.Stack("slot-0", (schema.StackFrame("handle", "/x/a.py", 3),)),),
    (schema.Stack("Task-1 wait\x1b", ()),),
)


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    made = make_host(short_tmp_path, monkeypatch)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    made.configures()
    return made


def answering(*answers):
    async def respond(_request):
        for answer in answers:
            yield answer

    return respond


def test_the_messages_in_flight_are_a_table(host):
    with host.runs("sample", answers={schema.InFlight: answering(IN_FLIGHT)}):
        done = host.does("in-flight", "sample")
        assert done.exit_code == 0
        head, first, second, _, count = done.stdout.splitlines()
        assert head.split() == ["AGE", "RUN", "SLOT", "TOPIC", "MESSAGE", "IN"]
        assert first.split()[1:5] == ["2", "slot-0", "org.example.t", "id-1"]
        assert "row 41" in second
        assert "\x1b" not in second
        assert count == "2 messages"
        shown = json.loads(host.does("in-flight", "sample", "--json").stdout)
    assert shown["messages"][0]["age"] == 75.0


def test_an_idle_handler_is_named(host):
    with host.runs("sample", answers={schema.InFlight: answering(schema.InFlightReport(()))}):
        assert host.does("in-flight", "sample").stdout == "the handler has no message\n"


def test_the_stacks_are_told_one_function_a_line(host):
    with host.runs("sample", answers={schema.Stacks: answering(STACKS)}):
        lines = host.does("stacks", "sample").stdout.splitlines()
        assert lines[:2] == ["Thread slot-0", "  handle  /x/a.py:3"]
        assert lines[3].startswith("Task Task-1 wait")
        assert "\x1b" not in lines[3]
        assert json.loads(host.does("stacks", "sample", "--json").stdout)["tasks"]


def test_events_are_lines_until_the_instance_stops(host):
    events = [
        schema.Watching("sample"),
        schema.Happened("settled", 0.0, "ack", "", "id-1", "org.example.t", "q", 1),
        schema.Missed(7),
        schema.Happened("state", 0.0, "paused"),
    ]
    with host.runs("sample", answers={schema.Events: answering(*events)}):
        done = host.does("events", "sample", "--kind", "settled")
        assert done.exit_code == 0
        first, second, third, fourth = done.stdout.splitlines()
        assert first == "events of sample; Ctrl-C ends this"
        assert second.endswith("settled  ack  org.example.t  id-1")
        assert third == "7 events were lost: they came too quickly"
        assert fourth.endswith("state    paused")
        lines = host.does("events", "sample", "--json").stdout.splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == [
        *("watching", "event", "missed", "event"),
    ]


def test_a_pause_names_the_messages_that_are_left_and_the_resume_other_reasons(host):
    paused = schema.GateReport("paused", is_paused=True, reasons=("ordered by hazel",), running=1)
    still = schema.GateReport("paused", is_paused=False, reasons=("no database",), running=0)
    open_ = schema.GateReport("consuming", is_paused=False, reasons=(), running=3)
    answers = {schema.Pause: answering(paused), schema.Resume: answering(still)}
    with host.runs("sample", answers=answers):
        done = host.does("pause", "sample", "--reason", "why")
        assert done.stdout == "sample: paused: ordered by hazel; 1 message to finish\n"
        assert host.does("resume", "sample").stdout == "sample: paused: no database\n"
    with host.runs("sample", answers={schema.Resume: answering(open_)}):
        assert host.does("resume", "sample").stdout == "sample: takes messages\n"
        document = json.loads(host.does("resume", "sample", "--json").stdout)
    wanted = json.loads(schema.encode_answer(open_))
    assert document["instances"] == [{"instance": "sample", **wanted}]


def test_an_order_that_is_refused_is_one_line(host):
    async def refuse(_request):
        raise Refusal(409, "it is stopping, and cannot be paused")
        yield

    with host.runs("sample", answers={schema.Pause: refuse}):
        done = host.does("pause", "sample")
    assert done.exit_code == 1
    assert done.stderr.endswith("the instance says: it is stopping, and cannot be paused\n")


def test_a_level_is_changed_for_a_time(host):
    given = []

    async def change(request):
        given.append(request)
        yield schema.LogLevelReport(request.logger, request.level, "INFO", 60.0)

    with host.runs("sample", answers={schema.LogLevel: change}):
        done = host.does("log-level", "sample", "debug", "--for", "1h", "--logger", "requests")
        assert done.stdout.startswith("sample: requests is logged from DEBUG up until ")
        shown = json.loads(host.does("log-level", "sample", "INFO", "--json").stdout)
    assert shown["former"] == "INFO"
    assert given == [schema.LogLevel("DEBUG", 3600.0, "requests"), schema.LogLevel("INFO", 600.0)]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["log-level", "sample"], 2),
        (["log-level", "sample", "LOUD"], 2),
        (["log-level", "sample", "DEBUG", "--for", "2d"], 2),
        (["log-level", "sample", "DEBUG", "--for", "soon"], 2),
        (["in-flight"], 2),
        (["in-flight", "sample", "more"], 2),
        (["pause"], 2),
        (["pause", "one", "two", "--state-dir", "x"], 2),
        (["pause", "one", "--conf", "x.toml"], 2),
        (["events", "sample", "--kind", "odd"], 2),
        (["stacks", "sample"], 1),
        (["stacks", "unknown"], 1),
        (["resume", "no/name"], 78),
    ],
)
def test_a_command_that_makes_no_sense_or_finds_no_instance_is_refused(host, words, code):
    done = host.does(*words)
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr
