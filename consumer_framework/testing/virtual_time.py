# SPDX-License-Identifier: GPL-2.0-or-later
"""Time that passes when a test says so: one clock for asyncio, for Twisted and for the core."""

from __future__ import annotations

import asyncio
import contextvars
import selectors
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from twisted.internet import task

from consumer_framework.adapters.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# asyncio runs a timer that is due within its clock's resolution, and rounding must not keep a
# step from reaching it.
_SHORTEST_STEP = 1e-6
# The threads in which the executor decodes large bodies.
_DECODING = "decoding"


class VirtualTime(SystemClock):
    """A :class:`.Clock`, an event loop and a reactor that share one time.

    A thread runs one event loop at a time. If an event loop runs in the thread of the caller, as in
    a test for pytest-asyncio, this one runs in a thread of its own from then on, and the caller
    waits for it.

    Args:
        start: The first value of :meth:`time`, in seconds since the epoch.
        patience: Called where the loop has nothing to do; returns the real seconds to wait for
            the world outside, None for as long as it takes. Its arguments: whether a timer is
            set on the loop, and whether a socket or a thread of the loop may wake it.
        keeps_pace: While it waits for as long as it takes, time passes as in the world outside, so
            that a timeout of a connection comes when it should.

    Attributes:
        loop: Runs nothing but in :meth:`run` and :meth:`advance`.
        reactor: Has the ``callLater`` of Twisted's, and nothing else.
        ignored: Exceptions of tasks for which nobody waits that are no fault.
    """

    def __init__(
        self,
        start: float,
        patience: Callable[[bool, bool], float | None],
        *,
        keeps_pace: bool = False,
    ) -> None:
        self.reactor: Any = task.Clock()
        self.ignored: tuple[type[BaseException], ...] = ()
        self._start = start
        self._errors: list[BaseException] = []
        self._selector = _Selector(patience)
        self.loop = _Loop(self._selector, self.monotonic)
        self._selector.idle = self.loop.stop
        self._selector.has_threads = self.loop.has_threads
        self.loop.pass_time = lambda: self.step(self.next_timer() or _SHORTEST_STEP)
        if keeps_pace:
            self._selector.pace = self._passed, self._next_call
        self.loop.set_exception_handler(self._failed)
        self._thread: ThreadPoolExecutor | None = None

    def monotonic(self) -> float:
        """Seconds since the beginning."""
        now: float = self.reactor.seconds()
        return now

    def time(self) -> float:
        """Seconds since the epoch."""
        return self._start + self.monotonic()

    def run(self) -> None:
        """Let everything happen that takes no time.

        Raises:
            BaseException: A callback raised it, and nobody caught it.
        """
        if self._thread is None and _runs_a_loop():
            self._thread = ThreadPoolExecutor(1, "virtual time")
        if self._thread is None:
            self.loop.run_forever()
        else:
            self._run_in(self._thread)
        if self._errors:
            error, self._errors = self._errors[0], []
            raise error

    def next_timer(self) -> float | None:
        """Seconds until something is due, None for never."""
        waits = [wait for wait in (self._next_call(), self._selector.timer) if wait is not None]
        return max(min(waits), _SHORTEST_STEP) if waits else None

    def _next_call(self) -> float | None:
        now = self.monotonic()
        calls = self.reactor.getDelayedCalls()
        return min((call.getTime() - now for call in calls), default=None)

    def _passed(self, seconds: float) -> None:
        self.loop.call_soon(self.reactor.advance, seconds)

    def step(self, seconds: float) -> None:
        """Let *seconds* pass, in which nothing is due before the end."""
        self.loop.call_soon(self.reactor.advance, seconds)
        self.run()

    @contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Let a signal wake the loop, whatever thread it comes to; for the main thread."""
        before = signal.set_wakeup_fd(self.loop.waker, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        """Close the loop."""
        if self._thread is not None:
            self._thread.shutdown()
        self.loop.close()

    def _run_in(self, thread: ThreadPoolExecutor) -> None:
        running = thread.submit(contextvars.copy_context().run, self.loop.run_forever)
        try:
            running.result()
        except KeyboardInterrupt:
            self.loop.call_soon_threadsafe(self.loop.stop)
            raise

    def _failed(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, self.ignored):
            return
        self._errors.append(error or RuntimeError(context["message"]))


def _runs_a_loop() -> bool:
    """Tell whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, selector: selectors.BaseSelector, now: Callable[[], float]) -> None:
        self._virtual_now = now
        self._in_threads: set[asyncio.Future[Any]] = set()
        self.pass_time: Callable[[], None]
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual_now()

    @property
    def waker(self) -> int:
        """The descriptor by which threads wake the loop."""
        untyped: Any = self
        descriptor: int = untyped._csock.fileno()  # noqa: SLF001 -- asyncio's own, for this
        return descriptor

    def run_until_complete(self, future: Any) -> Any:
        # A class may do so in its constructor, before the loop runs.
        task = asyncio.ensure_future(future, loop=self)
        task.add_done_callback(lambda _task: self.stop())
        self.run_forever()
        while not task.done():
            self.pass_time()
        return task.result()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._in_threads.add(future)
        future.add_done_callback(self._in_threads.discard)
        return future

    def has_threads(self) -> bool:
        """Tell whether a thread works for a coroutine."""
        return bool(self._in_threads) or any(
            thread.name == _DECODING for thread in threading.enumerate()
        )


class _Selector(selectors.DefaultSelector):
    """Tells when the loop has nothing to do but wait: that is when it asks for more than 0 s.

    Attributes:
        idle: Called then.
        has_threads: Tells whether a thread works for the loop.
        timer: Seconds until the next timer of the loop, when it was last idle.
        pace: Takes the seconds that passed outside, and returns those until the next timer of the
            reactor; None where time stands still meanwhile.
    """

    def __init__(self, patience: Callable[[bool, bool], float | None]) -> None:
        super().__init__()
        self._patience = patience
        self.idle: Callable[[], None]
        self.has_threads: Callable[[], bool]
        self.timer: float | None = None
        self.pace: tuple[Callable[[float], None], Callable[[], float | None]] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        # One descriptor is the loop's own, by which threads wake it.
        is_outside = len(self.get_map()) > 1 or self.has_threads()
        patience = self._patience(timeout is not None, is_outside)
        if patience is None and self.pace is not None:
            return self._in_pace(timeout, *self.pace)
        events = super().select(patience)
        if not events:
            self.timer = timeout
            self.idle()
        return events

    def _in_pace(
        self,
        timeout: float | None,
        passed: Callable[[float], None],
        next_call: Callable[[], float | None],
    ) -> list[tuple[selectors.SelectorKey, int]]:
        waits = [wait for wait in (timeout, next_call()) if wait is not None]
        began = time.monotonic()
        events = super().select(max(min(waits), 0) if waits else None)
        passed(time.monotonic() - began)
        return events
