# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's clock."""

from __future__ import annotations

import time


class SystemClock:
    """The :class:`.Clock` of the machine."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def time(self) -> float:
        """Return seconds since the epoch, as the machine believes."""
        return time.time()
