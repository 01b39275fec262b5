# SPDX-License-Identifier: GPL-2.0-or-later
"""The consumers of a session: one for each queue, on a channel of its own.

Binds queues with other keys while they are consumed from.

One consumer on one channel, and how its deliveries are made.

What fedora-messaging's protocol declares, as it takes it.
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
from consumer_framework.settings.model import is_single_active

from . import faults
from .connection import CLOSE_TIMEOUT, Client, Clock
from .frames import restored

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from pika.adapters.twisted_connection import TwistedChannel

    from consumer_framework.settings import Queue, Settings
    from consumer_framework.settings.changes import Bound

    from .channels import Channels
    from .connection import Client
    from .frames import Receiver


@dataclass(eq=False, slots=True)
class Subscription:
    """One consumer on one channel.

    Attributes:
        configured_name: What the configuration calls the queue; "" lets the broker choose.
        queue: What the broker calls it.
        receivers: Who gets the deliveries of the connection, by channel number.
        consumer_tag: The broker's name for the consumer; "" where it is not confirmed.
        latest_tag: How many deliveries came on the channel.
        count: How many messages the broker sends to the consumer before one is settled; 0 for no
            limit.
        base_tag: How many deliveries had come on the channel when the consumer began.
        is_waiting: Whether a new consumer waits until fewer messages are unsettled.
        is_wanted: Whether deliveries are taken; those after a ``basic.cancel`` are not.
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


def receiver(
    subscription: Subscription,
    delivered: Callable[[Delivery], None],
    give_back: Callable[[Delivery], object],
) -> Receiver:
    """Return what takes the deliveries of *subscription*.

    Args:
        subscription: The consumer.
        delivered: Gets those that are wanted.
        give_back: Gets the others.
    """
    queue, generation = subscription.queue, subscription.generation

    def receive(  # noqa: PLR0913, PLR0917 -- what a delivery has
        tag: int,
        redelivered: bool,  # noqa: FBT001 -- as above
        exchange: str,
        key: str,
        properties: Any,
        body: bytes,
    ) -> None:
        subscription.latest_tag = tag
        delivery = Delivery(
            queue=queue,
            generation=generation,
            delivery_tag=tag,
            redelivered=redelivered,
            exchange=readable(exchange),
            routing_key=readable(key),
            properties=properties,
            body=body,
            received_at=time.time(),
            arrived_at=time.monotonic(),
        )
        if subscription.is_wanted:
            delivered(delivery)
        else:
            give_back(delivery)

    return receive


def from_pika(receive: Receiver) -> Callable[[Any, Any, Any, bytes], None]:
    """Take deliveries that pika has put together."""

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


def declaration(name: str, queue: Queue, settings: Settings) -> Any:
    """The queue that the configuration calls *name*; whether it is only looked at, is its word."""
    passive = settings.passive_declares if queue.passive is None else queue.passive
    return {
        "queue": name,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "exclusive": queue.exclusive,
        "arguments": queue.arguments,
        "passive": passive,
    }


def bindings(name: str, actual_name: str, settings: Settings) -> Any:
    """The bindings of a queue, which the broker calls *actual_name*."""
    return [
        {
            "queue": actual_name,
            "exchange": binding.exchange,
            "routing_key": key,
            "arguments": binding.arguments,
        }
        for binding in settings.bindings_of(name)
        for key in binding.routing_keys
    ]


# Seconds between two looks at whether there is room for another consumer, and how many of them
# there are before any room will do: what is unsettled may be held for long.
LOOK_DELAY = 0.1
LOOKS = 10
# Seconds until a consumer that got a part of the count is replaced, and the most of it.
FILL_UP_DELAY = 1.0
LONGEST_FILL_UP_DELAY = 60.0
# Seconds for the broker to confirm that a consumer is canceled; a large message may come first.
REPLACE_TIMEOUT = 60.0

_log = logging.getLogger(__name__)


