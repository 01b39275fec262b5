# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of messages that are done: read before a step begins, written when it is done.

A message is found by its key, whatever queue, channel or row it comes from. Equal messages with one
id have their steps in common until one of them is settled. A message without an id is never
recognised when it comes again, so its steps belong to one delivery, or to one row.

The steps of a row are deleted with it. Those of other messages become superfluous when the broker
has read their acknowledgement, which nobody can know: they are kept for another :data:`GRACE`, in
case the process dies and the message comes again, and are deleted by the commit of a later step.
Those that are left when the process stops are kept for :data:`AFTER_STOP`: the connection may have
been dead for a while.

An equal message that the broker never delivered before has been published again. It begins anew,
unless the first one is not settled yet: in this process, or as a row.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from consumer_framework.core.memory import may_come_again
from consumer_framework.core.ports import RecordedStep

from .files import described
from .records import KEY_BYTES, key_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from consumer_framework.core.delivery import Delivery

# Seconds. A message that never comes back, because another worker or consumer had it, leaves its
# steps behind.
LONGEST = 30 * 86400.0
# Seconds that steps are kept after the acknowledgement of their message was written.
GRACE = 60.0
# Likewise, of those that have not been kept so long when the process stops.
AFTER_STOP = 86400.0
# Messages. Beyond them the steps of the oldest settled ones are deleted before their time, and
# those of the oldest others stay for LONGEST.
_MOST = 10_000

_STEPS = "SELECT name, result FROM steps WHERE key = ?"
# This reads every row, and is asked only of a message that was published twice.
_HAS_ROW = "SELECT 1 FROM messages WHERE substr(key, 1, 32) = ? LIMIT 1"
_ROW_KEY = "SELECT key FROM messages WHERE id = ?"
# The first record stays: an equal one may have been written by a commit whose end nobody knew.
_RECORD = "INSERT INTO steps (key, name, result, until) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_SHORTEN = "UPDATE steps SET until = min(until, ?) WHERE key = ?"
_EXPIRE = """DELETE FROM steps WHERE until <= ?
    AND substr(key, 1, 32) NOT IN (SELECT substr(key, 1, 32) FROM messages)"""


