# SPDX-License-Identifier: GPL-2.0-or-later
"""The store: messages that the broker was told to forget, kept in SQLite.

One file, ``store.sqlite3`` in the state directory, written by one process. Write-ahead log
(https://www.sqlite.org/wal.html) with ``synchronous=FULL``: what was committed survives SIGKILL
and the loss of power, and readers, ``fm-consumer quarantine`` among them, never wait.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from consumer_framework.adapters.store import retention, writer
from consumer_framework.core import ports
from consumer_framework.core.errors import StoreError
from consumer_framework.core.memory import Twins

from .files import DATABASE, Lock, described, open_readable, open_writable
from .lanes import Lanes
from .reader import Reader
from .records import Expired, Group, Row, State, Stats, text
from .retention import Limits, Room
from .writer import Place, Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.errors import DamagedRowError

__all__ = ["Expired", "Group", "Limits", "Reader", "Row", "State", "Stats", "Store"]

_log = logging.getLogger(__name__)

EXPIRED = "expired.jsonl"

_CLAIMED: tuple[State, ...] = ("replaying",)
_ANY: tuple[State, ...] = ("deferred", "quarantined", "replaying", "superseded")

# Rows that expire within one transaction: writes wait for so many exports at most.
_PORTION = 500


class Store(Reader, ports.Store):
    """A store that this process writes. Made by :meth:`open`.

    Used from one event loop; operations are committed together by a thread of its own, and done
    when they are on the disk. Reads see every write whose awaitable is done.

    Where the disk does not take a write, its awaitable raises :class:`.StoreError`, nothing of
    it is kept, and the next write is tried anew: there is nothing to restart when the disk works
    again.
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
        """Open the store in *directory*; made where there is none.

        Rows that a dead process had claimed for a replay are quarantined again.

        Args:
            directory: The state directory; it must exist.
            limits: How much is kept.
            instance: The NAME in ``fm-consumer@NAME``, told to whom finds the store in use.
            now: Seconds since the epoch.

        Raises:
            StoreError: One line with the file, what is wrong with it and what to do: the
                directory is missing or not writable, the file is no store or of a newer
                version, or another process has it open.
        """
        lock = Lock(directory, instance)
        try:
            return cls(directory, lock, limits, now)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def read(directory: Path) -> Reader:
        """Open the store in *directory* for reading only, whether an instance runs or not.

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
                _release_all(writable, now())
                self._lanes = Lanes(writable)
            super().__init__(file, open_readable(file))
        except BaseException:
            writable.close()
            raise
        self._lock = lock
        self._limits = limits
        self._now = now
        self._room = Room(limits.max_bytes, directory / EXPIRED)
        self._twins = Twins()
        self._damaged: set[int] = set()
        self._writer = Writer(file, writable, self._lanes)

    @property
    def commits(self) -> int:
        """How many transactions were committed since it was opened."""
        return self._writer.commits

    def limit(self, limits: Limits) -> None:
        """Keep so much from now on; the rest expires with the next look, or when room is made."""
        self._limits = limits
        self._room = replace(self._room, max_bytes=limits.max_bytes)

    def close(self) -> None:
        """Commit what waits and let another process have the store; does not return before."""
        # The last to close a database tidies it up, which a reader may not.
        super().close()
        self._writer.close()
        self._lock.release()

    def is_blocked(self, lane: str, row: int = 0) -> bool:
        """Whether an open row of *lane* stands before *row*; for row 0 any one does.

        Asked for every delivery: where the lane has no rows, nothing is read.
        """
        return bool(lane) and text(lane) in self._lanes and super().is_blocked(lane, row)

    def is_open(self, delivery: Delivery) -> bool:
        """Whether a row of this message waits: see :class:`.Twins`."""
        return self._twins.is_known(delivery, super().is_open)

    def due(self, now: float, limit: int = 100, out: Collection[int] = ()) -> list[Delivery]:
        """Return what :meth:`Reader.due` does; rows that are damaged are quarantined instead."""
        return super().due(now, limit, (*out, *self._damaged))

    def next_due(self, out: Collection[int] = ()) -> float | None:
        """When the next deferred message is due that is not damaged."""
        return super().next_due((*out, *self._damaged))

    def _found_damaged(self, error: DamagedRowError) -> None:
        if error.row in self._damaged:
            return
        # Also for as long as the disk does not take what is written here.
        self._damaged.add(error.row)
        which = ""
        with suppress(StoreError):
            row = self.row(error.row)
            which = f" (message {row.message_id} of {row.queue})" if row else ""
        _log.error("%s: %s%s; it is quarantined, and others go on", self._file, error, which)
        self._writer.post(writer.set_aside(error.row, error.reason, self._now()))

    async def defer(self, delivery: Delivery, until: float) -> None:
        """Keep *delivery*, history included, to run again at *until* seconds since the epoch.

        Behind a quarantined row of its lane, it is quarantined itself.
        """
        await self._put(delivery, Place("deferred", "deferred", self._now(), until))

    async def quarantine(self, delivery: Delivery, reason: str) -> None:
        """Keep *delivery*, history included, for an operator; *reason* is one line.

        Rows of its lane that are deferred behind it are quarantined as well.
        """
        await self._put(delivery, Place("quarantined", reason, self._now()))

    async def _put(self, delivery: Delivery, place: Place) -> None:
        is_another = self._twins.is_another(delivery)
        put = writer.put(delivery, place, self._room, is_another=is_another)
        await self._writer.submit(put)

    async def remove(self, row: int) -> None:
        """Forget a row, in whatever state: its message is done with. None is no error."""
        await self._writer.submit(writer.remove([row], _ANY))

    async def rebase(self, now: float) -> int:
        """Bring forward the deferred rows that were written later than *now*; returns how many.

        The machine's clock was set back since. A new process does this when it opens the store.
        """
        return await self._writer.submit(writer.rebase(now))

    async def drop(self, ids: Iterable[int]) -> list[int]:
        """Lose messages by an operator's order, and the originals of edited ones with them.

        Returns:
            The rows that were dropped: not those that are gone, or that a replay has claimed.
        """
        write = writer.remove(list(ids), ("deferred", "quarantined"))
        return await self._writer.submit(write)

    async def claim(self, row: int) -> bool:
        """Take a quarantined row for a replay.

        Returns:
            False where it is not, or no longer, quarantined, and where an open row of its lane
            stands before it: :meth:`blocked_by` says which.
        """
        return await self._writer.submit(writer.claim(row, self._now()))

    async def release(self, row: int, attempt: Attempt | None = None) -> bool:
        """Quarantine a claimed row again, with one more *attempt*; False where none is claimed."""
        return await self._writer.submit(writer.release(row, attempt, self._now()))

    async def resolve(self, row: int) -> bool:
        """Forget a claimed row that was replayed, and what it supersedes; False for none."""
        return bool(await self._writer.submit(writer.remove([row], _CLAIMED)))

    async def supersede(self, row: int, body: bytes) -> int | None:
        """Let an edited copy stand for a quarantined row.

        The copy has everything but the history. The original is kept, out of the way, until the
        copy is resolved, dropped or expires.

        Returns:
            The number of the copy's row; None where *row* is not, or no longer, quarantined.
        """
        write = writer.supersede(row, body, self._now(), self._room)
        return await self._writer.submit(write)

    async def expire(
        self, now: float, export_to: Path | None = None, most: float = math.inf
    ) -> Expired:
        """Export what is quarantined for longer than ``limits.max_age``, and then delete it.

        Args:
            now: Seconds since the epoch.
            export_to: The file that they are appended to, ``expired.jsonl`` beside the store
                where it is None. A crash may have a message appended twice, never not at all.
            most: Stop after so many rows.

        Raises:
            StoreError: They cannot be exported. Those that are not in the file are in the
                store still.
        """
        file = export_to or self._room.export_to
        if self._limits.max_age is None:
            return Expired(0, file)
        rows = 0
        while rows < most:
            limit = int(min(most - rows, _PORTION))
            write = retention.expire(now - self._limits.max_age, limit, file)
            portion = await self._writer.submit(write)
            rows += portion
            if portion < limit:
                break
        return Expired(rows, file)


def _release_all(connection: sqlite3.Connection, now: float) -> None:
    connection.execute("BEGIN IMMEDIATE")
    writer.release_all(now)(connection)
    writer.rebase(now)(connection)
    connection.execute("COMMIT")
