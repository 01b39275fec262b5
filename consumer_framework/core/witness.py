# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the broker still has a consumer, from what it says of the queue now and then."""

from __future__ import annotations

from dataclasses import dataclass

# How many answers must agree: one may come in the middle of something.
ENOUGH = 2


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a queue.

    Attributes:
        consumers: How many the broker says that it has.
        ready: How many messages it says wait for one of them.
        delivered: How many messages came on our channel so far.
        has_room: Whether the broker may send another one, before any is settled.
    """

    consumers: int
    ready: int = 0
    delivered: int = 0
    has_room: bool = True


class Witness:
    """Judges one consumer from sights of its queue, the first of which is soon after it began.

    There are two signs that the consumer is gone. The queue has no consumer at all, though it once
    counted some: a stream always says 0. And, where others share the queue, and so hide its
    absence: messages were ready from one sight to the next, the broker was free to send them, and
    this consumer got none, though it did before.

    Args:
        takes_turns: Whether an idle consumer gets its share of the ready messages; not so where
            the queue has a single active consumer.
    """

    def __init__(self, *, takes_turns: bool) -> None:
        self._takes_turns = takes_turns
        self._counted = False
        self._first: Sight | None = None
        self._last: Sight | None = None
        self._signs = 0

    @property
    def is_absent(self) -> bool:
        """Whether the latest sights agree that the broker has no such consumer."""
        return self._signs >= ENOUGH

    def saw(self, sight: Sight) -> None:
        """Take another sight into account."""
        self._counted = self._counted or sight.consumers > 0
        gone = self._counted and (sight.consumers == 0 or self._is_passed_over(sight))
        self._signs = self._signs + 1 if gone else 0
        self._first = self._first or sight
        self._last = sight

    def _is_passed_over(self, sight: Sight) -> bool:
        first, last = self._first, self._last
        if first is None or last is None or not self._takes_turns:
            return False
        got_some = last.delivered > first.delivered
        got_none_since = sight.delivered == last.delivered
        could_have = last.ready > 0 and last.has_room and sight.ready > 0 and sight.has_room
        return got_some and got_none_since and could_have
