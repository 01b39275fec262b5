# SPDX-License-Identifier: GPL-2.0-or-later
"""The throttle of the log: ten lines in five minutes for each kind of event."""

import pytest

from consumer_framework.runtime.observe.log import LINES, MOST_OPEN, QUIET, LineKind, LogThrottle


@pytest.fixture
def throttle():
    return LogThrottle()


def test_the_first_event_of_a_kind_is_distinguished_from_its_repetitions(throttle):
    assert throttle.admit("a", 1, 0.0) is LineKind.FIRST
    assert throttle.admit("a", 2, 1.0) is LineKind.REPEATED
    assert throttle.admit("b", 2, 1.0) is LineKind.FIRST


def test_events_beyond_ten_lines_are_counted_until_five_minutes_are_over(throttle):
    told = [throttle.admit("a", who, 0.0) for who in range(LINES + 3)]
    assert told == [LineKind.FIRST, *[LineKind.REPEATED] * (LINES - 1), *[LineKind.COUNTED] * 3]
    assert throttle.ends == QUIET
    assert throttle.ended(QUIET - 0.1) == {}
    assert throttle.ended(QUIET) == {"a": 3}
    assert throttle.ended(QUIET) == {}
    assert throttle.ends is None


def test_events_that_all_had_lines_have_no_count(throttle):
    throttle.admit("a", 1, 0.0)
    assert throttle.ended(QUIET) == {}


def test_after_five_minutes_the_next_event_is_the_first_of_its_kind_again(throttle):
    for who in range(LINES):
        throttle.admit("a", who, 0.0)
    assert throttle.admit("a", "other", QUIET) is LineKind.FIRST
    assert throttle.admit("a", "another", QUIET + 1) is LineKind.REPEATED


def test_a_message_that_has_a_line_has_all_its_lines(throttle):
    for who in range(LINES):
        throttle.admit("held", who, 0.0)
    assert throttle.admit("held", 3, 1.0) is LineKind.REPEATED
    assert throttle.admit("held", "new", 1.0) is LineKind.COUNTED
    assert 3 in throttle.open_messages
    assert "new" not in throttle.open_messages


def test_the_lines_of_a_message_that_has_some_are_not_taken_from_others(throttle):
    for _ in range(3 * LINES):
        throttle.admit("held", "same", 0.0)
    assert throttle.admit("held", "new", 0.0) is LineKind.REPEATED


def test_after_its_last_line_a_message_has_no_privilege(throttle):
    throttle.admit("held", 1, 0.0)
    assert throttle.open_messages
    throttle.admit("done", 1, 0.0, is_last=True)
    assert not throttle.open_messages
    for who in range(LINES):
        throttle.admit("held", f"other {who}", 0.0)
    assert throttle.admit("held", 1, 0.0) is LineKind.COUNTED


def test_an_event_that_always_has_a_line_takes_no_line_from_others(throttle):
    told = [throttle.admit("a", who, 0.0, always=True, is_last=True) for who in range(100)]
    assert told == [LineKind.FIRST, *[LineKind.REPEATED] * 99]
    assert throttle.admit("a", "other", 0.0) is LineKind.REPEATED
    assert throttle.ended(QUIET) == {}


def test_the_memory_of_open_messages_is_bounded(throttle):
    for who in range(MOST_OPEN + 1):
        throttle.admit(f"kind {who}", who, 0.0)
    assert 0 not in throttle.open_messages
    assert 1 in throttle.open_messages
    assert MOST_OPEN in throttle.open_messages
