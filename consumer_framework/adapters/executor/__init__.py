# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the author's code: plain functions in threads of their own, coroutines on the loop."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.core.attempt import NO_HISTORY
from consumer_framework.core.delivery import Failed, Withdrawn
from consumer_framework.core.durations import text
from consumer_framework.core.errors import HandlerTimeoutError
from consumer_framework.core.fields import fields_of_all
from consumer_framework.core.handler import Handler, is_coroutine_callable
from consumer_framework.core.heartbeat import RUN

from .attempts import (
    SUCCEEDED,
    Attempts,
    Later,
    Result,
    as_awaitable,
    caught,
    is_later,
    returned,
    signal_of,
)
from .jobs import Job
from .patrol import Patrol
from .succession import Succession
from .tasks import Tasks
from .threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.ports import Decoder, FlightRecorder
    from consumer_framework.core.vitality import Overrun

__all__ = ["Executor", "Limits", "signal_of"]

_log = logging.getLogger(__name__)


# Seconds. Runs that take longer gain nothing from having the next delivery ready, and what is ready
# can no longer be overtaken by a message that is due again.
QUICK = 0.05


def _is_coroutine(handler: Handler) -> bool:
    return is_coroutine_callable(handler.call_batch or handler.call)


def _any(_delivery: Delivery) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the handler runs at once, and for how long.

    Attributes:
        slots: Runs at once.
        timeout: Seconds that a run may take.
        batch_size: Messages that a batch handler gets at the most.
        batch_seconds: How long the first of them waits for the others.
    """

    slots: int = 1
    timeout: float = 600.0
    batch_size: int = 100
    batch_seconds: float = 1.0


class Executor:
    """A :class:`.HandlerRunner`: runs one handler in so many slots.

    Args:
        handler: What to run.
        decode: Makes messages of deliveries; runs where the handler does.
        flight: Told of what is in the handler.
        limits: How much of it runs at once.

    Must be made, and used, on the event loop's thread while the loop runs.
    """

    def __init__(
        self,
        handler: Handler,
        decode: Decoder,
        flight: FlightRecorder,
        limits: Limits = Limits(),
    ) -> None:
        self._handler = handler
        self._decode = decode
        self._flight = flight
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._attempts = self._attempts_at(handler)
        self._threads = Threads(limits.slots, self._work, self._done)
        self._tasks = Tasks(limits.slots, self._work_in_task, self._done)
        self._start = (self._tasks if _is_coroutine(handler) else self._threads).start
        # Written by the slots' threads too; each operation on it is atomic.
        self._running: dict[Job, None] = {}
        self._now = self._loop.time
        self._gathering = Job(clock=self._now)
        self._gather_timer: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self._stopped: list[Job] = []
        self._patrol = Patrol(
            self._loop,
            limits.timeout,
            lambda: list(self._running),
            lambda: self.is_busy,
            self._overdue,
        )
        self._outstanding = 0
        self._last_took = math.inf
        self._succession = Succession(self._call, self._take_over, lambda: list(self._running))

    @property
    def is_busy(self) -> bool:
        """Whether something runs, or could if a slot were free."""
        return self._outstanding > 0

    @property
    def is_quick(self) -> bool:
        """Whether the last run took no longer than :data:`QUICK`."""
        return self._last_took <= QUICK

    @property
    def running(self) -> tuple[Delivery, ...]:
        """The deliveries that are in the handler, longest first."""
        return tuple(delivery for job in list(self._running) for delivery in job.deliveries)

    def overruns(self) -> tuple[Overrun, ...]:
        """The runs that take longer than they may, the longest first; times are the loop's."""
        return self._patrol.overruns()

    def resize(self, limits: Limits) -> None:
        """Keep to other limits from now on; nothing that runs is disturbed by fewer slots."""
        self._limits = limits
        self._threads.resize(limits.slots)
        self._tasks.resize(limits.slots)
        self._patrol.allow(limits.timeout)
        if len(self._gathering.deliveries) >= limits.batch_size:
            self._submit(self._gathered())

    @property
    def deadline(self) -> float | None:
        """When the last of what is in the handler has had its time; None where nothing is.

        In seconds of the event loop's clock, which is :func:`time.monotonic`.
        """
        starts = [job.lasts_since for job in list(self._running) if job.function is None]
        return max(starts) + self._limits.timeout if starts else None

    def cancel(self) -> tuple[Delivery, ...]:
        """Cancel what runs and was not cancelled yet, which only coroutines can be.

        Returns:
            The deliveries that are no longer handled because of that.
        """
        cancelled: list[Delivery] = []
        for job in list(self._running):
            if job.task is not None and not job.task.cancelling():
                job.task.cancel()
                cancelled += job.deliveries
        return tuple(cancelled)

    async def setup(self) -> None:
        """Run the handler's ``setup``; what it raises is raised here."""
        await self._call(self._handler.setup)

    async def replace(
        self, handler: Handler, patience: float | None = None
    ) -> asyncio.Task[BaseException | None] | None:
        """Set *handler* up, and let it have every message that no slot has begun with.

        What the former one has begun with it ends. The number of slots holds for both together.

        Args:
            handler: Takes over.
            patience: Seconds that its ``setup`` may take; None for no end. Later it is of no use,
                and torn down.

        Returns:
            The end of the former one, with what its ``teardown`` raised, or None for nothing. None
            in its place where :meth:`stop` came first: then the former one stays.

        Raises:
            HandlerTimeoutError: It took longer; the former one stays.
            BaseException: What the ``setup`` of *handler* raised, likewise.
        """
        return await self._succession.replace(handler, patience)

    def _take_over(self, handler: Handler) -> Handler:
        former, self._handler = self._handler, handler
        # Who begins from here on, reads that. Some that have begun may have read it, too.
        self._attempts = self._attempts_at(handler)
        return former

    def _attempts_at(self, handler: Handler) -> Attempts:
        call = handler.call_batch or handler.call
        return Attempts(call, self._decode, self._flight, handler.call_batch is not None)

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the handler on *delivery* as soon as a slot is free, alone or in a batch.

        Returns:
            What the handler did; :class:`.Withdrawn` where :meth:`withdraw` came first.
        """
        if self._is_stopped:
            return Withdrawn()
        waiter: asyncio.Future[Outcome] = self._loop.create_future()
        if self._handler.call_batch is None or delivery.history != NO_HISTORY:
            # A batch that failed, or killed the process, is told apart: each message is on its own.
            self._submit(Job([delivery], [waiter], clock=self._now))
        else:
            self._gather(delivery, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # By the host: what comes out of a handler is its outcome.
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Cancel what nobody waits for any more."""
        for job in list(self._running):
            is_unwanted = all(waiter.done() for waiter in job.waiters)
            if job.task is not None and is_unwanted and not job.task.cancelling():
                job.task.cancel()

    def stop(self) -> None:
        """Let no slot begin with anything any more; :meth:`withdraw` ends what waits for one."""
        self._is_stopped = True
        self._succession.stop()
        self._stopped += self._take_back()
        if self._gathering.deliveries:
            self._stopped.append(self._gathered())

    def withdraw(self, which: Callable[[Delivery], bool] = _any) -> int:
        """Let no slot begin with what none has begun with; returns how many deliveries that is.

        Args:
            which: Says whether a delivery is meant; of a batch, one is enough.
        """
        withdrawn = 0
        if self._gathering.has(which):
            withdrawn += self._withdraw(self._gathered())
        stopped, self._stopped = self._stopped, []
        for job in [*stopped, *self._take_back()]:
            if job.has(which):
                withdrawn += self._withdraw(job)
            else:
                self._submit(job)
        return withdrawn

    def _take_back(self) -> list[Job]:
        jobs = [*self._threads.withdraw(), *self._tasks.withdraw()]
        self._outstanding -= len(jobs)
        return jobs

    def _withdraw(self, job: Job) -> int:
        job.end([Withdrawn()] * len(job.waiters))
        return len(job.deliveries)

    async def teardown(self) -> None:
        """Run the handler's ``teardown``; what it raises is raised here."""
        await self._succession.end()
        await self._call(self._handler.teardown)

    def close(self) -> None:
        """End the threads that run nothing."""
        self._gathered()
        self._patrol.stop()
        self._threads.close()

    # In a slot, which may be a thread.

    def _work(self, job: Job) -> Any:
        job.started_at = self._now()
        # Before it is known which handler that is: see _take_over.
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

    async def _work_in_task(self, job: Job) -> Result:
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

    async def _work_later(self, job: Job, later: Later) -> Result:
        RUN.set(job)
        try:
            return await later.result
        finally:
            RUN.set(None)

    # On the event loop.

    def _done(
        self, job: Job, result: Any, error: BaseException | None, go_on: Callable[[], None]
    ) -> None:
        if isinstance(result, Later):
            job.task = self._loop.create_task(self._work_later(job, result))
            job.task.add_done_callback(lambda task: self._done_later(job, task, go_on))
            return
        self._outstanding -= 1
        self._last_took = self._loop.time() - job.started_at
        if error is not None:
            job.fail(error)
        elif job.overdue and job.task is not None and result is not SUCCEEDED:
            job.end([Failed(self._too_late())] * len(job.waiters))
        else:
            job.end(result)
        if result is not SUCCEEDED:
            # Callbacks run in the order of their registration: this one after whoever waits for
            # the outcome has settled it.
            self._loop.call_soon(go_on)

    def _done_later(self, job: Job, task: asyncio.Task[Any], go_on: Callable[[], None]) -> None:
        del self._running[job]
        if task.cancelled() or task.result() is not SUCCEEDED:
            result = [Failed(asyncio.CancelledError())] if task.cancelled() else task.result()
            self._done(job, result, None, go_on)
        else:
            self._outstanding -= 1
            job.end(SUCCEEDED)
            # Its thread waits, whatever the result is.
            self._loop.call_soon(go_on)

    def _submit(self, job: Job) -> None:
        """Let the next free slot run *job*, unless nothing more is to begin."""
        if self._is_stopped and job.function is None:
            self._stopped.append(job)
            return
        self._outstanding += 1
        self._patrol.start()
        self._start(job)

    def _gather(self, delivery: Delivery, waiter: asyncio.Future[Outcome]) -> None:
        self._gathering.deliveries.append(delivery)
        self._gathering.waiters.append(waiter)
        if len(self._gathering.deliveries) >= self._limits.batch_size:
            self._submit(self._gathered())
        elif self._gather_timer is None:
            seconds = self._limits.batch_seconds
            self._gather_timer = self._loop.call_later(
                seconds, lambda: self._submit(self._gathered())
            )

    def _gathered(self) -> Job:
        """The batch so far; the next one begins."""
        timer, self._gather_timer = self._gather_timer, None
        if timer is not None:
            timer.cancel()
        job, self._gathering = self._gathering, Job(clock=self._now)
        return job

    async def _call(self, function: Callable[[], Any] | None) -> None:
        """Run another function of the author's where the handler runs."""
        if function is None:
            return
        if is_coroutine_callable(function):
            # In a task of its own, which it may cancel.
            error = await self._loop.create_task(caught(function()))
        else:
            error = await self._call_in_thread(function)
        if error is not None:
            raise error

    async def _call_in_thread(self, function: Callable[[], Any]) -> BaseException | None:
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._outstanding += 1
        self._threads.start(Job(waiters=[waiter], function=function))
        value, error = await waiter
        if error is None and value is not None and is_later(value):
            error = await self._loop.create_task(caught(as_awaitable(value)))
        raised: BaseException | None = error
        return raised

    # What takes too long.

    def _overdue(self, job: Job) -> None:
        if job.task is not None:
            job.task.cancel()
        else:
            _log.error(
                "%s has had %s for more than %s, and cannot be interrupted",
                self._handler.name,
                job.named,
                text(self._limits.timeout),
                extra=fields_of_all(job.deliveries),
            )

    def _too_late(self) -> HandlerTimeoutError:
        return HandlerTimeoutError(f"cancelled after {text(self._limits.timeout)}")
