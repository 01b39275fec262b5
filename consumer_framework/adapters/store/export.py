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

# `dumps` writes these as they are, but `loads` splits lines with str.splitlines(), which takes some
# for the end of a line; no file takes a lone surrogate, and a terminal obeys the others.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def line_of(delivery: Delivery) -> str:
    r"""Write the message of *delivery* as one line, ending in ``\n``, which is nowhere else in it.

    Where its bytes can be read as a message, this is what ``fedora_messaging.message.dumps``
    writes. Where not, ``body`` and ``headers`` are missing, so that nobody takes it for one:
    ``body_base64`` has the bytes, and ``properties`` all AMQP properties as the store keeps them.
    """
    return _line(_message(delivery))


def raw_line_of(delivery: Delivery) -> str:
    """Write what :func:`line_of` writes of one whose bytes cannot be read as a message."""
    return _line(_raw(delivery))


def expired_line_of(row: Row, delivery: Delivery) -> str:
    """Write what :func:`line_of` writes, and in the key ``quarantine`` all that is known of it."""
    known = {
        "row": row.id,
        "exchange": _name(delivery.exchange),
        "reason": row.reason,
        "fingerprint": row.fingerprint,
        "created": row.created,
        "crashes": row.crashes,
        "parent": row.parent,
        "attempts": [
            {"at": a.at, "error": a.error, "message": a.message, "traceback": a.traceback}
            for a in delivery.history.attempts
        ],
    }
    return _line({**_message(delivery), "quarantine": known})


def damaged_line_of(error: DamagedRowError, row: Mapping[str, Any] | None) -> str:
    """Write what is left of a damaged row, None for nothing; nobody takes it for a message."""
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

    A process that dies in the middle leaves half a line; the next call ends it.

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
        ValueError: It is no message: so do LookupError, TypeError and RecursionError say.
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
    # What no JSON can say is found out here; `dumps` would write NaN, which is none.
    json.dumps(message, allow_nan=False, sort_keys=True)
    return {key: value for key, value in message.items() if (key, value) != ("id", None)}


def _raw(delivery: Delivery) -> dict[str, Any]:
    return {
        "topic": _name(delivery.routing_key),
        "id": text(delivery.message_id),
        "queue": delivery.queue,
        "properties": json.loads(pack(delivery.properties)),
        "body_base64": base64.b64encode(delivery.body).decode(),
    }


def _name(value: str | bytes) -> str:
    return text(value)


def _line(message: dict[str, Any]) -> str:
    line = json.dumps(message, ensure_ascii=False, sort_keys=True)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n"
