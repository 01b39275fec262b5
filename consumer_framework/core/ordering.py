# SPDX-License-Identifier: GPL-2.0-or-later
"""The ordering key of a message: messages with the same key never overtake each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delivery import Delivery

    # Returns the key of a delivery, "" for none. The second argument returns the decoded message.
    KeySource: TypeAlias = Callable[[Delivery, Callable[[], Any]], str]

# Places of keys that are found without decoding the message.
_OUTSIDE = ("topic", "header")


def is_outside(text: str | None) -> bool:
    """Tell whether the key that *text* names (:func:`source_of`) is outside the message's body."""
    return text is not None and text.partition(":")[0] in _OUTSIDE


@dataclass(frozen=True, slots=True)
class Blocker:
    """The row of the store that goes before all others of its lane.

    Attributes:
        row: Its number.
        state: ``deferred``: it runs again by itself; ``quarantined`` or ``replaying``: an operator
            decides.
        due: When it runs again, in seconds since the epoch; None unless it is deferred.
    """

    row: int
    state: str
    due: float | None


FORMS = '"topic", "header:NAME" or "body:PATH" (such as "body:update.alias")'


def behind(row: int) -> str:
    """Return the reason of a message that is quarantined because *row* of its lane is."""
    return f"behind row {row} of the same key"


def source_of(text: str) -> KeySource:
    """Return the function that finds the key in the place that *text* names.

    Args:
        text: ``topic``; ``header:NAME``; or ``body:PATH``, the keys of nested objects and the
            indexes of arrays, with dots between them.

    Raises:
        ValueError: *text* is none of these.
    """
    kind, _, name = text.partition(":")
    if text == "topic":
        return lambda delivery, _message: delivery.routing_key
    if kind == "header" and name:
        return lambda delivery, _message: _as_key((delivery.properties.headers or {}).get(name))
    if kind == "body" and name and all(name.split(".")):
        path = name.split(".")
        return lambda _delivery, message: _as_key(_follow(message().body, path))
    raise ValueError(f"must be {FORMS}")


def source_from(method: Callable[[Any], Any]) -> KeySource:
    """Return a function that asks *method*, which takes the decoded message, for the key."""
    return lambda _delivery, message: _as_key(method(message()))


def _follow(value: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _as_key(value: Any) -> str:
    # Text and numbers are keys; a message with anything else there has none.
    return str(value) if isinstance(value, str | int | float) else ""
