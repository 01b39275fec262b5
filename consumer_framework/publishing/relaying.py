# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a relay from a configuration, and describes it to people.

An instance has a relay of its own, and ``fm-consumer outbox relay`` is one. Both make it here
(:func:`relay_of`), and both show the same facts (:class:`RelayStatus`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING

from consumer_framework.core.stats import Progress

from . import messengers
from .events import RelayCounters
from .policy import Policy
from .relay import Relay
from .report import PausedTopic, RelayReport
from .store import OutboxError

if TYPE_CHECKING:
    from consumer_framework.core.ports import Clock
    from consumer_framework.settings import Settings

    from .events import RelayEvent, RelayObserver
    from .messengers import Endpoints, Messenger
    from .store import OutboxStats, OutboxStore

# Seconds between two counts of the outbox, at least.
COUNT_INTERVAL = 5.0
# A count may take so large a part of the time: counting is a scan.
_SHARE = 20


def endpoints_of(settings: Settings) -> Endpoints:
    """Return the endpoints of the outbox: its own ones, or ``amqp_url`` and ``brokers``.

    Their passwords are secrets from now on.
    """
    document = {
        "amqp_url": settings.amqp_url,
        "client_properties": settings.client_properties,
        "consumer_config": settings.consumer_config,
        "tls": settings.tls.model_dump(),
    }
    return messengers.endpoints_of(document, settings.framework.outbox)


def messenger_of(settings: Settings) -> Messenger:
    """Return the messenger of the outbox. It connects to nothing yet.

    Raises:
        ConfigurationError: There is none of that name, or it refuses an endpoint or an option.
    """
    outbox = settings.framework.outbox
    return messengers.make(outbox.messenger, endpoints_of(settings), outbox.options)


def relay_of(
    settings: Settings, store: OutboxStore, *, observer: RelayObserver, clock: Clock
) -> Relay:
    """Return the relay of the outbox in *store*, as *settings* describe it.

    Raises:
        ConfigurationError: See :func:`messenger_of`.
    """
    outbox = settings.framework.outbox
    return Relay(
        store,
        messenger_of(settings),
        Policy.of(outbox),
        clock=clock,
        observer=observer,
        window=outbox.window,
        lease=outbox.lease,
        lossy=outbox.lossy,
    )


class RelayStatus:
    """An observer that knows the numbers of a relay. Several threads may use it.

    Args:
        clock: That of the relay.
        messenger: The name of the messenger.

    Attributes:
        counters: The counts since the start.
        relay: The relay; None before there is one.
        store: Its outbox; likewise.
    """

    def __init__(self, clock: Clock, messenger: str = "") -> None:
        self._clock = clock
        self.messenger = messenger
        self.counters = RelayCounters()
        self.relay: Relay | None = None
        self.store: OutboxStore | None = None
        self._progress = Progress(clock.monotonic())
        self._stats: OutboxStats | None = None
        self._count_at = 0.0
        self._counting = threading.Lock()

    @property
    def is_proven(self) -> bool:
        """True if the relay has sent messages for a while: it was not just restarted in vain."""
        return self._progress.is_proven(self._clock.monotonic())

    def notify(self, event: RelayEvent) -> None:
        """Count *event*."""
        self.counters.notify(event)

    def count(self) -> None:
        """Count the rows of the outbox, unless it was done lately. It may take seconds."""
        store = self.store
        if store is None or not self._counting.acquire(blocking=False):
            return
        try:
            began = self._clock.monotonic()
            if began < self._count_at:
                return
            with contextlib.suppress(OutboxError):
                self._stats = store.stats()
            took = self._clock.monotonic() - began
            self._count_at = self._clock.monotonic() + max(COUNT_INTERVAL, took * _SHARE)
        finally:
            self._counting.release()

    def report(self) -> RelayReport:
        """Describe the relay. The rows of its outbox are those of the last :meth:`count`."""
        now, relay, stats = self._clock.monotonic(), self.relay, self._stats
        self._progress.look(self.counters.sent, now)
        counts = dataclasses.asdict(self.counters)
        last_error = counts.pop("last_error")
        found = RelayReport(
            messenger=self.messenger,
            rate=self._progress.rate(now),
            up=self._progress.up(now),
            counts=counts,
            last_error=last_error,
            database="" if self.store is None else self.store.place,
        )
        if stats is not None:
            age = None if stats.oldest is None else max(self._clock.time() - stats.oldest, 0.0)
            found = dataclasses.replace(
                found,
                waiting=stats.waiting,
                retrying=stats.retrying,
                dead=stats.dead,
                oldest=age,
            )
        return found if relay is None else self._of_relay(relay, found)

    def _of_relay(self, relay: Relay, found: RelayReport) -> RelayReport:
        paused = tuple(PausedTopic(*key, until) for key, until in relay.paused.items())
        found = dataclasses.replace(found, endpoint=relay.endpoint, paused=paused)
        if relay.store_fault:
            return dataclasses.replace(found, state="failing", trouble=relay.store_fault)
        if relay.is_standby:
            return dataclasses.replace(found, state="standby")
        if relay.endpoint_fault:
            until = relay.endpoint_until
            left = None if until is None else max(until - self._clock.time(), 0.0)
            trouble = relay.endpoint_fault
            return dataclasses.replace(found, state="waiting", trouble=trouble, next_attempt=left)
        return dataclasses.replace(found, state="sending" if relay.is_sending else "starting")
