# SPDX-License-Identifier: GPL-2.0-or-later
"""The tasks that take deliveries from the intake through the pipeline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from consumer_framework.core.gate import GateEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.gate import Gate, Reason

    Task: TypeAlias = asyncio.Task[None]

# Deliveries that are ready besides those in the slots: a quick handler takes its next one without
# waiting for the event loop.
HAND_OVER = 32


class TaskPool:
    """The tasks that take deliveries, one after the other in each task.

    There are as many as deliveries may be in the handler, and :data:`HAND_OVER` more, which work
    only while the handler is quick.

    Args:
        take: Waits for the next delivery; returns None once the gate is closed.
        process: Takes a delivery to its settle; returns True if the handler is quick, so that more
            deliveries should be ready for the slots.
        gate: The gate of the instance, whose close ends the tasks.
    """

    def __init__(
        self,
        take: Callable[[], Awaitable[Delivery | None]],
        process: Callable[[Delivery], Awaitable[bool]],
        gate: Gate,
    ) -> None:
        self._take = take
        self._process = process
        self._gate = gate
        gate.listen(self._gate_changed)
        self._watch: Callable[[Task], object] = lambda _task: None
        self._tasks: set[Task] = set()
        self._size = 0
        self._surplus = 0
        self._busy = 0
        self._idle: list[asyncio.Future[None]] = []
        self._is_quick = asyncio.Event()

    def start(self, size: int, watch: Callable[[Task], object]) -> None:
        """Begin to take deliveries.

        Args:
            size: The most deliveries that may be in handlers.
            watch: Called with each task, and with those of a later :meth:`resize`.
        """
        self._watch = watch
        self.resize(size)
        for _ in range(HAND_OVER):
            self._spawn(self._serve_ahead())

    def resize(self, size: int) -> None:
        """Let *size* tasks take deliveries; a surplus task ends after its delivery."""
        self._surplus += self._size - size
        self._size = size
        while self._surplus < 0:
            self._surplus += 1
            self._spawn(self._serve())

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is GateEvent.CLOSE:
            self._is_quick.set()

    async def finish(self) -> None:
        """Wait for the end of all tasks."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def busy(self) -> int:
        """The number of deliveries that are taken, and neither settled nor being committed."""
        return self._busy

    async def idle(self) -> None:
        """Wait until every delivery that was taken is settled or being committed."""
        if self._busy:
            self._idle.append(asyncio.get_running_loop().create_future())
            await self._idle[-1]

    def _spawn(self, serving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._watch(task)

    async def _serve(self) -> None:
        while (delivery := await self._take()) is not None:
            await self._handle(delivery)
            if self._surplus > 0:
                self._surplus -= 1
                return

    async def _serve_ahead(self) -> None:
        while not self._gate.is_closed:
            if not self._is_quick.is_set():
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
        elif not self._gate.is_closed:
            self._is_quick.clear()

    def _say_idle(self) -> None:
        waiting, self._idle = self._idle, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
