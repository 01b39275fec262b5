# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs what became of deliveries, and counts it."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from consumer_framework.core.attempt import fingerprint
from consumer_framework.core.delivery import Failed, Undecodable
from consumer_framework.core.disposition import (
    Ack,
    Defer,
    Disposition,
    GiveBack,
    Halt,
    Hold,
    Quarantine,
    Reject,
    Requeue,
)
from consumer_framework.core.errors import Signal
from consumer_framework.core.stats import Counters

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.ports import Clock

_log = logging.getLogger(__name__)

# Seconds in which failures of one fingerprint are logged once.
QUIET = 300.0


class LogRecorder(Counters):
    """A :class:`.Recorder`: a line for what an operator may have to know, none for success.

    Failures of the same cause are logged with their traceback once in five minutes, and
    counted in between.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._logged: dict[str, float] = {}
        self._more: Counter[str] = Counter()

    def settled(
        self, delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool
    ) -> None:
        """Count, and log what is not plain success."""
        super().settled(delivery, outcome, disposition, void=void)
        if void and isinstance(disposition, GiveBack):
            return
        if void:
            _log.warning(
                "%s: its channel is gone, so the broker will deliver it again", describe(delivery)
            )
            return
        if isinstance(disposition, Ack) and not _log.isEnabledFor(logging.DEBUG):
            return
        match outcome:
            case Failed(error) if not isinstance(error, Signal):
                self._failed(delivery, error, disposition)
            case Undecodable(error):
                self._failed(delivery, error, disposition)
            case _:
                self._decided(delivery, disposition)

    def _failed(self, delivery: Delivery, error: BaseException, disposition: Disposition) -> None:
        cause = fingerprint(error)
        # A message that is held, and one that is quarantined, are two pieces of news.
        news = f"{type(disposition).__name__} {cause}"
        if self._was_said(news):
            self._more[news] += 1
            _log.debug("%s failed again: %s", describe(delivery), cause)
            return
        more = f" ({self._more.pop(news)} more of this cause since)" if self._more[news] else ""
        trace = None if self._was_said(cause) else error
        _log.error(
            "%s failed%s; it is %s", describe(delivery), more, fate(disposition), exc_info=trace
        )

    def _was_said(self, what: str) -> bool:
        """Whether *what* was said a short while ago; it counts as said now if not."""
        last, now = self._logged.get(what), self._clock.monotonic()
        if last is not None and now - last < QUIET:
            return True
        self._logged[what] = now
        return False

    def _decided(self, delivery: Delivery, disposition: Disposition) -> None:
        match disposition:
            case Quarantine() | Halt():
                _log.warning("%s is %s", describe(delivery), fate(disposition))
            case Reject() | Requeue() | Hold() | Defer():
                _log.info("%s is %s", describe(delivery), fate(disposition))
            case _:
                _log.debug("%s is %s", describe(delivery), fate(disposition))


def describe(delivery: Delivery) -> str:
    """Name *delivery* in a log line."""
    return f"message {delivery.message_id or '(no id)'} on {delivery.routing_key}"


def fate(disposition: Disposition) -> str:
    """Say in a log line what becomes of a delivery."""
    because = _because(getattr(disposition, "reason", ""))
    match disposition:
        case Hold(until) | Defer(until):
            what = "held" if isinstance(disposition, Hold) else "deferred"
            return f"{what} until {_time(until)}{because}"
        case Halt(exit_code, requeue):
            what = "requeued" if requeue else "acknowledged"
            return f"{what} and halts the instance with exit code {exit_code}{because}"
    return f"{_FATES[type(disposition)]}{because}"


_FATES: dict[type[Disposition], str] = {
    Ack: "acknowledged",
    Requeue: "requeued",
    GiveBack: "given back",
    Reject: "dropped",
    Quarantine: "quarantined",
}


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "seconds")
