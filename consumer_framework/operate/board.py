# SPDX-License-Identifier: GPL-2.0-or-later
"""The values of ``fm-consumer top``: the rows of all instances, in order, with their recent past.

Nothing here asks or draws. :meth:`Board.add` takes the rows of one look, and :meth:`Board.lines`
returns the lines of the table.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from consumer_framework.core.text import age, plural, rate_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .rows import Row

# Looks that are remembered: an hour at the usual interval takes 32 kB for an instance.
MEMORY = 1800
_BARS = "▁▂▃▄▅▆▇█"


class Urgency(IntEnum):
    """The urgency of a look at an instance; the most urgent comes first."""

    BROKEN = 0
    HALTED = 1
    DOUBTFUL = 2
    CHANGING = 3
    WELL = 4
    OFF = 5


# By condition; another one, of a later release, is doubtful.
_URGENCIES = MappingProxyType(
    {
        "failed": Urgency.BROKEN,
        "stuck": Urgency.BROKEN,
        "silent": Urgency.BROKEN,
        "no answer": Urgency.BROKEN,
        "no instance": Urgency.OFF,
        "failing": Urgency.BROKEN,
        "paused": Urgency.HALTED,
        "stopped": Urgency.OFF,
        **dict.fromkeys(
            ("starting", "building", "connecting", "subscribing", "draining", "activating"),
            Urgency.CHANGING,
        ),
        **dict.fromkeys(("consuming", "idle", "running"), Urgency.WELL),
    }
)


def urgency_of(row: Row) -> Urgency:
    """Return the urgency of an instance."""
    urgency = _URGENCIES.get(row.condition, Urgency.DOUBTFUL)
    if urgency is Urgency.OFF and row.should_run:
        return Urgency.BROKEN
    return urgency


@dataclass(frozen=True, slots=True)
class Key:
    """An instance on a host."""

    host: str
    name: str

    def __str__(self) -> str:
        return f"{self.host}:{self.name}" if self.host else self.name


@dataclass(slots=True)
class _Past:
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))
    lags: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Attributes:
        key: The instance.
        row: Its values.
        urgency: How soon somebody should look.
        rates: Its rates in the past, the oldest first.
        lags: Its lags, likewise.
    """

    key: Key
    row: Row
    urgency: Urgency
    rates: Sequence[float] = ()
    lags: Sequence[float] = ()


class Board:
    """The instances of one or several hosts, look after look."""

    def __init__(self) -> None:
        self._rows: dict[Key, Row] = {}
        self._past: dict[Key, _Past] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Take the rows of a look; instances that are not in it are gone."""
        self._rows = {Key(row.host, row.name): row for row in rows}
        self._past = {key: self._past.get(key) or _Past() for key in self._rows}
        for key, row in self._rows.items():
            # An instance that does not answer handles nothing that anybody knows of.
            self._past[key].rates.append(row.rate or 0.0)
            self._past[key].lags.append(float(row.lag or 0))

    def line(self, key: Key) -> Line | None:
        """Return the line of an instance; None if it is gone."""
        row = self._rows.get(key)
        if row is None:
            return None
        past = self._past[key]
        return Line(key, row, urgency_of(row), tuple(past.rates), tuple(past.lags))

    def lines(self, pattern: str = "") -> list[Line]:
        """Return the lines, the most urgent first, and then by name.

        Args:
            pattern: A part of the name, the host or the condition; "" for all.
        """
        found = [line for key in self._rows if (line := self.line(key)) and _fits(line, pattern)]
        return sorted(found, key=lambda line: (line.urgency, str(line.key)))

    @property
    def summary(self) -> str:
        """The line above the table."""
        rows = [row for row in self._rows.values() if row.name]
        counts = Counter(row.condition for row in sorted(rows, key=urgency_of))
        conditions = ", ".join(f"{count} {condition}" for condition, count in counts.items())
        head = f"{plural(len(rows), 'instance')}: {conditions}" if rows else "no instance"
        sums = (
            rate_cell(sum(row.rate or 0 for row in rows)),
            f"lag {short(sum(row.lag or 0 for row in rows))}",
            f"{short(sum(row.quarantined or 0 for row in rows))} quarantined",
        )
        return f"{head} | {', '.join(sums)}"


def _fits(line: Line, pattern: str) -> bool:
    text = f"{line.key} {line.row.group} {line.row.condition}"
    return pattern.casefold() in text.casefold()


# The texts of cells.


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the last *values* as bars, one column for each; 0 is a space.

    Args:
        values: None of them negative. The largest that is shown has the highest bar.
        width: Columns. Bars are flush right.
    """
    shown = list(values[-width:]) if width > 0 else []
    most = max(shown, default=0.0)
    return "".join(_bar(value, most) for value in shown).rjust(width)


def _bar(value: float, most: float) -> str:
    if value <= 0 or most <= 0:
        return " "
    return _BARS[min(int(value / most * len(_BARS)), len(_BARS) - 1)]


def short(number: float | None) -> str:
    """Write a count in five columns: ``9999``, ``12.3k``, ``456k``, ``7.8M``; ``-`` for None."""
    if number is None:
        return "-"
    if number < _PLAIN:
        return f"{number:.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        scaled = number / size
        if scaled < _THREE_DIGITS:
            return f"{scaled:.1f}{unit}" if scaled < _TWO_DIGITS else f"{scaled:.0f}{unit}"
    return f"{number / 1e12:.0f}T"


# Numbers below are written out; the others have rounded to fewer digits than these below them.
_PLAIN, _TWO_DIGITS, _THREE_DIGITS = 9999.5, 99.95, 999.5


def rate_cell(rate: float | None) -> str:
    """Write a rate, such as ``118/s``; ``-`` for None."""
    return "-" if rate is None else rate_text(rate)


def age_cell(seconds: float | None) -> str:
    """Write a length of time, such as ``90m``; ``-`` for None."""
    return "-" if seconds is None else age(seconds)
