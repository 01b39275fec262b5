# SPDX-License-Identifier: GPL-2.0-or-later
"""One thread that writes, and one sync to the disk for all that waits.

A commit costs a sync, which takes as long for a thousand operations as for one. So whatever came
while the last group was committed makes up the next one ("group commit").

What the writer does: each function returns one operation for its thread.

The later one of two writes of a message wins; the row, its number, its lane and its body stay. (The
body of the two can differ only where an operator has edited the row's.)

Each operation leaves every lane in order: a row that is deferred never stands behind a quarantined
one, or it would never run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from consumer_framework.core.errors import StoreError
from consumer_framework.core.secrets import redact

from .files import described
from .lanes import lane_of, quarantine_followers
from .records import attempt_columns, checksum_of, columns_of, size_of, text
from .retention import delete

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery

    from .lanes import Lanes
    from .records import State
    from .retention import Room

    Operation: TypeAlias = Callable[[sqlite3.Connection], Any]

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
DAMAGED = "damaged in the store"
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
Change: TypeAlias = "Callable[[sqlite3.Connection], T]"


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


def put(delivery: Delivery, place: Place, room: Room, *, is_another: bool = False) -> Change[int]:
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


def move(number: int, before: State, after: State, now: float) -> Change[bool]:
    """Put a row in state *after*; returns False, and does nothing, unless it is in *before*."""

    def operation(connection: sqlite3.Connection) -> bool:
        return connection.execute(_MOVE, (after, now, number, before)).rowcount == 1

    return operation


def claim(number: int, now: float) -> Change[bool]:
    """Take a quarantined row for a replay; returns False where it is none, or waits in its lane."""

    def operation(connection: sqlite3.Connection) -> bool:
        return connection.execute(_CLAIM, (now, number)).rowcount == 1

    return operation


def release(number: int, attempt: Attempt | None, now: float) -> Change[bool]:
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


def release_all(now: float) -> Change[int]:
    """Give back every claimed row: who claimed it is dead. Returns how many there were."""

    def operation(connection: sqlite3.Connection) -> int:
        lanes = connection.execute(_CLAIMED_LANES).fetchall()
        count = connection.execute(_RELEASE_ALL, (now,)).rowcount
        for (lane,) in lanes:
            quarantine_followers(connection, lane, now)
        return count

    return operation


def rebase(now: float) -> Change[int]:
    """Bring forward the deferred rows that were written later than *now*; returns how many."""

    def operation(connection: sqlite3.Connection) -> int:
        return connection.execute(_REBASE, {"now": now, "slack": CLOCK_SLACK}).rowcount

    return operation


def remove(numbers: Iterable[int], states: Collection[State]) -> Change[list[int]]:
    """Delete rows that are in one of *states*, and what they supersede; returns their numbers."""

    def operation(connection: sqlite3.Connection) -> list[int]:
        found = [number for number in numbers if _state(connection, number) in states]
        delete(connection, found)
        return found

    return operation


def _state(connection: sqlite3.Connection, number: int) -> State | None:
    found = connection.execute(FIND_ROW, (number,)).fetchone()
    return None if found is None else found[1]


def supersede(number: int, body: bytes, now: float, room: Room) -> Change[int | None]:
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


def set_aside(number: int, reason: str, now: float) -> Change[bool]:
    """Quarantine a deferred row that is damaged, with *reason*; returns whether it was deferred."""
    values = {"id": number, "reason": reason, "fingerprint": DAMAGED, "now": now}

    def operation(connection: sqlite3.Connection) -> bool:
        if connection.execute(_SET_ASIDE, values).rowcount != 1:
            return False
        quarantine_followers(connection, lane_of(connection, number), now)
        return True

    return operation


_log = logging.getLogger(__name__)


# Bounds how long the first of a group waits for the last.
_GROUP = 1000

# What is wrong with one operation, not with the disk: the others of its group go on.
_OWN_FAULTS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError)


@dataclass(eq=False, slots=True)
class _Job:
    operation: Operation
    done: asyncio.Future[Any] | None = None
    result: Any = None
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Group:
    jobs: list[_Job] = field(default_factory=list)
    is_last: bool = False


class Writer:
    """Carries out operations on a connection, in order, in a daemon thread of its own.

    Args:
        file: The database, for error messages.
        connection: Is the writer's from now on; :meth:`close` closes it.
        lanes: Is told of each commit.
    """

    def __init__(self, file: Path, connection: sqlite3.Connection, lanes: Lanes) -> None:
        self._file = file
        self._lanes = lanes
        self._connection = connection
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._commits = 0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._inode = file.stat().st_ino
        self._thread.start()

    @property
    def commits(self) -> int:
        """How many transactions were committed so far."""
        return self._commits

    async def submit(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out *operation* within a transaction; done means committed and on the disk.

        A caller that is cancelled does not undo the operation.

        Returns:
            What *operation* returned.

        Raises:
            StoreError: Nothing of the operation was kept. The next one is tried anew.
            Exception: What *operation* raised; nothing of it was kept.
        """
        if self._closed:
            raise StoreError(f"{self._file}: closed")
        done = asyncio.get_running_loop().create_future()
        job = _Job(operation, done)
        self._jobs.put(job)
        await done
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def post(self, operation: Operation) -> None:
        """Carry out *operation* some time later, where nobody waits for it."""
        if not self._closed:
            self._jobs.put(_Job(operation))

    def close(self) -> None:
        """Commit what waits, end the thread and close the connection; does not return before."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()
            self._connection.close()

    def _serve(self) -> None:
        group = _Group()
        while not group.is_last:
            group = self._next_group()
            try:
                self._write(group.jobs)
            except Exception as error:  # noqa: BLE001 -- whatever it is, nobody waits for ever
                _fail(group.jobs, error)
            _answer(group.jobs)

    def _next_group(self) -> _Group:
        group = _Group()
        job = self._jobs.get()
        with contextlib.suppress(Empty):
            while job is not None and len(group.jobs) < _GROUP - 1:
                group.jobs.append(job)
                job = self._jobs.get_nowait()
            if job is None:
                group.is_last = True
            else:
                group.jobs.append(job)
        return group

    def _write(self, jobs: list[_Job]) -> None:
        """Commit *jobs*, less those that fail by their own fault.

        Raises:
            StoreError: None of them was kept.
        """
        if not jobs:
            return
        with described(self._file):
            self._check_linked()
            try:
                self._transact(jobs)
            except BaseException:
                self._roll_back()
                raise
        self._commits += 1

    def _check_linked(self) -> None:
        # SQLite goes on writing into a file that was deleted, and all of it is gone at the end.
        if self._file.stat().st_ino != self._inode:
            raise StoreError(f"{self._file}: replaced while in use; restart the instance")

    def _transact(self, jobs: list[_Job]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for job in jobs:
            execute("SAVEPOINT job")
            try:
                job.result = job.operation(self._connection)
            except Exception as error:
                if isinstance(error, sqlite3.Error) and not isinstance(error, _OWN_FAULTS):
                    raise
                job.error = error
                execute("ROLLBACK TO job")
            execute("RELEASE job")
        changes = self._lanes.changes()
        execute("COMMIT")
        self._lanes.committed(changes)

    def _roll_back(self) -> None:
        # SQLite has done so itself after some errors (https://www.sqlite.org/lang_transaction.html,
        # "Response To Errors Within A Transaction").
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        # Each caller gets its own: raising one exception in many places mixes their tracebacks.
        job.error = StoreError(str(error))
        job.error.__cause__ = error


def _answer(jobs: list[_Job]) -> None:
    """Wake the callers, once per event loop, however many operations there were."""
    for job in jobs:
        if job.done is None and job.error is not None:
            _log.error("%s", job.error)
    waiting = [job.done for job in jobs if job.done is not None]
    while waiting:
        loop = waiting[0].get_loop()
        mine = [done for done in waiting if done.get_loop() is loop]
        waiting = [done for done in waiting if done.get_loop() is not loop]
        # The loop may be closed by now, where the drain was cut short.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_wake, mine)


def _wake(futures: list[asyncio.Future[Any]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
