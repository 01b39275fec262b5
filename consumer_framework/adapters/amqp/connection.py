# SPDX-License-Identifier: GPL-2.0-or-later
"""Connects to a broker, and connects again, by way of fedora-messaging's Twisted service.

There is one connection at a time. :class:`Service` has a :class:`Factory`, whose :class:`Dialer`
reaches one address after the other, of one host after the other. A host has the addresses that
``getaddrinfo`` gives, IPv6 and IPv4, in its order. An address that fails before the AMQP handshake
is through is followed by the next one at once. Only after the last one of all hosts comes a delay,
and then the first host again, whose name is looked up anew. A connection that was of use and is
lost is followed by one to the first host, too.

Upstream's service knows the URL and TLS; its factory and protocol publish and declare. These
classes are not public: tests/unit/test_upstream_contract.py lists the parts that are used here, and
fails first. Consumers are the session's, for upstream's factory registers them again after a
reconnect and loses the errors of that.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import pika
import pika.channel
import pika.connection
from fedora_messaging import config
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.twisted import service as upstream
from fedora_messaging.twisted.factory import FedoraMessagingFactoryV2
from fedora_messaging.twisted.protocol import FedoraMessagingProtocolV2
from fedora_messaging.twisted.service import FedoraMessagingServiceV2
from fedora_messaging.twisted.stats import ConsumerStatistics, FactoryStatistics
from OpenSSL.SSL import Error as OpenSSLError
from pika.adapters.twisted_connection import TwistedChannel
from pika.exceptions import IncompatibleProtocolError
from twisted.internet import defer
from twisted.internet.protocol import connectionDone

from consumer_framework.core import limits
from consumer_framework.core.errors import ConfigurationError, Problem

from . import faults
from .dialer import Dialer
from .frames import Frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

    from consumer_framework.core.stats import Snapshot
    from consumer_framework.settings import Address

_log = logging.getLogger(__name__)

# Seconds. Nothing upstream, nor in pika's Twisted adapter, bounds the handshake and the close.
HANDSHAKE_TIMEOUT = 30.0
CLOSE_TIMEOUT = 5.0
# The same where another address can be tried.
SHORT_HANDSHAKE_TIMEOUT = 10.0

# Twisted's zope interfaces (IReactorTime, IConnector) mean nothing to a type checker.
ReactorClock: TypeAlias = Any


class ConnectionEvents(Protocol):
    """Gets news of the connection."""

    def connection_opened(self, client: Client) -> None:
        """Take note that the AMQP handshake is complete."""
        ...

    def connection_lost(self, error: object, retry_in: float) -> None:
        """Take note that *error* ended the connection; the next attempt is in *retry_in* s."""
        ...

    def connection_blocked(self, reason: str) -> None:
        """Take note of the broker's alarm: it takes nothing from us; "" when that is over."""
        ...

    def handshake_refused(self, error: BaseException) -> None:
        """Take note that a broker does not want us; :meth:`connection_lost` follows."""
        ...

    def handshake_broken(self) -> None:
        """Take note that a handshake ended otherwise; :meth:`connection_lost` follows."""
        ...


