# SPDX-License-Identifier: GPL-2.0-or-later
"""Deletes rows, each with what it supersedes, and gives their space back to the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

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
