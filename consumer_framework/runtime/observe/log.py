# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of an instance: an observer with a line for each thing that an operator may have to know.

A plain success has no line. Failures of the same cause are errors with a traceback once in five
minutes; the next ones have a line of a lower level. The same failure may happen thousands of times,
so in each five minutes :class:`LogThrottle` gives ten lines to each kind of event. It counts the
others, and the count is logged when the five minutes are over.

A message that has one line has all its lines, so that its life is told whole. The end of every
message that did not succeed has a line, always.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from consumer_framework.core.attempt import LINE_LIMIT, NO_HISTORY, fingerprint
from consumer_framework.core.delivery import Failed, Skipped, Succeeded, Undecodable, readable
from consumer_framework.core.disposition import (
    SETTLE_RULES,
    Defer,
    GiveBack,
    Halt,
    Hold,
    rule_for,
)
from consumer_framework.core.errors import Signal
from consumer_framework.core.gate import Reason
from consumer_framework.core.log_fields import DISPOSITION, FINGERPRINT, fields_of, run_number
from consumer_framework.core.ports import Observer, Paused, Ran, Settled, StateChanged
from consumer_framework.core.text import clipped, moment, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from consumer_framework.adapters.store import Row
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock, Observation

    # Such as a reactor's.
    CallLater = Callable[[float, Callable[[], None]], Any]

_log = logging.getLogger(__name__)

# Seconds in which one kind of event has LINES lines.
QUIET = 300.0
LINES = 10
# Messages that have lines to come. The oldest one beyond that counts as if it had none so far.
MOST_OPEN = 1000


class LineKind(Enum):
    """The way in which an event is logged."""

    FIRST = auto()  # with a line, the first of its kind in these five minutes
    REPEATED = auto()  # with a line
    COUNTED = auto()  # without a line


@dataclass(slots=True)
class _Period:
    ends: float
    lines: int = 0
    counted: int = 0


class LogThrottle:
    """Decides which events have a line of the log, and counts the others.

    Attributes:
        open_messages: The messages that have a line, and more to come; oldest first.
    """

    def __init__(self) -> None:
        self._periods: dict[Hashable, _Period] = {}
        self.open_messages: OrderedDict[Hashable, None] = OrderedDict()

    def admit(
        self,
        kind: Hashable,
        message: Hashable,
        now: float,
        *,
        always: bool = False,
        is_last: bool = False,
    ) -> LineKind:
        """Decide how an event is logged.

        Args:
            kind: The kind of the event.
            message: The message that it happened to.
            now: Seconds of a clock that never goes back. Call :meth:`ended` with it before.
            always: Whether the event has a line, however many there were.
            is_last: Whether nothing more will be logged of this message.
        """
        period = self._periods.get(kind)
        line = LineKind.REPEATED
        if period is None or period.ends <= now:
            line = LineKind.FIRST
            period = self._periods[kind] = _Period(now + QUIET)
        is_due = always or message in self.open_messages
        if not is_due and period.lines >= LINES:
            period.counted += 1
            return LineKind.COUNTED
        period.lines += not is_due
        self.open_messages.pop(message, None)
        if not is_last:
            self.open_messages[message] = None
            if len(self.open_messages) > MOST_OPEN:
                self.open_messages.popitem(last=False)
        return line

    def ended(self, now: float) -> dict[Any, int]:
        """Forget the kinds whose five minutes are over; return the counts that are not 0."""
        old = [kind for kind, period in self._periods.items() if period.ends <= now]
        counts = {kind: self._periods.pop(kind).counted for kind in old}
        return {kind: counted for kind, counted in counts.items() if counted}

    @property
    def ends(self) -> float | None:
        """The moment at which :meth:`ended` has something to do next; None for never."""
        return min((period.ends for period in self._periods.values()), default=None)


# The kind of event that a traceback is.
_TRACEBACK = "traceback"
# The cause in the summary of successes.
_LATE_SUCCESS = "after an earlier failure or delay"
_RESUMED = {
    Reason.DEPENDENCY: "the dependency works again",
    Reason.STORE: "the store works again",
    Reason.ORDER: "nothing in the store is in the way any more",
}


