# SPDX-License-Identifier: GPL-2.0-or-later
"""How log lines call a delivery, and what becomes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from consumer_framework.core.attempt import LINE_LIMIT
from consumer_framework.core.delivery import readable
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
from consumer_framework.core.text import clipped, printable

if TYPE_CHECKING:
    from consumer_framework.adapters.store import Row
    from consumer_framework.core.delivery import Delivery

_FATES: dict[type[Disposition], str] = {
    Ack: "acknowledged",
    Requeue: "requeued",
    GiveBack: "given back",
    Reject: "dropped",
    Hold: "held",
    Defer: "deferred",
    Quarantine: "quarantined",
    Halt: "halted",
}


def describe(message: Delivery | Row) -> str:
    """Name a message in a log line."""
    name = message.message_id or "(no id)"
    return printable(f"message {name} on {readable(message.routing_key)}")


def fate(disposition: Disposition) -> str:
    """Say in a log line what becomes of a delivery."""
    reason = because(getattr(disposition, "reason", ""))
    match disposition:
        case Hold(until) | Defer(until):
            return f"{fate_word(type(disposition))} until {_time(until)}{reason}"
        case Halt(exit_code, requeue):
            what = "requeued" if requeue else "acknowledged"
            return f"{what} and halts the instance with exit code {exit_code}{reason}"
    return f"{fate_word(type(disposition))}{reason}"


def fate_word(disposition: type[Disposition]) -> str:
    """Say in a word or two what becomes of a delivery."""
    return _FATES[disposition]


def because(reason: str) -> str:
    """Put *reason* behind what it is the reason of; "" for none."""
    return f": {printable(clipped(reason, LINE_LIMIT))}" if reason else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "seconds")
