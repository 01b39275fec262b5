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

**A row that breaks its endpoint** (the broker answers it by closing the connection) looks like a
broken endpoint. So after a failure the relay sends one row alone. If the endpoint can be opened and
this row fails again, the row gets a delay of its own, and the next one is tried.

**One relay at a time.** A relay holds the lease of its outbox, because only one can keep an order.
A relay that dies loses its lease and its claims after ``lease`` seconds; the next one sends the
claimed rows again, with the same message ids. With ``leased=False`` several relays share the work,
and keep the order of each key while none of them dies.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
import uuid
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from consumer_framework.core.log_fields import fields
from consumer_framework.core.secrets import redact
from consumer_framework.core.text import about, printable

from .messengers import Reject, Retry, Scope, Sent, refusal
from .policy import ENDPOINT, LONGEST, MESSAGE, TOPIC, OnFailure, Policy, Unroutable
from .store import OutboxError

if TYPE_CHECKING:
    import threading
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
# The number of attempts at which a row that fails is told, and then each tenfold of it.
TOLD_AT = 10


class Step(Enum):
    """The result of :meth:`Relay.step`."""

    SENT = "sent"  # a batch was settled: there may be more
    IDLE = "idle"  # no row is due
    WAITING = "waiting"  # no endpoint takes messages now
    STANDBY = "standby"  # another relay has the lease


class Published(NamedTuple):
    """A message was sent, and its row is gone. ``routed`` is that of :class:`.Sent`."""

    message: Outgoing
    routed: bool | None


class Postponed(NamedTuple):
    """A message was not sent, and its row waits.

    Attributes:
        attempts: The number of its failed attempts.
        due: The time of the next attempt, in seconds since the epoch.
    """

    message: Outgoing
    reason: str
    attempts: int
    due: float


class Buried(NamedTuple):
    """A message can never be sent; its row is dead."""

    message: Outgoing
    reason: str


class Skipped(NamedTuple):
    """Messages with ``on_failure = "skip"`` were discarded; ``message`` is one of them, or None."""

    number: int
    reason: str
    message: Outgoing | None = None


class TopicPaused(NamedTuple):
    """Nothing is sent to this exchange with this topic until a time of the epoch."""

    exchange: str
    topic: str
    reason: str
    until: float


class EndpointDown(NamedTuple):
    """No endpoint takes messages; the next attempt is at a time of the epoch."""

    reason: str
    until: float


class EndpointUp(NamedTuple):
    """The messenger is connected."""


class ClaimsLost(NamedTuple):
    """Rows were sent, but another relay had claimed them meanwhile: they are sent twice."""

    number: int


class StoreDown(NamedTuple):
    """The outbox's database did not do it."""

    reason: str


class LeaseChanged(NamedTuple):
    """The relay became the one that sends, or it is one in reserve."""

    is_held: bool


RelayEvent: TypeAlias = (
    Published
    | Postponed
    | Buried
    | Skipped
    | TopicPaused
    | EndpointDown
    | EndpointUp
    | ClaimsLost
    | StoreDown
    | LeaseChanged
)


class RelayObserver(Protocol):
    """Is told about each event, in the relay's thread; it must be quick, and not raise."""

    def notify(self, event: RelayEvent) -> None:
        """Take note of *event*."""
        ...


class RelayObservers:
    """Tells several observers, in the order of the arguments."""

    def __init__(self, *observers: RelayObserver) -> None:
        self._observers = observers

    def notify(self, event: RelayEvent) -> None:
        """Tell each observer."""
        for observer in self._observers:
            observer.notify(event)


