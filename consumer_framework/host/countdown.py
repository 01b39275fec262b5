# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits that come to an end, and that the service manager must not end before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import task

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.ports import Notifier

# Seconds between two looks at how much time is left.
TICK = 1.0
# Seconds that the service manager is asked for, and how many of them may be used up before it is
# asked again. A process that cannot ask any more is ended soon.
LEASE = 15.0
RENEWAL = 5.0


class Countdown:
    """Counts down to an end that may move.

    Args:
        reactor: Twisted's reactor, or a clock of a test's.
        now: Returns seconds of a clock that never goes back, which the reactor's own may.
        notifier: Asked to let the start, or the stop, go on meanwhile.
        tick: Called once a second.
        passed: Called when the time is over; nothing is called after that.
    """

    def __init__(
        self,
        reactor: Any,
        now: Callable[[], float],
        notifier: Notifier,
        tick: Callable[[], None],
        passed: Callable[[], None],
    ) -> None:
        self._now = now
        self._notifier = notifier
        self._tick = tick
        self._passed = passed
        self._end: Callable[[], float] | None = None
        self._asked_at = float("-inf")
        self._timer = task.LoopingCall(self._look)
        self._timer.clock = reactor

    @property
    def left(self) -> float | None:
        """Seconds until the end; None where nothing is waited for."""
        return None if self._end is None else max(self._end() - self._now(), 0.0)

    def start(self, end: Callable[[], float]) -> None:
        """Wait until *end* at the most, which returns seconds of that clock.

        What was waited for before is not any more.
        """
        self._end = end
        self._asked_at = float("-inf")
        if self._timer.running:
            self._timer.stop()
        self._timer.start(TICK)

    def stop(self) -> None:
        """Nothing is waited for any more."""
        self._end = None
        if self._timer.running:
            self._timer.stop()

    def _look(self) -> None:
        if self.left == 0:
            self.stop()
            self._passed()
            return
        if self._now() - self._asked_at >= RENEWAL:
            self._asked_at = self._now()
            self._notifier.extend(LEASE)
        self._tick()
