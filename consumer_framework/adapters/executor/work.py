# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs in the slots, which may be threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer_framework.core.heartbeat import RUN

from .attempts import Attempts, Later, Result, returned
from .returns import Returns

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.handler import Handler
    from consumer_framework.core.ports import Decoder, FlightRecorder

    from .jobs import Job


class Work:
    """Runs jobs, and knows which of them run.

    Args:
        handler: What to run.
        decode: Makes messages of deliveries.
        flight: Told of what is in the handler.
        loop: The event loop.
    """

    def __init__(
        self,
        handler: Handler,
        decode: Decoder,
        flight: FlightRecorder,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._decode = decode
        self._flight = flight
        self._loop = loop
        self._now = loop.time
        self._attempts = self._attempts_at(handler)
        # Written by the slots' threads too; each operation on it is atomic.
        self._running: dict[Job, None] = {}

    @property
    def running(self) -> list[Job]:
        """What runs, the longest first."""
        return list(self._running)

    def hand_to(self, handler: Handler) -> None:
        """Let *handler* have what begins from now on."""
        # Who begins from here on, reads that. Some that have begun may have read it, too.
        self._attempts = self._attempts_at(handler)

    def _attempts_at(self, handler: Handler) -> Attempts:
        call = handler.call_batch or handler.call
        returns = Returns(handler.name)
        return Attempts(call, self._decode, self._flight, returns, handler.call_batch is not None)

    def cancel(self) -> tuple[Delivery, ...]:
        """Cancel what runs and was not cancelled yet, which only coroutines can be.

        Returns:
            The deliveries that are no longer handled because of that.
        """
        cancelled: list[Delivery] = []
        for job in self.running:
            if job.task is not None and not job.task.cancelling():
                job.task.cancel()
                cancelled += job.deliveries
        return tuple(cancelled)

    def abandon(self) -> None:
        """Cancel what nobody waits for any more."""
        for job in self.running:
            is_unwanted = all(waiter.done() for waiter in job.waiters)
            if job.task is not None and is_unwanted and not job.task.cancelling():
                job.task.cancel()

    def run(self, job: Job) -> Any:
        """Run *job* in a thread; what comes of it may be :class:`.Later`."""
        job.started_at = self._now()
        # Before it is known which handler that is: see hand_to.
        self._running[job] = None
        RUN.set(job)
        result = None
        try:
            if job.function is not None:
                return [returned(job.function)]
            result = self._attempts.run(job.deliveries)
            return result
        finally:
            RUN.set(None)
            if not isinstance(result, Later):
                del self._running[job]

    async def run_in_task(self, job: Job) -> Result:
        """Run *job*, a coroutine handler's, in the current task."""
        job.started_at = self._now()
        self._running[job] = None
        # In the task's own context.
        RUN.set(job)
        try:
            return await self._attempts.run_coroutine(job.deliveries)
        finally:
            # The job keeps the task, and that its context: no cycle for the garbage collector.
            RUN.set(None)
            del self._running[job]

    def run_on(self, job: Job, later: Later, done: Callable[[asyncio.Task[Result]], None]) -> None:
        """Run what is left of *job* on the event loop; then call *done*."""

        def ended(task: asyncio.Task[Result]) -> None:
            del self._running[job]
            done(task)

        task = self._loop.create_task(self._await(job, later))
        job.task = task
        task.add_done_callback(ended)

    async def _await(self, job: Job, later: Later) -> Result:
        RUN.set(job)
        try:
            return await later.result
        finally:
            RUN.set(None)
