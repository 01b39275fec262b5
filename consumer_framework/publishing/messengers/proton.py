# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger ``proton``: AMQP 1.0 by Qpid Proton, for brokers that an application reaches by it.

RabbitMQ turns a message of AMQP 1.0 into one of AMQP 0-9-1, and each major version does so in its
own way. The product and the version are properties of the connection; addresses and features
follow from them. Measured with RabbitMQ 3.10.8 (plugin ``rabbitmq_amqp1_0``) and 4.0.5:

==================================  ==================  ======================================
the messenger keeps, or tells       RabbitMQ 3.10       RabbitMQ 4.0
==================================  ==================  ======================================
address                             v1: the exchange,   v2: ``/exchanges/EXCHANGE/TOPIC``,
                                    the topic as        percent-encoded, on one link without
                                    ``subject``         a target
topic, body, message id             yes                 yes
persistence                         yes                 yes
message class                       no                  yes
severity INFO                       yes                 yes
another severity                    no                  yes
headers: texts, whole numbers, true no                  yes; a fraction would be cut
priority                            yes                 yes
confirms (dispositions)             yes                 yes
unroutable is told                  no (accepted)       yes (released)
largest message                     128 MiB             16 MiB, told when the link opens
a missing exchange is told          yes, the session    yes, for the message
                                    ends
an exchange that is forbidden       the session ends    the session ends
a full queue                        no answer at all    rejected
a memory alarm                      is not heeded       holds the messages without a word
a wrong password                    after 3 seconds     after 3 seconds
closing a link                      no answer           yes
==================================  ==================  ======================================

With RabbitMQ 3.10 a message has no headers but ``x-amqp-1.0-properties``; fedora-messaging then
writes an error to its log, and assumes the base class and INFO. Messages that need more are refused
unless ``lossy = true``. Links are not closed, but the connection.

Other brokers, such as ActiveMQ and Artemis, keep all properties for consumers of AMQP 1.0. Their
addresses here are ``topic://TOPIC`` for ActiveMQ and ``TOPIC`` for the rest. Released means there
that the message was not taken.

If a broker sends its heartbeats and no dispositions, it is alive and takes no messages at present,
as in a memory alarm: the messages are not sent twice. With RabbitMQ 3.10 the same means that the
session has died of a message that a full queue refused; see :mod:`.sessions`.

