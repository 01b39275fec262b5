# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs what became of deliveries, and counts it.

Says how often something happened that has no line of its own any more.

Which failures are worth a line of the log, where the same may happen thousands of times.

In five minutes each kind of news has ten lines; what comes after is counted, and the count is said
when the five minutes are over. A message whose first line was written has all its lines, so that
its life is told whole; and so has the end of every message that did not succeed.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from consumer_framework.core.attempt import NO_HISTORY, fingerprint
from consumer_framework.core.delivery import Failed, Skipped, Succeeded, Undecodable
from consumer_framework.core.disposition import SETTLE_RULES, GiveBack, rule_for
from consumer_framework.core.errors import Signal
from consumer_framework.core.log_fields import DISPOSITION, FINGERPRINT, fields_of, run_number
from consumer_framework.core.ports import Observer, Settled

from .wording import because, describe, fate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock, Observation

    Later = Callable[[float, Callable[[], None]], Any]

# Seconds in which news of one kind have LINES lines.
QUIET = 300.0
LINES = 10
# Messages that have lines to come; the oldest of more is told as if it had none so far.
MOST_TOLD = 1000


class Telling(Enum):
    """How a piece of news is told."""

    FIRST = auto()
    AGAIN = auto()
    COUNTED = auto()


@dataclass(slots=True)
class _Period:
    ends: float
    lines: int = 0
    more: int = 0


class News:
    """Decides how each piece of news is told.

    Attributes:
        told: Who has a line, and more to come; oldest first.
    """

    def __init__(self) -> None:
        self._periods: dict[Hashable, _Period] = {}
        self.told: OrderedDict[Hashable, None] = OrderedDict()

    def tell(
        self,
        what: Hashable,
        who: Hashable,
        now: float,
        *,
        always: bool = False,
        is_last: bool = False,
    ) -> Telling:
        """Decide how to tell that *what* happened to *who*.

        Args:
            what: The kind of the news.
            who: The message.
            now: Seconds of a clock that never goes back. What :meth:`ended` then is forgotten.
            always: Give it a line, however many there were.
            is_last: Nothing more will be told of this message.
        """
        period = self._periods.get(what)
        telling = Telling.AGAIN
        if period is None or period.ends <= now:
            telling = Telling.FIRST
            period = self._periods[what] = _Period(now + QUIET)
        is_told = always or who in self.told
        if not is_told and period.lines >= LINES:
            period.more += 1
            return Telling.COUNTED
        period.lines += not is_told
        self.told.pop(who, None)
        if not is_last:
            self.told[who] = None
            if len(self.told) > MOST_TOLD:
                self.told.popitem(last=False)
        return telling

    def ended(self, now: float) -> dict[Any, int]:
        """Forget the news that are *now* old; returns those that were counted, and how often."""
        old = [what for what, period in self._periods.items() if period.ends <= now]
        counts = {what: self._periods.pop(what).more for what in old}
        return {what: more for what, more in counts.items() if more}

    @property
    def ends(self) -> float | None:
        """When :meth:`ended` has something to do next; None for never."""
        return min((period.ends for period in self._periods.values()), default=None)


_log = logging.getLogger(__name__)

_TRACE = "trace"


