# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges the status of instances for a monitoring system: values, thresholds, severities.

The severities are the exit codes of the Monitoring Plugins' guidelines, and so is the syntax of a
:class:`Range`. :data:`MEASURES` lists the values, with the thresholds that hold unless the operator
gives others. :func:`judge` decides; it asks nobody and prints nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from consumer_framework.core import text
from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.health import InstanceCondition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from consumer_framework.runtime.control.schema import OutboxReport, StatusReport
    from consumer_framework.runtime.state_files import StoredCounts

    from .status import HostStatus, InstanceStatus


class Severity(IntEnum):
    """The result of a check; its number is the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


# The order in which one result outweighs another, as the plugins' own max_state_alt() has it.
_WEIGHT = (Severity.OK, Severity.UNKNOWN, Severity.WARNING, Severity.CRITICAL)


def worst(severities: Iterable[Severity]) -> Severity:
    """Return the severity that outweighs the others; OK for none."""
    return max(severities, key=_WEIGHT.index, default=Severity.OK)


class ThresholdError(FrameworkError):
    """A threshold cannot be read.

    Args:
        message: One line that says why, and how to write it.
    """

    exit_code = 2


# Values.


class Measure(NamedTuple):
    """A value of an instance.

    Attributes:
        unit: The unit of performance data: ``""`` for a number, ``"s"``, or ``"c"`` for a count
            that only grows.
        words: The value in a sentence, with ``{}`` for it.
        warn: The range beyond which it is a warning, unless another is given; "" for none.
        crit: Likewise, critical.
        of: Returns the value at a moment in seconds since the epoch; None if it is not known.
        more: Returns more words about the value.
    """

    unit: str
    words: str
    of: Callable[[InstanceStatus, float], float | None]
    warn: str = ""
    crit: str = ""
    more: Callable[[InstanceStatus], str] = lambda _one: ""


def _reported(get: Callable[[StatusReport], float | None]) -> Callable[..., float | None]:
    return lambda one, _now: get(one.report) if one.report else None


def _loss(one: InstanceStatus) -> str:
    loss = one.report.loss if one.report else None
    return f": {loss.subject}" if loss else ""


def _of_outbox(get: Callable[[OutboxReport], float | None]) -> Callable[..., float | None]:
    return _reported(lambda report: get(report.outbox) if report.outbox else None)


def _stored(get: Callable[[StoredCounts], float]) -> Callable[..., float | None]:
    return lambda one, _now: get(one.stored) if one.stored else None


def _overdue(one: InstanceStatus, now: float) -> float | None:
    if one.stored is None:
        return None
    return 0 if one.stored.next_due is None else max(0.0, now - one.stored.next_due)


MEASURES: dict[str, Measure] = {
    "lag": Measure(
        "", "{} messages wait on the broker", _reported(lambda r: r.lag), "1000", "10000"
    ),
    "lag_time": Measure(
        "s", "the oldest message waits for {}", _reported(lambda r: r.lag_seconds), "5m", "1h"
    ),
    "time_to_loss": Measure(
        "s",
        "loss in {}",
        _reported(lambda r: r.loss.seconds if r.loss else None),
        "1d:",
        "1h:",
        _loss,
    ),
    "rate": Measure("", "{} messages/s", _reported(lambda r: r.rate)),
    "running": Measure("", "{} running", _reported(lambda r: r.counts.running)),
    "held": Measure("", "{} held", _reported(lambda r: r.held)),
    "deferred": Measure("", "{} deferred", _stored(lambda s: s.deferred)),
    "overdue": Measure("s", "a deferred message is due since {}", _overdue, "15m"),
    "quarantined": Measure("", "{} quarantined", _stored(lambda s: s.quarantined), "0", "100"),
    "handled": Measure("c", "{} handled", _reported(lambda r: r.counts.acked)),
    "uptime": Measure("s", "up {}", _reported(lambda r: r.up)),
    "restarts": Measure("c", "{} restarts", lambda one, _: one.unit.restarts if one.unit else None),
    "outbox_waiting": Measure("", "{} wait in the outbox", _of_outbox(lambda o: o.waiting)),
    "outbox_dead": Measure(
        "", "{} in the outbox can never be sent", _of_outbox(lambda o: o.dead), "0"
    ),
    "outbox_oldest": Measure(
        "s",
        "the outbox waits since {}",
        _of_outbox(lambda o: 0 if o.oldest is None else o.oldest),
        "5m",
        "1h",
    ),
}


# Thresholds.


@dataclass(frozen=True, slots=True)
class Range:
    """A range of values that raise no alert (Monitoring Plugins, "Threshold and ranges").

    Attributes:
        low: The lowest of them.
        high: The highest.
        inverted: The values from *low* to *high* raise the alert instead.
    """

    low: float = 0.0
    high: float = math.inf
    inverted: bool = False

    def alerts(self, value: float) -> bool:
        """Return True if *value* raises the alert."""
        return (self.low <= value <= self.high) is self.inverted

    def __str__(self) -> str:
        """Return the range as the guidelines write it."""
        low = "~:" if self.low == -math.inf else f"{number(self.low)}:" if self.low else ""
        high = "" if self.high == math.inf else number(self.high)
        return f"{'@' * self.inverted}{low or ('' if high else '0:')}{high}"


def number(value: float) -> str:
    """Write a value of performance data: no exponent, three decimals at most."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def range_of(given: str, unit: str = "") -> Range:
    """Read a range: ``10``, ``10:``, ``~:10``, ``10:20``, ``@10:20``; in seconds also ``5m``.

    Raises:
        ThresholdError: It is none.
    """
    wrong = ThresholdError(
        f"{given!r} is no range: write 10 (alert above), 10: (below), 10:20 (outside), "
        "@10:20 (inside), or ~: (never)"
    )
    low, colon, high = given.removeprefix("@").rpartition(":")
    try:
        found = Range(
            -math.inf if low == "~" else _number_in(low, unit) if low else 0.0,
            _number_in(high, unit) if high else math.inf,
            given.startswith("@"),
        )
    except ValueError:
        raise wrong from None
    if not (high or low) or (colon and not low) or found.low > found.high:
        raise wrong
    return found


