# SPDX-License-Identifier: GPL-2.0-or-later
"""How an instance gets on, from its count of handled messages over time."""

from __future__ import annotations

from collections import deque

# Seconds that a rate is an average of.
WINDOW = 60.0
# Messages, and seconds, after which an instance is no longer one that has just been restarted.
PROOF_HANDLED = 100
PROOF_SECONDS = 60.0
_RESOLUTION = 1.0


class Progress:
    """How fast, and for how long.

    Args:
        now: When the instance started, in seconds of a clock that never goes back.
    """

    def __init__(self, now: float) -> None:
        self._started = now
        self._handled = 0
        self._samples = deque([(now, 0)])

    def look(self, handled: int, now: float) -> None:
        """Note that so many messages were handled until *now*."""
        self._handled = handled
        if now - self._samples[-1][0] >= _RESOLUTION:
            self._samples.append((now, handled))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    def rate(self, now: float) -> float:
        """Messages handled in a second, over the last minute."""
        since, handled = self._samples[0]
        elapsed = now - since
        return (self._handled - handled) / elapsed if elapsed >= _RESOLUTION else 0.0

    def up(self, now: float) -> float:
        """Seconds since the start."""
        return now - self._started

    def is_proven(self, now: float) -> bool:
        """Whether it works: it handled many messages, or one and has lived for a minute."""
        lives = self._handled > 0 and self.up(now) >= PROOF_SECONDS
        return lives or self._handled >= PROOF_HANDLED
