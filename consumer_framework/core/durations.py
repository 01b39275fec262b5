# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts how long runs of the handler take, and how long messages wait before them.

A histogram is a list of counts, and no object of a metrics library: every run is counted, so a
count must cost well below a microsecond. :mod:`consumer_framework.runtime.observe.exposition` shows
the histograms to Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from .attempt import NO_HISTORY
from .lag import moment_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .delivery import Delivery

# Seconds. The first ten are those that OpenTelemetry advises for durations of messaging ("Semantic
# conventions for messaging client metrics"); handlers of Fedora's consumers take up to minutes.
RUN_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# Seconds. A message carries the time of its publication in whole seconds.
WAIT_BOUNDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
# Names that a program makes up, such as those of queues and of exceptions, are told apart up to
# here.
MOST_NAMES = 50
OTHER = "_OTHER"
# The broker makes such a name for a queue that has none, and another one at each connection.
_SERVER_NAMED = "amq.gen-"
# Memory for names of queues that no longer exist.
_MOST_KEYS = 1000


class Histogram:
    """Counts values by their size.

    Args:
        bounds: The upper bounds of the classes, ascending; a further class has all that is larger.

    Attributes:
        counts: The number of values in each class.
        sum: The sum of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count *value*; a bound belongs to the class below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Yield each bound, infinity last, with the number of values up to it."""
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            yield bound, total


class RunKind(NamedTuple):
    """The runs that share a histogram.

    Attributes:
        queue: The queue of the message, or of the first message of a batch; ``amq.gen`` for every
            queue that the broker named.
        route: The route of the consumer; "" in a consumer without routes.
        error: The type of the exception that ended the run; "" for a success.
    """

    queue: str
    route: str
    error: str


class Durations:
    """The histograms of one instance.

    Attributes:
        runs: Seconds that runs took, decoding included, by their kind.
        waits: Seconds between the publication of a message and the start of its first run, by
            queue. Messages without a ``sent-at`` header are not in it, nor redeliveries and
            retries.
    """

    def __init__(self) -> None:
        self.runs: dict[RunKind, Histogram] = {}
        self.waits: dict[str, Histogram] = {}
        self._by_key: dict[tuple[str, str, str], tuple[Histogram, Histogram]] = {}
        self._errors: set[str] = set()
        # Messages of the same second have the same text.
        self._last_sent: object = None
        self._last_time: float | None = None

    def ran(
        self, deliveries: Sequence[Delivery], started_at: float, ended_at: float, error: str
    ) -> None:
        """Count one run of the handler.

        Args:
            deliveries: Its deliveries, at least one.
            started_at: When it began, in the monotonic seconds of :attr:`.Delivery.arrived_at`.
            ended_at: When it ended, likewise.
            error: The type of its exception; "" for a success.
        """
        first = deliveries[0]
        key = (first.queue, first.route, error)
        runs, waits = self._by_key.get(key) or self._find(key)
        # Here and below, Histogram.add without the call.
        took = ended_at - started_at
        runs.counts[bisect_left(RUN_BOUNDS, took)] += 1
        runs.sum += took
        for delivery in deliveries:
            if delivery.history is not NO_HISTORY or delivery.redelivered or delivery.row:
                continue
            headers = delivery.properties.headers
            if not headers or (sent := headers.get("sent-at")) is None:
                continue
            if sent != self._last_sent:
                self._last_sent, self._last_time = sent, sent_at(sent)
            if self._last_time is not None:
                on_the_way = delivery.received_at - self._last_time
                waited = on_the_way + started_at - delivery.arrived_at
                if waited < 0.0:  # noqa: PLR1730 -- in a third of the time of max()
                    # The publisher's clock is ahead of this one.
                    waited = 0.0
                waits.counts[bisect_left(WAIT_BOUNDS, waited)] += 1
                waits.sum += waited

    def _find(self, key: tuple[str, str, str]) -> tuple[Histogram, Histogram]:
        queue, route, error = key
        if queue.startswith(_SERVER_NAMED):
            queue = "amq.gen"
        kind = RunKind(queue, route, _bounded(error, self._errors) if error else "")
        found = (
            self.runs.setdefault(kind, Histogram(RUN_BOUNDS)),
            self.waits.setdefault(queue, Histogram(WAIT_BOUNDS)),
        )
        if len(self._by_key) >= _MOST_KEYS:
            self._by_key.clear()
        self._by_key[key] = found
        return found


def sent_at(header: object) -> float | None:
    """Read a ``sent-at`` header as :func:`.moment_of` does; None also before the epoch."""
    moment = moment_of(header)
    # A single made-up date must not decide about the average.
    return moment if moment is not None and moment > 0 else None


def _bounded(name: str, known: set[str]) -> str:
    if name in known or len(known) < MOST_NAMES:
        known.add(name)
        return name
    return OTHER
