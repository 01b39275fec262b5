# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the author's code, from the bytes to its outcome.

Decoding is part of it: the flight recorder knows of the message from the first byte on. Runs where
the handler does: in a thread of a slot, or on the event loop, but for the decoding of large bodies.

What slots do: some deliveries, and who waits for their outcomes.

What runs in the slots, which may be threads.

Judges what the author's code returned: nothing, work to be awaited, or a mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from fedora_messaging import exceptions as upstream
from twisted.internet import defer

from consumer_framework.author.batch import Batch
from consumer_framework.author.heartbeat import RUN
from consumer_framework.core.delivery import Failed, Outcome, Skipped, Succeeded, Undecodable
from consumer_framework.core.errors import Drop, Halt, Retry, Skip
from consumer_framework.core.text import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from consumer_framework.author.handler import Handler
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.ports import Decoder, FlightRecorder


@dataclass(eq=False, slots=True)
class Job:
    """One run of the handler: on one delivery, or on a batch of them.

    Attributes:
        function: Another function of the author's to run instead.
        deliveries: In the order of their arrival.
        waiters: Who waits for the outcome of each.
        clock: The loop's, in seconds.
        started_at: When a slot began with it.
        beaten_at: When it last called :func:`.heartbeat`.
        overdue: Whether it has taken longer than a handler may.
        task: The task that a coroutine handler runs in.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    waiters: list[asyncio.Future[Outcome]] = field(default_factory=list)
    function: Callable[[], Any] | None = None
    clock: Callable[[], float] = time.monotonic
    started_at: float = 0.0
    beaten_at: float = 0.0
    overdue: bool = False
    task: asyncio.Task[Any] | None = None

    @property
    def named(self) -> str:
        """How a log line calls what it runs on."""
        if not self.deliveries:
            return "its setup or teardown"
        more = f" and {len(self.deliveries) - 1} more" if len(self.deliveries) > 1 else ""
        return printable(f"message {self.deliveries[0].message_id or '(no id)'}{more}")

    @property
    def lasts_since(self) -> float:
        """When its time began, or began anew."""
        return max(self.started_at, self.beaten_at)

    def heartbeat(self) -> None:
        """Let its time begin anew; called by the author's code, in whatever thread that runs."""
        self.beaten_at = self.clock()

    def has(self, which: Callable[[Delivery], bool]) -> bool:
        """Whether any of its deliveries is meant."""
        return any(map(which, self.deliveries))

    def end(self, result: Succeeded | list[Outcome]) -> None:
        """Tell whoever waits what came of it."""
        if isinstance(result, list):
            for waiter, outcome in zip(self.waiters, result, strict=True):
                if not waiter.done():
                    waiter.set_result(outcome)
            return
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits of a defect of the framework's."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


_log = logging.getLogger(__name__)

# Objects that stand for work which nobody has begun with: iterating over them would do it.
_NEVER_RUN = (Generator, AsyncGenerator, map, filter)


def is_later(returned: Any) -> bool:
    """Whether a plain function only began what it is to do."""
    return isinstance(returned, defer.Deferred) or inspect.isawaitable(returned)


def as_awaitable(returned: Any) -> Awaitable[Any]:
    """Make what an asyncio task can await of a coroutine, a future or a Deferred."""
    if isinstance(returned, defer.Deferred):
        future: asyncio.Future[Any] = returned.asFuture(asyncio.get_running_loop())
        return future
    awaitable: Awaitable[Any] = returned
    return awaitable


async def finished(returned: Any) -> Any:
    """Await *returned*, and what that returns, as long as it can be awaited; return the rest."""
    while is_later(returned):
        returned = await as_awaitable(returned)
    return returned


def refuse_never_run(returned: Any) -> None:
    """Refuse the object that a function with ``yield`` returns instead of running.

    Raises:
        TypeError: *returned* is a generator, or another iterator that does its work only when
            somebody iterates over it.
    """
    if isinstance(returned, _NEVER_RUN):
        kind = type(returned).__name__
        raise TypeError(
            f"the handler returned a {kind} object, whose code was never run; "
            "remove the yield, or iterate over it in the handler"
        )


