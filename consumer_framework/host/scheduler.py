# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings back what is due: held deliveries from memory, deferred ones from the journal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.holds import Holds
    from consumer_framework.core.intake import Intake
    from consumer_framework.core.ports import Clock, Journal

_log = logging.getLogger(__name__)

# Seconds. Looks at the journal at least that often: the machine's clock may have been set.
LONGEST_SLEEP = 30.0
# Deferred messages that are brought back at one look; the next look is when one of them is done.
DUE_AT_ONCE = 16


class Scheduler:
    """Puts into the intake what is due, and sleeps until something is.

    Args:
        reactor: Twisted's reactor, or a clock of a test's.
        tidy: Called whenever the alarm rings, every 30 seconds at the latest.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- slots.py puts it together, and nobody else
        self,
        holds: Holds,
        journal: Journal,
        intake: Intake,
        clock: Clock,
        reactor: Any,
        tidy: Callable[[], None],
    ) -> None:
        self._holds = holds
        self._journal = journal
        self._intake = intake
        self._clock = clock
        self._reactor = reactor
        self._tidy = tidy
        self._timer: Any = None
        self._out: set[int] = set()
        self.is_paused = False

    def look(self) -> None:
        """Bring back what is due, and set the alarm for the next."""
        self._stop_timer()
        if self.is_paused:
            return
        now = self._clock.time()
        due = [*self._holds.due(now), *self._deferred(now, DUE_AT_ONCE)]
        for delivery in reversed(due):
            self._intake.put_first(delivery)
        self._timer = self._reactor.callLater(self._sleep(now), self._ring)

    def _ring(self) -> None:
        self.look()
        self._tidy()

    def bring_one(self) -> bool:
        """Bring back one delivery, due or not; False where there is none."""
        found = self._holds.first() or self._deferred(float("inf"), 1)
        for delivery in found:
            self._intake.put_first(delivery)
        return bool(found)

    def is_out(self, row: int) -> bool:
        """Whether a row was brought and is not settled yet."""
        return row in self._out

    def took(self, delivery: Delivery) -> None:
        """A row was brought by somebody else, who replays it."""
        self._out.add(delivery.row)

    def done(self, delivery: Delivery) -> None:
        """A delivery was settled; where it was a deferred one, there may be room for another."""
        if delivery.row:
            self._out.discard(delivery.row)

    def pause(self) -> None:
        """Bring back nothing but by :meth:`bring_one`."""
        self.is_paused = True
        self._stop_timer()

    def resume(self) -> None:
        """Bring back what is due again."""
        self.is_paused = False
        self.look()

    def _deferred(self, now: float, most: int) -> list[Delivery]:
        """The deferred messages that are due and not out already."""
        try:
            due = self._journal.due(now, most + len(self._out))
        except JournalError as error:
            _log.error("deferred messages cannot be read: %s", error)
            return []
        found = [delivery for delivery in due if delivery.row not in self._out][:most]
        self._out.update(delivery.row for delivery in found)
        return found

    def _sleep(self, now: float) -> float:
        times = [self._holds.next_due(), self._next_deferred()]
        next_time = min((time for time in times if time is not None), default=now + LONGEST_SLEEP)
        return min(max(next_time - now, 0.0), LONGEST_SLEEP)

    def _next_deferred(self) -> float | None:
        if self._out:
            # The journal's next may be one that is out; look when it is done, or in a second.
            return self._clock.time() + 1
        try:
            return self._journal.next_due()
        except JournalError:
            # Reported by _deferred; it may work again later.
            return None

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
