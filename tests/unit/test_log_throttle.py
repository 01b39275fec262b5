# SPDX-License-Identifier: GPL-2.0-or-later
"""The throttle of the log: ten lines in five minutes for each kind of event."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock as ReactorClock

from consumer_framework.adapters.log import (
    LINES,
    MOST_OPEN,
    QUIET,
    LogThrottle,
    Occurrence,
    RedactedRecord,
)
from consumer_framework.core.disposition import Ack, Hold, Quarantine
from consumer_framework.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


class Throttled(FakeClock):
    """A logger with a throttle, and a clock that a test turns."""

    def __init__(self, caplog: pytest.LogCaptureFixture, *, has_timer: bool = False) -> None:
        super().__init__()
        self.reactor = ReactorClock()
        self.logger = logging.getLogger("consumer_framework.throttled")
        self._caplog = caplog
        caplog.set_level(logging.INFO, self.logger.name)
        call_later = self.reactor.callLater if has_timer else None
        self.throttle = LogThrottle(self.logger, self, call_later)

    def monotonic(self) -> float:
        return self.reactor.seconds()

    def time(self) -> float:
        return self.reactor.seconds()

    def told(self) -> list[str]:
        """Return the levels and texts of the lines since the last call."""
        lines = [f"{record.levelname} {record.getMessage()}" for record in self._caplog.records]
        self._caplog.clear()
        return lines

    def fail(self, message: Hashable, cause: str = "a", **more: Any) -> list[str]:
        """Log a failure, and return the lines that it has."""
        occurrence = Occurrence(self.throttle, Hold, cause, message, logging.INFO)._replace(**more)
        self.logger.error("%s: %s", cause, message, extra={"occurrence": occurrence})
        return self.told()

    def turn(self, seconds: float) -> list[str]:
        """Let time pass, and return the lines of it."""
        self.reactor.advance(seconds)
        return self.told()


@pytest.fixture
def failures(caplog: pytest.LogCaptureFixture) -> Iterator[Throttled]:
    made = Throttled(caplog, has_timer=True)
    yield made
    made.throttle.detach()
    assert made.logger.filters == []


def summary(more: int, cause: str = "a") -> list[str]:
    return [f"WARNING {cause}: {more} more times a message was held, without a line of its own"]


def test_the_first_event_of_a_kind_is_distinguished_from_its_repetitions(failures):
    assert failures.fail(1) == ["ERROR a: 1"]
    assert failures.fail(2) == ["INFO a: 2"]
    assert failures.fail(2, "b") == ["ERROR b: 2"]
    assert failures.fail(3, "b", disposition=Quarantine) == ["ERROR b: 3"]


def test_events_beyond_ten_lines_are_counted_until_five_minutes_are_over(failures):
    told = [failures.fail(message) for message in range(LINES + 3)]
    assert [len(lines) for lines in told] == [1] * LINES + [0] * 3
    assert failures.turn(QUIET - 0.1) == []
    assert failures.turn(0.1) == summary(3)
    assert failures.turn(QUIET) == []
    assert failures.reactor.getDelayedCalls() == []


def test_at_debug_a_counted_event_has_a_line_too(failures, caplog):
    caplog.set_level(logging.DEBUG, failures.logger.name)
    for message in range(LINES):
        failures.fail(message)
    assert failures.fail("other") == ["DEBUG a: other"]


def test_events_that_all_had_lines_have_no_count(failures):
    failures.fail(1)
    assert failures.turn(QUIET) == []


def test_after_five_minutes_the_next_event_is_the_first_of_its_kind_again(failures):
    for message in range(LINES):
        failures.fail(message)
    failures.turn(QUIET)
    assert failures.fail("other") == ["ERROR a: other"]
    failures.turn(1)
    assert failures.fail("another") == ["INFO a: another"]


def test_a_message_that_has_a_line_has_all_its_lines(failures):
    for message in range(LINES):
        failures.fail(message)
    failures.turn(1.0)
    assert failures.fail(3) == ["INFO a: 3"]
    assert failures.fail("new") == []
    assert 3 in failures.throttle.open_messages
    assert "new" not in failures.throttle.open_messages


def test_the_lines_of_a_message_that_has_some_are_not_taken_from_others(failures):
    for _ in range(3 * LINES):
        failures.fail("same")
    assert failures.fail("new") == ["INFO a: new"]


def test_after_its_last_line_a_message_has_no_privilege(failures):
    failures.fail(1)
    assert failures.throttle.open_messages
    failures.fail(1, "done", disposition=Ack, is_last=True)
    assert not failures.throttle.open_messages
    for message in range(LINES):
        failures.fail(f"other {message}")
    assert failures.fail(1) == []


def test_an_event_that_always_has_a_line_takes_no_line_from_others(failures):
    told = [failures.fail(message, always=True, is_last=True) for message in range(100)]
    assert told == [["ERROR a: 0"], *[[f"INFO a: {message}"] for message in range(1, 100)]]
    assert failures.fail("other") == ["INFO a: other"]
    assert failures.turn(QUIET) == []


def test_the_memory_of_open_messages_is_bounded(failures):
    for message in range(MOST_OPEN + 1):
        failures.fail(message, f"kind {message}")
    assert 0 not in failures.throttle.open_messages
    assert 1 in failures.throttle.open_messages
    assert MOST_OPEN in failures.throttle.open_messages


@pytest.mark.parametrize("factory", [logging.LogRecord, RedactedRecord])
def test_a_cause_has_its_traceback_once_in_five_minutes_whatever_becomes_of_messages(
    failures, caplog, monkeypatch, factory
):
    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    handled: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: handled.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    failures.logger.addHandler(handler)
    error = ValueError("no such thing\nERROR forged")
    for disposition in (Hold, Hold, Quarantine):
        failures.fail(1, disposition=disposition, error=error)
    failures.turn(QUIET)
    failures.fail(1, error=error)
    failures.logger.removeHandler(handler)
    assert ["ValueError: no such thing" in text for text in handled] == [True, False, False, True]


def test_other_records_pass_and_nothing_of_the_throttle_stays_on_a_record(failures, caplog):
    for number in range(3 * LINES):
        failures.logger.info("plain %d", number)
    assert len(failures.told()) == 3 * LINES
    occurrence = Occurrence(failures.throttle, Hold, "a", 1, logging.INFO)
    failures.logger.error("x", extra={"occurrence": occurrence})
    (record,) = caplog.records
    assert "occurrence" not in vars(record)


def test_a_level_that_the_logger_does_not_take_has_no_line(failures, caplog):
    caplog.set_level(logging.WARNING, failures.logger.name)
    assert failures.fail(1) == ["ERROR a: 1"]
    assert failures.fail(2) == []
    assert failures.turn(QUIET) == []


def test_the_end_sums_everything_up_and_detaches_the_filter(failures):
    for message in range(LINES + 5):
        failures.fail(message)
    failures.throttle.close()
    assert failures.told() == summary(5)
    assert failures.reactor.getDelayedCalls() == []
    failures.throttle.close()
    assert failures.told() == []
    assert failures.logger.filters == []


def test_without_a_timer_the_next_record_brings_the_sum(caplog):
    failures = Throttled(caplog)
    for message in range(LINES + 1):
        failures.fail(message)
    assert failures.turn(QUIET) == []
    assert failures.fail("next") == [*summary(1), "ERROR a: next"]
    failures.throttle.detach()


def test_two_throttles_of_one_logger_do_not_count_for_each_other(failures, caplog):
    other = Throttled(caplog)
    for message in range(LINES + 1):
        failures.fail(message)
    assert other.fail("first") == ["ERROR a: first"]
    assert failures.fail("more") == []
    other.throttle.close()
    assert failures.turn(QUIET) == summary(2)
