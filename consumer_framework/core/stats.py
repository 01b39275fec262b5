# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of an instance: counts of runs and settles, and the rate that follows from them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from .delivery import (
    Failed,
    Outcome,
    Routed,
    Skipped,
    Succeeded,
    Undecodable,
    Unrouted,
    Withdrawn,
    readable,
)
from .disposition import rule_for
from .durations import MOST_NAMES, OTHER
from .errors import Signal
from .gate import Reason
from .ports import Observer, Paused, Ran, Settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .ports import Observation

# Seconds that a rate is an average of.
WINDOW = 60.0
# Messages, and seconds, after which an instance is no longer one that has just been restarted.
PROOF_HANDLED = 100
PROOF_SECONDS = 60.0
_RESOLUTION = 1.0
# The word for a settle that the broker was not told of; others have those of their disposition.
VOID = "void"
# The numbers of values that make a trend.
_LEAST_SAMPLES, _MOST_SAMPLES = 5, 120


class Progress:
    """The rate and the age of an instance, by its count of handled messages over time.

    Args:
        now: When the instance started, in seconds of a clock that never goes back.
    """

    def __init__(self, now: float) -> None:
        self._started = now
        self._handled = 0
        self._samples = deque([(now, 0)])

    def look(self, handled: int, now: float) -> None:
        """Note that *handled* messages were handled until *now*."""
        self._handled = handled
        if now - self._samples[-1][0] >= _RESOLUTION:
            self._samples.append((now, handled))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    def rate(self, now: float) -> float:
        """Return the messages handled in a second, over the last minute."""
        since, handled = self._samples[0]
        elapsed = now - since
        return (self._handled - handled) / elapsed if elapsed >= _RESOLUTION else 0.0

    def up(self, now: float) -> float:
        """Return the seconds since the start."""
        return now - self._started

    def is_proven(self, now: float) -> bool:
        """Tell whether it works: it handled many messages, or one and has lived for a minute."""
        lives = self._handled > 0 and self.up(now) >= PROOF_SECONDS
        return lives or self._handled >= PROOF_HANDLED


class Trend:
    """The growth of a number, by its values over the last minutes.

    It is the slope of the line with the least squared distance from the values, so that a single
    high value does not make a trend.

    Args:
        window: The seconds that values are remembered.
        least: The seconds that the values must span at least.

    Attributes:
        growth: The growth in a second; None while the values span too short a time.
    """

    def __init__(self, window: float = 600.0, least: float = 60.0) -> None:
        self.growth: float | None = None
        self._window = window
        self._least = least
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, value: float, now: float) -> None:
        """Note *value* at the time *now*; values that come too fast change nothing."""
        if self._samples and now - self._samples[-1][0] < self._window / _MOST_SAMPLES:
            return
        self._samples.append((now, value))
        while self._samples[0][0] < now - self._window:
            self._samples.popleft()
        self.growth = self._slope()

    def _slope(self) -> float | None:
        samples = self._samples
        if len(samples) < _LEAST_SAMPLES or samples[-1][0] - samples[0][0] < self._least:
            return None
        center = sum(at for at, _ in samples) / len(samples)
        mean = sum(value for _, value in samples) / len(samples)
        spread = sum((at - center) ** 2 for at, _ in samples)
        return sum((at - center) * (value - mean) for at, value in samples) / spread


