# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the author's code: plain functions in threads of their own, coroutines on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from fedora_messaging import exceptions as upstream
from twisted.internet import defer

from consumer_framework.core.delivery import Failed, Outcome, Skipped, Succeeded
from consumer_framework.core.errors import Drop, Halt, Retry, Skip
from consumer_framework.core.handler import Handler, is_coroutine_callable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    _Job = tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any]]


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


class Executor:
    """Runs one handler, at most *slots* times at once.

    Args:
        handler: What to run.
        slots: How many threads a plain handler gets, each made when it is first needed. They are
            daemon threads: one that never returns cannot keep the process alive.

    Must be made, and used, on the event loop's thread while the loop runs.
    """

    def __init__(self, handler: Handler, slots: int = 1) -> None:
        self._handler = handler
        self._is_coroutine = is_coroutine_callable(handler.call)
        self._idle: list[_SlotThread] = [_SlotThread(f"slot-{n}") for n in range(slots)]

    async def setup(self) -> None:
        """Run the handler's ``setup``; what it raises is raised here."""
        await self._call_if_any(self._handler.setup)

    async def run(self, message: Any) -> Outcome:
        """Run the handler on *message*.

        Raises:
            asyncio.CancelledError: Only where the calling task is cancelled; one that comes out
                of the handler is an outcome like any other.
        """
        try:
            await self._call(self._handler.call, message)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Failed(error)
        except Skip as skip:
            return Skipped(skip.reason)
        except BaseException as error:  # noqa: BLE001 -- sys.exit() in a handler is its failure
            return Failed(signal_of(error))
        return Succeeded()

    async def teardown(self) -> None:
        """Run the handler's ``teardown``; what it raises is raised here."""
        await self._call_if_any(self._handler.teardown)

    def close(self) -> None:
        """End the threads that run nothing."""
        for thread in self._idle:
            thread.close()

    async def _call_if_any(self, function: Callable[[], Any] | None) -> None:
        if function is not None:
            await self._call(function)

    async def _call(self, function: Callable[..., Any], *args: Any) -> None:
        if self._is_coroutine_function(function):
            # In a task of its own: a handler that cancels its task cancels no slot. It also takes
            # a loop turn, so that heartbeats get theirs however quick the coroutine is.
            error = await asyncio.get_running_loop().create_task(_caught(function(*args)))
            if error is not None:
                raise error
            return
        thread = self._idle.pop(0)
        try:
            result = await thread.call(function, *args)
        finally:
            self._idle.insert(0, thread)
        if isinstance(result, defer.Deferred):
            result = result.asFuture(asyncio.get_running_loop())
        if inspect.isawaitable(result):
            await result

    def _is_coroutine_function(self, function: Callable[..., Any]) -> bool:
        if function is self._handler.call:
            return self._is_coroutine
        return is_coroutine_callable(function)


async def _caught(coroutine: Awaitable[Any]) -> BaseException | None:
    """Return what *coroutine* raises: a SystemExit that leaves a task ends the event loop."""
    try:
        await coroutine
    except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
        return error
    return None


class _SlotThread:
    """A thread that runs one function at a time and answers on the event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run *function* in the thread; return or raise what it does."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.put((function, args, done))
        result, error = await done
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, args, done = job
            answer: tuple[Any, BaseException | None]
            try:
                answer = function(*args), None
            except BaseException as error:  # noqa: BLE001 -- handed to the loop, whatever it is
                answer = None, error
            # The loop may be closed by now, where the drain was cut short.
            with contextlib.suppress(RuntimeError):
                done.get_loop().call_soon_threadsafe(_answer, done, answer)
            del job, function, args, done, answer


def _answer(done: asyncio.Future[Any], answer: tuple[Any, BaseException | None]) -> None:
    if not done.done():
        done.set_result(answer)