def _number_in(given: str, unit: str) -> float:
    if unit == "s" and given[-1:].isalpha():
        return text.seconds(given)
    value = float(given)
    if not math.isfinite(value):
        raise ValueError(given)
    return value


# The range of each measure that has one.
Ranges = dict[str, Range]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The ranges of the measures; a measure without one raises no alert."""

    warn: Mapping[str, Range]
    crit: Mapping[str, Range]


def thresholds(warn: Iterable[str] = (), crit: Iterable[str] = ()) -> Thresholds:
    """Return the thresholds of :data:`MEASURES` with others in their place.

    Args:
        warn: Items such as ``"lag=100"``.
        crit: Likewise.

    Raises:
        ThresholdError: An item names no measure, or has no range.
    """
    defaults = {name: (one.warn, one.crit) for name, one in MEASURES.items()}
    warnings = [f"{name}={given}" for name, (given, _) in defaults.items() if given]
    criticals = [f"{name}={given}" for name, (_, given) in defaults.items() if given]
    return Thresholds(_ranges([*warnings, *warn]), _ranges([*criticals, *crit]))


def _ranges(items: Iterable[str]) -> Ranges:
    found: Ranges = {}
    for item in items:
        name, equals, given = item.partition("=")
        if not equals:
            raise ThresholdError(f"{item!r} is no threshold: write quarantined=10")
        if name not in MEASURES:
            raise ThresholdError(f"there is no value {name!r}; there are {', '.join(MEASURES)}")
        found[name] = range_of(given, MEASURES[name].unit)
    return found


# The decision.


class Finding(NamedTuple):
    """One fact about an instance, and its severity."""

    severity: Severity
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement about one instance.

    Attributes:
        instance: Its name.
        findings: Its state first, then the values that are beyond a threshold.
        values: Its values that are known, in the order of :data:`MEASURES`.
    """

    instance: str
    findings: tuple[Finding, ...]
    values: Mapping[str, float]

    @property
    def severity(self) -> Severity:
        """Return the severity of the worst finding."""
        return worst(finding.severity for finding in self.findings)

    @property
    def problem(self) -> str:
        """Return the findings that are not OK, the worst first; "" for none."""
        bad = [one for one in self.findings if one.severity]
        bad.sort(key=lambda one: -_WEIGHT.index(one.severity))
        return ", ".join(one.text for one in bad)


