# SPDX-License-Identifier: GPL-2.0-or-later
"""A message as JSON, for programs that know nothing of AMQP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import Quarantine

if TYPE_CHECKING:
    from fedora_messaging.message import Message

    from consumer_framework.core.delivery import Delivery


def as_object(message: Message) -> dict[str, Any]:
    """Return *message* as an object with the keys of :func:`fedora_messaging.message.dumps`."""
    return {
        "topic": message.topic,
        "headers": dict(message._headers),  # noqa: SLF001 -- upstream has no public name for them
        "id": message.id,
        "body": message.body,
        "queue": message.queue,
        "priority": message.priority,
    }


def as_document(message: Message, delivery: Delivery | None = None) -> dict[str, Any]:
    """Return the values of *message* that conditions and paths are about.

    Args:
        message: The message.
        delivery: Its delivery, which knows its exchange; None for no exchange.
    """
    exchange = {"exchange": delivery.exchange} if delivery is not None else {}
    return {**as_object(message), "severity": message.severity, **exchange}


def line_of(value: Any) -> bytes:
    """Write *value* as one line of ASCII JSON, with the newline.

    Raises:
        Quarantine: JSON cannot have it, such as the number NaN.
    """
    try:
        # Dates, bytes and decimals may be in AMQP headers.
        return json.dumps(value, allow_nan=False, sort_keys=True, default=str).encode() + b"\n"
    except (ValueError, RecursionError) as error:
        raise Quarantine(f"the message cannot be written as JSON: {error}") from error
