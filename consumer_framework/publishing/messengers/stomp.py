# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger ``stomp``: STOMP 1.2 by stomp.py, for brokers that an application reaches by STOMP.

A batch is written without waiting. Each message has a ``receipt`` header; RabbitMQ answers it when
it has confirmed the message, ActiveMQ when it has stored it. So ``Sent`` means the same as with
AMQP, but no broker tells that no queue got a message.

STOMP carries headers as texts. A consumer of fedora-messaging takes a severity only as a number.
So this messenger leaves the severity INFO out, since a consumer assumes INFO, and any other
severity is refused unless ``lossy = true``. Measured with RabbitMQ 3.10.8 and 4.0.5, and ActiveMQ
5.17.2:

==================================  =============  ============  ==========
the messenger keeps                 RabbitMQ 3.10  RabbitMQ 4.0  ActiveMQ
==================================  =============  ============  ==========
topic, body, message id             yes            yes           yes
persistence                         yes            yes           yes
message class                       yes            yes           yes
severity INFO                       yes            yes           yes
another severity                    no             no            as a text
headers that are texts              yes            yes           yes
headers that are numbers, true      no             no            as texts
priority                            yes            yes           0 to 9
confirms (receipts)                 yes            yes           yes
unroutable is told                  no             no            no
largest message                     128 MiB        4 MiB         100 MiB
a missing exchange is told          yes            yes           n/a
a full queue is told                by a reset     by a reset    n/a
a memory alarm is told              no             no            n/a
==================================  =============  ============  ==========

A message through RabbitMQ has one more header, ``receipt``. The largest message of RabbitMQ 4 is
its ``stomp.max_frame_size``; a larger one ends the connection without a word, as does a message
that a full queue refuses (``reject-publish``). RabbitMQ ends the connection after each error, and
does not say which message it concerns. So the messages without a receipt are sent again, one at a
time, on a new connection; those before the error arrive twice.

stomp.py has no heartbeats by default; this messenger asks for them. They tell a broker that is away
from one that takes no messages at present, as in a memory alarm: that one still sends heartbeats.
stomp.py waits for ever for a broker that does not read, does not notice the end of a TLS
connection, and fails over in ``connect()`` only. So the connection is this module's, and
:mod:`.failover` tries the endpoints; frames, receipts and heartbeats are those of stomp.py.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from stomp import ConnectionListener
from stomp.connect import BaseConnection
from stomp.exception import NotConnectedException, StompException
from stomp.protocol import Protocol12
from stomp.transport import BaseTransport
from stomp.utils import convert_frame, pack

from consumer_framework.core.errors import ConfigurationError, Problem

from . import Endpoints, Feature, Reject, Retry, Scope, Sent
from .failover import BlockedError, Failover, host_of, tls_context
from .sessions import EndedError, Pending, RetryingLink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Result

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_PORTS = {"stomp": 61613, "stomps": 61614, "stomp+ssl": 61614}
_RABBITMQ = frozenset(
    {Feature.SCHEMA, Feature.TEXT_HEADERS, Feature.PRIORITY, Feature.CONFIRMS},
)
_OTHERS = _RABBITMQ | {Feature.SEVERITY}
_EXCHANGE, _TOPIC = "/exchange/{exchange}/{topic}", "/topic/{topic}"
# The most messages and bytes that wait for their receipts. A broker that does not read then leaves
# the socket writable, so that the connection is still of use after a memory alarm.
_WINDOW, _WINDOW_BYTES = 100, 256 * 1024
_HEARTBEAT = 10.0
# ActiveMQ changes a larger priority to 9 or 0.
_MOST_PRIORITY = 9
_GOODBYE = 2.0
_WORDLESS = (
    "the broker ended the connection without a word: is a queue full, or a message too large?"
)
# Headers to which STOMP, RabbitMQ (rabbit_stomp.hrl) or ActiveMQ give a meaning of their own.
_RESERVED = frozenset(
    """
    ack amqp-message-id app-id auto-delete browser browser-end cluster-id content-encoding
    content-length content-type correlation-id delivery-mode destination durable exclusive
    expiration expires heart-beat host id login message-id passcode persist persistent
    prefetch-count receipt receipt-id redelivered reply-to selector server session subscription
    timestamp transaction transformation type user-id version
    """.split()  # noqa: SIM905 -- shorter than forty strings
)
_ESCAPES = str.maketrans({"\\": "\\\\", "\r": "\\r", "\n": "\\n", ":": "\\c"})
# Words of RabbitMQ's ERROR frames, and the scope of the fault; None if the message is never taken.
_FAULTS: dict[str, Scope | None] = {
    "access_refused": Scope.TOPIC,
    "not_found": Scope.TOPIC,
    "precondition_failed": None,
    "Invalid destination": None,
}


