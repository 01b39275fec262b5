# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a delivery, as a value: decided in :mod:`.recovery`, carried out by a settle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Ack:
    """Done with: the broker may forget it."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Back to its queue, to be delivered again."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Back to its queue as if it had never been delivered; what is of the store stays there."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Lost on purpose, or dead-lettered where the queue has a dead-letter exchange."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """Kept unacknowledged in memory, and run again at *until* (seconds since the epoch)."""

    until: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Defer:
    """Committed to the store, acknowledged, and run again at *until*."""

    until: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Committed to the store with its failures, acknowledged, kept for an operator."""

    reason: str


@dataclass(frozen=True, slots=True)
class Halt:
    """The instance stops after this delivery.

    Attributes:
        exit_code: The exit code of the process.
        requeue: True gives the delivery back, False acknowledges it.
        reason: Why, for the log.
    """

    exit_code: int
    requeue: bool
    reason: str = ""


Disposition: TypeAlias = Ack | Requeue | GiveBack | Reject | Hold | Defer | Quarantine | Halt
