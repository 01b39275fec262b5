# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay: claim rows of the outbox, send them through a messenger, and settle them.

It is synchronous, and one thread runs it. It knows no broker: a messenger returns the fate of each
message as :class:`.Sent`, :class:`.Retry` or :class:`.Reject`, and the relay settles the row:

=================== ============================================================================
fate                row
=================== ============================================================================
Sent                deleted. If no queue got the message, ``unroutable`` of its topic decides
Retry, MESSAGE      due again later, without a limit of attempts; its ordering key waits with it
Retry, TOPIC        likewise, with every row of that exchange and topic: the topic is paused
Retry, ENDPOINT     given back as it was; nothing is sent until the endpoint's delay is over
Reject              dead, for an operator
=================== ============================================================================

A row with ``on_failure = "skip"`` is discarded and counted where another one waits.

**Order.** A batch is sent in waves in which each ordering key occurs once; rows without a key are
all in the first wave. A row that was not sent keeps the later rows of its key from being sent, and
no others.

**Claims.** A claim has as many rows as were sent within the last second, so that the database is
asked rarely: a window at least, and :data:`MOST` at most. A messenger that keeps a window by itself
gets a whole wave, others get it window by window. If the relay is to stop, the rest of the claim is
given back between two waves or windows.

**A row that breaks its endpoint** (the broker answers it by closing the connection) looks like a
broken endpoint. So after a failure the relay sends one row alone. If the endpoint can be opened and
this row fails again, the row gets a delay of its own, and the next one is tried.

**One relay at a time.** A relay holds the lease of its outbox, because only one can keep an order.
A relay that dies loses its lease and its claims after ``lease`` seconds; the next one sends the
claimed rows again, with the same message ids. With ``leased=False`` several relays share the work,
and keep the order of each key while none of them dies.

**A slow batch.** While :meth:`Relay.run` waits for a messenger, a second thread extends the lease
and the claims of the batch (:mod:`.extending`). If a relay was stopped meanwhile
(SIGSTOP, a suspended machine, no database) for so long that another one took over, then the rest of
its batch is given back between two waves. The messages that both sent are reported as
:class:`.ClaimsLost`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import uuid
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from consumer_framework.core.secrets import redact

from .claimer import Claimer
from .events import (
    Buried,
    ClaimsLost,
    EndpointDown,
    EndpointUp,
    LeaseChanged,
    Postponed,
    Published,
    RelayEvent,
    RelayObserver,
    Skipped,
    StoreDown,
    StoreUp,
    TopicPaused,
)
from .extending import PATIENCE, Extender, Moment
from .messengers import Reject, Retry, Scope, Sent, refusal
from .pauses import TopicPauses
from .policy import ENDPOINT, LONGEST, MESSAGE, OnFailure, Policy, Unroutable
from .store import OutboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumer_framework.core.ports import Clock

    from .message import Outgoing
    from .messengers import Messenger, Result
    from .store import Claimed, OutboxStore, Waker

_log = logging.getLogger(__name__)

# Seconds between two looks into an outbox that is empty, and between two looks at the stop.
POLL = 1.0
_LOOK = 0.1
# Rows that one step looks at, to discard those with `on_failure = "skip"`.
_SWEEP = 2000
# Seconds between two looks for rows that a wrong clock made late.
_REBASE = 60.0
# The most rows of a claim, unless the window is larger, and the seconds that it takes to send them.
MOST = 1000
_LENGTH = 1.0
_LEAST_LENGTH = 1e-3


class Step(Enum):
    """The result of :meth:`Relay.step`."""

    SENT = "sent"  # a batch was settled: there may be more
    IDLE = "idle"  # no row is due
    WAITING = "waiting"  # no endpoint takes messages now
    STANDBY = "standby"  # another relay has the lease


@dataclass
class _Fates:
    """The rows of one claim, by their fate."""

    sent: list[int] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    retries: list[tuple[int, float, str]] = field(default_factory=list)
    parked: list[tuple[int, float, str]] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    unroutable: int = 0
    events: list[RelayEvent] = field(default_factory=list)
    endpoint: str | None = None
    blocked: set[str] = field(default_factory=set)


