# SPDX-License-Identifier: GPL-2.0-or-later
"""What the writer does: each function returns one operation for its thread.

The later one of two writes of a message wins; the row, its number and its body stay. (The body of
the two can differ only where an operator has edited the row's.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from consumer_framework.core.errors import JournalError

from .export import append, expired_line_of
from .files import DATABASE, described
from .reader import Reader
from .records import attempt_columns, columns_of, text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery

    from .records import Row, State


FIND_ROW = "SELECT id, state FROM messages WHERE id = ?"
FIND_KEY = "SELECT id, state FROM messages WHERE queue = ? AND key = ?"
OLDEST = """SELECT id, length(body) FROM messages WHERE state = 'quarantined'
    ORDER BY updated, id"""
AGED = """SELECT id FROM messages WHERE state = 'quarantined' AND updated <= ?
    ORDER BY updated LIMIT ?"""
# A row and what it supersedes.
FAMILY = """WITH RECURSIVE family (id, parent) AS (
    SELECT id, parent FROM messages WHERE id = ?
    UNION SELECT m.id, m.parent FROM messages AS m JOIN family ON m.id = family.parent)
    SELECT id FROM family"""

_INSERT = """INSERT INTO messages (queue, key, state, message_id, exchange, routing_key,
    redelivered, received_at, properties, body, due, reason, fingerprint, crashes, created, updated)
    VALUES (:queue, :key, :state, :message_id, :exchange, :routing_key, :redelivered, :received_at,
    :properties, :body, :due, :reason, :fingerprint, :crashes, :now, :now)"""
_UPDATE = """UPDATE messages SET state = :state, due = :due, reason = :reason,
    fingerprint = :fingerprint, crashes = :crashes, updated = :now WHERE id = :id"""
_ATTEMPT = """INSERT INTO attempts (row_id, at, error, message, traceback, fingerprint)
    VALUES (?, ?, ?, ?, ?, ?)"""
_CHILD = """INSERT INTO messages (queue, key, state, message_id, exchange, routing_key,
    redelivered, received_at, properties, body, due, reason, fingerprint, crashes, created, updated,
    parent)
    SELECT queue, ?, 'quarantined', message_id, exchange, routing_key, redelivered, received_at,
    properties, ?, NULL, reason, fingerprint, 0, ?, ?, id FROM messages WHERE id = ?"""
_CAUSE = "UPDATE messages SET fingerprint = ? WHERE id = ?"
_RENAME = "UPDATE messages SET key = ? WHERE id = ?"
_MOVE_ALL = "UPDATE messages SET state = ?, updated = ? WHERE state = ?"
_MOVE = "UPDATE messages SET state = ?, updated = ? WHERE id = ? AND state = ?"

T = TypeVar("T")
Operation: TypeAlias = "Callable[[sqlite3.Connection], T]"

# Bytes of bodies.
_SLACK = 1 << 20
# Pages of 4 KiB: so many free ones are kept for what comes next, and so many more are given back
# to the disk in one go.
_RESERVE = 1000
_PORTION = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the journal keeps for operators; deferred messages are never given up.

    Attributes:
        max_age: Quarantined messages expire after so many seconds without a change, None for
            never.
        max_bytes: The bodies of all messages take so much at most: the oldest quarantined ones
            make room. None for no limit.
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
        """Expire the oldest quarantined rows until a body of *size* bytes fits.

        One that is larger than the whole limit fits where nothing else is: it must be kept
        somewhere, or it would block every message behind it.

        Raises:
            JournalError: It does not fit because of messages that must not expire, or those that
                must cannot be exported.
        """
        if self.max_bytes is None:
            return
        used: int = connection.execute("SELECT sum(bytes) FROM totals").fetchone()[0]
        excess = used + size - self.max_bytes
        chosen, freed = _choose(connection, excess, min(self.max_bytes // 16, _SLACK))
        if freed < min(excess, used):
            raise JournalError(
                f"{self.export_to.parent / DATABASE}: full ({used} bytes of {self.max_bytes}) "
                "of messages that are deferred or in a replay; raise quarantine_max_bytes"
            )
        expire_rows(connection, chosen, self.export_to)


def _choose(connection: sqlite3.Connection, excess: int, slack: int) -> tuple[list[int], int]:
    """Return the oldest quarantined rows that free *excess* bytes, and how many they free.

    They free *slack* more where they can, or each write of a burst would export, and sync, a row.
    """
    chosen: list[int] = []
    freed = 0
    if excess > 0:
        for number, size in connection.execute(OLDEST):
            if freed >= excess + slack:
                break
            chosen.append(number)
            freed += size
    return chosen, freed


@dataclass(frozen=True, slots=True)
class Place:
    """Where a delivery is put, and why.

    Attributes:
        state: The state of its row.
        reason: One line.
        now: Seconds since the epoch.
        due: When it runs again, in seconds since the epoch; None unless it is deferred.
    """

    state: State
    reason: str
    now: float
    due: float | None = None


def put(delivery: Delivery, place: Place, room: Room) -> Operation[int]:
    """Keep *delivery* at *place*; returns the number of its row."""
    # Read on the caller's thread, for the handler's message shares the properties.
    attempts = [attempt_columns(attempt) for attempt in delivery.history.attempts]
    reason = text(place.reason)
    columns = columns_of(delivery) | {
        "state": place.state,
        "due": place.due,
        "reason": reason,
        "fingerprint": attempts[-1][-1] if attempts else reason,
        "now": place.now,
    }

    def operation(connection: sqlite3.Connection) -> int:
        number = _find(connection, delivery.row, columns)
        if number is None:
            room.make(connection, len(delivery.body))
            number = connection.execute(_INSERT, columns).lastrowid
        else:
            connection.execute(_UPDATE, columns | {"id": number})
            connection.execute("DELETE FROM attempts WHERE row_id = ?", (number,))
        connection.executemany(_ATTEMPT, [(number, *attempt) for attempt in attempts])
        return cast("int", number)

    return operation


def _find(connection: sqlite3.Connection, number: int, columns: dict[str, Any]) -> int | None:
    """Return the row that a delivery came from, or else the one of the same message."""
    found = connection.execute(FIND_ROW, (number,)).fetchone()
    if found is None:
        found = connection.execute(FIND_KEY, (columns["queue"], columns["key"])).fetchone()
    return None if found is None else found[0]


def move(number: int, before: State, after: State, now: float) -> Operation[bool]:
    """Put a row in state *after*; returns False, and does nothing, unless it is in *before*."""

    def operation(connection: sqlite3.Connection) -> bool:
        return connection.execute(_MOVE, (after, now, number, before)).rowcount == 1

    return operation


def release(number: int, attempt: Attempt | None, now: float) -> Operation[bool]:
    """Give a claimed row back, with one more *attempt*; returns whether it was claimed."""
    give_back = move(number, "replaying", "quarantined", now)

    def operation(connection: sqlite3.Connection) -> bool:
        if not give_back(connection):
            return False
        if attempt is not None:
            columns = attempt_columns(attempt)
            connection.execute(_ATTEMPT, (number, *columns))
            connection.execute(_CAUSE, (columns[-1], number))
        return True

    return operation


def release_all(now: float) -> Operation[int]:
    """Give back every claimed row: who claimed it is dead. Returns how many there were."""

    def operation(connection: sqlite3.Connection) -> int:
        return connection.execute(_MOVE_ALL, ("quarantined", now, "replaying")).rowcount

    return operation


def remove(numbers: Iterable[int], states: Collection[State]) -> Operation[list[int]]:
    """Delete rows that are in one of *states*, and what they supersede; returns their numbers."""

    def operation(connection: sqlite3.Connection) -> list[int]:
        found = [number for number in numbers if _state(connection, number) in states]
        _delete(connection, found)
        return found

    return operation


def _state(connection: sqlite3.Connection, number: int) -> State | None:
    found = connection.execute(FIND_ROW, (number,)).fetchone()
    return None if found is None else found[1]


def supersede(number: int, body: bytes, now: float, room: Room) -> Operation[int | None]:
    """Make a row with another *body* to stand for a quarantined one; returns its number or None.

    It takes the key over: where the broker delivers the original again, it is known.
    """

    def operation(connection: sqlite3.Connection) -> int | None:
        if not move(number, "quarantined", "superseded", now)(connection):
            return None
        room.make(connection, len(body))
        key = connection.execute("SELECT key FROM messages WHERE id = ?", (number,)).fetchone()[0]
        connection.execute(_RENAME, (key + b"/%d" % number, number))
        return connection.execute(_CHILD, (key, body, now, now, number)).lastrowid

    return operation


def expire(before: float, limit: int, export_to: Path) -> Operation[int]:
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
        JournalError: They cannot be exported, and are all there still.
    """
    if numbers:
        reader = Reader(export_to, connection)
        family = (member for number in numbers for member in _family(connection, number))
        with described(export_to):
            append(export_to, (_expired_line(reader, number) for number in family))
        _delete(connection, numbers)


def _expired_line(reader: Reader, number: int) -> str:
    row, delivery = reader.row(number), reader.delivery(number)
    # Within one transaction: what was found is there.
    return expired_line_of(cast("Row", row), cast("Delivery", delivery))


def _family(connection: sqlite3.Connection, number: int) -> list[int]:
    return [member for (member,) in connection.execute(FAMILY, (number,))]


def _delete(connection: sqlite3.Connection, numbers: list[int]) -> None:
    for number in numbers:
        for member in _family(connection, number):
            connection.execute("DELETE FROM messages WHERE id = ?", (member,))
    _give_space_back(connection)


def _give_space_back(connection: sqlite3.Connection) -> None:
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    # One page for each call: Python takes one step of a statement that has no columns.
    for _ in range(min(free - _RESERVE, _PORTION)):
        connection.execute("PRAGMA incremental_vacuum(1)")
