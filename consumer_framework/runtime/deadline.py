# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits that come to an end, and that the service manager must not end before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.ports import Notifier


class Timer(Protocol):
    """What calls a function later."""

    def cancel(self) -> None:
        """Do not call it."""
        ...


# Seconds between two looks at how much time is left.
TICK = 1.0
# Seconds that the service manager is asked for, and how many of them may be used up before it is
# asked again. A process that cannot ask any more is ended soon.
LEASE = 15.0
RENEWAL = 5.0


def _on_the_loop(seconds: float, function: Callable[[], None]) -> Timer:
    # Not one of Twisted's, which stands still when somebody sets the machine's time back.
    return asyncio.get_running_loop().call_later(seconds, function)


class Deadline:
    """Counts down to an end that may move.

    Args:
        now: Returns seconds of a clock that never goes back.
        notifier: Asked to let the start, or the stop, go on meanwhile.
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
        """Seconds until the end; None where nothing is waited for."""
        return None if self._end is None else max(self._end() - self._now(), 0.0)

    def start(self, end: Callable[[], float]) -> None:
        """Wait until *end* at the most, which returns seconds of that clock.

        What was waited for before is not any more.
        """
        self.stop()
        self._end = end
        self._asked_at = float("-inf")
        self._look()

    def stop(self) -> None:
        """Nothing is waited for any more."""
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
