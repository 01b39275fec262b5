# SPDX-License-Identifier: GPL-2.0-or-later
"""Connects to the broker, and connects again, by way of fedora-messaging's Twisted service.

What is used of upstream here is not public (tests/unit/test_upstream_contract.py says what, and
fails first): its service knows the URL and TLS, its factory and protocol publish and declare.
What follows a connection -- upstream's factory re-registers consumers and loses what goes wrong
there -- is the session's.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fedora_messaging.twisted.factory import FedoraMessagingFactoryV2
from fedora_messaging.twisted.protocol import FedoraMessagingProtocolV2
from fedora_messaging.twisted.service import FedoraMessagingServiceV2
from fedora_messaging.twisted.stats import ConsumerStatistics, FactoryStatistics
from twisted.internet import defer
from twisted.internet.protocol import connectionDone

from consumer_framework.core import backoff

from .frames import Frames
from .renewal import TlsOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    import pika.connection
    from twisted.python.failure import Failure

    from consumer_framework.core.stats import Snapshot

# Seconds. Nothing upstream, nor in pika's Twisted adapter, bounds these two.
HANDSHAKE_TIMEOUT = 30.0
CLOSE_TIMEOUT = 5.0


# Twisted's zope interfaces (IReactorTime, IConnector) mean nothing to a type checker.
Clock: TypeAlias = Any


class ConnectionEvents(Protocol):
    """What a connection reports."""

    def connection_opened(self, client: Client) -> None:
        """The AMQP handshake is complete."""
        ...

    def connection_lost(self, error: object, retry_in: float) -> None:
        """There is no connection because of *error*; the next attempt is in *retry_in* seconds."""
        ...

    def handshake_refused(self, error: BaseException) -> None:
        """The broker was reached, and does not want us; :meth:`connection_lost` follows."""
        ...


class Client(FedoraMessagingProtocolV2):
    """One connection."""

    # What ended the connection, as far as pika knew.
    ending: BaseException | None = None

    def __init__(self, parameters: pika.connection.Parameters, *, confirms: bool) -> None:
        super().__init__(parameters, confirms=confirms)
        self.frames = Frames(self._impl.data_received)
        # The broker has an alarm, and reads nothing from us until that is over.
        self.is_blocked = False
        self._impl.add_on_connection_blocked_callback(lambda *_: self._block(blocked=True))
        self._impl.add_on_connection_unblocked_callback(lambda *_: self._block(blocked=False))

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 -- Twisted's name
        """Take what came from the broker."""
        frames = self.frames
        frames.feed(data)
        # What pika has not seen counts for its heartbeats all the same.
        size, number = frames.taken
        frames.taken = (0, 0)
        self._impl.bytes_received += size
        self._impl.frames_received += number

    def makeConnection(self, transport: Any) -> None:  # noqa: N802 -- Twisted's name
        """Start the handshake on *transport*."""
        impatient: Any = _ImpatientTransport(transport, self._impl._reactor)  # noqa: SLF001
        super().makeConnection(impatient)

    def connectionLost(self, reason: Any = connectionDone) -> None:  # noqa: N802 -- Twisted's name
        """Close everything that was on the connection."""
        # pika reports that TCP ended; why the broker, or pika itself, ended it is lost there.
        self.ending = self.ending or self._impl._error  # noqa: SLF001
        super().connectionLost(reason)

    def _block(self, *, blocked: bool) -> None:
        self.is_blocked = blocked

    def abort(self) -> None:
        """Drop the connection at once, without a word to the broker."""
        if self.transport is not None:
            self.transport.abortConnection()

    def _on_connection_failed(
        self, connection: pika.connection.Connection, error: Exception | None = None
    ) -> None:
        # pika's adapter tells its caller only how many attempts it made.
        self.ending = self.ending or error
        super()._on_connection_failed(connection, error)


class _ImpatientTransport:
    """A transport that is gone soon after it was told to close.

    ``loseConnection`` waits for written data, and under TLS for the peer's answer. From a peer
    that no longer answers -- pika closes the connection because heartbeats are missing -- none
    ever comes, and the connection would stay lost and unreplaced.
    """

    def __init__(self, transport: Any, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock

    def loseConnection(self) -> None:  # noqa: N802 -- Twisted's name
        self._transport.loseConnection()
        self._clock.callLater(CLOSE_TIMEOUT, self._transport.abortConnection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Factory(FedoraMessagingFactoryV2):
    """Makes the connections, one after the other, and reports each to *events*."""

    def __init__(
        self,
        parameters: pika.connection.Parameters,
        events: ConnectionEvents,
        clock: Clock,
    ) -> None:
        super().__init__(parameters, confirms=True)
        self.protocol = Client
        self.clock: Any = clock
        self._events = events
        self._error: object = None
        self._handshake_timer: Any = None

    def buildProtocol(self, _addr: Any) -> Any:  # noqa: N802 -- Twisted's name
        """Make the protocol of a new connection."""
        client = Client(self._parameters, confirms=self.confirms)
        client.factory = self
        assert client.ready is not None  # noqa: S101 -- pika clears it when the handshake ends
        client.ready.addCallback(self._opened)
        client.ready.addErrback(self._refused, client)
        self._handshake_timer = self.clock.callLater(HANDSHAKE_TIMEOUT, self._give_up, client)
        return client

    def clientConnectionFailed(  # noqa: N802 -- Twisted's name
        self, connector: Any, reason: Failure
    ) -> None:
        """Try again later: TCP, or TLS, found no broker."""
        self._error = reason.value
        super().clientConnectionFailed(connector, reason)  # type: ignore[no-untyped-call]

    def clientConnectionLost(  # noqa: N802 -- Twisted's name
        self, connector: Any, reason: Failure
    ) -> None:
        """Try again later: the connection is gone."""
        self._stop_handshake_timer()
        self._error = self._error or reason.value
        super().clientConnectionLost(connector, reason)  # type: ignore[no-untyped-call]
        if not self.continueTrying:
            self._report_loss(0)

    def retry(self, connector: Any | None = None) -> None:
        """Connect again after a delay that grows, is spread, and never exceeds 30 seconds."""
        connector = connector or self.connector
        if not self.continueTrying or connector is None:
            return
        self.retries += 1
        self.delay = backoff.delay(self.retries, random.random())  # noqa: S311 -- not a secret
        self._callID = self.clock.callLater(self.delay, self._connect_again, connector)
        self._report_loss(self.delay)

    def _connect_again(self, connector: Any) -> None:
        # stopTrying would cancel a call that has been made.
        self._callID = None
        connector.connect()

    def stop(self) -> None:
        """Make no further attempt."""
        self.stopTrying()  # type: ignore[no-untyped-call]

    def succeeded(self) -> None:
        """Let the next delay be a short one again: this connection was of use."""
        if self.continueTrying:
            self.resetDelay()  # type: ignore[no-untyped-call]

    def _report_loss(self, retry_in: float) -> None:
        error, self._error = self._error, None
        self._events.connection_lost(error, retry_in)

    def _opened(self, client: Client) -> None:
        self._stop_handshake_timer()
        self._client = client
        if client.closed is not None:
            client.closed.addBoth(self._note_reason, client)
        # Publishers wait for this one; upstream renews it for each connection.
        waiting, self._client_deferred = self._client_deferred, defer.Deferred()
        waiting.callback(client)
        self._events.connection_opened(client)

    def _refused(self, failure: Failure, client: Client) -> None:
        self._stop_handshake_timer()
        error = client.ending or failure.value or ConnectionError()
        self._error = error
        self._events.handshake_refused(error)

    def _note_reason(self, error: object, client: Client) -> None:
        self._error = client.ending or error

    def _give_up(self, client: Client) -> None:
        self._handshake_timer = None
        client.ending = TimeoutError(f"no answer to the handshake within {HANDSHAKE_TIMEOUT:.0f} s")
        client.abort()

    def _stop_handshake_timer(self) -> None:
        timer, self._handshake_timer = self._handshake_timer, None
        if timer is not None and timer.active():
            timer.cancel()


class Service(FedoraMessagingServiceV2):
    """fedora-messaging's service with our factory: URL, TLS and client properties are upstream's.

    Also what ``fedora_messaging.api`` publishes through in this process, and what the
    ``[monitoring]`` server asks.

    Args:
        events: Told of every connection.
        clock: Twisted's reactor, or a clock of a test's.
        snapshot: Returns the counts so far, for ``/ready``.
        consuming: Returns whether every queue is consumed from, for ``/ready``.

    Raises:
        fedora_messaging.exceptions.ConfigurationException: For TLS files that cannot be used.
    """

    def __init__(
        self,
        events: ConnectionEvents,
        clock: Clock,
        snapshot: Callable[[], Snapshot],
        consuming: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._is_consuming = consuming
        self.factory: Factory = Factory(self._parameters, events, clock)
        upstreams = self._service
        self.removeService(upstreams)  # type: ignore[no-untyped-call]
        others: dict[str, Any] = {"factory": self.factory}
        self._tls: TlsOptions | None = None
        if "contextFactory" in upstreams.kwargs:
            self._tls = TlsOptions(upstreams.kwargs["contextFactory"])
            others["contextFactory"] = self._tls
        self._service = type(upstreams)(*upstreams.args, **{**upstreams.kwargs, **others})
        self._service.setName("broker")  # type: ignore[no-untyped-call]
        self._service.setServiceParent(self)  # type: ignore[no-untyped-call]

    def prepare_tls(self) -> Callable[[], None]:
        """Read the files that fedora-messaging's configuration names now.

        Returns:
            What makes the next connection use them; it does nothing without TLS.

        Raises:
            ConfigurationError: They cannot be used.
        """
        return self._tls.prepare(self._parameters) if self._tls is not None else lambda: None

    @property
    def host(self) -> str:
        """Where the broker is, as ``HOST:PORT``; without user and password."""
        return f"{self._parameters.host}:{self._parameters.port}"

    @property
    def stats(self) -> FactoryStatistics:
        """The counts in upstream's form."""
        counts = self._snapshot()
        consumed = ConsumerStatistics(
            received=counts.received,
            processed=counts.acked,
            dropped=counts.rejected,
            rejected=counts.requeued,
            failed=counts.failed,
        )
        return FactoryStatistics(self.factory._stats.published, consumed)  # noqa: SLF001

    @property
    def consuming(self) -> bool:
        """Whether every queue is consumed from."""
        return self._is_consuming()
