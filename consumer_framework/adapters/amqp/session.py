# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps every queue subscribed, on whatever connection there is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import pika.exceptions
from fedora_messaging.exceptions import BadDeclaration, NoFreeChannels
from twisted.internet import defer

from consumer_framework.core.errors import ExitCode, Fault
from consumer_framework.core.queues import is_single_active

from . import faults, rebinding
from .connection import CLOSE_TIMEOUT, Client, Clock, Service
from .declarations import bindings, declaration
from .subscription import Subscription, from_pika, receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from consumer_framework.core.bindings import Bound
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.settings import Queue, Settings
    from consumer_framework.core.stats import Snapshot

    from .channels import Channels

_log = logging.getLogger(__name__)

# Seconds. The first keeps a channel that the broker closes again and again from being a hot
# loop; the second bounds a broker that answers heartbeats but no declarations.
RESUBSCRIBE_DELAY = 1.0
SUBSCRIBE_TIMEOUT = 60.0
# Seconds in which a broker that has accepted us may refuse a connection, or keep the exclusive
# queue of our former one: it restarts, or has not noticed yet that the former one is dead.
PATIENCE = 300.0


class Listener(Protocol):
    """What a session reports. All of it is called on the reactor's thread."""

    def delivered(self, delivery: Delivery) -> None:
        """The broker delivered a message."""
        ...

    def voided(self, generation: int) -> None:
        """A channel is gone: the broker delivers again what was not settled on it."""
        ...

    def connected(self) -> None:
        """There is a connection; subscribing starts."""
        ...

    def subscribed(self) -> None:
        """The broker confirmed a consumer on every queue."""
        ...

    def interrupted(self, reason: str) -> None:
        """One queue is not consumed from for the moment; the connection stands."""
        ...

    def lost(self, reason: str, retry_in: float) -> None:
        """There is no connection; the next attempt is in *retry_in* seconds."""
        ...

    def failed(self, fault: Fault) -> None:
        """The session cannot go on."""
        ...


