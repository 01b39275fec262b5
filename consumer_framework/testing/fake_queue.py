# SPDX-License-Identifier: GPL-2.0-or-later
"""A queue on a broker, and the channel that a consumer has it from."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from consumer_framework.core.attempt import NO_HISTORY, History
from consumer_framework.core.delivery import Delivery
from consumer_framework.core.disposition import rule_for
from consumer_framework.core.ports import Acknowledger

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Properties
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock

    _Tag: TypeAlias = tuple[int, int]

Told: TypeAlias = Literal["", "ack", "reject"]


@dataclass(eq=False, slots=True)
class PublishedMessage:
    """A message that a test published.

    Attributes:
        number: Where it is in the queue.
        what: The message as the test gave it.
        delivery: How it is delivered for the first time.
        redelivered: Whether it was delivered before.
        told: What ended the broker's part in it, "" while the broker has it.
        disposition: What became of it; None while a handler has it, or the queue.
        history: What went wrong with it so far.
        runs: When a handler began with it, each time, in seconds since the epoch.
    """

    number: int
    what: object
    delivery: Delivery
    redelivered: bool = False
    told: Told = ""
    disposition: Disposition | None = None
    history: History = NO_HISTORY
    runs: list[float] = field(default_factory=list)

    @property
    def is_stored(self) -> bool:
        """Whether the store has the message."""
        return self.disposition is not None and rule_for(self.disposition).write is not None

    def is_of(self, delivery: Delivery) -> bool:
        """Whether *delivery* is one of this message, as far as its bytes tell."""
        mine = self.delivery
        return (
            mine.message_id == delivery.message_id
            and mine.routing_key == delivery.routing_key
            and mine.body == delivery.body
        )


class FakeQueue(Acknowledger):
    """An :class:`.Acknowledger` with the queue that it acknowledges to.

    Attributes:
        generation: The number of the channel that is open.
        posted: Everything that was ever published, in order.
    """

    def __init__(self) -> None:
        self.generation = 1
        self.posted: list[PublishedMessage] = []
        self._ready: deque[PublishedMessage] = deque()
        self._unsettled: dict[_Tag, PublishedMessage] = {}
        self._delivered: dict[_Tag, PublishedMessage] = {}
        self._tag = 0

    def publish(
        self, what: object, routing_key: str, properties: Properties, body: bytes
    ) -> PublishedMessage:
        """Append a message to the queue; *what* is how the test calls it."""
        delivery = Delivery(
            queue="queue",
            generation=0,
            delivery_tag=0,
            redelivered=False,
            exchange="amq.topic",
            routing_key=routing_key,
            properties=properties,
            body=body,
        )
        posted = PublishedMessage(len(self.posted), what, delivery)
        self.posted.append(posted)
        self._ready.append(posted)
        return posted

    @property
    def ready(self) -> list[PublishedMessage]:
        """What waits to be delivered."""
        return list(self._ready)

    @property
    def unsettled(self) -> list[PublishedMessage]:
        """What is delivered, and neither acknowledged nor given back."""
        return list(self._unsettled.values())

    def take(self, clock: Clock) -> Delivery:
        """Deliver the first message that waits, now by *clock*."""
        posted = self._ready.popleft()
        self._tag += 1
        tag = (self.generation, self._tag)
        self._unsettled[tag] = self._delivered[tag] = posted
        posted.disposition = None
        return replace(
            posted.delivery,
            generation=self.generation,
            delivery_tag=self._tag,
            redelivered=posted.redelivered,
            received_at=clock.time(),
            arrived_at=clock.monotonic(),
        )

    def of(self, delivery: Delivery) -> PublishedMessage:
        """The message of a delivery, also of one from the store.

        Of equal messages, one that the store has comes first for the store's.
        """
        if not delivery.row:
            return self._delivered[delivery.generation, delivery.delivery_tag]
        equal = [posted for posted in self.posted if posted.is_of(delivery)]
        return next((posted for posted in equal if posted.is_stored), equal[0])

    def cut(self) -> int:
        """Close the channel and open another; returns the number of the closed one."""
        for posted in self._unsettled.values():
            self._put_back(posted)
        self._unsettled.clear()
        self.generation += 1
        self._tag = 0
        return self.generation - 1

    def is_open(self, delivery: Delivery) -> bool:
        """Whether a settle of *delivery* would not be void."""
        return delivery.generation == self.generation

    def ack(self, delivery: Delivery) -> bool:
        """Forget the message.

        Raises:
            AssertionError: *delivery* was settled before. A broker closes the channel then
                (AMQP 0-9-1, section 1.8.3.13).
        """
        return self._end(delivery, "ack")

    def reject(self, delivery: Delivery) -> bool:
        """Drop the message. Raises what :meth:`ack` does."""
        return self._end(delivery, "reject")

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back, counted. Raises what :meth:`ack` does."""
        return self.give_back(delivery)

    def give_back(self, delivery: Delivery) -> bool:
        """Put the message back. Raises what :meth:`ack` does."""
        posted = self._settle(delivery)
        if posted is not None:
            self._put_back(posted)
        return posted is not None

    def _end(self, delivery: Delivery, told: Told) -> bool:
        posted = self._settle(delivery)
        if posted is not None:
            posted.told = told
        return posted is not None

    def _settle(self, delivery: Delivery) -> PublishedMessage | None:
        if not self.is_open(delivery):
            return None
        tag = (delivery.generation, delivery.delivery_tag)
        if tag not in self._unsettled:
            raise AssertionError(f"settled twice: {delivery}")
        return self._unsettled.pop(tag)

    def _put_back(self, posted: PublishedMessage) -> None:
        posted.redelivered = True
        # To its original position (RabbitMQ, "Consumer Acknowledgements and Publisher Confirms").
        bisect.insort(self._ready, posted, key=lambda other: other.number)
