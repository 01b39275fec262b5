# SPDX-License-Identifier: GPL-2.0-or-later
"""How log lines call a delivery, and what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.attempt import LINE_LIMIT
from consumer_framework.core.delivery import readable
from consumer_framework.core.disposition import Defer, Disposition, Halt, Hold, rule_for
from consumer_framework.core.text import clipped, moment, printable

if TYPE_CHECKING:
    from consumer_framework.adapters.store import Row
    from consumer_framework.core.delivery import Delivery


def describe(message: Delivery | Row) -> str:
    """Name a message in a log line."""
    name = message.message_id or "(no id)"
    return printable(f"message {name} on {readable(message.routing_key)}")


def fate(disposition: Disposition) -> str:
    """Say in a log line what becomes of a delivery."""
    verb = rule_for(disposition).words.verb
    reason = because(disposition.reason)
    if isinstance(disposition, Hold | Defer):
        return f"{verb} until {moment(disposition.until)}{reason}"
    if isinstance(disposition, Halt):
        given = "requeued" if disposition.requeue else "acknowledged"
        return f"{given} and halts the instance with exit code {disposition.exit_code}{reason}"
    return f"{verb}{reason}"


def because(reason: str) -> str:
    """Put *reason* behind what it is the reason of; "" for none."""
    return f": {printable(clipped(reason, LINE_LIMIT))}" if reason else ""
