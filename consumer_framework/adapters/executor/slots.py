# SPDX-License-Identifier: GPL-2.0-or-later
"""The slots, which run so many runs at once: threads for plain handlers, tasks for coroutines.

Both kinds take a run with ``start``, and report its end to one callback on the event loop,
``on_end(run, result, release)``. The result is that of the run's body, or the exception that the
body raised. The callback has ``release`` called as soon as the outcome has been settled, which
frees the slot.

A thread takes its next run by itself after a plain success. The event loop collects the ended
runs with one wake-up for as many as have ended meanwhile, so that a quick handler costs no wake-up
of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import math
import threading
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from consumer_framework.core.delivery import Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from .run import Body, Result, Run

    Release = Callable[[], None]
    Ended = tuple[Run, Result | Body | BaseException, Release]
    OnEnd = Callable[[Run, Result | Body | BaseException, Release], None]

# Seconds that a stop waits for a handler without a time limit.
STOP_PATIENCE = 600.0

# Seconds after which an idle thread looks whether the process is about to end, which waits for
# the thread where nobody called close().
_LOOK = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The number of runs of a handler at once, and their sizes and times.

    Attributes:
        slots: Runs at once.
        timeout: Seconds that a run may take; infinite for no limit.
        batch_size: The largest number of messages that a batch handler gets at once.
        batch_seconds: Seconds that the first message of a batch waits for the others.
    """

    slots: int = 1
    timeout: float = 600.0
    batch_size: int = 100
    batch_seconds: float = 1.0

    @property
    def patience(self) -> float:
        """Return the seconds that a stop waits for the author's code at the most."""
        return STOP_PATIENCE if math.isinf(self.timeout) else self.timeout


class TaskSlots:
    """Slots that are tasks on the event loop, a new one for each run; their number may change.

    Args:
        slots: The number of tasks at once.
        body: Makes the coroutine of a run.
        on_end: See the module.
    """

    def __init__(self, slots: int, body: Callable[[Run], Body], on_end: OnEnd) -> None:
        self._slots = self._free = slots
        self._body = body
        self._on_end = on_end
        self._waiting: deque[Run] = deque()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()

    def start(self, run: Run) -> None:
        """Let the next free slot begin *run*."""
        self._waiting.append(run)
        self._fill()

    def resize(self, slots: int) -> None:
        """Run *slots* runs at once; runs beyond that end undisturbed."""
        self._free += slots - self._slots
        self._slots = slots
        self._fill()

    def withdraw(self) -> list[Run]:
        """Take back the runs that no slot has begun."""
        withdrawn = list(self._waiting)
        self._waiting.clear()
        return withdrawn

    def _fill(self) -> None:
        while self._free > 0 and self._waiting:
            self._free -= 1
            run = self._waiting.popleft()
            # The current context may be that of a run that frees its slot, with its variables.
            context = self._context.copy()
            run.task = self._loop.create_task(self._serve(run), context=context)

    async def _serve(self, run: Run) -> None:
        """Do *run* in the current task, and report its end, which saves a turn of the loop.

        A task that is cancelled before its first step reports nothing. Only the end of the loop
        does that, when nobody waits for the outcome any more.
        """
        try:
            result: Result | BaseException = await self._body(run)
        except BaseException as error:  # noqa: BLE001 -- the callback decides
            result = error
        self._on_end(run, result, self._release)
        # This frame outlives the task where an error's traceback has it.
        del run, result

    def _release(self) -> None:
        self._free += 1
        self._fill()


class ThreadSlots:
    """Slots that are threads, each started when it is first needed; their number may change.

    The threads are no daemon threads: a thread that the author's code starts in one would be a
    daemon as well, and die with its work at the end of the process. :meth:`close` ends them all.

    Make and use it on the event loop's thread while the loop runs.

    Args:
        slots: The largest number of threads.
        body: Does a run in the calling thread.
        on_end: See the module. The thread waits for ``release`` unless the run was a plain success.
    """

    def __init__(self, slots: int, body: Callable[[Run], Result | Body], on_end: OnEnd) -> None:
        self._slots = slots
        self._body = body
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._count = 0
        # None makes a thread look whether it is one too many.
        self._queue: SimpleQueue[Run | None] = SimpleQueue()
        self._surplus: deque[None] = deque()
        self._load = 0
        # Shared with the threads; each operation on them is atomic.
        self._ended: deque[Ended] = deque()
        self._is_called = False
        self._gates: list[SimpleQueue[None]] = []
        self._is_closed = False

    def start(self, run: Run) -> None:
        """Let the next free thread begin *run*."""
        self._load += 1
        if self._count < self._slots:
            self._grow()
        self._queue.put(run)

    def resize(self, slots: int) -> None:
        """Run *slots* threads; a thread beyond that ends with its current run."""
        self._slots = slots
        while self._count > slots:
            self._count -= 1
            self._surplus.append(None)
            self._queue.put(None)
        self._grow()

    def withdraw(self) -> list[Run]:
        """Take back the runs that no thread has begun."""
        withdrawn, looks = [], 0
        with contextlib.suppress(Empty):
            while True:
                run = self._queue.get_nowait()
                if run is None:
                    looks += 1
                else:
                    withdrawn.append(run)
        for _ in range(looks):
            self._queue.put(None)
        self._load -= len(withdrawn)
        return withdrawn

    def close(self) -> None:
        """End the threads as soon as they are idle; the result of a run that ends later is lost."""
        self.resize(0)
        self._is_closed = True
        for gate in list(self._gates):
            gate.put(None)

    def _grow(self) -> None:
        while self._count < min(self._load, self._slots):
            name = f"slot-{self._count}"
            self._count += 1
            if not self._is_surplus():
                threading.Thread(target=self._serve, name=name, daemon=False).start()

    # In the threads.

    def _serve(self) -> None:
        gate: SimpleQueue[None] = SimpleQueue()
        self._gates.append(gate)
        go_on = functools.partial(self._go_on, gate)
        while not self._is_surplus():
            run = self._next()
            if run is None:
                continue
            result: Result | Body | BaseException
            try:
                result = self._body(run)
            except BaseException as error:  # noqa: BLE001 -- handed to the loop, whatever it is
                result = error
            if isinstance(result, Succeeded):
                self._report((run, result, self._count_down))
            else:
                self._report((run, result, go_on))
                if not self._is_closed:
                    # The outcome may stop the instance, or pause it: the next run must wait.
                    gate.get()
            del run, result
        self._gates.remove(gate)

    def _next(self) -> Run | None:
        """Wait for a run; None makes the thread look whether it is to end."""
        try:
            return self._queue.get(timeout=_LOOK)
        except Empty:
            if not threading.main_thread().is_alive():
                self._surplus.append(None)
            return None

    def _is_surplus(self) -> bool:
        """Return whether there is a thread too many; the thread that asks is to end then."""
        if not self._surplus:
            return False
        try:
            self._surplus.pop()
        except IndexError:
            # Another thread was faster.
            return False
        return True

    def _report(self, ended: Ended) -> None:
        self._ended.append(ended)
        if not self._is_called:
            self._is_called = True
            # The loop may be closed by now, where the drain was cut short.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._collect)

    # On the event loop.

    def _collect(self) -> None:
        # First: a run that ends from now on is collected now, or calls again.
        self._is_called = False
        while self._ended:
            self._on_end(*self._ended.popleft())

    def _count_down(self) -> None:
        self._load -= 1

    def _go_on(self, gate: SimpleQueue[None]) -> None:
        """Let the thread at *gate* go on, perhaps after a task that its run began."""
        self._load -= 1
        gate.put(None)
