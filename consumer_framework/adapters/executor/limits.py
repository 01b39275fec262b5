# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of a handler runs at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the handler runs at once, and for how long.

    Attributes:
        slots: Runs at once.
        timeout: Seconds that a run may take.
        batch_size: Messages that a batch handler gets at the most.
        batch_seconds: How long the first of them waits for the others.
    """

    slots: int = 1
    timeout: float = 600.0
    batch_size: int = 100
    batch_seconds: float = 1.0
