# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots that are threads, for handlers that block.

A thread takes its next job by itself, and the event loop collects what is done with one wake-up
for as many jobs as have ended meanwhile: a handler that is quick costs no wake-up of its own.

Slots that are tasks on the event loop, for coroutine handlers.

How much of a handler runs at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from .run import SUCCEEDED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .run import Job

    Done = Callable[[Job, Any, BaseException | None, Callable[[], None]], None]


class Tasks:
    """So many tasks at once, a new one for each job; the number may change.

    Args:
        slots: How many there are at the most.
        work: What a task does with a job; returns its result.
        done: Called with the job, its result or what *work* raised, and what frees the slot,
            which is free already after a plain success.
    """

    def __init__(
        self, slots: int, work: Callable[[Job], Coroutine[Any, Any, Any]], done: Done
    ) -> None:
        self._slots = self._free = slots
        self._work = work
        self._done = done
        self._waiting: deque[Job] = deque()
        self._loop = asyncio.get_running_loop()

    def start(self, job: Job) -> None:
        """Let the next free slot run *job*."""
        self._waiting.append(job)
        self._fill()

    def resize(self, slots: int) -> None:
        """Let so many run at once; one too many ends by itself."""
        self._free += slots - self._slots
        self._slots = slots
        self._fill()

    def withdraw(self) -> list[Job]:
        """Take back the jobs that no slot has begun with."""
        found = list(self._waiting)
        self._waiting.clear()
        return found

    def _fill(self) -> None:
        while self._free > 0 and self._waiting:
            self._free -= 1
            job = self._waiting.popleft()
            job.task = self._loop.create_task(self._work(job))
            job.task.add_done_callback(functools.partial(self._ended, job))

    def _ended(self, job: Job, task: asyncio.Task[Any]) -> None:
        # Cancelled is it only before its first step; otherwise that is an outcome.
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        result = task.result() if error is None else None
        self._done(job, result, error, self._release)
        if result is SUCCEEDED:
            self._release()

    def _release(self) -> None:
        self._free += 1
        self._fill()


# Seconds that a stop waits for what may take as long as it likes.
STOP_PATIENCE = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the handler runs at once, and for how long.

    Attributes:
        slots: Runs at once.
        timeout: Seconds that a run may take; infinite for no limit.
        batch_size: Messages that a batch handler gets at the most.
        batch_seconds: How long the first of them waits for the others.
    """

    slots: int = 1
    timeout: float = 600.0
    batch_size: int = 100
    batch_seconds: float = 1.0

    @property
    def patience(self) -> float:
        """Seconds that a stop waits for the author's code at the most."""
        return STOP_PATIENCE if math.isinf(self.timeout) else self.timeout


# Seconds between two looks of a thread that runs nothing at whether the process is about to end,
# which waits for it where nobody called close().
_LOOK = 2.0


class Threads:
    """So many threads, each made when it is first needed; the number may change.

    They are no daemon threads: a thread that the author's code starts in one would be a daemon as
    well, and die with its work at the end of the process. :meth:`close` ends them all.

    Args:
        slots: How many there are at the most.
        work: What a thread does with a job; returns its result.
        done: Called on the event loop with the job, its result or what *work* raised, and what
            lets the thread go on: it waits for that unless the result is a plain success.

    Must be made, and used, on the event loop's thread while the loop runs.
    """

    def __init__(self, slots: int, work: Callable[[Job], Any], done: Done) -> None:
        self._slots = slots
        self._work = work
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._count = 0
        # None lets a thread look whether it is one too many.
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._surplus: deque[None] = deque()
        self._load = 0
        # Shared with the threads; each operation on them is atomic.
        self._ended: deque[tuple[Job, Any, BaseException | None, Callable[[], None]]] = deque()
        self._is_called = False
        self._gates: list[SimpleQueue[None]] = []
        self._is_closed = False

    def start(self, job: Job) -> None:
        """Let the next free thread run *job*."""
        self._load += 1
        self._grow()
        self._jobs.put(job)

    def resize(self, slots: int) -> None:
        """Let there be so many threads; one too many ends with what it runs now."""
        self._slots = slots
        while self._count > slots:
            self._count -= 1
            self._surplus.append(None)
            self._jobs.put(None)
        self._grow()

    def _grow(self) -> None:
        while self._count < min(self._load, self._slots):
            name = f"slot-{self._count}"
            self._count += 1
            if not self._is_surplus():
                threading.Thread(target=self._serve, name=name, daemon=False).start()

    def withdraw(self) -> list[Job]:
        """Take back the jobs that no thread has begun with."""
        found, looks = [], 0
        with contextlib.suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is None:
                    looks += 1
                else:
                    found.append(job)
        for _ in range(looks):
            self._jobs.put(None)
        self._load -= len(found)
        return found

    def close(self) -> None:
        """End the threads as soon as they run nothing; a result that comes later is lost."""
        self.resize(0)
        self._is_closed = True
        for gate in list(self._gates):
            gate.put(None)

    # In the threads.

    def _serve(self) -> None:
        gate: SimpleQueue[None] = SimpleQueue()
        self._gates.append(gate)
        go_on = functools.partial(self._release, gate)
        while not self._is_surplus():
            job = self._next()
            if job is None:
                continue
            result, error = None, None
            try:
                result = self._work(job)
            except BaseException as raised:  # noqa: BLE001 -- handed to the loop, whatever it is
                error = raised
            self._report(job, result, error, go_on)
            if result is not SUCCEEDED and not self._is_closed:
                # It may stop the instance, or pause it: what follows must not run before.
                gate.get()
            del job, result, error
        self._gates.remove(gate)

    def _next(self) -> Job | None:
        """Wait for a job; None lets the thread look whether it is to end."""
        with contextlib.suppress(Empty):
            return self._jobs.get(timeout=_LOOK)
        if not threading.main_thread().is_alive():
            self._surplus.append(None)
        return None

    def _is_surplus(self) -> bool:
        """Whether there is a thread too many; the one that asks is to end then."""
        try:
            self._surplus.pop()
        except IndexError:
            return False
        return True

    def _report(
        self, job: Job, result: Any, error: BaseException | None, go_on: Callable[[], None]
    ) -> None:
        self._ended.append((job, result, error, go_on))
        if not self._is_called:
            self._is_called = True
            # The loop may be closed by now, where the drain was cut short.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._collect)

    # On the event loop.

    def _collect(self) -> None:
        # First: what ends from now on is collected now, or calls again.
        self._is_called = False
        while self._ended:
            job, result, error, go_on = self._ended.popleft()
            if result is SUCCEEDED:
                self._load -= 1
            self._done(job, result, error, go_on)

    def _release(self, gate: SimpleQueue[None]) -> None:
        """Let a thread go on that waited, perhaps for something that its job only began."""
        self._load -= 1
        gate.put(None)
