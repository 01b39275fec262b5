# SPDX-License-Identifier: GPL-2.0-or-later
"""The board of ``fm-consumer top``: the order of instances, their past, and the texts of cells."""

from __future__ import annotations

import pytest

from consumer_framework.operate.board import (
    MEMORY,
    Board,
    Key,
    Urgency,
    age_cell,
    rate_cell,
    short,
    sparkline,
    urgency_of,
)
from consumer_framework.operate.details import (
    Cause,
    Handler,
    InFlight,
    causes_in,
    handlers_in,
    in_flight_in,
)
from consumer_framework.operate.rows import Row


def row(name, condition="consuming", *, should_run=True, host="", **more):
    return Row(host, name, name, is_active=True, should_run=should_run, condition=condition, **more)


def board(*looks):
    made = Board()
    for rows in looks:
        made.add(rows)
    return made


def names(lines):
    return [line.key.name for line in lines]


def test_the_most_urgent_instances_come_first_and_then_those_of_the_first_names():
    rows = [row("b"), row("a"), row("d", "paused"), row("e", "failed"), row("c", "lagging")]
    assert names(board(rows).lines()) == ["e", "d", "c", "a", "b"]


def test_a_stopped_instance_is_urgent_only_if_it_should_run():
    assert urgency_of(row("a", "stopped")) is Urgency.BROKEN
    assert urgency_of(row("a", "stopped", should_run=False)) is Urgency.OFF


def test_a_condition_of_a_later_release_is_doubtful():
    assert urgency_of(row("a", "bewildered")) is Urgency.DOUBTFUL


def test_a_filter_finds_parts_of_names_hosts_and_conditions():
    found = board([row("builds", host="web1"), row("Koji", "paused", host="web2")])
    assert names(found.lines("BUILD")) == ["builds"]
    assert names(found.lines("web2:")) == names(found.lines("paus")) == ["Koji"]
    assert found.lines("nothing") == []


def test_the_past_of_an_instance_is_kept_and_ends_with_it():
    made = board([row("a", rate=1.0, lag=5)], [row("a", rate=3.0)])
    line = made.line(Key("", "a"))
    assert line is not None
    assert (line.rates, line.lags) == ((1.0, 3.0), (5.0, 0.0))
    made.add([])
    assert made.line(Key("", "a")) is None
    made.add([row("a")])
    again = made.line(Key("", "a"))
    assert again is not None
    assert again.rates == (0.0,)


def test_the_past_is_bounded():
    made = board(*[[row("a")]] * (MEMORY + 5))
    line = made.line(Key("", "a"))
    assert line is not None
    assert len(line.rates) == MEMORY


def test_the_summary_counts_conditions_and_sums_up():
    rows = [row("a", rate=2.0, lag=10_000), row("b", "failed", rate=1.5, quarantined=3)]
    expected = "2 instances: 1 failed, 1 consuming | 3.5/s, lag 10.0k, 3 quarantined"
    assert board(rows).summary == expected
    assert board([]).summary == "no instance | 0/s, lag 0, 0 quarantined"


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([], 3, "   "),
        ([0.0, 0.0], 3, "   "),
        ([1.0, 4.0, 8.0], 4, " ▂▅█"),
        ([8.0, 1.0, 1.0], 2, "██"),
        ([1.0], 0, ""),
    ],
)
def test_a_sparkline_is_flush_right_and_as_high_as_its_largest_value(values, width, bars):
    assert sparkline(values, width) == bars


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (9999, "9999"),
        (9999.6, "10.0k"),
        (12_345, "12.3k"),
        (99_950, "100k"),
        (456_000, "456k"),
        (999_500, "1.0M"),
        (7_800_000, "7.8M"),
        (5e9, "5.0G"),
        (3e12, "3T"),
    ],
)
def test_a_count_takes_five_columns_at_most(number, text):
    assert short(number) == text
    assert len(text) <= 5


def test_unknown_values_are_hyphens():
    assert rate_cell(None) == age_cell(None) == "-"
    assert (rate_cell(0.1), age_cell(600)) == ("6/min", "10m")


# Details.


def test_messages_in_flight_are_read_the_longest_first():
    one = {"age": 1.5, "attempt": 2, "topic": "a.b", "message_id": "m1", "place": "f (x.py:1)"}
    document = {"messages": [one, {"age": 9, "topic": "c"}, "no object"]}
    assert in_flight_in(document) == (
        InFlight(9.0, 1, "c", ""),
        InFlight(1.5, 2, "a.b", "m1", "f (x.py:1)"),
    )


@pytest.mark.parametrize("document", [None, [], "text", {"messages": 5}])
def test_another_document_has_no_messages_and_no_causes(document):
    assert in_flight_in(document) == causes_in(document) == handlers_in(document) == ()


def test_causes_are_read_the_most_frequent_first():
    sample = {"error": "builtins.KeyError", "message": "'name'", "routing_key": "a.b"}
    rejected = {"error": "", "message": "", "reason": "no schema"}
    document = [{"count": 1, "sample": rejected}, {"count": 2, "last": 5.0, "sample": sample}]
    assert causes_in(document) == (
        Cause(2, 5.0, "a.b", "KeyError: 'name'"),
        Cause(1, None, "", "no schema"),
    )


def sample(name, value, **labels):
    return {"name": f"messaging_process_duration_seconds{name}", "labels": labels, "value": value}


def test_handlers_are_read_the_slowest_first_with_all_their_outcomes():
    queue, route = {"messaging_destination_name": "q"}, {"fm_route": "on_build"}
    document = [
        *(sample("_sum", 3.0, **queue), sample("_count", 2, **queue)),
        *(
            sample("_sum", 5.0, **queue, error_type="E"),
            sample("_count", 2, **queue, error_type="E"),
        ),
        *(sample("_sum", 9.0, **queue, **route), sample("_count", 1, **queue, **route)),
        *(sample("_sum", 0.0, **route), sample("_count", 0, **route)),
        *(sample("_bucket", 7, **queue, le="1"), {"name": "up", "value": 1}, "no object"),
    ]
    assert handlers_in(document) == (Handler("q, on_build", 9.0, 1), Handler("q", 2.0, 4))
