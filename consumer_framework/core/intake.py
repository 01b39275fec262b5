# SPDX-License-Identifier: GPL-2.0-or-later
"""The deliveries that wait for a slot, in the order of their arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .delivery import Delivery


class Intake:
    """A queue of deliveries whose channel may go while they wait.

    The broker bounds its length: it sends no more than ``prefetch_count`` unsettled deliveries
    on a channel.
    """

    def __init__(self) -> None:
        self._waiting: deque[Delivery] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, delivery: Delivery) -> None:
        """Append *delivery*; accepted after :meth:`close` too, for :meth:`clear` to return."""
        self._waiting.append(delivery)
        self._wake()

    def put_first(self, delivery: Delivery) -> None:
        """Let *delivery* be the next: it has waited its time already."""
        self._waiting.appendleft(delivery)
        self._wake()

    async def take(self) -> Delivery | None:
        """Wait for the next delivery and remove it.

        Returns:
            None once the intake is closed, whatever still waits in it.
        """
        while not self._closed:
            if self._waiting:
                return self._waiting.popleft()
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            await taker
        return None

    def discard(self, generation: int) -> int:
        """Forget what came on a channel that is gone: the broker will deliver it again.

        Returns:
            How many deliveries were forgotten.
        """
        before = len(self._waiting)
        self._waiting = deque(d for d in self._waiting if d.generation != generation)
        return before - len(self._waiting)

    def close(self) -> None:
        """Let no slot take a delivery any more."""
        self._closed = True
        while self._takers:
            self._wake()

    def clear(self) -> list[Delivery]:
        """Remove and return the deliveries that no slot took."""
        rest = list(self._waiting)
        self._waiting.clear()
        return rest

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return
