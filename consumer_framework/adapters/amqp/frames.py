# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads deliveries out of the bytes that the broker sends; pika gets all other frames.

A delivery is three frames or more: ``basic.deliver``, the content header, the body (AMQP 0-9-1,
sections 2.3.5 and 4.2). pika makes an object of each, and copies the rest of its buffer after each,
which is most of the time that a message costs in its consumers. Here the frames of a delivery that
lie one behind the other in the buffer, as RabbitMQ sends them, are taken at once. Others, and large
ones, go to pika: nothing depends on where the network cuts the stream.

pika ends the connection when it cannot decode the properties of a message, again and again for as
long as the broker delivers that message. So properties that it cannot decode reach it as a header
that has their bytes (:data:`.RAW_PROPERTIES`), and :func:`restored` decodes as much of them as is
legible.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Any

import pika
import pika.data

from consumer_framework.core.delivery import PROPERTIES, RAW_PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Callable

    # Takes delivery tag, redelivered, exchange, routing key, properties and body.
    Receiver = Callable[[int, bool, str, str, pika.BasicProperties, bytes], None]

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_END = 0xCE
_FRAME = struct.Struct(">BHL")
_FRAME_SIZE = _FRAME.size + 1  # with its end octet
_DELIVER = b"\x00\x3c\x00\x3c"
_BODY_SIZE = struct.Struct(">Q")
# In a frame with a content header, after class, weight and the size of the body.
_FLAGS_AT = 19
_SHORTEST_HEADER = 14
_LONG = struct.Struct(">I")
_SIGNED = struct.Struct(">i")
_LONGLONG = struct.Struct(">q")
_TAG = struct.Struct(">QB")
_TIMESTAMP = struct.Struct(">Q")
# The kinds of field values that fedora-messaging sets: long string, integers, boolean.
_TEXT, _INT, _LONG_INT, _BOOL = b"SIlt"

# Larger bodies are pika's to put together: waiting for one here would copy the part of it that is
# there with every piece that comes.
_LARGEST = 1 << 18
# Pairs of exchange and routing key that are remembered for a connection.
_MOST_NAMES = 1024

# The bits of the property flags that are known here (AMQP 0-9-1, section 4.2.6.1): content-type,
# content-encoding, headers, delivery-mode, priority, message-id, timestamp.
_KNOWN = 0xF8C0
_Properties = pika.BasicProperties
_BLANK = dict.fromkeys(vars(_Properties()))  # type: ignore[no-untyped-call]

# All properties with the kinds of their values: short string, table, octet, timestamp.
_ALL = tuple(zip(PROPERTIES, "ssfoosssstssss", strict=True))


class Frames:
    """The stream of one connection.

    Args:
        others: Gets whole frames that are no deliveries to a receiver, and bytes that are no frame.

    Attributes:
        receivers: The receivers of deliveries, by the number of their channel.
        taken: How many frames went to receivers.
    """

    def __init__(self, others: Callable[[bytes], None]) -> None:
        self.receivers: dict[int, Receiver] = {}
        self.taken = 0
        self._others = others
        self._rest = b""
        self._is_lost = False
        self._names: dict[bytes, tuple[Any, Any]] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._is_lost:
            self._others(data)
            return
        buffer = self._rest + data if self._rest else data
        self._rest = b""
        at = self._consume(buffer)
        # Whatever the receivers did: there is one stream, and it goes on here.
        self._rest = buffer[at:]

    def _consume(self, buffer: bytes) -> int:
        receivers = self.receivers
        at, end = 0, len(buffer)
        while end - at >= _FRAME_SIZE:
            kind, channel, size = _FRAME.unpack_from(buffer, at)
            stop = at + _FRAME_SIZE + size
            if not _METHOD <= kind <= _BODY and kind != _HEARTBEAT:
                # Nobody knows where the next frame begins.
                self._is_lost = True
                self._others(buffer[at:])
                return end
            if stop > end:
                break
            if kind == _METHOD and channel in receivers:
                after = self._deliver(buffer, at, stop, channel)
                if after is None:
                    break
                if after:
                    at = after
                    continue
            frame = buffer[at:stop]
            if kind == _HEADER and channel in receivers:
                frame = _decodable(frame)
            self._others(frame)
            at = stop
        return at

    def _deliver(self, buffer: bytes, at: int, stop: int, channel: int) -> int | None:
        """Take the delivery whose ``basic.deliver`` is from *at* to *stop*.

        Returns:
            Where it ends; 0 where it is none, or is left to pika; None where more of it is to come.
        """
        if not buffer.startswith(_DELIVER, at + 7):
            return 0
        body_at = _content_end(buffer, stop, channel)
        after = _body_end(buffer, body_at, stop, channel) if body_at else body_at
        if not after or body_at is None:
            return after
        if not buffer[stop - 1] == buffer[body_at - 1] == buffer[after - 1] == _END:
            return 0
        # consumer-tag, delivery-tag, redelivered, exchange, routing-key (section 1.8.3.9)
        here = at + 12 + buffer[at + 11]
        tag, bits = _TAG.unpack_from(buffer, here)
        encoded_names = buffer[here + 9 : stop - 1]
        exchange, routing_key = self._names.get(encoded_names) or self._decode(encoded_names)
        properties = _properties(buffer[stop + _FLAGS_AT : body_at - 1])
        body = buffer[body_at + 7 : after - 1]
        self.taken += 3
        self.receivers[channel](tag, bits & 1 == 1, exchange, routing_key, properties, body)
        return after

    def _decode(self, encoded_names: bytes) -> tuple[Any, Any]:
        """Decode exchange and routing key, which are the same for many messages."""
        if len(self._names) >= _MOST_NAMES:
            self._names.clear()
        exchange, at = _short(encoded_names, 0)
        routing_key, _ = _short(encoded_names, at)
        names = self._names[encoded_names] = exchange, routing_key
        return names


