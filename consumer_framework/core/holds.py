# SPDX-License-Identifier: GPL-2.0-or-later
"""The deliveries that wait, unacknowledged and in memory, until they are due again."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delivery import Delivery
    from .ports import Clock


class Holds:
    """A bounded set of deliveries, each with its time.

    A delivery is held for a length of time, whatever the machine's clock is set to meanwhile.

    Args:
        slots: How many deliveries may be held at once.
        clock: The time.
    """

    def __init__(self, slots: int, clock: Clock) -> None:
        self._slots = slots
        self._clock = clock
        self._heap: list[tuple[float, int, Delivery]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def has_room(self) -> bool:
        """Whether one more delivery may be held."""
        return len(self._heap) < self._slots

    def resize(self, slots: int) -> None:
        """Hold so many from now on; more than that leave by themselves, when they are due."""
        self._slots = slots

    def put(self, delivery: Delivery, until: float) -> None:
        """Hold *delivery* until *until*, in seconds since the epoch."""
        due_at = self._clock.monotonic() + until - self._clock.time()
        heapq.heappush(self._heap, (due_at, next(self._order), delivery))

    def due(self, now: float) -> list[Delivery]:
        """Remove and return what is due at *now*, in monotonic seconds, in order of its times."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            found.append(heapq.heappop(self._heap)[2])
        return found

    def first(self) -> list[Delivery]:
        """Remove and return the delivery that is due next, due or not; none where none is held."""
        return [heapq.heappop(self._heap)[2]] if self._heap else []

    def take(self, which: Callable[[Delivery], bool]) -> list[tuple[Delivery, float]]:
        """Remove and return deliveries, each with its time in seconds since the epoch."""
        taken = [entry for entry in self._heap if which(entry[2])]
        self._heap = [entry for entry in self._heap if not which(entry[2])]
        heapq.heapify(self._heap)
        offset = self._clock.time() - self._clock.monotonic()
        return [(delivery, due_at + offset) for due_at, _, delivery in sorted(taken, key=_time)]

    def next_due(self) -> float | None:
        """When the next delivery is due, in monotonic seconds; None for never."""
        return self._heap[0][0] if self._heap else None

    def discard(self, generation: int) -> list[Delivery]:
        """Remove and return what came on a channel that is gone."""
        return [delivery for delivery, _ in self.take(lambda d: d.generation == generation)]

    def clear(self) -> list[Delivery]:
        """Remove and return everything, in the order of its times."""
        return [delivery for delivery, _ in self.take(lambda _delivery: True)]


def _time(entry: tuple[float, int, Delivery]) -> tuple[float, int]:
    return entry[:2]
