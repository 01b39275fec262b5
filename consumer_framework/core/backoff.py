# SPDX-License-Identifier: GPL-2.0-or-later
"""How long to wait before trying again."""

from __future__ import annotations


def delay(attempt: int, spread: float, *, first: float = 1.0, ceiling: float = 30.0) -> float:
    """Return the seconds to wait before the attempt after *attempt* failed ones.

    The delay doubles from *first* up to *ceiling*; *spread* then takes up to half of it away, so
    that many clients of one broker do not come back at the same instant.

    Args:
        attempt: Failed attempts so far, from 1.
        spread: A random number from 0 to 1, passed in so that a delay can be replayed.
        first: Seconds before the second attempt, at most.
        ceiling: Seconds that no delay exceeds.
    """
    doublings = min(attempt - 1, 32)
    return float(min(ceiling, first * 2**doublings)) * (1 - spread / 2)
