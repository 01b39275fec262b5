# SPDX-License-Identifier: GPL-2.0-or-later
"""One handler after the other: the next one is set up, takes over, and the former one leaves."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import HandlerTimeoutError
from consumer_framework.core.text import text

from .run import caught

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from consumer_framework.author.handler import Handler

    from .run import Job

    Leaving = asyncio.Task[BaseException | None]


class Succession:
    """Handlers that come and go.

    Args:
        call: Runs a function of the author's where the handler runs; raises what it raises.
        take_over: Lets a handler have what begins from now on; returns the former one.
        running: Returns what runs, what may have begun with either included.
    """

    def __init__(
        self,
        call: Callable[[Callable[[], Any] | None], Awaitable[None]],
        take_over: Callable[[Handler], Handler],
        running: Callable[[], Iterable[Job]],
    ) -> None:
        self._call = call
        self._take_over = take_over
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._changes: set[Leaving] = set()
        self._is_stopped = False

    def stop(self) -> None:
        """Let no handler take over any more."""
        self._is_stopped = True

    async def end(self) -> None:
        """Wait until every handler but the current one is gone."""
        while self._changes:
            await asyncio.wait(self._changes)

    async def replace(self, handler: Handler, patience: float | None) -> Leaving | None:
        """See :meth:`.Executor.replace`."""
        leaving: list[Leaving] = []
        end = math.inf if patience is None else self._loop.time() + patience
        change = self._spawn(self._replace(handler, end, leaving))
        # It goes on where whoever asked for it goes away.
        await asyncio.wait([change], timeout=patience)
        error = change.result() if change.done() else None
        if error is not None:
            raise error
        if leaving:
            return leaving[0]
        if self._is_stopped:
            return None
        raise HandlerTimeoutError(f"setup takes longer than {text(patience or 0)}")

    async def _replace(self, handler: Handler, end: float, leaving: list[Leaving]) -> None:
        await self._call(handler.setup)
        if self._is_stopped or self._loop.time() >= end:
            await self._call(handler.teardown)
            return
        former = self._take_over(handler)
        begun = [waiter for job in self._running() for waiter in job.waiters]
        leaving.append(self._spawn(self._leave(former, begun)))

    async def _leave(self, handler: Handler, begun: list[asyncio.Future[Any]]) -> None:
        if begun:
            await asyncio.wait(begun)
        await self._call(handler.teardown)

    def _spawn(self, change: Coroutine[Any, Any, None]) -> Leaving:
        task = self._loop.create_task(caught(change))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task
