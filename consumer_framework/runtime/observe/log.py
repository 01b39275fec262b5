# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of an instance: an observer with a line for each thing that an operator may have to know.

A plain success has no line. Failures of the same cause are errors with a traceback once in five
minutes; the next ones have a line of a lower level. The same failure may happen thousands of times:
:class:`.LogThrottle` then counts the lines instead. A message that has one line has all its lines,
so that its life is told whole. The end of every message that did not succeed has a line, always.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.log import LogThrottle, Occurrence
from consumer_framework.core.attempt import LINE_LIMIT, NO_HISTORY, fingerprint
from consumer_framework.core.delivery import (
    Failed,
    Routed,
    Skipped,
    Succeeded,
    Undecodable,
    Unrouted,
    readable,
)
from consumer_framework.core.disposition import (
    Defer,
    GiveBack,
    Halt,
    Hold,
    rule_for,
)
from consumer_framework.core.errors import Signal
from consumer_framework.core.gate import Reason
from consumer_framework.core.log_fields import fields_of, run_number
from consumer_framework.core.ports import Observer, Paused, Ran, Settled, StateChanged
from consumer_framework.core.text import clipped, moment, printable

if TYPE_CHECKING:
    from collections.abc import Hashable

    from consumer_framework.adapters.log import CallLater
    from consumer_framework.adapters.store import Row
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock, Observation

_log = logging.getLogger(__name__)

# The cause in the summary of successes.
_LATE_SUCCESS = "after an earlier failure or delay"
# Topics without a route that are remembered: publishers make them up.
_MOST_TOPICS = 1000
_ONCE = "; further ones of this topic have no line"
_RESUMED = {
    Reason.DEPENDENCY: "the dependency works again",
    Reason.STORE: "the store works again",
    Reason.ORDER: "nothing in the store is in the way any more",
    Reason.OPERATOR: "resumed by an operator",
}


