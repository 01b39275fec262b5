# SPDX-License-Identifier: GPL-2.0-or-later
"""A limit to how many messages are handled in a length of time: a token bucket.

Tells a broken dependency from broken messages: so many faults of it in a row, and it is open.

How long to wait before trying again.

How much an instance takes on while memory is short: halved quickly, doubled slowly.

How often a quorum queue lets a message come back before it drops or dead-letters it.

The queue counts each return in the header ``x-delivery-count``: what is given back, and what was
unacknowledged when its channel or its consumer's process ended. RabbitMQ 4.3 does not count what is
given back in good order. See https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .delivery import Delivery


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


def backoff_delay(
    attempt: int, spread: float, *, first: float = 1.0, ceiling: float = 30.0
) -> float:
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


class CapacityReduction:
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


LIMIT = "x-delivery-limit"
COUNT = "x-delivery-count"
# Where nobody asks for another one.
DEFAULT_LIMIT = 20
DEFAULT_SINCE = (4,)
# Why a message is put into the store that its handler has not seen.
NEAR_LIMIT = "kept: the queue would drop it if it came back too often"


def broker_version(text: str) -> tuple[int, ...] | None:
    """Return a broker's version as numbers, None where *text* begins with none."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else None


def delivery_limit(
    arguments: Mapping[str, Any], version: tuple[int, ...] | None, *, is_quorum: bool = False
) -> int | None:
    """Return how often a message may come back to a queue.

    Args:
        arguments: Those of the queue, as far as they are known. A policy cannot be read.
        version: The broker's, None where it is not known.
        is_quorum: Whether it is a quorum queue, whatever the arguments say.

    Returns:
        None for no limit, or for none that is known.
    """
    limit = arguments.get(LIMIT)
    if isinstance(limit, int) and not isinstance(limit, bool):
        return limit if limit >= 0 else None
    is_quorum = is_quorum or arguments.get("x-queue-type") == "quorum"
    is_limited = version is not None and version >= DEFAULT_SINCE
    return DEFAULT_LIMIT if is_quorum and is_limited else None


def delivery_count(delivery: Delivery) -> int | None:
    """Return how often the message came back to its queue, None where the queue does not count."""
    count = (delivery.properties.headers or {}).get(COUNT)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def is_near_limit(count: int, limit: int) -> bool:
    """Whether a message that came back *count* times should not come back again.

    One return is left for a crash, which nobody can prevent; with a limit of 0 there is none.
    """
    return count >= max(limit - 1, min(limit, 1))


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
