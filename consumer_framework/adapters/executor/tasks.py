# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots that are tasks on the event loop, for coroutine handlers."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from typing import TYPE_CHECKING, Any

from .attempts import SUCCEEDED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .jobs import Job

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
