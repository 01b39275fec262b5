# SPDX-License-Identifier: GPL-2.0-or-later
"""AMQP properties to text and back: nothing is lost, and nothing is refused.

pika's own ``encode()`` will not do. It raises for an integer beyond 64 bits, and pika reads a
double like 1e300 in a header table as such an integer. It also recurses once for each nested table,
as deep as a publisher likes.

The text is a flat JSON array in Polish notation: a container is ``{"table": n}`` or
``{"array": n}``, followed by its *n* entries. A value that JSON does not have is an object with
one key: ``{"bytes": base64}``, ``{"decimal": text}``, ``{"time": ISO 8601}``, ``{"float": "nan"}``.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pika

from consumer_framework.core.delivery import PROPERTIES

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Properties


def pack(properties: Properties) -> str:
    """Return *properties* as text.

    A value of a type that AMQP does not have becomes its ``repr``; no broker delivers such a value.
    """
    found = {name: getattr(properties, name, None) for name in PROPERTIES}
    return pack_value({name: value for name, value in found.items() if value is not None})


def unpack(text: str) -> pika.BasicProperties:
    """Return the properties of a text from :func:`pack`, equal to those that it was given."""
    return pika.BasicProperties(**unpack_value(text))  # type: ignore[no-untyped-call]


def pack_value(value: Any) -> str:
    """Return one AMQP field value as text."""
    tokens = []
    waiting = [value]
    while waiting:
        value = waiting.pop()
        match value:
            case dict():
                tokens.append({"table": len(value)})
                waiting.extend(part for item in reversed(value.items()) for part in reversed(item))
            case list() | tuple():
                tokens.append({"array": len(value)})
                waiting.extend(reversed(value))
            case _:
                tokens.append(_scalar(value))
    return json.dumps(tokens, separators=(",", ":"))


def unpack_value(text: str) -> Any:
    """Return the value of a text from :func:`pack_value`."""
    values: list[Any] = []
    # From the end, so that the entries of a container are there before it is.
    for token in reversed(json.loads(text)):
        match token:
            case {"table": size}:
                values.append({values.pop(): values.pop() for _ in range(size)})
            case {"array": size}:
                values.append([values.pop() for _ in range(size)])
            case _:
                values.append(_value(token))
    return values.pop()


def _scalar(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case Decimal():
            return {"decimal": str(value)}
        case datetime():
            return {"time": value.isoformat()}
    return repr(value)


def _value(token: Any) -> Any:
    match token:
        case {"float": text}:
            return float(text)
        case {"bytes": text}:
            return base64.b64decode(text)
        case {"decimal": text}:
            return Decimal(text)
        case {"time": text}:
            return datetime.fromisoformat(text)
    return token
