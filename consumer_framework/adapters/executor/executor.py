# SPDX-License-Identifier: GPL-2.0-or-later
"""The executor: deliveries in, outcomes out, with so many runs of the handler at once."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from consumer_framework.author.handler import Handler, is_coroutine_callable
from consumer_framework.core.attempt import NO_HISTORY
from consumer_framework.core.delivery import Failed, Succeeded, Undecodable, Withdrawn
from consumer_framework.core.durations import Durations
from consumer_framework.core.errors import HandlerTimeoutError
from consumer_framework.core.gate import Gate
from consumer_framework.core.log_fields import fields_of_all
from consumer_framework.core.text import duration_text

from .deadlines import Deadlines
from .replacement import HandlerReplacement
from .run import HandlerRuns, Run, finish, raised_by
from .slots import Limits, TaskSlots, ThreadSlots

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.health import Overrun
    from consumer_framework.core.ports import Decoder, FlightRecorder, Steps, Traces

    from .run import Body, Result

_log = logging.getLogger(__name__)

# Seconds. A handler that takes longer gains nothing from a delivery that is ready in advance, and a
# message that becomes due cannot overtake such a delivery.
QUICK = 0.05

_DEFAULTS = Limits()


def _any(_delivery: Delivery) -> bool:
    return True


class Executor:
    """A :class:`.HandlerRunner`: run one handler in a number of slots.

    Make and use it on the event loop's thread while the loop runs.

    Args:
        handler: The handler to run.
        decode: Makes a message of a delivery; runs where the handler does.
        flight: Told which deliveries are in the handler.
        limits: The number of runs at once, and their sizes and times.
        gate: Once it is closed, no run begins; None for a gate that stays open.
        steps: Remembers the steps that the handler has done; None for no memory.
        traces: Traces the runs; None for no traces.

    Attributes:
        durations: Counts how long runs take, and how long messages wait before them.
    """

    def __init__(  # noqa: PLR0913 -- all but three have a default
        self,
        handler: Handler,
        decode: Decoder,
        flight: FlightRecorder,
        limits: Limits = _DEFAULTS,
        gate: Gate | None = None,
        *,
        steps: Steps | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._handler = handler
        self._gate = gate = gate or Gate()
        self._limits = limits
        self._loop = loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._runs = runs = HandlerRuns(handler, decode, flight, loop, traces)
        self._threads = ThreadSlots(limits.slots, runs.run_in_thread, self._ended)
        self._tasks = TaskSlots(limits.slots, runs.run_in_task, self._ended)
        is_coroutine = is_coroutine_callable(handler.call_batch or handler.call)
        self._start = (self._tasks if is_coroutine else self._threads).start
        self._steps = steps
        self._batch = OpenBatch(loop, limits, self._submit, steps)
        # Runs that were due behind the closed gate; they wait for their withdrawal.
        self._never_begun: list[Run] = []
        self._outstanding = 0
        self.durations = Durations()
        self._last_took = math.inf
        self._deadlines = Deadlines(
            loop, limits.timeout, lambda: runs.unfinished, lambda: self.is_busy, self._overdue
        )
        self._replacement = HandlerReplacement(
            self._call, self._take_over, lambda: runs.unfinished, gate
        )

    @property
    def is_busy(self) -> bool:
        """Return whether something runs, or could run if a slot were free."""
        return self._outstanding > 0

    @property
    def waits_for_threads(self) -> bool:
        """Return whether a thread has a run, or is about to; it does not if all runs are tasks."""
        return self._outstanding > sum(run.task is not None for run in self._runs.unfinished)

    @property
    def is_quick(self) -> bool:
        """Return whether the last run took no longer than :data:`QUICK`."""
        return self._last_took <= QUICK

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return the runs that have begun and not ended, the longest first."""
        return tuple(self._runs.unfinished)

    @property
    def running(self) -> tuple[Delivery, ...]:
        """Return the deliveries that are in the handler, the longest first."""
        return tuple(delivery for run in self._runs.unfinished for delivery in run.deliveries)

    @property
    def deadline(self) -> float | None:
        """Return the time when the last of the current runs must have ended; None without runs.

        In seconds of the event loop's clock, which is :func:`time.monotonic`.
        """
        return self._deadlines.latest()

    @property
    def health(self) -> Callable[[], Any] | None:
        """Return the ``health`` of the present handler; None where the author wrote none."""
        return self._handler.health

    def longest(self) -> tuple[str, float]:
        """Return the run that began first, in words, and its time since its last heartbeat.

        Returns:
            ``("", 0.0)`` while no run of the handler has begun.
        """
        runs = [run for run in self._runs.unfinished if run.function is None]
        first = min(runs, key=lambda run: run.timed_from, default=None)
        return (first.named, self._clock() - first.timed_from) if first else ("", 0.0)

    def overruns(self) -> tuple[Overrun, ...]:
        """Return the runs that take longer than they may, the longest first."""
        return self._deadlines.overruns()

    async def setup(self) -> None:
        """Run the handler's ``setup``; raise its exception."""
        await self._call(self._handler.setup)

    def announce_stop(self) -> None:
        """Call the handler's ``stop_requested``; an exception of it is logged."""
        if self._handler.stop_requested is None:
            return
        try:
            self._handler.stop_requested()
        except Exception:  # noqa: BLE001 -- the author's code
            _log.exception("stop_requested of %s failed", self._handler.name)

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the handler on *delivery* as soon as a slot is free, alone or in a batch.

        Returns:
            The outcome; :class:`.Withdrawn` where :meth:`withdraw` came first.
        """
        if self._gate.is_closed:
            return Withdrawn()
        waiter: asyncio.Future[Outcome] = self._loop.create_future()
        if self._handler.call_batch is None or delivery.history != NO_HISTORY:
            # After a batch failed, or killed the process, each of its messages runs alone.
            size = len(delivery.body)
            run = Run([delivery], [waiter], size, clock=self._clock, memory=self._steps)
            self._submit(run)
        else:
            self._batch.add(delivery, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # The host cancelled the caller: a cancellation in a handler would be an outcome.
            self._runs.cancel_unwanted()
            raise

    def resize(self, limits: Limits) -> None:
        """Apply *limits* from now on; fewer slots disturb no run."""
        self._limits = limits
        self._threads.resize(limits.slots)
        self._tasks.resize(limits.slots)
        self._deadlines.set_timeout(limits.timeout)
        self._batch.resize(limits)

    async def replace(
        self, handler: Handler, patience: float | None = None
    ) -> asyncio.Task[BaseException | None] | None:
        """Set *handler* up, and give it every message that no slot has begun.

        The former handler ends the runs that have begun. The slots hold for both together.

        Args:
            handler: Takes over.
            patience: Seconds that its ``setup`` may take; None for no end. A setup that ends
                later is followed by its ``teardown``.

        Returns:
            The end of the former handler: a task whose result is the exception of its
            ``teardown``, or None. None in place of the task where the gate was closed first, and
            the former handler stays.

        Raises:
            HandlerTimeoutError: The setup took longer; the former handler stays.
            BaseException: The ``setup`` of *handler* raised; the former handler stays.
        """
        return await self._replacement.replace(handler, patience)

    def cancel(self) -> tuple[Delivery, ...]:
        """Cancel the runs that are coroutines and were not cancelled yet.

        Returns:
            The deliveries of the runs that were cancelled.
        """
        return self._runs.cancel()

    def stop(self) -> None:
        """Take back the runs that no slot has begun, behind a closed gate; see :meth:`withdraw`."""
        self._never_begun += self._take_back()
        if not self._batch.is_empty:
            self._never_begun.append(self._batch.take())

    def withdraw(self, which: Callable[[Delivery], bool] = _any) -> int:
        """End the runs that no slot has begun, as :class:`.Withdrawn`.

        Args:
            which: Selects deliveries; a batch is withdrawn with any of its deliveries.

        Returns:
            The number of deliveries that were withdrawn.
        """
        withdrawn = 0
        if self._batch.has(which):
            withdrawn += _withdraw(self._batch.take())
        taken_back, self._never_begun = self._never_begun, []
        for run in [*taken_back, *self._take_back()]:
            if run.has(which):
                withdrawn += _withdraw(run)
            else:
                self._submit(run)
        return withdrawn

    async def teardown(self) -> None:
        """Run the handler's ``teardown`` after those of replaced handlers; raise its exception."""
        await self._replacement.finish()
        await self._call(self._handler.teardown)

    def close(self) -> None:
        """End the threads that run nothing."""
        self._batch.take()
        self._deadlines.stop()
        self._threads.close()

    def _submit(self, run: Run) -> None:
        if self._gate.is_closed:
            self._never_begun.append(run)
            return
        self._outstanding += 1
        self._deadlines.watch()
        self._start(run)

    def _take_back(self) -> list[Run]:
        """Take back the handler's runs that no slot has begun; others stay in line."""
        runs = [*self._threads.withdraw(), *self._tasks.withdraw()]
        for run in runs:
            if run.function is not None:
                self._threads.start(run)
        taken = [run for run in runs if run.function is None]
        self._outstanding -= len(taken)
        return taken

    def _ended(
        self, run: Run, result: Result | Body | BaseException, release: Callable[[], None]
    ) -> None:
        """Report the outcomes of *run*, then *release* its slot; slots call this on the loop."""
        if not isinstance(result, Succeeded) and isinstance(result, Coroutine):
            # A thread began it.
            run.task = self._loop.create_task(result, context=run.context)
            run.task.add_done_callback(lambda task: self._task_ended(run, task, release))
            return
        self._outstanding -= 1
        self._last_took = self._clock() - run.started_at
        if isinstance(result, Succeeded):
            self.durations.ran(run.deliveries, run.started_at, run.ended_at, "")
            run.succeed(result)
            release()
            return
        if run.deliveries and run.ended_at:
            error = _error_of(result)
            self.durations.ran(run.deliveries, run.started_at, run.ended_at, error)
        if isinstance(result, BaseException):
            run.fail(result)
        elif run.is_overdue and run.task is not None:
            run.end([Failed(self._too_late())] * len(run.waiters))
        else:
            run.end(result)
        # Callbacks run in the order of their registration: this one after the waiter has settled
        # its outcome.
        self._loop.call_soon(release)

    def _task_ended(
        self, run: Run, task: asyncio.Task[Result], release: Callable[[], None]
    ) -> None:
        if task.cancelled():
            # By the author's code, with its last step: any other cancellation is an outcome.
            outcomes = [Failed(asyncio.CancelledError())] * len(run.waiters)
            self._ended(run, outcomes, release)
        else:
            self._ended(run, task.exception() or task.result(), release)

    def _overdue(self, run: Run) -> None:
        if run.task is not None:
            run.task.cancel()
        else:
            _log.error(
                "%s has had %s for more than %s, and cannot be interrupted",
                self._handler.name,
                run.named,
                duration_text(self._limits.timeout),
                extra=fields_of_all(run.deliveries),
            )

    def _too_late(self) -> HandlerTimeoutError:
        return HandlerTimeoutError(f"cancelled after {duration_text(self._limits.timeout)}")

    def _take_over(self, handler: Handler) -> Handler:
        former, self._handler = self._handler, handler
        self._runs.replace_handler(handler)
        return former

    async def _call(self, function: Callable[[], Any] | None) -> None:
        """Call ``setup`` or ``teardown`` where the handler runs; raise its exception."""
        if function is None:
            return
        if is_coroutine_callable(function):
            returned = function()
        else:
            waiter: asyncio.Future[Any] = self._loop.create_future()
            self._outstanding += 1
            self._threads.start(Run(waiters=[waiter], function=function))
            returned, error = await waiter
            if error is not None:
                raise error
        if returned is not None:
            # In a task of its own, which the author's code may cancel.
            error = await self._loop.create_task(raised_by(finish(returned)))
            if error is not None:
                raise error


