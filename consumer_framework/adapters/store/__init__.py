# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of an instance: messages that the broker was told to forget, in one SQLite file.

``store.sqlite3`` in the state directory has six tables (``schema.sql``, changed by the
migrations ``lanes.sql``, ``sizes.sql``, ``steps.sql``, ``routes.sql`` and ``ramps.sql``):
``messages`` has one row for each message, ``attempts`` the failures of each row, ``totals`` the
number and the size of the rows of each state, so that nothing ever counts rows, ``steps`` the steps
that handlers have done (:mod:`.steps`), of messages with a row and of those that the broker has,
and ``ramp`` and ``ramp_rows`` a replay in stages (:mod:`.ramps`).

The states of a row
-------------------
::

                    defer                       done: remove
      delivery ──────────────▶  deferred  ─────────────────────▶  deleted
          │                        │                                 ▲
          │ quarantine             │ quarantine                      │
          │                        ▼                                 │
          └──────────────────▶ quarantined ──── drop, expire ────────┤
                                │   │  ▲                             │
                      supersede │   │  └── release ──┐              │
                                │   └───── claim ─▶ replaying ── resolve
                                ▼
                            superseded    the original of a copy that an operator edited;
                                          deleted together with the copy

A *deferred* row runs when it is due. A *quarantined* row waits for an operator. A *replaying* row
is claimed by one replay; the replay resolves it, or releases it, or puts it back by deferring or
quarantining its delivery. All but superseded rows are *open*. An operator may also drop a deferred
row.

Rows of one lane (one ordering key) run in the order in which they first arrived: ``waits`` is 1
while an open row of the lane stands before a row, and such a row is neither due nor claimed. The
triggers of ``lanes.sql`` keep ``waits`` current. No deferred row stands behind a quarantined one:
it is quarantined too (:mod:`.lanes`).

