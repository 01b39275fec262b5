# SPDX-License-Identifier: GPL-2.0-or-later
"""What the writer does: each function returns one operation for its thread.

The later one of two writes of a message wins; the row, its number, its lane and its body stay. (The
body of the two can differ only where an operator has edited the row's.)

Each operation leaves every lane in order: a row that is deferred never stands behind a quarantined
one, or it would never run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from consumer_framework.core.secrets import redact

from .lanes import lane_of, quarantine_followers
from .records import attempt_columns, checksum_of, columns_of, size_of, text
from .removal import delete

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery

    from .records import State
    from .room import Room

FIND_ROW = "SELECT id, state FROM messages WHERE id = ?"
FIND_KEY = "SELECT id, state FROM messages WHERE queue = ? AND key = ?"
_INSERT = """INSERT INTO messages (queue, key, state, message_id, exchange, routing_key,
    redelivered, received_at, properties, body, due, reason, fingerprint, crashes, created, updated,
    lane, checksum, kept)
    VALUES (:queue, :key, :state, :message_id, :exchange, :routing_key, :redelivered, :received_at,
    :properties, :body, :due, :reason, :fingerprint, :crashes, :now, :now, :lane,
    :checksum, :kept)"""
_UPDATE = """UPDATE messages SET state = :state, due = :due, reason = :reason,
    fingerprint = :fingerprint, crashes = :crashes, updated = :now, kept = :kept WHERE id = :id"""
_ATTEMPT = """INSERT INTO attempts (row_id, at, error, message, traceback, fingerprint)
    VALUES (?, ?, ?, ?, ?, ?)"""
_CHILD = """INSERT INTO messages (queue, key, state, message_id, exchange, routing_key,
    redelivered, received_at, properties, body, due, reason, fingerprint, crashes, created, updated,
    lane, parent, origin, checksum, kept)
    SELECT queue, ?, 'quarantined', message_id, exchange, routing_key, redelivered, received_at,
    properties, ?, NULL, reason, fingerprint, 0, ?, ?, lane, id, position,
    ?, ?
    FROM messages WHERE id = ?"""
_CAUSE = "UPDATE messages SET fingerprint = ?, kept = kept + ? WHERE id = ?"
_SIZE = "SELECT kept FROM messages WHERE id = ?"
_RECEIVED = "SELECT * FROM messages WHERE id = ?"
_SET_ASIDE = """UPDATE messages SET state = 'quarantined', due = NULL, updated = :now,
    reason = :reason, fingerprint = :fingerprint WHERE id = :id AND state = 'deferred'"""
# What damaged rows have in common, whatever is wrong with each.
DAMAGED = "damaged in the journal"
_RENAME = "UPDATE messages SET key = ? WHERE id = ?"
_CLAIM = """UPDATE messages SET state = 'replaying', updated = ?
    WHERE id = ? AND state = 'quarantined' AND waits = 0"""
_CLAIMED_LANES = "SELECT DISTINCT lane FROM messages WHERE state = 'replaying'"
_RELEASE_ALL = "UPDATE messages SET state = 'quarantined', updated = ? WHERE state = 'replaying'"
_REBASE = """UPDATE messages SET due = due - (updated - :now), updated = :now
    WHERE state = 'deferred' AND updated > :now + :slack"""
# Seconds that a clock may be set back without notice, as NTP does it all the time.
CLOCK_SLACK = 5.0
_MOVE = "UPDATE messages SET state = ?, updated = ? WHERE id = ? AND state = ?"

# Bytes that tell the key of a message from that of an equal one.
_ANOTHER = 8

T = TypeVar("T")
Operation: TypeAlias = "Callable[[sqlite3.Connection], T]"


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


def put(
    delivery: Delivery, place: Place, room: Room, *, is_another: bool = False
) -> Operation[int]:
    """Keep *delivery* at *place*; returns the number of its row.

    A row that is gone was dropped by an operator while it ran, and does not come back.

    Args:
        delivery: Goes to the row that it came from, or else to that of the same message.
        place: Where it is put.
        room: Makes room for it.
        is_another: It has a row of its own, whatever equal messages have one.
    """
    # Read on the caller's thread, for the handler's message shares the properties.
    attempts = [attempt_columns(attempt) for attempt in delivery.history.attempts]
    reason = redact(text(place.reason))
    columns = columns_of(delivery) | {
        "state": place.state,
        "due": place.due,
        "reason": reason,
        "fingerprint": attempts[-1][-1] if attempts else reason,
        "now": place.now,
    }
    columns["kept"] = size_of(
        delivery.body,
        columns["properties"],
        reason,
        *(one for attempt in attempts for one in attempt[2:4]),
    )

    def operation(connection: sqlite3.Connection) -> int:
        key = columns["key"]
        number = _find(connection, delivery.row, columns)
        if delivery.row and number is None:
            return 0
        if number is not None and is_another:
            number, key = None, columns["key"] + os.urandom(_ANOTHER)
        if number is None:
            room.make(connection, columns["kept"])
            number = connection.execute(_INSERT, columns | {"key": key}).lastrowid
        else:
            before = connection.execute(_SIZE, (number,)).fetchone()[0]
            room.make_more(connection, columns["kept"] - before, number)
            connection.execute(_UPDATE, columns | {"id": number})
            connection.execute("DELETE FROM attempts WHERE row_id = ?", (number,))
        connection.executemany(_ATTEMPT, [(number, *attempt) for attempt in attempts])
        number = cast("int", number)
        quarantine_followers(connection, lane_of(connection, number), place.now)
        return number

    return operation


def _find(connection: sqlite3.Connection, number: int, columns: dict[str, Any]) -> int | None:
    """Return the row that a delivery came from, or that of the same message."""
    if number:
        found = connection.execute(FIND_ROW, (number,)).fetchone()
    else:
        found = connection.execute(FIND_KEY, (columns["queue"], columns["key"])).fetchone()
    return None if found is None else found[0]


def move(number: int, before: State, after: State, now: float) -> Operation[bool]:
    """Put a row in state *after*; returns False, and does nothing, unless it is in *before*."""

    def operation(connection: sqlite3.Connection) -> bool:
        return connection.execute(_MOVE, (after, now, number, before)).rowcount == 1

    return operation


def claim(number: int, now: float) -> Operation[bool]:
    """Take a quarantined row for a replay; returns False where it is none, or waits in its lane."""

    def operation(connection: sqlite3.Connection) -> bool:
        return connection.execute(_CLAIM, (now, number)).rowcount == 1

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
            size = size_of(*columns[2:4])
            connection.execute(_CAUSE, (columns[-1], size, number))
        quarantine_followers(connection, lane_of(connection, number), now)
        return True

    return operation


def release_all(now: float) -> Operation[int]:
    """Give back every claimed row: who claimed it is dead. Returns how many there were."""

    def operation(connection: sqlite3.Connection) -> int:
        lanes = connection.execute(_CLAIMED_LANES).fetchall()
        count = connection.execute(_RELEASE_ALL, (now,)).rowcount
        for (lane,) in lanes:
            quarantine_followers(connection, lane, now)
        return count

    return operation


def rebase(now: float) -> Operation[int]:
    """Bring forward the deferred rows that were written later than *now*; returns how many."""

    def operation(connection: sqlite3.Connection) -> int:
        return connection.execute(_REBASE, {"now": now, "slack": CLOCK_SLACK}).rowcount

    return operation


def remove(numbers: Iterable[int], states: Collection[State]) -> Operation[list[int]]:
    """Delete rows that are in one of *states*, and what they supersede; returns their numbers."""

    def operation(connection: sqlite3.Connection) -> list[int]:
        found = [number for number in numbers if _state(connection, number) in states]
        delete(connection, found)
        return found

    return operation


def _state(connection: sqlite3.Connection, number: int) -> State | None:
    found = connection.execute(FIND_ROW, (number,)).fetchone()
    return None if found is None else found[1]


def supersede(number: int, body: bytes, now: float, room: Room) -> Operation[int | None]:
    """Make a row with another *body* to stand for a quarantined one; returns its number or None.

    It takes the key over: where the broker delivers the original again, it is known. And it takes
    over the place in the lane.
    """

    def operation(connection: sqlite3.Connection) -> int | None:
        if not move(number, "quarantined", "superseded", now)(connection):
            return None
        cursor = connection.execute(_RECEIVED, (number,))
        names = [column[0] for column in cursor.description]
        row = dict(zip(names, cursor.fetchone(), strict=True)) | {"body": body}
        size = size_of(body, row["properties"], row["reason"])
        room.make(connection, size)
        connection.execute(_RENAME, (row["key"] + b"/%d" % number, number))
        values = (row["key"], body, now, now, checksum_of(row), size, number)
        return connection.execute(_CHILD, values).lastrowid

    return operation


def set_aside(number: int, reason: str, now: float) -> Operation[bool]:
    """Quarantine a deferred row that is damaged, with *reason*; returns whether it was deferred."""
    values = {"id": number, "reason": reason, "fingerprint": DAMAGED, "now": now}

    def operation(connection: sqlite3.Connection) -> bool:
        if connection.execute(_SET_ASIDE, values).rowcount != 1:
            return False
        quarantine_followers(connection, lane_of(connection, number), now)
        return True

    return operation
