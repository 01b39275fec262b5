# SPDX-License-Identifier: GPL-2.0-or-later
"""The consumers of a session: one for each queue, on a channel of its own.

A queue is declared, bound and consumed from on a channel that the session keeps. A consumer may be
canceled and started anew on that channel: for a pause, or because ``prefetch_count`` changes.
Messages that were delivered before stay with us and can be settled, for the channel is the same.

The count holds for the unsettled messages of a channel, whichever consumer they came to. RabbitMQ
counts for each consumer. So a new consumer gets the rest of the count, as soon as that is half of
it, and is replaced by one with more when the messages before it are settled.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pika.exceptions
from fedora_messaging.exceptions import BadDeclaration
from twisted.internet import defer

from consumer_framework.core.delivery import Delivery, readable
from consumer_framework.settings.changes import BoundKey
from consumer_framework.settings.model import is_single_active

from . import faults
from .connection import CLOSE_TIMEOUT, Client, ReactorClock
from .frames import restored

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from pika.adapters.twisted_connection import TwistedChannel

    from consumer_framework.settings import Queue, Settings

    from .channels import Channels
    from .frames import Receiver

_log = logging.getLogger(__name__)

# Seconds between two looks for room for another consumer, and how many looks there are before any
# room will do: unsettled messages may be held for long.
LOOK_DELAY = 0.1
LOOKS = 10
# Seconds until a consumer that got a part of the count is replaced, and the most of it.
FILL_UP_DELAY = 1.0
LONGEST_FILL_UP_DELAY = 60.0
# Seconds for the broker to confirm that a consumer is canceled; a large message may come first.
REPLACE_TIMEOUT = 60.0


@dataclass(eq=False, slots=True)
class Subscription:
    """A channel with the consumer of one queue, or without it for a while.

    Attributes:
        configured_name: The queue's name in the configuration; "" lets the broker choose.
        queue: The broker's name of the queue.
        receivers: The receivers of the connection's deliveries, by channel number.
        consumer_tag: The broker's name for the consumer; "" where none is confirmed.
        latest_tag: How many deliveries came on the channel.
        count: The consumer's ``prefetch_count``; 0 for no limit.
        base_tag: How many deliveries had come on the channel when the consumer began.
        is_waiting: Whether a new consumer waits until fewer messages are unsettled.
        is_wanted: Whether deliveries are taken. After a ``basic.cancel``, those that are under way
            may go back.
    """

    configured_name: str
    queue: str
    channel: TwistedChannel
    generation: int
    receivers: dict[int, Receiver]
    consumer_tag: str = ""
    latest_tag: int = 0
    count: int = 0
    base_tag: int = 0
    is_waiting: bool = False
    is_wanted: bool = False


class Recipient(Protocol):
    """Gets the deliveries."""

    def delivered(self, delivery: Delivery) -> None:
        """Take a message that the broker delivered."""
        ...

    def voided(self, generation: int) -> None:
        """Forget the deliveries of a channel that is gone: unsettled ones are delivered again."""
        ...


class ConsumerEvents(Protocol):
    """Gets news of consumers that were there."""

    def channel_closed(self, reason: Exception, subscription: Subscription) -> None:
        """Take note that a consumer is gone together with its channel."""
        ...

    def canceled_by_broker(self, subscription: Subscription) -> None:
        """Take note of a deleted queue, or a node that went (Consumer Cancel Notification)."""
        ...

    def room_found(self) -> None:
        """Take note that a queue may have a consumer again: messages were settled."""
        ...


class Consumers:
    """Has the consumer of each queue, as long as that lives.

    Args:
        settings: Queues and bindings.
        prefetch_count: How many messages the broker sends ahead, per queue; 0 for no limit.
        channels: Gets every channel that deliveries come on.
        recipient: Gets the deliveries.
        events: Told of losses, and of room.
        clock: Twisted's reactor, or a clock of a test's.

    Attributes:
        settings: The settings of the next subscription.
        prefetch_count: The latest count that was asked for.
        must_take: Says whether the queue of a delivery would drop it if it went back.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- the session puts it together
        self,
        settings: Settings,
        prefetch_count: int,
        channels: Channels,
        recipient: Recipient,
        events: ConsumerEvents,
        clock: ReactorClock,
    ) -> None:
        self.settings = settings
        self.prefetch_count = prefetch_count
        self.must_take: Callable[[Delivery], bool] = lambda _delivery: False
        self._channels = channels
        self._recipient = recipient
        self._events = events
        self._clock = clock
        self._subscriptions: dict[str, Subscription] = {}
        # By configured name: the broker's names of queues that it may have deleted.
        self._suspected: dict[str, str] = {}

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The channels with their consumers, which are canceled during a pause."""
        return tuple(self._subscriptions.values())

    @property
    def names(self) -> dict[str, str]:
        """The broker's names of the queues, by the configured ones."""
        return {s.configured_name: s.queue for s in self._subscriptions.values()}

    @property
    def missing(self) -> set[str]:
        """The configured names of the queues that have no consumer, and could have one."""
        subscriptions = self._subscriptions.items()
        served = {name for name, s in subscriptions if s.consumer_tag or s.is_waiting}
        return self.settings.queues.keys() - served

    def has_room(self, subscription: Subscription) -> bool:
        """Say whether the broker may send *subscription* a message before one is settled."""
        return not subscription.count or self._unsettled(subscription) < subscription.count

    def is_single_active(self, subscription: Subscription) -> bool:
        """Say whether other consumers of its queue get nothing while *subscription* does."""
        return is_single_active(self.settings.queues[subscription.configured_name])

    def _unsettled(self, subscription: Subscription) -> int:
        return subscription.latest_tag - self._channels.settled_count(subscription.generation)

    def _has(self, subscription: Subscription) -> bool:
        return self._subscriptions.get(subscription.configured_name) is subscription

    def _consuming(self) -> list[Subscription]:
        return [s for s in self._subscriptions.values() if s.consumer_tag]

    # Subscribing.

    async def subscribe(self, client: Client, name: str) -> None:
        """Consume from a queue, on the channel that it had before a pause, or on a new one.

        Args:
            client: The connection.
            name: The configured name of the queue.

        Raises:
            BadDeclaration: The broker refuses the queue, or a binding.
            QueueTakenError: Another connection, or consumer, has the queue for itself now.
            Fault: It refuses the consumer, or canceled a former one because the queue is gone.
        """
        existing = self._subscriptions.get(name)
        if existing is not None:
            await self._consume(existing)
            return
        queue = self.settings.queues[name]
        if name in self._suspected:
            await self._must_exist(client, self._suspected[name], queue)
            del self._suspected[name]
        actual_name = await self._declare(client, name, queue)
        await client.bind_queues(self._bindings(name, actual_name))
        channel = await client._allocate_channel()  # noqa: SLF001 -- see connection.py
        generation = self._channels.add(channel)
        receivers = client.frames.receivers
        subscription = Subscription(name, actual_name, channel, generation, receivers)
        channel.on_closed.addCallback(self._channel_closed, subscription)
        channel._channel.add_on_cancel_callback(  # noqa: SLF001 -- pika wraps no such thing
            lambda _frame: self._canceled_by_broker(subscription)
        )
        try:
            await self._consume(subscription)
        except defer.CancelledError:
            # The broker may have confirmed already: its deliveries go back with the channel.
            channel.close()
            raise
        self._subscriptions[name] = subscription

    async def _declare(self, client: Client, name: str, queue: Queue) -> str:
        passive = self.settings.passive_declares if queue.passive is None else queue.passive
        declaration: Any = {
            "queue": name,
            "durable": queue.durable,
            "auto_delete": queue.auto_delete,
            "exclusive": queue.exclusive,
            "arguments": queue.arguments,
            "passive": passive,
        }
        try:
            return await client.declare_queue(declaration)
        except BadDeclaration as error:
            if faults.is_locked(error):
                raise faults.QueueTakenError(name, faults.one_line(error.reason)) from error
            raise

    async def _must_exist(self, client: Client, actual_name: str, queue: Queue) -> None:
        passive = queue.model_copy(update={"passive": True})
        try:
            await self._declare(client, actual_name, passive)
        except BadDeclaration as error:
            if faults.reply_code(error.reason) == faults.NOT_FOUND:
                raise faults.canceled_fault(actual_name) from error
            raise

    def _bindings(self, name: str, actual_name: str) -> list[Any]:
        return [
            _binding(BoundKey(name, binding.exchange, key, binding.arguments), actual_name)
            for binding in self.settings.bindings_of(name)
            for key in binding.routing_keys
        ]

    async def _consume(self, subscription: Subscription) -> None:
        wanted = self.prefetch_count
        count = wanted - self._unsettled(subscription) if wanted else 0
        if wanted and count <= 0:
            subscription.is_waiting = True
            self._look_for_room(subscription, 0, LOOKS)
            return
        await subscription.channel.basic_qos(
            prefetch_size=self.settings.qos.prefetch_size, prefetch_count=count
        )
        # TwistedChannel.basic_consume would make two Deferreds for each delivery.
        consume = subscription.channel._wrap_channel_method("basic_consume")  # noqa: SLF001
        receive = self._receiver(subscription)
        subscription.is_wanted = True
        subscription.base_tag = subscription.latest_tag
        subscription.receivers[subscription.channel.channel_number] = receive
        try:
            confirmed = await consume(
                queue=subscription.queue, on_message_callback=_pika_callback(receive)
            )
        except pika.exceptions.ChannelClosed as error:
            raise faults.consume_fault(error, subscription.queue) from error
        subscription.consumer_tag = confirmed.method.consumer_tag
        subscription.count = count
        # A pause that is over may have come in between.
        subscription.is_wanted = True
        if wanted != self.prefetch_count:
            # It has changed meanwhile; without a consumer this queue is missing again.
            await self._cancel(subscription)
        elif count < wanted:
            self._fill_up_later(subscription, FILL_UP_DELAY)

    # Deliveries.

    def _receiver(self, subscription: Subscription) -> Receiver:
        channels, take = self._channels, self._recipient.delivered
        queue, generation = subscription.queue, subscription.generation

        def receive(  # noqa: PLR0913, PLR0917 -- as basic.deliver has them
            tag: int,
            redelivered: bool,  # noqa: FBT001 -- as above
            exchange: str,
            routing_key: str,
            properties: Any,
            body: bytes,
        ) -> None:
            subscription.latest_tag = tag
            # By position, which costs less than by keyword.
            delivery = Delivery(
                queue,
                generation,
                tag,
                redelivered,
                readable(exchange),
                readable(routing_key),
                properties,
                body,
                time.time(),
                arrived_at=time.monotonic(),
            )
            channels.arrived(delivery)
            if subscription.is_wanted or self.must_take(delivery):
                take(delivery)
            else:
                channels.give_back(delivery)

        return receive

    def give_back_from(self, delivery: Delivery) -> bool:
        """Give back *delivery* and those that follow it, until there is a new consumer.

        Returns:
            False where it is to be taken all the same: the consumer that it came to stays, or its
            queue would drop it.
        """
        for subscription in self._subscriptions.values():
            if subscription.generation == delivery.generation and not subscription.consumer_tag:
                subscription.is_wanted = False
                if self.must_take(delivery):
                    return False
                self._channels.give_back(delivery)
                return True
        return False

    # Another prefetch count.

    def set_prefetch(self, prefetch_count: int) -> list[str]:
        """Cancel the consumers that are replaced by one with this count.

        Args:
            prefetch_count: 0 for no limit.

        Returns:
            The queues whose consumer is kept all the same: see :meth:`.Session.set_prefetch`.
        """
        self.prefetch_count = prefetch_count
        kept = [s for s in self._consuming() if self.is_single_active(s)]
        for subscription in self._consuming():
            if subscription not in kept:
                self._replace(subscription, 0)
        return [subscription.queue for subscription in kept]

    def _replace(self, subscription: Subscription, least: int) -> None:
        """Let another consumer follow, with a count of *least* or more, and half of the whole."""
        subscription.is_waiting = True
        canceled = self._cancel(subscription, REPLACE_TIMEOUT)
        canceled.addErrback(_log_failure)
        canceled.addCallback(lambda _: self._look_for_room(subscription, least, LOOKS))

    def _look_for_room(self, subscription: Subscription, least: int, looks: int) -> None:
        """Look again and again; after some looks, any room will do."""
        if not self._has(subscription):
            return
        wanted = self.prefetch_count
        room = wanted - self._unsettled(subscription)
        enough = max(least, (wanted + 1) // 2) if looks else 1
        if not wanted or room >= min(enough, wanted):
            subscription.is_waiting = False
            self._events.room_found()
        else:
            looks = max(0, looks - 1)
            self._clock.callLater(LOOK_DELAY, self._look_for_room, subscription, least, looks)

    def _fill_up_later(self, subscription: Subscription, delay: float) -> None:
        tag = subscription.consumer_tag
        self._clock.callLater(delay, self._fill_up, subscription, tag, delay)

    def _fill_up(self, subscription: Subscription, tag: str, delay: float) -> None:
        """Replace a consumer with too low a count, once the messages before it are settled."""
        if not self._has(subscription) or subscription.consumer_tag != tag:
            return
        count, wanted = subscription.count, self.prefetch_count
        if self._channels.settled_up_to(subscription.generation) < subscription.base_tag:
            self._fill_up_later(subscription, min(2 * delay, LONGEST_FILL_UP_DELAY))
        elif not self.is_single_active(subscription):
            self._replace(subscription, (count + wanted + 1) // 2)

    # Canceling.

    def pause(self) -> None:
        """Cancel every consumer; the channels stay, for the messages that are held on them."""
        for subscription in self._subscriptions.values():
            subscription.is_wanted = False
            if subscription.consumer_tag:
                self._cancel(subscription).addErrback(_log_failure)

    async def cancel_all(self) -> None:
        """Cancel every consumer, but leave those of single active ones to their channel's end."""
        consuming = self._consuming()
        canceled = [s for s in consuming if not self.is_single_active(s)]
        for subscription in consuming:
            if subscription in canceled:
                subscription.is_wanted = False
            else:
                self._channels.return_at_close(subscription.generation)
        cancels = [self._cancel(subscription) for subscription in canceled]
        await defer.DeferredList(cancels, consumeErrors=True)

    def skip_late_cancels(self) -> None:
        """Keep pika from canceling the remaining consumers before it closes their channels."""
        for subscription in self._subscriptions.values():
            if self._channels.returns_at_close(subscription.generation):
                cancelled = subscription.channel._channel._cancelled  # noqa: SLF001
                cancelled.add(subscription.consumer_tag)

    @defer.inlineCallbacks
    def _cancel(
        self, subscription: Subscription, timeout: float = CLOSE_TIMEOUT
    ) -> Generator[defer.Deferred[Any], Any, None]:
        tag, subscription.consumer_tag = subscription.consumer_tag, ""
        canceled = subscription.channel.basic_cancel(tag)
        # Deliveries that are under way are ours to take, or to give back; pika would reject them.
        subscription.channel._channel._cancelled.discard(tag)  # noqa: SLF001
        yield canceled.addTimeout(timeout, self._clock)

    # Losing.

    def suspect(self, subscription: Subscription) -> None:
        """Count *subscription* as missing; before the next one its queue must still be there."""
        del self._subscriptions[subscription.configured_name]
        self._suspected[subscription.configured_name] = subscription.queue

    def forget_suspicions(self) -> None:
        """Forget which queues the broker may have deleted: the connection is another one."""
        self._suspected.clear()

    def close_channel(self, subscription: Subscription) -> None:
        """Close the channel of *subscription*, and give back the unsettled messages on it."""
        # Give everything back by name before the channel closes: closing it would count against
        # a quorum queue's delivery-limit.
        self._channels.flush()
        subscription.channel.basic_nack(0, multiple=True, requeue=True)
        subscription.channel.close()
        self._forget(subscription)

    def _channel_closed(self, reason: Exception, subscription: Subscription) -> None:
        self._forget(subscription)
        if self._has(subscription):
            del self._subscriptions[subscription.configured_name]
            self._events.channel_closed(reason, subscription)

    def _canceled_by_broker(self, subscription: Subscription) -> None:
        if self._has(subscription):
            self._events.canceled_by_broker(subscription)

    def _forget(self, subscription: Subscription) -> None:
        subscription.receivers.pop(subscription.channel.channel_number, None)
        self._channels.remove(subscription.generation)
        self._recipient.voided(subscription.generation)


def _log_failure(failure: Any) -> None:
    _log.debug("canceling: %r", failure.value)


def _pika_callback(receive: Receiver) -> Callable[[Any, Any, Any, bytes], None]:
    """Return the callback for deliveries that pika has put together."""

    def callback(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
        receive(
            method.delivery_tag,
            method.redelivered,
            method.exchange,
            method.routing_key,
            restored(properties),
            body,
        )

    return callback


class BindingChanges:
    """The bindings that are to be added and removed while queues are consumed from."""

    def __init__(self) -> None:
        self._to_bind: list[BoundKey] = []
        self._to_unbind: list[BoundKey] = []

    @property
    def are_due(self) -> bool:
        """True if there are any."""
        return bool(self._to_bind or self._to_unbind)

    def add(self, bound: Sequence[BoundKey], unbound: Sequence[BoundKey]) -> None:
        """Note bindings to be added, and others to be removed; the latest word counts."""
        self._to_bind = [one for one in (*self._to_bind, *bound) if one not in unbound]
        self._to_unbind = [one for one in (*self._to_unbind, *unbound) if one not in bound]

    async def carry_out(self, client: Client, names: Mapping[str, str]) -> None:
        """Change them, once, for the queues that have a consumer.

        Args:
            client: The connection.
            names: As for :func:`bind`.

        Raises:
            BadDeclaration: The broker refused a new one.
        """
        bound, self._to_bind = self._to_bind, []
        await bind(client, bound, names)
        unbound, self._to_unbind = self._to_unbind, []
        await _unbind(client, unbound, names)


async def bind(client: Client, bound: Iterable[BoundKey], names: Mapping[str, str]) -> None:
    """Add bindings.

    Args:
        client: The connection.
        bound: The bindings.
        names: The broker's names of queues, by the configured ones; others are left out.

    Raises:
        BadDeclaration: The broker refused one; those before it are there.
    """
    arguments: Any = [_binding(one, names[one.queue]) for one in bound if one.queue in names]
    if arguments:
        await client.bind_queues(arguments)


async def _unbind(client: Client, bound: Iterable[BoundKey], names: Mapping[str, str]) -> None:
    """Remove bindings, as far as the broker lets us; warn of those that stay."""
    for one in bound:
        if one.queue not in names:
            continue
        # A refusal takes its channel with it.
        channel = await client._allocate_channel()  # noqa: SLF001 -- see connection.py
        try:
            await channel.queue_unbind(**_binding(one, names[one.queue]))
        except pika.exceptions.ChannelClosed as error:
            reason = faults.one_line(error)
            _log.warning("still bound, and messages still come by it: %s: %s", one, reason)
        else:
            channel.close()


def _binding(one: BoundKey, actual_name: str) -> Any:
    return {
        "queue": actual_name,
        "exchange": one.exchange,
        "routing_key": one.routing_key,
        "arguments": one.arguments,
    }
