# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts acknowledgements of one channel together.

The broker numbers the deliveries of a channel 1, 2, 3 and so on. One ``basic.ack`` with
``multiple`` settles every delivery up to its tag (AMQP 0-9-1, section 1.8.3.13), so it may be sent
where all of those are settled, and for a tag that the broker was not told of before.
"""

from __future__ import annotations


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