@dataclass
class RelayCounters:
    """An observer that counts since the start of the process.

    Attributes:
        sent: Messages that an endpoint took.
        unroutable: Those of them that no queue got.
        postponed: Attempts that failed, of messages that wait now.
        dead: Messages that can never be sent.
        skipped: Messages with ``on_failure = "skip"`` that were discarded.
        claims_lost: Messages that were sent although another relay has them too.
        topics_paused: Pauses of a topic.
        endpoint_failures: Failures of an endpoint.
        store_failures: Failures of the database.
        last_error: The last reason for a failure, ``""`` for none.
    """

    sent: int = 0
    unroutable: int = 0
    postponed: int = 0
    dead: int = 0
    skipped: int = 0
    claims_lost: int = 0
    topics_paused: int = 0
    endpoint_failures: int = 0
    store_failures: int = 0
    last_error: str = ""

    def notify(self, event: RelayEvent) -> None:
        """Count *event*."""
        match event:
            case Published(routed=routed):
                self.sent += 1
                self.unroutable += routed is False
            case Postponed():
                self.postponed += 1
            case Buried():
                self.dead += 1
            case Skipped(number=number):
                self.skipped += number
            case ClaimsLost(number=number):
                self.claims_lost += number
            case TopicPaused():
                self.topics_paused += 1
            case EndpointDown():
                self.endpoint_failures += 1
            case StoreDown():
                self.store_failures += 1
        self.last_error = getattr(event, "reason", self.last_error)


class RelayLog:
    """An observer that writes a line for each event that an operator should know."""

    # Topics that are remembered as told; more of them share one more line each.
    _MOST_TOPICS = 10_000

    def __init__(self) -> None:
        self._unroutable: set[tuple[str, str]] = set()
        self._endpoint: str | None = None
        self._store: str | None = None

    def notify(self, event: RelayEvent) -> None:  # noqa: C901, PLR0912 -- a table of lines
        """Write the line of *event*, if it has one."""
        match event:
            case Published(message, routed=False):
                self._tell_unroutable(message)
            case Postponed(message, reason, attempts) if _is_told(attempts):
                text = "Message %s (%s) failed %d times: %s"
                _warn(text, message, message.id, message.topic, attempts, reason)
            case Buried(message, reason):
                text = "Message %s (%s) can never be sent, and is kept for an operator: %s"
                _warn(text, message, message.id, message.topic, reason)
            case Skipped(number, reason, message):
                text = "Discarded %d messages that are not to wait: %s"
                _warn(text, message, number, reason)
            case TopicPaused(exchange, topic, reason, until):
                text = "Nothing is sent to exchange %s with topic %s for %s: %s"
                _log.warning(text, exchange, printable(topic), _from_now(until), reason)
            case EndpointDown(reason, until):
                if reason != self._endpoint:
                    _log.warning("Cannot send: %s; next attempt in %s", reason, _from_now(until))
                self._endpoint = reason
            case EndpointUp():
                if self._endpoint is not None:
                    _log.info("Sending again")
                self._endpoint = None
            case StoreDown(reason):
                if reason != self._store:
                    _log.error("%s", reason)
                self._store = reason
            case ClaimsLost(number):
                _log.warning("%d messages are sent twice: their claims ended meanwhile", number)
            case LeaseChanged(is_held):
                text = "This relay sends now" if is_held else "Another relay sends; this one waits"
                _log.info(text)

    def _tell_unroutable(self, message: Outgoing) -> None:
        key = (message.exchange, message.topic)
        if key in self._unroutable or len(self._unroutable) >= self._MOST_TOPICS:
            return
        self._unroutable.add(key)
        text = "No queue is bound to exchange %s for topic %s; such messages count as sent"
        _warn(text, message, message.exchange, message.topic)


def _is_told(attempts: int) -> bool:
    return attempts in (TOLD_AT, TOLD_AT * 10) or attempts % (TOLD_AT * 100) == 0


def _warn(text: str, message: Outgoing | None, *arguments: object) -> None:
    texts = (printable(one) if isinstance(one, str) else one for one in arguments)
    extra = {} if message is None else fields(message.id, message.topic, "")
    _log.warning(text, *texts, extra=extra)


def _from_now(until: float) -> str:
    return about(max(until - time.time(), 0.0))


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


@dataclass
class _Pause:
    """The pause of an exchange and topic: its end, and the number of pauses in a row."""

    until: float
    times: int = 1


