# SPDX-License-Identifier: GPL-2.0-or-later
"""The replay in stages that is under way or was interrupted: its plan, its rows and their results.

The store has one at most. A row's result is written after its message is settled: a process that
dies between the two runs the row again if it is still there, and otherwise finds it gone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.core.ramp import Progress, Ramp

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

PLAN = "SELECT plan, started FROM ramp"
ROWS = "SELECT row_id, result FROM ramp_rows ORDER BY position"


@dataclass(frozen=True, slots=True)
class StoredRamp:
    """A replay in stages, as the store has it.

    Attributes:
        plan: Its plan.
        started: When it began, in seconds since the epoch.
        rows: The numbers of all its rows, in the order in which they run.
        results: The results of those that ran, the first ones.
    """

    plan: Ramp
    started: float
    rows: tuple[int, ...]
    results: tuple[str, ...]

    @property
    def progress(self) -> Progress:
        """The point that it has come to."""
        return Progress.begin(self.plan, len(self.rows), self.results)

    @property
    def facts(self) -> dict[str, Any]:
        """Its plan and the point that it has come to, as JSON has them."""
        progress = self.progress
        return {
            "started": self.started,
            "rows": progress.total,
            "ran": progress.position,
            "succeeded": progress.succeeded,
            "failed": progress.failed,
            "ramp": list(self.plan.stages),
            "rate": self.plan.rate,
            "stop_at": self.plan.stop_at,
        }


def ramp_of(row: Sequence[Any], rows: Iterable[Sequence[Any]]) -> StoredRamp:
    """Return the ramp of the columns of :data:`PLAN` and the rows of :data:`ROWS`."""
    plan, started = row
    pairs = [tuple(pair) for pair in rows]
    found = json.loads(plan)
    ramp = Ramp(tuple(found["stages"]), found["stop_at"], found["rate"])
    results = tuple(result for _, result in pairs if result is not None)
    return StoredRamp(ramp, started, tuple(number for number, _ in pairs), results)


def begin(connection: sqlite3.Connection, ramp: Ramp, rows: Sequence[int], now: float) -> None:
    """Write a ramp in place of the former one."""
    end(connection)
    plan = json.dumps(asdict(ramp))
    connection.execute("INSERT INTO ramp (id, plan, started) VALUES (1, ?, ?)", (plan, now))
    numbered = enumerate(rows)
    connection.executemany("INSERT INTO ramp_rows (position, row_id) VALUES (?, ?)", numbered)


def record(connection: sqlite3.Connection, position: int, result: str) -> None:
    """Write the result of the row at *position*."""
    query = "UPDATE ramp_rows SET result = ? WHERE position = ?"
    connection.execute(query, (result, position))


def nothing(_connection: sqlite3.Connection) -> None:
    """Do nothing, behind all writes before."""


def end(connection: sqlite3.Connection) -> None:
    """Forget the ramp."""
    connection.execute("DELETE FROM ramp")
    connection.execute("DELETE FROM ramp_rows")