Durability
----------
The database has a write-ahead log (https://www.sqlite.org/wal.html) and ``synchronous=FULL``: a
committed write survives SIGKILL and the loss of power, and readers never wait for the writer. One
thread writes, and one sync serves all operations that wait for it (:mod:`.writer`).

A process can die between any two lines. The broker is told only after the commit, so:

- before the commit, nothing was written, and the broker delivers the message again;
- between the commit and the ack, the broker delivers the message again, and its row is found by
  queue and key (:func:`.records.key_of`): it is acked without a second run;
- during a replay, the next process that opens the store quarantines the row again;
- between the export and the deletion of expired rows, they are exported twice, and never lost;
- during a migration, all of that migration is undone;
- after a loss of power, SQLite drops the end of the log that it cannot read. :mod:`.wal` notices
  where that end had committed transactions.

Who writes
----------
One process at a time writes: the one that has locked ``store.lock`` (:class:`.files.Lock`). That
is the instance while it runs, else a command that carries out an operator's order. Any process
whose user may read the file can read it (:meth:`Store.read`), while another process writes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from consumer_framework.adapters.store import ramps, retention, writer
from consumer_framework.core import ports
from consumer_framework.core.errors import StoreError
from consumer_framework.core.memory import EqualMessages

from .files import DATABASE, Lock, described, open_readable, open_writable
from .lanes import Lanes
from .ramps import StoredRamp
from .reader import Reader
from .records import Entry, Expired, Group, Row, State, Stats, text
from .retention import Limits, SizeLimit
from .steps import StepTable
from .writer import Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.errors import DamagedRowError
    from consumer_framework.core.ramp import Ramp

T = TypeVar("T")

__all__ = ["Expired", "Group", "Limits", "Reader", "Row", "State", "Stats", "Store", "StoredRamp"]

_log = logging.getLogger(__name__)

EXPIRED = "expired.jsonl"

_CLAIMED: tuple[State, ...] = ("replaying",)
_ANY: tuple[State, ...] = ("deferred", "quarantined", "replaying", "superseded")

# Rows that expire in one transaction: other writes wait for at most so many exports.
_PORTION = 500


class Store(Reader, ports.Store):
    """A store that this process writes. :meth:`open` makes it.

    Use it from one event loop. A write is on the disk when its awaitable is done. Reads see every
    such write.

    Where the disk does not take a write, its awaitable raises :class:`.StoreError`, and nothing of
    that operation is written. The next write is tried anew: nothing has to be restarted when the
    disk works again.
    """

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        limits: Limits,
        instance: str = "",
        now: Callable[[], float] = time.time,
    ) -> Store:
        """Open the store in *directory*, or create it there.

        Rows that a dead process had claimed for a replay are quarantined again.

        Args:
            directory: The state directory; it must exist.
            limits: The limits of age and size.
            instance: The NAME in ``fm-consumer@NAME``; a process that finds the store in use
                shows it.
            now: Returns the seconds since the epoch.

        Raises:
            StoreError: The directory is missing or not writable, the file is no store or of a
                newer version, or another process has it open. The message is one line with the
                file and the cure.
        """
        lock = Lock(directory, instance)
        try:
            return cls(directory, lock, limits, now)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def read(directory: Path) -> Reader:
        """Open the store in *directory* for reading only; an instance may run meanwhile.

        Raises:
            StoreError: There is none, it may not be read, or it is of another version.
        """
        file = directory / DATABASE
        return Reader(file, open_readable(file))

    def __init__(
        self, directory: Path, lock: Lock, limits: Limits, now: Callable[[], float]
    ) -> None:
        file = directory / DATABASE
        writable = open_writable(file)
        try:
            with described(file):
                _settle_past(writable, now())
                lanes = Lanes(writable)
            super().__init__(file, open_readable(file))
        except BaseException:
            writable.close()
            raise
        self._lock = lock
        self._limits = limits
        self._now = now
        self._size_limit = SizeLimit(limits.max_bytes, directory / EXPIRED)
        self._twins = EqualMessages()
        self._damaged: set[int] = set()
        self._lanes = lanes
        self._writer = Writer(file, writable, lanes)
        self._steps = StepTable(file, lambda: open_readable(file), self._writer.begin, now)

    @property
    def commits(self) -> int:
        """The number of transactions that were committed since the store was opened."""
        return self._writer.commits

    def limit(self, limits: Limits) -> None:
        """Replace the limits. Rows beyond them expire with the next write or :meth:`expire`."""
        self._limits = limits
        self._size_limit = replace(self._size_limit, max_bytes=limits.max_bytes)

    def close(self) -> None:
        """Commit all waiting writes, and let another process open the store."""
        # The last to close a database tidies it up, which a reader may not.
        super().close()
        self._steps.close()
        self._writer.close()
        self._lock.release()

    # Reads that know more than the database.

    def is_blocked(self, lane: str, row: int = 0) -> bool:
        """Tell whether an open row of *lane* stands before *row*; any row stands before row 0.

        This is asked for every delivery: a lane without rows costs no read.
        """
        return bool(lane) and text(lane) in self._lanes and super().is_blocked(lane, row)

    def is_open(self, delivery: Delivery) -> bool:
        """Tell whether *delivery* brings a message again that has an open row."""
        return self._twins.is_known(delivery, super().is_open)

    def due(self, now: float, limit: int = 100, out: Collection[int] = ()) -> list[Delivery]:
        """Return the same as :meth:`Reader.due`; quarantine damaged rows instead."""
        return super().due(now, limit, (*out, *self._damaged))

    def next_due(self, out: Collection[int] = ()) -> float | None:
        """Return the same as :meth:`Reader.next_due`, without damaged rows."""
        return super().next_due((*out, *self._damaged))

    def _found_damaged(self, error: DamagedRowError) -> None:
        if error.row in self._damaged:
            return
        # Remembered, since the disk may not take the write below.
        self._damaged.add(error.row)
        which = ""
        with suppress(StoreError):
            row = self.row(error.row)
            which = f" (message {row.message_id} of {row.queue})" if row else ""
        _log.error("%s: %s%s; it is quarantined, and others go on", self._file, error, which)
        self._writer.post(writer.set_aside, error.row, error.reason, self._now())

    # Writes of the pipeline.

    async def defer(self, delivery: Delivery, until: float) -> None:
        """Write *delivery*, with its history, to run again at *until* seconds since the epoch.

        Behind a quarantined row of its lane, it is quarantined instead.
        """
        await self._put(delivery, Entry.of(delivery, "deferred", "deferred", self._now(), until))

    async def quarantine(self, delivery: Delivery, reason: str) -> None:
        """Write *delivery*, with its history, for an operator; *reason* is one line.

        Rows of its lane that are deferred behind it are quarantined as well.
        """
        await self._put(delivery, Entry.of(delivery, "quarantined", reason, self._now()))

    async def _put(self, delivery: Delivery, entry: Entry) -> None:
        is_another = self._twins.is_another(delivery)
        await self._writer.submit(writer.put, entry, self._size_limit, is_another=is_another)

    async def remove(self, row: int) -> None:
        """Delete a row, in whatever state, since its message is done with. It may be gone."""
        await self._writer.submit(writer.remove, [row], _ANY)

    async def rebase(self, now: float) -> int:
        """Bring forward the deferred rows that were written later than *now*; return their number.

        The machine's clock was set back since. A new process does this when it opens the store.
        """
        return await self._writer.submit(writer.rebase, now)

    async def expire(
        self, now: float, export_to: Path | None = None, most: float = math.inf
    ) -> Expired:
        """Export the messages quarantined for longer than ``limits.max_age``, and delete them.

        Steps that no message needs any more are deleted, too.

        Args:
            now: Seconds since the epoch.
            export_to: The file that they are appended to; None for ``expired.jsonl`` beside the
                store. A crash may leave a message in the file twice, and never in neither place.
            most: Stop after so many rows.

        Raises:
            StoreError: They cannot be exported. The messages that are not in the file are still in
                the store.
        """
        file = export_to or self._size_limit.export_to
        await asyncio.wrap_future(self._steps.expire())
        if self._limits.max_age is None:
            return Expired(0, file)
        before = now - self._limits.max_age
        rows = 0
        while rows < most:
            limit = int(min(most - rows, _PORTION))
            portion = await self._writer.submit(retention.expire, before, limit, file)
            rows += portion
            if portion < limit:
                break
        return Expired(rows, file)

    # The steps of handlers.

    def steps_of(self, delivery: Delivery) -> Mapping[str, ports.RecordedStep]:
        """Return the steps of *delivery* that are done, by name."""
        self.has_steps = True
        return self._steps.of(delivery)

    def record_step(self, delivery: Delivery, name: str, result: str) -> Future[None]:
        """Begin to write a step that is done, with its result as JSON."""
        self.has_steps = True
        return self._steps.record(delivery, name, result)

    def settled(self, delivery: Delivery, *, stays: bool) -> None:
        """Take note of a settle; the steps of a message that does not stay may be deleted."""
        self._steps.settled(delivery, stays=stays)

    # Orders of an operator.

    async def drop(self, ids: Iterable[int]) -> list[int]:
        """Delete messages, and the originals of edited ones with them.

        Returns:
            The rows that were deleted. Rows that are gone or claimed by a replay are not among
            them.
        """
        return await self._writer.submit(writer.remove, list(ids), ("deferred", "quarantined"))

    async def read_aside(self, read: Callable[[Reader], T]) -> T:
        """Return the result of *read*, which takes long; the event loop goes on meanwhile.

        Args:
            read: Called in a thread, with a reader of its own.
        """

        def in_thread() -> T:
            with closing(Store.read(self._file.parent)) as reader:
                return read(reader)

        return await asyncio.to_thread(in_thread)

    async def begin_ramp(self, ramp: Ramp, rows: Sequence[int]) -> None:
        """Keep a replay in stages, in place of the former one, so that it can go on later."""
        await self._writer.submit(ramps.begin, ramp, rows, self._now())

    def record_ramp(self, position: int, result: str) -> None:
        """Begin to write the result of the row at *position* of the ramp.

        It is written together with the next claim, so that it costs no sync of its own.
        """
        self._writer.post(ramps.record, position, result)

    async def ramp_recorded(self) -> None:
        """Wait until all results of the ramp are written."""
        await self._writer.submit(ramps.nothing)

    async def end_ramp(self) -> None:
        """Forget the ramp."""
        await self._writer.submit(ramps.end)

    async def claim(self, row: int, by: str = "") -> bool:
        """Take a quarantined row for a replay.

        Args:
            row: Its number.
            by: The order, with its operator, for people.

        Returns:
            False where the row is not quarantined, and where an open row of its lane stands before
            it: see :meth:`blocked_by`.
        """
        return await self._writer.submit(writer.claim, row, self._now(), by)

    async def release(self, row: int, attempt: Attempt | None = None) -> bool:
        """Quarantine a claimed row again, with one more *attempt*; False where not claimed."""
        return await self._writer.submit(writer.release, row, attempt, self._now())

    async def resolve(self, row: int) -> bool:
        """Delete a claimed row that was replayed, and its originals; False where not claimed."""
        return bool(await self._writer.submit(writer.remove, [row], _CLAIMED))

    async def supersede(self, row: int, body: bytes, by: str = "") -> int | None:
        """Insert a copy of a quarantined row, with another *body*, that stands for the original.

        *by* is the order, with its operator, for people.

        The copy has everything of the original except its history. The original becomes superseded
        until the copy is resolved, dropped or expired.

        Returns:
            The number of the copy's row; None where *row* is not quarantined.
        """
        return await self._writer.submit(
            writer.supersede, row, body, self._now(), self._size_limit, by
        )


def _settle_past(connection: sqlite3.Connection, now: float) -> None:
    """Release the claims of a dead process, and undo a clock that was set back since."""
    connection.execute("BEGIN IMMEDIATE")
    writer.release_all(connection, now)
    writer.rebase(connection, now)
    connection.execute("COMMIT")
