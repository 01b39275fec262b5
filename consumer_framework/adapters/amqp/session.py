# SPDX-License-Identifier: GPL-2.0-or-later
"""A session with the broker: keeps a consumer on every queue, over all connections.

:mod:`.session_state` has its states and transitions, and explains its rounds.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import pika.exceptions
from fedora_messaging.exceptions import BadDeclaration, NoFreeChannels
from twisted.internet import defer

from consumer_framework.core.errors import ExitCode, Fault

from . import faults
from .connection import CLOSE_TIMEOUT, Service
from .consumers import BindingChanges, Consumers, Recipient, bind
from .session_state import SessionEffect, SessionEvent, SessionState, advance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.stats import Snapshot
    from consumer_framework.settings import Settings
    from consumer_framework.settings.changes import BoundKey

    from .channels import Channels
    from .connection import Client, ReactorClock
    from .consumers import Subscription

_log = logging.getLogger(__name__)

# Seconds before a lost consumer is replaced: a channel that the broker closes again and again must
# not become a hot loop.
RESUBSCRIBE_DELAY = 1.0
# Seconds between two attempts to get a queue that another consumer has for itself, at most.
LONGEST_WAIT = 30.0
# Seconds for a round without a sign of life: a broker may answer heartbeats, but no declarations.
SUBSCRIBE_TIMEOUT = 60.0
# Seconds in which a broker that accepted us before may refuse connections: it restarts.
REFUSAL_TOLERANCE = 300.0


class Listener(Recipient, Protocol):
    """The instance, as a session sees it. Every method is called on the reactor's thread."""

    def connected(self) -> None:
        """Take note of an open connection; subscribing starts."""
        ...

    def subscribed(self) -> None:
        """Take note that the broker confirmed a consumer on every queue."""
        ...

    def interrupted(self, reason: str) -> None:
        """Take note that one queue has no consumer for the moment; the connection stands."""
        ...

    def progressed(self) -> None:
        """Take note that an answer takes long, but data comes."""
        ...

    def lost(self, reason: str, retry_in: float) -> None:
        """Take note that there is no connection; the next attempt is in *retry_in* seconds."""
        ...

    def blocked(self, reason: str) -> None:
        """Take note of the broker's alarm: it takes nothing from this connection; "" at its end."""
        ...

    def failed(self, fault: Fault) -> None:
        """End the instance: the session cannot go on."""
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

    Attributes:
        client: The connection, None where there is none.
        state: Where the session is in :data:`TABLE`.
        service: Connects; to be started by its owner.
        connections: How many connections were opened.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- instance.py puts it together, and nobody else
        self,
        settings: Settings,
        prefetch_count: int,
        channels: Channels,
        listener: Listener,
        clock: ReactorClock,
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self.client: Client | None = None
        self.connections = 0
        self.state = SessionState.OFFLINE
        self._channels = channels
        self._listener = listener
        self._clock = clock
        self._consumers = Consumers(settings, prefetch_count, channels, listener, self, clock)
        self._binding_changes = BindingChanges()
        self._round: defer.Deferred[None] | None = None
        # How many rounds in a row ended without a queue that another consumer has for itself.
        self._waits = 0
        # Seconds; from the first connection on, a broker that restarts may refuse us for a while.
        self._refusal_tolerance = 0.0
        self._refused_since: float | None = None
        # Fires at the next loss of the connection.
        self._next_loss: defer.Deferred[None] | None = None
        self.service = Service(self, clock, settings.brokers, snapshot, lambda: self.is_complete)

    @property
    def is_complete(self) -> bool:
        """True while every queue has a consumer."""
        consumes = self.state in {SessionState.CONSUMING, SessionState.ADJUSTING}
        return consumes and not self._consumers.missing

    @property
    def is_paused(self) -> bool:
        """True while there is a connection that nothing is consumed on, by :meth:`pause`."""
        return self.state is SessionState.PAUSED and self.client is not None

    @property
    def is_connected(self) -> bool:
        """True while there is a connection."""
        return self.client is not None

    @property
    def queues(self) -> list[str]:
        """The broker's names of the queues that are subscribed to."""
        return [subscription.queue for subscription in self._consumers.subscriptions]

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The channels with their consumers, which are canceled during a pause."""
        return self._consumers.subscriptions

    @property
    def prefetch_count(self) -> int:
        """The number of messages that the broker sends ahead, per queue; 0 for no limit."""
        return self._consumers.prefetch_count

    def has_room(self, subscription: Subscription) -> bool:
        """Say whether the broker may send *subscription* a message before one is settled."""
        return self._consumers.has_room(subscription)

    def is_single_active(self, subscription: Subscription) -> bool:
        """Say whether other consumers of its queue get nothing while *subscription* does."""
        return self._consumers.is_single_active(subscription)

    def _happened(self, event: SessionEvent) -> None:
        self.state, effects = advance(self.state, event)
        for effect in effects:
            self._execute(effect)

    def _execute(self, effect: SessionEffect) -> None:
        match effect:
            case SessionEffect.REPORT_CONNECTED:
                self._listener.connected()
            case SessionEffect.REPORT_SUBSCRIBED:
                self._listener.subscribed()
            case SessionEffect.START_ROUND:
                self._start_round()
            case SessionEffect.RESET_DELAY:
                self.service.factory.succeeded()
            case SessionEffect.CANCEL_CONSUMERS:
                self._consumers.pause()
            case SessionEffect.HANG_UP:
                assert self.client is not None  # noqa: S101 -- OPENED comes with one
                self.client.close()

    # Rounds.

    def _start_round(self) -> None:
        client = self.client
        assert client is not None  # noqa: S101 -- no state that starts a round is offline
        self._round = ended = defer.ensureDeferred(self._run_round(client))
        cancel_when_silent(ended, client, self._clock, SUBSCRIBE_TIMEOUT, self._listener.progressed)
        ended.addErrback(self._round_failed, client)

    async def _run_round(self, client: Client) -> None:
        # By configured name: the complaints about queues that another consumer has for itself.
        taken: dict[str, str] = {}
        while self.state in {SessionState.SUBSCRIBING, SessionState.ADJUSTING}:
            if missing := self._consumers.missing - taken.keys():
                name = min(missing)
                try:
                    await self._consumers.subscribe(client, name)
                except faults.QueueTakenError as error:
                    taken[name] = str(error)
            elif self._binding_changes.are_due:
                await self._binding_changes.carry_out(client, self._consumers.names)
            else:
                break
        if client is not self.client:
            return
        self._happened(SessionEvent.TAKEN if taken else SessionEvent.SUBSCRIBED)
        if not taken:
            self._waits = 0
        elif self.state is SessionState.INCOMPLETE:
            self._wait_for_queues(client, "; ".join(taken.values()))

    def _wait_for_queues(self, client: Client, reason: str) -> None:
        """Try again later: the other consumer ends, or the broker learns that it is dead."""
        self._waits += 1
        delay = min(RESUBSCRIBE_DELAY * 2 ** (self._waits - 1), LONGEST_WAIT)
        self._interrupted(f"{reason}; attempt {self._waits + 1} in {delay:.0f} s")
        self._clock.callLater(delay, self._work_due_on, client)

    def _round_failed(self, failure: Any, client: Client) -> None:
        error = failure.value
        if self.state is SessionState.STOPPING or client is not self.client:
            return
        self._happened(SessionEvent.FAILED)
        if isinstance(error, defer.TimeoutError):
            _log.warning("the broker did not answer within %.0f s", SUBSCRIBE_TIMEOUT)
            client.abort()
        elif isinstance(error, faults.CONNECTION_GONE):
            client.abort()
        else:
            self._listener.failed(_fault_of(error))

    def _work_due_on(self, client: Client) -> None:
        if client is self.client:
            self._happened(SessionEvent.WORK_DUE)

    # Reports of the consumers.

    def channel_closed(self, reason: Exception, subscription: Subscription) -> None:
        """Subscribe again, unless the broker refuses that, or the connection is gone, too."""
        client = self.client
        if self.state is SessionState.STOPPING or client is None:
            return
        if not isinstance(reason, pika.exceptions.ChannelClosed):
            return
        if faults.reply_code(reason) == faults.ACCESS_REFUSED:
            refusal = faults.consume_fault(reason, subscription.queue)
            if isinstance(refusal, Fault):
                self._listener.failed(refusal)
                return
        text = f'the broker closed the channel of queue "{subscription.queue}"'
        self._interrupted(f"{text}: {faults.one_line(reason)}")
        self._clock.callLater(RESUBSCRIBE_DELAY, self._work_due_on, client)

    def canceled_by_broker(self, subscription: Subscription) -> None:
        """Subscribe again, if the queue is still there."""
        client = self.client
        if self.state is SessionState.STOPPING or client is None:
            return
        self._consumers.suspect(subscription)
        self._interrupted(f'the broker canceled the consumer of "{subscription.queue}"')
        self._consumers.close_channel(subscription)
        self._clock.callLater(RESUBSCRIBE_DELAY, self._work_due_on, client)

    def room_found(self) -> None:
        """Start the consumer that had to wait for earlier messages to be settled."""
        self._happened(SessionEvent.WORK_DUE)

    def _interrupted(self, reason: str) -> None:
        self._happened(SessionEvent.INTERRUPTED)
        self._listener.interrupted(reason)

    # Reports of the connection.

    def connection_opened(self, client: Client) -> None:
        """Subscribe on the new connection."""
        self.client = client
        self.connections += 1
        self._consumers.forget_suspicions()
        self._refusal_tolerance = REFUSAL_TOLERANCE
        self._refused_since = None
        self._happened(SessionEvent.OPENED)

    def connection_lost(self, error: object, retry_in: float) -> None:
        """Report the loss; the channels have reported their own end."""
        was_open, self.client = self.client is not None, None
        self._happened(SessionEvent.LOST)
        is_stopping = self.state is SessionState.STOPPING
        if was_open and faults.is_permanent(error) and not is_stopping:
            self._listener.failed(faults.connection_fault(error, self.service.host))
        self._listener.lost(faults.one_line(error), retry_in)
        next_loss, self._next_loss = self._next_loss, None
        if next_loss is not None:
            next_loss.callback(None)

    def connection_blocked(self, reason: str) -> None:
        """Report the broker's alarm."""
        if self.state is not SessionState.STOPPING:
            self._listener.blocked(reason)

    def handshake_broken(self) -> None:
        """Wait: nobody has refused us. A start has an end of its own."""
        self._refused_since = None

    def handshake_refused(self, error: BaseException) -> None:
        """Give up if the broker never accepted us; one that restarts may refuse for a while."""
        now = self._clock.seconds()
        self._refused_since = self._refused_since or now
        refused_for = now - self._refused_since
        is_stopping = self.state is SessionState.STOPPING
        if refused_for >= self._refusal_tolerance and not is_stopping:
            self._listener.failed(faults.handshake_fault(error, self.service.host))

    # Orders of the instance.

    def pause(self) -> None:
        """Cancel all consumers (``basic.cancel``); earlier deliveries can still be settled."""
        self._happened(SessionEvent.PAUSE)

    def resume(self) -> None:
        """Consume again after :meth:`pause`, on the channels that are still open."""
        self._happened(SessionEvent.RESUME)

    def set_prefetch(self, prefetch_count: int) -> list[str]:
        """Let the broker send another number of messages ahead, per queue, from now on.

        The count belongs to a consumer (RabbitMQ: Consumer Prefetch). So each consumer is replaced,
        on the same channel: messages that were delivered stay, and can be settled. They count, so
        the new consumer gets the rest of the count, and waits until there is a rest.

        A queue with a single active consumer keeps its consumer. Otherwise the consumer of another
        instance would begin while a message runs here.

        Args:
            prefetch_count: 0 for no limit.

        Returns:
            The queues that the count is in force for with their next subscription only.
        """
        if prefetch_count == self._consumers.prefetch_count:
            return []
        kept = self._consumers.set_prefetch(prefetch_count)
        self._happened(SessionEvent.WORK_DUE)
        return kept

    def give_back_from(self, delivery: Delivery) -> bool:
        """Give back *delivery* and those that follow it, after :meth:`set_prefetch`.

        Returns:
            False where *delivery* is to be taken all the same.
        """
        return self._consumers.give_back_from(delivery)

    def take_always(self, which: Callable[[Delivery], bool]) -> None:
        """Take late deliveries where *which* says that their queue would drop them."""
        self._consumers.must_take = which

    async def bind(self, bound: Sequence[BoundKey]) -> None:
        """Add bindings to the queues that are subscribed to, where there is a connection.

        Raises:
            Fault: The broker refused one; those before it are there.
        """
        client = self.client
        if client is None:
            return
        done = defer.ensureDeferred(bind(client, bound, self._consumers.names))
        try:
            cancel_when_silent(
                done, client, self._clock, SUBSCRIBE_TIMEOUT, self._listener.progressed
            )
            await done
        except BadDeclaration as error:
            raise faults.declaration_fault(error) from error
        except (*faults.CONNECTION_GONE, defer.TimeoutError) as error:
            # The next connection brings them.
            _log.debug("binding: %r", error)

    def apply(
        self, settings: Settings, bound: Sequence[BoundKey], unbound: Sequence[BoundKey]
    ) -> None:
        """Use other settings from the next subscription on, and change bindings now.

        Args:
            settings: With the same queues.
            bound: The bindings that are new in them.
            unbound: The bindings that are gone from them. One that the broker does not remove
                stays, with a warning.
        """
        self._consumers.settings = settings
        self._binding_changes.add(bound, unbound)
        self._happened(SessionEvent.WORK_DUE)

    async def reconnect(self, reason: str) -> None:
        """Close the connection after all that was written to it; another one follows.

        Returns when it is closed and :meth:`Listener.lost` was called. Does nothing offline.

        Args:
            reason: The reason that the log gives.
        """
        client = self.client
        if client is None or self.state is SessionState.STOPPING:
            return
        self._channels.flush()
        client.ending = ConnectionResetError(reason)
        self._next_loss = next_loss = self._next_loss or defer.Deferred()
        closed = defer.maybeDeferred(client.close)
        closed.addTimeout(CLOSE_TIMEOUT, self._clock)
        closed.addErrback(lambda _failure: client.abort())
        await next_loss

    # Stopping, in this order.

    async def cancel(self) -> None:
        """Let the broker send no more (``basic.cancel``); earlier deliveries stay unsettled.

        The consumer of a queue with a single active consumer stays until its channel closes: the
        next one must neither begin while a message runs here, nor overtake messages that go back.
        """
        self._stop()
        if self._round is not None:
            self._round.cancel()
        await self._consumers.cancel_all()

    async def close(self) -> None:
        """Close the connection after everything written to it has been sent."""
        self._stop()
        self._channels.flush()
        self._consumers.skip_late_cancels()
        stopped = defer.maybeDeferred(self.service.stopService)
        stopped.addTimeout(CLOSE_TIMEOUT, self._clock)
        try:
            await stopped
        except Exception as error:  # noqa: BLE001 -- it is closed, one way or the other
            _log.debug("closing the connection: %r", error)
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once; the broker delivers unsettled messages again."""
        self._stop()
        if self.client is not None:
            self.client.abort()

    def _stop(self) -> None:
        self._happened(SessionEvent.STOP)
        self.service.factory.stop()


def _fault_of(error: BaseException) -> Fault:
    match error:
        case Fault():
            return error
        case BadDeclaration():
            return faults.declaration_fault(error)
        case NoFreeChannels():
            text = "the broker allows too few channels on a connection (channel_max)"
            return Fault(ExitCode.CONNECTION, f"{text}; consume from fewer queues")
    text = f"subscribing failed: {type(error).__name__}: {faults.one_line(error)}"
    _log.error("unexpected error while subscribing", exc_info=error)
    return Fault(ExitCode.UNEXPECTED, f"{text}; please report this as a defect")


# Bytes. Heartbeats are fewer, and a link on which even less arrives is dead.
SIGN_OF_LIFE = 1024
# How often the time begins anew: a broker may send messages forever, and never the answer.
MOST_EXTENSIONS = 30


def cancel_when_silent(
    answer: defer.Deferred[Any],
    client: Client,
    clock: ReactorClock,
    seconds: float,
    on_progress: Callable[[], None],
) -> None:
    """Cancel *answer* when nothing but heartbeats has come for *seconds*; as ``addTimeout``.

    A connection is one stream: the answer comes after the messages that are under way, and one of
    8 MB takes minutes on a slow link. Each part of it that arrives is a sign of life.

    Args:
        answer: The answer, which fails with ``defer.TimeoutError`` then.
        client: The connection that it comes on.
        clock: Twisted's reactor, or a clock of a test's.
        seconds: How long nothing may come.
        on_progress: Called each time that the answer gets more time.
    """
    is_late = False
    timer: Any = None

    def look(arrived: int, times: int) -> None:
        nonlocal is_late, timer
        if client.arrived - arrived >= SIGN_OF_LIFE and times < MOST_EXTENSIONS:
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
