# SPDX-License-Identifier: GPL-2.0-or-later
"""The tasks of an instance, none of which fails unnoticed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet import defer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")


class SupervisedTasks:
    """A set of tasks that must not fail.

    Args:
        failed: Called with the error of a task, or with its cancellation.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *coroutine* in a task."""
        return self.watch(asyncio.get_running_loop().create_task(coroutine))

    def watch(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Supervise *task* as well; returns it."""
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def cancel(self) -> None:
        """Cancel all running tasks."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        cancelled = asyncio.CancelledError("a task of the framework")
        error = cancelled if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)


def reraise_own_cancellation(error: BaseException) -> None:
    """Raise *error* if it cancels this task; a cancellation out of a handler is its failure."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


async def from_twisted(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Await in an asyncio task a coroutine that awaits Deferreds."""
    loop = asyncio.get_running_loop()
    result: _T = await defer.Deferred.fromCoroutine(coroutine).asFuture(loop)
    return result
