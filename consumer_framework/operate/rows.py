# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the document of ``fm-consumer status --json``, of this release or another one.

Hosts have releases of their own. So a document is read field by field, and a field that is not
there is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.core.loss import Loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# No number of a real host is larger, and larger ones are no float.
_HUGE = 1e300


@dataclass(frozen=True, slots=True)
class Row:
    """An instance in the document of ``fm-consumer status --json``, of this or another host.

    Attributes:
        host: The host; "" for this one.
        group: Its name without the number of the worker.
        name: Its name.
        is_active: It runs.
        should_run: It is enabled, or was started.
        condition: One word for its condition.
        reason: The reason for it in words; "" for none.
        rate: Messages handled in a second; None if it does not answer, as for all below.
        lag: Messages that are ready in its queues.
        lag_seconds: The age of the oldest of them.
        running: Messages in handlers.
        held: Messages that wait in memory.
        deferred: Messages that wait in the store for their time.
        quarantined: Messages that wait for an operator.
        handled: Messages handled since it started.
        up: Seconds since it started.
        loss: The next loss, if nothing changes; None if there is none in sight.
    """

    host: str
    group: str
    name: str
    is_active: bool
    should_run: bool
    condition: str
    reason: str = ""
    rate: float | None = None
    lag: int | None = None
    lag_seconds: float | None = None
    running: int | None = None
    held: int | None = None
    deferred: int | None = None
    quarantined: int | None = None
    handled: int | None = None
    up: float | None = None
    loss: Loss | None = None


def rows_of(document: Mapping[str, Any], host: str = "") -> list[Row]:
    """Return the instances in a document of ``fm-consumer status --json``."""
    return [
        _row(str(group.get("name", "")), one, host)
        for group in dicts_in(document.get("groups"))
        for one in dicts_in(group.get("instances"))
    ]


def _row(group: str, one: Mapping[str, Any], host: str) -> Row:
    report, unit = dict_in(one.get("report")), dict_in(one.get("unit"))
    counts = dict_in(report.get("counts"))
    return Row(
        host=host,
        group=group,
        name=str(one.get("name", "")),
        is_active=one.get("active") is True,
        should_run=one.get("should_run") is True,
        condition=_condition(one, report, unit),
        reason=_reason(one, report, unit),
        rate=number_in(report.get("rate")),
        lag=integer_in(report.get("lag")),
        lag_seconds=number_in(report.get("lag_seconds")),
        running=integer_in(counts.get("running")),
        held=integer_in(report.get("held")),
        deferred=integer_in(one.get("deferred")),
        quarantined=integer_in(one.get("quarantined")),
        handled=integer_in(counts.get("acked")),
        up=number_in(report.get("up")),
        loss=_loss(dict_in(report.get("loss"))),
    )


def _condition(one: Mapping[str, Any], report: Mapping[str, Any], unit: Mapping[str, Any]) -> str:
    if report:
        return str(report.get("condition") or report.get("state") or "running")
    if one.get("active"):
        return "silent"
    return str(unit.get("active") or "inactive").replace("inactive", "stopped")


def _reason(one: Mapping[str, Any], report: Mapping[str, Any], unit: Mapping[str, Any]) -> str:
    words = (
        *(one.get("problem"), report.get("reason"), report.get("trouble")),
        *(() if report else (unit.get("text"),)),
    )
    return next((str(text) for text in words if text), "")


def _loss(found: Mapping[str, Any]) -> Loss | None:
    seconds = number_in(found.get("seconds"))
    if seconds is None:
        return None
    return Loss(str(found.get("subject", "")), seconds, str(found.get("cure") or ""))


# Values of a document that nobody has checked.


def dict_in(value: Any) -> Mapping[str, Any]:
    """Return *value* if it is an object, and an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def dicts_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Return the objects in *value*, if it is a list."""
    found = value if isinstance(value, list | tuple) else ()
    return (one for one in found if isinstance(one, dict))


def number_in(value: Any) -> float | None:
    """Return *value* if it is a number, and None otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _HUGE else None


def integer_in(value: Any) -> int | None:
    """Return *value* without a fraction if it is a number, and None otherwise."""
    number = number_in(value)
    return None if number is None else int(number)
