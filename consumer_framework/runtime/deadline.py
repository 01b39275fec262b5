# SPDX-License-Identifier: GPL-2.0-or-later
"""A deadline for the start and the drain, which the service manager must not end before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.ports import Notifier


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Do not make the call."""
        ...


# Seconds between two ticks.
TICK = 1.0
# Seconds of each extension that the service manager is asked for, and seconds between two requests.
# A process that hangs stops asking, and is ended soon.
LEASE = 15.0
RENEWAL = 5.0


def _on_the_loop(seconds: float, function: Callable[[], None]) -> Timer:
    # Twisted's timers stand still when the machine's clock is set back.
    return asyncio.get_running_loop().call_later(seconds, function)


class Deadline:
    """A deadline that may move; all times are seconds of *now*'s clock.

    Args:
        now: Returns the time of a clock that never goes back.
        notifier: Extends the start, or the stop, meanwhile.
        tick: Called once a second.
        passed: Called when the time is over; nothing is called after that.
        call_later: Calls a function after so many seconds.
    """

    def __init__(
        self,
        now: Callable[[], float],
        notifier: Notifier,
        tick: Callable[[], None],
        passed: Callable[[], None],
        call_later: Callable[[float, Callable[[], None]], Timer] = _on_the_loop,
    ) -> None:
        self._now = now
        self._notifier = notifier
        self._tick = tick
        self._passed = passed
        self._call_later = call_later
        self._end: Callable[[], float] | None = None
        self._asked_at = float("-inf")
        self._timer: Timer | None = None

    @property
    def left(self) -> float | None:
        """Seconds until the end; None if no deadline is set."""
        return None if self._end is None else max(self._end() - self._now(), 0.0)

    def start(self, end: Callable[[], float]) -> None:
        """Set the deadline to the time that *end* returns, in place of an earlier one."""
        self.stop()
        self._end = end
        self._asked_at = float("-inf")
        self._look()

    def stop(self) -> None:
        """Remove the deadline."""
        self._end = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self.left == 0:
            self.stop()
            self._passed()
            return
        self._timer = self._call_later(TICK, self._look)
        if self._now() - self._asked_at >= RENEWAL:
            self._asked_at = self._now()
            self._notifier.extend(LEASE)
        self._tick()
