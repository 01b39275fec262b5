# SPDX-License-Identifier: GPL-2.0-or-later
"""One thread that writes, and one sync to the disk for all that waits.

A commit costs a sync, which takes as long for a thousand operations as for one. So whatever came
while the last group was committed makes up the next one ("group commit").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from consumer_framework.core.errors import JournalError

from .files import described

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .lanes import Lanes

    Operation: TypeAlias = Callable[[sqlite3.Connection], Any]

_log = logging.getLogger(__name__)

T = TypeVar("T")

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
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
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
            JournalError: Nothing of the operation was kept. The next one is tried anew.
            Exception: What *operation* raised; nothing of it was kept.
        """
        if self._closed:
            raise JournalError(f"{self._file}: closed")
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
            JournalError: None of them was kept.
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
            raise JournalError(f"{self._file}: replaced while in use; restart the instance")

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
        job.error = JournalError(str(error))
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
