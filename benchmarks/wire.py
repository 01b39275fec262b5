# SPDX-License-Identifier: GPL-2.0-or-later
"""A minimal AMQP 0-9-1 client on a blocking socket, fast enough to fill queues and to drain them.

pika's codec writes and reads the few methods of the opening. Publishing and delivering, which come
in bulk, work on bytes. The frame format is that of AMQP 0-9-1, section 4.2.3.
"""

from __future__ import annotations

import select
import socket
import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from pika import frame, spec
from pika.connection import URLParameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHANNEL = 1
CHUNK = 1 << 20
"""The most bytes of one read."""
WINDOW = 4000
"""The most messages that wait for their confirmation."""
BATCH = 200
"""Messages of one write."""

_HEADER = struct.Struct(">BHI")
_METHOD_ID = struct.Struct(">HH")
_ACK = struct.Struct(">QB")
BASIC_DELIVER = _METHOD_ID.pack(60, 60)
BASIC_ACK = _METHOD_ID.pack(60, 80)


class WireError(RuntimeError):
    """The broker closed the connection or answered something unexpected."""


class Wire:
    """One connection with one channel.

    Args:
        url: The broker's URL.
    """

    def __init__(self, url: str) -> None:
        given = URLParameters(url)
        self._socket = socket.create_connection((given.host, given.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._handshake(given)

    def _handshake(self, given: URLParameters) -> None:
        self._socket.sendall(frame.ProtocolHeader().marshal())
        start = self._expect(spec.Connection.Start)
        self.server: str = start.server_properties["version"]
        who = given.credentials
        secret = f"\0{who.username}\0{who.password}"
        self._tell(spec.Connection.StartOk({}, "PLAIN", secret, "en_US"), channel=0)
        tune = self._expect(spec.Connection.Tune)
        # No heartbeats: the connection lives for seconds.
        self._tell(spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), channel=0)
        self._tell(spec.Connection.Open(given.virtual_host), channel=0)
        self._expect(spec.Connection.OpenOk)
        self.call(spec.Channel.Open(), spec.Channel.OpenOk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection without ceremony."""
        self._socket.close()

    def call(self, method: Any, reply: type) -> Any:
        """Send *method* and wait for the answer of the type *reply*."""
        self._tell(method)
        return self._expect(reply)

    def send_method(self, method: Any) -> None:
        """Send *method* on the channel; its answer arrives like any other method."""
        self._tell(method)

    def _tell(self, method: Any, channel: int = CHANNEL) -> None:
        self._socket.sendall(frame.Method(channel, method).marshal())

    def _expect(self, reply: type) -> Any:
        while True:
            used, decoded = frame.decode_frame(self._buffer)
            if not used:
                self._buffer += self._receive()
                continue
            self._buffer = self._buffer[used:]
            method = getattr(decoded, "method", None)
            if isinstance(method, reply):
                return method
            if isinstance(method, (spec.Channel.Close, spec.Connection.Close)):
                raise WireError(method.reply_text)

    def _receive(self) -> bytes:
        data = self._socket.recv(CHUNK)
        if not data:
            raise WireError("the broker closed the connection")
        return data

    def send(self, data: bytes) -> None:
        """Send encoded frames."""
        self._socket.sendall(data)

    def _buffered(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the class and method id, and the arguments, of each method that arrived whole.

        Content is skipped by the length in its frame's header.
        """
        data, at = self._buffer, 0
        end = len(data) - _HEADER.size
        while at <= end:
            kind, _, size = _HEADER.unpack_from(data, at)
            after = at + _HEADER.size + size + 1
            if after > len(data):
                break
            if kind == spec.FRAME_METHOD:
                yield data[at + 7 : at + 11], data[at + 11 : after - 1]
            at = after
        self._buffer = data[at:]

    def deliveries(self) -> Iterator[int]:
        """Yield the number of deliveries of each read, whose content it ignores."""
        while True:
            arrived = sum(method == BASIC_DELIVER for method, _ in self._buffered())
            if arrived:
                yield arrived
            self._buffer += self._receive()

    def publish(self, messages: Iterable[bytes]) -> int:
        """Send encoded messages and wait until the broker confirmed all of them.

        Returns:
            The number of messages.
        """
        self.call(spec.Confirm.Select(), spec.Confirm.SelectOk)
        confirmed = _Confirmed()
        sent = 0
        for batch in batched(messages, BATCH):
            self._socket.sendall(b"".join(batch))
            sent += len(batch)
            self._await(confirmed, sent - WINDOW)
        self._await(confirmed, sent)
        return sent

    def _await(self, confirmed: _Confirmed, needed: int) -> None:
        """Read all confirmations that are there, and more until *needed* messages have one."""
        while confirmed.count < needed or select.select([self._socket], [], [], 0)[0]:
            self._buffer += self._receive()
            for method, arguments in self._buffered():
                if method != BASIC_ACK:
                    raise WireError(f"not a confirmation: {method!r}")
                confirmed.add(*_ACK.unpack(arguments))


class _Confirmed:
    """The confirmed messages of a channel; the broker confirms in any order."""

    def __init__(self) -> None:
        self._up_to = 0
        self._beyond: set[int] = set()

    @property
    def count(self) -> int:
        return self._up_to + len(self._beyond)

    def add(self, tag: int, multiple: int) -> None:
        if not multiple:
            self._beyond.add(tag)
        elif tag > self._up_to:
            self._up_to = tag
            self._beyond = {other for other in self._beyond if other > tag}


def batched(items: Iterable[bytes], size: int) -> Iterator[tuple[bytes, ...]]:
    """Cut *items* into tuples of *size*, the last one shorter (itertools has it since 3.12)."""
    iterator = iter(items)
    return iter(lambda: tuple(islice(iterator, size)), ())


def publication(
    exchange: str, routing_key: str, properties: spec.BasicProperties, body: bytes
) -> bytes:
    """Encode one message as the frames that publish it."""
    frames = [
        frame.Method(CHANNEL, spec.Basic.Publish(exchange=exchange, routing_key=routing_key)),
        frame.Header(CHANNEL, len(body), properties),
        frame.Body(CHANNEL, body),
    ]
    return b"".join(part.marshal() for part in frames)