class Stomp(Failover):
    """Sends by STOMP 1.2 with receipts.

    Args:
        endpoints: URLs ``stomp://USER:PASSWORD@HOST:61613/VHOST``, and ``stomps`` for TLS. The
            virtual host is ``/`` unless the URL has one. With a certificate and a key, a TLS
            connection presents them; the URL then needs no user.
        destination: The destination of a message; ``{exchange}`` and ``{topic}`` in it are
            replaced. "" is ``/exchange/{exchange}/{topic}`` with RabbitMQ and ``/topic/{topic}``
            with any other broker.
        heartbeat: Seconds between two heartbeats, in both directions. It is less if the timeout of
            the endpoints is short.

    Raises:
        ConfigurationError: A URL or an option is invalid.
    """

    def __init__(
        self, endpoints: Endpoints, destination: str = "", heartbeat: float = _HEARTBEAT
    ) -> None:
        super().__init__(endpoints)
        for url in endpoints.urls:
            _Address.of(url)
        if destination and "{topic}" not in destination:
            path = "consumer_config.framework.outbox.options.destination"
            what = f'"{destination}" has no {{topic}}'
            raise ConfigurationError(Problem(path, what, f'write it as "{_TOPIC}"'))
        self._destination = destination
        self._server_features = _RABBITMQ
        self._heartbeat = min(heartbeat, endpoints.timeout / 2)

    @property
    def features(self) -> frozenset[Feature]:
        """The properties of a message that the present broker keeps; RabbitMQ keeps least."""
        return self._server_features if self.is_connected else _RABBITMQ

    def connect(self, url: str) -> RetryingLink:
        """Connect to the broker at *url*."""
        address = _Address.of(url)

        def connect() -> _Session:
            made = _Session(address, self.endpoints, self._heartbeat, self._destination)
            self._server_features = _RABBITMQ if _is_rabbitmq(made.server) else _OTHERS
            return made

        return RetryingLink(connect, _FAULTS, frozenset({"not_found"}))


def _is_rabbitmq(server: str) -> bool:
    return server.startswith("RabbitMQ")


@dataclass(frozen=True, slots=True)
class _Address:
    """An endpoint."""

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None
    vhost: str

    @classmethod
    def of(cls, url: str) -> _Address:
        try:
            parts = urlsplit(url)
            usual = _PORTS[parts.scheme]
            port = parts.port or usual
            if not parts.hostname:
                raise ValueError("it has no host")  # noqa: TRY301 -- for the one way out below
        except (ValueError, KeyError) as error:
            why = "its scheme is not stomp or stomps" if isinstance(error, KeyError) else error
            path = "consumer_config.framework.outbox.endpoints"
            what = f"the URL of {host_of(url)} is invalid: {why}"
            cure = "write it as stomps://USER@HOST:61614/VHOST"
            raise ConfigurationError(Problem(path, what, cure)) from None
        user, password = (unquote(p) if p else None for p in (parts.username, parts.password))
        vhost = unquote(parts.path[1:]) or "/"
        return cls(parts.hostname, port, parts.scheme != "stomp", user, password, vhost)


