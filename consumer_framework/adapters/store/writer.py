# SPDX-License-Identifier: GPL-2.0-or-later
"""One thread that writes the store, and the operations that it carries out.

A commit costs one sync of the disk, which takes as long for a thousand operations as for one. The
operations that arrive during a commit make up the next group ("group commit").

An operation is a function whose first argument is the connection. It runs inside the transaction
of its group, and it leaves every lane in order: no deferred row stands behind a quarantined one,
since such a row would never run.

The later of two writes of a message wins. Its row keeps its number, its lane and its body. (The
bodies of the two writes can differ only where an operator edited the row.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast

from consumer_framework.core.errors import StoreError

from .files import described
from .lanes import lane_of, quarantine_followers
from .records import attempt_columns, checksum_of, size_of
from .retention import delete

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from consumer_framework.core.attempt import Attempt

    from .lanes import Lanes
    from .records import Entry, State
    from .retention import SizeLimit

P = ParamSpec("P")
T = TypeVar("T")

_Operation: TypeAlias = "Callable[[sqlite3.Connection], Any]"

_log = logging.getLogger(__name__)

# Operations. Bounds how long the first operation of a group waits for the last one.
_GROUP = 1000

# Faults of one operation, not of the disk: the other operations of its group are committed.
_OWN_FAULTS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError)


@dataclass(eq=False, slots=True)
class _Job:
    operation: _Operation
    # For a caller that waits on an event loop, and for one that waits anywhere.
    done: asyncio.Future[Any] | None = None
    future: Future[Any] | None = None
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
        connection: Belongs to the writer from now on; :meth:`close` closes it.
        lanes: Is told of each commit.

    Attributes:
        commits: The number of transactions that were committed.
    """

    def __init__(self, file: Path, connection: sqlite3.Connection, lanes: Lanes) -> None:
        self.commits = 0
        self._file = file
        self._inode = file.stat().st_ino
        self._lanes = lanes
        self._connection = connection
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()

    async def submit(
        self,
        operation: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Carry out *operation* in a transaction; return its result once that is on the disk.

        The operation is also carried out where its caller is cancelled.

        Raises:
            StoreError: Nothing of the operation was written. The next one is tried anew.
            Exception: Raised by *operation*; nothing of it was written.
        """
        if self._closed:
            raise StoreError(f"{self._file}: closed")
        done = asyncio.get_running_loop().create_future()
        job = _Job(lambda connection: operation(connection, *args, **kwargs), done)
        self._jobs.put(job)
        await done
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def begin(
        self,
        operation: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """Begin to carry out *operation*; any thread may call this, and wait for the result.

        It cannot be cancelled. The future raises as :meth:`submit` does.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        if self._closed:
            future.set_exception(StoreError(f"{self._file}: closed"))
        else:
            job = _Job(lambda connection: operation(connection, *args, **kwargs), future=future)
            self._jobs.put(job)
        return future

    def post(
        self,
        operation: Callable[Concatenate[sqlite3.Connection, P], Any],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Carry out *operation* later, without a caller that waits. A failure is logged."""
        if not self._closed:
            self._jobs.put(_Job(lambda connection: operation(connection, *args, **kwargs)))

    def close(self) -> None:
        """Commit all submitted operations, end the thread and close the connection.

        Returns when that is done.
        """
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
            except Exception as error:  # noqa: BLE001 -- every caller must get an answer
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
        """Commit *jobs*, except those that fail by their own fault.

        Raises:
            StoreError: None of them was written.
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
        self.commits += 1

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
        # SQLite rolls back by itself after some errors
        # (https://www.sqlite.org/lang_transaction.html, "Response To Errors Within A Transaction").
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        # Each caller gets its own: raising one exception in many places mixes their tracebacks.
        job.error = StoreError(str(error))
        job.error.__cause__ = error


def _answer(jobs: list[_Job]) -> None:
    """Wake the callers, with one call into each event loop for all operations of the group."""
    for job in jobs:
        if job.future is not None:
            _end(job.future, job)
        elif job.done is None and job.error is not None:
            _log.error("%s", job.error)
    waiting = [job.done for job in jobs if job.done is not None]
    while waiting:
        loop = waiting[0].get_loop()
        mine = [done for done in waiting if done.get_loop() is loop]
        waiting = [done for done in waiting if done.get_loop() is not loop]
        # A drain that was cut short may have closed the loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_wake, mine)


def _end(future: Future[Any], job: _Job) -> None:
    if job.error is not None:
        future.set_exception(job.error)
    else:
        future.set_result(job.result)


def _wake(futures: list[asyncio.Future[Any]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


# Operations: deliveries that are deferred or quarantined.

FIND_ROW = "SELECT id, state FROM messages WHERE id = ?"
FIND_KEY = "SELECT id, state FROM messages WHERE queue = ? AND key = ?"
_INSERT = """INSERT INTO messages (queue, key, state, message_id, exchange, routing_key,
    redelivered, received_at, properties, body, due, reason, fingerprint, crashes, created, updated,
    lane, checksum, kept, routes)
    VALUES (:queue, :key, :state, :message_id, :exchange, :routing_key, :redelivered, :received_at,
    :properties, :body, :due, :reason, :fingerprint, :crashes, :now, :now, :lane,
    :checksum, :kept, :routes)"""
_SIZE = "SELECT kept FROM messages WHERE id = ?"
_UPDATE = """UPDATE messages SET state = :state, due = :due, reason = :reason,
    fingerprint = :fingerprint, crashes = :crashes, updated = :now, kept = :kept, routes = :routes
    WHERE id = :id"""
_FORGET_ATTEMPTS = "DELETE FROM attempts WHERE row_id = ?"
_ADD_ATTEMPT = """INSERT INTO attempts (row_id, at, error, message, traceback, fingerprint, route)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_SET_ASIDE = """UPDATE messages SET state = 'quarantined', due = NULL, updated = :now,
    reason = :reason, fingerprint = :fingerprint WHERE id = :id AND state = 'deferred'"""
_REBASE = """UPDATE messages SET due = due - (updated - :now), updated = :now
    WHERE state = 'deferred' AND updated > :now + :slack"""

# Bytes that tell the key of a message from the key of an equal message.
_SUFFIX = 8
# The common fingerprint of all damaged rows.
DAMAGED = "damaged in the store"
# Seconds by which a clock may be set back without an effect: NTP does so all the time.
CLOCK_SLACK = 5.0


def put(
    connection: sqlite3.Connection, entry: Entry, size_limit: SizeLimit, *, is_another: bool
) -> None:
    """Write *entry* to the row that it came from, or the row of its message, or a new row.

    Where the row that it came from is gone, an operator dropped the message while it ran. Nothing
    is written then.

    Args:
        connection: The database.
        entry: The entry.
        size_limit: Makes room for it.
        is_another: True gives it a row of its own beside the row of an equal message.

    Raises:
        StoreError: The entry does not fit into the size limit.
    """
    columns = entry.columns
    number = _find(connection, entry)
    if entry.row and number is None:
        return
    if number is not None and is_another:
        number, columns = None, columns | {"key": columns["key"] + os.urandom(_SUFFIX)}
    if number is None:
        size_limit.make_room(connection, columns["kept"])
        number = cast("int", connection.execute(_INSERT, columns).lastrowid)
    else:
        before = connection.execute(_SIZE, (number,)).fetchone()[0]
        size_limit.make_room_to_grow(connection, columns["kept"] - before, number)
        connection.execute(_UPDATE, columns | {"id": number})
        connection.execute(_FORGET_ATTEMPTS, (number,))
    connection.executemany(_ADD_ATTEMPT, [(number, *attempt) for attempt in entry.attempts])
    quarantine_followers(connection, lane_of(connection, number), columns["now"])


def _find(connection: sqlite3.Connection, entry: Entry) -> int | None:
    if entry.row:
        found = connection.execute(FIND_ROW, (entry.row,)).fetchone()
    else:
        key = entry.columns["queue"], entry.columns["key"]
        found = connection.execute(FIND_KEY, key).fetchone()
    return None if found is None else found[0]


def set_aside(connection: sqlite3.Connection, number: int, reason: str, now: float) -> None:
    """Quarantine the deferred row *number*, which is damaged."""
    values = {"id": number, "reason": reason, "fingerprint": DAMAGED, "now": now}
    if connection.execute(_SET_ASIDE, values).rowcount == 1:
        quarantine_followers(connection, lane_of(connection, number), now)


def rebase(connection: sqlite3.Connection, now: float) -> int:
    """Bring forward the deferred rows that were written later than *now*; return their number."""
    return connection.execute(_REBASE, {"now": now, "slack": CLOCK_SLACK}).rowcount


def remove(
    connection: sqlite3.Connection, numbers: Iterable[int], states: Collection[State]
) -> list[int]:
    """Delete the rows that are in one of *states*, with their originals; return their numbers."""
    found = [number for number in numbers if _state(connection, number) in states]
    delete(connection, found)
    return found


def _state(connection: sqlite3.Connection, number: int) -> State | None:
    found = connection.execute(FIND_ROW, (number,)).fetchone()
    return None if found is None else found[1]


# Operations: replays and edits of quarantined rows.

_CLAIM = """UPDATE messages SET state = 'replaying', updated = ?, ordered_by = ?
    WHERE id = ? AND state = 'quarantined' AND waits = 0"""
_MOVE = "UPDATE messages SET state = ?, updated = ? WHERE id = ? AND state = ?"
_ADD_CAUSE = "UPDATE messages SET fingerprint = ?, kept = kept + ? WHERE id = ?"
_CLAIMED_LANES = "SELECT DISTINCT lane FROM messages WHERE state = 'replaying'"
_RELEASE_ALL = "UPDATE messages SET state = 'quarantined', updated = ? WHERE state = 'replaying'"
_ORIGINAL = "SELECT * FROM messages WHERE id = ?"
_RENAME = "UPDATE messages SET key = ?, ordered_by = ? WHERE id = ?"
_INSERT_COPY = """INSERT INTO messages (queue, key, state, message_id, exchange, routing_key,
    redelivered, received_at, properties, body, due, reason, fingerprint, crashes, created, updated,
    lane, parent, origin, checksum, kept, routes, ordered_by)
    SELECT queue, ?, 'quarantined', message_id, exchange, routing_key, redelivered, received_at,
    properties, ?, NULL, reason, fingerprint, 0, ?, ?, lane, id, position,
    ?, ?, routes, ?
    FROM messages WHERE id = ?"""


def claim(connection: sqlite3.Connection, number: int, now: float, by: str) -> bool:
    """Take a quarantined row for a replay; return False for any other row.

    A row that waits behind another one of its lane is not claimed either.
    """
    return connection.execute(_CLAIM, (now, by, number)).rowcount == 1


def release(
    connection: sqlite3.Connection, number: int, attempt: Attempt | None, now: float
) -> bool:
    """Quarantine a claimed row again, with one more *attempt*; return False for any other row."""
    if not _move(connection, number, "replaying", "quarantined", now):
        return False
    if attempt is not None:
        columns = attempt_columns(attempt)
        connection.execute(_ADD_ATTEMPT, (number, *columns))
        size = size_of(*columns[2:4])
        connection.execute(_ADD_CAUSE, (attempt.fingerprint, size, number))
    quarantine_followers(connection, lane_of(connection, number), now)
    return True


def release_all(connection: sqlite3.Connection, now: float) -> None:
    """Quarantine every claimed row again, since the process that claimed it is dead."""
    lanes = connection.execute(_CLAIMED_LANES).fetchall()
    connection.execute(_RELEASE_ALL, (now,))
    for (lane,) in lanes:
        quarantine_followers(connection, lane, now)


def supersede(  # noqa: PLR0913, PLR0917 -- each is one fact
    connection: sqlite3.Connection,
    number: int,
    body: bytes,
    now: float,
    size_limit: SizeLimit,
    by: str,
) -> int | None:
    """Insert a copy of a quarantined row, with *body*; return its number, None for other rows.

    The copy takes over the key, so that the original is recognized when the broker delivers it
    again. It takes over the place in the lane as well.

    Raises:
        StoreError: The copy does not fit into the size limit.
    """
    if not _move(connection, number, "quarantined", "superseded", now):
        return None
    cursor = connection.execute(_ORIGINAL, (number,))
    names = [column[0] for column in cursor.description]
    row = dict(zip(names, cursor.fetchone(), strict=True)) | {"body": body}
    size = size_of(body, row["properties"], row["reason"])
    size_limit.make_room(connection, size)
    connection.execute(_RENAME, (row["key"] + b"/%d" % number, by, number))
    values = (row["key"], body, now, now, checksum_of(row), size, by, number)
    return connection.execute(_INSERT_COPY, values).lastrowid


def _move(
    connection: sqlite3.Connection, number: int, before: State, after: State, now: float
) -> bool:
    return connection.execute(_MOVE, (after, now, number, before)).rowcount == 1
