# SPDX-License-Identifier: GPL-2.0-or-later
"""A session with the broker, over all its connections.

Keeps every queue subscribed, on whatever connection there is.

Waits for answers of the broker, for longer while a large message comes before them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import pika.exceptions
from fedora_messaging.exceptions import BadDeclaration, NoFreeChannels
from twisted.internet import defer

from consumer_framework.core.errors import ExitCode, Fault

from . import consumers, faults
from .connection import CLOSE_TIMEOUT, Client, Clock, Service
from .consumers import Consumers, Rebinding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.stats import Snapshot
    from consumer_framework.settings import Settings
    from consumer_framework.settings.changes import Bound

    from .channels import Channels
    from .connection import Client, Clock, Factory
    from .consumers import Subscription

# Bytes. Heartbeats are fewer, and a link on which even less arrives is dead.
A_LOT = 1024
# How often the time begins anew: of a broker that sends messages, and never the answer, enough.
MOST_TIMES = 30


def expect(
    answer: defer.Deferred[Any],
    client: Client,
    clock: Clock,
    seconds: float,
    on_progress: Callable[[], None],
) -> None:
    """Cancel *answer* when nothing but heartbeats has come for *seconds*; as ``addTimeout``.

    A connection is one stream: the answer comes after the messages that are under way, and one of
    8 MB takes minutes on a slow link. What arrives of it is a sign of life.

    Args:
        answer: What is waited for; fails with ``defer.TimeoutError``.
        client: The connection that it comes on.
        clock: Twisted's reactor, or a clock of a test's.
        seconds: How long nothing may come.
        on_progress: Called where more time is given.
    """
    is_late = False
    timer: Any = None

    def look(arrived: int, times: int) -> None:
        nonlocal is_late, timer
        if client.arrived - arrived >= A_LOT and times < MOST_TIMES:
            on_progress()
            timer = clock.callLater(seconds, look, client.arrived, times + 1)
        else:
            is_late = True
            answer.cancel()

    def ended(result: Any) -> Any:
        if timer.active():
            timer.cancel()
        if is_late and getattr(result, "check", bool)(defer.CancelledError):
            raise defer.TimeoutError(f"no answer in {seconds:.0f} s")
        return result

    timer = clock.callLater(seconds, look, client.arrived, 0)
    answer.addBoth(ended)


_log = logging.getLogger(__name__)

# Seconds. The first keeps a channel that the broker closes again and again from being a hot
# loop; the second bounds a broker that answers heartbeats but no declarations.
RESUBSCRIBE_DELAY = 1.0
SUBSCRIBE_TIMEOUT = 60.0
# Seconds between two attempts to get a queue that another one has for itself.
LONGEST_WAIT = 30.0
# Seconds in which a broker that has accepted us may refuse a connection: it restarts.
PATIENCE = 300.0


class Observer(Protocol):
    """Whom the upkeep reports to."""

    def subscribed(self) -> None:
        """The broker confirmed a consumer on every queue."""
        ...

    def interrupted(self, reason: str) -> None:
        """One queue is not consumed from for the moment; the connection stands."""
        ...

    def progressed(self) -> None:
        """What takes long goes on: data comes."""
        ...

    def failed(self, fault: Fault) -> None:
        """The session cannot go on."""
        ...


class Upkeep:
    """Sees to it that every queue is consumed from as the settings say.

    Args:
        consumers: The consumers that there are.
        factory: Makes the connections.
        observer: Told of what comes of it.
        clock: Twisted's reactor, or a clock of a test's.

    Attributes:
        client: The connection, None where there is none.
        is_stopped: Whether nothing more is subscribed to, and losses do not matter any more.
    """

    def __init__(
        self, consumers: Consumers, factory: Factory, observer: Observer, clock: Clock
    ) -> None:
        self.client: Client | None = None
        self.is_stopped = False
        self._consumers = consumers
        consumers.on_room = self.proceed
        self._factory = factory
        self._observer = observer
        self._clock = clock
        self._rebinding = Rebinding()
        self._subscribing_on: Client | None = None
        self._subscribing: defer.Deferred[None] | None = None
        # How often a queue that another one has was waited for.
        self._waits = 0
        # Whether the observer believes that every queue is consumed from.
        self._is_announced = False

    @property
    def is_complete(self) -> bool:
        """Whether every queue is consumed from."""
        return not self.is_stopped and not self._consumers.missing

    def connected(self, client: Client) -> None:
        """Note a new connection."""
        self.client = client
        self._consumers.trust()

    def disconnected(self) -> None:
        """Note that there is no connection; the channels have reported their own end."""
        self.client = None
        self.announce_again()

    def announce_again(self) -> None:
        """Tell the observer the next time that every queue is consumed from."""
        self._is_announced = False

    def proceed(self) -> None:
        """Subscribe to what is not subscribed to, if there is a connection."""
        if self.client is not None:
            self._subscribe_missing(self.client)

    def rebind(self, bound: Sequence[Bound], unbound: Sequence[Bound]) -> None:
        """Change bindings, as :meth:`.Session.apply` says."""
        self._rebinding.add(bound, unbound)
        self.proceed()

    def stop(self) -> None:
        """Begin no further effort."""
        self.is_stopped = True

    def break_off(self) -> None:
        """End the effort that goes on."""
        if self._subscribing is not None:
            self._subscribing.cancel()

    # Subscribing.

    def _subscribe_missing(self, client: Client) -> None:
        """Subscribe to what is not subscribed to; one such effort at a time on a connection."""
        if not self._wants_more() or client is not self.client:
            return
        if self._subscribing_on is client:
            return
        if self.is_complete and self._is_announced and not self._rebinding.is_due:
            return
        self._subscribing_on = client
        self._subscribing = done = defer.ensureDeferred(self._subscribe_all(client))
        expect(done, client, self._clock, SUBSCRIBE_TIMEOUT, self._observer.progressed)
        done.addErrback(self._subscribe_failed, client)

    async def _subscribe_all(self, client: Client) -> None:
        # By configured name: the queues that others have, and how that shows.
        taken: dict[str, str] = {}
        try:
            while self._wants_more():
                if missing := self._consumers.missing - taken.keys():
                    name = min(missing)
                    try:
                        await self._consumers.subscribe(client, name, self)
                    except faults.TakenError as error:
                        taken[name] = str(error)
                elif self._rebinding.is_due:
                    await self._rebinding.carry_out(client, self._consumers)
                else:
                    break
        finally:
            if self._subscribing_on is client:
                self._subscribing_on = self._subscribing = None
        if client is not self.client or not self._wants_more():
            return
        self._factory.succeeded()
        if taken:
            self._wait_for(client, "; ".join(taken.values()))
        else:
            self._waits = 0
            if not self._is_announced:
                self._is_announced = True
                self._observer.subscribed()

    def _wait_for(self, client: Client, reason: str) -> None:
        """Try again later: the other one ends, or the broker learns that it is dead."""
        self._waits += 1
        delay = min(RESUBSCRIBE_DELAY * 2 ** (self._waits - 1), LONGEST_WAIT)
        self._interrupted(f"{reason}; attempt {self._waits + 1} in {delay:.0f} s")
        self._clock.callLater(delay, self._subscribe_missing, client)

    def _wants_more(self) -> bool:
        return not self.is_stopped and not self._consumers.is_paused

    def _subscribe_failed(self, failure: Any, client: Client) -> None:
        error = failure.value
        if self.is_stopped or client is not self.client:
            return
        if isinstance(error, defer.TimeoutError):
            _log.warning("the broker did not answer within %.0f s", SUBSCRIBE_TIMEOUT)
            client.abort()
        elif isinstance(error, faults.CONNECTION_GONE):
            client.abort()
        elif isinstance(error, BadDeclaration):
            self._observer.failed(faults.declaration_fault(error))
        else:
            self._observer.failed(_as_fault(error))

    # What becomes of consumers.

    def channel_closed(self, reason: Exception, subscription: Subscription) -> None:
        """Subscribe again, unless the broker refuses that, or the connection is gone, too."""
        client = self.client
        if self.is_stopped or client is None:
            return
        if not isinstance(reason, pika.exceptions.ChannelClosed):
            return
        if faults.reply_code(reason) == faults.ACCESS_REFUSED:
            refusal = faults.consume_fault(reason, subscription.queue)
            if isinstance(refusal, Fault):
                self._observer.failed(refusal)
                return
        text = f'the broker closed the channel of queue "{subscription.queue}"'
        self._interrupted(f"{text}: {faults.one_line(reason)}")
        self._clock.callLater(RESUBSCRIBE_DELAY, self._subscribe_missing, client)

    def canceled_by_broker(self, subscription: Subscription) -> None:
        """Subscribe again, if the queue is still there."""
        client = self.client
        if self.is_stopped or client is None:
            return
        self._consumers.doubt(subscription)
        self._interrupted(f'the broker canceled the consumer of "{subscription.queue}"')
        self._consumers.give_up(subscription)
        self._clock.callLater(RESUBSCRIBE_DELAY, self._subscribe_missing, client)

    def _interrupted(self, reason: str) -> None:
        self._is_announced = False
        self._observer.interrupted(reason)


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


class Listener(consumers.Recipient, Observer, Protocol):
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
        done = defer.ensureDeferred(consumers.bind(client, bound, self._consumers.names))
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
