# SPDX-License-Identifier: GPL-2.0-or-later
"""A journal without a disk."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from consumer_framework.core.ports import Journal

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.errors import JournalError

    _Key: TypeAlias = tuple[str, str, str, bytes]


@dataclass(frozen=True, slots=True)
class _Row:
    key: _Key
    delivery: Delivery
    until: float | None = None
    reason: str = ""


class FakeJournal(Journal):
    """A :class:`.Journal` that keeps everything in memory.

    Attributes:
        error: What the disk says to every write; None while it works. A write that failed left
            nothing behind.
    """

    def __init__(self) -> None:
        self.error: JournalError | None = None
        self._rows: dict[int, _Row] = {}
        self._latest = 0

    async def defer(self, delivery: Delivery, until: float) -> None:
        """Keep *delivery* to run again at *until* seconds since the epoch."""
        await self._commit()
        self._put(_Row(_key(delivery), delivery, until))

    async def quarantine(self, delivery: Delivery, reason: str) -> None:
        """Keep *delivery* for an operator."""
        await self._commit()
        self._put(_Row(_key(delivery), delivery, None, reason))

    async def remove(self, row: int) -> None:
        """Forget a row."""
        await self._commit()
        self._rows.pop(row, None)

    def is_open(self, delivery: Delivery) -> bool:
        """Whether a row of this message waits."""
        return any(row.key == _key(delivery) for row in self._rows.values())

    def due(self, now: float, limit: int) -> list[Delivery]:
        """At most *limit* messages whose time has come at *now*, the longest due first."""
        waiting = [(row.until, n) for n, row in self._rows.items() if row.until is not None]
        due = sorted((until, number) for until, number in waiting if until <= now)
        return [self._rows[number].delivery for _, number in due[:limit]]

    def next_due(self) -> float | None:
        """When the next one is due, in seconds since the epoch; None for never."""
        return min((r.until for r in self._rows.values() if r.until is not None), default=None)

    @property
    def deferred(self) -> list[tuple[Delivery, float]]:
        """What is deferred and until when, in the order in which it first came."""
        rows = self._rows.values()
        return [(row.delivery, row.until) for row in rows if row.until is not None]

    @property
    def quarantined(self) -> list[tuple[Delivery, str]]:
        """What is quarantined and why, in the order in which it first came."""
        return [(row.delivery, row.reason) for row in self._rows.values() if row.until is None]

    async def _commit(self) -> None:
        # As with a disk, something else may happen before a write is done.
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    def _put(self, row: _Row) -> None:
        number = row.delivery.row
        if number not in self._rows:
            number = next((n for n, old in self._rows.items() if old.key == row.key), 0)
        if not number:
            number = self._latest = self._latest + 1
        key = self._rows[number].key if number in self._rows else row.key
        delivery = replace(
            row.delivery, generation=0, delivery_tag=number, row=number, replayed=False
        )
        self._rows[number] = replace(row, key=key, delivery=delivery)


def _key(delivery: Delivery) -> _Key:
    return delivery.queue, delivery.message_id, delivery.routing_key, delivery.body
