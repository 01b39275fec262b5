# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of a handler runs at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Seconds that a stop waits for what may take as long as it likes.
STOP_PATIENCE = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the handler runs at once, and for how long.

    Attributes:
        slots: Runs at once.
        timeout: Seconds that a run may take; infinite for no limit.
        batch_size: Messages that a batch handler gets at the most.
        batch_seconds: How long the first of them waits for the others.
    """

    slots: int = 1
    timeout: float = 600.0
    batch_size: int = 100
    batch_seconds: float = 1.0

    @property
    def patience(self) -> float:
        """Seconds that a stop waits for the author's code at the most."""
        return STOP_PATIENCE if math.isinf(self.timeout) else self.timeout
