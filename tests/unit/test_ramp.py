# SPDX-License-Identifier: GPL-2.0-or-later
"""The stages of a replay, and the failures that stop it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.ramp import Progress, Ramp, checked, percentage_of, stages_of

STAGES = st.lists(st.floats(0.01, 100), min_size=1, max_size=6, unique=True).map(sorted)
RESULTS = st.sampled_from(["succeeded", "reject", "failed", "halt", "skipped", "defer"])


def sizes(text, total):
    return [stage.size for stage in Ramp(stages_of(text)).of(total)]


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("1,5,20,100", 400, [4, 16, 60, 320]),
        ("1,5,20,100", 12, [1, 2, 9]),
        ("1,5,20,100", 1, [1]),
        ("1%, 50%", 10, [1, 4]),
        ("0.1,100", 10_000, [10, 9_990]),
        ("7,100", 100, [7, 93]),
        ("100", 3, [3]),
        ("1,100", 0, []),
    ],
)
def test_a_stage_goes_up_to_its_percentage_of_all_messages(text, total, expected):
    assert sizes(text, total) == expected


@given(STAGES, st.integers(0, 5000))
def test_the_stages_have_each_message_once_and_none_is_empty(percentages, total):
    stages = Ramp(tuple(percentages)).of(total)
    assert all(stage.size > 0 for stage in stages)
    assert [stage.number for stage in stages] == list(range(1, len(stages) + 1))
    ends = [0, *(stage.end for stage in stages)]
    assert [stage.first for stage in stages] == ends[:-1]
    assert ends[-1] <= total
    assert percentages[-1] < 100 or ends[-1] == total


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no list of percentages"),
        ("1,,5", "no list of percentages"),
        ("one", "no list of percentages"),
        ("0,5", "more than 0 and at most 100"),
        ("5,101", "more than 0 and at most 100"),
        ("nan", "more than 0 and at most 100"),
        ("5,1", "greater than the one before"),
        ("5,5", "greater than the one before"),
    ],
)
def test_a_text_that_has_no_stages_is_refused_with_the_reason(text, why):
    with pytest.raises(ValueError, match=why):
        stages_of(text)


@pytest.mark.parametrize("text", ["5", "", "%", "x%", "-1%", "101%", "nan%"])
def test_a_limit_without_a_percentage_is_refused(text):
    with pytest.raises(ValueError, match=r"no percentage such as 5%"):
        percentage_of(text)


def test_percentages_may_have_fractions():
    assert (percentage_of("0.5%"), percentage_of("0%"), percentage_of("100%")) == (0.5, 0, 100)
    assert checked([0.5, 100.0]) == (0.5, 100.0)


def run(ramp, total, result, begin=()):
    """Run messages until the replay stops or is done; *result* makes the result of a position."""
    progress = Progress.begin(ramp, total, begin)
    while progress.stage is not None and not progress.stop:
        progress = progress.after(result(progress.position))
    return progress


def test_a_replay_stops_at_the_failure_that_reaches_the_limit_of_its_stage():
    ramp = Ramp((1.0, 100.0), stop_at=5.0)
    # Of the first 4 messages none fails; of the other 396 every tenth.
    end = run(ramp, 400, lambda position: "failed" if position % 10 == 9 else "succeeded")
    assert (end.position, end.failed, end.succeeded) == (200, 20, 180)
    assert end.stop == "20 of 396 in stage 2 of 2 failed; the limit is 5%"


@pytest.mark.parametrize("limit", [0.0, 5.0, 25.0])
def test_a_stage_of_few_messages_stops_at_its_first_failure(limit):
    end = run(Ramp((1.0, 100.0), limit), 400, lambda _position: "failed")
    assert (end.position, end.failed) == (1, 1)


def test_failures_of_an_earlier_stage_do_not_count():
    ramp = Ramp((50.0, 100.0), stop_at=30.0)
    end = run(ramp, 20, lambda position: "failed" if position % 5 == 0 else "succeeded")
    assert (end.position, end.failed, end.stop) == (20, 4, "")


def test_messages_that_were_not_tried_are_no_failures():
    end = run(Ramp((100.0,), 0.0), 5, lambda position: ["skipped", "defer", "reject"][position % 3])
    assert (end.position, end.failed, end.succeeded, end.stop) == (5, 0, 1, "")


def test_a_replay_without_a_limit_goes_on_whatever_fails():
    end = run(Ramp((10.0, 100.0), None), 30, lambda _position: "failed")
    assert (end.position, end.stop) == (30, "")


def test_a_replay_that_goes_on_takes_the_rest_of_a_stage_as_a_stage():
    begun = ["succeeded"] * 9 + ["failed"]
    end = run(Ramp((100.0,), stop_at=10.0), 20, lambda _position: "succeeded", begun)
    assert (end.position, end.failed, end.stop) == (20, 1, "")
    end = run(Ramp((100.0,), stop_at=10.0), 20, lambda _position: "failed", begun)
    assert (end.position, end.failed) == (11, 2)
    assert end.stop == "1 of 10 in stage 1 of 1 failed; the limit is 10%"
    end = run(Ramp((50.0, 100.0), stop_at=100.0), 40, lambda _position: "failed", begun)
    assert (end.position, end.stop) == (20, "10 of 10 in stage 1 of 2 failed; the limit is 100%")


@given(STAGES, st.floats(0, 100), st.lists(RESULTS, max_size=200))
def test_a_replay_never_has_more_failures_in_a_stage_than_its_limit(percentages, limit, results):
    ramp = Ramp(tuple(percentages), limit)
    end = run(ramp, len(results), results.__getitem__)
    for stage in end.stages:
        failed = [
            r in {"failed", "halt"} for r in results[stage.first : min(stage.end, end.position)]
        ]
        assert sum(failed) <= ramp.most_failures(stage.size)
        if sum(failed) == ramp.most_failures(stage.size):
            assert end.stop
            assert failed[-1]
            assert end.position == stage.first + len(failed)


def test_there_is_nothing_behind_the_last_message():
    end = run(Ramp(), 1, lambda _position: "succeeded")
    with pytest.raises(ValueError, match="no message left"):
        end.after("succeeded")
    assert end.limit == "none"
