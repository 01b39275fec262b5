# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the deliveries with one ordering key in a lane, behind each other.

The head of a lane is the only delivery of it that may be in a slot, or held. The others wait here,
in the order in which the broker delivered them, until it has left: settled for good, or given to
the journal, where those behind follow it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .delivery import Delivery


class Lanes:
    """The lanes that have a head."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Delivery]] = {}
        self._followers = 0

    def __len__(self) -> int:
        """How many deliveries wait behind others."""
        return self._followers

    def __contains__(self, lane: str) -> bool:
        return lane in self._lanes

    def enter(self, delivery: Delivery) -> bool:
        """Put *delivery* into its lane.

        Returns:
            Whether it may go on: it is the head, or the head come back from where it was held.
        """
        lane = self._lanes.setdefault(delivery.lane, deque())
        if lane and not _is_same(lane[0], delivery):
            lane.append(delivery)
            self._followers += 1
            return False
        lane.appendleft(delivery) if not lane else None
        return True

    def leave(self, delivery: Delivery) -> Delivery | None:
        """Let the head of a lane leave it; returns the next head, None where there is none.

        Nothing happens where *delivery* is not the head.
        """
        lane = self._lanes.get(delivery.lane)
        if lane is None or not _is_same(lane[0], delivery):
            return None
        lane.popleft()
        if lane:
            self._followers -= 1
            return lane[0]
        del self._lanes[delivery.lane]
        return None

    def has_followers(self, lane: str) -> bool:
        """Whether anything waits behind the head of *lane*."""
        return len(self._lanes.get(lane, ())) > 1

    def followers(self, lane: str, *, of_journal: bool = True) -> list[Delivery]:
        """Remove and return what waits behind the head of *lane*.

        Args:
            lane: Its ordering key.
            of_journal: Those that came from the journal, too.
        """
        if lane not in self._lanes:
            return []
        return self._remove(lane, lambda follower: of_journal or not follower.row)

    def discard(self, generation: int) -> list[Delivery]:
        """Remove and return the followers that came on a channel that is gone.

        A head leaves when its own settle is void.
        """
        return [
            follower
            for name in self._lanes
            for follower in self._remove(name, lambda d: d.generation == generation)
        ]

    def _remove(self, lane: str, which: Callable[[Delivery], bool]) -> list[Delivery]:
        head, *followers = self._lanes[lane]
        gone = [follower for follower in followers if which(follower)]
        if gone:
            self._lanes[lane] = deque([head, *(d for d in followers if not which(d))])
            self._followers -= len(gone)
        return gone

    def clear(self, spared: Collection[str] = ()) -> list[Delivery]:
        """Remove and return everything that waits behind a head, but for some lanes."""
        names = [name for name in self._lanes if name not in spared]
        return [follower for name in names for follower in self.followers(name)]

    def behind_heads(self, which: Callable[[Delivery], bool]) -> set[str]:
        """Return the lanes in which a delivery waits that is meant."""
        return {name for name, (_, *rest) in self._lanes.items() if any(map(which, rest))}

    def stale(self, moment: float) -> list[str]:
        """The lanes in which a delivery of the broker's waits that came before *moment*."""
        return [
            name
            for name, (_, *rest) in self._lanes.items()
            if any(follower.arrived_at < moment and not follower.row for follower in rest)
        ]


def _is_same(one: Delivery, other: Delivery) -> bool:
    return (one.generation, one.delivery_tag, one.row) == (
        other.generation,
        other.delivery_tag,
        other.row,
    )