``BlockingConnection`` of Proton sees no end of a session, waits for the answer to each message, and
does not fail over from a dead first URL to the next. So this module handles the events of Proton
itself, and :mod:`.failover` tries the endpoints. Proton runs only while a batch is sent: an idle
connection is made again before its broker gives it up.
"""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from proton import (
    Delivery,
    Handler,
    Message,
    ProtonException,
    SSLDomain,
    SSLUnavailable,
    symbol,
)
from proton.reactor import Container

from consumer_framework.core.errors import ConfigurationError, Problem

from . import EVERYTHING, Endpoints, Feature, Reject, Retry, Scope, Sent
from .failover import BlockedError, Failover, host_of
from .sessions import EndedError, Pending, RetryingLink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Result

_log = logging.getLogger(__name__)
_RABBITMQ_3 = frozenset({Feature.PRIORITY, Feature.CONFIRMS})
_OTHERS = EVERYTHING - {Feature.ROUTED}
_PORTS = {"amqp": 5672, "amqps": 5671}
# Messages between two looks at the network.
_STRIDE = 20
# The most links to different addresses, for a broker that takes one address for each link.
_LINKS = 64
_GOODBYE = 2.0
# The fewest seconds for heartbeats. RabbitMQ 4 gives no answer to a wish for one second.
_HEARTBEAT = 4.0
# Seconds without use after which a connection is made again; RabbitMQ gives it up after a minute.
_IDLE = 30.0
_SILENT = "the broker does not answer to this message: is a queue full?"
# The header section (AMQP 1.0, section 3.2.1) of default values, as Proton writes it.
_NO_HEADER = b"\x00\x53\x70\x45"
# Conditions of the broker, and the scope of the fault; None if it never takes the message.
_FAULTS: dict[str, Scope | None] = {
    "amqp:not-found": Scope.TOPIC,
    "amqp:unauthorized-access": Scope.TOPIC,
    "amqp:precondition-failed": None,
    "amqp:invalid-field": None,
    "amqp:not-allowed": None,
    "amqp:link:message-size-exceeded": None,
}


class Proton(Failover):
    """Sends by AMQP 1.0.

    Args:
        endpoints: URLs ``amqp://USER:PASSWORD@HOST:5672`` or ``amqps``. A path is RabbitMQ's
            virtual host. With a certificate and a key, a TLS connection authenticates with them
            (SASL EXTERNAL), whatever the URL says.
        address: The address of a message; ``{exchange}`` and ``{topic}`` in it are replaced. "" is
            the usual one of the broker.

    Raises:
        ConfigurationError: A URL or the address is invalid.
    """

    def __init__(self, endpoints: Endpoints, address: str = "") -> None:
        super().__init__(endpoints)
        for url in endpoints.urls:
            _check_url(url)
        if address and "{topic}" not in address:
            path = "consumer_config.framework.outbox.options.address"
            what = f'"{address}" has no {{topic}}'
            raise ConfigurationError(Problem(path, what, 'write it as "topic://{topic}"'))
        self._address = address
        self._features = _RABBITMQ_3

    @property
    def features(self) -> frozenset[Feature]:
        """The properties of a message that the present broker keeps; RabbitMQ 3 keeps least."""
        return self._features if self.is_connected else _RABBITMQ_3

    def connect(self, url: str) -> RetryingLink:
        """Connect to the broker at *url*."""

        def connect() -> _Session:
            made = _Session(url, self.endpoints, self._address)
            self._features = made.broker.features
            return made

        return RetryingLink(connect, _FAULTS, frozenset({"amqp:not-found"}))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in _PORTS and parts.port != 0 and parts.hostname
        why = "" if is_right else "its scheme is not amqp or amqps, or it has no host"
    except ValueError as error:
        why = str(error)
    if why:
        path = "consumer_config.framework.outbox.endpoints"
        what = f"the URL of {host_of(url)} is invalid: {why}"
        raise ConfigurationError(Problem(path, what, "write it as amqps://USER@HOST:5671"))


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The address of a message.

    Attributes:
        target: The address of the link; None for a link to any address.
        to: The address of the message.
        subject: The subject of the message.
    """

    target: str | None
    to: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class _Broker:
    """The addresses and the answers of a broker.

    Attributes:
        relays: True if one link may carry messages for any address.
        pattern: The address with its placeholders; "" for the usual one.
    """

    product: str
    version: str
    relays: bool
    pattern: str

    @property
    def is_rabbitmq_3(self) -> bool:
        return self.product == "RabbitMQ" and self.version.startswith("3.")

    @property
    def is_rabbitmq_4(self) -> bool:
        return self.product == "RabbitMQ" and not self.is_rabbitmq_3

    @property
    def features(self) -> frozenset[Feature]:
        if self.product != "RabbitMQ":
            return _OTHERS
        return _RABBITMQ_3 if self.is_rabbitmq_3 else EVERYTHING

    def envelope(self, message: Outgoing) -> _Envelope:
        """Return the address of *message*.

        Raises:
            ValueError: The broker has none for it.
        """
        exchange, topic = message.exchange, message.topic
        if self.pattern or self.product != "RabbitMQ":
            pattern = self.pattern or (
                "topic://{topic}" if "ActiveMQ" in self.product else "{topic}"
            )
            address = pattern.replace("{exchange}", exchange).replace("{topic}", topic)
            return _Envelope(None, address) if self.relays else _Envelope(address)
        if not exchange:
            raise ValueError("it is for the default exchange")
        if self.is_rabbitmq_4:
            return _Envelope(None, f"/exchanges/{quote(exchange, '')}/{quote(topic, '')}")
        if "/" in exchange:
            raise ValueError(f'the exchange "{exchange}" has a slash')
        return _Envelope(f"/exchange/{exchange}", subject=topic)

    def result(self, delivery: Any) -> Result:
        """Return the fate of a message from the broker's disposition."""
        state, condition = delivery.remote_state, delivery.remote.condition
        if state == Delivery.ACCEPTED:
            return Sent(routed=True if self.is_rabbitmq_4 else None)
        if state == Delivery.RELEASED and self.is_rabbitmq_4:
            return Sent(routed=False)
        if condition is not None:
            scope = _FAULTS.get(condition.name, Scope.MESSAGE)
            told = f"the broker refused it: {condition.description or condition.name}"
            return Reject(told) if scope is None else Retry(told, scope)
        return Retry(f"the broker refused it ({state}): is a queue full?", Scope.MESSAGE)

    def encoded(self, message: Outgoing, envelope: _Envelope) -> bytes:
        """Return *message* in AMQP 1.0.

        Raises:
            ValueError: AMQP, or the broker, cannot carry it.
        """
        made = Message(body=message.body, inferred=True, id=message.id)
        made.content_type, made.content_encoding = symbol("application/json"), symbol("utf-8")
        if envelope.to is not None:
            made.address = envelope.to
        if envelope.subject is not None:
            made.subject = envelope.subject
        if not self.is_rabbitmq_3:
            made.properties = _properties_of(message)  # type: ignore[assignment,unused-ignore]
        try:
            encoded = bytes(made.encode())
        except (ProtonException, ValueError, TypeError, OverflowError) as error:
            raise ValueError(str(error) or type(error).__name__) from error
        if not encoded.startswith(_NO_HEADER):
            raise ValueError("Proton has written an unknown header section")
        # Proton leaves out the priority 4, the default of AMQP 1.0; AMQP 0-9-1 has no default.
        return _header_of(message) + encoded[len(_NO_HEADER) :]


