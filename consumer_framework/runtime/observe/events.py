# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream of an instance's events, for clients of the control socket.

An instance without such a client has no observer of this kind, and pays nothing. A client that
reads too slowly loses the oldest events that wait for it, and is told their number: the instance
never waits for a client, and keeps a bounded number of events for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from consumer_framework.core.attempt import one_line
from consumer_framework.core.delivery import Failed, Skipped
from consumer_framework.core.disposition import rule_for
from consumer_framework.core.log_fields import run_number
from consumer_framework.core.ports import Observer, Paused, Ran, Settled, StateChanged
from consumer_framework.core.text import clipped
from consumer_framework.runtime.control.schema import Happened, Missed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.ports import Clock, Observation, Observers

# Events that wait for a client, at most.
MOST_WAITING = 1000
# Characters.
_LONGEST_REASON = 500


class EventFeed(Observer):
    """The events for one client.

    Args:
        clock: The time.
        kinds: The events that it wants; none for all.
    """

    def __init__(self, clock: Clock, kinds: Collection[str] = ()) -> None:
        self._clock = clock
        self._kinds = kinds
        self._waiting: deque[Happened] = deque(maxlen=MOST_WAITING)
        self._missed = 0
        self._arrived = asyncio.Event()

    def notify(self, event: Observation) -> None:
        """Keep *event* for the client."""
        happened = happened_of(event, self._clock.time())
        if self._kinds and happened.event not in self._kinds:
            return
        if len(self._waiting) == MOST_WAITING:
            self._missed += 1
        self._waiting.append(happened)
        self._arrived.set()

    async def follow(self, observers: Observers) -> AsyncGenerator[Happened | Missed, None]:
        """Yield the events that *observers* are told of, until the generator is closed."""
        observers.add(self)
        try:
            while True:
                await self._arrived.wait()
                if self._missed:
                    missed, self._missed = self._missed, 0
                    yield Missed(missed)
                if self._waiting:
                    yield self._waiting.popleft()
                else:
                    self._arrived.clear()
        finally:
            observers.remove(self)


def happened_of(event: Observation, now: float) -> Happened:
    """Return *event* as clients get it, without the body of its message.

    Args:
        event: The event.
        now: Seconds since the epoch.
    """
    match event:
        case Ran(delivery, outcome):
            return _about(delivery, "ran", now, type(outcome).__name__.lower(), _why(outcome))
        case Settled(delivery, _, decision, is_void):
            words = rule_for(decision.disposition).words
            result = "void" if is_void else words.field
            return _about(delivery, "settled", now, result, decision.disposition.reason)
        case StateChanged(_, after):
            return Happened("state", now, after.name.lower())
        case Paused(reason, text):
            result = "paused" if text else "resumed"
            return Happened("paused", now, result, text or reason.name.lower())


def _about(delivery: Delivery, event: str, now: float, result: str, reason: str) -> Happened:
    return Happened(
        event,
        now,
        result,
        clipped(reason, _LONGEST_REASON),
        delivery.message_id,
        delivery.routing_key,
        delivery.queue,
        run_number(delivery),
    )


def _why(outcome: Outcome) -> str:
    match outcome:
        case Failed(error):
            return one_line(error)
        case Skipped(reason):
            return reason
    return ""
