# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps every queue subscribed, on whatever connection there is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import pika.exceptions
from fedora_messaging.exceptions import BadDeclaration, NoFreeChannels
from twisted.internet import defer

from consumer_framework.core.errors import ExitCode, Fault

from . import faults
from .patience import expect
from .rebinding import Rebinding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.core.bindings import Bound

    from .connection import Client, Clock, Factory
    from .consumers import Consumers
    from .subscription import Subscription

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
