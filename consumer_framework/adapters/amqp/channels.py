# SPDX-License-Identifier: GPL-2.0-or-later
"""The open channels by generation, and what they are told of their deliveries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pika.exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.twisted_connection import TwistedChannel

    from consumer_framework.core.delivery import Delivery


class Channels:
    """An :class:`.Acknowledger` that settles each delivery on the channel it came from, or not."""

    def __init__(self) -> None:
        self._open: dict[int, TwistedChannel] = {}
        self._latest = 0
        self._left: set[int] = set()

    def add(self, channel: TwistedChannel) -> int:
        """Return the generation of a new channel."""
        self._latest += 1
        self._open[self._latest] = channel
        return self._latest

    def remove(self, generation: int) -> None:
        """Make every later settle for *generation* void."""
        self._open.pop(generation, None)
        self._left.discard(generation)

    def leave(self, generation: int) -> None:
        """Let what is given back of *generation* go back together, when its channel closes."""
        self._left.add(generation)

    def is_left(self, generation: int) -> bool:
        """Whether :meth:`leave` was called for *generation*."""
        return generation in self._left

    def is_open(self, delivery: Delivery) -> bool:
        """Whether the channel that *delivery* came on is there still."""
        return delivery.generation in self._open

    def ack(self, delivery: Delivery) -> bool:
        """Let the broker forget the message; False if that is void."""
        return self._settle(delivery, lambda c: c.basic_ack(delivery.delivery_tag))

    def give_back(self, delivery: Delivery) -> bool:
        """Put the message back on its queue; False if that is void."""
        if delivery.generation in self._left:
            return self.is_open(delivery)
        return self._settle(delivery, lambda c: c.basic_nack(delivery.delivery_tag, requeue=True))

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back on its queue, counted; False if that is void."""
        return self._settle(delivery, lambda c: c.basic_reject(delivery.delivery_tag, requeue=True))

    def reject(self, delivery: Delivery) -> bool:
        """Drop or dead-letter the message; False if that is void."""
        return self._settle(
            delivery, lambda c: c.basic_reject(delivery.delivery_tag, requeue=False)
        )

    def _settle(self, delivery: Delivery, tell: Callable[[TwistedChannel], None]) -> bool:
        channel = self._open.get(delivery.generation)
        if channel is None:
            return False
        try:
            tell(channel)
        except (pika.exceptions.ChannelWrongStateError, pika.exceptions.ConnectionWrongStateError):
            return False
        return True