# The states of an instance, as it reports them. One that does not consume for a reason that it
# gives is critical in every state; without a reason it is only starting or stopping.
_STATES = {
    "building": Severity.WARNING,
    "connecting": Severity.WARNING,
    "subscribing": Severity.WARNING,
    "consuming": Severity.OK,
    "paused": Severity.CRITICAL,
    "failing": Severity.CRITICAL,
    "draining": Severity.WARNING,
    "stopped": Severity.WARNING,
}
# The states of its unit while it gives no report; systemctl(1) calls them "active" and "sub".
_UNITS = {
    "failed": Severity.CRITICAL,
    "inactive": Severity.CRITICAL,
    "auto-restart": Severity.CRITICAL,
}
# The conditions that neither the state nor a value shows.
_CONDITIONS = {
    InstanceCondition.STUCK.value: Severity.CRITICAL,
    InstanceCondition.UNHEALTHY.value: Severity.CRITICAL,
    InstanceCondition.RETRYING.value: Severity.WARNING,
    InstanceCondition.SLOW.value: Severity.WARNING,
}
# The beginnings of remarks that an operator has to act on.
_REMARKS = ("blocked by the broker", "reload refused", "monitoring port")


def judge_all(
    host: HostStatus, limits: Thresholds, now: float, *, every: bool = False
) -> list[Verdict]:
    """Judge the instances of a host.

    Args:
        host: Its instances.
        limits: The thresholds.
        now: Seconds since the epoch.
        every: Also those that need not run: stopped and disabled.
    """
    asked_for = [
        one
        for one in host.instances
        if every or one.should_run or (host.problem and one.is_configured)
    ]
    return [judge(one, limits, now, host.problem) for one in asked_for]


def judge(one: InstanceStatus, limits: Thresholds, now: float, no_systemd: str = "") -> Verdict:
    """Judge an instance.

    Args:
        one: Its status.
        limits: The thresholds.
        now: Seconds since the epoch.
        no_systemd: The reason why systemd could not be asked; "" for none.
    """
    known = ((name, measure.of(one, now)) for name, measure in MEASURES.items())
    values = {name: value for name, value in known if value is not None}
    findings = [
        _state(one, no_systemd),
        *_condition(one),
        *_remarks(one),
        *_beyond(one, values, limits),
    ]
    return Verdict(one.name, tuple(findings), values)


def _state(one: InstanceStatus, no_systemd: str) -> Finding:
    if one.report:
        return _reported_state(one.report)
    if not one.is_known:
        return Finding(Severity.UNKNOWN, "there is no such instance")
    if one.is_silent and one.problem:
        return Finding(Severity.CRITICAL, one.problem)
    if no_systemd and not one.is_active:
        return Finding(Severity.UNKNOWN, one.problem or f"systemd was not asked: {no_systemd}")
    return _silent_state(one) if one.is_active else _unit_state(one)


def _silent_state(one: InstanceStatus) -> Finding:
    if one.problem:
        return Finding(Severity.UNKNOWN, one.problem)
    return Finding(Severity.WARNING, "is starting, and does not answer yet")


def _reported_state(report: StatusReport) -> Finding:
    severity = _STATES.get(report.state, Severity.UNKNOWN)
    if severity is Severity.WARNING and report.trouble:
        severity = Severity.CRITICAL
    return Finding(severity, report.status or report.state)


def _unit_state(one: InstanceStatus) -> Finding:
    unit = one.unit
    if unit is None:
        return Finding(Severity.CRITICAL, "is stopped")
    state = unit.sub if unit.sub in _UNITS else unit.active
    what = "is stopped" if state == "inactive" else f"{unit.active} ({_reason(one)})"
    words = f"{what}: {unit.text}" if unit.text else what
    return Finding(_UNITS.get(state, Severity.WARNING), words)


def _reason(one: InstanceStatus) -> str:
    unit = one.unit
    assert unit is not None  # noqa: S101 -- for mypy
    if unit.active != "failed":
        return unit.sub
    return f"exit code {unit.exit_status}" if unit.exit_status else unit.result


def _condition(one: InstanceStatus) -> Iterator[Finding]:
    report = one.report
    if report and report.condition in _CONDITIONS:
        yield Finding(_CONDITIONS[report.condition], f"{report.condition}: {report.reason}")


def _remarks(one: InstanceStatus) -> Iterator[Finding]:
    for remark in one.report.remarks if one.report else ():
        if remark.startswith(_REMARKS):
            yield Finding(Severity.WARNING, remark)


def _beyond(
    one: InstanceStatus, values: Mapping[str, float], limits: Thresholds
) -> Iterator[Finding]:
    nothing = Range(low=-math.inf)
    for name, value in values.items():
        severity = Severity.OK
        if limits.warn.get(name, nothing).alerts(value):
            severity = Severity.WARNING
        if limits.crit.get(name, nothing).alerts(value):
            severity = Severity.CRITICAL
        if severity:
            shown = text.age(value) if MEASURES[name].unit == "s" else _shown(value)
            words = MEASURES[name].words.format(shown)
            yield Finding(severity, f"{words}{MEASURES[name].more(one)}")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else number(value)
