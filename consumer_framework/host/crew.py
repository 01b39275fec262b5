# SPDX-License-Identifier: GPL-2.0-or-later
"""The tasks that take deliveries: as many as are in handlers, and more for a quick handler."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from consumer_framework.core.delivery import Delivery

    Task = asyncio.Task[None]

# Deliveries that are ready for the slots besides those that are in them: a quick handler takes its
# next without waiting for the event loop.
HAND_OVER = 32


class Crew:
    """Takes deliveries, one after the other in each task.

    Args:
        take: Waits for the next delivery; returns None once there will be no more.
        process: Takes a delivery to its settle; returns whether the next ones should be ready
            for the slots already.
    """

    def __init__(
        self,
        take: Callable[[], Awaitable[Delivery | None]],
        process: Callable[[Delivery], Awaitable[bool]],
    ) -> None:
        self._take = take
        self._process = process
        self._watch: Callable[[Task], object] = lambda _task: None
        self._tasks: set[Task] = set()
        self._size = 0
        self._surplus = 0
        self._busy = 0
        self._idle: list[asyncio.Future[None]] = []
        self._is_closed = False
        self._is_quick = asyncio.Event()

    def start(self, size: int, watch: Callable[[Task], object]) -> None:
        """Begin to take deliveries.

        Args:
            size: How many are in handlers at the most.
            watch: Called with each task, those that come later included.
        """
        self._watch = watch
        self.resize(size)
        for _ in range(HAND_OVER):
            self._spawn(self._work_ahead())

    def resize(self, size: int) -> None:
        """Let *size* tasks take deliveries; one too many ends with the delivery that it has."""
        self._surplus += self._size - size
        self._size = size
        while self._surplus < 0:
            self._surplus += 1
            self._spawn(self._work())

    def close(self) -> None:
        """Let the tasks end, which find that there is nothing more to take."""
        self._is_closed = True
        self._is_quick.set()

    async def finish(self) -> None:
        """Wait for the end of all tasks."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def busy(self) -> int:
        """How many deliveries were taken, and are not settled, nor on their way to the disk."""
        return self._busy

    async def idle(self) -> None:
        """Wait until every delivery that was taken is settled, or on its way to the disk."""
        if self._busy:
            self._idle.append(asyncio.get_running_loop().create_future())
            await self._idle[-1]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._watch(task)

    async def _work(self) -> None:
        """Take what the slots need."""
        while (delivery := await self._take()) is not None:
            await self._handle(delivery)
            if self._surplus > 0:
                self._surplus -= 1
                return

    async def _work_ahead(self) -> None:
        """Take what a quick handler needs next."""
        while not self._is_closed:
            await self._is_quick.wait()
            delivery = await self._take()
            if delivery is not None:
                await self._handle(delivery)

    async def _handle(self, delivery: Delivery) -> None:
        self._busy += 1
        try:
            is_quick = await self._process(delivery)
        finally:
            self._busy -= 1
            if self._idle and not self._busy:
                self._say_idle()
        if is_quick:
            self._is_quick.set()
        elif not self._is_closed:
            self._is_quick.clear()

    def _say_idle(self) -> None:
        waiting, self._idle = self._idle, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