class Service(FedoraMessagingServiceV2):
    """fedora-messaging's service with our factory: URL, TLS and client properties are upstream's.

    ``fedora_messaging.api`` publishes through it in this process, and the ``[monitoring]`` server
    asks it.

    Args:
        events: Told of every connection.
        clock: Twisted's reactor, or a clock of a test's.
        hosts: Where brokers are, in the order to try them.
        snapshot: Returns the counts so far, for ``/ready``.
        consuming: Returns whether every queue is consumed from, for ``/ready``.

    Raises:
        fedora_messaging.exceptions.ConfigurationException: For TLS files that cannot be used.
    """

    def __init__(
        self,
        events: ConnectionEvents,
        clock: ReactorClock,
        hosts: Sequence[Address],
        snapshot: Callable[[], Snapshot],
        consuming: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._is_consuming = consuming
        upstreams = self._service
        self.removeService(upstreams)  # type: ignore[no-untyped-call]
        self._tls: TlsOptions | None = None
        if self._parameters.ssl_options is not None:
            self._tls = TlsOptions(self._parameters)
        self.factory: Factory = Factory(self._parameters, events, clock, hosts, self._tls)
        self.factory.dialer.setName("broker")  # type: ignore[no-untyped-call]
        self.factory.dialer.setServiceParent(self)  # type: ignore[no-untyped-call]

    def prepare_tls(self) -> Callable[[], None]:
        """Read the files that fedora-messaging's configuration names now.

        Returns:
            A function that lets the next connection use them; without TLS it does nothing.

        Raises:
            ConfigurationError: They cannot be used.
        """
        return self._tls.prepare() if self._tls is not None else lambda: None

    @property
    def host(self) -> str:
        """The latest broker as ``HOST:PORT``, without user and password."""
        return self.factory.dialer.text

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
        """True while every queue is consumed from."""
        return self._is_consuming()


class Factory(FedoraMessagingFactoryV2):
    """Makes the connections, one after the other, and reports each to *events*."""

    def __init__(
        self,
        parameters: pika.connection.Parameters,
        events: ConnectionEvents,
        clock: ReactorClock,
        hosts: Sequence[Address],
        tls: TlsOptions | None,
    ) -> None:
        super().__init__(parameters, confirms=True)
        self.protocol = Client
        self.clock: Any = clock
        tls_for = tls.for_host if tls is not None else None
        self.dialer = Dialer(hosts, self, clock, tls_for)
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
        seconds = SHORT_HANDSHAKE_TIMEOUT if self.dialer.has_another else HANDSHAKE_TIMEOUT
        self._handshake_timer = self.clock.callLater(seconds, self._give_up, client, seconds)
        return client

    def unreachable(self, error: Exception) -> None:
        """Try again later, or elsewhere: there is no address."""
        self._error = error
        self.retry()

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

    def retry(self, connector: Any | None = None) -> None:  # noqa: ARG002 -- Twisted's argument
        """Connect to the next address, or after a delay to the first one again.

        The delay grows, is spread, and never exceeds 30 seconds.
        """
        if not self.continueTrying:
            return
        if self.dialer.has_another:
            self.delay = 0.0
        else:
            self.retries += 1
            self.delay = limits.backoff_delay(self.retries, random.random())  # noqa: S311 -- not a secret
        self._callID = self.clock.callLater(self.delay, self._dial)
        self._report_loss(self.delay)

    def _dial(self) -> None:
        # stopTrying would cancel a call that has been made.
        self._callID = None
        self.dialer.dial()

    def stop(self) -> None:
        """Make no further attempt."""
        self.stopTrying()  # type: ignore[no-untyped-call]

    def succeeded(self) -> None:
        """Let the next attempt come soon, at the first host: this connection was of use."""
        self.dialer.begin_anew()
        if self.continueTrying:
            self.resetDelay()  # type: ignore[no-untyped-call]

    def blocked(self, reason: str) -> None:
        """Pass on that the broker takes nothing from us; "" when that is over."""
        self._events.connection_blocked(reason)

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
        if client.is_other_protocol:
            error = IncompatibleProtocolError()
        error = faults.handshake_error(error, may_hang_up=client.may_hang_up)
        self._error = error
        if faults.is_refusal(error):
            self._events.handshake_refused(error)
        else:
            self._events.handshake_broken()

    def _note_reason(self, error: object, client: Client) -> None:
        self._error = client.ending or error

    def _give_up(self, client: Client, seconds: float) -> None:
        self._handshake_timer = None
        client.ending = TimeoutError(f"no answer to the handshake within {seconds:.0f} s")
        client.abort()

    def _stop_handshake_timer(self) -> None:
        timer, self._handshake_timer = self._handshake_timer, None
        if timer is not None and timer.active():
            timer.cancel()


class Client(FedoraMessagingProtocolV2):
    """One connection.

    Attributes:
        arrived: How many bytes came from the broker.
        frames: Reads deliveries out of them.
        is_blocked: Whether the broker has an alarm, and reads nothing from us.
        ending: The reason for the end of the connection, as far as pika knew it.
    """

    ending: BaseException | None = None
    _first_octet = b""
    factory: Factory | None

    def __init__(self, parameters: pika.connection.Parameters, *, confirms: bool) -> None:
        super().__init__(parameters, confirms=confirms)
        self.arrived = 0
        self.frames = Frames(self._impl.data_received)
        self._own_transport: _AbortingTransport | None = None
        self.is_blocked = False
        self._impl.add_on_connection_blocked_callback(lambda _, frame: self._block(frame))
        self._impl.add_on_connection_unblocked_callback(lambda *_: self._block(None))

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 -- Twisted's name
        """Take bytes from the broker."""
        self._first_octet = self._first_octet or data[:1]
        self.arrived += len(data)
        # Counts for pika's heartbeats before a frame is whole: on a slow link one takes long.
        self._impl.bytes_received += len(data)
        frames = self.frames
        frames.feed(data)
        self._impl.frames_received += frames.taken
        frames.taken = 0

    def makeConnection(self, transport: Any) -> None:  # noqa: N802 -- Twisted's name
        """Start the handshake on *transport*."""
        aborting: Any = _AbortingTransport(transport, self._impl._reactor)  # noqa: SLF001
        self._own_transport = aborting
        super().makeConnection(aborting)

    def connectionLost(self, reason: Any = connectionDone) -> None:  # noqa: N802 -- Twisted's name
        """Close everything that was on the connection."""
        # pika reports that TCP ended; why the broker, or pika itself, ended it is lost there.
        self.ending = self.ending or self._impl._error  # noqa: SLF001
        if self._own_transport is not None:
            self._own_transport.is_gone()
            self._own_transport = None
        super().connectionLost(reason)

    def abort(self) -> None:
        """Drop the connection at once, without a word to the broker."""
        if self._own_transport is not None:
            self._own_transport.abortConnection()

    def channel(self, channel_number: int | None = None) -> defer.Deferred[TolerantChannel]:
        """Open a channel."""
        opened: defer.Deferred[Any] = defer.Deferred()
        self._impl.channel(channel_number, opened.callback)
        self._calls.add(opened)
        opened.addCallback(self._clear_call, opened)
        return opened.addCallback(TolerantChannel)

    @property
    def is_other_protocol(self) -> bool:
        """True if the peer speaks no AMQP 0-9-1, which begins with a method's frame."""
        return self._first_octet not in {b"", b"\x01"}

    @property
    def may_hang_up(self) -> bool:
        """True if a broker that has begun the handshake ends the connection to refuse a login.

        AMQP 0-9-1 has no other way. RabbitMQ since 3.2 closes it with a reason instead, and says
        so: its capability ``authentication_failure_close``.
        """
        capabilities: Any = self._impl.server_capabilities or {}
        has_begun = self._impl.server_properties is not None
        return has_begun and not capabilities.get("authentication_failure_close")

    @property
    def broker_version(self) -> tuple[int, ...] | None:
        """The broker's version, None where it is none that is a number."""
        properties: Any = self._impl.server_properties or {}
        told = properties.get("version", "")
        text = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        return limits.broker_version(text)

    def _block(self, frame: Any) -> None:
        """Note ``connection.blocked``; None for ``connection.unblocked``."""
        self.is_blocked = frame is not None
        reason = (frame.method.reason or "no reason given") if frame is not None else ""
        if self.factory is not None:
            self.factory.blocked(reason)

    def _on_connection_closed(
        self, connection: pika.connection.Connection, exception: Exception
    ) -> None:
        # As for the calls of a TolerantChannel.
        self._calls = {call for call in self._calls if not call.called}
        super()._on_connection_closed(connection, exception)

    def _on_connection_failed(
        self, connection: pika.connection.Connection, error: Exception | None = None
    ) -> None:
        # pika's adapter tells its caller only how many attempts it made.
        self.ending = self.ending or error
        super()._on_connection_failed(connection, error)


class TolerantChannel(TwistedChannel):
    """A channel that can close while it waits for the answers of canceled calls."""

    def _on_channel_closed(
        self, channel: pika.channel.Channel, reason: BaseException | None
    ) -> None:
        # Calls that were canceled are still in there; pika would fail them once more, raise
        # AlreadyCalledError, and tell nobody that the channel is closed.
        self._calls = {call for call in self._calls if not call.called}
        waiting = self._deliveries.items()
        self._deliveries = {tag: one for tag, one in waiting if not one.called}
        super()._on_channel_closed(channel, reason)  # type: ignore[arg-type]


class _AbortingTransport:
    """A transport that is gone soon after it was told to close.

    ``loseConnection`` waits for written data, and under TLS for the peer's answer. From a peer
    that no longer answers -- pika closes the connection because heartbeats are missing -- none
    ever comes, and the connection would stay lost and unreplaced.
    """

    def __init__(self, transport: Any, clock: ReactorClock) -> None:
        self._transport = transport
        self._clock = clock
        self._timer: Any = None

    def loseConnection(self) -> None:  # noqa: N802 -- Twisted's name
        self._transport.loseConnection()
        if self._timer is None:
            self._timer = self._clock.callLater(CLOSE_TIMEOUT, self._transport.abortConnection)

    def is_gone(self) -> None:
        """Abort it no more: TLS has nothing left then that could be aborted."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


_UNUSABLE = (OSError, ValueError, OpenSSLError, ConfigurationException)


class TlsOptions:
    """Reads the files of ``[tls]`` anew for each connection.

    Args:
        parameters: Pika's parameters of all connections; their credentials follow the files, for
            with a client certificate the login is EXTERNAL.
    """

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters
        # By host: the options of its latest connection.
        self._latest: dict[str, Any] = {}

    def for_host(self, host: str) -> Any:
        """Return the options of a new connection to *host*, whose certificate must name it.

        Files that cannot be used, for they are being replaced, leave the options of before in use.
        """
        try:
            current = _tls_parameters(host)
            self._latest[host] = upstream._ssl_context_factory(current)  # noqa: SLF001
        except _UNUSABLE as error:
            if host not in self._latest:
                raise
            _log.warning("the files of [tls] cannot be used; those of before still are: %s", error)
        else:
            self._use(current)
        return self._latest[host]

    def prepare(self) -> Callable[[], None]:
        """Read the files that fedora-messaging's configuration names now.

        Returns:
            A function that lets the next connection use them.

        Raises:
            ConfigurationError: They cannot be used.
        """
        try:
            current = _tls_parameters(self._parameters.host)
            upstream._ssl_context_factory(current)  # noqa: SLF001 -- nobody else reads [tls]
        except _UNUSABLE as error:
            text = f"the files cannot be used: {error}"
            raise ConfigurationError(Problem("tls", text, "name PEM files")) from error
        return lambda: self._use(current)

    def _use(self, current: Any) -> None:
        self._parameters.credentials = current.credentials
        self._parameters.ssl_options = current.ssl_options


def _tls_parameters(host: str) -> Any:
    """Return parameters for *host* from the configuration and the files as they are now."""
    parameters: Any = pika.URLParameters(config.conf["amqp_url"])
    parameters.host = host
    upstream._configure_tls_parameters(parameters)  # noqa: SLF001 -- nobody else reads [tls]
    return parameters
