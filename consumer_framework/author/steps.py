# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps of a handler that are done once for each message.

::

    with self.once("file-bug") as step:          async with self.once("file-bug") as step:
        bug = step.run(file_bug, message)            bug = await step.run(file_bug, message)

The block of a ``with`` statement always runs, so :meth:`Step.run` decides if the function does. It
returns the recorded result in later runs of the handler for this message.

The process can die after the effect and before its record. Then the step is done a second time, as
everything in a handler without steps is after every failure: at least once, always.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import sys
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from consumer_framework.core.errors import DependencyFault, StepResultError, StoreError
from consumer_framework.core.log_fields import fields_of

from .heartbeat import CURRENT_RUN, CURRENT_STEP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from concurrent.futures import Future
    from types import TracebackType

    from fedora_messaging.message import Message

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.ports import RecordedStep, Steps

    from .heartbeat import CurrentRun

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Characters of a name, and of a result as JSON. Each commit writes them.
LONGEST_NAME = 200
LARGEST_RESULT = 1 << 16

OUTSIDE = (
    "once() works only while a handler has a message: not in setup or teardown, not after the "
    "handler has returned, not in a process that it forked, and in a thread only with the "
    "handler's context (asyncio.to_thread, contextvars.copy_context)"
)

# The steps whose blocks run now: the run, the message, the name.
_under_way: set[tuple[CurrentRun, int, int, str]] = set()


def is_any_under_way() -> bool:
    """Tell whether the block of any step runs now, in any thread or task."""
    return bool(_under_way)


class _Record:
    """One step of one run: its state in memory, and its record."""

    def __init__(self, name: str, run: CurrentRun, steps: Steps, delivery: Delivery) -> None:
        self.name = name
        # Routes with one message have steps of their own.
        self._key = f"{delivery.route}/{name}" if delivery.route else name
        self.is_done = False
        self.has_run = self.is_awaited = False
        self.result: Any = None
        self._steps = steps
        self._delivery = delivery
        self._mark = run, delivery.generation, delivery.delivery_tag, name
        self._outer = ""

    def enter(self) -> RecordedStep | None:
        """Begin the block; return the record of an earlier run, None for a step to be done."""
        if self._mark in _under_way:
            raise RuntimeError(f"the step {self.name!r} is under way already for this message")
        try:
            known = self._steps.steps_of(self._delivery).get(self._key)
        except StoreError as error:
            what = f"the step {self.name!r} is not begun, since the steps cannot be read: {error}"
            raise DependencyFault(what) from error
        _under_way.add(self._mark)
        self._outer = CURRENT_STEP.get()
        CURRENT_STEP.set(self.name)
        if known is not None:
            self.is_done, self.result = True, json.loads(known.result)
            about = fields_of(self._delivery)
            _log.info("the step %r was done before, and is skipped", self.name, extra=about)
        return known

    def leave(self) -> None:
        _under_way.discard(self._mark)
        CURRENT_STEP.set(self._outer)

    def begin_run(self) -> bool:
        """Return whether the function of the step is to run."""
        if self.has_run:
            what = "give each effect a step of its own"
            raise RuntimeError(f"run() was called twice in the step {self.name!r}: {what}")
        self.has_run = True
        return not self.is_done

    def end_block(self) -> Future[None] | None:
        """Begin to record a step whose block has ended without an exception; None if it is not.

        A function that failed leaves the step to be done, also if the block caught its error.

        Raises:
            RuntimeError: ``run`` was called, and nobody awaited it.
        """
        if self.has_run and not self.is_awaited:
            what = "write `await step.run(...)`"
            raise RuntimeError(f"run() of the step {self.name!r} was not awaited: {what}")
        return None if self.is_done or self.has_run else self.record(self.result)

    def record(self, result: Any) -> Future[None]:
        """Begin to record *result*."""
        encoded = _encoded(self.name, result)
        # As a later run will get it.
        self.is_done, self.result = True, json.loads(encoded)
        return self.write(encoded)

    def write(self, encoded: str) -> Future[None]:
        """Begin to write a result."""
        try:
            return self._steps.record_step(self._delivery, self._key, encoded)
        except StoreError as error:
            raise self.not_recorded(error) from error

    def not_recorded(self, error: StoreError) -> DependencyFault:
        """Return the error for a step that is done and not recorded."""
        what = f"the step {self.name!r} is done and cannot be recorded"
        return DependencyFault(f"{what}: {error}")


class _Base:
    def __init__(self, record: _Record) -> None:
        self._record = record

    @property
    def name(self) -> str:
        """The name of the step."""
        return self._record.name

    @property
    def done(self) -> bool:
        """True if the step is recorded as done, by an earlier run or by this one."""
        return self._record.is_done

    @property
    def result(self) -> Any:
        """The result of the step, as JSON keeps it; None before it has one.

        Set it in a block that does not call ``run``. It is recorded at the end of the block.

        Raises:
            RuntimeError: It is set although the step is done.
        """
        return self._record.result

    @result.setter
    def result(self, result: Any) -> None:
        if self._record.is_done:
            raise RuntimeError(f"the step {self.name!r} is done, and keeps its result")
        self._record.result = result


