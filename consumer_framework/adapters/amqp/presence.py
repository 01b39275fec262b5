# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks the broker now and then for the consumers of a session: one may vanish without a word.

That is the broker's fault, but the messages wait all the same. A :class:`PresenceCheck` declares
each queue passively, and hands the broker's counts to an :class:`AbsenceDetector`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pika.exceptions
from twisted.internet import defer

from . import faults
from .session import cancel_when_silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pika.adapters.twisted_connection import TwistedChannel

    from .connection import Client, ReactorClock
    from .consumers import Subscription
    from .session import Session

_log = logging.getLogger(__name__)

# Seconds in which a broker that is there answers.
ANSWER_TIMEOUT = 60.0
# How many samples must agree: one may come in the middle of something.
AGREEING_SAMPLES = 2


class PresenceCheck:
    """Looks at the queues of a session with passive declarations, on a channel of its own.

    RabbitMQ lets everyone declare passively. A broker that refuses that is asked once, and its
    consumers are believed to be there.

    A broker that neither answers nor sends anything else is left, and connected to again. One that
    has an alarm is not: it stopped reading from the connection, and says so
    (``connection.blocked``).

    Args:
        session: The session with the consumers.
        reactor: Twisted's, or a clock of a test's.
        now: A monotonic clock, in seconds.
        interval: Seconds between two calls of :meth:`ask`.
    """

    def __init__(
        self, session: Session, reactor: ReactorClock, now: Callable[[], float], interval: float
    ) -> None:
        self._session = session
        self._reactor = reactor
        # Not the reactor's, which goes back with the machine's time.
        self._now = now
        self._tolerance = ANSWER_TIMEOUT + 3 * interval
        self._confirmed_at = now()
        self._client: Client | None = None
        self._channel: TwistedChannel | None = None
        self._asking: defer.Deferred[None] | None = None
        # By consumer tag.
        self._detectors: dict[str, AbsenceDetector] = {}
        # By queue.
        self._refused: set[str] = set()
        self._samples: dict[str, QueueSample] = {}

    @property
    def absent(self) -> str:
        """The complaint that a queue has lost its consumer; "" for none."""
        for subscription in self._session.subscriptions:
            detector = self._detectors.get(subscription.consumer_tag)
            if detector is not None and detector.is_absent:
                return f'the broker no longer has the consumer of queue "{subscription.queue}"'
        return ""

    @property
    def samples(self) -> Mapping[str, QueueSample]:
        """The latest counts by the name of the queue; none where they are not known now."""
        return self._samples

    @property
    def confirm_by(self) -> float:
        """The time by which the next answer should come, in seconds of *now*."""
        return self._confirmed_at + self._tolerance

    def ask(self) -> None:
        """Begin to look at every queue, unless that goes on, or there is nothing to look at."""
        client = self._session.client
        if client is not self._client:
            self._forget(client)
        is_complete, is_paused = self._session.is_complete, self._session.is_paused
        if client is None or client.is_blocked or not (is_complete or is_paused):
            self._confirmed_at = self._now()
            self._samples.clear()
        elif self._asking is None:
            self._asking = asking = defer.ensureDeferred(self._ask_all(client))
            cancel_when_silent(asking, client, self._reactor, ANSWER_TIMEOUT, self._data_came)
            asking.addErrback(self._failed, client)
            asking.addBoth(self._ended, asking)

    def stop(self) -> None:
        """Ask no more."""
        self._forget(None)

    def _forget(self, client: Client | None) -> None:
        """Begin anew on another connection."""
        asking, self._asking = self._asking, None
        self._client, self._channel = client, None
        self._detectors.clear()
        self._samples.clear()
        if asking is not None:
            asking.cancel()

    async def _ask_all(self, client: Client) -> None:
        subscriptions = self._session.subscriptions
        tags = {subscription.consumer_tag for subscription in subscriptions}
        self._detectors = {tag: one for tag, one in self._detectors.items() if tag in tags}
        for subscription in subscriptions:
            if subscription.queue not in self._refused:
                await self._look(client, subscription)
        self._confirmed_at = self._now()

    async def _look(self, client: Client, subscription: Subscription) -> None:
        tag = subscription.consumer_tag
        counts = await self._counts(client, subscription.queue)
        if counts is None:
            return
        ready, consumers = counts
        has_room = self._session.has_room(subscription)
        sample = QueueSample(consumers, ready, subscription.latest_tag, has_room)
        self._samples[subscription.queue] = sample
        # The consumer may be another one by now, or none on purpose.
        if not tag or subscription.consumer_tag != tag:
            return
        detector = self._detectors.get(tag)
        if detector is None:
            gets_share = not self._session.is_single_active(subscription)
            detector = self._detectors[tag] = AbsenceDetector(gets_share=gets_share)
        detector.add(sample)

    async def _counts(self, client: Client, queue: str) -> tuple[int, int] | None:
        """Return the numbers of ready messages and of consumers; None where the broker refuses."""
        try:
            if self._channel is None:
                self._channel = await client.channel()
            answer = await self._channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            self._channel = None
            if faults.reply_code(error) == faults.NOT_FOUND:
                return (0, 0)
            self._note_refusal(queue, faults.one_line(error))
            return None
        except pika.exceptions.NoFreeChannels:
            self._note_refusal(queue, "it allows too few channels on a connection (channel_max)")
            return None
        return (answer.method.message_count, answer.method.consumer_count)

    def _note_refusal(self, queue: str, reason: str) -> None:
        self._refused.add(queue)
        text = 'the broker does not say whether queue "%s" still has its consumer: %s'
        _log.info(text, queue, reason)

    def _data_came(self) -> None:
        """Let the answer take its time: the connection is alive."""
        self._confirmed_at = self._now()

    def _ended(self, _result: object, asking: defer.Deferred[None]) -> None:
        if self._asking is asking:
            self._asking = None

    def _failed(self, failure: Any, client: Client) -> None:
        if client is not self._session.client or client is not self._client:
            # It was canceled, or the end of the connection is the session's affair.
            return
        self._channel = None
        if failure.check(defer.TimeoutError):
            if not client.is_blocked:
                _log.warning(
                    "the broker did not answer within %.0f s; connecting again", ANSWER_TIMEOUT
                )
                client.abort()
        elif not failure.check(*faults.CONNECTION_GONE):
            # Where that goes on, the watchdog finds that nothing is confirmed.
            _log.error("looking at the queues failed", exc_info=failure.value)


