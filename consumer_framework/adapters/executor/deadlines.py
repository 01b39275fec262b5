# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds runs that take longer than they may, with one timer for all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from consumer_framework.core.health import Overrun

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from .run import Job


class Patrol:
    """Looks at what runs when the oldest run may be over its time.

    Args:
        loop: The event loop.
        timeout: Seconds that a run may take; infinite for no limit, which needs no timer.
        running: Returns what runs.
        is_busy: Whether anything runs, or is about to.
        overdue: Called once for each run that takes too long.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        running: Callable[[], Iterable[Job]],
        is_busy: Callable[[], bool],
        overdue: Callable[[Job], None],
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._running = running
        self._is_busy = is_busy
        self._overdue = overdue
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look in time for what begins now."""
        if self._timer is None and not math.isinf(self._timeout):
            self._timer = self._loop.call_later(self._timeout, self._look)

    def allow(self, timeout: float) -> None:
        """Let a run take so many seconds, those included that have begun."""
        self._timeout = timeout
        self.stop()
        if not math.isinf(timeout):
            self._look()

    def stop(self) -> None:
        """Look no more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def overruns(self) -> tuple[Overrun, ...]:
        """The runs that take too long, the longest first; those that were cancelled are some.

        Setup and teardown are none: ``handler_timeout`` is not for the former, a drain has its own
        end for the latter.
        """
        now = self._loop.time()
        handling = [job for job in self._running() if job.function is None]
        late = [job for job in handling if now - job.lasts_since > self._timeout]
        return tuple(
            Overrun(
                what=job.named,
                deliveries=tuple(job.deliveries),
                deadline=job.lasts_since + self._timeout,
                is_cancelled=job.task is not None,
            )
            for job in sorted(late, key=lambda job: job.lasts_since)
        )

    def _look(self) -> None:
        now = self._loop.time()
        for job in self._running():
            if not job.overdue and now - job.lasts_since >= self._timeout:
                job.overdue = True
                self._overdue(job)
        starts = [job.lasts_since for job in self._running() if not job.overdue]
        self._timer = None
        if self._is_busy():
            delay = min(starts, default=now) + self._timeout - now
            self._timer = self._loop.call_later(delay, self._look)
