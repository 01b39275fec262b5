# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the lane of each delivery: the sequence of deliveries with the same ordering key.

A key may be in the body, and a body may be large, or may kill the process. Such a body is decoded
in a thread, once for the key and for the handler. The flight recorder knows of it meanwhile, so
that a message that kills the process is recognized after the restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import codec
from consumer_framework.core.attempt import History, fingerprint, one_line
from consumer_framework.core.log_fields import fields_of
from consumer_framework.core.ordering import is_outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.author.handler import Handler
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.ordering import KeySource
    from consumer_framework.core.ports import FlightRecorder

    from .assembly.plan import Plan

_log = logging.getLogger(__name__)

# The only lane with strict order.
SINGLE_LANE = "everything"

# Bytes. The decoded message of a larger body takes too much memory while it waits.
_LARGE_BODY = 1 << 20


def lane_finder(plan: Plan, handler: Handler) -> LaneFinder | None:
    """Return the finder of lanes for *handler*; None if no message has a lane.

    A message without a key has no lane.
    """
    if plan.policy.strict:
        return LaneFinder(lambda _delivery, _message: SINGLE_LANE, needs_message=False)
    if plan.source_of is None:
        return None
    needs_message = not is_outside(plan.framework.ordering_key)
    return LaneFinder(plan.source_of(handler), needs_message, plan.policy.crash_attempts)


@dataclass(slots=True)
class LaneFinder:
    """Finds the lane of a delivery; an error of the author's method means no lane.

    Attributes:
        source: Returns the key.
        needs_message: Whether that takes the decoded message.
        crash_attempts: So many processes may die with a message before it is not decoded any more.
    """

    source: KeySource
    needs_message: bool
    crash_attempts: int = 0
    _said: set[str] = field(default_factory=set)

    def __call__(self, delivery: Delivery) -> Delivery:
        """Return *delivery* with its lane, and with its message if that was decoded."""
        decoded: list[Any] = []

        def message() -> Any:
            decoded.append(codec.decode(delivery))
            return decoded[0]

        try:
            lane = self.source(delivery, message)
        except Exception as error:  # noqa: BLE001 -- the author's code, or no message at all
            self._say(delivery, error)
            lane = ""
        return delivery._replace(
            lane=lane, decoded=decoded if len(delivery.body) <= _LARGE_BODY else None
        )

    def _say(self, delivery: Delivery, error: Exception) -> None:
        cause = fingerprint(error)
        if cause not in self._said:
            self._said.add(cause)
            about = fields_of(delivery, fingerprint=cause, attempt=0)
            _log.warning("no ordering key, so in no order: %s", one_line(error), extra=about)


class Arrivals:
    """Gives deliveries their lanes, and passes them on in the order of their arrival.

    Args:
        flight: Told of each delivery that is decoded.
        put: Takes the deliveries, on the event loop.
    """

    def __init__(self, flight: FlightRecorder, put: Callable[[Delivery], None]) -> None:
        self._flight = flight
        self._put = put
        # Deliveries that wait for their lane, or behind one that does, by a growing number.
        self._waiting: dict[int, Delivery] = {}
        self._latest = 0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._has_thread = False

    def put(self, delivery: Delivery, lane_of: LaneFinder | None) -> None:
        """Pass *delivery* on, now or once it has its lane and those before it are passed on."""
        if not self._waiting and (lane_of is None or not lane_of.needs_message):
            self._put(delivery if lane_of is None else lane_of(delivery))
            return
        loop = asyncio.get_running_loop()
        self._latest += 1
        number = self._latest
        self._waiting[number] = delivery

        def find() -> None:
            found = delivery if lane_of is None else self._found(delivery, lane_of)
            # The loop is closed by now if the drain was cut short.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._arrived, number, found)

        self._jobs.put(find)
        self._start()

    def discard(self, generation: int) -> None:
        """Forget the deliveries of a channel that is gone: the broker will deliver them again."""
        gone = [n for n, waiting in self._waiting.items() if waiting.generation == generation]
        for number in gone:
            del self._waiting[number]

    def clear(self) -> list[Delivery]:
        """Remove and return the waiting deliveries."""
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())

    def close(self) -> None:
        """End the thread after its last job."""
        self._jobs.put(None)

    def _start(self) -> None:
        if self._has_thread:
            return
        self._has_thread = True
        try:
            threading.Thread(target=self._serve, name="lanes", daemon=True).start()
        except RuntimeError:
            # No more threads are allowed: do the jobs here, and let the next delivery try again.
            self._has_thread = False
            while not self._jobs.empty():
                if (job := self._jobs.get()) is not None:
                    job()

    def _arrived(self, number: int, delivery: Delivery) -> None:
        if self._waiting.pop(number, None) is not None:
            self._put(delivery)

    # In the thread.

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _found(self, delivery: Delivery, lane_of: LaneFinder) -> Delivery:
        crashes = self._flight.crashes_of(delivery) if delivery.redelivered else 0
        if crashes and crashes >= lane_of.crash_attempts:
            # The pipeline will quarantine it.
            return delivery
        place = self._flight.took_off(delivery._replace(history=History(crashes=crashes)))
        try:
            return lane_of(delivery)
        finally:
            self._flight.landed(place)