@dataclass(frozen=True, slots=True)
class QueueSample:
    """The broker's counts of a queue, and our own at the same time.

    Attributes:
        consumers: How many consumers the broker counts.
        ready: How many messages are ready in the queue.
        delivered: How many messages came on our channel so far.
        has_room: Whether the broker may send another one, before any is settled.
    """

    consumers: int
    ready: int = 0
    delivered: int = 0
    has_room: bool = True


class AbsenceDetector:
    """Judges one consumer from samples of its queue, the first of which is soon after it began.

    There are two signs that the consumer is gone. The queue has no consumer at all, though it once
    counted some: a stream always says 0. And, where others share the queue, and so hide its
    absence: messages were ready from one sample to the next, the broker was free to send them, and
    this consumer got none, though it did before.

    Args:
        gets_share: Whether an idle consumer gets its share of the ready messages. It does not where
            the queue has a single active consumer.
    """

    def __init__(self, *, gets_share: bool) -> None:
        self._gets_share = gets_share
        self._was_counted = False
        self._first: QueueSample | None = None
        self._last: QueueSample | None = None
        self._agreeing = 0

    @property
    def is_absent(self) -> bool:
        """True if the latest samples agree that the broker has no such consumer."""
        return self._agreeing >= AGREEING_SAMPLES

    def add(self, sample: QueueSample) -> None:
        """Take another sample into account."""
        self._was_counted = self._was_counted or sample.consumers > 0
        is_gone = sample.consumers == 0 or self._is_passed_over(sample)
        self._agreeing = self._agreeing + 1 if self._was_counted and is_gone else 0
        self._first = self._first or sample
        self._last = sample

    def _is_passed_over(self, sample: QueueSample) -> bool:
        first, last = self._first, self._last
        if first is None or last is None or not self._gets_share:
            return False
        got_some = last.delivered > first.delivered
        got_none_since = sample.delivered == last.delivered
        could_have = last.ready > 0 and last.has_room and sample.ready > 0 and sample.has_room
        return got_some and got_none_since and could_have