def _error_of(result: Result | Body | BaseException) -> str:
    """Return the type of the first exception among the outcomes of a run; "" for none."""
    outcomes = result if isinstance(result, list) else [result]
    errors = (each.error for each in outcomes if isinstance(each, Failed | Undecodable))
    return next((type(error).__name__ for error in errors), "")


def _withdraw(run: Run) -> int:
    run.end([Withdrawn()] * len(run.waiters))
    return len(run.deliveries)


class OpenBatch:
    """The batch that is not full yet.

    Args:
        loop: The event loop.
        limits: The size of a full batch, and the time that its first delivery waits for others.
        submit: Gets each batch that is full, or has waited long enough.
        steps: Remembers the steps that the handler has done; None for no memory.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        submit: Callable[[Run], None],
        steps: Steps | None,
    ) -> None:
        self._loop = loop
        self._clock = loop.time
        self._limits = limits
        self._submit = submit
        self._steps = steps
        self._run = self._new_run()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether it has no delivery."""
        return not self._run.deliveries

    def has(self, is_meant: Callable[[Delivery], bool]) -> bool:
        """Return whether *is_meant* is true for any of its deliveries."""
        return self._run.has(is_meant)

    def resize(self, limits: Limits) -> None:
        """Apply *limits* from now on; a timer that runs is not changed."""
        self._limits = limits
        self._submit_if_full()

    def add(self, delivery: Delivery, waiter: asyncio.Future[Outcome]) -> None:
        """Put *delivery* into the batch, and submit the batch where that fills it."""
        self._run.deliveries.append(delivery)
        self._run.waiters.append(waiter)
        self._run.size += len(delivery.body)
        self._submit_if_full()
        if self._timer is None and not self.is_empty:
            self._timer = self._loop.call_later(
                self._limits.batch_seconds, lambda: self._submit(self.take())
            )

    def take(self) -> Run:
        """Return the batch so far, and begin the next one."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        run, self._run = self._run, self._new_run()
        return run

    def _new_run(self) -> Run:
        return Run(clock=self._clock, memory=self._steps)

    def _submit_if_full(self) -> None:
        if len(self._run.deliveries) >= self._limits.batch_size:
            self._submit(self.take())
