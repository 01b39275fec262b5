# SPDX-License-Identifier: GPL-2.0-or-later
"""The output of ``fm-consumer status`` for monitoring systems: Nagios and its like, and Zabbix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import click

from consumer_framework.adapters.systemd.systemctl import unit_name
from consumer_framework.core.text import plural
from consumer_framework.operate.monitoring import MEASURES, Severity, number, worst

from .terminal import safe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from consumer_framework.operate.monitoring import Thresholds, Verdict
    from consumer_framework.operate.status import HostStatus

SERVICE = "FM-CONSUMER"


def unknown(why: str) -> NoReturn:
    """Print the line of a check that could not be made, and end with its exit code."""
    click.echo(_line(Severity.UNKNOWN, why))
    raise click.exceptions.Exit(Severity.UNKNOWN)


def _line(severity: Severity, words: str) -> str:
    # A bar begins the performance data.
    return f"{SERVICE} {severity.name}: {safe(' '.join(words.split())).replace('|', '/')}"


def nagios_line(verdicts: Sequence[Verdict], limits: Thresholds) -> str:
    """Return the line of a check: the severity, the reasons, and performance data."""
    data = " ".join(item for one in verdicts for item in _performance_data(one, limits))
    line = _line(worst(one.severity for one in verdicts), _summary(verdicts))
    return f"{line} | {data}" if data else line


def _summary(verdicts: Sequence[Verdict]) -> str:
    bad = sorted((one for one in verdicts if one.severity), key=_by_severity)
    if bad:
        of_all = f"{len(bad)} of {plural(len(verdicts), 'instance')}: " if verdicts[1:] else ""
        return of_all + "; ".join(f"{one.instance}: {one.problem}" for one in bad)
    if verdicts[1:]:
        names = ", ".join(one.instance for one in verdicts)
        return f"{plural(len(verdicts), 'instance')}: {names}"
    return "; ".join(f"{one.instance}: {one.findings[0].text}" for one in verdicts)


def _by_severity(one: Verdict) -> tuple[bool, bool]:
    return one.severity is not Severity.CRITICAL, one.severity is Severity.UNKNOWN


def _performance_data(one: Verdict, limits: Thresholds) -> Iterator[str]:
    # 'label'=value[unit];[warn];[crit];[min]
    name = "".join("_" if c in "='|" or not c.isprintable() else c for c in one.instance)
    quote = "'" if " " in name else ""
    for measure, value in one.values.items():
        warn, crit = (str(ranges.get(measure, "")) for ranges in (limits.warn, limits.crit))
        label = f"{quote}{name}.{measure}{quote}"
        yield f"{label}={number(value)}{MEASURES[measure].unit};{warn};{crit};0"


def discovery(host: HostStatus) -> list[dict[str, str]]:
    """Return the instances for a discovery rule of Zabbix."""
    return [
        {
            "{#INSTANCE}": one.name,
            "{#GROUP}": group,
            "{#UNIT}": unit_name(one.name),
            "{#ENABLED}": str(int(one.should_run)),
        }
        for group, instances in host.groups.items()
        for one in instances
    ]


def items(verdicts: Sequence[Verdict], host: HostStatus) -> dict[str, dict[str, Any]]:
    """Return the values of each instance for Zabbix; values that are not known are left out."""
    found = {one.name: one for one in host.instances}
    return {
        one.instance: {
            "severity": int(one.severity),
            "problem": one.problem,
            "active": int(found[one.instance].is_active),
            "state": report.state if (report := found[one.instance].report) else "",
            "condition": report.condition if report else "",
            "text": one.findings[0].text,
            **one.values,
        }
        for one in verdicts
    }
