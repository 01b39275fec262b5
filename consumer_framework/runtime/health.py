# SPDX-License-Identifier: GPL-2.0-or-later
"""Collects the facts about an instance from which its condition, its lag and its next loss follow.

:class:`HealthMonitor` looks at the instance every few seconds and remembers trends. The decisions
are those of :mod:`consumer_framework.core`: :mod:`.core.health`, :mod:`.core.lag` and
:mod:`.core.loss`. No delivery passes through here, so that a message costs nothing.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.certificates import ends_of
from consumer_framework.adapters.executor.health_calls import HealthCalls
from consumer_framework.core.errors import StoreError
from consumer_framework.core.health import ConditionFacts, InstanceCondition, condition_of
from consumer_framework.core.lag import UNKNOWN, Lag, lag_of, oldest_by_queue
from consumer_framework.core.lifecycle import State
from consumer_framework.core.loss import (
    NO_STORE,
    Certificate,
    LossFacts,
    QueueFacts,
    QueueLimits,
    StoreFacts,
    next_loss,
)
from consumer_framework.core.stats import RetryShare, Trend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consumer_framework.adapters.amqp.presence import QueueSample
    from consumer_framework.adapters.store.records import Stats
    from consumer_framework.core.health import Assessment
    from consumer_framework.core.loss import Loss
    from consumer_framework.settings import Settings, Tls

    from .instance import Instance

_log = logging.getLogger(__name__)

_NO_LIMITS = QueueLimits()
# Deliveries in memory whose time and size are looked at.
_MOST_LOOKED_AT = 1000
# The weight of the latest sizes in the mean.
_FRESH = 0.2
# The conditions that nobody else logs.
_LOGGED = frozenset({InstanceCondition.RETRYING, InstanceCondition.LAGGING, InstanceCondition.SLOW})
# Seconds without such a condition after which it is over: a number near its threshold must not
# fill the log.
_CALM = 60.0
# Seconds between two readings of the certificates.
_CERTIFICATES_INTERVAL = 600.0


@dataclass(frozen=True, slots=True)
class Health:
    """The health of an instance at one moment.

    Attributes:
        assessment: Its condition, and the reason.
        lag: The lag in time.
        loss: The next loss; None if there is none in sight.
    """

    assessment: Assessment
    lag: Lag
    loss: Loss | None


@dataclass(slots=True)
class _QueueWatch:
    """The memory of one queue.

    Attributes:
        configured_name: Its name in the configuration.
        used_at: When it last had a consumer, or was renewed, in monotonic seconds.
        growth: The trend of the number of ready messages.
        aging: The trend of the age of its oldest message.
        body_size: The mean size of a message; None before the first one.
        oldest: The time of its oldest message when that was last known, in seconds since the epoch.
        empty_at: When it was last empty, likewise.
        is_shared: Whether others consume from it, so that *oldest* may be gone by now.
    """

    configured_name: str
    used_at: float
    growth: Trend = field(default_factory=Trend)
    aging: Trend = field(default_factory=Trend)
    body_size: float | None = None
    oldest: float | None = None
    empty_at: float | None = None
    is_shared: bool = False


class HealthMonitor:
    """The health of one instance.

    Args:
        instance: The instance, whose parts are there.

    Attributes:
        samples: The broker's counts of each queue, by name; the watchdog asks for them.
        stuck: The reason why the instance is stuck; "" if it is not. The watchdog judges that.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._now = instance.clock.monotonic
        self.samples: Mapping[str, QueueSample] = {}
        self.stuck = ""
        self._calls = HealthCalls(self._authors, self._times)
        self._queues: dict[str, _QueueWatch] = {}
        self._retries = RetryShare()
        self._store_growth = Trend()
        # Other programs write much in a few minutes, and stop.
        self._disk_growth = Trend(window=3600.0, least=900.0)
        self._disk_free: int | None = None
        self._received = -1
        self._busy_at = self._now()
        self._limits: tuple[Settings, dict[str, QueueLimits]] | None = None
        # The condition that was logged last, and is not over yet.
        self._logged: InstanceCondition | None = None
        self._calm_since: float | None = None
        self._ends: tuple[float, Tls | None, dict[str, float]] = (0.0, None, {})

    # The author's health().

    def start(self) -> None:
        """Begin to call the author's ``health()``; use it on the event loop."""
        self._calls.start()

    def stop(self) -> None:
        """Call it no more."""
        self._calls.stop()

    def _authors(self) -> Callable[[], Any] | None:
        executor = self._instance.executor
        return executor.health if executor is not None else None

    def _times(self) -> tuple[float, float]:
        framework = self._instance.plan.framework
        return framework.health_interval, framework.health_timeout

    # Looking, every few seconds.

    def look(self) -> None:
        """Take note of the present numbers; the watchdog calls it whenever it judges."""
        instance, now = self._instance, self._now()
        counts = instance.counters.snapshot()
        self._retries.look(counts, now)
        if counts.received != self._received or self._has_work():
            self._received = counts.received
            self._busy_at = now
        if instance.state in {State.CONSUMING, State.PAUSED}:
            self._look_at_queues(now)
        if stats := self._stats():
            self._store_growth.add(stats.bytes, now)
        self._look_at_disk(now)
        self._log_condition(now)

    def _log_condition(self, now: float) -> None:
        """Log that the instance lags, is slow or retries, and that this is over for a while."""
        found, logged = self._assess(self._lag(), self._stats()), self._logged
        if found.condition in _LOGGED:
            self._calm_since = None
            if found.condition is not logged:
                self._logged = found.condition
                _log.warning("%s: %s", found.condition.value, found.reason)
        elif logged is not None and not found.condition.needs_attention:
            self._calm_since = now if self._calm_since is None else self._calm_since
            if now - self._calm_since >= _CALM:
                self._logged = None
                _log.info("no longer %s", logged.value)

    @property
    def _is_consuming(self) -> bool:
        return self._instance.state is State.CONSUMING

    def _has_work(self) -> bool:
        instance = self._instance
        return bool(instance.running or instance.dispatcher.waiting or instance.lag)

    def _look_at_queues(self, now: float) -> None:
        self._queues = {
            one.queue: self._queues.get(one.queue) or _QueueWatch(one.configured_name, now)
            for one in self._instance.session.subscriptions
        }
        self._look_at_deliveries()
        time = self._instance.clock.time()
        for name, watch in self._queues.items():
            sample = self.samples.get(name)
            if sample is None:
                continue
            watch.growth.add(sample.ready, now)
            watch.is_shared = sample.consumers > self._is_consuming
            if not sample.ready and not self._instance.dispatcher.waiting:
                watch.oldest, watch.empty_at = None, time
            age = self._age(watch, sample, time)
            if age.seconds is not None and self._is_consuming:
                watch.aging.add(age.seconds, now)

    def _look_at_deliveries(self) -> None:
        if not self._is_consuming:
            # They went back, and the oldest one waits in its queue.
            return
        waiting = [*self._instance.dispatcher.oldest_waiting(_MOST_LOOKED_AT)]
        oldest = oldest_by_queue(chain(self._instance.running[:_MOST_LOOKED_AT], waiting))
        sizes: dict[str, list[int]] = {}
        for delivery in waiting:
            sizes.setdefault(delivery.queue, []).append(len(delivery.body))
        for name, watch in self._queues.items():
            watch.oldest = oldest.get(name)
            if found := sizes.get(name):
                mean = sum(found) / len(found)
                former = mean if watch.body_size is None else watch.body_size
                watch.body_size = former + _FRESH * (mean - former)

    def _stats(self) -> Stats | None:
        """Return the numbers of the store; None at the end, or if it cannot be read."""
        if self._instance.state is not State.STOPPED:
            with suppress(StoreError):
                return self._instance.files.store.stats()
        return None

    def _look_at_disk(self, now: float) -> None:
        directory = self._instance.files.directory
        if directory is not None:
            with suppress(OSError):
                disk = os.statvfs(directory)
                self._disk_free = disk.f_bavail * disk.f_frsize
                self._disk_growth.add(self._disk_free, now)

    # The health, at any time.

    def now(self) -> Health:
        """Return the health at this moment."""
        stats = self._stats()
        self._look_at_deliveries()
        lag = self._lag()
        facts = LossFacts(
            tuple(self._queue_facts()), self._store_facts(stats), tuple(self._certificates())
        )
        return Health(self._assess(lag, stats), lag, next_loss(facts))

    def _assess(self, lag: Lag, stats: Stats | None) -> Assessment:
        instance, plan = self._instance, self._instance.plan
        executor = instance.executor
        longest = executor.longest() if executor is not None else ("", 0.0)
        facts = ConditionFacts(
            state=instance.state,
            trouble=instance.trouble,
            exit_code=instance.exit_code,
            was_ready=instance.was_ready,
            blocked=instance.remarks.get("blocked", ""),
            stuck=self.stuck,
            fault=self._calls.fault,
            runs=self._retries.runs,
            retried=self._retries.retried,
            retries=instance.dispatcher.held + (stats.deferred if stats else 0),
            lag=instance.lag,
            lag_time=lag,
            longest=longest[0],
            longest_time=longest[1],
            idle_for=self._now() - self._busy_at,
        )
        return condition_of(facts, plan.framework.thresholds.limits(plan.limits.timeout))

    def _lag(self) -> Lag:
        """Return the lag of the queue that lags most."""
        time, samples = self._instance.clock.time(), self.samples
        lags = [self._age(watch, samples.get(name), time) for name, watch in self._queues.items()]
        known = [lag for lag in lags if lag.seconds is not None]
        return max(known, key=lambda lag: lag.seconds or 0.0, default=UNKNOWN)

    def _age(self, watch: _QueueWatch, sample: QueueSample | None, time: float) -> Lag:
        ready = sample.ready if sample is not None else None
        if self._is_consuming:
            waiting = None if ready is None else ready + self._instance.dispatcher.waiting
            return lag_of(watch.oldest, waiting, self._instance.status.rate, time)
        if watch.is_shared:
            return UNKNOWN
        if watch.oldest is None and watch.empty_at is not None and ready:
            return Lag(time - watch.empty_at, "estimate")
        return lag_of(watch.oldest, ready, 0.0, time)

    def _queue_facts(self) -> list[QueueFacts]:
        time, is_consuming = self._instance.clock.time(), self._is_consuming
        limits = self._queue_limits()
        found = []
        for name, watch in self._queues.items():
            sample = self.samples.get(name)
            own = limits.get(watch.configured_name, _NO_LIMITS)
            facts = QueueFacts(
                name=name,
                limits=own,
                ready=sample.ready if sample is not None else None,
                growth=watch.growth.growth,
                body_size=watch.body_size,
                age=self._age(watch, sample, time).seconds,
                aging=watch.aging.growth if is_consuming else 1.0,
                unused=self._unused(watch, sample, own),
            )
            found.append(facts)
        return found

    def _unused(
        self, watch: _QueueWatch, sample: QueueSample | None, limits: QueueLimits
    ) -> float | None:
        is_renewed = sample is not None and limits.is_renewed
        if self._is_consuming or watch.is_shared or is_renewed:
            watch.used_at = self._now()
            return None
        return self._now() - watch.used_at

    def _queue_limits(self) -> dict[str, QueueLimits]:
        """Return the limits of the queues by their names in the configuration."""
        settings = self._instance.settings
        if self._limits is None or self._limits[0] is not settings:
            # Not each time: it parses the settings.
            self._limits = settings, settings.queue_limits()
        return self._limits[1]

    def _store_facts(self, stats: Stats | None) -> StoreFacts:
        instance, framework = self._instance, self._instance.plan.framework
        if stats is None or instance.files.directory is None:
            return NO_STORE
        age = None if stats.oldest is None else instance.clock.time() - stats.oldest
        return StoreFacts(
            directory=str(instance.files.directory),
            used=stats.bytes,
            growth=self._store_growth.growth,
            limit=framework.quarantine_max_bytes,
            quarantined=stats.quarantined,
            oldest=age,
            max_age=framework.quarantine_max_age,
            disk_free=self._disk_free,
            disk_growth=self._disk_growth.growth,
        )

    def _certificates(self) -> list[Certificate]:
        tls, time, now = self._instance.settings.tls, self._instance.clock.time(), self._now()
        read_at, former, ends = self._ends
        if tls is not former or now - read_at > _CERTIFICATES_INTERVAL:
            ends = _ends(tls)
            self._ends = now, tls, ends
        return [Certificate(path, end - time) for path, end in ends.items()]


def _ends(tls: Tls) -> dict[str, float]:
    """Return the ends of the certificates by their files, in seconds since the epoch."""
    found = {}
    if tls.ca_cert:
        # A bundle has many, and one that is valid may do.
        found[tls.ca_cert] = max(ends_of(Path(tls.ca_cert)), default=None)
    if tls.certfile and tls.keyfile:
        # The client's own comes first, those that vouch for it follow.
        found[tls.certfile] = min(ends_of(Path(tls.certfile)), default=None)
    return {path: end.timestamp() for path, end in found.items() if end is not None}
