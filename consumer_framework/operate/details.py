# SPDX-License-Identifier: GPL-2.0-or-later
"""The details of one instance for ``fm-consumer top``.

They are read from the documents of ``fm-consumer in-flight``, ``metrics`` and ``quarantine list``
with ``--json``, of this release or another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .rows import dict_in, dicts_in, integer_in, number_in

if TYPE_CHECKING:
    from collections.abc import Mapping

# The histogram of the handler's runs, by queue, route and exception.
_RUNS = "messaging_process_duration_seconds"


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
class Handler:
    """The runs of the handler for a queue, or of a route, since the start.

    Attributes:
        name: The queue, and the route if there is one.
        mean: Seconds that a run took on the average.
        runs: The number of runs.
    """

    name: str
    mean: float
    runs: int


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
        handlers: Its handlers, the slowest first; None likewise.
        causes: The causes in its quarantine, the most frequent first; None likewise.
        problem: The reason why something could not be asked; "" for none.
    """

    in_flight: tuple[InFlight, ...] | None = None
    handlers: tuple[Handler, ...] | None = None
    causes: tuple[Cause, ...] | None = None
    problem: str = ""


def in_flight_in(document: Any) -> tuple[InFlight, ...]:
    """Read the document of ``fm-consumer in-flight --json``."""
    found = [_in_flight(one) for one in dicts_in(dict_in(document).get("messages"))]
    return tuple(sorted(found, key=lambda one: -one.age))


def handlers_in(document: Any) -> tuple[Handler, ...]:
    """Read the document of ``fm-consumer metrics --json``."""
    totals: dict[str, list[float]] = {}
    for sample in dicts_in(document):
        kind = str(sample.get("name")).removeprefix(_RUNS)
        if kind in _PARTS:
            name = _handler_name(dict_in(sample.get("labels")))
            total = totals.setdefault(name, [0.0, 0.0])
            total[_PARTS[kind]] += number_in(sample.get("value")) or 0.0
    found = [
        Handler(name, seconds / runs, int(runs)) for name, (seconds, runs) in totals.items() if runs
    ]
    return tuple(sorted(found, key=lambda one: -one.mean))


_PARTS = {"_sum": 0, "_count": 1}


def _handler_name(labels: Mapping[str, Any]) -> str:
    queue, route = labels.get("messaging_destination_name"), labels.get("fm_route")
    return ", ".join(str(part) for part in (queue, route) if part)


def causes_in(document: Any) -> tuple[Cause, ...]:
    """Read the list of ``fm-consumer quarantine list --json``."""
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