class RetryShare:
    """The share of runs that are to be tried again, over the last minutes.

    Args:
        window: The seconds that runs are remembered.
    """

    def __init__(self, window: float = 300.0) -> None:
        self._window = window
        self._samples: deque[tuple[float, int, int]] = deque([(-window, 0, 0)])

    def look(self, counts: Snapshot, now: float) -> None:
        """Note the *counts* at the time *now*."""
        retried = counts.held + counts.deferred + counts.requeued
        self._samples.append((now, counts.received, retried))
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()

    @property
    def runs(self) -> int:
        """The number of runs that ended in this time."""
        return self._samples[-1][1] - self._samples[0][1]

    @property
    def retried(self) -> int:
        """The number of them after which the message runs again."""
        return min(self._samples[-1][2] - self._samples[0][2], self.runs)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts at one moment, since the process started.

    Attributes:
        received: Deliveries that ran in a slot, repetitions included.
        succeeded: Handler runs that returned.
        skipped: Handler runs that had nothing to do.
        failed: Handler runs that raised something else than a signal of the author's.
        undecodable: Deliveries that no handler saw because they were no valid message.
        unrouted: Deliveries that no route of the consumer takes.
        acked: Deliveries that are done.
        requeued: Deliveries put back on their queue because of their outcome.
        rejected: Deliveries dropped, or dead-lettered.
        held: Times that a delivery was held.
        deferred: Times that a delivery was deferred.
        quarantined: Deliveries quarantined.
        given_back: Deliveries put back on their queue without a run.
        void: Settles that the broker could not be told of, because the channel was gone.
    """

    received: int = 0
    succeeded: int = 0
    skipped: int = 0
    failed: int = 0
    undecodable: int = 0
    unrouted: int = 0
    acked: int = 0
    requeued: int = 0
    rejected: int = 0
    held: int = 0
    deferred: int = 0
    quarantined: int = 0
    given_back: int = 0
    void: int = 0


_OUTCOMES: dict[type[Outcome], str] = {
    Succeeded: "succeeded",
    Skipped: "skipped",
    Undecodable: "undecodable",
    Unrouted: "unrouted",
}


def _outcome_name(outcome: Outcome) -> str | None:
    name = _OUTCOMES.get(type(outcome))
    if name is None and isinstance(outcome, Failed) and not isinstance(outcome.error, Signal):
        return "failed"
    return name


_NAMES = tuple(field.name for field in fields(Snapshot))


class Counters(Observer):
    """An observer that counts.

    Publishers choose topics, so their number has no bound. The first :data:`.MOST_NAMES` topics are
    told apart; the others count as :data:`.OTHER`.

    Attributes:
        pauses: How often the instance paused, by reason.
    """

    def __init__(self) -> None:
        self._counts = dict.fromkeys(_NAMES, 0)
        self._topics: dict[str, dict[str, int]] = {}
        self._other: dict[str, int] = {}
        self.pauses = dict.fromkeys(Reason, 0)
        self._standing: set[Reason] = set()

    def notify(self, event: Observation) -> None:
        """Count a run by its outcome, a settle by the broker's answer and its topic, a pause."""
        if isinstance(event, Settled):
            self._count_settle(event)
        elif isinstance(event, Ran):
            self._counts["received"] += 1
            outcome = event.outcome
            name = _OUTCOMES.get(type(outcome)) or _outcome_name(outcome)
            if name:
                self._counts[name] += 1
            elif isinstance(outcome, Routed):
                self._count_routes(outcome)
        elif isinstance(event, Paused):
            self._count_pause(event)

    def _count_settle(self, event: Settled) -> None:
        delivery, _outcome, decision, is_void = event
        if is_void:
            counter = word = VOID
        else:
            words = rule_for(decision.disposition).words
            counter, word = words.counter, words.field
        self._counts[counter] += 1
        counts = self._topics.get(delivery.routing_key)
        if counts is None:
            counts = self._counts_of(delivery.routing_key)
        counts[word] = counts.get(word, 0) + 1

    def _counts_of(self, topic: str) -> dict[str, int]:
        if len(self._topics) >= MOST_NAMES:
            return self._other
        return self._topics.setdefault(topic, {})

    def _count_pause(self, event: Paused) -> None:
        # A pause that stands is told again with other words.
        if event.text and event.reason not in self._standing:
            self._standing.add(event.reason)
            self.pauses[event.reason] += 1
        elif not event.text:
            self._standing.discard(event.reason)

    def by_topic(self) -> Iterator[tuple[str, str, int]]:
        """Yield topics, dispositions in words, and the number of settles since the start."""
        for topic, counts in [*self._topics.items(), (OTHER, self._other)]:
            for word, number in counts.items():
                yield readable(topic), word, number

    def _count_routes(self, routed: Routed) -> None:
        outcomes = [result.outcome for result in routed.results if result.outcome is not None]
        runs = [outcome for outcome in outcomes if not isinstance(outcome, Withdrawn)]
        self._counts["received"] += len(runs) - 1
        names = map(_outcome_name, runs)
        for name in filter(None, names):
            self._counts[name] += 1

    def snapshot(self) -> Snapshot:
        """Return the counts now."""
        return Snapshot(**self._counts)
