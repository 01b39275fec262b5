# SPDX-License-Identifier: GPL-2.0-or-later
"""The log lines about messages, pauses and states, and their sums."""

from __future__ import annotations

import itertools
import logging
import re
from typing import TYPE_CHECKING

import pytest
from twisted.internet.task import Clock as ReactorClock

from consumer_framework.adapters.log import LINES, QUIET
from consumer_framework.core.attempt import History, attempt_of
from consumer_framework.core.delivery import (
    Blocked,
    Crashed,
    Failed,
    SettledBefore,
    Skipped,
    Succeeded,
    Undecodable,
    Withdrawn,
)
from consumer_framework.core.disposition import (
    Ack,
    Defer,
    GiveBack,
    Halt,
    Hold,
    Quarantine,
    Reject,
    Requeue,
)
from consumer_framework.core.errors import Drop, Retry
from consumer_framework.core.gate import Reason
from consumer_framework.core.lifecycle import State
from consumer_framework.core.ports import Paused, Settled, StateChanged
from consumer_framework.core.recovery import Decision
from consumer_framework.kit.command import CommandError
from consumer_framework.runtime.observe.log import DeliveryLog, fate
from consumer_framework.testing import FakeClock, make_delivery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition


class Time(FakeClock):
    """A clock that a test turns, and the timers that it wakes."""

    def __init__(self) -> None:
        super().__init__()
        self.reactor = ReactorClock()

    def monotonic(self) -> float:
        return self.reactor.seconds()

    def time(self) -> float:
        return self.reactor.seconds()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def delivery_log(time: Time) -> Iterator[DeliveryLog]:
    made = DeliveryLog(time, time.reactor.callLater)
    yield made
    made.detach()


