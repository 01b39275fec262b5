# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs what became of deliveries, and counts it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from consumer_framework.core.attempt import NO_HISTORY, fingerprint
from consumer_framework.core.delivery import Failed, Skipped, Succeeded, Undecodable
from consumer_framework.core.disposition import Ack, GiveBack, Halt, Quarantine, Reject
from consumer_framework.core.errors import Signal
from consumer_framework.core.fields import fields_of, run_number
from consumer_framework.core.news import Telling
from consumer_framework.core.stats import Counters

from .summaries import Summaries, who
from .wording import because, describe, fate

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock

    from .summaries import Later

_log = logging.getLogger(__name__)

# In a summary, what stands where a failure's fingerprint does.
_PAST = "after an earlier failure or delay"


class LogRecorder(Counters):
    """A :class:`.Recorder`: a line for what an operator may have to know, none for plain success.

    Failures of the same cause are errors with a traceback once in five minutes. The next ones have
    a line of a lower level, and what is more than :data:`.news.LINES` is counted.

    Args:
        clock: The time.
        later: As :class:`.Summaries` takes it.
    """

    def __init__(self, clock: Clock, later: Later | None = None) -> None:
        super().__init__()
        self._summaries = Summaries(clock, later)
        self._told = self._summaries.told

    def settled(
        self, delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool
    ) -> None:
        """Count, and log what is not plain success."""
        super().settled(delivery, outcome, disposition, void=void)
        if void:
            _void(delivery, disposition)
            return
        is_plain = isinstance(disposition, Ack) and not self._has_past(delivery)
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
        is_end = isinstance(disposition, Quarantine | Reject | Halt)
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
        match disposition:
            case Ack() | GiveBack():
                level = logging.DEBUG
            case Quarantine() | Halt():
                level = _level(self._summaries.tell(delivery, disposition, cause), logging.WARNING)
            case _:
                level = _level(self._summaries.tell(delivery, disposition, cause), logging.INFO)
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
