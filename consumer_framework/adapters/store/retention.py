# SPDX-License-Identifier: GPL-2.0-or-later
"""What the store gives up, by age and by size: exported to a file first, and then deleted.

Deletes rows, each with what it supersedes, and gives their space back to the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from consumer_framework.core.errors import DamagedRowError, StoreError

from .export import append, expired_line_of
from .files import DATABASE, described
from .reader import Reader

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

    from consumer_framework.core.delivery import Delivery

    from .records import Row

# A row and what it supersedes.
FAMILY = """WITH RECURSIVE family (id, parent) AS (
    SELECT id, parent FROM messages WHERE id = ?
    UNION SELECT m.id, m.parent FROM messages AS m JOIN family ON m.id = family.parent)
    SELECT id FROM family"""

# Pages of 4 KiB: so many free ones are kept for what comes next, and so many more are given back
# to the disk in one go.
_RESERVE = 1000
_PORTION = 10_000


def family_of(connection: sqlite3.Connection, number: int) -> list[int]:
    """Return the numbers of a row and of all that it supersedes."""
    return [member for (member,) in connection.execute(FAMILY, (number,))]


def delete(connection: sqlite3.Connection, numbers: list[int]) -> None:
    """Delete rows and all that they supersede."""
    for number in numbers:
        for member in family_of(connection, number):
            connection.execute("DELETE FROM messages WHERE id = ?", (member,))
    _give_space_back(connection)


def _give_space_back(connection: sqlite3.Connection) -> None:
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    # One page for each call: Python takes one step of a statement that has no columns.
    for _ in range(min(free - _RESERVE, _PORTION)):
        connection.execute("PRAGMA incremental_vacuum(1)")


OLDEST = """SELECT id, kept FROM messages WHERE state = 'quarantined'
    ORDER BY updated, id"""
AGED = """SELECT id FROM messages WHERE state = 'quarantined' AND updated <= ?
    ORDER BY updated LIMIT ?"""

# Bytes.
_SLACK = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the store keeps for operators; deferred messages are never given up.

    Attributes:
        max_age: Quarantined messages expire after so many seconds without a change, None for
            never.
        max_bytes: All messages, with their properties and attempts, take so much at most: the
            oldest quarantined ones make room. None for no limit.
    """

    max_age: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """Makes room for what is written.

    Attributes:
        max_bytes: See :class:`Limits`.
        export_to: The file that expired messages are appended to.
    """

    max_bytes: int | None
    export_to: Path

    def make(self, connection: sqlite3.Connection, size: int) -> None:
        """Expire the oldest quarantined rows until a row of *size* bytes fits.

        One that is larger than the whole limit fits where nothing else is: it must be kept
        somewhere, or it would block every message behind it.

        Raises:
            StoreError: It does not fit because of messages that must not expire, or those that
                must cannot be exported.
        """
        chosen, missing = self._choose(connection, size)
        if missing:
            used = _used(connection)
            raise StoreError(
                f"{self.export_to.parent / DATABASE}: full ({used} bytes of {self.max_bytes}) "
                "of messages that are deferred or in a replay; raise quarantine_max_bytes"
            )
        expire_rows(connection, chosen, self.export_to)

    def make_more(self, connection: sqlite3.Connection, size: int, number: int) -> None:
        """Expire others, as far as there are some, for row *number* that grows by *size* bytes."""
        if size > 0:
            chosen, _ = self._choose(connection, size, number)
            expire_rows(connection, chosen, self.export_to)

    def _choose(
        self, connection: sqlite3.Connection, size: int, spared: int = 0
    ) -> tuple[list[int], bool]:
        """Return what to expire for *size* bytes, and whether that is not enough."""
        if self.max_bytes is None:
            return [], False
        used = _used(connection)
        excess = used + size - self.max_bytes
        slack = min(self.max_bytes // 16, _SLACK)
        chosen, freed = _choose(connection, excess, slack, spared)
        return chosen, freed < min(excess, used)


def _used(connection: sqlite3.Connection) -> int:
    used: int = connection.execute("SELECT sum(bytes) FROM totals").fetchone()[0]
    return used


def _choose(
    connection: sqlite3.Connection, excess: int, slack: int, spared: int
) -> tuple[list[int], int]:
    """Return the oldest quarantined rows that free *excess* bytes, and how many they free.

    Row *spared* is none of them. They free *slack* more where they can, or each write of a burst
    would export, and sync, a row.
    """
    chosen: list[int] = []
    freed = 0
    if excess > 0:
        for number, size in connection.execute(OLDEST):
            if freed >= excess + slack:
                break
            if number == spared:
                continue
            chosen.append(number)
            freed += size
    return chosen, freed


def expire(before: float, limit: int, export_to: Path) -> Callable[[sqlite3.Connection], int]:
    """Export and delete *limit* rows quarantined until *before*; returns how many there were."""

    def operation(connection: sqlite3.Connection) -> int:
        aged = [number for (number,) in connection.execute(AGED, (before, limit))]
        expire_rows(connection, aged, export_to)
        return len(aged)

    return operation


def expire_rows(connection: sqlite3.Connection, numbers: list[int], export_to: Path) -> None:
    """Append rows to a file, what they supersede included, and then delete them.

    Where the deletion is not committed afterwards, they are exported again with the next try.

    Raises:
        StoreError: They cannot be exported, and are all there still.
    """
    if numbers:
        reader = Reader(export_to, connection)
        family = (member for number in numbers for member in family_of(connection, number))
        with described(export_to):
            append(export_to, (_expired_line(reader, number) for number in family))
        delete(connection, numbers)


def _expired_line(reader: Reader, number: int) -> str:
    # Within one transaction: what was found is there.
    row = cast("Row", reader.row(number))
    try:
        return expired_line_of(row, cast("Delivery", reader.delivery(number)))
    except DamagedRowError as error:
        return reader.damaged_line(error)