class Recipient(Protocol):
    """Whom the consumers are for."""

    def delivered(self, delivery: Delivery) -> None:
        """The broker delivered a message."""
        ...

    def voided(self, generation: int) -> None:
        """A channel is gone: the broker delivers again what was not settled on it."""
        ...


class Losses(Protocol):
    """What becomes of a consumer later on."""

    def channel_closed(self, reason: Exception, subscription: Subscription) -> None:
        """The consumer is gone together with its channel."""
        ...

    def canceled_by_broker(self, subscription: Subscription) -> None:
        """The queue was deleted, or its node went (RabbitMQ: Consumer Cancel Notification)."""
        ...


class Consumers:
    """Has the consumer of each queue, as long as that lives.

    Args:
        settings: Queues and bindings.
        prefetch_count: How many messages the broker sends ahead, per queue; 0 for no limit.
        channels: Gets every channel that deliveries come on.
        recipient: Gets the deliveries.
        clock: Twisted's reactor, or a clock of a test's.

    Attributes:
        settings: What the next subscription goes by.
        on_room: Called when a queue that was full may have a consumer again.
        must_take: Says whether the queue of a delivery would drop it if it went back.
    """

    def __init__(
        self,
        settings: Settings,
        prefetch_count: int,
        channels: Channels,
        recipient: Recipient,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.on_room: Callable[[], None] = lambda: None
        self.must_take: Callable[[Delivery], bool] = lambda _delivery: False
        self._is_paused = False
        self._prefetch_count = prefetch_count
        self._channels = channels
        self._recipient = recipient
        self._clock = clock
        self._subscriptions: dict[str, Subscription] = {}
        # By configured name, the queues whose consumer the broker canceled: must still be there.
        self._doubted: dict[str, str] = {}

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """What consumes, or did until it was paused."""
        return tuple(self._subscriptions.values())

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be consumed."""
        return self._is_paused

    @property
    def prefetch_count(self) -> int:
        """How many messages the broker is to send ahead, per queue; 0 for no limit."""
        return self._prefetch_count

    @property
    def names(self) -> dict[str, str]:
        """The broker's names of the queues, by the configured ones."""
        return {s.configured_name: s.queue for s in self._subscriptions.values()}

    @property
    def missing(self) -> set[str]:
        """The configured names of the queues that have no consumer, and could have one."""
        subscriptions = self._subscriptions.items()
        settled = {name for name, s in subscriptions if s.consumer_tag or s.is_waiting}
        return self.settings.queues.keys() - settled

    def has_room(self, subscription: Subscription) -> bool:
        """Whether the broker may send another message to *subscription* before one is settled."""
        return not subscription.count or self._unsettled(subscription) < subscription.count

    def _unsettled(self, subscription: Subscription) -> int:
        return subscription.latest_tag - self._channels.settled(subscription.generation)

    def is_single_active(self, subscription: Subscription) -> bool:
        """Whether other consumers of its queue get nothing while *subscription* does."""
        return is_single_active(self.settings.queues[subscription.configured_name])

    # Beginning.

    def trust(self) -> None:
        """Forget which queues the broker may have deleted: the connection is another one."""
        self._doubted.clear()

    async def subscribe(self, client: Client, name: str, losses: Losses) -> None:
        """Consume from a queue, on the channel that it had before it was paused, or a new one.

        Args:
            client: The connection.
            name: The configured name of the queue.
            losses: Told when the consumer is lost.

        Raises:
            BadDeclaration: The broker refuses the queue, or a binding.
            TakenError: Another connection, or consumer, has the queue for itself now.
            Fault: It refuses the consumer, or canceled a former one because the queue is gone.
        """
        existing = self._subscriptions.get(name)
        if existing is not None:
            await self._consume(existing)
            return
        queue = self.settings.queues[name]
        if name in self._doubted:
            await self._must_exist(client, self._doubted[name], queue)
            del self._doubted[name]
        actual_name = await self._declare(client, name, queue)
        await client.bind_queues(bindings(name, actual_name, self.settings))
        channel = await client._allocate_channel()  # noqa: SLF001 -- see connection.py
        generation = self._channels.add(channel)
        receivers = client.frames.receivers
        subscription = Subscription(name, actual_name, channel, generation, receivers)
        channel.on_closed.addCallback(self._channel_closed, subscription, losses)
        channel._channel.add_on_cancel_callback(  # noqa: SLF001 -- pika wraps no such thing
            lambda _frame: self._canceled_by_broker(subscription, losses)
        )
        try:
            await self._consume(subscription)
        except defer.CancelledError:
            # The broker may have confirmed already: what it sends goes back with the channel.
            channel.close()
            raise
        self._subscriptions[name] = subscription

    async def _declare(self, client: Client, name: str, queue: Queue) -> str:
        try:
            return await client.declare_queue(declaration(name, queue, self.settings))
        except BadDeclaration as error:
            if faults.is_locked(error):
                raise faults.TakenError(name, faults.one_line(error.reason)) from error
            raise

    async def _must_exist(self, client: Client, actual_name: str, queue: Queue) -> None:
        passive = queue.model_copy(update={"passive": True})
        try:
            await self._declare(client, actual_name, passive)
        except BadDeclaration as error:
            if faults.reply_code(error.reason) == faults.NOT_FOUND:
                raise faults.canceled_fault(actual_name) from error
            raise

    async def _consume(self, subscription: Subscription) -> None:
        wanted = self._prefetch_count
        # What came before is still to be settled: the broker does not count it for a new consumer.
        count = wanted - self._unsettled(subscription) if wanted else 0
        if count < 0 or (wanted and not count):
            self._wait_for_room(subscription)
            return
        await subscription.channel.basic_qos(
            prefetch_size=self.settings.qos.prefetch_size, prefetch_count=count
        )
        # TwistedChannel.basic_consume would make two Deferreds for each delivery.
        consume = subscription.channel._wrap_channel_method("basic_consume")  # noqa: SLF001
        receive = receiver(subscription, self._delivered, self._unwanted)
        subscription.is_wanted = True
        subscription.base_tag = subscription.latest_tag
        subscription.receivers[subscription.channel.channel_number] = receive
        try:
            confirmed = await consume(
                queue=subscription.queue, on_message_callback=from_pika(receive)
            )
        except pika.exceptions.ChannelClosed as error:
            raise faults.consume_fault(error, subscription.queue) from error
        subscription.consumer_tag = confirmed.method.consumer_tag
        subscription.count = count
        if self._is_paused:
            subscription.is_wanted = False
            await self._cancel(subscription)
        elif wanted != self._prefetch_count:
            # It has changed meanwhile; without a consumer this one is missing again.
            await self._cancel(subscription)
        elif count < wanted:
            self._fill_up_later(subscription, FILL_UP_DELAY)

    # Replacing, and ending on purpose.

    def set_prefetch(self, prefetch_count: int) -> list[str]:
        """Cancel the consumers that another one with this count is to take the place of.

        Args:
            prefetch_count: 0 for no limit.

        Returns:
            The queues whose consumer is kept all the same: see :meth:`.Session.set_prefetch`.
        """
        self._prefetch_count = prefetch_count
        kept = [s for s in self._consuming() if self.is_single_active(s)]
        for subscription in self._consuming():
            if subscription not in kept:
                self._replace(subscription, 0)
        return [subscription.queue for subscription in kept]

    # The count holds for what is unsettled, whichever consumer it came to. So a new consumer gets
    # what is left of it, as soon as that is the half; in time, another one gets more.

    def _replace(self, subscription: Subscription, least: int) -> None:
        """Let another consumer follow, with a count of *least* or more, and half of the whole."""
        subscription.is_waiting = True
        canceled = self._cancel(subscription, REPLACE_TIMEOUT)
        canceled.addErrback(lambda failure: _log.debug("canceling: %r", failure.value))
        canceled.addCallback(lambda _: self._look_for_room(subscription, least, LOOKS))

    def _wait_for_room(self, subscription: Subscription) -> None:
        subscription.is_waiting = True
        self._look_for_room(subscription, 0, LOOKS)

    def _look_for_room(self, subscription: Subscription, least: int, looks: int) -> None:
        """Look again and again; after some looks, any room will do."""
        if not self._has(subscription):
            return
        wanted = self._prefetch_count
        room = wanted - self._unsettled(subscription)
        enough = max(least, (wanted + 1) // 2) if looks else 1
        if not wanted or room >= min(enough, wanted):
            subscription.is_waiting = False
            self.on_room()
        else:
            looks = max(0, looks - 1)
            self._clock.callLater(LOOK_DELAY, self._look_for_room, subscription, least, looks)

    def _fill_up_later(self, subscription: Subscription, delay: float) -> None:
        tag = subscription.consumer_tag
        self._clock.callLater(delay, self._fill_up, subscription, tag, delay)

    def _fill_up(self, subscription: Subscription, tag: str, delay: float) -> None:
        """Replace a consumer with too low a count, once what came before it is settled."""
        if not self._has(subscription) or subscription.consumer_tag != tag:
            return
        count, wanted = subscription.count, self._prefetch_count
        if self._channels.settled_up_to(subscription.generation) < subscription.base_tag:
            self._fill_up_later(subscription, min(2 * delay, LONGEST_FILL_UP_DELAY))
        elif not self.is_single_active(subscription):
            self._replace(subscription, (count + wanted + 1) // 2)

    def _delivered(self, delivery: Delivery) -> None:
        self._channels.arrived(delivery)
        self._recipient.delivered(delivery)

    def _unwanted(self, delivery: Delivery) -> None:
        if self.must_take(delivery):
            self._delivered(delivery)
            return
        self._channels.arrived(delivery)
        self._channels.give_back(delivery)

    def shed(self, delivery: Delivery) -> bool:
        """Give back *delivery*, and what comes after it until there is a new consumer.

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

    def pause(self) -> None:
        """Cancel every consumer; the channels stay, for what is held on them."""
        self._is_paused = True
        for subscription in self._subscriptions.values():
            subscription.is_wanted = False
            self._cancel_quietly(subscription)

    def resume(self) -> None:
        """Let there be consumers again."""
        self._is_paused = False

    async def cancel_all(self) -> None:
        """Cancel every consumer, but leave those of single active ones to their channel's end."""
        consuming = self._consuming()
        for subscription in consuming:
            if self.is_single_active(subscription):
                self._channels.leave(subscription.generation)
        leaving = [s for s in consuming if not self._channels.is_left(s.generation)]
        for subscription in leaving:
            subscription.is_wanted = False
        cancels = [self._cancel(subscription) for subscription in leaving]
        await defer.DeferredList(cancels, consumeErrors=True)

    def hush(self) -> None:
        """Let channels close without a word about the consumers that were left to that."""
        for subscription in self._subscriptions.values():
            if self._channels.is_left(subscription.generation):
                # pika would tell the broker so before it closes the channel.
                cancelled = subscription.channel._channel._cancelled  # noqa: SLF001
                cancelled.add(subscription.consumer_tag)

    def _consuming(self) -> list[Subscription]:
        return [s for s in self._subscriptions.values() if s.consumer_tag]

    def _cancel_quietly(self, subscription: Subscription) -> None:
        if subscription.consumer_tag:
            canceled = self._cancel(subscription)
            canceled.addErrback(lambda failure: _log.debug("canceling: %r", failure.value))

    @defer.inlineCallbacks
    def _cancel(
        self, subscription: Subscription, timeout: float = CLOSE_TIMEOUT
    ) -> Generator[defer.Deferred[Any], Any, None]:
        tag, subscription.consumer_tag = subscription.consumer_tag, ""
        canceled = subscription.channel.basic_cancel(tag)
        # What is under way is ours to take, or to give back; pika would reject it.
        subscription.channel._channel._cancelled.discard(tag)  # noqa: SLF001
        yield canceled.addTimeout(timeout, self._clock)

    # Losing.

    def doubt(self, subscription: Subscription) -> None:
        """Count *subscription* as missing; before the next one its queue must still be there."""
        del self._subscriptions[subscription.configured_name]
        self._doubted[subscription.configured_name] = subscription.queue

    def give_up(self, subscription: Subscription) -> None:
        """Close the channel of *subscription*, and give back what is unsettled on it."""
        # Give everything back by name before the channel closes: closing it would count against
        # a quorum queue's delivery-limit.
        self._channels.flush()
        subscription.channel.basic_nack(0, multiple=True, requeue=True)
        subscription.channel.close()
        self._forget(subscription)

    def _channel_closed(
        self, reason: Exception, subscription: Subscription, losses: Losses
    ) -> None:
        self._forget(subscription)
        if self._has(subscription):
            del self._subscriptions[subscription.configured_name]
            losses.channel_closed(reason, subscription)

    def _canceled_by_broker(self, subscription: Subscription, losses: Losses) -> None:
        if self._has(subscription):
            losses.canceled_by_broker(subscription)

    def _has(self, subscription: Subscription) -> bool:
        return self._subscriptions.get(subscription.configured_name) is subscription

    def _forget(self, subscription: Subscription) -> None:
        """Its channel is gone, or as good as that."""
        subscription.receivers.pop(subscription.channel.channel_number, None)
        self._channels.remove(subscription.generation)
        self._recipient.voided(subscription.generation)


class Rebinding:
    """The bindings that are still to be changed."""

    def __init__(self) -> None:
        self._to_bind: list[Bound] = []
        self._to_unbind: list[Bound] = []

    @property
    def is_due(self) -> bool:
        """Whether there are any."""
        return bool(self._to_bind or self._to_unbind)

    def add(self, bound: Sequence[Bound], unbound: Sequence[Bound]) -> None:
        """Note bindings to be added, and others to be removed; the latest word counts."""
        self._to_bind = [one for one in (*self._to_bind, *bound) if one not in unbound]
        self._to_unbind = [one for one in (*self._to_unbind, *unbound) if one not in bound]

    async def carry_out(self, client: Client, consumers: Consumers) -> None:
        """Change them, once, for the queues that have a consumer.

        Raises:
            BadDeclaration: The broker refused a new one.
        """
        bound, self._to_bind = self._to_bind, []
        await bind(client, bound, consumers.names)
        unbound, self._to_unbind = self._to_unbind, []
        await unbind(client, unbound, consumers.names)


async def bind(client: Client, bound: Iterable[Bound], names: Mapping[str, str]) -> None:
    """Add bindings.

    Args:
        client: The connection.
        bound: The bindings.
        names: The broker's names of queues, by the configured ones; others are left out.

    Raises:
        BadDeclaration: The broker refused one; those before it are there.
    """
    arguments = [_arguments(one, names) for one in bound if one.queue in names]
    if arguments:
        await client.bind_queues(arguments)


async def unbind(client: Client, bound: Iterable[Bound], names: Mapping[str, str]) -> None:
    """Remove bindings, as far as the broker lets us; a warning tells of those that stay.

    Args:
        client: The connection.
        bound: The bindings.
        names: As for :func:`bind`.
    """
    for one in bound:
        if one.queue not in names:
            continue
        # One that is refused takes its channel with it.
        channel = await client._allocate_channel()  # noqa: SLF001 -- see connection.py
        try:
            await channel.queue_unbind(**_arguments(one, names))
        except pika.exceptions.ChannelClosed as error:
            reason = faults.one_line(error)
            _log.warning("still bound, and messages still come by it: %s: %s", one, reason)
        else:
            channel.close()


def _arguments(one: Bound, names: Mapping[str, str]) -> Any:
    return {
        "queue": names[one.queue],
        "exchange": one.exchange,
        "routing_key": one.routing_key,
        "arguments": one.arguments,
    }
