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
        for group in _dicts(document.get("groups"))
        for one in _dicts(group.get("instances"))
    ]


def _row(group: str, one: Mapping[str, Any], host: str) -> Row:
    report, unit = _dict(one.get("report")), _dict(one.get("unit"))
    counts = _dict(report.get("counts"))
    return Row(
        host=host,
        group=group,
        name=str(one.get("name", "")),
        is_active=one.get("active") is True,
        should_run=one.get("should_run") is True,
        condition=_condition(one, report, unit),
        reason=_reason(one, report, unit),
        rate=_number(report.get("rate")),
        lag=_integer(report.get("lag")),
        lag_seconds=_number(report.get("lag_seconds")),
        running=_integer(counts.get("running")),
        held=_integer(report.get("held")),
        deferred=_integer(one.get("deferred")),
        quarantined=_integer(one.get("quarantined")),
        handled=_integer(counts.get("acked")),
        up=_number(report.get("up")),
        loss=_loss(_dict(report.get("loss"))),
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
    seconds = _number(found.get("seconds"))
    if seconds is None:
        return None
    return Loss(str(found.get("subject", "")), seconds, str(found.get("cure") or ""))


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _HUGE else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
