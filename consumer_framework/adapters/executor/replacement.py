# SPDX-License-Identifier: GPL-2.0-or-later
"""Replace the handler while messages are handled: set up, take over, tear down the former one."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import HandlerTimeoutError
from consumer_framework.core.text import duration_text

from .run import raised_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from consumer_framework.author.handler import Handler
    from consumer_framework.core.gate import Gate

    from .run import Run

    # Its result is the exception that the change raised, None for none.
    Change = asyncio.Task[BaseException | None]


class HandlerReplacement:
    """The replacements of a handler, one after the other.

    Args:
        call: Runs a function of the author's where the handler runs; raises its exception.
        take_over: Gives the runs that begin from now on to a handler; returns the former one.
        unfinished: Returns the runs that have begun and not ended; each may have either handler.
        gate: Once it is closed, no handler takes over.
    """

    def __init__(
        self,
        call: Callable[[Callable[[], Any] | None], Awaitable[None]],
        take_over: Callable[[Handler], Handler],
        unfinished: Callable[[], Iterable[Run]],
        gate: Gate,
    ) -> None:
        self._call = call
        self._take_over = take_over
        self._unfinished = unfinished
        self._loop = asyncio.get_running_loop()
        self._changes: set[Change] = set()
        self._gate = gate

    async def finish(self) -> None:
        """Wait until every handler but the current one is torn down."""
        while self._changes:
            await asyncio.wait(self._changes)

    async def replace(self, handler: Handler, patience: float | None) -> Change | None:
        """Replace the handler; see :meth:`.Executor.replace`."""
        leaving: list[Change] = []
        end = math.inf if patience is None else self._loop.time() + patience
        change = self._spawn(self._replace(handler, end, leaving))
        # The change goes on where the caller is cancelled.
        await asyncio.wait([change], timeout=patience)
        error = change.result() if change.done() else None
        if error is not None:
            raise error
        if leaving:
            return leaving[0]
        if self._gate.is_closed:
            return None
        raise HandlerTimeoutError(f"setup takes longer than {duration_text(patience or 0)}")

    async def _replace(self, handler: Handler, end: float, leaving: list[Change]) -> None:
        await self._call(handler.setup)
        if self._gate.is_closed or self._loop.time() >= end:
            await self._call(handler.teardown)
            return
        former = self._take_over(handler)
        begun = [waiter for run in self._unfinished() for waiter in run.waiters]
        leaving.append(self._spawn(self._leave(former, begun)))

    async def _leave(self, handler: Handler, begun: list[asyncio.Future[Any]]) -> None:
        if begun:
            await asyncio.wait(begun)
        await self._call(handler.teardown)

    def _spawn(self, change: Coroutine[Any, Any, None]) -> Change:
        task = self._loop.create_task(raised_by(change))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task
