# SPDX-License-Identifier: GPL-2.0-or-later
"""The open channels by generation, and what they are told of their deliveries.

Puts acknowledgements of one channel together.

The broker numbers the deliveries of a channel 1, 2, 3 and so on. One ``basic.ack`` with
``multiple`` settles every delivery up to its tag (AMQP 0-9-1, section 1.8.3.13), so it may be sent
where all of those are settled, and for a tag that the broker was not told of before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pika.exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.twisted_connection import TwistedChannel

    from consumer_framework.core.delivery import Delivery


class Acks:
    """What is settled on one channel, and what of it the broker was not told yet.

    What is settled beyond the first gap is kept as ranges: a delivery that is held for minutes is
    one gap, however many deliveries pass it meanwhile.
    """

    def __init__(self) -> None:
        # Every delivery up to this tag is settled.
        self._prefix = 0
        # The ranges of settled tags beyond it: the last tag by the first one, and the reverse.
        self._last: dict[int, int] = {}
        self._first: dict[int, int] = {}
        self._untold: list[int] = []

    @property
    def count(self) -> int:
        """How many deliveries are settled."""
        beyond = sum(last - first + 1 for first, last in self._last.items())
        return self._prefix + beyond

    @property
    def prefix(self) -> int:
        """The tag up to which every delivery is settled."""
        return self._prefix

    def ack(self, tag: int) -> None:
        """Note that the broker is to be told that *tag* is done with."""
        self._untold.append(tag)
        self.settled(tag)

    def settled(self, tag: int) -> None:
        """Note that *tag* is settled, in whatever way."""
        first = self._first.pop(tag - 1, tag)
        last = self._last.pop(tag + 1, tag)
        if first != tag:
            del self._last[first]
        if last != tag:
            del self._first[last]
        if first == self._prefix + 1:
            self._prefix = last
        else:
            self._last[first], self._first[last] = last, first

    def take(self) -> list[tuple[int, bool]]:
        """Return what to tell the broker: tags, and whether all before them are meant too."""
        untold, self._untold = self._untold, []
        within = [tag for tag in untold if tag <= self._prefix]
        beyond = [(tag, False) for tag in untold if tag > self._prefix]
        if not within:
            return beyond
        return [(max(within), len(within) > 1), *beyond]


# Acknowledgements that are worth a word to the broker, and turns of the event loop in which a
# quick coroutine handler ends.
MANY = 16
QUIET_TURNS = 4

_GONE = (pika.exceptions.ChannelWrongStateError, pika.exceptions.ConnectionWrongStateError)


class Channels:
    """An :class:`.Acknowledger` that settles each delivery on the channel it came from, or not.

    Acknowledgements are told together: when so many wait, or none has come for some turns of the
    event loop, which never sleeps until then. Whatever else becomes of a delivery is told at once.

    Args:
        soon: Calls a function in the next turn of the event loop.
    """

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._open: dict[int, tuple[TwistedChannel, Acks]] = {}
        self._latest = 0
        self._untold = 0
        self._quiet_turns = 0
        self._left: set[int] = set()
        self._bytes: dict[int, int] = {}

    def add(self, channel: TwistedChannel) -> int:
        """Return the generation of a new channel."""
        self._latest += 1
        self._open[self._latest] = (channel, Acks())
        self._bytes[self._latest] = 0
        return self._latest

    def remove(self, generation: int) -> None:
        """Make every later settle for *generation* void."""
        self._open.pop(generation, None)
        self._bytes.pop(generation, None)
        self._left.discard(generation)

    def leave(self, generation: int) -> None:
        """Let what is given back of *generation* go back together, when its channel closes."""
        self._left.add(generation)

    def is_left(self, generation: int) -> bool:
        """Whether :meth:`leave` was called for *generation*."""
        return generation in self._left

    @property
    def unsettled_bytes(self) -> int:
        """How large the bodies are that came on open channels, and are not settled."""
        return sum(self._bytes.values())

    def arrived(self, delivery: Delivery) -> None:
        """Note that *delivery* came."""
        if delivery.generation in self._bytes:
            self._bytes[delivery.generation] += len(delivery.body)

    def settled(self, generation: int) -> int:
        """How many deliveries of *generation* are settled; 0 where its channel is gone."""
        entry = self._open.get(generation)
        return entry[1].count if entry is not None else 0

    def settled_up_to(self, generation: int) -> int:
        """The tag up to which all of *generation* is settled; 0 where its channel is gone."""
        entry = self._open.get(generation)
        return entry[1].prefix if entry is not None else 0

    def is_open(self, delivery: Delivery) -> bool:
        """Whether the channel that *delivery* came on is there still."""
        return delivery.generation in self._open

    def ack(self, delivery: Delivery) -> bool:
        """Let the broker forget the message; False if that is void."""
        entry = self._open.get(delivery.generation)
        # As for what is told at once: the channel may have closed, and nobody was told yet.
        if entry is None or not entry[0].is_open:
            return False
        entry[1].ack(delivery.delivery_tag)
        self._bytes[delivery.generation] -= len(delivery.body)
        self._quiet_turns = 0
        self._untold += 1
        if self._untold == 1:
            self._soon(self._turn)
        return True

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

    def _turn(self) -> None:
        self._quiet_turns += 1
        if self._untold >= MANY or self._quiet_turns > QUIET_TURNS:
            self.flush()
        elif self._untold:
            self._soon(self._turn)

    def flush(self) -> None:
        """Tell the broker what was acknowledged so far."""
        self._untold = 0
        for channel, acks in list(self._open.values()):
            for tag, multiple in acks.take():
                try:
                    channel.basic_ack(tag, multiple=multiple)
                except _GONE:
                    break

    def _settle(self, delivery: Delivery, tell: Callable[[TwistedChannel], None]) -> bool:
        entry = self._open.get(delivery.generation)
        if entry is None:
            return False
        channel, acks = entry
        try:
            tell(channel)
        except _GONE:
            return False
        acks.settled(delivery.delivery_tag)
        if delivery.generation in self._bytes:
            self._bytes[delivery.generation] -= len(delivery.body)
        return True
