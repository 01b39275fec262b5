# SPDX-License-Identifier: GPL-2.0-or-later
"""What slots do: some deliveries, and who waits for their outcomes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer_framework.core.printable import printable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery, Outcome, Succeeded


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
