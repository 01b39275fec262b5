# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs what became of deliveries, and counts it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from consumer_framework.core.delivery import Failed, Undecodable
from consumer_framework.core.disposition import Halt, Reject, Requeue
from consumer_framework.core.errors import Signal
from consumer_framework.core.stats import Counters

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition

_log = logging.getLogger(__name__)


class LogRecorder(Counters):
    """A :class:`.Recorder`: one line for what an operator may have to know, none for success."""

    def settled(
        self, delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool
    ) -> None:
        """Count, and log what is not plain success."""
        super().settled(delivery, outcome, disposition, void=void)
        if isinstance(outcome, Failed) and not isinstance(outcome.error, Signal):
            _log.error("%s failed", describe(delivery), exc_info=outcome.error)
        if void:
            _log.warning(
                "%s: its channel is gone, so the broker will deliver it again", describe(delivery)
            )
            return
        match disposition:
            case Requeue(reason):
                _log.info("%s is requeued%s", describe(delivery), _because(reason))
            case Reject(reason):
                self._rejected(delivery, outcome, reason)
            case Halt(exit_code, requeue, reason):
                fate = "requeued" if requeue else "acknowledged"
                _log.warning(
                    "%s is %s and halts the instance with exit code %d%s",
                    describe(delivery),
                    fate,
                    exit_code,
                    _because(reason),
                )
            case _:
                _log.debug("%s is acknowledged", describe(delivery))

    def _rejected(self, delivery: Delivery, outcome: Outcome, reason: str) -> None:
        if isinstance(outcome, Undecodable):
            _log.error("%s is rejected: it is no valid message: %s", describe(delivery), reason)
        else:
            _log.info("%s is dropped by its handler%s", describe(delivery), _because(reason))


def describe(delivery: Delivery) -> str:
    """Name *delivery* in a log line."""
    return f"message {delivery.message_id or '(no id)'} on {delivery.routing_key}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
