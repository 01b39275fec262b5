# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts deliveries together for a batch handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .jobs import Job

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery, Outcome

    from .limits import Limits


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