@dataclass(frozen=True, slots=True)
class _Frames:
    """Turns a message into destination and headers.

    Attributes:
        server: The header ``server`` of the broker.
        destination: The destination with its placeholders; "" for the usual one.
    """

    server: str
    destination: str

    def of(self, message: Outgoing) -> tuple[str, dict[str, str]]:
        """Return destination and headers.

        Raises:
            ValueError: STOMP, or the broker, cannot carry the message.
        """
        return self._destination_of(message), self._headers_of(message)

    def _destination_of(self, message: Outgoing) -> str:
        exchange, topic = message.exchange, message.topic
        pattern = self.destination or (_EXCHANGE if _is_rabbitmq(self.server) else _TOPIC)
        if pattern == _EXCHANGE:
            if not exchange:
                raise ValueError("it is for the default exchange")
            # RabbitMQ decodes %2F, and no other escape.
            for text in (exchange, topic):
                if "%2F" in text:
                    raise ValueError(f'"{text}" has a %2F, which RabbitMQ makes a slash')
            exchange, topic = exchange.replace("/", "%2F"), topic.replace("/", "%2F")
        elif self.server.startswith("ActiveMQ") and any(c in topic for c in ",?"):
            raise ValueError(f'ActiveMQ gives "," and "?" in the topic "{topic}" a meaning')
        return pattern.replace("{exchange}", exchange).replace("{topic}", topic)

    def _headers_of(self, message: Outgoing) -> dict[str, str]:
        headers = {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "amqp-message-id": message.id,
            "persistent": "true",
        }
        if message.priority is not None:
            if message.priority > _MOST_PRIORITY and not _is_rabbitmq(self.server):
                raise ValueError(f"its priority is {message.priority}; {self.server} has 0 to 9")
            headers["priority"] = str(message.priority)
        left_out = {"priority"}
        if _is_rabbitmq(self.server):
            left_out.add("fedora_messaging_severity")
        for name, value in message.headers.items():
            if name not in left_out:
                headers[name.translate(_ESCAPES)] = _text_of(name, value)
        return headers


def _text_of(name: str, value: Any) -> str:
    if name in _RESERVED:
        raise ValueError(f'the header "{name}" has a meaning of its own')
    text = value if isinstance(value, str) else str(value).lower()
    if "\0" in name + text:
        raise ValueError(f'the header "{name}" has a NUL character')
    (name + text).encode()
    return text


