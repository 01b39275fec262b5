# SPDX-License-Identifier: GPL-2.0-or-later
"""A fake of the flight recorder, for tests in which no process really dies."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from consumer_framework.core.ports import FlightRecorder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consumer_framework.core.delivery import Delivery

# The queue and the message id, or the queue, the routing key and the body.
Key: TypeAlias = tuple[str, str, str, bytes]


class FakeFlightRecorder(FlightRecorder):
    """A :class:`.FlightRecorder` in memory.

    Args:
        places: How many messages are in a handler at most.
        crashed: How many processes died with which messages before.

    Attributes:
        in_flight: The deliveries that handlers have, by place.
    """

    def __init__(self, places: int = 1, crashed: Mapping[Key, int] | None = None) -> None:
        self.in_flight: dict[int, Delivery] = {}
        self._places = places
        self._crashed = dict(crashed or {})
        self._last = 0

    def crash(self) -> FakeFlightRecorder:
        """Let the process die; returns the recorder of the next one."""
        crashed = dict(self._crashed)
        for delivery in self.in_flight.values():
            count = delivery.history.crashes + 1
            crashed[_key(delivery)] = max(count, crashed.get(_key(delivery), 0))
        return FakeFlightRecorder(self._places, crashed)

    def crashes_of(self, delivery: Delivery) -> int:
        """How many processes died with this message before."""
        return self._crashed.get(_key(delivery), 0)

    def has_hung(self, delivery: Delivery) -> bool:  # noqa: ARG002 -- as its port
        """No watchdog looks at it."""
        return False

    def forget(self, delivery: Delivery) -> None:
        """Forget the crashes of this message."""
        self._crashed.pop(_key(delivery), None)

    def took_off(self, delivery: Delivery) -> int:
        """Note that the handler starts on *delivery*.

        Raises:
            RuntimeError: Every place is taken.
        """
        if len(self.in_flight) >= self._places:
            raise RuntimeError("more messages are in handlers than the flight recorder has places")
        self._last += 1
        self.in_flight[self._last] = delivery
        return self._last

    def landed(self, place: int) -> None:
        """Note that the handler is done.

        Raises:
            ValueError: Nothing took off from *place*.
        """
        if place not in self.in_flight:
            raise ValueError(f"nothing took off from place {place}")
        del self.in_flight[place]


def _key(delivery: Delivery) -> Key:
    return delivery.queue, delivery.message_id, delivery.routing_key, delivery.body