def _properties_of(message: Outgoing) -> dict[str, Any]:
    for name, value in message.headers.items():
        if not isinstance(value, (str, int)):
            raise ValueError(f'the header "{name}" is neither a text nor a whole number')  # noqa: TRY004
    return dict(message.headers)


def _header_of(message: Outgoing) -> bytes:
    durable = b"\x41"
    if message.priority is None:
        return b"\x00\x53\x70\xc0\x02\x01" + durable
    return b"\x00\x53\x70\xc0\x04\x02" + durable + b"\x50" + bytes([message.priority])


def _has_credit(link: Any) -> bool:
    return bool(link.credit > 0)


class _Session(Handler):  # type: ignore[misc,unused-ignore]
    """A connection with one session, and the links that its messages need."""

    def __init__(self, url: str, endpoints: Endpoints, pattern: str) -> None:
        self._timeout = endpoints.timeout
        self._end: EndedError | None = None
        self._is_open = self._is_closed = self._is_gone = False
        self._links: dict[str | None, Any] = {}
        self._frames = 0
        self._heard = self._used = time.monotonic()
        self._tag = 0
        self.pending = Pending()
        self.broker = _Broker("", "", relays=False, pattern=pattern)
        self._connection: Any = None
        self._container = Container()
        self._container.start()
        try:
            self._connection = self._container.connect(handler=self, **_arguments(url, endpoints))
            self._wait(lambda: self._is_open)
            self.broker = _broker_of(self._connection, pattern)
        except EndedError as error:
            self.close()
            raise ConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise

    @property
    def is_ended(self) -> bool:
        return self._end is not None or time.monotonic() - self._used > min(_IDLE, self._timeout)

    def pipeline(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Send *batch*, and wait for the dispositions; see :class:`.sessions.Session`.

        Raises:
            BlockedError: The broker sends heartbeats and no dispositions.
        """
        for position, (number, message) in enumerate(self.pending.begin(batch, fates), 1):
            try:
                envelope = self.broker.envelope(message)
                encoded = self.broker.encoded(message, envelope)
            except ValueError as error:
                fates[number] = Reject(f"AMQP 1.0 cannot carry it: {error}")
                continue
            link = self._link_to(envelope.target)
            if 0 < link.remote_max_message_size < len(encoded):
                most = link.remote_max_message_size
                fates[number] = Reject(f"it has {len(encoded)} bytes; the broker takes {most}")
                continue
            self._wait(partial(_has_credit, link))
            self._tag += 1
            self.pending.add(str(self._tag), number, message)
            link.delivery(str(self._tag))
            link.stream(encoded)
            link.advance()
            if position % _STRIDE == 0:
                self._process(0.0)
        self._wait(lambda: not self.pending)

    def _link_to(self, address: str | None) -> Any:
        if (link := self._links.get(address)) is None:
            if len(self._links) >= _LINKS:
                self._wait(lambda: not self.pending)
                self._links.pop(next(iter(self._links))).close()
            link = self._links[address] = self._container.create_sender(self._connection, address)
            self._wait(lambda: bool(link.state & link.REMOTE_ACTIVE))
        return link

    # The events

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Handle events until *is_done*.

        Raises:
            EndedError: The broker ended the session.
            ConnectionError: Nothing moved for the timeout.
            BlockedError: The same, and the broker sends heartbeats.
        """
        count, began = len(self.pending), time.monotonic()
        while not is_done():
            if self._end is not None:
                raise self._end
            if (now := len(self.pending)) != count:
                count, began = now, time.monotonic()
            if (left := began + self._timeout - time.monotonic()) <= 0:
                raise self._silence(began)
            self._process(left)

    def _process(self, seconds: float) -> None:
        self._container.timeout = seconds
        self._container.process()
        self._used = time.monotonic()
        transport = self._connection.transport
        if transport is not None and transport.frames_input != self._frames:
            self._frames, self._heard = transport.frames_input, self._used

    def _silence(self, began: float) -> Exception:
        if not self._is_open or self._heard < began + self._timeout / 4:
            return ConnectionError(f"no answer within {self._timeout:g} seconds")
        if self.broker.is_rabbitmq_3:
            return EndedError("", _SILENT)
        return BlockedError("the broker is alive, but takes no messages: is its memory short?")

    def _note_end(self, condition: Any, otherwise: str) -> None:
        if self._end is None:
            word = condition.name if condition else ""
            text = (condition.description or word) if condition else otherwise
            self._end = EndedError(word, text)

    def on_connection_remote_open(self, _event: Any) -> None:
        self._is_open = True

    def on_delivery(self, event: Any) -> None:
        delivery = event.delivery
        if delivery.remote_state or delivery.settled:
            self.pending.settle(delivery.tag, self.broker.result(delivery))
            delivery.settle()

    def on_link_remote_close(self, event: Any) -> None:
        self._note_end(event.link.remote_condition, "the broker closed the link")

    def on_session_remote_close(self, event: Any) -> None:
        self._note_end(event.session.remote_condition, "the broker ended the session")

    def on_connection_remote_close(self, event: Any) -> None:
        self._note_end(event.connection.remote_condition, "the broker closed the connection")
        self._is_gone = True

    def on_transport_error(self, event: Any) -> None:
        self._note_end(event.transport.condition, "the connection broke")

    def on_transport_closed(self, _event: Any) -> None:
        self._note_end(None, "the broker closed the connection")
        self._is_gone = True

    # The end

    def close(self) -> None:
        """Close the connection; say goodbye to a broker that answers."""
        if self._is_closed:
            return
        self._is_closed = True
        patience = _GOODBYE if self._is_open and self._end is None and not self.pending else 0.0
        self.pending.forget()
        try:
            self._tear_down(patience)
        except (ProtonException, OSError):
            _log.debug("a connection could not be closed in order", exc_info=True)

    def _tear_down(self, patience: float) -> None:
        if self._connection is not None:
            self._say_goodbye(patience)
            if (transport := self._connection.transport) is not None:
                # As if the broker had closed it: the socket goes with the transport.
                transport.close_tail()
                transport.close_head()
            self._connection.free()
        self._container.timeout = 0.0
        until = time.monotonic() + _GOODBYE
        while self._container.process() and time.monotonic() < until:
            pass
        self._container.stop()
        self._container.process()

    def _say_goodbye(self, patience: float) -> None:
        self._connection.close()
        until = time.monotonic() + min(patience, self._timeout)
        self._process(0.0)
        while not self._is_gone and (left := until - time.monotonic()) > 0:
            self._process(left)


def _broker_of(connection: Any, pattern: str) -> _Broker:
    properties = {str(k): str(v) for k, v in (connection.remote_properties or {}).items()}
    offered = {str(one) for one in connection.remote_offered_capabilities or ()}
    product, version = properties.get("product", "unknown"), properties.get("version", "")
    return _Broker(product, version, relays="ANONYMOUS-RELAY" in offered, pattern=pattern)


def _arguments(url: str, endpoints: Endpoints) -> dict[str, Any]:
    """Return the arguments of Container.connect(). Proton logs URLs, so the URL has no password."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    made: dict[str, Any] = {
        "url": f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}",
        "reconnect": False,
        # The broker is to send something four times in this time; Proton gives up after it.
        "heartbeat": max(_HEARTBEAT, 1.5 * endpoints.timeout),
        "allowed_mechs": "PLAIN" if parts.username else "PLAIN ANONYMOUS",
        "user": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "properties": {k: v for k, v in endpoints.client_properties.items() if isinstance(v, str)},
        "sni": host,
    }
    if vhost := unquote(parts.path[1:]):
        made["virtual_host"] = f"vhost:{vhost}"
    if parts.scheme == "amqps":
        made["ssl_domain"] = _tls(endpoints)
        if endpoints.certfile and endpoints.keyfile:
            made["allowed_mechs"] = "EXTERNAL"
    return made


def _tls(endpoints: Endpoints) -> Any:
    paths = ssl.get_default_verify_paths()
    trusted = endpoints.ca_cert or paths.cafile or paths.capath or ""
    for name in (endpoints.ca_cert, endpoints.certfile, endpoints.keyfile):
        if name:
            Path(name).read_bytes()  # Proton does not tell the cause
    try:
        domain = SSLDomain(SSLDomain.MODE_CLIENT)
        domain.set_trusted_ca_db(trusted)
        domain.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME, trusted)
        if endpoints.certfile and endpoints.keyfile:
            domain.set_credentials(endpoints.certfile, endpoints.keyfile, None)
    except SSLUnavailable:
        cure = "install libssl-dev and pkg-config, and install python-qpid-proton again"
        raise ConnectionError(f"Proton was built without TLS: {cure}") from None
    except ProtonException as error:
        raise ConnectionError(f"a certificate or key is damaged: {error}") from error
    return domain
