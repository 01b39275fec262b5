# SPDX-License-Identifier: GPL-2.0-or-later
"""``handler_timeout``: find the runs that take longer than they may, with one timer for all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from consumer_framework.core.health import Overrun

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from .run import Run


class Deadlines:
    """The deadlines of all runs that have begun. Times are the event loop's, in seconds.

    Args:
        loop: The event loop.
        timeout: Seconds that a run may take; infinite for no limit, which needs no timer.
        unfinished: Returns the runs that have begun and not ended.
        is_busy: Returns whether anything runs, or is about to.
        on_overdue: Called once for each run that takes too long.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        unfinished: Callable[[], Iterable[Run]],
        is_busy: Callable[[], bool],
        on_overdue: Callable[[Run], None],
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._unfinished = unfinished
        self._is_busy = is_busy
        self._on_overdue = on_overdue
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Make sure that a timer covers a run that begins now."""
        if self._timer is None and not math.isinf(self._timeout):
            self._timer = self._loop.call_later(self._timeout, self._look)

    def set_timeout(self, timeout: float) -> None:
        """Let a run take *timeout* seconds, those included that have begun."""
        self._timeout = timeout
        self.stop()
        if not math.isinf(timeout):
            self._look()

    def stop(self) -> None:
        """Cancel the timer."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def latest(self) -> float | None:
        """Return the last deadline of the runs of the handler; None where none has begun."""
        starts = [run.timed_from for run in self._unfinished() if run.function is None]
        return max(starts) + self._timeout if starts else None

    def overruns(self) -> tuple[Overrun, ...]:
        """Return the runs that take too long, the longest first, with those that were cancelled.

        A setup or teardown is no overrun: ``handler_timeout`` does not hold for a setup, and a
        drain has its own end for a teardown.
        """
        now = self._loop.time()
        handling = [run for run in self._unfinished() if run.function is None]
        late = [run for run in handling if now - run.timed_from > self._timeout]
        return tuple(
            Overrun(
                subject=run.named,
                deliveries=tuple(run.deliveries),
                deadline=run.timed_from + self._timeout,
                is_cancelled=run.task is not None,
            )
            for run in sorted(late, key=lambda run: run.timed_from)
        )

    def _look(self) -> None:
        now = self._loop.time()
        for run in self._unfinished():
            if not run.is_overdue and now - run.timed_from >= self._timeout:
                run.is_overdue = True
                self._on_overdue(run)
        starts = [run.timed_from for run in self._unfinished() if not run.is_overdue]
        self._timer = None
        if self._is_busy():
            delay = min(starts, default=now) + self._timeout - now
            self._timer = self._loop.call_later(delay, self._look)