class Relay:
    """Sends from one outbox through one messenger.

    :meth:`run` belongs to a thread of its own; :meth:`step` is one round of it, for tests. Nothing
    but :meth:`wake` may be called from another thread.

    Args:
        store: The outbox's table.
        messenger: It is opened, and closed at the end, by the relay.
        policy: The answers for messages that were not sent.
        clock: Times of rows are seconds since the epoch; lengths are measured monotonically.
        observer: Is told what happens.
        chance: Returns a random number from 0 to 1, for jitter.
        window: Messages that are sent at once.
        lease: Seconds after which another relay takes over from one that is dead. It must be longer
            than :meth:`.Messenger.send_many` takes.
        lossy: Send messages that the messenger would change.
        leased: False lets several relays send at once.
        owner: At most 40 characters, different for each relay.

    Attributes:
        is_connected: True if the messenger is open.
        endpoint_until: The time of the next attempt to send after the endpoint failed, in seconds
            since the epoch; None if it did not fail.
    """

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
        self._full_window = self._window = window
        self._lease = lease
        self._lossy = lossy
        self._leased = leased
        self._owner = owner or uuid.uuid4().hex
        self._has_lease: bool | None = None
        self._lease_until = 0.0
        self._claims = 0
        self._unsettled: tuple[str, _Fates] | None = None
        self._failures = 0
        self._swept = 0
        self._rebased = 0.0
        self._pauses: dict[tuple[str, str], _Pause] = {}
        self._waker: Waker | None = None
        self._woken = False
        self.is_connected = False
        self.endpoint_until: float | None = None

    @property
    def paused(self) -> dict[tuple[str, str], float]:
        """The end of each pause, in seconds since the epoch, by exchange and topic."""
        now = self._clock.time()
        return {key: one.until for key, one in list(self._pauses.items()) if one.until > now}

    @property
    def is_sending(self) -> bool:
        """True if the relay may send: it has the lease, and an endpoint."""
        return self.is_connected and (self._has_lease is not False)

    def run(self, stop: threading.Event) -> None:
        """Send until *stop* is set; then give back lease and claims, and close the messenger.

        A batch that is on its way is waited for. A failure of the database does not end the relay.
        """
        failures = 0
        try:
            while not stop.is_set():
                try:
                    step = self.step()
                    failures = 0
                    if step is not Step.SENT:
                        self._rest(stop, step)
                except OutboxError as error:
                    failures += 1
                    self._observer.notify(StoreDown(str(error)))
                    self._drop_waker()
                    stop.wait(ENDPOINT.after(failures, self._chance()))
        finally:
            self.close()

    def close(self) -> None:
        """Give back lease and claims, and close the messenger."""
        self._drop_waker()
        with contextlib.suppress(OutboxError):
            if self._unsettled is not None:
                self._settle(*self._unsettled)
            self._store.release(self._owner)
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
        if self._unsettled is not None:
            self._settle(*self._unsettled)
        if now - self._rebased >= _REBASE or now < self._rebased:
            self._look_after(now)
        if not self._holds_lease(now):
            return Step.STANDBY
        if self.endpoint_until is not None and now < self.endpoint_until <= now + LONGEST:
            self._sweep("no endpoint takes messages")
            return Step.WAITING
        if not self._open(now):
            self._sweep("no endpoint takes messages")
            return Step.WAITING
        self._claims += 1
        token = f"{self._owner}.{self._claims}"
        claimed = self._store.claim(token, self._window, self._lease, now)
        if not claimed:
            return Step.IDLE
        self._settle(token, self._send(claimed))
        return Step.SENT

    def _look_after(self, now: float) -> None:
        """Do the work that comes once a minute."""
        self._store.rebase(now, max(LONGEST, 2 * self._lease))
        self._rebased = now
        # A topic that nobody published to since its pause ended begins anew. No pause is so far
        # ahead, unless the clock was set back.
        ended = [key for key, pause in self._pauses.items() if abs(pause.until - now) > LONGEST]
        for key in ended:
            del self._pauses[key]

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

    def _open(self, now: float) -> bool:
        if self.is_connected:
            return True
        try:
            self._messenger.open()
        except ConnectionError as error:
            self._fail(redact(str(error)) or type(error).__name__, now)
            return False
        except Exception as error:  # noqa: BLE001 -- see below
            # A defect of a messenger must not end the relay of all messages.
            _log.exception("The messenger raised %s", type(error).__name__)
            self._fail(_defect(error), now)
            return False
        self.is_connected = True
        self.endpoint_until = None
        self._observer.notify(EndpointUp())
        return True

    def _fail(self, reason: str, now: float) -> None:
        self._failures += 1
        self._window = 1
        self.endpoint_until = now + ENDPOINT.after(self._failures, self._chance())
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
        fates = _Fates()
        began = self._clock.monotonic()
        for wave in _waves(claimed):
            is_late = self._clock.monotonic() - began > self._lease / 2
            if is_late or fates.endpoint is not None:
                fates.released += [one.row for one in wave]
                continue
            ready = [one for one in wave if self._is_ready(one, fates)]
            for one, result in zip(ready, self._results(ready), strict=True):
                self._decide(one, result, fates, is_alone=len(claimed) == 1)
        if fates.sent:
            self._failures, self._swept = 0, 0
            self.endpoint_until = None
            self._window = min(self._window * 8, self._full_window)
        if fates.endpoint is not None:
            self._close_messenger()
            self._fail(fates.endpoint, self._clock.time())
        return fates

    def _is_ready(self, one: Claimed, fates: _Fates) -> bool:
        """Return true if *one* may be sent; otherwise settle it."""
        message = one.message
        if message.ordering_key and message.ordering_key in fates.blocked:
            fates.released.append(one.row)
            return False
        pause = self._pauses.get((message.exchange, message.topic))
        if pause is not None and self._clock.time() < pause.until:
            self._park(one, pause.until, fates)
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
        message, now = one.message, self._clock.time()
        match result:
            case Sent(routed):
                self._pauses.pop((message.exchange, message.topic), None)
                self._sent(one, routed, fates)
            case Reject(reason):
                self._bury(one, redact(reason), fates)
            case Retry(reason, Scope.TOPIC):
                until = self._pause_topic(message, redact(reason), now, fates)
                self._postpone(one, redact(reason), until, fates)
            case Retry(reason, Scope.ENDPOINT) if not is_alone:
                # Nobody knows which of the batch is to blame, if any: see `_fail`.
                fates.endpoint = redact(reason)
                self._give_back(one, fates)
            case Retry(reason, scope):
                if scope is Scope.ENDPOINT:
                    fates.endpoint = redact(reason)
                delay = MESSAGE.after(one.attempts + 1, self._chance())
                self._postpone(one, redact(reason), now + delay, fates)

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

    def _pause_topic(self, message: Outgoing, reason: str, now: float, fates: _Fates) -> float:
        key = (message.exchange, message.topic)
        pause = self._pauses.get(key)
        if pause is None or pause.until <= now:
            times = 1 if pause is None else pause.times + 1
            pause = _Pause(now + TOPIC.after(times, self._chance()), times)
            self._pauses[key] = pause
            fates.events.append(TopicPaused(*key, reason, pause.until))
        return pause.until

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
        fates.blocked.add(one.message.ordering_key)
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
            self._observer.notify(ClaimsLost(settled.lost))

    # Between batches

    def _rest(self, stop: threading.Event, step: Step) -> None:
        """Wait until there may be something to do."""
        length = POLL
        if step is Step.WAITING and self.endpoint_until is not None:
            length = min(POLL, max(self.endpoint_until - self._clock.time(), _LOOK))
        end = self._clock.monotonic() + length
        if self._waker is None:
            self._waker = self._store.waker()
        while not stop.is_set() and not self._woken and self._clock.monotonic() < end:
            if self._waker.wait(_LOOK) and step is Step.IDLE:
                break
        self._woken = False

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
