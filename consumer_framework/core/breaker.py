# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells a broken dependency from broken messages: so many faults of it in a row, and it is open."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker as a value.

    Attributes:
        consecutive: Dependency faults in a row that open it.
        probe: Seconds until the first look at whether the dependency is back, the second, and so
            on; the last one repeats.
        faults: Dependency faults in a row so far.
        probes: Looks in vain since it opened.
    """

    consecutive: int
    probe: tuple[float, ...]
    faults: int = 0
    probes: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the dependency counts as broken."""
        return self.faults >= self.consecutive

    @property
    def wait(self) -> float:
        """Seconds until the next look."""
        return self.probe[min(self.probes, len(self.probe) - 1)]

    def fault(self) -> Breaker:
        """The breaker after one more dependency fault."""
        if self.is_open:
            return replace(self, probes=self.probes + 1)
        return replace(self, faults=self.faults + 1)

    def success(self) -> Breaker:
        """The breaker after the dependency worked."""
        return replace(self, faults=0, probes=0) if self.faults else self

    def resized(self, consecutive: int, probe: tuple[float, ...]) -> Breaker:
        """The breaker with other limits; it neither opens nor closes by that."""
        faults = (
            max(self.faults, consecutive) if self.is_open else min(self.faults, consecutive - 1)
        )
        return Breaker(consecutive, probe, faults, self.probes)
