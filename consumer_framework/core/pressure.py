# SPDX-License-Identifier: GPL-2.0-or-later
"""How much an instance takes on while memory is short: halved quickly, doubled slowly."""

from __future__ import annotations

from dataclasses import dataclass

# Seconds between two halvings: what was given back first has to be freed.
STEP = 1.0
# Seconds without pressure before the first doubling. Where pressure comes back within this time,
# the next wait is twice as long, up to LONGEST_CALM.
CALM = 10.0
LONGEST_CALM = 320.0
# A prefetch count without a limit shrinks as if it were this one.
UNLIMITED = 512


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is taken on at once.

    Attributes:
        slots: Handlers that run at once.
        prefetch_count: Messages that the broker sends ahead, per queue; 0 for no limit.
    """

    slots: int
    prefetch_count: int

    def halved(self, times: int) -> Capacity:
        """Half as much, so many times; at least one slot, and a message ahead for each."""
        if not times:
            return self
        slots = max(self.slots >> times, 1)
        ahead = (self.prefetch_count or UNLIMITED) >> times
        least = min(slots, self.prefetch_count or slots)
        return Capacity(slots, max(ahead, least))


class Squeeze:
    """Decides how often the capacity is halved, from when there was pressure.

    Attributes:
        times: How often it is halved now; 0 for not at all.
    """

    def __init__(self) -> None:
        self.times = 0
        self._calm = CALM
        self._pressed_at = 0.0
        self._shrunk_at = 0.0
        self._grown_at = 0.0

    def press(self, full: Capacity, now: float) -> bool:
        """There is pressure; returns whether :attr:`times` has changed.

        Args:
            full: What is taken on without pressure.
            now: Seconds of a clock that never goes back.
        """
        self._pressed_at = now
        if full.halved(self.times + 1) == full.halved(self.times):
            return False
        if self.times and now - self._shrunk_at < STEP:
            return False
        self._calm = self._calm_after(now)
        self._shrunk_at = now
        self.times += 1
        return True

    def look(self, now: float) -> bool:
        """Take on more after long without pressure; returns whether :attr:`times` has changed."""
        if not self.times or now < self.due:
            return False
        self._grown_at = now
        self.times -= 1
        return True

    @property
    def due(self) -> float:
        """When :meth:`look` has something to do if there is no pressure until then."""
        return max(self._pressed_at, self._grown_at) + self._calm

    def _calm_after(self, now: float) -> float:
        """Growing was in vain where the pressure is back soon."""
        if not self._grown_at or now - self._grown_at > LONGEST_CALM:
            return CALM
        if now - self._grown_at <= self._calm and self._grown_at > self._shrunk_at:
            return min(2 * self._calm, LONGEST_CALM)
        return self._calm
