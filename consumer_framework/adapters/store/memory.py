# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of an instance without a state directory: it is empty, and takes no message.

It remembers the steps of handlers until the process ends.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from consumer_framework.core.errors import StoreError

from . import Store
from .files import MIGRATIONS
from .reader import Reader
from .retention import Limits, SizeLimit
from .steps import StepTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery

    from .records import Entry

T = TypeVar("T")


class NoStore(Store):
    """A store that is always empty: its messages stay with the broker.

    :meth:`defer` and :meth:`quarantine` raise :class:`.StoreError`; every other operation finds an
    empty store.
    """

    keeps = False

    def __init__(self) -> None:
        connection = _empty()
        Reader.__init__(self, Path("memory"), connection)
        self._limits = Limits()
        self._now = time.time
        self._size_limit = SizeLimit(None, Path())
        self._damaged = set()
        self._writer = _InPlace(connection)  # type: ignore[assignment]
        # Of their own: handlers use them in threads.
        steps = _InPlace(_empty())
        self._steps = StepTable(self._file, lambda: steps.connection, steps.begin, time.time)

    def close(self) -> None:
        """Close the empty database, and forget all steps."""
        self._steps.close()
        Reader.close(self)

    def is_open(self, _delivery: Delivery) -> bool:
        """Return False, without a read."""
        return False

    async def read_aside(self, read: Callable[[Reader], T]) -> T:
        """Return the result of *read* at once, since there is nothing to read."""
        return read(self)

    def is_blocked(self, _lane: str, _row: int = 0) -> bool:
        """Return False, without a read."""
        return False

    async def _put(self, _delivery: Delivery, _entry: Entry) -> NoReturn:
        raise StoreError("there is no store to write to: give one with --state-dir")


def _empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    for script in MIGRATIONS:
        connection.executescript(script)
    return connection


class _InPlace:
    """A :class:`.Writer` that needs neither a thread nor a disk."""

    commits = 0

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    async def submit(self, operation: Callable[..., T], *args: Any) -> T:
        return operation(self.connection, *args)

    def post(self, operation: Callable[..., object], *args: Any) -> None:
        operation(self.connection, *args)

    def begin(self, operation: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            future.set_result(operation(self.connection, *args))
        return future