class Relay:
    """Sends from one outbox through one messenger.

    :meth:`run` belongs to a thread of its own; :meth:`step` is one round of it, for tests. Nothing
    but :meth:`wake` may be called from another thread; properties may be read.

    Args:
        store: The outbox's table.
        messenger: It is opened, and closed at the end, by the relay.
        policy: The answers for messages that were not sent.
        clock: Times of rows are seconds since the epoch; lengths are measured monotonically.
        observer: Is told about each event.
        chance: Returns a random number from 0 to 1, for jitter.
        window: Messages that are sent before the first of them is confirmed. See
            :attr:`.Endpoints.window` for a messenger that keeps it by itself.
        lease: Seconds after which another relay takes over from one that is dead.
        lossy: Send messages that the messenger would change.
        leased: False lets several relays send at once.
        owner: At most 40 characters, different for each relay.

    Attributes:
        is_connected: True if the messenger is open.
        endpoint_until: The time of the next attempt to send after the endpoint failed, in seconds
            since the epoch; None if it did not fail.
        endpoint_fault: The reason why no endpoint takes messages; ``""`` for none.
        store_fault: The reason why the database cannot be used; ``""`` for none.
        idle_at: When the last look into the outbox that found nothing to send began, in seconds of
            the clock's monotonic time.
    """

    is_connected = False
    endpoint_until: float | None = None
    endpoint_fault = ""
    store_fault = ""
    idle_at = -math.inf

    def __init__(  # noqa: PLR0913 -- each is a value of its own
        self,
        store: OutboxStore,
        messenger: Messenger,
        policy: Policy,
        *,
        clock: Clock,
        observer: RelayObserver,
        chance: Callable[[], float] = random.random,
        window: int = 100,
        lease: float = 30.0,
        lossy: bool = False,
        leased: bool = True,
        owner: str | None = None,
    ) -> None:
        self._store = store
        self._messenger = messenger
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._chance = chance
        self._window = self._rows = window
        # Relays without a lease share the work in small portions.
        self._most_rows = max(window, MOST) if leased else window
        self._lease = lease
        self._lossy = lossy
        self._leased = leased
        self._owner = owner or uuid.uuid4().hex
        self._has_lease: bool | None = None
        self._lease_until = 0.0
        self._claimer = Claimer(store, self._owner, lease, clock)
        self._looks_ahead = False
        # The fates of the rows of the last claim until they are settled.
        self._unsettled: tuple[str, _Fates] | None = None
        self._failures = 0
        self._swept = 0
        self._rebased = 0.0
        self._pauses = TopicPauses(clock, chance)
        self._waker: Waker | None = None
        self._woken = False
        self._stop = threading.Event()
        self._extender = Extender(store, self._owner if leased else None, lease, clock)
        self._moved = clock.monotonic()

    @property
    def paused(self) -> dict[tuple[str, str], float]:
        """The end of each pause, in seconds since the epoch, by exchange and topic."""
        return self._pauses.current

    @property
    def endpoint(self) -> str:
        """The host and port of the endpoint in use; ``""`` without one, or if nobody knows it."""
        return getattr(self._messenger, "endpoint", "") if self.is_connected else ""

    @property
    def is_sending(self) -> bool:
        """True if the relay may send: it has the lease, and an endpoint."""
        return self.is_connected and (self._has_lease is not False)

    @property
    def is_standby(self) -> bool:
        """True if another relay has the lease: this one waits for it."""
        return self._has_lease is False

    @property
    def is_stuck(self) -> bool:
        """True if the thread of :meth:`run` has not moved for a long time: its process should end.

        A messenger, or the driver of the database, does not return.
        """
        longest = PATIENCE * max(self._lease, ENDPOINT.longest)
        return self._clock.monotonic() - self._moved > longest

    def run(self, stop: threading.Event) -> None:
        """Send until *stop* is set; then give back lease and claims, and close the messenger.

        A wave that is on its way is waited for. A failure of the database does not end the relay.
        """
        self._extender.start()
        self._looks_ahead = self._leased
        self._stop = stop
        failures = 0
        try:
            while not stop.is_set():
                try:
                    step = self.step()
                    failures = 0
                    if self.store_fault:
                        self.store_fault = ""
                        self._observer.notify(StoreUp())
                    if step is not Step.SENT:
                        self._rest(stop, step)
                except OutboxError as error:
                    failures += 1
                    self.store_fault = str(error)
                    self._observer.notify(StoreDown(self.store_fault))
                    self._drop_waker()
                    stop.wait(ENDPOINT.after(failures, self._chance()))
        finally:
            self.close()

    def close(self) -> None:
        """Give back lease and claims, and close the messenger."""
        # First: otherwise it could take the lease again.
        self._extender.stop()
        self._drop_waker()
        with contextlib.suppress(OutboxError):
            self._claimer.give_back()
        with contextlib.suppress(OutboxError):
            if self._unsettled is not None:
                self._settle(*self._unsettled)
            held = self._claimer.held
            self._store.release(self._owner, held.token, held.ids)
        self._has_lease = None
        self._close_messenger()

    def wake(self) -> None:
        """Look into the outbox soon. Any thread may call it."""
        self._woken = True

    def step(self) -> Step:
        """Claim, send and settle one batch.

        Raises:
            OutboxError: The database did not do it. Nothing is lost: the rows stay.
        """
        now = self._clock.time()
        self._moved = self._clock.monotonic()
        if self._unsettled is not None:
            self._settle(*self._unsettled)
        if now - self._rebased >= _REBASE or now < self._rebased:
            self._look_after(now)
        if (obstacle := self._obstacle(now)) is not None:
            self._claimer.give_back()
            if obstacle is Step.WAITING:
                self._sweep("no endpoint takes messages")
            return obstacle
        claim = self._claimer.next(self._rows)
        if not claim.rows:
            self.idle_at = self._moved
            return Step.IDLE
        with self._extender.extending(claim.since, claim.token, claim.ids):
            if self._looks_ahead and len(claim.rows) >= self._window:
                self._claimer.look_ahead(self._rows)
            fates = self._send(claim.rows)
        self._settle(claim.token, fates)
        return Step.SENT

    def _obstacle(self, now: float) -> Step | None:
        """Make ready to send; return the reason why that is not possible, or None."""
        if not self._holds_lease(now):
            return Step.STANDBY
        if self.endpoint_until is not None and now < self.endpoint_until <= now + LONGEST:
            return Step.WAITING
        if self.is_connected:
            return None
        if not self._open():
            return Step.WAITING
        # To connect may take longer than the lease.
        return None if self._holds_lease(self._clock.time()) else Step.STANDBY

    def _look_after(self, now: float) -> None:
        """Do the work that comes once a minute."""
        self._store.rebase(now, max(LONGEST, 2 * self._lease))
        self._rebased = now
        self._pauses.forget()

    # The lease, the endpoint

    def _holds_lease(self, now: float) -> bool:
        if not self._leased:
            return True
        since = now - (self._lease_until - self._lease)
        if self._has_lease and 0 <= since < self._lease / 3:
            return True
        has_lease = self._store.lease(self._owner, self._lease, now)
        self._lease_until = now + self._lease
        if has_lease != self._has_lease:
            self._has_lease = has_lease
            self._observer.notify(LeaseChanged(has_lease))
        return has_lease

    def _open(self) -> bool:
        try:
            with self._extender.extending(Moment.now(self._clock)):
                self._messenger.open()
        except ConnectionError as error:
            self._fail(redact(str(error)) or type(error).__name__)
            return False
        except Exception as error:  # noqa: BLE001 -- see below
            # A defect of a messenger must not end the relay of all messages.
            _log.exception("The messenger raised %s", type(error).__name__)
            self._fail(_defect(error))
            return False
        self.is_connected = True
        self.endpoint_until = None
        self.endpoint_fault = ""
        self._observer.notify(EndpointUp())
        return True

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self._rows = 1
        self.endpoint_fault = reason
        self.endpoint_until = self._clock.time() + ENDPOINT.after(self._failures, self._chance())
        self._observer.notify(EndpointDown(reason, self.endpoint_until))

    def _close_messenger(self) -> None:
        self.is_connected = False
        try:
            self._messenger.close()
        except Exception:  # noqa: BLE001 -- it is closed anyway
            _log.exception("The messenger could not be closed")

    def _sweep(self, reason: str) -> None:
        """Discard rows that are not to wait for an endpoint."""
        self._swept, count = self._store.discard_skippable(self._swept, _SWEEP)
        if count:
            self._observer.notify(Skipped(count, reason))

    # One batch

    def _send(self, claimed: Sequence[Claimed]) -> _Fates:
        fates, began = _Fates(), self._clock.monotonic()
        for part in self._parts(claimed):
            self._moved = self._clock.monotonic()
            if self._stop.is_set() or self._extender.is_late or fates.endpoint is not None:
                fates.released += [one.row for one in part]
                continue
            ready = [one for one in part if self._is_ready(one, fates)]
            for one, result in zip(ready, self._results(ready), strict=True):
                self._decide(one, result, fates, is_alone=len(claimed) == 1)
        if fates.sent:
            self._failures, self._swept = 0, 0
            self.endpoint_until = None
            self.endpoint_fault = ""
            took = max(self._clock.monotonic() - began, _LEAST_LENGTH)
            rows = max(self._window, int(len(fates.sent) / took * _LENGTH))
            self._rows = min(self._rows * 8, rows, self._most_rows)
        if fates.endpoint is not None:
            self._close_messenger()
            self._fail(fates.endpoint)
        return fates

    def _parts(self, claimed: Sequence[Claimed]) -> Iterator[Sequence[Claimed]]:
        size = len(claimed) if getattr(self._messenger, "keeps_window", False) else self._window
        for wave in _waves(claimed):
            yield from (wave[start : start + size] for start in range(0, len(wave), size))

    def _is_ready(self, one: Claimed, fates: _Fates) -> bool:
        """Return true if *one* may be sent; otherwise settle it."""
        message = one.message
        if message.ordering_key and message.ordering_key in fates.blocked:
            fates.released.append(one.row)
            return False
        if (until := self._pauses.end(message)) is not None:
            self._park(one, until, fates)
            return False
        reason = None if self._lossy else refusal(message, self._messenger.features)
        if reason is not None:
            self._bury(one, reason, fates)
        return reason is None

    def _results(self, ready: Sequence[Claimed]) -> Sequence[Result]:
        if not ready:
            return []
        try:
            results = self._messenger.send_many([one.message for one in ready])
            if len(results) != len(ready):
                raise ValueError(f"{len(results)} results for {len(ready)} messages")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 -- a defect must not end the relay
            _log.exception("The messenger raised %s", type(error).__name__)
            return [Retry(_defect(error))] * len(ready)
        return results

    def _decide(self, one: Claimed, result: Result, fates: _Fates, *, is_alone: bool) -> None:
        message = one.message
        match result:
            case Sent(routed):
                self._pauses.lift(message)
                self._sent(one, routed, fates)
            case Reject(reason):
                self._bury(one, redact(reason), fates)
            case Retry(reason, Scope.TOPIC):
                until = self._pause_topic(message, redact(reason), fates)
                self._postpone(one, redact(reason), until, fates)
            case Retry(reason, Scope.ENDPOINT) if not is_alone:
                # Nobody knows which of the batch is to blame, if any: see `_fail`.
                fates.endpoint = redact(reason)
                self._give_back(one, fates)
            case Retry(reason, scope):
                if scope is Scope.ENDPOINT:
                    fates.endpoint = redact(reason)
                delay = MESSAGE.after(one.attempts + 1, self._chance())
                self._postpone(one, redact(reason), self._clock.time() + delay, fates)

    def _sent(self, one: Claimed, routed: bool | None, fates: _Fates) -> None:  # noqa: FBT001
        message = one.message
        if routed is False:
            fates.unroutable += 1
            reason = "no queue is bound for its topic"
            match self._policy.unroutable_of(message.topic):
                case Unroutable.DEAD:
                    self._bury(one, reason, fates)
                    return
                case Unroutable.RETRY:
                    delay = MESSAGE.after(one.attempts + 1, self._chance())
                    self._postpone(one, reason, self._clock.time() + delay, fates)
                    return
        fates.sent.append(one.row)
        fates.events.append(Published(message, routed))

    def _pause_topic(self, message: Outgoing, reason: str, fates: _Fates) -> float:
        until = self._pauses.end(message)
        if until is None:
            until = self._pauses.begin(message)
            fates.events.append(TopicPaused(message.exchange, message.topic, reason, until))
        return until

    def _postpone(self, one: Claimed, reason: str, due: float, fates: _Fates) -> None:
        fates.blocked.add(one.message.ordering_key)
        if one.on_failure == OnFailure.SKIP.value:
            fates.discarded.append(one.row)
            fates.events.append(Skipped(1, reason, one.message))
            return
        fates.retries.append((one.row, due, reason))
        fates.events.append(Postponed(one.message, reason, one.attempts + 1, due))

    def _park(self, one: Claimed, due: float, fates: _Fates) -> None:
        """Let *one* wait for its topic, without an attempt."""
        reason = "its topic is paused"
        fates.blocked.add(one.message.ordering_key)
        if one.on_failure == OnFailure.SKIP.value:
            fates.discarded.append(one.row)
            fates.events.append(Skipped(1, reason, one.message))
            return
        fates.parked.append((one.row, due, reason))

    def _give_back(self, one: Claimed, fates: _Fates) -> None:
        # Without an endpoint no later row of its key is sent either.
        if one.on_failure == OnFailure.SKIP.value:
            fates.discarded.append(one.row)
            fates.events.append(Skipped(1, fates.endpoint or "", one.message))
            return
        fates.released.append(one.row)

    @staticmethod
    def _bury(one: Claimed, reason: str, fates: _Fates) -> None:
        fates.dead.append((one.row, reason))
        fates.events.append(Buried(one.message, reason))

    def _settle(self, token: str, fates: _Fates) -> None:
        # Kept until it has succeeded, so that a database that is away sends nothing twice.
        self._unsettled = token, fates
        settled = self._store.settle(
            token,
            sent=fates.sent,
            discarded=fates.discarded,
            retries=fates.retries,
            parked=fates.parked,
            dead=fates.dead,
            released=fates.released,
            counts={
                "sent": len(fates.sent),
                "skipped": len(fates.discarded),
                "unroutable": fates.unroutable,
            },
        )
        self._unsettled = None
        for event in fates.events:
            self._observer.notify(event)
        if settled.lost:
            # Perhaps the lease is lost too.
            self._lease_until = 0.0
            self._observer.notify(ClaimsLost(settled.lost))

    # Between batches

    def _rest(self, stop: threading.Event, step: Step) -> None:
        """Wait until there may be something to do."""
        length = POLL
        if step is Step.WAITING and self.endpoint_until is not None:
            length = min(POLL, max(self.endpoint_until - self._clock.time(), _LOOK))
        end = self._clock.monotonic() + length
        try:
            self._wait(stop, step, end)
        except Exception as error:
            # Each driver has exceptions of its own for a database that goes away.
            line = redact(" ".join(str(error).split()))
            raise OutboxError(f"the outbox {self._store.place}: {line}") from error
        self._woken = False

    def _wait(self, stop: threading.Event, step: Step, end: float) -> None:
        if self._waker is None:
            self._waker = self._store.waker()
        while not stop.is_set() and not self._woken and self._clock.monotonic() < end:
            self._moved = self._clock.monotonic()
            if self._waker.wait(_LOOK) and step is Step.IDLE:
                break

    def _drop_waker(self) -> None:
        if self._waker is not None:
            with contextlib.suppress(Exception):
                self._waker.close()
        self._waker = None


def _waves(claimed: Sequence[Claimed]) -> Iterator[list[Claimed]]:
    """Split *claimed*, which is in order, so that each ordering key occurs once in a wave."""
    waves: list[list[Claimed]] = []
    seen: dict[str, int] = {}
    for one in claimed:
        key = one.message.ordering_key
        number = seen.get(key, 0) if key else 0
        if key:
            seen[key] = number + 1
        if number == len(waves):
            waves.append([])
        waves[number].append(one)
    return iter(waves)


def _defect(error: Exception) -> str:
    return f"the messenger failed: {type(error).__name__}: {redact(str(error))}"
