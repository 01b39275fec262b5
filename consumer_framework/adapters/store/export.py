# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages as lines of JSON, in the format of ``fedora_messaging.message.dumps``."""

from __future__ import annotations

import base64
import json
import os
import re
from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import codec_of

from .files import create, sync_directory
from .properties import pack
from .records import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pika

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.errors import DamagedRowError

    from .records import Row

# `dumps` writes these characters as they are. But `loads` splits lines with str.splitlines(), which
# takes some of them for the end of a line; no file takes a lone surrogate; terminals obey the rest.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def line_of(delivery: Delivery) -> str:
    r"""Return the message of *delivery* as one line, with its only ``\n`` at the end.

    Where its bytes are a valid message, this is the line of ``fedora_messaging.message.dumps``.
    Otherwise ``body`` and ``headers`` are missing, so that nobody takes it for a message:
    ``body_base64`` has the bytes, and ``properties`` all AMQP properties as the store keeps them.
    """
    return _line(_message(delivery))


def raw_line_of(delivery: Delivery) -> str:
    """Return the line of :func:`line_of` for a message whose bytes are not valid."""
    return _line(_raw(delivery))


def expired_line_of(row: Row, delivery: Delivery) -> str:
    """Return the line of :func:`line_of` with the key ``quarantine`` for the rest of its row."""
    known = {
        "row": row.id,
        "exchange": text(delivery.exchange),
        "reason": row.reason,
        "fingerprint": row.fingerprint,
        "created": row.created,
        "crashes": row.crashes,
        "parent": row.parent,
        "attempts": [
            {
                "at": a.at,
                "error": a.error,
                "message": a.message,
                "traceback": a.traceback,
                **({"route": a.route} if a.route else {}),
            }
            for a in delivery.history.attempts
        ],
    }
    return _line({**_message(delivery), "quarantine": known})


def damaged_line_of(error: DamagedRowError, row: Mapping[str, Any] | None) -> str:
    """Return the rest of a damaged row as a line, which nobody takes for a message.

    Args:
        error: Says how the row is damaged.
        row: Its columns, None where nothing can be read.
    """
    left: dict[str, Any] = {"row": error.row, "damaged": error.reason}
    if row is not None:
        names = {"topic": "routing_key", "id": "message_id", "queue": "queue"}
        names |= {"exchange": "exchange", "properties": "properties"}
        left |= {key: text(_octets(row[name])) for key, name in names.items()}
        left["body_base64"] = base64.b64encode(_octets(row["body"])).decode()
    return _line(left)


def _octets(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "backslashreplace")


def append(file: Path, lines: Iterable[str]) -> None:
    """Append *lines* to *file* durably, all of them or none.

    A process that dies in the middle leaves half a line; the next call ends that line.

    Raises:
        OSError: The disk does not take them.
    """
    is_new = not file.exists()
    descriptor = create(file)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            _write(descriptor, size, lines)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        sync_directory(file.parent)


def _write(descriptor: int, size: int, lines: Iterable[str]) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            stream.write(b"\n")
        for line in lines:
            stream.write(line.encode())
        stream.flush()
        os.fsync(descriptor)


def _message(delivery: Delivery) -> dict[str, Any]:
    try:
        return _readable(delivery)
    except (ValueError, LookupError, TypeError, RecursionError):
        return _raw(delivery)


def _readable(delivery: Delivery) -> dict[str, Any]:
    """Return the keys that ``dumps`` writes.

    Raises:
        ValueError: The bytes are no message; LookupError, TypeError or RecursionError likewise.
    """
    properties: pika.BasicProperties = delivery.properties  # type: ignore[assignment]
    body = json.loads(delivery.body.decode(codec_of(properties.content_encoding or "utf-8")))
    if not isinstance(body, dict) or not isinstance(delivery.routing_key, str):
        raise TypeError
    message = {
        "topic": delivery.routing_key,
        "headers": properties.headers or {},
        "id": properties.message_id,
        "body": body,
        "queue": delivery.queue,
        "priority": properties.priority or 0,
    }
    # Raises for values that JSON does not have; `dumps` would write NaN.
    json.dumps(message, allow_nan=False, sort_keys=True)
    return {key: value for key, value in message.items() if (key, value) != ("id", None)}


def _raw(delivery: Delivery) -> dict[str, Any]:
    return {
        "topic": text(delivery.routing_key),
        "id": text(delivery.message_id),
        "queue": delivery.queue,
        "properties": json.loads(pack(delivery.properties)),
        "body_base64": base64.b64encode(delivery.body).decode(),
    }


def _line(message: dict[str, Any]) -> str:
    line = json.dumps(message, ensure_ascii=False, sort_keys=True)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n"