def _content_end(buffer: bytes, at: int, channel: int) -> int | None:
    """Find the end of the content header at *at*; returns as :meth:`Frames._deliver`."""
    end = len(buffer)
    if end - at < _FRAME_SIZE:
        return None
    kind, its_channel, size = _FRAME.unpack_from(buffer, at)
    if kind != _HEADER or its_channel != channel or size < _SHORTEST_HEADER:
        return 0
    stop: int = at + _FRAME_SIZE + size
    return stop if stop <= end else None


def _body_end(buffer: bytes, at: int, header_at: int, channel: int) -> int | None:
    """Find the end of the body at *at*; returns as :meth:`Frames._deliver`."""
    (size,) = _BODY_SIZE.unpack_from(buffer, header_at + 11)
    if not size:
        return at
    if size > _LARGEST:
        return 0
    end = len(buffer)
    if end - at < _FRAME_SIZE:
        return None
    if _FRAME.unpack_from(buffer, at) != (_BODY, channel, size):
        # It may come in several frames, or with others between.
        return 0
    after: int = at + _FRAME_SIZE + size
    return after if after <= end else None


def _properties(encoded: bytes) -> pika.BasicProperties:
    """Decode properties, or as much of them as is legible."""
    try:
        known = _known_properties(encoded)
    except Exception:  # noqa: BLE001 -- wrong text, wrong lengths, pika's errors
        known = None
    try:
        return known or _any_properties(encoded)
    except Exception:  # noqa: BLE001 -- a wrong field may raise anything in pika
        return _legible_properties(encoded)


def restored(properties: pika.BasicProperties) -> pika.BasicProperties:
    """Return the properties of a message that pika put together, as they were before.

    :func:`_decodable` may have replaced them.
    """
    headers: Any = properties.headers
    raw = headers.get(RAW_PROPERTIES) if headers else None
    return _legible_properties(raw) if isinstance(raw, bytes) else properties


def _legible_properties(encoded: bytes) -> pika.BasicProperties:
    """Decode the legible part of properties that pika cannot decode.

    A value that only Python has no type for, such as a timestamp after the year 9999, becomes a
    number. Where the bytes lead astray, all of them are kept in a header, beside the properties
    that could be read: the message keeps its id.
    """
    values: dict[str, Any] = {}
    try:
        at = _read_legible(encoded, values)
    except Exception:  # noqa: BLE001 -- lengths that lead astray
        at = -1
    if at != len(encoded):
        values["headers"] = {RAW_PROPERTIES: encoded}
    return pika.BasicProperties(**values)  # type: ignore[no-untyped-call]


def _read_legible(encoded: bytes, values: dict[str, Any]) -> int:
    """Fill *values*; returns where the properties end, -1 where the headers are no table."""
    flags = int.from_bytes(encoded[:2], "big")
    at, is_whole = 2, not flags & 1
    for number, (name, kind) in enumerate(_ALL):
        if not flags & 0x8000 >> number:
            continue
        match kind:
            case "s":
                value, at = _short(encoded, at)
            case "f":
                value, at, is_legible = _legible_headers(encoded, at)
                is_whole = is_whole and is_legible
            case "o":
                value, at = encoded[at], at + 1
            case _:
                (value,), at = _TIMESTAMP.unpack_from(encoded, at), at + 8
        if at > len(encoded):
            return -1
        values[name] = value
    return at if is_whole else -1


def _legible_headers(encoded: bytes, at: int) -> tuple[Any, int, bool]:
    """Return the headers, where they end by their own word, and whether they are legible."""
    stop = at + 4 + _LONG.unpack_from(encoded, at)[0]
    try:
        return _legible_table(encoded[:stop], at + 4), stop, True
    except Exception:  # noqa: BLE001 -- as above
        return None, stop, False


def _legible_table(encoded: bytes, at: int) -> dict[Any, Any]:
    table = {}
    while at < len(encoded):
        key, at = _short(encoded, at)
        table[key], at = _legible_value(encoded, at)
    if at > len(encoded):
        raise ValueError("an entry is longer than its table")
    return table


