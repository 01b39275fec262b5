# SPDX-License-Identifier: GPL-2.0-or-later
"""Time that passes when a test says so: one clock for asyncio, for Twisted and for the core."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from twisted.internet import task

from consumer_framework.adapters.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# asyncio runs a timer that is due within its clock's resolution, and rounding must not keep a
# step from reaching it.
_SHORTEST_STEP = 1e-6


class VirtualTime(SystemClock):
    """A :class:`.Clock`, an event loop and a reactor that share one time.

    Args:
        start: The first value of :meth:`time`, in seconds since the epoch.
        patience: Called where the loop has nothing to do; returns the real seconds to wait for
            the world outside, None for as long as it takes. Its arguments: whether a timer is
            set on the loop, and whether the loop watches a socket.

    Attributes:
        loop: Runs nothing but in :meth:`run` and :meth:`advance`.
        reactor: Has the ``callLater`` of Twisted's, and nothing else.
    """

    def __init__(self, start: float, patience: Callable[[bool, bool], float | None]) -> None:
        self.reactor: Any = task.Clock()
        self._start = start
        self._errors: list[BaseException] = []
        self._selector = _Selector(patience)
        self.loop = _Loop(self._selector, self.monotonic)
        self._selector.idle = self.loop.stop
        self.loop.set_exception_handler(self._failed)

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
        self.loop.run_forever()
        if self._errors:
            error, self._errors = self._errors[0], []
            raise error

    @property
    def waits_for_threads(self) -> bool:
        """True while threads run functions for the loop, as by ``asyncio.to_thread``."""
        return bool(self.loop.in_threads)

    def next_timer(self) -> float | None:
        """Seconds until something is due, None for never."""
        now = self.monotonic()
        waits = [call.getTime() - now for call in self.reactor.getDelayedCalls()]
        if self._selector.timer is not None:
            waits.append(self._selector.timer)
        return max(min(waits), _SHORTEST_STEP) if waits else None

    def step(self, seconds: float) -> None:
        """Let *seconds* pass, in which nothing is due before the end."""
        self.loop.call_soon(self.reactor.advance, seconds)
        self.run()

    def close(self) -> None:
        """Close the loop."""
        self.loop.close()

    def _failed(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._errors.append(error or RuntimeError(context["message"]))


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, selector: selectors.BaseSelector, now: Callable[[], float]) -> None:
        self._virtual_now = now
        # The functions that threads run for the loop, as by `asyncio.to_thread`.
        self.in_threads: set[asyncio.Future[Any]] = set()
        super().__init__(selector)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        self.in_threads.add(future)
        future.add_done_callback(self.in_threads.discard)
        return future

    def time(self) -> float:
        return self._virtual_now()


class _Selector(selectors.DefaultSelector):
    """Tells when the loop has nothing to do but wait: that is when it asks for more than 0 s."""

    def __init__(self, patience: Callable[[bool, bool], float | None]) -> None:
        super().__init__()
        self._patience = patience
        self.idle: Callable[[], None]
        self.timer: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        # One descriptor is the loop's own, by which threads wake it.
        sockets = len(self.get_map()) > 1
        events = super().select(self._patience(timeout is not None, sockets))
        if not events:
            self.timer = timeout
            self.idle()
        return events