class Session:
    """Subscribes to every queue of *settings* on each new connection.

    Args:
        settings: Queues and bindings; the URL and TLS are in fedora-messaging's configuration.
        prefetch_count: How many messages the broker sends ahead, per queue; 0 for no limit.
        channels: Gets every channel that deliveries come on.
        listener: Told of everything that happens.
        clock: Twisted's reactor, or a clock of a test's.
        snapshot: Returns the counts so far, for the monitoring server.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- runner.py puts it together, and nobody else
        self,
        settings: Settings,
        prefetch_count: int,
        channels: Channels,
        listener: Listener,
        clock: Clock,
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self._settings = settings
        self._prefetch_count = prefetch_count
        self._channels = channels
        self._listener = listener
        self._clock = clock
        self._client: Client | None = None
        self._subscriptions: dict[str, Subscription] = {}
        # By configured name, the queues whose consumer the broker canceled: must still be there.
        self._doubted: dict[str, str] = {}
        self._subscribing_on: Client | None = None
        self._ever_connected = False
        self._refused_since: float | None = None
        self._locked_since: float | None = None
        self._subscribing: defer.Deferred[None] | None = None
        self._closing = False
        self._paused = False
        # Whether the listener believes that every queue is consumed from.
        self._is_announced = False
        # Bindings to be changed when the next effort to subscribe ends.
        self._to_bind: list[Bound] = []
        self._to_unbind: list[Bound] = []
        self._lost: defer.Deferred[None] | None = None
        self.service = Service(self, clock, snapshot, lambda: self.is_complete)

    @property
    def is_complete(self) -> bool:
        """Whether every queue is consumed from."""
        return not self._closing and not self._missing()

    @property
    def queues(self) -> list[str]:
        """The queues consumed from, by the broker's names."""
        return [subscription.queue for subscription in self._subscriptions.values()]

    @property
    def client(self) -> Client | None:
        """The connection, None where there is none."""
        return self._client

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """What consumes, or did until it was paused."""
        return tuple(self._subscriptions.values())

    def has_room(self, subscription: Subscription) -> bool:
        """Whether the broker may send another message to *subscription* before one is settled."""
        unsettled = subscription.latest_tag - self._channels.settled(subscription.generation)
        return not self._prefetch_count or unsettled < self._prefetch_count

    def is_single_active(self, subscription: Subscription) -> bool:
        """Whether other consumers of its queue get nothing while *subscription* does."""
        return is_single_active(self._settings.queues[subscription.configured_name])

    # What the connection reports.

    def connection_opened(self, client: Client) -> None:
        """Subscribe on the new connection."""
        self._client = client
        self._ever_connected = True
        self._refused_since = None
        self._doubted.clear()
        if self._closing:
            client.close()
            return
        self._listener.connected()
        self._subscribe_missing(client)

    def connection_lost(self, error: object, retry_in: float) -> None:
        """Pass the news on; the channels have reported their own end."""
        was_open, self._client = self._client is not None, None
        self._is_announced = False
        if was_open and faults.is_permanent(error) and not self._closing:
            self._listener.failed(faults.connection_fault(error, self.service.host))
        self._listener.lost(faults.one_line(error), retry_in)
        lost, self._lost = self._lost, None
        if lost is not None:
            lost.callback(None)

    def handshake_refused(self, error: BaseException) -> None:
        """Give up if the broker never accepted us; one that restarts may refuse for a while."""
        if not self._ever_connected and faults.is_passing(error):
            # A start has an end of its own.
            return
        now = self._clock.seconds()
        self._refused_since = self._refused_since or now
        patience = PATIENCE if self._ever_connected else 0
        if now - self._refused_since >= patience and not self._closing:
            self._listener.failed(faults.handshake_fault(error, self.service.host))

    # Pausing: the channels stay open, for what is held on them.

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._client is not None

    def pause(self) -> None:
        """Consume nothing (``basic.cancel``); what was delivered can still be settled."""
        if not self._paused:
            self._paused = True
            self._is_announced = False
            for subscription in self._subscriptions.values():
                subscription.is_wanted = False
                self._cancel_quietly(subscription)

    def resume(self) -> None:
        """Consume again, on the same channels where they are there still."""
        self._paused = False
        if self._client is not None:
            self._subscribe_missing(self._client)

    def set_prefetch(self, prefetch_count: int) -> list[str]:
        """Let the broker send so many messages ahead, per queue, from now on.

        The count belongs to a consumer (RabbitMQ: Consumer Prefetch). So a new one takes the place
        of each, on the same channel: what was delivered stays, and can be settled. It does not
        count against the new consumer's prefetch.

        A queue with a single active consumer keeps the one that it has, or another instance's
        would begin while something runs here.

        Args:
            prefetch_count: 0 for no limit.

        Returns:
            The queues that the count is in force for with their next subscription only.
        """
        if prefetch_count == self._prefetch_count:
            return []
        self._prefetch_count = prefetch_count
        consuming = [s for s in self._subscriptions.values() if s.consumer_tag]
        kept = [s for s in consuming if is_single_active(self._settings.queues[s.configured_name])]
        for subscription in consuming:
            if subscription not in kept:
                self._cancel_quietly(subscription)
        if self._client is not None:
            self._subscribe_missing(self._client)
        return [subscription.queue for subscription in kept]

    # Other settings.

    async def bind(self, bound: Sequence[Bound]) -> None:
        """Add bindings, where there is a connection, to the queues that are subscribed to.

        Raises:
            Fault: The broker refused one; those before it are there.
        """
        if self._client is None:
            return
        done = defer.ensureDeferred(rebinding.bind(self._client, bound, self._names))
        try:
            await done.addTimeout(SUBSCRIBE_TIMEOUT, self._clock)
        except BadDeclaration as error:
            raise faults.declaration_fault(error) from error
        except (*faults.CONNECTION_GONE, defer.TimeoutError) as error:
            # The next connection brings them.
            _log.debug("binding: %r", error)

    def apply(self, settings: Settings, bound: Sequence[Bound], unbound: Sequence[Bound]) -> None:
        """Go by other settings from the next subscription on, and change bindings now.

        Args:
            settings: With the same queues.
            bound: The bindings that are new in them.
            unbound: Those that are not in them any more. One that the broker does not remove
                stays, with a warning.
        """
        self._settings = settings
        self._to_bind = [one for one in (*self._to_bind, *bound) if one not in unbound]
        self._to_unbind = [one for one in (*self._to_unbind, *unbound) if one not in bound]
        if self._client is not None:
            self._subscribe_missing(self._client)

    async def reconnect(self, reason: str) -> None:
        """Close the connection, after all that was written to it; another one follows.

        Done when it is closed, and :meth:`Listener.lost` was called. Does nothing without one.

        Args:
            reason: What the log is to say.
        """
        client = self._client
        if client is None or self._closing:
            return
        self._channels.flush()
        client.ending = ConnectionResetError(reason)
        self._lost = self._lost or defer.Deferred()
        lost = self._lost
        closed = defer.maybeDeferred(client.close)
        closed.addTimeout(CLOSE_TIMEOUT, self._clock)
        closed.addErrback(lambda _failure: client.abort())
        await lost

    @property
    def _names(self) -> dict[str, str]:
        """The broker's names of the queues, by the configured ones."""
        return {s.configured_name: s.queue for s in self._subscriptions.values()}

    # Stopping, in this order.

    async def cancel(self) -> None:
        """Stop the broker from sending more (``basic.cancel``); what came is still unsettled.

        A queue with a single active consumer keeps this one until the channel closes: the next
        one must neither begin while something runs here, nor overtake what is given back.
        """
        self._closing = True
        self.service.factory.stop()
        if self._subscribing is not None:
            self._subscribing.cancel()
        consuming = [s for s in self._subscriptions.values() if s.consumer_tag]
        for subscription in consuming:
            if self.is_single_active(subscription):
                self._channels.leave(subscription.generation)
        leaving = [s for s in consuming if not self._channels.is_left(s.generation)]
        for subscription in leaving:
            subscription.is_wanted = False
        cancels = [self._cancel(subscription) for subscription in leaving]
        await defer.DeferredList(cancels, consumeErrors=True)

    async def close(self) -> None:
        """Close the connection, after everything written to it has been sent."""
        self._closing = True
        self._channels.flush()
        for subscription in self._subscriptions.values():
            if self._channels.is_left(subscription.generation):
                # pika would tell the broker so before it closes the channel.
                cancelled = subscription.channel._channel._cancelled  # noqa: SLF001
                cancelled.add(subscription.consumer_tag)
        stopped = defer.maybeDeferred(self.service.stopService)
        stopped.addTimeout(CLOSE_TIMEOUT, self._clock)
        try:
            await stopped
        except Exception as error:  # noqa: BLE001 -- it is closed, one way or the other
            _log.debug("closing the connection: %r", error)
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once; the broker delivers again what is unsettled."""
        self._closing = True
        self.service.factory.stop()
        if self._client is not None:
            self._client.abort()

    def _cancel_quietly(self, subscription: Subscription) -> None:
        if subscription.consumer_tag:
            canceled = self._cancel(subscription)
            canceled.addErrback(lambda failure: _log.debug("canceling: %r", failure.value))

    @defer.inlineCallbacks
    def _cancel(self, subscription: Subscription) -> Generator[defer.Deferred[Any], Any, None]:
        tag, subscription.consumer_tag = subscription.consumer_tag, ""
        canceled = subscription.channel.basic_cancel(tag)
        # What is under way is ours to take, or to give back; pika would reject it.
        subscription.channel._channel._cancelled.discard(tag)  # noqa: SLF001
        yield canceled.addTimeout(CLOSE_TIMEOUT, self._clock)

    # Subscribing.

    def _subscribe_missing(self, client: Client) -> None:
        """Subscribe to what is not subscribed to; one such effort at a time on a connection."""
        if self._closing or self._paused or client is not self._client:
            return
        if self._subscribing_on is client:
            return
        if self.is_complete and not (self._to_bind or self._to_unbind):
            return
        self._subscribing_on = client
        self._subscribing = done = defer.ensureDeferred(self._subscribe_all(client))
        done.addTimeout(SUBSCRIBE_TIMEOUT, self._clock)
        done.addErrback(self._subscribe_failed, client)

    async def _subscribe_all(self, client: Client) -> None:
        try:
            while self._wants_more():
                if missing := self._missing():
                    await self._subscribe(client, min(missing))
                elif self._to_bind or self._to_unbind:
                    await self._rebind(client)
                else:
                    break
        finally:
            if self._subscribing_on is client:
                self._subscribing_on = self._subscribing = None
        if client is self._client and self._wants_more():
            self.service.factory.succeeded()
            self._locked_since = None
            if not self._is_announced:
                self._is_announced = True
                self._listener.subscribed()

    async def _rebind(self, client: Client) -> None:
        bound, self._to_bind = self._to_bind, []
        await rebinding.bind(client, bound, self._names)
        unbound, self._to_unbind = self._to_unbind, []
        await rebinding.unbind(client, unbound, self._names)

    def _wants_more(self) -> bool:
        return not self._closing and not self._paused

    def _missing(self) -> set[str]:
        """The configured names of the queues that have no consumer."""
        consuming = {name for name, s in self._subscriptions.items() if s.consumer_tag}
        return self._settings.queues.keys() - consuming

    async def _subscribe(self, client: Client, name: str) -> None:
        existing = self._subscriptions.get(name)
        if existing is not None:
            await self._consume(existing)
            return
        queue = self._settings.queues[name]
        if name in self._doubted:
            await self._must_exist(client, self._doubted.pop(name), queue)
        actual_name = await client.declare_queue(declaration(name, queue, self._settings))
        await client.bind_queues(bindings(name, actual_name, self._settings))
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
            # The broker may have confirmed already: what it sends goes back with the channel.
            channel.close()
            raise
        self._subscriptions[name] = subscription

    async def _consume(self, subscription: Subscription) -> None:
        count = self._prefetch_count
        await subscription.channel.basic_qos(
            prefetch_size=self._settings.qos.prefetch_size, prefetch_count=count
        )
        # TwistedChannel.basic_consume would make two Deferreds for each delivery.
        consume = subscription.channel._wrap_channel_method("basic_consume")  # noqa: SLF001
        receive = receiver(subscription, self._listener.delivered, self._channels.give_back)
        subscription.is_wanted = True
        subscription.receivers[subscription.channel.channel_number] = receive
        try:
            confirmed = await consume(
                queue=subscription.queue, on_message_callback=from_pika(receive)
            )
        except pika.exceptions.ChannelClosed as error:
            raise faults.consume_fault(error, subscription.queue) from error
        subscription.consumer_tag = confirmed.method.consumer_tag
        if self._paused:
            subscription.is_wanted = False
            await self._cancel(subscription)
        elif count != self._prefetch_count:
            # It has changed meanwhile; without a consumer this one is missing again.
            await self._cancel(subscription)

    def _subscribe_failed(self, failure: Any, client: Client) -> None:
        error = failure.value
        if self._closing or client is not self._client:
            return
        if isinstance(error, defer.TimeoutError):
            _log.warning("the broker did not answer within %.0f s", SUBSCRIBE_TIMEOUT)
            client.abort()
        elif isinstance(error, faults.CONNECTION_GONE):
            client.abort()
        elif isinstance(error, BadDeclaration):
            self._declaration_failed(error, client)
        else:
            self._listener.failed(_as_fault(error))

    def _declaration_failed(self, error: BadDeclaration, client: Client) -> None:
        fault = faults.declaration_fault(error)
        now = self._clock.seconds()
        self._locked_since = self._locked_since or now
        patient = self.service.factory.retries and now - self._locked_since < PATIENCE
        if faults.is_locked(error) and patient:
            _log.warning("%s", fault)
            client.abort()
        else:
            self._listener.failed(fault)

    # Losing a subscription.

    def _channel_closed(self, reason: Exception, subscription: Subscription) -> None:
        self._forget(subscription)
        if self._subscriptions.get(subscription.configured_name) is not subscription:
            return
        del self._subscriptions[subscription.configured_name]
        client = self._client
        if self._closing or client is None:
            return
        if isinstance(reason, pika.exceptions.ChannelClosed):
            self._interrupted(subscription, reason, client)

    def _interrupted(
        self, subscription: Subscription, reason: pika.exceptions.ChannelClosed, client: Client
    ) -> None:
        if faults.reply_code(reason) == faults.ACCESS_REFUSED:
            self._listener.failed(faults.consume_fault(reason, subscription.queue))
            return
        text = f'the broker closed the channel of queue "{subscription.queue}"'
        self._is_announced = False
        self._listener.interrupted(f"{text}: {faults.one_line(reason)}")
        self._clock.callLater(RESUBSCRIBE_DELAY, self._subscribe_missing, client)

    def _canceled_by_broker(self, subscription: Subscription) -> None:
        """The queue was deleted, or its node went (RabbitMQ: Consumer Cancel Notification)."""
        client = self._client
        name = subscription.configured_name
        if self._closing or client is None or self._subscriptions.get(name) is not subscription:
            return
        del self._subscriptions[subscription.configured_name]
        self._doubted[subscription.configured_name] = subscription.queue
        self._is_announced = False
        self._listener.interrupted(f'the broker canceled the consumer of "{subscription.queue}"')
        # Give everything back by name before the channel closes: closing it would count against
        # a quorum queue's delivery-limit.
        self._channels.flush()
        subscription.channel.basic_nack(0, multiple=True, requeue=True)
        subscription.channel.close()
        self._forget(subscription)
        self._clock.callLater(RESUBSCRIBE_DELAY, self._subscribe_missing, client)

    def _forget(self, subscription: Subscription) -> None:
        """Its channel is gone, or as good as that."""
        subscription.receivers.pop(subscription.channel.channel_number, None)
        self._channels.remove(subscription.generation)
        self._listener.voided(subscription.generation)

    async def _must_exist(self, client: Client, actual_name: str, queue: Queue) -> None:
        passive = queue.model_copy(update={"passive": True})
        try:
            await client.declare_queue(declaration(actual_name, passive, self._settings))
        except BadDeclaration as error:
            if faults.reply_code(error.reason) == faults.NOT_FOUND:
                raise faults.canceled_fault(actual_name) from error
            raise


def _as_fault(error: BaseException) -> Fault:
    match error:
        case Fault():
            return error
        case NoFreeChannels():
            what = "the broker allows too few channels on a connection (channel_max)"
            return Fault(ExitCode.CONNECTION, f"{what}; consume from fewer queues")
    what = f"subscribing failed: {type(error).__name__}: {faults.one_line(error)}"
    _log.error("unexpected error while subscribing", exc_info=error)
    return Fault(ExitCode.UNEXPECTED, f"{what}; please report this as a defect")
