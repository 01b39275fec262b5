# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings back deliveries that are due: held ones from memory, deferred ones from the store.

A deferred row is *out* from its claim until it is settled, in memory and on the disk. At most
:data:`MOST_OUT` rows are out, however many are due. The store is read again only when fewer than
half of them are out, and never for rows that are out. So a read costs only the rows that it brings.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import StoreError
from consumer_framework.core.gate import GateEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.gate import Gate, Reason
    from consumer_framework.core.intake import Holds, Intake
    from consumer_framework.core.ports import Clock, Store

_log = logging.getLogger(__name__)

# Seconds between two reads of the store at most: the machine's clock may have been set.
LONGEST_SLEEP = 30.0
# Seconds between two reads of a store that cannot be read.
UNREADABLE_SLEEP = 5.0
# Rows that are out at most, and bytes of their bodies: enough work for the slots while the removals
# of the last rows are synced to the disk.
MOST_OUT = 256
MOST_BYTES = 16 << 20
# Seconds until rows that were given back without a run are claimed again.
GIVEN_BACK_SLEEP = 1.0
# Seconds. If the machine's clock is set back by more, rows are brought forward.
CLOCK_JUMP = 5.0


class Scheduler:
    """Puts deliveries into the intake when they are due.

    Args:
        reactor: Twisted's reactor, or a clock of a test's.
        gate: Says whether deliveries may come back.
        tidy: Called whenever the alarm rings, every 30 seconds at the latest.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- only the dispatcher makes one
        self,
        holds: Holds,
        store: Store,
        intake: Intake,
        clock: Clock,
        reactor: Any,
        gate: Gate,
        tidy: Callable[[], None],
    ) -> None:
        self._holds = holds
        self._store = store
        self._intake = intake
        self._clock = clock
        self._reactor = reactor
        self._gate = gate
        self._tidy = tidy
        self._timer: Any = None
        # The bytes of the body of each row that is out, by the row's number.
        self._out: dict[int, int] = {}
        self._bytes_out = 0
        # Seconds since the epoch; the other rows are due at this time or later.
        self._due_at = -math.inf
        self._not_before = -math.inf
        # Seconds between two alarms at most.
        self.longest_sleep = LONGEST_SLEEP
        self._rang_at = clock.monotonic()
        self._is_called = False
        self._trouble = ""
        self._offset = clock.time() - clock.monotonic()
        self._rebasing: asyncio.Task[None] | None = None
        gate.listen(self._gate_changed)

    @property
    def is_behind(self) -> bool:
        """True if more rows are due than may be out."""
        return self._due_at <= self._clock.time() and not self._has_room

    def read_store(self) -> None:
        """Bring back deliveries that are due, and set the alarm, after a change of the store."""
        self._due_at = -math.inf
        self.bring()

    def bring(self) -> None:
        """Bring back deliveries that are due, and set the alarm for the next."""
        self._is_called = False
        self._stop_timer()
        if not self._gate.may_recall:
            return
        now = self._clock.time()
        self._watch_clock(now)
        for delivery in reversed(self._holds.due(self._clock.monotonic())):
            self._intake.put_first(delivery)
        is_time = self._due_at <= now and self._clock.monotonic() >= self._not_before
        if is_time and self._has_room:
            for delivery in self._claim(now, MOST_OUT - len(self._out)):
                self._intake.put(delivery)
        self._timer = self._reactor.callLater(self._sleep(now), self._ring)

    def _ring(self) -> None:
        self._rang_at = self._clock.monotonic()
        self.read_store()
        self._tidy()

    def bring_one(self) -> bool:
        """Bring back one delivery, due or not; returns False if there is none."""
        found = self._holds.first() or self._claim(math.inf, 1)
        for delivery in found:
            self._intake.put_first(delivery)
        return bool(found)

    def is_out(self, row: int) -> bool:
        """Return True if *row* is out."""
        return row in self._out

    def took(self, delivery: Delivery) -> None:
        """Count the row of *delivery* as out; a replay brought it."""
        self._bytes_out -= self._out.get(delivery.row, 0)
        self._out[delivery.row] = len(delivery.body)
        self._bytes_out += len(delivery.body)

    def done(self, delivery: Delivery) -> None:
        """Count a settled row as out no more; the next row of its lane may be due."""
        self._bytes_out -= self._out.pop(delivery.row, 0)
        if delivery.lane:
            self._due_at = -math.inf
        self._bring_soon()

    def given_back(self, delivery: Delivery) -> None:
        """Count a row that did not run as out no more, and claim no row for a moment."""
        self._not_before = self._clock.monotonic() + GIVEN_BACK_SLEEP
        self._due_at = -math.inf
        self.done(delivery)

    def deferred(self, until: float) -> None:
        """Set the alarm for a new row, due at *until* seconds since the epoch."""
        self._due_at = min(self._due_at, until)
        self._bring_soon()

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if not self._gate.may_recall:
            self._stop_timer()
        elif event is GateEvent.RESUME:
            # The row that blocks all others may be due.
            self.read_store()

    @property
    def _has_room(self) -> bool:
        return len(self._out) <= MOST_OUT // 2 and self._bytes_out <= MOST_BYTES // 2

    def _bring_soon(self) -> None:
        """Bring back once after all settles of one turn of the event loop."""
        if not self._is_called and self._gate.may_recall and self._has_room:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self.bring)

    def _claim(self, now: float, most: int) -> list[Delivery]:
        try:
            found = self._store.due(now, most, self._out)
            for delivery in found:
                self.took(delivery)
            next_due = self._store.next_due(self._out)
        except StoreError as error:
            self._report(f"deferred messages cannot be read: {error}")
            self._due_at = self._clock.time() + UNREADABLE_SLEEP
            return []
        self._report("")
        self._due_at = math.inf if next_due is None else next_due
        return found

    def _report(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.error("%s; trying again every %.0f s", trouble, UNREADABLE_SLEEP)
        self._trouble = trouble

    def _watch_clock(self, now: float) -> None:
        """Bring rows forward where the machine's clock was set back."""
        offset = now - self._clock.monotonic()
        back, self._offset = self._offset - offset, offset
        if back > CLOCK_JUMP:
            _log.warning("the machine's clock was set back by %.0f s", back)
            self._rebasing = asyncio.get_running_loop().create_task(self._rebase(now))

    async def _rebase(self, now: float) -> None:
        try:
            await self._store.rebase(now)
        except StoreError as error:
            _log.warning("deferred messages may be late by as much: %s", error)
        else:
            self.read_store()

    def _sleep(self, now: float) -> float:
        waits = [self._rang_at + self.longest_sleep - self._clock.monotonic()]
        held = self._holds.next_due()
        if held is not None:
            waits.append(held - self._clock.monotonic())
        if self._has_room:
            not_before = self._not_before - self._clock.monotonic()
            waits.append(max(self._due_at - now, not_before))
        return max(min(waits), 0.0)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
