# SPDX-License-Identifier: GPL-2.0-or-later
"""A limit to how many messages are handled in a length of time: a token bucket."""

from __future__ import annotations

import math
import re
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smhd])\s*")
# Per second. Beyond it a limit would not be one, and below it nobody waits that long.
_HIGHEST, _LOWEST = 1e6, 1 / 86400


def per_second(value: object) -> float:
    """Return the rate *value* in messages per second.

    Args:
        value: Text such as ``"100/s"``, ``"90/m"`` or ``"2.5/h"``.

    Raises:
        ValueError: It is not of that form, or not between one a day and a million a second.
    """
    match = _FORM.fullmatch(value) if isinstance(value, str) else None
    rate = float(match[1]) / _UNITS[match[2]] if match else 0.0
    if _LOWEST <= rate <= _HIGHEST:
        return rate
    raise ValueError('must be a rate such as "100/s", "90/m" or "10/h"')


Rate: TypeAlias = Annotated[float, BeforeValidator(per_second)]


class TokenBucket:
    """Says how long to wait, so that no more than *rate* a second go on in the long run.

    Args:
        rate: Messages per second.
        burst: How many may go at once after a pause, 1 or more; None for one second's worth.
    """

    def __init__(self, rate: float, burst: int | None = None) -> None:
        self._rate = rate
        self._burst = float(burst or max(1, math.floor(rate)))
        self._tokens = self._burst
        self._counted_at: float | None = None

    def take(self, now: float) -> float:
        """Take a token where there is one.

        Args:
            now: Seconds of a clock that never goes back.

        Returns:
            0.0 where it was taken, or else the seconds until there is one.
        """
        if self._counted_at is not None:
            grown = self._tokens + (now - self._counted_at) * self._rate
            self._tokens = min(self._burst, grown)
        self._counted_at = now
        # What is a token but for rounding is one, or the wait could be too short to pass.
        if self._tokens >= 1 - 1e-9:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate
