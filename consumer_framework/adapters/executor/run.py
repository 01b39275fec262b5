# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the author's code, from the bytes of its deliveries to their outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import sys
import threading
import time
import types
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from fedora_messaging import exceptions as upstream
from twisted.internet import defer

from consumer_framework.author.batch import Batch
from consumer_framework.author.heartbeat import CURRENT_RUN
from consumer_framework.core.delivery import (
    Failed,
    Outcome,
    Published,
    Skipped,
    Succeeded,
    Undecodable,
)
from consumer_framework.core.errors import Drop, Halt, Retry, Skip
from consumer_framework.core.text import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence

    from consumer_framework.author.handler import Handler
    from consumer_framework.core.delivery import Delivery, Publication
    from consumer_framework.core.ports import Decoder, FlightRecorder, Steps, Traces

_log = logging.getLogger(__name__)

SUCCEEDED = Succeeded()

# One outcome for each delivery; a success alone where all of them succeeded. For a function that
# is no handler, a list of the pair that `returned_or_raised` makes.
Result: TypeAlias = "Succeeded | list[Any]"
# A run that the event loop is to run as a task; a thread may have begun it.
Body: TypeAlias = "Coroutine[Any, Any, Result]"
# The place of a delivery in the flight recorder, or the outcome of one that has no message.
_Landing: TypeAlias = "int | Undecodable"

# Bytes. A larger body is not decoded on the event loop; a smaller one takes less than a thread.
INLINE = 1 << 14

T = TypeVar("T")

# Held for the moment of adding a message to its run.
_publishing = threading.Lock()


@dataclass(eq=False, slots=True)
class Run:
    """One run of the handler, on one delivery or on a batch of them.

    Attributes:
        deliveries: In the order of their arrival.
        waiters: One future for the outcome of each delivery.
        size: The bytes of all bodies.
        function: Another function of the author's to run instead (``setup``, ``teardown``).
        clock: The event loop's clock, in seconds.
        started_at: When a slot began with it.
        ended_at: When the handler had returned, or had raised; 0.0 before.
        beaten_at: When it last called :func:`.heartbeat`.
        is_overdue: Whether it has been reported, or cancelled, for taking too long.
        task: The task that it runs in, None in a thread.
        context: The context variables of the task.
        memory: Remembers the steps of messages; None for no memory.
        batch: The messages of a batch, each with its delivery.
        published: The messages that the handler published; None until it publishes one.
        trace: Its trace; None for none.
        is_over: Whether the handler is done, so that a message that is published late by a thread
            or a task of its own does not belong to the run any more.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    waiters: list[asyncio.Future[Any]] = field(default_factory=list)
    size: int = 0
    function: Callable[[], Any] | None = None
    clock: Callable[[], float] = time.monotonic
    started_at: float = 0.0
    ended_at: float = 0.0
    beaten_at: float = 0.0
    is_overdue: bool = False
    task: asyncio.Task[Any] | None = None
    context: contextvars.Context | None = None
    memory: Steps | None = None
    batch: Sequence[tuple[Any, Delivery]] = ()
    published: list[Publication] | None = None
    trace: object = None
    is_over: bool = False

    @property
    def named(self) -> str:
        """Return the words for its deliveries in a log line."""
        if not self.deliveries:
            return "its setup or teardown"
        more = f" and {len(self.deliveries) - 1} more" if len(self.deliveries) > 1 else ""
        first = self.deliveries[0]
        route = f" in route {first.route}" if first.route else ""
        return printable(f"message {first.message_id or '(no id)'}{route}{more}")

    @property
    def timed_from(self) -> float:
        """Return the start of its current time limit: its own start, or its last heartbeat."""
        return max(self.started_at, self.beaten_at)

    def heartbeat(self) -> None:
        """Restart its time limit. The author's code calls this in any thread."""
        self.beaten_at = self.clock()

    def collect(self, messages: Sequence[Publication]) -> bool:
        """Let *messages* belong to the run. The author's code calls this in any thread.

        Returns:
            False if they cannot: the handler is done, or ``setup`` or ``teardown`` runs.
        """
        if not self.deliveries:
            return False
        with _publishing:
            if self.published is None:
                self.published = []
            # Read after the list is there: see `take_published`.
            if self.is_over:
                return False
            self.published += messages
        return True

    @property
    def steps(self) -> Steps | None:
        """Return the memory of steps while the handler has a message."""
        return self.memory if self.deliveries and not self.is_over else None

    def delivery_of(self, message: Any) -> Delivery | None:
        """Return the delivery that brought *message*; None if the run has another message."""
        for own, delivery in self.batch:
            if own is message:
                return delivery
        is_single = len(self.deliveries) == 1 and not self.batch
        first = self.deliveries[0] if is_single else None
        return first if first is not None and first.message_id == message.id else None

    def take_published(self) -> Sequence[Publication]:
        """End the collection, and return the messages; a run without any takes no lock."""
        self.is_over = True
        if self.published is None:
            return ()
        with _publishing:
            return self.published

    def has(self, is_meant: Callable[[Delivery], bool]) -> bool:
        """Return whether *is_meant* is true for any of its deliveries."""
        return any(map(is_meant, self.deliveries))

    def succeed(self, success: Succeeded) -> None:
        """Give each waiter *success*."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(success)

    def end(self, outcomes: Sequence[Any]) -> None:
        """Give each waiter its outcome."""
        for waiter, outcome in zip(self.waiters, outcomes, strict=True):
            if not waiter.done():
                waiter.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        """Give each waiter *error*, which is a defect of the framework's."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


class HandlerRuns:
    """Run the handler, and know the runs that have not ended.

    Args:
        handler: The author's handler.
        decode: Makes a message of a delivery.
        flight: Told which deliveries are in the handler, from before they are decoded.
        loop: The event loop.
        traces: Traces the runs; None for no traces.
    """

    def __init__(
        self,
        handler: Handler,
        decode: Decoder,
        flight: FlightRecorder,
        loop: asyncio.AbstractEventLoop,
        traces: Traces | None = None,
    ) -> None:
        self._callee = _Callee(handler)
        self._decode = decode
        self._flight = flight
        self._now = loop.time
        self._traces = traces
        # The author's code in this context belongs to a run, and no longer.
        self._enter: Callable[[Run], object] = self._enter_traced if traces else CURRENT_RUN.set
        self._exit = self._exit_traced if traces else _exit
        # The threads of slots write it too; each operation on it is atomic.
        self._unfinished: dict[Run, None] = {}

    @property
    def unfinished(self) -> list[Run]:
        """Return the runs that have begun and not ended, the longest first."""
        return list(self._unfinished)

    def replace_handler(self, handler: Handler) -> None:
        """Call *handler* in all runs that begin from now on.

        A run in :attr:`unfinished` may have the former handler, or this one.
        """
        self._callee = _Callee(handler)

    def cancel(self) -> tuple[Delivery, ...]:
        """Cancel every run that is a task, unless it was cancelled before.

        Returns:
            The deliveries of the runs that were cancelled.
        """
        cancelled: list[Delivery] = []
        for run in self.unfinished:
            if _cancel(run):
                cancelled += run.deliveries
        return tuple(cancelled)

    def cancel_unwanted(self) -> None:
        """Cancel the runs for whose outcomes nobody waits any more."""
        for run in self.unfinished:
            if all(waiter.done() for waiter in run.waiters):
                _cancel(run)

    def run_in_thread(self, run: Run) -> Result | Body:
        """Begin *run* in this thread.

        Returns:
            Its result. Where the handler returned an awaitable, a coroutine for a task of the
            event loop, which ends the run.
        """
        body = self._run(run, in_thread=True)
        # See the end of _run.
        del run
        try:
            body.send(None)
        except StopIteration as end:
            # Not by a variable: the frames of an error's traceback would keep it.
            return cast("Result", end.value)
        return body

    def run_in_task(self, run: Run) -> Body:
        """Make a coroutine that runs *run* in a task of its own.

        The author's code may cancel that task without harm to the slot.
        """
        return self._run(run, in_thread=False)

    async def _run(self, run: Run, *, in_thread: bool) -> Result:
        """Run the handler on the deliveries of *run*; the one body of all runs.

        Args:
            run: No other slot has it.
            in_thread: Whether a thread drives this coroutine at first, and not a task.

        Raises:
            BaseException: The flight recorder, or a decoder that raised no Exception.
        """
        run.started_at = self._now()
        # Before the handler is read, so that a replaced handler is torn down after this run.
        self._unfinished[run] = None
        callee = self._callee
        landings: list[_Landing] = []
        error: BaseException | None = None
        result: Result = SUCCEEDED
        self._enter(run)
        try:
            if run.function is not None:
                return [returned_or_raised(run.function)]
            if in_thread or run.size <= INLINE:
                messages = self._take_off(run.deliveries, landings)
            else:
                messages = await _in_thread(self._take_off, run.deliveries, landings)
            batch = Batch(messages) if callee.takes_batches else None
            if batch is not None:
                landed = zip(run.deliveries, landings, strict=True)
                run.batch = tuple(zip(messages, _with_messages(landed), strict=True))
            if messages:
                try:
                    returned = callee.call(messages[0] if batch is None else batch)
                    while returned is not None and _is_awaitable(returned):
                        if in_thread:
                            in_thread = False
                            run.context = contextvars.copy_context()
                            self._leave(run)
                            await _hand_over()
                        returned = await _as_awaitable(returned)
                    if returned is not None:
                        callee.judge(returned)
                except BaseException as raised:  # noqa: BLE001 -- SystemExit would end the loop
                    error = raised
            run.ended_at = self._now()
            published = run.take_published()
            result = self._land(landings, batch, error)
            return _with_published(result, run, published) if published else result
        finally:
            # No cycles for the garbage collector: the run keeps its task, a task its context, and
            # the traceback of an error this frame.
            self._exit(run, error, landings, in_thread)
            run.is_over = True
            del self._unfinished[run], run, error, result
            landings.clear()

    def _enter_traced(self, run: Run) -> None:
        CURRENT_RUN.set(run)
        if self._traces and run.deliveries:
            run.trace = self._traces.begin(run.deliveries)

    def _leave(self, run: Run) -> None:
        """End that in this context; another one may go on with *run*."""
        CURRENT_RUN.set(None)
        if self._traces is not None and run.trace is not None:
            self._traces.leave(run.trace)

    def _exit_traced(
        self,
        run: Run,
        error: BaseException | None,
        landings: Sequence[_Landing],
        in_thread: bool,  # noqa: FBT001 -- of this class
    ) -> None:
        CURRENT_RUN.set(None)
        if self._traces is not None and run.trace is not None:
            if in_thread:
                # The context of a task ends with it, and it is not the one of the begin.
                self._traces.leave(run.trace)
            undecodable = (one.error for one in landings if isinstance(one, Undecodable))
            self._traces.end(run.trace, error or next(undecodable, None))

    def _take_off(self, deliveries: Sequence[Delivery], landings: list[_Landing]) -> list[Any]:
        """Tell the flight recorder of *deliveries*, and decode them.

        Args:
            deliveries: The deliveries of the run.
            landings: For each delivery its place in the flight recorder is appended, or the
                outcome of a delivery that has no message.

        Returns:
            The messages.
        """
        messages: list[Any] = []
        for delivery in deliveries:
            place = self._flight.took_off(delivery)
            try:
                messages.append(self._decode(delivery))
                landings.append(place)
            except Exception as error:  # noqa: BLE001 -- a publisher or a schema class did it
                self._flight.landed(place)
                landings.append(Undecodable(error))
        return messages

    def _land(
        self, landings: Sequence[_Landing], batch: Batch | None, error: BaseException | None
    ) -> Result:
        """Tell the flight recorder that the handler has returned, or has raised *error*."""
        outcomes: list[Outcome] = []
        result: Result = SUCCEEDED
        index = 0
        for landing in landings:
            if isinstance(landing, int):
                self._flight.landed(landing)
                own = error if batch is None else batch.error_of(index) or error
                outcome: Outcome = SUCCEEDED if own is None else outcome_of(own)
                index += 1
            else:
                outcome = landing
            outcomes.append(outcome)
            if outcome is not SUCCEEDED:
                result = outcomes
        return result


# Every run has one frame of it, in the thread or the task that drives the run.
_BODY = HandlerRuns._run.__code__  # noqa: SLF001 -- of this module


def threads_of_runs() -> dict[Run, int]:
    """Return the runs that threads drive at this moment, each with the number of its thread."""
    found: dict[Run, int] = {}
    for thread, innermost in sys._current_frames().items():  # noqa: SLF001 -- its only name
        frame: types.FrameType | None = innermost
        while frame is not None and frame.f_code is not _BODY:
            frame = frame.f_back
        run = frame.f_locals.get("run") if frame is not None else None
        if run is not None:
            found[run] = thread
    return found


def _exit(_run: Run, _error: object, _landings: object, _in_thread: bool) -> None:  # noqa: FBT001
    CURRENT_RUN.set(None)


def _with_messages(landed: Iterable[tuple[Delivery, _Landing]]) -> Iterator[Delivery]:
    return (delivery for delivery, landing in landed if isinstance(landing, int))


def _with_published(result: Result, run: Run, messages: Sequence[Publication]) -> Result:
    """Return *result* with the *messages* in the outcomes of deliveries that are done.

    A delivery that failed runs again, or waits for an operator, or is lost on purpose: it publishes
    nothing. The messages of a batch belong to all of its deliveries that did not fail.
    """
    outcomes = [result] * len(run.deliveries) if isinstance(result, Succeeded) else result
    pairs = zip(run.deliveries, outcomes, strict=True)
    done = tuple(delivery for delivery, outcome in pairs if _is_done(outcome))
    if not done:
        return result
    published = Published(tuple(messages), done)
    if isinstance(result, Succeeded):
        return Succeeded(published)
    return [replace(o, published=published) if _is_done(o) else o for o in outcomes]