class Log:
    """The records since the last look, from INFO up."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "consumer_framework")
        self._caplog = caplog

    def __call__(self) -> list[logging.LogRecord]:
        found = list(self._caplog.records)
        self._caplog.clear()
        return found

    def lines(self) -> list[str]:
        return [f"{record.levelname} {record.getMessage()}" for record in self()]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


def message(number: int = 1, failures: int = 0, crashes: int = 0, **more) -> Delivery:
    attempts = tuple(attempt_of(failure(), 0.0) for _ in range(failures))
    return make_delivery(message_id=str(number), routing_key="a.topic", **more)._replace(
        history=History(attempts, crashes),
    )


def failure() -> ValueError:
    try:
        raise ValueError("no such thing")  # noqa: TRY301
    except ValueError as error:
        return error


def fields(record: logging.LogRecord) -> dict[str, str]:
    return {name: value for name, value in vars(record).items() if name.startswith("FM_")}


@pytest.fixture
def settle(delivery_log: DeliveryLog):
    def settle_one(
        delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool = False
    ) -> None:
        delivery_log.notify(settled(delivery, outcome, disposition, void=void))

    return settle_one


def settled(
    delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool = False
) -> Settled:
    return Settled(delivery, outcome, Decision(disposition, delivery.history), void)


# The life of one message.


def test_a_success_says_nothing(settle, log):
    settle(make_delivery(), Succeeded(), Ack())
    settle(make_delivery(), Skipped("not ours"), Ack())
    settle(message(), Succeeded(), Ack())
    assert log() == []


def test_at_debug_a_success_has_a_line(settle, caplog):
    caplog.set_level(logging.DEBUG, "consumer_framework")
    settle(message(), Succeeded(), Ack())
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage() == "message 1 on a.topic succeeded at attempt 1"


def test_a_message_that_fails_twice_and_then_succeeds_has_a_line_for_each(settle, log):
    settle(message(), Failed(failure()), Hold(0.0, "ValueError: no such thing"))
    settle(message(failures=1), Failed(failure()), Defer(0.0, "ValueError: no such thing"))
    settle(message(failures=2), Succeeded(), Ack())
    first, second, third = log()
    assert first.levelno == logging.ERROR
    assert first.getMessage().startswith("message 1 on a.topic failed at attempt 1; it is held")
    assert first.getMessage().endswith(": ValueError: no such thing")
    assert first.exc_info
    assert second.getMessage().startswith("message 1 on a.topic failed at attempt 2; it is defer")
    assert not second.exc_info
    assert third.levelno == logging.INFO
    assert third.getMessage() == "message 1 on a.topic succeeded at attempt 3"
    told = [fields(record) for record in (first, second, third)]
    assert [f["FM_MESSAGE_ID"] for f in told] == ["1", "1", "1"]
    assert [f["FM_ATTEMPT"] for f in told] == ["1", "2", "3"]
    assert [f["FM_DISPOSITION"] for f in told] == ["hold", "defer", "ack"]
    assert told[0]["FM_FINGERPRINT"] == "ValueError in unit/test_delivery_log.py:failure"


def test_one_that_was_put_off_by_its_author_has_its_success_too(settle, log):
    held = Hold(0.0, "not yet")
    settle(make_delivery(), Failed(Retry("not yet")), held)
    settle(make_delivery(), Skipped("too late"), Ack())
    settle(make_delivery(), Succeeded(), Ack())
    assert log.lines() == [
        f"INFO message 1 on a.topic is {fate(held)}",
        "INFO message 1 on a.topic was skipped at attempt 1: too late",
    ]


def test_one_that_comes_from_the_store_has_its_success(settle, log):
    settle(make_delivery(row=7), Succeeded(), Ack())
    assert log.lines() == ["INFO message 1 on a.topic succeeded at attempt 1"]


def test_one_in_whose_handler_the_process_died_has_its_success(settle, log):
    settle(message(crashes=1), Succeeded(), Ack())
    assert log.lines() == ["INFO message 1 on a.topic succeeded at attempt 2"]


def test_a_replay_says_that_it_is_one(settle, log):
    settle(message(failures=1, row=7, replayed=True), Failed(failure()), Quarantine("no"))
    settle(message(failures=2, row=7, replayed=True), Succeeded(), Ack())
    assert log.lines() == [
        "ERROR message 1 on a.topic failed at attempt 2, in a replay; it is quarantined: no",
        "INFO message 1 on a.topic succeeded at attempt 3, in a replay",
    ]


@pytest.mark.parametrize(
    ("outcome", "disposition", "line", "attempt"),
    [
        (Crashed(2), Quarantine("died"), "WARNING {} is {}", "2"),
        (Blocked(), Defer(0.0, "b"), "INFO {} is {}", "2"),
        (Failed(Drop("no")), Reject("no"), "INFO {} is {}", "3"),
        (Failed(Retry("no")), Requeue("no"), "INFO {} is {}", "3"),
        (
            Failed(failure()),
            Halt(3, requeue=True, reason="x"),
            "ERROR {} failed at attempt 3; it is {}",
            "3",
        ),
        (Undecodable(failure()), Reject(), "ERROR {} failed at attempt 3; it is {}", "3"),
    ],
)
def test_each_other_disposition_has_a_line(settle, log, outcome, disposition, line, attempt):
    settle(message(failures=1, crashes=1), outcome, disposition)
    (record,) = log()
    said = f"{record.levelname} {record.getMessage()}"
    assert said == line.format("message 1 on a.topic", fate(disposition))
    assert fields(record)["FM_ATTEMPT"] == attempt


@pytest.mark.parametrize("outcome", [SettledBefore(), Withdrawn()])
def test_a_delivery_that_no_handler_saw_has_no_line(settle, log, outcome):
    settle(message(), outcome, GiveBack() if isinstance(outcome, Withdrawn) else Ack())
    assert log() == []


def test_a_settle_that_is_void_says_that_it_comes_again_unless_it_was_only_given_back(settle, log):
    settle(message(), Succeeded(), Ack(), void=True)
    settle(message(), Withdrawn(), GiveBack(), void=True)
    (record,) = log()
    assert "the broker will deliver it again" in record.getMessage()
    assert fields(record)["FM_MESSAGE_ID"] == "1"


# Repetitions.


def test_the_same_failure_is_an_error_with_a_traceback_once(settle, log):
    for number in range(3):
        settle(message(number), Failed(failure()), Hold(0.0))
    settle(message(), Failed(failure()), Quarantine("no"))
    settle(message(2), Failed(failure()), Quarantine("no"))
    records = log()
    levels = [record.levelname for record in records]
    assert levels == ["ERROR", "INFO", "INFO", "ERROR", "WARNING"]
    assert [bool(record.exc_info) for record in records] == [True, False, False, False, False]


def test_a_failure_whose_text_says_all_has_no_traceback(settle, log):
    settle(message(), Failed(CommandError("the command failed: exit code 3", 3)), Hold(0.0))
    (record,) = log()
    assert record.levelname == "ERROR"
    assert not record.exc_info


def test_events_beyond_ten_lines_are_summed_up_when_five_minutes_are_over(settle, log, time):
    for number in range(LINES + 5):
        settle(message(number), Failed(failure()), Hold(0.0))
    assert len(log()) == LINES
    time.reactor.advance(QUIET - 1)
    assert log() == []
    time.reactor.advance(1)
    (record,) = log()
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "ValueError in unit/test_delivery_log.py:failure: 5 more times a message was held, "
        "without a line of its own"
    )
    assert fields(record) == {
        "FM_DISPOSITION": "hold",
        "FM_FINGERPRINT": "ValueError in unit/test_delivery_log.py:failure",
    }
    assert time.reactor.getDelayedCalls() == []


def test_each_five_minutes_are_summed_up_by_themselves(settle, log, time):
    numbers = itertools.count()
    for more in (2, 0, 3):
        for _ in range(LINES + more):
            settle(message(next(numbers)), Failed(failure()), Hold(0.0))
        time.reactor.advance(QUIET)
    errors = [line for line in log.lines() if "failed" not in line or line.startswith("ERROR")]
    assert [re.findall(r"\d+", line)[0] for line in errors] == ["0", "2", "12", "22", "3"]


def test_at_the_end_everything_is_summed_up(delivery_log, settle, log, time):
    for number in range(LINES + 5):
        settle(message(number), Failed(Retry("x")), Hold(0.0))
    log()
    delivery_log.close()
    assert log.lines() == [
        "WARNING Retry: 5 more times a message was held, without a line of its own"
    ]
    assert time.reactor.getDelayedCalls() == []
    delivery_log.close()
    assert log() == []


def test_without_a_timer_the_next_event_brings_the_sum(time, log):
    delivery_log = DeliveryLog(time)
    for number in range(LINES + 1):
        delivery_log.notify(settled(message(number), Failed(failure()), Hold(0.0)))
    log()
    time.reactor.advance(QUIET)
    delivery_log.notify(settled(message(99), Failed(failure()), Hold(0.0)))
    delivery_log.detach()
    summary, again = log()
    assert "1 more times" in summary.getMessage()
    assert again.levelno == logging.ERROR
    assert again.exc_info


def test_every_message_that_is_quarantined_has_its_line(settle, log):
    for number in range(5 * LINES):
        settle(message(number), Failed(failure()), Quarantine("no"))
    assert len(log()) == 5 * LINES


def test_a_message_whose_failure_has_a_line_has_its_success_and_others_are_counted(
    delivery_log, settle, log
):
    for number in range(3 * LINES):
        settle(message(number), Failed(failure()), Hold(0.0))
    log()
    for number in reversed(range(3 * LINES)):
        settle(message(number, failures=1), Succeeded(), Ack())
    told = [fields(record)["FM_MESSAGE_ID"] for record in log()]
    assert set(map(str, range(LINES))) <= set(told)
    assert len(told) == 2 * LINES
    delivery_log.close()
    assert [line.split(": ", 1)[1] for line in log.lines()] == [
        "20 more times a message was held, without a line of its own",
        "10 more times a message was acknowledged, without a line of its own",
    ]


def test_text_of_publishers_and_authors_begins_no_line_and_is_bounded(settle, log):
    hostile = "first\nERROR forged\x1b[2J\x9b\u2028\x85\r" + "x" * 10_000
    delivery = make_delivery(message_id=hostile[:200], routing_key=hostile[:200])
    settle(delivery, Failed(ValueError(hostile)), Quarantine(f"ValueError: {hostile}"))
    settle(delivery, Skipped(hostile), Ack())
    settle(delivery, Failed(Drop(hostile)), Reject(hostile))
    lines = log.lines()
    assert len(lines) >= 2
    assert all(line.isprintable() and len(line) < 3000 for line in lines)


# Pauses and states.


def test_a_pause_and_its_end_have_a_line(delivery_log, log):
    delivery_log.notify(Paused(Reason.STORE, "no space left on device"))
    delivery_log.notify(Paused(Reason.STORE, ""))
    assert log.lines() == [
        "WARNING paused: no space left on device",
        "INFO the store works again",
    ]


def test_another_state_has_a_line_for_debugging(delivery_log, caplog):
    caplog.set_level(logging.DEBUG, "consumer_framework")
    delivery_log.notify(StateChanged(State.CONNECTING, State.SUBSCRIBING))
    assert [record.getMessage() for record in caplog.records] == ["connecting -> subscribing"]
