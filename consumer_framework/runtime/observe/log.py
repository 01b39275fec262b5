# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs the fate of deliveries, thinned out by :class:`.LogThrottle`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.log import LogThrottle, Occurrence
from consumer_framework.core.attempt import NO_HISTORY, fingerprint
from consumer_framework.core.delivery import Failed, Skipped, Succeeded, Undecodable
from consumer_framework.core.disposition import GiveBack, rule_for
from consumer_framework.core.errors import Signal
from consumer_framework.core.log_fields import fields_of, run_number
from consumer_framework.core.ports import Observer, Settled

from .wording import because, describe, fate

if TYPE_CHECKING:
    from collections.abc import Hashable

    from consumer_framework.adapters.log import Later
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock, Observation

_log = logging.getLogger(__name__)

# The cause of a line about a success that had a failure or delay before it.
_PAST = "after an earlier failure or delay"


class DeliveryLog(Observer):
    """An observer with a line for all that an operator may have to know; none for plain success.

    Failures of the same cause are errors with a traceback once in five minutes. The next ones have
    a line of a lower level, until :class:`.LogThrottle` only counts them.

    Args:
        clock: The time.
        later: As :class:`.LogThrottle` takes it.
    """

    def __init__(self, clock: Clock, later: Later | None = None) -> None:
        self._throttle = LogThrottle(_log, clock, later)

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
        """Sum up the lines that were left out so far; call it at the end."""
        self._throttle.close()

    def detach(self) -> None:
        """Log nothing more."""
        self._throttle.detach()

    def _has_past(self, delivery: Delivery) -> bool:
        has_failed = delivery.history is not NO_HISTORY and run_number(delivery) > 1
        told = self._throttle.told
        return has_failed or bool(delivery.row) or (bool(told) and _message(delivery) in told)

    def _failed(self, delivery: Delivery, error: BaseException, disposition: Disposition) -> None:
        cause = fingerprint(error)
        is_end = rule_for(disposition).ending == "bad"
        again = logging.WARNING if is_end else logging.INFO
        _log.error(
            "%s failed at attempt %d%s; it is %s",
            describe(delivery),
            run_number(delivery),
            _in_replay(delivery),
            fate(disposition),
            extra={
                **fields_of(delivery, disposition, cause),
                **_occurrence(delivery, disposition, cause, again, error),
            },
        )

    def _succeeded(
        self,
        delivery: Delivery,
        outcome: Succeeded | Skipped,
        disposition: Disposition,
        *,
        is_plain: bool,
    ) -> None:
        extra: dict[str, Any] = {**fields_of(delivery, disposition)}
        if not is_plain:
            extra |= _occurrence(delivery, disposition, _PAST, logging.INFO)
        _log.log(
            logging.DEBUG if is_plain else logging.INFO,
            "%s %s at attempt %d%s",
            describe(delivery),
            "succeeded" if isinstance(outcome, Succeeded) else "was skipped",
            run_number(delivery),
            _in_replay(delivery) + because(getattr(outcome, "reason", "")),
            extra=extra,
        )

    def _decided(self, delivery: Delivery, outcome: Outcome, disposition: Disposition) -> None:
        did_run = isinstance(outcome, Failed)
        cause = type(outcome.error if isinstance(outcome, Failed) else outcome).__name__
        level = rule_for(disposition).level
        number = run_number(delivery) - (not did_run)
        extra: dict[str, Any] = {**fields_of(delivery, disposition, attempt=number)}
        if level > logging.DEBUG:
            extra |= _occurrence(delivery, disposition, cause, level)
        _log.log(level, "%s is %s", describe(delivery), fate(disposition), extra=extra)


def _void(delivery: Delivery, disposition: Disposition) -> None:
    if not isinstance(disposition, GiveBack):
        _log.warning(
            "%s: its channel is gone, so the broker will deliver it again",
            describe(delivery),
            extra=fields_of(delivery),
        )


def _message(delivery: Delivery) -> Hashable:
    return delivery.queue, delivery.routing_key, delivery.message_id


def _occurrence(
    delivery: Delivery,
    disposition: Disposition,
    cause: str,
    later_level: int,
    error: BaseException | None = None,
) -> dict[str, Occurrence]:
    ending = rule_for(disposition).ending
    # The end of a message that did not succeed is told each time, and so is an operator's replay.
    always, is_last = ending == "bad" or delivery.replayed, ending != "open"
    # A message that is held, and one that is quarantined, are of two kinds.
    kind, message = type(disposition), _message(delivery)
    return {"occurrence": Occurrence(kind, cause, message, later_level, always, is_last, error)}


def _in_replay(delivery: Delivery) -> str:
    return ", in a replay" if delivery.replayed else ""