class Summaries:
    """Decides how a delivery's news are told, and sums up those that are not.

    Args:
        clock: The time.
        later: Calls a function after so many seconds, such as a reactor's ``callLater``; None to
            sum up when the next news come.

    Attributes:
        told: The messages, as :func:`who` has them, that have a line, and more to come.
    """

    def __init__(self, clock: Clock, later: Later | None = None) -> None:
        self._clock = clock
        self._later = later
        self._timer: Any = None
        self._news = News()
        self.told: Collection[Hashable] = self._news.told

    def tell(self, delivery: Delivery, disposition: Disposition, cause: str) -> Telling:
        """Decide how to tell that *disposition* is what becomes of *delivery* because of *cause*.

        The end of a message that did not succeed is told each time, and so is an operator's replay.
        """
        ending = rule_for(disposition).ending
        now = self._clock.monotonic()
        self._sum_up(now)
        telling = self._news.tell(
            (type(disposition), cause),
            who(delivery),
            now,
            always=ending == "bad" or delivery.replayed,
            is_last=ending != "open",
        )
        self._set_timer(now)
        return telling

    def has_traced(self, cause: str) -> bool:
        """Whether a traceback of *cause* was logged a short while ago; it counts as logged now."""
        now = self._clock.monotonic()
        telling = self._news.tell((_TRACE, cause), None, now, always=True, is_last=True)
        return telling is not Telling.FIRST

    def close(self) -> None:
        """Sum up everything; nothing is told afterwards."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._sum_up(math.inf)

    def _set_timer(self, now: float) -> None:
        ends = self._news.ends
        if self._later is not None and self._timer is None and ends is not None:
            self._timer = self._later(ends - now, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        self._sum_up(now)
        self._set_timer(now)

    def _sum_up(self, now: float) -> None:
        for (kind, cause), more in self._news.ended(now).items():
            _log.warning(
                "%s: %d more times a message was %s, without a line of its own",
                cause,
                more,
                SETTLE_RULES[kind].words.verb,
                extra={DISPOSITION: SETTLE_RULES[kind].words.field, FINGERPRINT: cause},
            )


def who(delivery: Delivery) -> Hashable:
    """What the news know a message by."""
    return delivery.queue, delivery.routing_key, delivery.message_id


# In a summary, what stands where a failure's fingerprint does.
_PAST = "after an earlier failure or delay"


class DeliveryLog(Observer):
    """An observer with a line for all that an operator may have to know; none for plain success.

    Failures of the same cause are errors with a traceback once in five minutes. The next ones have
    a line of a lower level, and lines beyond :data:`LINES` are counted.

    Args:
        clock: The time.
        later: As :class:`.Summaries` takes it.
    """

    def __init__(self, clock: Clock, later: Later | None = None) -> None:
        self._summaries = Summaries(clock, later)
        self._told = self._summaries.told

    def notify(self, event: Observation) -> None:
        """Log a settle that is not plain success."""
        if not isinstance(event, Settled):
            return
        delivery, outcome, decision, is_void = event
        disposition = decision.disposition
        if is_void:
            _void(delivery, disposition)
            return
        is_good = rule_for(disposition).ending == "good"
        is_plain = is_good and not self._has_past(delivery)
        if is_plain and not _log.isEnabledFor(logging.DEBUG):
            return
        match outcome:
            case Failed(error) if not isinstance(error, Signal):
                self._failed(delivery, error, disposition)
            case Undecodable(error):
                self._failed(delivery, error, disposition)
            case Succeeded() | Skipped():
                self._succeeded(delivery, outcome, disposition, is_plain=is_plain)
            case _:
                self._decided(delivery, outcome, disposition)

    def close(self) -> None:
        """Say what was counted so far; call it at the end."""
        self._summaries.close()

    def _has_past(self, delivery: Delivery) -> bool:
        """Whether this is not all that there is to tell of it."""
        has_failed = delivery.history is not NO_HISTORY and run_number(delivery) > 1
        is_told = bool(self._told) and who(delivery) in self._told
        return has_failed or bool(delivery.row) or is_told

    def _failed(self, delivery: Delivery, error: BaseException, disposition: Disposition) -> None:
        cause = fingerprint(error)
        # A message that is held, and one that is quarantined, are two pieces of news.
        telling = self._summaries.tell(delivery, disposition, cause)
        is_end = rule_for(disposition).ending == "bad"
        again = logging.WARNING if is_end else logging.INFO
        is_first = telling is Telling.FIRST
        _log.log(
            logging.ERROR if is_first else _level(telling, again),
            "%s failed at attempt %d%s; it is %s",
            describe(delivery),
            run_number(delivery),
            _in_replay(delivery),
            fate(disposition),
            exc_info=error if is_first and not self._summaries.has_traced(cause) else None,
            extra=fields_of(delivery, disposition, cause),
        )

    def _succeeded(
        self,
        delivery: Delivery,
        outcome: Succeeded | Skipped,
        disposition: Disposition,
        *,
        is_plain: bool,
    ) -> None:
        level = logging.DEBUG
        if not is_plain:
            level = _level(self._summaries.tell(delivery, disposition, _PAST), logging.INFO)
        _log.log(
            level,
            "%s %s at attempt %d%s",
            describe(delivery),
            "succeeded" if isinstance(outcome, Succeeded) else "was skipped",
            run_number(delivery),
            _in_replay(delivery) + because(getattr(outcome, "reason", "")),
            extra=fields_of(delivery, disposition),
        )

    def _decided(self, delivery: Delivery, outcome: Outcome, disposition: Disposition) -> None:
        did_run = isinstance(outcome, Failed)
        cause = type(outcome.error if isinstance(outcome, Failed) else outcome).__name__
        level = rule_for(disposition).level
        if level > logging.DEBUG:
            level = _level(self._summaries.tell(delivery, disposition, cause), level)
        _log.log(
            level,
            "%s is %s",
            describe(delivery),
            fate(disposition),
            extra=fields_of(delivery, disposition, attempt=run_number(delivery) - (not did_run)),
        )


def _void(delivery: Delivery, disposition: Disposition) -> None:
    if not isinstance(disposition, GiveBack):
        _log.warning(
            "%s: its channel is gone, so the broker will deliver it again",
            describe(delivery),
            extra=fields_of(delivery),
        )


def _level(telling: Telling, level: int) -> int:
    return logging.DEBUG if telling is Telling.COUNTED else level


def _in_replay(delivery: Delivery) -> str:
    return ", in a replay" if delivery.replayed else ""