class Returns:
    """Judges what one handler returns for its messages.

    Args:
        name: How logs call the handler.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_said = False

    def check(self, returned: Any) -> None:
        """Accept *returned*, which is not awaitable; log the first one that is not None.

        Raises:
            TypeError: It stands for work that was never begun.
        """
        if returned is None:
            return
        refuse_never_run(returned)
        if not self._is_said:
            self._is_said = True
            _log.warning(
                "%s returned an object of type %s, which is ignored: returning means success; "
                "to say something else, raise an exception of consumer_framework",
                self._name,
                type(returned).__name__,
            )

    async def finish(self, returned: Any) -> None:
        """Await *returned* where it can be awaited, and check the rest.

        Raises:
            BaseException: What the author's code raised.
            TypeError: As :meth:`check` does.
        """
        self.check(await finished(returned))


SUCCEEDED = Succeeded()

# Bytes. A larger body is not decoded on the event loop; a smaller one takes less than a thread.
INLINE = 1 << 14


@dataclass(frozen=True, slots=True)
class Later:
    """What a plain function returned is to be awaited on the event loop."""

    result: Coroutine[Any, Any, Result]


T = TypeVar("T")

# One outcome for each delivery; SUCCEEDED alone where all of them are.
Result: TypeAlias = "Succeeded | list[Outcome] | Later"


def signal_of(error: BaseException) -> BaseException:
    """Return the framework's signal for one of fedora-messaging's; any other error unchanged."""
    match error:
        case upstream.Nack():
            return Retry(str(error))
        case upstream.Drop():
            return Drop(str(error))
        case upstream.HaltConsumer():
            return Halt(error.exit_code, error.reason or "", requeue=error.requeue)
    return error


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a handler that raised *error*; sys.exit() is a failure like any other."""
    if isinstance(error, Skip):
        return Skipped(error.reason)
    return Failed(signal_of(error))


@dataclass(frozen=True, slots=True)
class Attempts:
    """Runs a handler on deliveries.

    Attributes:
        call: Takes one message, or a :class:`.Batch` of them.
        decode: Makes a message of a delivery.
        flight: Told when the handler starts, and when it is done.
        returns: Judges what *call* returns.
        is_batch: What *call* takes.
    """

    call: Callable[[Any], Any]
    decode: Decoder
    flight: FlightRecorder
    returns: Returns
    is_batch: bool = False

    def run(self, deliveries: Sequence[Delivery]) -> Result:
        """Run a plain handler."""
        if self.is_batch:
            return self._run_batch(deliveries)
        (delivery,) = deliveries
        place = self.flight.took_off(delivery)
        try:
            message = self.decode(delivery)
        except Exception as error:  # noqa: BLE001 -- whatever a publisher or a schema class did
            self.flight.landed(place)
            return [Undecodable(error)]
        try:
            returned = self.call(message)
            if returned is not None:
                if is_later(returned):
                    return Later(self._finish_later(returned, place))
                self.returns.check(returned)
        except BaseException as error:  # noqa: BLE001 -- the author's code
            self.flight.landed(place)
            return [outcome_of(error)]
        self.flight.landed(place)
        return SUCCEEDED

    async def run_coroutine(self, deliveries: Sequence[Delivery]) -> Result:
        """Run a coroutine handler, in a task of its own: one that cancels it cancels no slot."""
        if self.is_batch:
            return await self._run_batch_coroutine(deliveries)
        (delivery,) = deliveries
        place = self.flight.took_off(delivery)
        try:
            if len(delivery.body) > INLINE:
                message = await in_thread(lambda: self.decode(delivery))
            else:
                message = self.decode(delivery)
        except Exception as error:  # noqa: BLE001 -- as above
            self.flight.landed(place)
            return [Undecodable(error)]
        try:
            returned = await self.call(message)
            if returned is not None:
                await self.returns.finish(returned)
        except BaseException as error:  # noqa: BLE001 -- as above; SystemExit would end the loop
            return [outcome_of(error)]
        finally:
            self.flight.landed(place)
        return SUCCEEDED

    async def _finish_later(self, returned: Any, place: int) -> Result:
        try:
            await self.returns.finish(returned)
        except BaseException as error:  # noqa: BLE001 -- as above
            return [outcome_of(error)]
        finally:
            self.flight.landed(place)
        return SUCCEEDED

    def _run_batch(self, deliveries: Sequence[Delivery]) -> Result:
        flying = _Flying(self, deliveries)
        try:
            returned = self.call(flying.batch) if flying.batch else None
            if is_later(returned):
                return Later(self._land_later(flying, returned))
            self.returns.check(returned)
        except BaseException as error:  # noqa: BLE001 -- as above
            return flying.land(error)
        return flying.land(None)

    async def _run_batch_coroutine(self, deliveries: Sequence[Delivery]) -> Result:
        if sum(len(delivery.body) for delivery in deliveries) > INLINE:
            flying = await in_thread(lambda: _Flying(self, deliveries))
        else:
            flying = _Flying(self, deliveries)
        try:
            if flying.batch:
                await self.returns.finish(await self.call(flying.batch))
        except BaseException as error:  # noqa: BLE001 -- as above
            return flying.land(error)
        return flying.land(None)

    async def _land_later(self, flying: _Flying, returned: Any) -> Result:
        try:
            await self.returns.finish(returned)
        except BaseException as error:  # noqa: BLE001 -- as above
            return flying.land(error)
        return flying.land(None)