class _Session(ConnectionListener):  # type: ignore[misc]
    """One connection. A thread of stomp.py reads from it, and a second one sends heartbeats."""

    def __init__(
        self, address: _Address, endpoints: Endpoints, heartbeat: float, destination: str
    ) -> None:
        self._timeout = endpoints.timeout
        self._changed = threading.Condition()
        self.pending = Pending()
        self._frames = _Frames("", destination)
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._tag = 0
        self._end: EndedError | None = None
        self.server = ""
        self._transport = _Transport(address, endpoints)
        self._connection = _Connection(self._transport, int(heartbeat * 1000))
        self._connection.set_listener("messenger", self)
        try:
            self._connection.transport.start()
            # Without its answer, if the broker has ended the connection already.
            with suppress(StompException):
                self._connection.connect(address.user, address.password, with_connect_command=True)
            self._wait(lambda: bool(self.server))
            self._frames = _Frames(self.server, destination)
        except EndedError as error:
            self.close()
            raise ConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise

    @property
    def is_ended(self) -> bool:
        return self._end is not None

    def pipeline(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Send *batch*, and wait for the receipts; see :class:`.sessions.Session`.

        Raises:
            BlockedError: The broker sends heartbeats and no receipts.
        """
        with self._changed:
            rest = self.pending.begin(batch, fates)
        try:
            self._send_all(rest, fates)
        finally:
            with self._changed:
                # Receipts come between two batches too, after a memory alarm.
                self.pending.end()

    def _send_all(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        for number, message in batch:
            try:
                destination, headers = self._frames.of(message)
            except ValueError as error:
                fates[number] = Reject(f"STOMP cannot carry it: {error}")
                continue
            if len(self.pending) >= _WINDOW or self._bytes >= _WINDOW_BYTES:
                self._wait(self._has_room)
            self._tag += 1
            tag = str(self._tag)
            with self._changed:
                self.pending.add(tag, number, message)
                self._sizes[tag] = message.size
                self._bytes += message.size
            self._write(destination, message.body, headers | {"receipt": tag})
        self._wait(lambda: not self.pending)

    def _write(self, destination: str, body: bytes, headers: dict[str, str]) -> None:
        try:
            # No content-length: JSON has no NUL, and ActiveMQ would make bytes of the text.
            self._connection.send(destination, body, headers=headers)
        except TimeoutError:
            raise ConnectionError(f"no answer within {self._timeout:g} seconds") from None
        except (OSError, StompException):
            # The reading thread may still get the broker's reason.
            self._wait(lambda: False)

    def _has_room(self) -> bool:
        return len(self.pending) <= _WINDOW // 2 and self._bytes <= _WINDOW_BYTES // 2

    def _wait(self, is_done: Callable[[], bool]) -> None:
        with self._changed:
            count, began = len(self.pending), time.monotonic()
            while not is_done():
                if self._end is not None:
                    raise self._end
                if (now := len(self.pending)) != count:
                    count, began = now, time.monotonic()
                if (left := began + self._timeout - time.monotonic()) <= 0:
                    raise self._silence(began)
                self._changed.wait(left)

    def _silence(self, began: float) -> ConnectionError:
        # The first heartbeat may have been on its way before.
        if self.server and self._transport.heard > began + self._timeout / 4:
            return BlockedError("the broker is alive, but takes no messages: is its memory short?")
        return ConnectionError(f"no answer within {self._timeout:g} seconds")

    def close(self) -> None:
        """Close the connection; say goodbye to a broker that answers."""
        with self._changed:
            is_well = self._end is None and self.server and not self.pending
            self.pending.forget()
        if is_well:
            self._say_goodbye()
        self._transport.disconnect_socket()
        self._transport.join()

    def _say_goodbye(self) -> None:
        try:
            self._connection.disconnect()
        except (OSError, StompException):
            return
        with self._changed:
            self._changed.wait_for(lambda: self._end, min(_GOODBYE, self._timeout))

    # Called by the threads of stomp.py

    def on_connected(self, frame: Any) -> None:
        with self._changed:
            self.server = frame.headers.get("server") or "unknown"
            self._changed.notify_all()

    def on_receipt(self, frame: Any) -> None:
        self._settle(frame.headers["receipt-id"], Sent())

    def on_error(self, frame: Any) -> None:
        word = frame.headers.get("message", "")
        text = (frame.body or b"").decode(errors="replace").strip() or word
        tag, told = frame.headers.get("receipt-id", ""), text.partition("\n")[0]
        if tag in self._sizes:
            # ActiveMQ names the message, and keeps the connection.
            scope = Scope.TOPIC if "not authorized" in text else Scope.MESSAGE
            self._settle(tag, Retry(f"the broker refused it: {told}", scope))
        else:
            self._note_end(EndedError(word, told))

    def _settle(self, tag: str, result: Result) -> None:
        with self._changed:
            self.pending.settle(tag, result)
            self._bytes -= self._sizes.pop(tag, 0)
            if self._has_room():
                self._changed.notify_all()

    def on_disconnected(self) -> None:
        self._note_end(EndedError("", _WORDLESS))

    def _note_end(self, error: EndedError) -> None:
        with self._changed:
            self._end = self._end or error
            self._changed.notify_all()


class _Connection(Protocol12, BaseConnection):  # type: ignore[misc]
    """STOMP 1.2 on a transport of our own, as stomp.py's adapter for web sockets has one."""

    def __init__(self, transport: _Transport, heartbeat: int) -> None:
        BaseConnection.__init__(self, transport)
        Protocol12.__init__(
            self,
            transport,
            (heartbeat, heartbeat),
            auto_content_length=False,
            # A busy broker is late with its heartbeats; a batch has a timeout of its own.
            heart_beat_receive_scale=3.0,
        )


def _write(data: memoryview, to: socket.socket) -> int:
    return to.send(data)


class _Transport(BaseTransport):  # type: ignore[misc]
    """A socket whose writes end in time, which one thread reads and two write.

    Attributes:
        heard: When the last bytes arrived, by the monotonic clock.
    """

    def __init__(self, address: _Address, endpoints: Endpoints) -> None:
        super().__init__(auto_decode=False)
        self.vhost = address.vhost
        self.heard = 0.0
        self.socket: socket.socket | None = None
        self._address = address
        self._endpoints = endpoints
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()
        # An SSL object is for one thread at a time.
        self._using = threading.Lock()
        self.override_threading(self._start_thread)

    def _start_thread(self, run: Callable[[], None]) -> threading.Thread:
        self._thread = threading.Thread(target=run, name="stomp-messenger", daemon=True)
        self._thread.start()
        return self._thread

    def attempt_connection(self) -> None:
        where, timeout = (self._address.host, self._address.port), self._endpoints.timeout
        made = socket.create_connection(where, timeout)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._address.tls:
                context = tls_context(self._endpoints)
                made = context.wrap_socket(made, server_hostname=self._address.host)
            made.setblocking(False)  # noqa: FBT003 -- its only parameter
        except BaseException:
            made.close()
            raise
        self.socket, self.current_host_and_port = made, where

    def transmit(self, frame: Any) -> None:
        """Write a frame; stomp.py would log the password of CONNECT at DEBUG."""
        if frame.cmd != "CONNECT":
            super().transmit(frame)
            return
        for listener in self.listeners.values():
            listener.on_send(frame)
        self.send(pack(convert_frame(frame)))

    def send(self, encoded_frame: bytes) -> None:
        """Write a frame.

        Raises:
            TimeoutError: The broker read nothing for the timeout.
        """
        with self._writing:
            rest = memoryview(encoded_frame)
            while rest:
                count = self._try(partial(_write, rest), select.POLLOUT)
                if count is None:
                    raise TimeoutError
                rest = rest[count:]

    def receive(self) -> bytes:
        """Return the next bytes; none at the end of the connection."""
        while self.running:
            data: bytes | None = self._try(lambda one: one.recv(65536), select.POLLIN)
            if data is not None:
                self.heard = time.monotonic()
                return data
        return b""

    def _try(self, do: Callable[[socket.socket], _T], event: int) -> _T | None:
        """Do it as soon as the socket is ready; return None if it is not in time."""
        until = time.monotonic() + self._endpoints.timeout
        while (left := until - time.monotonic()) > 0:
            with self._using:
                if (one := self.socket) is None:
                    raise NotConnectedException
                try:
                    return do(one)
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                except BlockingIOError:
                    wanted = event
                poll = select.poll()
                poll.register(one, wanted)
            poll.poll(left * 1000)
        return None

    def disconnect_socket(self) -> None:
        """End the connection; the reading thread wakes up and closes the socket."""
        self.running = False
        one = self.socket
        if one is not None:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                _log.debug("the connection was closed before", exc_info=True)

    def cleanup(self) -> None:
        """Close the socket."""
        with self._using:
            one, self.socket = self.socket, None
        if one is not None:
            one.close()

    def join(self) -> None:
        """Wait for the reading thread."""
        if self._thread is not None:
            self._thread.join()