def _legible_value(encoded: bytes, at: int) -> tuple[Any, int]:
    """Decode a value as pika does; a value that pika cannot decode becomes a number."""
    kind, start = encoded[at : at + 1], at + 1
    if kind in _CONTAINERS:
        stop = start + 4 + _LONG.unpack_from(encoded, start)[0]
        return _CONTAINERS[kind](encoded[:stop], start + 4), stop
    if kind in _NUMBERS:
        number = _NUMBERS[kind]
        (value,) = number.unpack_from(encoded, start)
        with contextlib.suppress(OverflowError, ValueError, OSError):
            value, _ = pika.data.decode_value(encoded, at)
        return value, start + number.size
    return pika.data.decode_value(encoded, at)


def _legible_array(encoded: bytes, at: int) -> list[Any]:
    array = []
    while at < len(encoded):
        value, at = _legible_value(encoded, at)
        array.append(value)
    if at > len(encoded):
        raise ValueError("an entry is longer than its array")
    return array


_CONTAINERS: dict[bytes, Callable[[bytes, int], Any]] = {b"F": _legible_table, b"A": _legible_array}
# A time before 1970 is a negative number of seconds.
_NUMBERS = {b"T": _LONGLONG, b"f": struct.Struct(">f"), b"d": struct.Struct(">d")}


def _decodable(frame: bytes) -> bytes:
    """Return the frame of a content header in a form that pika can decode: see :func:`restored`."""
    encoded = frame[_FLAGS_AT:-1]
    if len(frame) < _FRAME_SIZE + _SHORTEST_HEADER or _is_pikas(encoded):
        return frame
    raw: Any = {RAW_PROPERTIES: encoded}
    encode: Any = pika.BasicProperties(headers=raw).encode  # type: ignore[no-untyped-call]
    content = frame[_FRAME.size : _FLAGS_AT] + b"".join(encode())
    start = _FRAME.pack(_HEADER, _FRAME.unpack_from(frame)[1], len(content))
    return start + content + frame[-1:]


def _is_pikas(encoded: bytes) -> bool:
    try:
        _any_properties(encoded)
    except Exception:  # noqa: BLE001 -- as above
        return False
    return True


def _any_properties(encoded: bytes) -> pika.BasicProperties:
    properties: Any = pika.BasicProperties()  # type: ignore[no-untyped-call]
    decoded: pika.BasicProperties = properties.decode(encoded)
    return decoded


def _known_properties(encoded: bytes) -> pika.BasicProperties | None:
    """Decode the properties that fedora-messaging sets; None, or an error, where there are others.

    Strings are decoded in place: calls would cost more than all the rest.
    """
    flags = encoded[0] << 8 | encoded[1]
    if flags & ~_KNOWN:
        return None
    values = _BLANK.copy()
    at = 2
    if flags & 0x8000:
        stop = at + 1 + encoded[at]
        values["content_type"] = encoded[at + 1 : stop].decode()
        at = stop
    if flags & 0x4000:
        stop = at + 1 + encoded[at]
        values["content_encoding"] = encoded[at + 1 : stop].decode()
        at = stop
    if flags & 0x2000:
        values["headers"], at = _table(encoded, at)
    if flags & 0x1000:
        values["delivery_mode"] = encoded[at]
        at += 1
    if flags & 0x0800:
        values["priority"] = encoded[at]
        at += 1
    if flags & 0x0080:
        stop = at + 1 + encoded[at]
        values["message_id"] = encoded[at + 1 : stop].decode()
        at = stop
    if flags & 0x0040:
        values["timestamp"] = _TIMESTAMP.unpack_from(encoded, at)[0]
        at += 8
    if at != len(encoded):
        return None
    properties = _Properties.__new__(_Properties)
    properties.__dict__ = values
    return properties


def _short(encoded: bytes, at: int) -> tuple[Any, int]:
    stop = at + 1 + encoded[at]
    return _text(encoded[at + 1 : stop]), stop


def _text(encoded: bytes) -> Any:
    """Decode text as pika does: bytes that are no UTF-8 stay bytes."""
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def _table(encoded: bytes, at: int) -> tuple[Any, int]:
    """Decode a table of text and numbers; one that has more is pika's."""
    table: dict[str, Any] = {}
    start, at = at, at + 4
    stop = at + _LONG.unpack_from(encoded, start)[0]
    while at < stop:
        kind_at = at + 1 + encoded[at]
        key = encoded[at + 1 : kind_at].decode()
        kind = encoded[kind_at]
        at = kind_at + 1
        if kind == _TEXT:
            end = at + 4 + _LONG.unpack_from(encoded, at)[0]
            table[key] = encoded[at + 4 : end].decode()
            at = end
        elif kind == _INT:
            (table[key],) = _SIGNED.unpack_from(encoded, at)
            at += 4
        elif kind == _LONG_INT:
            (table[key],) = _LONGLONG.unpack_from(encoded, at)
            at += 8
        elif kind == _BOOL:
            table[key] = encoded[at] != 0
            at += 1
        else:
            # A rare kind; a void value has no bytes of its own.
            return pika.data.decode_table(encoded, start)
    if at != stop:
        return pika.data.decode_table(encoded, start)
    return table, at