class Step(_Base):
    """A step of a plain handler, as ``with self.once(name) as step`` gives it."""

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function*, unless the step is done, and record its result.

        The record is on the disk when this returns. Call it once in a block.

        Returns:
            The result, as JSON keeps it: a tuple has become a list. An earlier run's result if the
            step is done.

        Raises:
            DependencyFault: The store cannot take the record. The message waits, and its next run
                in this process skips the step.
            StepResultError: The result is no JSON. The message is quarantined.
            TypeError: *function* is a coroutine function.
            BaseException: Raised by *function*; the step is not done.
        """
        is_new = self._record.begin_run()
        self._record.is_awaited = True
        if is_new:
            returned = function(*args, **kwargs)
            _refuse_awaitable(self.name, returned)
            _wait(self._record, self._record.record(returned))
        result: T = self._record.result
        return result


class AsyncStep(_Base):
    """A step of a coroutine handler, as ``async with self.once(name) as step`` gives it."""

    @overload
    def run(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def run(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call *function*, plain or coroutine, unless the step is done, and record its result.

        Await it. Everything else is as in ``Step.run``. A cancellation does not undo a record that
        has begun.
        """
        is_new = self._record.begin_run()
        return self._run(is_new, lambda: function(*args, **kwargs))

    async def _run(self, is_new: bool, call: Callable[[], Any]) -> Any:  # noqa: FBT001
        self._record.is_awaited = True
        if is_new:
            returned = call()
            if _is_deferred(returned):
                returned = returned.asFuture(asyncio.get_running_loop())
            if inspect.isawaitable(returned):
                returned = await returned
            await _wait_later(self._record, self._record.record(returned))
        return self._record.result


class Once:
    """A step that a ``with`` statement or an ``async with`` statement enters.

    Args:
        name: The name of the step.
        message: The message that it belongs to; None for the only one of the run.

    Raises:
        ValueError: The name is no name, or the handler does not have *message*.
        RuntimeError: No handler has a message here.
    """

    def __init__(self, name: str, message: Message | None = None) -> None:
        _check_name(name)
        run = CURRENT_RUN.get()
        steps = run.steps if run is not None else None
        if run is None or steps is None:
            raise RuntimeError(OUTSIDE)
        self._record = _Record(name, run, steps, _delivery_of(run, name, message))

    def __getattr__(self, name: str) -> Any:
        if name in {"run", "done", "result"}:
            what = "write `with self.once(...) as step:`, and in its block"
            raise AttributeError(f"a step is used in its block: {what} `step.{name}`")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __enter__(self) -> Step:
        if _is_on_loop():
            what = "a coroutine writes `async with self.once(...)`, which does not block"
            raise RuntimeError(f"the event loop runs in this thread: {what}")
        known = self._record.enter()
        try:
            if known is not None and not known.is_durable:
                _wait(self._record, self._record.write(known.result))
        except BaseException:
            self._record.leave()
            raise
        return Step(self._record)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            written = self._record.end_block() if kind is None else None
            if written is not None:
                _wait(self._record, written)
        finally:
            self._record.leave()

    async def __aenter__(self) -> AsyncStep:
        known = self._record.enter()
        try:
            if known is not None and not known.is_durable:
                await _wait_later(self._record, self._record.write(known.result))
        except BaseException:
            self._record.leave()
            raise
        return AsyncStep(self._record)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            written = self._record.end_block() if kind is None else None
            if written is not None:
                await _wait_later(self._record, written)
        finally:
            self._record.leave()


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME:
        raise ValueError(f"a step has a name of 1 to {LONGEST_NAME} characters, not {name!r:.50}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        # A database would refuse it when the step is done already.
        raise ValueError(f"a step has a name of valid text, not {name!r:.50}") from error
    if name.startswith("route:"):
        raise ValueError(f'{name!r}: names that begin with "route:" are those of the framework')


def _delivery_of(run: CurrentRun, name: str, message: Message | None) -> Delivery:
    if message is not None:
        found = run.delivery_of(message)
        if found is None:
            raise ValueError(f"once({name!r}, message): the handler does not have this message")
        return found
    return run.deliveries[0]


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _encoded(name: str, result: Any) -> str:
    try:
        encoded = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"the result of the step {name!r} is no JSON ({error})"
        cure = "return a number, a text, or a list or dict of these"
        raise StepResultError(f"{what}; {cure}; the step was done, and is not recorded") from error
    if len(encoded) > LARGEST_RESULT:
        what = f"the result of the step {name!r} has {len(encoded)} characters as JSON"
        cure = f"{LARGEST_RESULT} are the most"
        raise StepResultError(f"{what}; {cure}; the step was done, and is not recorded")
    return encoded


def _is_deferred(returned: object) -> bool:
    # It can be one of Twisted's only where that is imported.
    twisted: Any = sys.modules.get("twisted.internet.defer")
    return twisted is not None and isinstance(returned, twisted.Deferred)


def _refuse_awaitable(name: str, returned: object) -> None:
    if not (inspect.isawaitable(returned) or _is_deferred(returned)):
        return
    if inspect.iscoroutine(returned):
        # It never began; without this, Python warns of it.
        returned.close()
    cure = "write `async with self.once(...)` and `await step.run(...)` in a coroutine handler"
    raise TypeError(f"the function of the step {name!r} returned an awaitable: {cure}")


def _wait(record: _Record, written: Future[None]) -> None:
    try:
        written.result()
    except StoreError as error:
        raise record.not_recorded(error) from error


async def _wait_later(record: _Record, written: Future[None]) -> None:
    try:
        await asyncio.wrap_future(written)
    except StoreError as error:
        raise record.not_recorded(error) from error