def _is_done(outcome: Outcome) -> bool:
    if isinstance(outcome, Failed):
        return isinstance(outcome.error, Halt) and not outcome.error.requeue
    return isinstance(outcome, Succeeded | Skipped)


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome of a handler that raised *error*; sys.exit() is a failure like others."""
    if isinstance(error, Skip):
        return Skipped(error.reason)
    return Failed(signal_of(error))


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


class _Callee:
    """The handler as runs call it."""

    def __init__(self, handler: Handler) -> None:
        self.call = handler.call_batch or handler.call
        self.takes_batches = handler.call_batch is not None
        self._name = handler.name
        self._has_warned = False

    def judge(self, returned: Any) -> None:
        """Accept *returned*, which is neither None nor awaitable; log the first such object.

        Raises:
            TypeError: It stands for work that was never begun.
        """
        refuse_never_run(returned)
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s returned an object of type %s, which is ignored: returning means success; "
                "to say something else, raise an exception of consumer_framework",
                self._name,
                type(returned).__name__,
            )


# Objects that stand for work that nobody has begun: iterating over them would do it.
_NEVER_RUN = (Generator, AsyncGenerator, map, filter)


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


async def finish(returned: Any) -> None:
    """Await the object that ``setup`` or ``teardown`` returned, as long as it can be awaited.

    Raises:
        BaseException: The exception that the author's code raised.
        TypeError: As :func:`refuse_never_run`.
    """
    refuse_never_run(await awaited(returned))


async def awaited(returned: Any) -> Any:
    """Await the object that the author's code returned, as long as it can be awaited."""
    while _is_awaitable(returned):
        returned = await _as_awaitable(returned)
    return returned


# The most frequent ones, which need no closer look.
_AWAITABLES = (types.CoroutineType, defer.Deferred)


def _is_awaitable(returned: Any) -> bool:
    return isinstance(returned, _AWAITABLES) or inspect.isawaitable(returned)


def _as_awaitable(returned: Any) -> Awaitable[Any]:
    if isinstance(returned, defer.Deferred):
        future: asyncio.Future[Any] = returned.asFuture(asyncio.get_running_loop())
        return future
    awaitable: Awaitable[Any] = returned
    return awaitable


def returned_or_raised(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Call *function*; return the object that it returned, and the exception that it raised."""
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
        return None, error


async def raised_by(awaitable: Awaitable[Any]) -> BaseException | None:
    """Await *awaitable*; return its exception, since a SystemExit in a task ends the event loop."""
    try:
        await awaitable
    except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
        return error
    return None


@types.coroutine
def _hand_over() -> Generator[None, None, None]:
    """Give the coroutine that awaits this from its thread to the event loop."""
    yield


def _cancel(run: Run) -> bool:
    if run.task is None or run.task.cancelling():
        return False
    return run.task.cancel()


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call *function* in a thread of its own, and wait for it to its end.

    The cancellation of a caller takes effect at its next ``await``. The end of the process does
    not wait for the thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        answer = returned_or_raised(lambda: function(*args))
        # The loop may be closed by now, where the drain was cut short.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set_result, answer)

    try:
        threading.Thread(target=run, name="decoding", daemon=True).start()
    except RuntimeError:
        # There are as many threads as there may be.
        return function(*args)
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