class DeliveryLog(Observer):
    """The observer that logs.

    Args:
        clock: The time.
        call_later: As :class:`.LogThrottle` takes it.
    """

    def __init__(self, clock: Clock, call_later: CallLater | None = None) -> None:
        self._throttle = LogThrottle(_log, clock, call_later)
        self._open = self._throttle.open_messages
        self._unrouted: set[str] = set()

    def notify(self, event: Observation) -> None:
        """Log *event*, where an operator may have to know of it."""
        if type(event) is Ran:
            # One for each message, so the quickest way out.
            return
        match event:
            case Settled():
                self._settled(event)
            case Paused(reason, text):
                if text:
                    _log.warning("paused: %s", text)
                else:
                    _log.info("%s", _RESUMED[reason])
            case StateChanged(before, after):
                _log.debug("%s -> %s", before.name.lower(), after.name.lower())

    def close(self) -> None:
        """Log all counts; call it at the end."""
        self._throttle.close()

    def detach(self) -> None:
        """Forget all counts, as a process that is killed does."""
        self._throttle.detach()

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
            case Succeeded() | Skipped():
                self._log_success(delivery, outcome, disposition, is_plain=is_plain)
            case Routed(results):
                failed = [r.outcome for r in results if isinstance(r.outcome, Failed)]
                if is_good:
                    self._log_success(delivery, outcome, disposition, is_plain=is_plain)
                elif not failed:
                    self._log_decision(delivery, outcome, disposition)
                for each in failed:
                    self._log_bad(delivery, each, disposition)
            case Unrouted():
                self._log_unrouted(delivery, disposition)
            case _:
                self._log_bad(delivery, outcome, disposition)

    def _log_bad(self, delivery: Delivery, outcome: Outcome, disposition: Disposition) -> None:
        if isinstance(outcome, Failed) and outcome.route:
            delivery = delivery._replace(route=outcome.route)
        match outcome:
            case Failed(error) if not isinstance(error, Signal):
                self._log_failure(delivery, error, disposition)
            case Undecodable(error):
                self._log_failure(delivery, error, disposition)
            case _:
                self._log_decision(delivery, outcome, disposition)

    def _log_unrouted(self, delivery: Delivery, disposition: Disposition) -> None:
        """Log the first message of each topic without a route: there may be many."""
        topic = delivery.routing_key
        level = logging.DEBUG if topic in self._unrouted else logging.WARNING
        if len(self._unrouted) >= _MOST_TOPICS:
            self._unrouted.clear()
        self._unrouted.add(topic)
        extra = fields_of(delivery, disposition)
        _log.log(level, "%s is %s%s", describe(delivery), fate(disposition), _ONCE, extra=extra)

    def _has_past(self, delivery: Delivery) -> bool:
        has_failed = delivery.history is not NO_HISTORY and run_number(delivery) > 1
        has_line = bool(self._open) and _key(delivery) in self._open
        return has_failed or bool(delivery.row) or has_line

    def _log_failure(
        self, delivery: Delivery, error: BaseException, disposition: Disposition
    ) -> None:
        cause = fingerprint(error)
        is_end = rule_for(disposition).ending == "bad"
        repeated = logging.WARNING if is_end else logging.INFO
        shown = error if getattr(error, "needs_traceback", True) else None
        _log.error(
            "%s failed at attempt %d%s; it is %s",
            describe(delivery),
            run_number(delivery),
            _in_replay(delivery),
            fate(disposition),
            extra={
                **fields_of(delivery, disposition, cause),
                **self._occurrence(delivery, disposition, cause, repeated, shown),
            },
        )

    def _log_success(
        self,
        delivery: Delivery,
        outcome: Succeeded | Skipped | Routed,
        disposition: Disposition,
        *,
        is_plain: bool,
    ) -> None:
        extra: dict[str, Any] = {**fields_of(delivery, disposition)}
        if not is_plain:
            extra |= self._occurrence(delivery, disposition, _LATE_SUCCESS, logging.INFO)
        _log.log(
            logging.DEBUG if is_plain else logging.INFO,
            "%s %s at attempt %d%s",
            describe(delivery),
            "was skipped" if isinstance(outcome, Skipped) else "succeeded",
            run_number(delivery),
            _in_replay(delivery) + because(getattr(outcome, "reason", "")),
            extra=extra,
        )

    def _log_decision(self, delivery: Delivery, outcome: Outcome, disposition: Disposition) -> None:
        did_run = isinstance(outcome, Failed)
        cause = type(outcome.error if isinstance(outcome, Failed) else outcome).__name__
        level = rule_for(disposition).level
        number = run_number(delivery) - (not did_run)
        extra: dict[str, Any] = {**fields_of(delivery, disposition, attempt=number)}
        if level > logging.DEBUG:
            extra |= self._occurrence(delivery, disposition, cause, level)
        _log.log(level, "%s is %s", describe(delivery), fate(disposition), extra=extra)

    def _occurrence(
        self,
        delivery: Delivery,
        disposition: Disposition,
        cause: str,
        repeated_level: int,
        error: BaseException | None = None,
    ) -> dict[str, Occurrence]:
        ending = rule_for(disposition).ending
        occurrence = Occurrence(
            self._throttle,
            # A message that is held, and one that is quarantined, are two kinds of event.
            type(disposition),
            cause,
            _key(delivery),
            repeated_level,
            # The end of a message that did not succeed always has a line, and so has a replay.
            always=ending == "bad" or delivery.replayed,
            is_last=ending != "open",
            error=error,
        )
        return {"occurrence": occurrence}


def _log_void(delivery: Delivery, disposition: Disposition) -> None:
    if not isinstance(disposition, GiveBack):
        _log.warning(
            "%s: its channel is gone, so the broker will deliver it again",
            describe(delivery),
            extra=fields_of(delivery),
        )


def _key(delivery: Delivery) -> Hashable:
    return delivery.queue, delivery.routing_key, delivery.message_id


def _in_replay(delivery: Delivery) -> str:
    return ", in a replay" if delivery.replayed else ""


# The words of log lines.


def describe(message: Delivery | Row) -> str:
    """Name a message in a log line, and the route that it is in."""
    name = message.message_id or "(no id)"
    route = getattr(message, "route", "")
    where = f" in route {route}" if route else ""
    return printable(f"message {name} on {readable(message.routing_key)}{where}")


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
