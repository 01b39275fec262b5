# SPDX-License-Identifier: GPL-2.0-or-later
"""The details of one instance for ``fm-consumer top``: messages in flight, and causes.

They are read from the documents of ``fm-consumer in-flight --json`` and ``fm-consumer quarantine
list --json``, of this release or another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .rows import dict_in, dicts_in, integer_in, number_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The slowest topics that are remembered.
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class InFlight:
    """A message that a handler has.

    Attributes:
        age: Seconds since the handler got it.
        attempt: The number of the run.
        topic: Its routing key.
        message_id: Its id.
        place: The function that runs, and its line; "" if it is unknown.
    """

    age: float
    attempt: int
    topic: str
    message_id: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """The quarantined messages of one cause.

    Attributes:
        count: Their number.
        last: When the latest was written, in seconds since the epoch; None if it is unknown.
        topic: That of the oldest.
        error: The error of the oldest, in one line.
    """

    count: int
    last: float | None
    topic: str
    error: str


@dataclass(frozen=True, slots=True)
class Details:
    """The details of an instance at one moment.

    Attributes:
        in_flight: The messages of its handlers, the longest first; None if it cannot be asked.
        causes: The causes in its quarantine, the most frequent first; None likewise.
        problem: The reason why something could not be asked; "" for none.
    """

    in_flight: tuple[InFlight, ...] | None = None
    causes: tuple[Cause, ...] | None = None
    problem: str = ""


def in_flight_in(document: Any) -> tuple[InFlight, ...]:
    """Read the document of ``fm-consumer in-flight --json``."""
    found = [_in_flight(one) for one in dicts_in(dict_in(document).get("messages"))]
    return tuple(sorted(found, key=lambda one: -one.age))


def causes_in(document: Any) -> tuple[Cause, ...]:
    """Read the document of ``fm-consumer quarantine list --json``."""
    found = [_cause(one) for one in dicts_in(document)]
    return tuple(sorted(found, key=lambda one: -one.count))


def _in_flight(one: Mapping[str, Any]) -> InFlight:
    return InFlight(
        age=number_in(one.get("age")) or 0.0,
        attempt=integer_in(one.get("attempt")) or 1,
        topic=str(one.get("topic", "")),
        message_id=str(one.get("message_id") or ""),
        place=str(one.get("place") or ""),
    )


def _cause(one: Mapping[str, Any]) -> Cause:
    sample = dict_in(one.get("sample"))
    error, message = str(sample.get("error") or ""), str(sample.get("message") or "")
    name = error.rpartition(".")[2]
    parts = [part for part in (name, message) if part] or [str(sample.get("reason") or "")]
    return Cause(
        count=integer_in(one.get("count")) or 0,
        last=number_in(one.get("last")),
        topic=str(sample.get("routing_key") or ""),
        error=": ".join(parts),
    )


@dataclass(slots=True)
class Slowest:
    """The longest run of each topic that was seen in flight."""

    _longest: dict[str, float] = field(default_factory=dict)

    def see(self, messages: Iterable[InFlight]) -> None:
        """Take note of messages in flight."""
        for message in messages:
            known = self._longest.get(message.topic, 0.0)
            if message.topic in self._longest or len(self._longest) < _REMEMBERED:
                self._longest[message.topic] = max(known, message.age)

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the topics with the longest runs, and their seconds."""
        return sorted(self._longest.items(), key=lambda item: -item[1])[:count]