class StepTable:
    """The table ``steps``, for any thread.

    Args:
        file: The database, for error messages.
        connect: Opens a connection to read from; called at the first use.
        begin: Begins to carry out an operation of the writer.
        now: Returns the seconds since the epoch.
    """

    def __init__(
        self,
        file: Path,
        connect: Callable[[], sqlite3.Connection],
        begin: Callable[..., Future[None]],
        now: Callable[[], float],
    ) -> None:
        self._file = file
        self._connect = connect
        self._begin = begin
        self._now = now
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        # Distinguishes the messages without an id of this process from those of others.
        self._process = os.urandom(8)
        # Messages of the broker's whose handlers asked for steps and that are not settled.
        self._unsettled: dict[bytes, None] = {}
        # Messages that are settled, each with the monotonic time of that; the oldest first.
        self._settled: dict[bytes, float] = {}
        # The deletions of the former steps of messages that were published again; not those that
        # have succeeded.
        self._begun_anew: dict[bytes, Future[None]] = {}
        # Steps whose record failed: they are done, but a later process does not know.
        self._failed: dict[bytes, dict[str, str]] = {}

    def of(self, delivery: Delivery) -> Mapping[str, RecordedStep]:
        """Return the steps of *delivery* by name.

        Of a message that was published again, this waits for the deletion of its former steps: if
        the process died before, they would be taken for steps of its redelivery.

        Raises:
            StoreError: They cannot be read, or those former ones cannot be deleted.
        """
        with self._lock, described(self._file):
            key = self._key(delivery)
            is_new = key not in self._unsettled and not may_come_again(delivery)
            rows = self._reader().execute(_STEPS, (key,)).fetchall()
            failed = dict(self._failed.get(key, {}))
            deletion = self._deletion_of(key)
            if is_new and (rows or failed) and not self._has_row(key):
                self._failed.pop(key, None)
                deletion = self._begin_anew(key)
            # Last: a message whose steps could not be read is as new as before.
            self._note_unsettled(delivery, key)
        if deletion is not None:
            deletion.result()
            return self.of(delivery)
        found = {name: RecordedStep(result, is_durable=False) for name, result in failed.items()}
        return found | {name: RecordedStep(result) for name, result in rows}

    def record(self, delivery: Delivery, name: str, result: str) -> Future[None]:
        """Begin to write a step that is done, and to delete steps that are superfluous."""
        with self._lock, described(self._file):
            key = self._key(delivery)
            self._note_unsettled(delivery, key)
            old = self._take_settled()
        begun = self._begin(_record, key, name, result, self._now() + LONGEST, old)
        begun.add_done_callback(lambda future: self._recorded(future, key, name, result))
        return begun

    def settled(self, delivery: Delivery, *, stays: bool) -> None:
        """Take note that the broker has *delivery* no more; it has a row afterwards if it *stays*.

        A row that is settled takes its steps with it.
        """
        with self._lock:
            key = self._broker_key(delivery)
            if not stays:
                self._failed.pop(key, None)
                self._begun_anew.pop(key, None)
            if delivery.row or key not in self._unsettled:
                return
            del self._unsettled[key]
            if not stays:
                self._settled[key] = time.monotonic()

    def expire(self) -> Future[None]:
        """Begin to delete the steps that nobody needs any more."""
        with self._lock:
            old = self._take_settled()
        return self._begin(_expire, old, self._now())

    def close(self) -> None:
        """Let the steps of settled messages expire soon; call it before the end of the writer."""
        with self._lock:
            for key in list(self._begun_anew):
                # Begins the deletions again that have failed.
                self._deletion_of(key)
            if self._settled:
                self._begin(_shorten, list(self._settled), self._now() + AFTER_STOP)
                self._settled.clear()
            if self._connection is not None:
                self._connection.close()

    def _note_unsettled(self, delivery: Delivery, key: bytes) -> None:
        # An equal message may have been settled, and this one needs its steps still.
        self._settled.pop(key, None)
        if delivery.row:
            return
        self._unsettled[key] = None
        if len(self._unsettled) > _MOST:
            # It went back to the broker, and another process has it.
            del self._unsettled[next(iter(self._unsettled))]

    def _deletion_of(self, key: bytes) -> Future[None] | None:
        """Return the deletion that the message waits for; begin it again if it has failed."""
        deletion = self._begun_anew.get(key)
        if deletion is None or not deletion.done():
            return deletion
        return None if deletion.exception() is None else self._begin_anew(key)

    def _begin_anew(self, key: bytes) -> Future[None]:
        self._begun_anew[key] = deletion = self._begin(_forget, [key])
        deletion.add_done_callback(lambda _: self._has_begun_anew(key, deletion))
        return deletion

    def _has_begun_anew(self, key: bytes, deletion: Future[None]) -> None:
        if deletion.exception() is None:
            self._begun_anew.pop(key, None)

    def _reader(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _has_row(self, key: bytes) -> bool:
        return self._reader().execute(_HAS_ROW, (key,)).fetchone() is not None

    def _key(self, delivery: Delivery) -> bytes:
        if delivery.row:
            found = self._reader().execute(_ROW_KEY, (delivery.row,)).fetchone()
            # Where the row is gone, an operator dropped it.
            if found is not None:
                # The key of an edited row is that of the original, which its body is not.
                key: bytes = found[0]
                return key[:KEY_BYTES] if delivery.message_id else key
        return self._broker_key(delivery)

    def _broker_key(self, delivery: Delivery) -> bytes:
        if delivery.message_id:
            return key_of(delivery)
        return self._process + b"%d/%d" % (delivery.generation, delivery.delivery_tag)

    def _take_settled(self) -> list[bytes]:
        before = time.monotonic() - GRACE
        surplus = len(self._settled) - _MOST
        old: list[bytes] = []
        # The oldest first: this looks at none that stays but one.
        for key, settled_at in self._settled.items():
            if len(old) >= surplus and settled_at > before:
                break
            old.append(key)
        for key in old:
            del self._settled[key]
        return old

    def _recorded(self, future: Future[None], key: bytes, name: str, result: str) -> None:
        with self._lock:
            failed = self._failed.pop(key, {})
            if future.exception() is None:
                failed.pop(name, None)
            else:
                failed[name] = result
            if failed:
                self._failed[key] = failed


# Operations of the writer.


def _record(  # noqa: PLR0913, PLR0917 -- the columns
    connection: sqlite3.Connection,
    key: bytes,
    name: str,
    result: str,
    until: float,
    superfluous: Iterable[bytes],
) -> None:
    connection.execute(_RECORD, (key, name, result, until))
    _forget(connection, superfluous)


def _expire(connection: sqlite3.Connection, superfluous: Iterable[bytes], now: float) -> None:
    _forget(connection, superfluous)
    connection.execute(_EXPIRE, (now,))


def _forget(connection: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    connection.executemany("DELETE FROM steps WHERE key = ?", [(key,) for key in keys])


def _shorten(connection: sqlite3.Connection, keys: Iterable[bytes], until: float) -> None:
    connection.executemany(_SHORTEN, [(until, key) for key in keys])
