# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of the store: rows that are too old, or one too many, expire.

Only quarantined rows expire; deferred rows never do. An expired row is first appended to a file
and then deleted. A deleted row takes the originals with it that it supersedes, and their space
goes back to the disk.
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
    from pathlib import Path

    from consumer_framework.core.delivery import Delivery

    from .records import Row

AGED = """SELECT id FROM messages WHERE state = 'quarantined' AND updated <= ?
    ORDER BY updated LIMIT ?"""
OLDEST = """SELECT id, kept FROM messages WHERE state = 'quarantined'
    ORDER BY updated, id"""
_USED = "SELECT sum(bytes) FROM totals"
_WITH_ORIGINALS = """WITH RECURSIVE found (id, parent) AS (
    SELECT id, parent FROM messages WHERE id = ?
    UNION SELECT m.id, m.parent FROM messages AS m JOIN found ON m.id = found.parent)
    SELECT id FROM found"""

# Bytes that are freed beyond the need where possible. Without it, each write of a burst would
# export one row, and sync.
_SLACK = 1 << 20
# Pages of 4 KiB: the database keeps _RESERVE free pages for the next writes, and gives back at most
# _PORTION pages to the disk in one go.
_RESERVE = 1000
_PORTION = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of age and size; deferred messages never expire.

    Attributes:
        max_age: Quarantined messages expire after so many seconds without a change, None for
            never.
        max_bytes: The limit for all messages, with their properties and attempts; the oldest
            quarantined messages make room. None for no limit.
    """

    max_age: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """Makes room for rows that are written.

    Attributes:
        max_bytes: See :class:`Limits`.
        export_to: The file that expired rows are appended to.
    """

    max_bytes: int | None
    export_to: Path

    def make_room(self, connection: sqlite3.Connection, size: int) -> None:
        """Expire the oldest quarantined rows until a row of *size* bytes fits.

        A row that is larger than the whole limit fits into an empty store: it must be kept
        somewhere, or it would block every message behind it.

        Raises:
            StoreError: The row does not fit beside the rows that must not expire, or rows that
                should expire cannot be exported.
        """
        chosen, fits = self._choose(connection, size)
        if not fits:
            used = _used(connection)
            raise StoreError(
                f"{self.export_to.parent / DATABASE}: full ({used} bytes of {self.max_bytes}) "
                "of messages that are deferred or in a replay; raise quarantine_max_bytes"
            )
        expire_rows(connection, chosen, self.export_to)

    def make_room_to_grow(self, connection: sqlite3.Connection, size: int, number: int) -> None:
        """Expire other rows, as far as there are any, where row *number* grows by *size* bytes."""
        if size > 0:
            chosen, _ = self._choose(connection, size, number)
            expire_rows(connection, chosen, self.export_to)

    def _choose(
        self, connection: sqlite3.Connection, size: int, spared: int = 0
    ) -> tuple[list[int], bool]:
        """Return the rows to expire for *size* bytes, and whether these are enough."""
        if self.max_bytes is None:
            return [], True
        used = _used(connection)
        excess = used + size - self.max_bytes
        if excess <= 0:
            return [], True
        chosen: list[int] = []
        freed = 0
        enough = excess + min(self.max_bytes // 16, _SLACK)
        for number, row_size in connection.execute(OLDEST):
            if freed >= enough:
                break
            if number != spared:
                chosen.append(number)
                freed += row_size
        return chosen, freed >= min(excess, used)


def _used(connection: sqlite3.Connection) -> int:
    used: int = connection.execute(_USED).fetchone()[0]
    return used


def expire(connection: sqlite3.Connection, before: float, limit: int, export_to: Path) -> int:
    """Expire at most *limit* rows that were quarantined until *before*; return their number."""
    aged = [number for (number,) in connection.execute(AGED, (before, limit))]
    expire_rows(connection, aged, export_to)
    return len(aged)


def expire_rows(connection: sqlite3.Connection, numbers: list[int], export_to: Path) -> None:
    """Append rows and their originals to a file, and then delete them.

    Where the deletion is not committed afterwards, the next try exports them again.

    Raises:
        StoreError: They cannot be exported; all are still in the store.
    """
    if numbers:
        reader = Reader(export_to, connection)
        rows = (row for number in numbers for row in _with_originals(connection, number))
        with described(export_to):
            append(export_to, (_expired_line(reader, row) for row in rows))
        delete(connection, numbers)


def _expired_line(reader: Reader, number: int) -> str:
    # Within one transaction: the row that was found is there.
    row = cast("Row", reader.row(number))
    try:
        return expired_line_of(row, cast("Delivery", reader.delivery(number)))
    except DamagedRowError as error:
        return reader.damaged_line(error)


def delete(connection: sqlite3.Connection, numbers: list[int]) -> None:
    """Delete rows and all originals that they supersede."""
    for number in numbers:
        for row in _with_originals(connection, number):
            connection.execute("DELETE FROM messages WHERE id = ?", (row,))
    _give_space_back(connection)


def _with_originals(connection: sqlite3.Connection, number: int) -> list[int]:
    return [row for (row,) in connection.execute(_WITH_ORIGINALS, (number,))]


def _give_space_back(connection: sqlite3.Connection) -> None:
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    # One page for each call: Python takes one step of a statement that has no columns.
    for _ in range(min(free - _RESERVE, _PORTION)):
        connection.execute("PRAGMA incremental_vacuum(1)")
