# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts acknowledgements of one channel together.

The broker numbers the deliveries of a channel 1, 2, 3 and so on. One ``basic.ack`` with
``multiple`` settles every delivery up to its tag (AMQP 0-9-1, section 1.8.3.13), so it may be sent
where all of those are settled, and for a tag that the broker was not told of before.
"""

from __future__ import annotations


class Acks:
    """What is settled on one channel, and what of it the broker was not told yet."""

    def __init__(self) -> None:
        # Every delivery up to this tag is settled.
        self._prefix = 0
        # Settled beyond it.
        self._settled: set[int] = set()
        self._untold: list[int] = []

    def ack(self, tag: int) -> None:
        """Note that the broker is to be told that *tag* is done with."""
        self._untold.append(tag)
        self.settled(tag)

    def settled(self, tag: int) -> None:
        """Note that *tag* is settled, in whatever way."""
        if tag == self._prefix + 1:
            self._prefix = tag
            while self._settled and self._prefix + 1 in self._settled:
                self._prefix += 1
                self._settled.remove(self._prefix)
        else:
            self._settled.add(tag)

    def take(self) -> list[tuple[int, bool]]:
        """Return what to tell the broker: tags, and whether all before them are meant too."""
        untold, self._untold = self._untold, []
        within = [tag for tag in untold if tag <= self._prefix]
        beyond = [(tag, False) for tag in untold if tag > self._prefix]
        if not within:
            return beyond
        return [(max(within), len(within) > 1), *beyond]
