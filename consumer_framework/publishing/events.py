# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of a relay, and the observers that count them and write their log lines."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from consumer_framework.core.log_fields import fields
from consumer_framework.core.text import about, printable

if TYPE_CHECKING:
    from .message import Outgoing

_log = logging.getLogger(__name__)

# The number of attempts at which a row that fails is told, and then each tenfold of it.
TOLD_AT = 10


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


class StoreUp(NamedTuple):
    """The outbox's database works again."""


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
    | StoreUp
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
            case StoreUp():
                _log.info("The outbox's database works again")
                self._store = None
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
    return about(math.ceil(max(until - time.time(), 0.0)))
