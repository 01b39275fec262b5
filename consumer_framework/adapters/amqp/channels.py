# SPDX-License-Identifier: GPL-2.0-or-later
"""Settles deliveries on the channels that they came from, and puts acknowledgements together.

Every channel of the process has a number, its generation. A settle for a channel that is gone is
void: the broker delivers the message again (AMQP 0-9-1, section 1.8.3.13).

The broker numbers the deliveries of a channel 1, 2, 3 and so on. One ``basic.ack`` with
``multiple`` settles every delivery up to its tag (same section), so it may be sent where all of
those are settled, and for a tag that the broker was not told of before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pika.exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.twisted_connection import TwistedChannel

    from consumer_framework.core.delivery import Delivery

# Acknowledgements that are worth a word to the broker, and turns of the event loop in which a
# quick coroutine handler ends.
MANY = 16
QUIET_TURNS = 4

_GONE = (pika.exceptions.ChannelWrongStateError, pika.exceptions.ConnectionWrongStateError)


class Channels:
    """An :class:`.Acknowledger` that settles each delivery on the channel it came from, or not.

    Acknowledgements are told together: when so many wait, or none has come for some turns of the
    event loop, which never sleeps until then. Everything else is told at once.

    Args:
        soon: Calls a function in the next turn of the event loop.

    Attributes:
        unsettled_bytes: The size of the bodies that came on open channels, and are not settled.
    """

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self.unsettled_bytes = 0
        self._soon = soon
        self._open: dict[int, OpenChannel] = {}
        self._latest = 0
        self._untold = 0
        self._quiet_turns = 0

    def add(self, channel: TwistedChannel) -> int:
        """Return the generation of a new channel."""
        self._latest += 1
        self._open[self._latest] = OpenChannel(channel)
        return self._latest

    def remove(self, generation: int) -> None:
        """Make every later settle for *generation* void."""
        entry = self._open.pop(generation, None)
        if entry is not None:
            self.unsettled_bytes -= entry.unsettled_bytes

    def return_at_close(self, generation: int) -> None:
        """Let deliveries that are given back go back together, when their channel closes."""
        if generation in self._open:
            self._open[generation].returns_at_close = True

    def returns_at_close(self, generation: int) -> bool:
        """Say whether :meth:`return_at_close` was called for *generation*."""
        return generation in self._open and self._open[generation].returns_at_close

    def arrived(self, delivery: Delivery) -> None:
        """Count the bytes of a new delivery."""
        entry = self._open.get(delivery.generation)
        if entry is not None:
            size = len(delivery.body)
            entry.unsettled_bytes += size
            self.unsettled_bytes += size

    def settled_count(self, generation: int) -> int:
        """Return how many deliveries of *generation* are settled; 0 where its channel is gone."""
        return self._open[generation].settled_count if generation in self._open else 0

    def settled_up_to(self, generation: int) -> int:
        """Return the tag up to which all is settled; 0 where the channel is gone."""
        return self._open[generation].prefix if generation in self._open else 0

    def is_open(self, delivery: Delivery) -> bool:
        """Say whether the channel that *delivery* came on is open still."""
        return delivery.generation in self._open

    def ack(self, delivery: Delivery) -> bool:
        """Let the broker forget the message; False if that is void."""
        entry = self._open.get(delivery.generation)
        # As for settles that are told at once: the channel may have closed, but nobody knows yet.
        if entry is None or not entry.channel.is_open:
            return False
        entry.ack(delivery.delivery_tag)
        self._settled(entry, delivery)
        self._quiet_turns = 0
        self._untold += 1
        if self._untold == 1:
            self._soon(self._turn)
        return True

    def give_back(self, delivery: Delivery) -> bool:
        """Put the message back on its queue; False if that is void."""
        entry = self._open.get(delivery.generation)
        if entry is None:
            return False
        if entry.returns_at_close:
            return True
        try:
            entry.channel.basic_nack(delivery.delivery_tag, requeue=True)
        except _GONE:
            return False
        entry.settle(delivery.delivery_tag)
        self._settled(entry, delivery)
        return True

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back on its queue, counted; False if that is void."""
        return self._reject(delivery, requeue=True)

    def reject(self, delivery: Delivery) -> bool:
        """Drop or dead-letter the message; False if that is void."""
        return self._reject(delivery, requeue=False)

    def _reject(self, delivery: Delivery, *, requeue: bool) -> bool:
        entry = self._open.get(delivery.generation)
        if entry is None:
            return False
        try:
            entry.channel.basic_reject(delivery.delivery_tag, requeue=requeue)
        except _GONE:
            return False
        entry.settle(delivery.delivery_tag)
        self._settled(entry, delivery)
        return True

    def _settled(self, entry: OpenChannel, delivery: Delivery) -> None:
        size = len(delivery.body)
        entry.unsettled_bytes -= size
        self.unsettled_bytes -= size

    def flush(self) -> None:
        """Tell the broker of all acknowledgements so far."""
        self._untold = 0
        for entry in list(self._open.values()):
            try:
                for tag, multiple in entry.take_untold():
                    entry.channel.basic_ack(tag, multiple=multiple)
            except _GONE:
                continue

    def _turn(self) -> None:
        self._quiet_turns += 1
        if self._untold >= MANY or self._quiet_turns > QUIET_TURNS:
            self.flush()
        elif self._untold:
            self._soon(self._turn)


class OpenChannel:
    """One channel, its settled tags, and the acknowledged ones that the broker does not know.

    Tags beyond the first gap are kept as ranges: a delivery that is held for minutes is one gap,
    however many deliveries pass it meanwhile.

    Attributes:
        channel: The channel.
        prefix: Every tag up to this one is settled.
        unsettled_bytes: The size of the bodies that are not settled.
        returns_at_close: Whether deliveries that are given back wait for the end of the channel.
    """

    __slots__ = (
        "_first",
        "_last",
        "_untold",
        "channel",
        "prefix",
        "returns_at_close",
        "unsettled_bytes",
    )

    def __init__(self, channel: TwistedChannel) -> None:
        self.channel = channel
        self.prefix = 0
        self.unsettled_bytes = 0
        self.returns_at_close = False
        self._untold: list[int] = []
        # The ranges beyond the prefix: the last tag by the first one, and the reverse.
        self._last: dict[int, int] = {}
        self._first: dict[int, int] = {}

    @property
    def settled_count(self) -> int:
        """The number of settled tags."""
        return self.prefix + sum(last - first + 1 for first, last in self._last.items())

    def ack(self, tag: int) -> None:
        """Note that *tag* is settled, and that the broker is to be told so."""
        self._untold.append(tag)
        self.settle(tag)

    def settle(self, tag: int) -> None:
        """Note that *tag* is settled, in whatever way."""
        if not self._last and tag == self.prefix + 1:
            self.prefix = tag
            return
        first = self._first.pop(tag - 1, tag)
        last = self._last.pop(tag + 1, tag)
        if first != tag:
            del self._last[first]
        if last != tag:
            del self._first[last]
        if first == self.prefix + 1:
            self.prefix = last
        else:
            self._last[first], self._first[last] = last, first

    def take_untold(self) -> list[tuple[int, bool]]:
        """Return the tags to acknowledge, and whether all before each are meant too."""
        untold, self._untold = self._untold, []
        within = [tag for tag in untold if tag <= self.prefix]
        beyond = [(tag, False) for tag in untold if tag > self.prefix]
        if not within:
            return beyond
        return [(max(within), len(within) > 1), *beyond]
