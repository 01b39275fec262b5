# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits that keep an instance, its dependencies and its queues from harm, as pure values.

- :class:`TokenBucket`: the messages that are handled in a length of time.
- :class:`Breaker`: the faults of a dependency in a row, after which it counts as broken.
- :func:`backoff_delay`: the wait before the next attempt to connect.
- :class:`CapacityReduction`: the work that is taken on while memory is short.
- :func:`delivery_limit`: the returns of a message that a quorum queue allows.

None of them reads a clock: the time is an argument.
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
        probe: Seconds until the first probe of the dependency, the second, and so on; the last one
            repeats.
        faults: Dependency faults in a row so far.
        probes: Probes in vain since it opened.
    """

    consecutive: int
    probe: tuple[float, ...]
    faults: int = 0
    probes: int = 0

    @property
    def is_open(self) -> bool:
        """True if the dependency counts as broken."""
        return self.faults >= self.consecutive

    @property
    def wait(self) -> float:
        """The seconds until the next probe."""
        return self.probe[min(self.probes, len(self.probe) - 1)]

    def fault(self) -> Breaker:
        """Return the breaker after one more dependency fault."""
        if self.is_open:
            return replace(self, probes=self.probes + 1)
        return replace(self, faults=self.faults + 1)

    def success(self) -> Breaker:
        """Return the breaker after the dependency worked."""
        return replace(self, faults=0, probes=0) if self.faults else self

    def resized(self, consecutive: int, probe: tuple[float, ...]) -> Breaker:
        """Return the breaker with other limits; it neither opens nor closes by that."""
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


# Seconds between two halvings: the memory of returned messages has to be freed first.
STEP = 1.0
# Seconds without pressure before the first doubling. Where pressure comes back within this time,
# the next wait is twice as long, up to LONGEST_CALM.
CALM = 10.0
LONGEST_CALM = 320.0
# A prefetch count without a limit shrinks as if it were this one.
UNLIMITED = 512


@dataclass(frozen=True, slots=True)
class Capacity:
    """The work that is taken on at once.

    Attributes:
        slots: Handlers that run at once.
        prefetch_count: Messages that the broker sends ahead, per queue; 0 for no limit.
    """

    slots: int
    prefetch_count: int

    def halved(self, times: int) -> Capacity:
        """Return a half of it, *times* times; at least one slot, and a message ahead for each."""
        if not times:
            return self
        slots = max(self.slots >> times, 1)
        ahead = (self.prefetch_count or UNLIMITED) >> times
        least = min(slots, self.prefetch_count or slots)
        return Capacity(slots, max(ahead, least))


class CapacityReduction:
    """Decides how often the capacity is halved, by the moments at which memory was short.

    The capacity is halved quickly, and doubled slowly.

    Attributes:
        times: The number of halvings in force; 0 for none.
    """

    def __init__(self) -> None:
        self.times = 0
        self._calm = CALM
        self._pressed_at = 0.0
        self._shrunk_at = 0.0
        self._grown_at = 0.0

    def press(self, full: Capacity, now: float) -> bool:
        """Take on less, because memory is short; return True if :attr:`times` has changed.

        Args:
            full: The capacity without pressure.
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
        """Take on more after long without pressure; return True if :attr:`times` has changed."""
        if not self.times or now < self.due:
            return False
        self._grown_at = now
        self.times -= 1
        return True

    @property
    def due(self) -> float:
        """The moment at which :meth:`look` takes on more if there is no pressure until then."""
        return max(self._pressed_at, self._grown_at) + self._calm

    def _calm_after(self, now: float) -> float:
        # If the pressure is back soon, growing was in vain.
        if not self._grown_at or now - self._grown_at > LONGEST_CALM:
            return CALM
        if now - self._grown_at <= self._calm and self._grown_at > self._shrunk_at:
            return min(2 * self._calm, LONGEST_CALM)
        return self._calm


# A quorum queue counts each return of a message in a header: the message was given back, or was
# unacknowledged when its channel or its consumer's process ended. RabbitMQ 4.3 does not count
# messages that are given back in good order. Beyond its limit the queue drops or dead-letters the
# message. See https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling.
LIMIT = "x-delivery-limit"
COUNT = "x-delivery-count"
# The limit of queues without an argument or policy for it.
DEFAULT_LIMIT = 20
DEFAULT_SINCE = (4,)
# The reason of a message that goes to the store although no handler has seen it.
NEAR_LIMIT = "kept: the queue would drop it if it came back too often"


def broker_version(text: str) -> tuple[int, ...] | None:
    """Return a broker's version as numbers, None if *text* begins with none."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else None


def delivery_limit(
    arguments: Mapping[str, Any], version: tuple[int, ...] | None, *, is_quorum: bool = False
) -> int | None:
    """Return the number of times that a message may come back to a queue.

    Args:
        arguments: The arguments of the queue, as far as they are known. A policy cannot be read.
        version: The version of the broker, None if it is not known.
        is_quorum: Whether it is known to be a quorum queue, even if the arguments do not say so.

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
    """Return the number of times that the message came back, None if its queue does not count."""
    count = (delivery.properties.headers or {}).get(COUNT)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def is_near_limit(count: int, limit: int) -> bool:
    """Tell whether a message that came back *count* times should not come back again.

    One return is left for a crash, which nobody can prevent; with a limit of 0 there is none.
    """
    return count >= max(limit - 1, min(limit, 1))


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smhd])\s*")
# Per second. A higher rate would be no limit, and nobody waits for a lower one.
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
    """Lets no more than *rate* messages a second go on in the long run.

    Args:
        rate: Messages per second.
        burst: Messages that may go at once after a pause, 1 or more; None for one second's worth.
    """

    def __init__(self, rate: float, burst: int | None = None) -> None:
        self._rate = rate
        self._burst = float(burst or max(1, math.floor(rate)))
        self._tokens = self._burst
        self._counted_at: float | None = None

    def take(self, now: float) -> float:
        """Take a token if there is one.

        Args:
            now: Seconds of a clock that never goes back.

        Returns:
            0.0 if it was taken, or else the seconds until there is one.
        """
        if self._counted_at is not None:
            grown = self._tokens + (now - self._counted_at) * self._rate
            self._tokens = min(self._burst, grown)
        self._counted_at = now
        # A token but for a rounding error counts as one, or the wait could be too short to pass.
        if self._tokens >= 1 - 1e-9:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate
