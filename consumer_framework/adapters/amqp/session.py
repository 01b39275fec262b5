# SPDX-License-Identifier: GPL-2.0-or-later
"""A session with the broker, over all its connections."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from fedora_messaging.exceptions import BadDeclaration
from twisted.internet import defer

from . import consumers, faults, rebinding, upkeep
from .connection import CLOSE_TIMEOUT, Client, Clock, Service
from .consumers import Consumers
from .patience import expect
from .upkeep import PATIENCE, SUBSCRIBE_TIMEOUT, Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer_framework.core.bindings import Bound
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.settings import Settings
    from consumer_framework.core.stats import Snapshot

    from .channels import Channels
    from .subscription import Subscription

_log = logging.getLogger(__name__)


class Listener(consumers.Recipient, upkeep.Observer, Protocol):
    """What a session reports. All of it is called on the reactor's thread."""

    def connected(self) -> None:
        """There is a connection; subscribing starts."""
        ...

    def lost(self, reason: str, retry_in: float) -> None:
        """There is no connection; the next attempt is in *retry_in* seconds."""
        ...

    def blocked(self, reason: str) -> None:
        """The broker has an alarm, and takes nothing from this connection; "" for no longer."""
        ...


class Session:
    """Consumes from every queue of *settings*, connection after connection, until it is stopped.

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
        self._channels = channels
        self._listener = listener
        self._clock = clock
        self._ever_connected = False
        self._refused_since: float | None = None
        self._lost: defer.Deferred[None] | None = None
        self.service = Service(self, clock, settings.brokers, snapshot, lambda: self.is_complete)
        self._consumers = Consumers(settings, prefetch_count, channels, listener, clock)
        self._upkeep = Upkeep(self._consumers, self.service.factory, listener, clock)

    @property
    def is_complete(self) -> bool:
        """Whether every queue is consumed from."""
        return self._upkeep.is_complete

    @property
    def queues(self) -> list[str]:
        """The queues consumed from, by the broker's names."""
        return [subscription.queue for subscription in self._consumers.subscriptions]

    @property
    def client(self) -> Client | None:
        """The connection, None where there is none."""
        return self._upkeep.client

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """What consumes, or did until it was paused."""
        return self._consumers.subscriptions

    def has_room(self, subscription: Subscription) -> bool:
        """Whether the broker may send another message to *subscription* before one is settled."""
        return self._consumers.has_room(subscription)

    def is_single_active(self, subscription: Subscription) -> bool:
        """Whether other consumers of its queue get nothing while *subscription* does."""
        return self._consumers.is_single_active(subscription)

    # What the connection reports.

    def connection_opened(self, client: Client) -> None:
        """Subscribe on the new connection."""
        self._upkeep.connected(client)
        self._ever_connected = True
        self._refused_since = None
        if self._upkeep.is_stopped:
            client.close()
            return
        self._listener.connected()
        self._upkeep.proceed()

    def connection_lost(self, error: object, retry_in: float) -> None:
        """Pass the news on; the channels have reported their own end."""
        was_open = self.is_connected
        self._upkeep.disconnected()
        if was_open and faults.is_permanent(error) and not self._upkeep.is_stopped:
            self._listener.failed(faults.connection_fault(error, self.service.host))
        self._listener.lost(faults.one_line(error), retry_in)
        lost, self._lost = self._lost, None
        if lost is not None:
            lost.callback(None)

    def connection_blocked(self, reason: str) -> None:
        """Pass it on."""
        if not self._upkeep.is_stopped:
            self._listener.blocked(reason)

    def handshake_broken(self) -> None:
        """Wait: nobody has refused us. A start has an end of its own."""
        self._refused_since = None

    def handshake_refused(self, error: BaseException) -> None:
        """Give up if the broker never accepted us; one that restarts may refuse for a while."""
        now = self._clock.seconds()
        self._refused_since = self._refused_since or now
        patience = PATIENCE if self._ever_connected else 0
        if now - self._refused_since >= patience and not self._upkeep.is_stopped:
            self._listener.failed(faults.handshake_fault(error, self.service.host))

    # Pausing: the channels stay open, for what is held on them.

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has an alarm, and takes nothing: neither messages nor acks."""
        client = self._upkeep.client
        return client is not None and client.is_blocked

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._upkeep.client is not None

    def pause(self) -> None:
        """Consume nothing (``basic.cancel``); what was delivered can still be settled."""
        if not self._consumers.is_paused:
            self._upkeep.announce_again()
            self._consumers.pause()

    def resume(self) -> None:
        """Consume again, on the same channels where they are there still."""
        self._consumers.resume()
        self._upkeep.proceed()

    def set_prefetch(self, prefetch_count: int) -> list[str]:
        """Let the broker send so many messages ahead, per queue, from now on.

        The count belongs to a consumer (RabbitMQ: Consumer Prefetch). So a new one takes the place
        of each, on the same channel: what was delivered stays, and can be settled. It counts, so
        the new one gets what is left of the count, and waits until there is something left.

        A queue with a single active consumer keeps the one that it has, or another instance's
        would begin while something runs here.

        Args:
            prefetch_count: 0 for no limit.

        Returns:
            The queues that the count is in force for with their next subscription only.
        """
        if prefetch_count == self._consumers.prefetch_count:
            return []
        kept = self._consumers.set_prefetch(prefetch_count)
        self._upkeep.proceed()
        return kept

    @property
    def prefetch_count(self) -> int:
        """How many messages the broker is to send ahead, per queue; 0 for no limit."""
        return self._consumers.prefetch_count

    def shed(self, delivery: Delivery) -> bool:
        """Give back *delivery* and what follows it, after :meth:`set_prefetch`.

        Returns:
            False where *delivery* is to be taken all the same.
        """
        return self._consumers.shed(delivery)

    def take_always(self, which: Callable[[Delivery], bool]) -> None:
        """Give back nothing that came too late where *which* says that its queue would drop it."""
        self._consumers.must_take = which

    # Other settings.

    async def bind(self, bound: Sequence[Bound]) -> None:
        """Add bindings, where there is a connection, to the queues that are subscribed to.

        Raises:
            Fault: The broker refused one; those before it are there.
        """
        client = self._upkeep.client
        if client is None:
            return
        done = defer.ensureDeferred(rebinding.bind(client, bound, self._consumers.names))
        try:
            expect(done, client, self._clock, SUBSCRIBE_TIMEOUT, self._listener.progressed)
            await done
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
        self._consumers.settings = settings
        self._upkeep.rebind(bound, unbound)

    async def reconnect(self, reason: str) -> None:
        """Close the connection, after all that was written to it; another one follows.

        Done when it is closed, and :meth:`Listener.lost` was called. Does nothing without one.

        Args:
            reason: What the log is to say.
        """
        client = self._upkeep.client
        if client is None or self._upkeep.is_stopped:
            return
        self._channels.flush()
        client.ending = ConnectionResetError(reason)
        self._lost = self._lost or defer.Deferred()
        lost = self._lost
        closed = defer.maybeDeferred(client.close)
        closed.addTimeout(CLOSE_TIMEOUT, self._clock)
        closed.addErrback(lambda _failure: client.abort())
        await lost

    # Stopping, in this order.

    async def cancel(self) -> None:
        """Stop the broker from sending more (``basic.cancel``); what came is still unsettled.

        A queue with a single active consumer keeps this one until the channel closes: the next
        one must neither begin while something runs here, nor overtake what is given back.
        """
        self._upkeep.stop()
        self.service.factory.stop()
        self._upkeep.break_off()
        await self._consumers.cancel_all()

    async def close(self) -> None:
        """Close the connection, after everything written to it has been sent."""
        self._upkeep.stop()
        self._channels.flush()
        self._consumers.hush()
        stopped = defer.maybeDeferred(self.service.stopService)
        stopped.addTimeout(CLOSE_TIMEOUT, self._clock)
        try:
            await stopped
        except Exception as error:  # noqa: BLE001 -- it is closed, one way or the other
            _log.debug("closing the connection: %r", error)
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once; the broker delivers again what is unsettled."""
        self._upkeep.stop()
        self.service.factory.stop()
        if self._upkeep.client is not None:
            self._upkeep.client.abort()
