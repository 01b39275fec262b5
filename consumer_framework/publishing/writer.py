# SPDX-License-Identifier: GPL-2.0-or-later
"""One thread that stores the messages of handlers, many runs in one transaction.

A commit takes as long for a hundred runs as for one. The runs that end during a commit make up the
next group ("group commit"). If there was more than one, the writer waits a moment for further ones:
then a run does not wait for the one before it, and many share the cost of a commit. The event loop
never waits for the database.

A fault of one run, such as a body that the database refuses, does not keep the others of its group
from being stored: after a fault each run has a transaction of its own. Not every database says that
a run is at fault: a packet that is too large for MariaDB looks like a server that went away. So
only runs that fail one after the other mean that the database is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from consumer_framework.core.errors import ConfigurationError, StoreError
from consumer_framework.core.memory import may_come_again, source_key

from .message import OutboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Published

    from .store import OutboxStore

_log = logging.getLogger(__name__)

# Runs. Bounds how long the first one of a group waits for the last one.
_GROUP = 1000
# Seconds that a group waits for further runs, after a group of several.
_LINGER = 0.01
# Runs that fail one after the other while the database is away.
_AWAY = 2
# Seconds between two removals of old sources.
_TIDY = 60.0


@dataclass(frozen=True, slots=True)
class RunToStore:
    """The messages of one run of a handler.

    Attributes:
        run: A name of at most 64 characters that no other run has; the part before the dot is
            that of the process.
        published: The messages and their deliveries.
        is_tried: Whether they may be stored already, by an attempt whose end is not known.
    """

    run: str
    published: Published
    is_tried: bool = False

    @property
    def keys(self) -> list[str]:
        """The keys of its sources. One without a key of its own has that of the run."""
        return [source_key(delivery) or self.run for delivery in self.published.deliveries]

    @property
    def may_be_known(self) -> bool:
        """True if its sources must be looked up."""
        return self.is_tried or any(map(may_come_again, self.published.deliveries))

    def is_known(self, known: dict[str, str]) -> bool:
        """Tell whether its messages are stored; *known* has the run of each known source."""
        if self.is_tried and any(known.get(key) == self.run for key in self.keys):
            return True
        pairs = zip(self.published.deliveries, self.keys, strict=True)
        return all(may_come_again(d) and self._is_of_former(known.get(key)) for d, key in pairs)

    def _is_of_former(self, run: str | None) -> bool:
        """Tell whether a former process stored *run*; this one would not run its delivery again."""
        return run is not None and _process(run) != _process(self.run)


def _process(run: str) -> str:
    return run.partition(".")[0]


@dataclass(eq=False, slots=True)
class _Write:
    """The write of one run.

    Attributes:
        run: The run; None once its messages are stored.
        waiters: One future for each delivery that waits for the end of this write.
        is_over: Whether the waiters were told. The event loop's thread has it.
    """

    run: RunToStore | None
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    is_over: bool = False


@dataclass(eq=False, slots=True)
class _Group:
    writes: list[_Write] = field(default_factory=list)
    is_last: bool = False


class PublishedWriter:
    """Stores the messages of handlers: the :class:`.Outbox` of the core.

    Args:
        open_store: Returns the outbox's table, ready for use; called in the writer's thread, at the
            first write.
        clock: Returns the seconds since the epoch.
        stored: Called in the writer's thread with the number of messages of each commit.

    Attributes:
        commits: The number of transactions that were committed.
    """

    def __init__(
        self,
        open_store: Callable[[], OutboxStore],
        clock: Callable[[], float] = time.time,
        stored: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self.commits = 0
        self._open_store = open_store
        self._clock = clock
        self._stored = stored
        process = uuid.uuid4().hex[:16]
        self._names = (f"{process}.{number}" for number in itertools.count(1))
        self._writes: WeakKeyDictionary[Published, _Write] = WeakKeyDictionary()
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._tidied = 0.0
        self._lingers = False
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def store(self, published: Published) -> asyncio.Future[None]:
        """Begin to store the messages of one run; see :class:`.ports.Outbox`."""
        # Each caller has a future of its own: one of them may be cancelled.
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        write = self._writes.get(published)
        if self._is_closed:
            done.set_exception(StoreError("the outbox is closed"))
        elif write is None or (write.is_over and write.run is not None):
            try:
                self._begin(published, write, done)
            except RuntimeError as error:
                done.set_exception(StoreError(f"the outbox has no thread: {error}"))
        elif write.is_over:
            done.set_result(None)
        else:
            write.waiters.append(done)
        return done

    def close(self) -> None:
        """Store the submitted messages, and end the thread. Returns when that is done."""
        self._is_closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _begin(
        self, published: Published, failed: _Write | None, done: asyncio.Future[None]
    ) -> None:
        former = failed.run if failed is not None else None
        name = former.run if former is not None else next(self._names)
        run = RunToStore(name, published, is_tried=former is not None)
        write = _Write(run, [done])
        if self._thread is None:
            # It may fail, where the system allows no further thread: nothing is submitted then.
            thread = threading.Thread(target=self._serve, name="published", daemon=True)
            thread.start()
            self._thread = thread
        self._writes[published] = write
        self._queue.put(write)

    # In the thread.

    def _serve(self) -> None:
        group = _Group()
        while not group.is_last:
            group = self._next_group()
            if group.writes:
                self._write(group.writes)

    def _next_group(self) -> _Group:
        group = _Group()
        write = self._queue.get()
        if self._lingers and write is not None:
            time.sleep(_LINGER)
        with contextlib.suppress(Empty):
            while write is not None and len(group.writes) < _GROUP - 1:
                group.writes.append(write)
                write = self._queue.get_nowait()
            if write is None:
                group.is_last = True
            else:
                group.writes.append(write)
        self._lingers = len(group.writes) > 1
        return group

    def _write(self, writes: list[_Write]) -> None:
        error = self._store(writes)
        if error is None or len(writes) == 1:
            _answer(writes, "" if error is None else str(error))
            return
        for write in writes:
            # The end of the commit may be unknown.
            write.run = write.run and replace(write.run, is_tried=True)
        self._write_each(writes)

    def _write_each(self, writes: list[_Write]) -> None:
        """Store each run by itself, in order; give up once the database seems to be away."""
        failed = 0
        error: Exception | None = None
        for write in writes:
            if failed < _AWAY:
                error = self._store([write])
                failed = 0 if error is None or _is_of_one(error) else failed + 1
            _answer([write], "" if error is None else str(error))

    def _store(self, writes: list[_Write]) -> Exception | None:
        # Late: a process whose handlers publish nothing needs no SQLAlchemy.
        from .sources import store_runs  # noqa: PLC0415

        runs = [write.run for write in writes if write.run is not None]
        try:
            store = self._open_store()
            count = store_runs(store, runs, self._clock())
        except Exception as error:  # noqa: BLE001 -- each caller must get an answer
            known = isinstance(error, OutboxError | ConfigurationError)
            return error if known else OutboxError(f"the outbox failed: {error!r}")
        for write in writes:
            # The run has the messages, and the dictionary of writes keeps its values.
            write.run = None
        self.commits += 1
        try:
            self._stored(count)
            self._tidy(store)
        except Exception:  # noqa: BLE001 -- the messages are stored, and the thread must go on
            _log.exception("after a commit to the outbox")
        return None

    def _tidy(self, store: OutboxStore) -> None:
        from .sources import forget_old_sources  # noqa: PLC0415 -- as above

        now = time.monotonic()
        if now - self._tidied >= _TIDY:
            self._tidied = now
            # A database that is busy gets another chance.
            with contextlib.suppress(OutboxError):
                forget_old_sources(store, self._clock())


def _is_of_one(error: Exception) -> bool:
    """Tell whether one row may be at fault, and not the database."""
    cause = error.__cause__
    return type(cause).__name__ in {"DataError", "IntegrityError", "ProgrammingError"}


def _answer(writes: list[_Write], error: str) -> None:
    """Wake the callers, with one call into the event loop."""
    loop = writes[0].waiters[0].get_loop()
    # A drain that was cut short may have closed the loop.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_wake, writes, error)


def _wake(writes: list[_Write], error: str) -> None:
    for write in writes:
        write.is_over = True
        waiters, write.waiters = write.waiters, []
        for done in waiters:
            if done.done():
                continue
            if error:
                done.set_exception(StoreError(error))
            else:
                done.set_result(None)
