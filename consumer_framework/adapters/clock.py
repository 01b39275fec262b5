# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's time."""

from __future__ import annotations

import time


class SystemClock:
    """A :class:`.Clock` that reads the machine's."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch, as the machine believes."""
        return time.time()
