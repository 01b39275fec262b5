# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the author's code: plain functions in threads of their own, coroutines on the loop.

Puts deliveries together for a batch handler.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from consumer_framework.author.handler import Handler, is_coroutine_callable
from consumer_framework.core.attempt import NO_HISTORY
from consumer_framework.core.delivery import Failed, Withdrawn
from consumer_framework.core.errors import HandlerTimeoutError
from consumer_framework.core.log_fields import fields_of_all
from consumer_framework.core.text import text

from .deadlines import Patrol
from .replacement import Succession
from .run import SUCCEEDED, Job, Later, Work, caught, finished, refuse_never_run, signal_of
from .slots import Limits, Tasks, Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.health import Overrun
    from consumer_framework.core.ports import Decoder, FlightRecorder


__all__ = ["Executor", "Limits", "signal_of"]


class Gathering:
    """The batch that is not full yet.

    Args:
        loop: The event loop.
        limits: How many deliveries make a batch, and how long the first of them waits.
        submit: Gets each batch that is full, or has waited long enough.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, submit: Callable[[Job], None]
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._submit = submit
        self._job = Job(clock=loop.time)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for others."""
        return not self._job.deliveries

    def has(self, which: Callable[[Delivery], bool]) -> bool:
        """Whether any of what waits is meant."""
        return self._job.has(which)

    def resize(self, limits: Limits) -> None:
        """Keep to other limits from now on; a timer that runs is not changed."""
        self._limits = limits
        if self._is_full:
            self._submit(self.take())

    def add(self, delivery: Delivery, waiter: asyncio.Future[Outcome]) -> None:
        """Put *delivery* into the batch."""
        self._job.deliveries.append(delivery)
        self._job.waiters.append(waiter)
        if self._is_full:
            self._submit(self.take())
        elif self._timer is None:
            seconds = self._limits.batch_seconds
            self._timer = self._loop.call_later(seconds, lambda: self._submit(self.take()))

    def take(self) -> Job:
        """Return the batch so far; the next one begins."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        job, self._job = self._job, Job(clock=self._loop.time)
        return job

    @property
    def _is_full(self) -> bool:
        return len(self._job.deliveries) >= self._limits.batch_size


_log = logging.getLogger(__name__)


# Seconds. Runs that take longer gain nothing from having the next delivery ready, and what is ready
# can no longer be overtaken by a message that is due again.
QUICK = 0.05

_UNLESS_SAID = Limits()


def _is_coroutine(handler: Handler) -> bool:
    return is_coroutine_callable(handler.call_batch or handler.call)


def _any(_delivery: Delivery) -> bool:
    return True


async def _completed(returned: Any) -> None:
    """Await what ``setup`` or ``teardown`` returned, where it can be awaited."""
    refuse_never_run(await finished(returned))


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
        limits: Limits = _UNLESS_SAID,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._work = Work(handler, decode, flight, self._loop)
        self._threads = Threads(limits.slots, self._work.run, self._done)
        self._tasks = Tasks(limits.slots, self._work.run_in_task, self._done)
        self._start = (self._tasks if _is_coroutine(handler) else self._threads).start
        self._gathering = Gathering(self._loop, limits, self._submit)
        self._is_stopped = False
        self._stopped: list[Job] = []
        self._patrol = Patrol(
            self._loop,
            limits.timeout,
            lambda: self._work.running,
            lambda: self.is_busy,
            self._overdue,
        )
        self._outstanding = 0
        self._last_took = math.inf
        self._succession = Succession(self._call, self._take_over, lambda: self._work.running)

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
        return tuple(delivery for job in self._work.running for delivery in job.deliveries)

    def overruns(self) -> tuple[Overrun, ...]:
        """The runs that take longer than they may, the longest first; times are the loop's."""
        return self._patrol.overruns()

    def resize(self, limits: Limits) -> None:
        """Keep to other limits from now on; nothing that runs is disturbed by fewer slots."""
        self._limits = limits
        self._threads.resize(limits.slots)
        self._tasks.resize(limits.slots)
        self._patrol.allow(limits.timeout)
        self._gathering.resize(limits)

    @property
    def deadline(self) -> float | None:
        """When the last of what is in the handler has had its time; None where nothing is.

        In seconds of the event loop's clock, which is :func:`time.monotonic`.
        """
        starts = [job.lasts_since for job in self._work.running if job.function is None]
        return max(starts) + self._limits.timeout if starts else None

    def cancel(self) -> tuple[Delivery, ...]:
        """Cancel what runs and was not cancelled yet, which only coroutines can be.

        Returns:
            The deliveries that are no longer handled because of that.
        """
        return self._work.cancel()

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
        self._work.hand_to(handler)
        return former

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
            self._submit(Job([delivery], [waiter], clock=self._loop.time))
        else:
            self._gathering.add(delivery, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # By the host: what comes out of a handler is its outcome.
            self._work.abandon()
            raise

    def stop(self) -> None:
        """Let no slot begin with anything any more; :meth:`withdraw` ends what waits for one."""
        self._is_stopped = True
        self._succession.stop()
        self._stopped += self._take_back()
        if not self._gathering.is_empty:
            self._stopped.append(self._gathering.take())

    def withdraw(self, which: Callable[[Delivery], bool] = _any) -> int:
        """Let no slot begin with what none has begun with; returns how many deliveries that is.

        Args:
            which: Says whether a delivery is meant; of a batch, one is enough.
        """
        withdrawn = 0
        if self._gathering.has(which):
            withdrawn += self._withdraw(self._gathering.take())
        stopped, self._stopped = self._stopped, []
        for job in [*stopped, *self._take_back()]:
            if job.has(which):
                withdrawn += self._withdraw(job)
            else:
                self._submit(job)
        return withdrawn

    def _take_back(self) -> list[Job]:
        """Take back what no slot has begun with; other functions of the author's stay in line."""
        jobs = [*self._threads.withdraw(), *self._tasks.withdraw()]
        for job in jobs:
            if job.function is not None:
                self._threads.start(job)
        taken = [job for job in jobs if job.function is None]
        self._outstanding -= len(taken)
        return taken

    def _withdraw(self, job: Job) -> int:
        job.end([Withdrawn()] * len(job.waiters))
        return len(job.deliveries)

    async def teardown(self) -> None:
        """Run the handler's ``teardown``; what it raises is raised here."""
        await self._succession.end()
        await self._call(self._handler.teardown)

    def close(self) -> None:
        """End the threads that run nothing."""
        self._gathering.take()
        self._patrol.stop()
        self._threads.close()

    # On the event loop.

    def _done(
        self, job: Job, result: Any, error: BaseException | None, go_on: Callable[[], None]
    ) -> None:
        if isinstance(result, Later):
            self._work.run_on(job, result, lambda task: self._done_later(job, task, go_on))
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
        if self._is_stopped:
            self._stopped.append(job)
            return
        self._outstanding += 1
        self._patrol.start()
        self._start(job)

    async def _call(self, function: Callable[[], Any] | None) -> None:
        """Run another function of the author's where the handler runs."""
        if function is None:
            return
        if is_coroutine_callable(function):
            # In a task of its own, which it may cancel.
            error = await self._loop.create_task(caught(_completed(function())))
        else:
            error = await self._call_in_thread(function)
        if error is not None:
            raise error

    async def _call_in_thread(self, function: Callable[[], Any]) -> BaseException | None:
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._outstanding += 1
        self._threads.start(Job(waiters=[waiter], function=function))
        value, error = await waiter
        if error is None and value is not None:
            error = await self._loop.create_task(caught(_completed(value)))
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