class DeliveryLog(Observer):
    """The observer that logs.

    Args:
        clock: The time.
        call_later: Calls a function after so many seconds; None to log counts with the next event.
    """

    def __init__(self, clock: Clock, call_later: CallLater | None = None) -> None:
        self._clock = clock
        self._call_later = call_later
        self._timer: Any = None
        self._throttle = LogThrottle()
        self._open = self._throttle.open_messages

    def notify(self, event: Observation) -> None:
        """Log *event*, where an operator may have to know of it."""
        match event:
            case Settled():
                self._settled(event)
            case Ran():
                pass
            case Paused(reason, text):
                if text:
                    _log.warning("paused: %s", text)
                else:
                    _log.info("%s", _RESUMED[reason])
            case StateChanged(before, after):
                _log.debug("%s -> %s", before.name.lower(), after.name.lower())

    def close(self) -> None:
        """Log all counts; call it at the end."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._log_counts(math.inf)

    # One settle.

    def _settled(self, event: Settled) -> None:
        delivery, outcome, decision, is_void = event
        disposition = decision.disposition
        if is_void:
            _log_void(delivery, disposition)
            return
        is_good = rule_for(disposition).ending == "good"
        is_plain = is_good and not self._has_past(delivery)
        if is_plain and not _log.isEnabledFor(logging.DEBUG):
            return
        match outcome:
            case Failed(error) if not isinstance(error, Signal):
                self._log_failure(delivery, error, disposition)
            case Undecodable(error):
                self._log_failure(delivery, error, disposition)
            case Succeeded() | Skipped():
                self._log_success(delivery, outcome, disposition, is_plain=is_plain)
            case _:
                self._log_decision(delivery, outcome, disposition)

    def _has_past(self, delivery: Delivery) -> bool:
        has_failed = delivery.history is not NO_HISTORY and run_number(delivery) > 1
        has_line = bool(self._open) and _key(delivery) in self._open
        return has_failed or bool(delivery.row) or has_line

    def _log_failure(
        self, delivery: Delivery, error: BaseException, disposition: Disposition
    ) -> None:
        cause = fingerprint(error)
        # A message that is held, and one that is quarantined, are two kinds of event.
        line = self._admit(delivery, disposition, cause)
        is_end = rule_for(disposition).ending == "bad"
        repeated = logging.WARNING if is_end else logging.INFO
        is_first = line is LineKind.FIRST
        _log.log(
            logging.ERROR if is_first else _level(line, repeated),
            "%s failed at attempt %d%s; it is %s",
            describe(delivery),
            run_number(delivery),
            _in_replay(delivery),
            fate(disposition),
            exc_info=error if is_first and not self._has_traceback(cause) else None,
            extra=fields_of(delivery, disposition, cause),
        )

    def _log_success(
        self,
        delivery: Delivery,
        outcome: Succeeded | Skipped,
        disposition: Disposition,
        *,
        is_plain: bool,
    ) -> None:
        level = logging.DEBUG
        if not is_plain:
            level = _level(self._admit(delivery, disposition, _LATE_SUCCESS), logging.INFO)
        _log.log(
            level,
            "%s %s at attempt %d%s",
            describe(delivery),
            "succeeded" if isinstance(outcome, Succeeded) else "was skipped",
            run_number(delivery),
            _in_replay(delivery) + because(getattr(outcome, "reason", "")),
            extra=fields_of(delivery, disposition),
        )

    def _log_decision(self, delivery: Delivery, outcome: Outcome, disposition: Disposition) -> None:
        did_run = isinstance(outcome, Failed)
        cause = type(outcome.error if isinstance(outcome, Failed) else outcome).__name__
        level = rule_for(disposition).level
        if level > logging.DEBUG:
            level = _level(self._admit(delivery, disposition, cause), level)
        _log.log(
            level,
            "%s is %s",
            describe(delivery),
            fate(disposition),
            extra=fields_of(delivery, disposition, attempt=run_number(delivery) - (not did_run)),
        )

    # The throttle and its counts.

    def _admit(self, delivery: Delivery, disposition: Disposition, cause: str) -> LineKind:
        ending = rule_for(disposition).ending
        now = self._clock.monotonic()
        self._log_counts(now)
        line = self._throttle.admit(
            (type(disposition), cause),
            _key(delivery),
            now,
            always=ending == "bad" or delivery.replayed,
            is_last=ending != "open",
        )
        self._set_timer(now)
        return line

    def _has_traceback(self, cause: str) -> bool:
        """Tell whether a traceback of *cause* was logged lately, and count one as logged now."""
        now = self._clock.monotonic()
        kind = (_TRACEBACK, cause)
        return self._throttle.admit(kind, None, now, always=True, is_last=True) != LineKind.FIRST

    def _set_timer(self, now: float) -> None:
        ends = self._throttle.ends
        if self._call_later is not None and self._timer is None and ends is not None:
            self._timer = self._call_later(ends - now, self._period_ended)

    def _period_ended(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        self._log_counts(now)
        self._set_timer(now)

    def _log_counts(self, now: float) -> None:
        for (kind, cause), counted in self._throttle.ended(now).items():
            words = SETTLE_RULES[kind].words
            _log.warning(
                "%s: %d more times a message was %s, without a line of its own",
                cause,
                counted,
                words.verb,
                extra={DISPOSITION: words.field, FINGERPRINT: cause},
            )


def _log_void(delivery: Delivery, disposition: Disposition) -> None:
    if not isinstance(disposition, GiveBack):
        _log.warning(
            "%s: its channel is gone, so the broker will deliver it again",
            describe(delivery),
            extra=fields_of(delivery),
        )


def _key(delivery: Delivery) -> Hashable:
    return delivery.queue, delivery.routing_key, delivery.message_id


def _level(line: LineKind, level: int) -> int:
    return logging.DEBUG if line is LineKind.COUNTED else level


def _in_replay(delivery: Delivery) -> str:
    return ", in a replay" if delivery.replayed else ""


# The words of log lines.


def describe(message: Delivery | Row) -> str:
    """Name a message in a log line."""
    name = message.message_id or "(no id)"
    return printable(f"message {name} on {readable(message.routing_key)}")


def fate(disposition: Disposition) -> str:
    """Return the words for *disposition* in a log line, with its reason."""
    verb = rule_for(disposition).words.verb
    reason = because(disposition.reason)
    if isinstance(disposition, Hold | Defer):
        return f"{verb} until {moment(disposition.until)}{reason}"
    if isinstance(disposition, Halt):
        given = "requeued" if disposition.requeue else "acknowledged"
        return f"{given} and halts the instance with exit code {disposition.exit_code}{reason}"
    return f"{verb}{reason}"


def because(reason: str) -> str:
    """Return *reason* with a colon before it, to be put behind its effect; "" for no reason."""
    return f": {printable(clipped(reason, LINE_LIMIT))}" if reason else ""