class _Flying:
    """A batch that is in the handler."""

    def __init__(self, attempts: Attempts, deliveries: Sequence[Delivery]) -> None:
        self._flight = attempts.flight
        self._outcomes: list[Outcome] = [SUCCEEDED] * len(deliveries)
        self._numbers: list[int] = []
        self._places: list[int] = []
        messages = []
        for number, delivery in enumerate(deliveries):
            place = self._flight.took_off(delivery)
            try:
                messages.append(attempts.decode(delivery))
            except Exception as error:  # noqa: BLE001 -- as above
                self._flight.landed(place)
                self._outcomes[number] = Undecodable(error)
            else:
                self._numbers.append(number)
                self._places.append(place)
        self.batch = Batch(messages)

    def land(self, error: BaseException | None) -> Result:
        """Note that the handler is done, or has raised *error*."""
        for place in self._places:
            self._flight.landed(place)
        for index, number in enumerate(self._numbers):
            own = self.batch.error_of(index) or error
            if own is not None:
                self._outcomes[number] = outcome_of(own)
        is_plain = all(outcome is SUCCEEDED for outcome in self._outcomes)
        return SUCCEEDED if is_plain else self._outcomes


async def in_thread(function: Callable[[], T]) -> T:
    """Run *function* in a thread of its own, to its end.

    A caller that is cancelled meanwhile is so at its next ``await``. Nobody waits for the thread
    when the process ends.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        answer = returned(function)
        # The loop may be closed by now, where the drain was cut short.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set_result, answer)

    try:
        threading.Thread(target=run, name="decoding", daemon=True).start()
    except RuntimeError:
        # There are as many threads as there may be.
        return function()
    was_cancelled = False
    while not done.done():
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            was_cancelled = True
    value, error = done.result()
    task = asyncio.current_task()
    if was_cancelled and task is not None:
        task.cancel()
    if error is not None:
        raise error
    result: T = value
    return result


async def caught(outcome: Awaitable[Any]) -> BaseException | None:
    """Return what *outcome* raises: a SystemExit that leaves a task ends the event loop."""
    try:
        await outcome
    except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
        return error
    return None


def returned(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what *function* returns, or what it raises."""
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 -- as above
        return None, error


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
