# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks the broker now and then whether the consumers of a session are still there.

Whether the broker still has a consumer, from what it says of the queue now and then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pika.exceptions
from twisted.internet import defer

from . import faults
from .session import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.twisted_connection import TwistedChannel

    from .connection import Client, Clock
    from .consumers import Subscription
    from .session import Session

# How many answers must agree: one may come in the middle of something.
ENOUGH = 2


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a queue.

    Attributes:
        consumers: How many the broker says that it has.
        ready: How many messages it says wait for one of them.
        delivered: How many messages came on our channel so far.
        has_room: Whether the broker may send another one, before any is settled.
    """

    consumers: int
    ready: int = 0
    delivered: int = 0
    has_room: bool = True


class Witness:
    """Judges one consumer from sights of its queue, the first of which is soon after it began.

    There are two signs that the consumer is gone. The queue has no consumer at all, though it once
    counted some: a stream always says 0. And, where others share the queue, and so hide its
    absence: messages were ready from one sight to the next, the broker was free to send them, and
    this consumer got none, though it did before.

    Args:
        takes_turns: Whether an idle consumer gets its share of the ready messages; not so where
            the queue has a single active consumer.
    """

    def __init__(self, *, takes_turns: bool) -> None:
        self._takes_turns = takes_turns
        self._counted = False
        self._first: Sight | None = None
        self._last: Sight | None = None
        self._signs = 0

    @property
    def is_absent(self) -> bool:
        """Whether the latest sights agree that the broker has no such consumer."""
        return self._signs >= ENOUGH

    def saw(self, sight: Sight) -> None:
        """Take another sight into account."""
        self._counted = self._counted or sight.consumers > 0
        gone = self._counted and (sight.consumers == 0 or self._is_passed_over(sight))
        self._signs = self._signs + 1 if gone else 0
        self._first = self._first or sight
        self._last = sight

    def _is_passed_over(self, sight: Sight) -> bool:
        first, last = self._first, self._last
        if first is None or last is None or not self._takes_turns:
            return False
        got_some = last.delivered > first.delivered
        got_none_since = sight.delivered == last.delivered
        could_have = last.ready > 0 and last.has_room and sight.ready > 0 and sight.has_room
        return got_some and got_none_since and could_have


_log = logging.getLogger(__name__)

# Seconds in which a broker that is there answers.
ANSWER_TIMEOUT = 60.0


class Confirmation:
    """Looks at the queues of a session with passive declarations, on a channel of its own.

    A consumer may vanish without a ``basic.cancel``: the broker's fault, but the messages wait all
    the same. RabbitMQ lets everyone declare passively. From a broker that does not, no answer is
    expected, and none is missed: that a consumer is there is believed then.

    A broker that neither answers nor sends anything else is left, and connected to again; not so
    one that has an alarm and stopped reading from the connection, as it says
    (``connection.blocked``).

    Args:
        session: What has the consumers.
        reactor: Twisted's, or a clock of a test's.
        now: A monotonic clock, in seconds.
        interval: Seconds between two calls of :meth:`ask`.
    """

    def __init__(
        self, session: Session, reactor: Clock, now: Callable[[], float], interval: float
    ) -> None:
        self._session = session
        self._reactor = reactor
        # Not the reactor's, which goes back with the machine's time.
        self._now = now
        self._patience = ANSWER_TIMEOUT + 3 * interval
        self._confirmed_at = now()
        self._client: Client | None = None
        self._channel: TwistedChannel | None = None
        self._asking: defer.Deferred[None] | None = None
        # By consumer tag.
        self._witnesses: dict[str, Witness] = {}
        self._silent: set[str] = set()
        # By queue.
        self._ready: dict[str, int] = {}

    @property
    def absent(self) -> str:
        """Which queue has lost its consumer here, and how that shows; "" for none."""
        for subscription in self._session.subscriptions:
            witness = self._witnesses.get(subscription.consumer_tag)
            if witness is not None and witness.is_absent:
                return f'the broker no longer has the consumer of queue "{subscription.queue}"'
        return ""

    @property
    def lag(self) -> int | None:
        """How many messages were ready in the queues lately; None where that is not known."""
        return sum(self._ready.values()) if self._ready else None

    @property
    def confirm_by(self) -> float:
        """When the next answer should have come, in seconds of *now*."""
        return self._confirmed_at + self._patience

    def ask(self) -> None:
        """Begin to look at every queue, unless that goes on, or there is nothing to look at."""
        client = self._session.client
        if client is not self._client:
            self._forget(client)
        if client is None or client.is_blocked or not self._session.is_complete:
            self._confirmed_at = self._now()
            self._ready.clear()
        elif self._asking is None:
            self._asking = asking = defer.ensureDeferred(self._ask_all(client))
            expect(asking, client, self._reactor, ANSWER_TIMEOUT, self._data_comes)
            asking.addErrback(self._failed, client)
            asking.addBoth(self._ended, asking)

    def _data_comes(self) -> None:
        """Let the answer take its time: the connection is alive."""
        self._confirmed_at = self._now()

    def stop(self) -> None:
        """Ask no more."""
        self._forget(None)

    def _forget(self, client: Client | None) -> None:
        """Begin anew on another connection."""
        asking, self._asking = self._asking, None
        self._client, self._channel = client, None
        self._witnesses.clear()
        self._ready.clear()
        if asking is not None:
            asking.cancel()

    def _ended(self, _result: object, asking: defer.Deferred[None]) -> None:
        if self._asking is asking:
            self._asking = None

    async def _ask_all(self, client: Client) -> None:
        subscriptions = self._session.subscriptions
        tags = {subscription.consumer_tag for subscription in subscriptions}
        self._witnesses = {tag: w for tag, w in self._witnesses.items() if tag in tags}
        for subscription in subscriptions:
            if subscription.queue not in self._silent:
                await self._look(client, subscription)
        self._confirmed_at = self._now()

    async def _look(self, client: Client, subscription: Subscription) -> None:
        tag = subscription.consumer_tag
        counts = await self._counts(client, subscription.queue)
        # The consumer may be another one by now, or none on purpose.
        if counts is not None and tag and subscription.consumer_tag == tag:
            ready, consumers = counts
            self._ready[subscription.queue] = ready
            has_room = self._session.has_room(subscription)
            witness = self._witnesses.get(tag)
            if witness is None:
                takes_turns = not self._session.is_single_active(subscription)
                witness = self._witnesses[tag] = Witness(takes_turns=takes_turns)
            witness.saw(Sight(consumers, ready, subscription.latest_tag, has_room))

    async def _counts(self, client: Client, queue: str) -> tuple[int, int] | None:
        """How many messages are ready in a queue, and how many consumers it has.

        Returns:
            None where the broker does not say.
        """
        try:
            if self._channel is None:
                self._channel = await client.channel()
            answer = await self._channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            self._channel = None
            if faults.reply_code(error) == faults.NOT_FOUND:
                return (0, 0)
            self._no_answer_from(queue, faults.one_line(error))
            return None
        except pika.exceptions.NoFreeChannels:
            self._no_answer_from(queue, "it allows too few channels on a connection (channel_max)")
            return None
        return (answer.method.message_count, answer.method.consumer_count)

    def _no_answer_from(self, queue: str, reason: str) -> None:
        """Note, and say once, that the broker does not tell about a queue."""
        self._silent.add(queue)
        what = 'the broker does not say whether queue "%s" still has its consumer: %s'
        _log.info(what, queue, reason)

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
