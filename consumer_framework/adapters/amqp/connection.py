# SPDX-License-Identifier: GPL-2.0-or-later
"""Connects to the broker, and connects again, by way of fedora-messaging's Twisted service.

What is used of upstream here is not public (tests/unit/test_upstream_contract.py says what, and
fails first): its service knows the URL and TLS, its factory and protocol publish and declare.
What follows a connection -- upstream's factory re-registers consumers and loses what goes wrong
there -- is the session's.

TLS as fedora-messaging configures it, read again while the process runs.
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
from consumer_framework.core.limits import version_of

from . import faults
from .dialing import Dialer
from .frames import Frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

    from consumer_framework.core.stats import Snapshot
    from consumer_framework.settings import Address

_log = logging.getLogger(__name__)


class TlsOptions:
    """What TLS connections are made with: the files as they are when a connection begins.

    Args:
        parameters: The connections', as pika has them: whether the broker is shown a certificate
            is in there.
    """

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters
        # By host: what its latest connection was made with.
        self._latest: dict[str, Any] = {}

    def for_host(self, host: str) -> Any:
        """Return the options of a new connection to *host*, whose certificate must name it.

        Files that cannot be used, for they are being replaced, leave those of before in use.
        """
        try:
            fresh = _fresh(host)
            self._latest[host] = upstream._ssl_context_factory(fresh)  # noqa: SLF001
        except _UNUSABLE as error:
            if host not in self._latest:
                raise
            _log.warning("the files of [tls] cannot be used; those of before still are: %s", error)
        else:
            self._use(fresh)
        return self._latest[host]

    def prepare(self) -> Callable[[], None]:
        """Read the files that fedora-messaging's configuration names now.

        Returns:
            What makes the next connection use them.

        Raises:
            ConfigurationError: They cannot be used.
        """
        try:
            fresh = _fresh(self._parameters.host)
            upstream._ssl_context_factory(fresh)  # noqa: SLF001 -- nobody else reads [tls]
        except _UNUSABLE as error:
            what = f"the files cannot be used: {error}"
            raise ConfigurationError(Problem("tls", what, "name PEM files")) from error
        return lambda: self._use(fresh)

    def _use(self, fresh: Any) -> None:
        self._parameters.credentials = fresh.credentials
        self._parameters.ssl_options = fresh.ssl_options


_UNUSABLE = (OSError, ValueError, OpenSSLError, ConfigurationException)


def _fresh(host: str) -> Any:
    """Return parameters for *host* as the configuration, and the files, say now."""
    fresh: Any = pika.URLParameters(config.conf["amqp_url"])
    fresh.host = host
    upstream._configure_tls_parameters(fresh)  # noqa: SLF001 -- nobody else reads [tls]
    return fresh


# Seconds. Nothing upstream, nor in pika's Twisted adapter, bounds these two.
HANDSHAKE_TIMEOUT = 30.0
# The same where another address can be tried.
SHORT_HANDSHAKE_TIMEOUT = 10.0
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

    def connection_blocked(self, reason: str) -> None:
        """The broker has an alarm, and takes nothing from us; "" when that is over."""
        ...

    def handshake_refused(self, error: BaseException) -> None:
        """The broker was reached, and does not want us; :meth:`connection_lost` follows."""
        ...

    def handshake_broken(self) -> None:
        """It ended for another reason; :meth:`connection_lost` follows."""
        ...


class Channel(TwistedChannel):
    """One channel."""

    def _on_channel_closed(
        self, channel: pika.channel.Channel, reason: BaseException | None
    ) -> None:
        # Those that were canceled are still in there; pika would fail them once more, raise
        # AlreadyCalledError, and tell nobody that the channel is closed.
        self._calls = {call for call in self._calls if not call.called}
        waiting = self._deliveries.items()
        self._deliveries = {tag: one for tag, one in waiting if not one.called}
        super()._on_channel_closed(channel, reason)  # type: ignore[arg-type]


class Client(FedoraMessagingProtocolV2):
    """One connection."""

    # What ended the connection, as far as pika knew.
    ending: BaseException | None = None
    _first_octet = b""
    factory: Factory | None

    def __init__(self, parameters: pika.connection.Parameters, *, confirms: bool) -> None:
        super().__init__(parameters, confirms=confirms)
        # Bytes that came from the broker.
        self.arrived = 0
        self.frames = Frames(self._impl.data_received)
        self._impatient: _ImpatientTransport | None = None
        # The broker has an alarm, and reads nothing from us until that is over.
        self.is_blocked = False
        self._impl.add_on_connection_blocked_callback(lambda _, frame: self._block(frame))
        self._impl.add_on_connection_unblocked_callback(lambda *_: self._block(None))

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 -- Twisted's name
        """Take what came from the broker."""
        self._first_octet = self._first_octet or data[:1]
        self.arrived += len(data)
        # Counts for pika's heartbeats before a frame is whole: on a slow link one takes long.
        self._impl.bytes_received += len(data)
        frames = self.frames
        frames.feed(data)
        self._impl.frames_received += frames.taken[1]
        frames.taken = (0, 0)

    def makeConnection(self, transport: Any) -> None:  # noqa: N802 -- Twisted's name
        """Start the handshake on *transport*."""
        impatient: Any = _ImpatientTransport(transport, self._impl._reactor)  # noqa: SLF001
        self._impatient = impatient
        super().makeConnection(impatient)

    def connectionLost(self, reason: Any = connectionDone) -> None:  # noqa: N802 -- Twisted's name
        """Close everything that was on the connection."""
        # pika reports that TCP ended; why the broker, or pika itself, ended it is lost there.
        self.ending = self.ending or self._impl._error  # noqa: SLF001
        if self._impatient is not None:
            self._impatient.is_gone()
            self._impatient = None
        super().connectionLost(reason)

    def _block(self, frame: Any) -> None:
        """Note ``connection.blocked``; None for ``connection.unblocked``."""
        self.is_blocked = frame is not None
        reason = (frame.method.reason or "no reason given") if frame is not None else ""
        if self.factory is not None:
            self.factory.blocked(reason)

    def channel(self, channel_number: int | None = None) -> defer.Deferred[Channel]:
        """Open a channel."""
        opened: defer.Deferred[Any] = defer.Deferred()
        self._impl.channel(channel_number, opened.callback)
        self._calls.add(opened)
        opened.addCallback(self._clear_call, opened)
        return opened.addCallback(Channel)

    def _on_connection_closed(
        self, connection: pika.connection.Connection, exception: Exception
    ) -> None:
        # As for a channel's calls.
        self._calls = {call for call in self._calls if not call.called}
        super()._on_connection_closed(connection, exception)

    @property
    def is_other_protocol(self) -> bool:
        """Whether what came is no AMQP 0-9-1, which begins with a method's frame."""
        return self._first_octet not in {b"", b"\x01"}

    @property
    def may_hang_up(self) -> bool:
        """Whether a broker that has begun the handshake ends the connection to refuse a login.

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
        return version_of(told.decode(errors="replace") if isinstance(told, bytes) else str(told))

    def abort(self) -> None:
        """Drop the connection at once, without a word to the broker."""
        if self._impatient is not None:
            self._impatient.abortConnection()

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


class Factory(FedoraMessagingFactoryV2):
    """Makes the connections, one after the other, and reports each to *events*."""

    def __init__(
        self,
        parameters: pika.connection.Parameters,
        events: ConnectionEvents,
        clock: Clock,
        hosts: Sequence[Address],
        tls: TlsOptions | None,
    ) -> None:
        super().__init__(parameters, confirms=True)
        self.protocol = Client
        self.clock: Any = clock
        tls_for = tls.for_host if tls is not None else None
        self.dialer = Dialer(hosts, self, clock, tls_for)
        # What was of use before is tried from the first host on.
        self._was_of_use = False
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
        if self._was_of_use:
            self._was_of_use = False
            self.dialer.begin_anew()
        if self.dialer.has_another:
            self.delay = 0.0
        else:
            self.retries += 1
            self.delay = limits.delay(self.retries, random.random())  # noqa: S311 -- not a secret
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
        """Let the next delay be a short one again: this connection was of use."""
        self._was_of_use = True
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


class Service(FedoraMessagingServiceV2):
    """fedora-messaging's service with our factory: URL, TLS and client properties are upstream's.

    Also what ``fedora_messaging.api`` publishes through in this process, and what the
    ``[monitoring]`` server asks.

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
        clock: Clock,
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
            What makes the next connection use them; it does nothing without TLS.

        Raises:
            ConfigurationError: They cannot be used.
        """
        return self._tls.prepare() if self._tls is not None else lambda: None

    @property
    def host(self) -> str:
        """Where the latest broker is, as ``HOST:PORT``; without user and password."""
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
        """Whether every queue is consumed from."""
        return self._is_consuming()
