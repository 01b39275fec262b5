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
    from .delivery import Delivery


class Lanes:
    """The lanes that have a head."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Delivery]] = {}

    def __len__(self) -> int:
        """How many deliveries wait behind others."""
        return sum(len(lane) - 1 for lane in self._lanes.values())

    def enter(self, delivery: Delivery) -> bool:
        """Put *delivery* into its lane.

        Returns:
            Whether it may go on: it is the head, or the head come back from where it was held.
        """
        lane = self._lanes.setdefault(delivery.lane, deque())
        if lane and not _is_same(lane[0], delivery):
            lane.append(delivery)
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
            return lane[0]
        del self._lanes[delivery.lane]
        return None

    def followers(self, lane: str, *, of_journal: bool = True) -> list[Delivery]:
        """Remove and return what waits behind the head of *lane*.

        Args:
            lane: Its ordering key.
            of_journal: Those that came from the journal, too.
        """
        found = self._lanes.get(lane)
        if found is None:
            return []
        head, *rest = found
        gone = [follower for follower in rest if of_journal or not follower.row]
        self._lanes[lane] = deque([head, *(d for d in rest if d not in gone)])
        return gone

    def discard(self, generation: int) -> int:
        """Forget the followers that came on a channel that is gone; returns how many those were.

        A head leaves when its own settle is void.
        """
        before = len(self)
        for name, lane in self._lanes.items():
            head, *rest = lane
            self._lanes[name] = deque([head, *(d for d in rest if d.generation != generation)])
        return before - len(self)

    def clear(self) -> list[Delivery]:
        """Remove and return everything that waits behind a head."""
        return [follower for name in list(self._lanes) for follower in self.followers(name)]

    def stale(self, moment: float) -> list[str]:
        """The lanes in which a delivery of the broker's waits that came before *moment*."""
        return [
            name
            for name, (_, *rest) in self._lanes.items()
            if any(follower.received_at < moment and not follower.row for follower in rest)
        ]


def _is_same(one: Delivery, other: Delivery) -> bool:
    return (one.generation, one.delivery_tag, one.row) == (
        other.generation,
        other.delivery_tag,
        other.row,
    )
