# SPDX-License-Identifier: GPL-2.0-or-later
"""A store without a disk."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from consumer_framework.core.memory import EqualMessages
from consumer_framework.core.ordering import Blocker, behind
from consumer_framework.core.ports import RecordedStep, Store

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.errors import StoreError

    _Key: TypeAlias = tuple[str, str, str, bytes, str]
    # A message; one without an id by its channel and tag, or by its row.
    _StepKey: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    key: _Key
    delivery: Delivery
    until: float | None = None
    reason: str = ""


class FakeStore(Store):
    """A :class:`.Store` that keeps everything in memory.

    Attributes:
        error: The error of every write; None while the disk works. A write that failed left
            nothing behind.
    """

    def __init__(self) -> None:
        self.error: StoreError | None = None
        self._rows: dict[int, _Row] = {}
        self._equal = EqualMessages()
        self._latest = 0
        # Handlers do their steps in threads.
        self._lock = threading.Lock()
        self._steps: dict[_StepKey, dict[str, str]] = {}
        self._failed: dict[_StepKey, dict[str, str]] = {}

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
        self.drop(row)

    async def rebase(self, now: float) -> int:  # noqa: ARG002 -- as the port has it
        """Return 0: this store does not know when its rows were written."""
        await self._commit()
        return 0

    def drop(self, row: int) -> None:
        """Forget a row at once, as an operator orders it."""
        gone = self._rows.pop(row, None)
        if gone is not None and not any(gone.key == other.key for other in self._rows.values()):
            self._steps.pop(_step_key(gone.delivery, gone.key), None)

    def is_open(self, delivery: Delivery) -> bool:
        """Tell whether a row of this message waits."""
        return self._equal.is_known(delivery, self._has_equal)

    def _has_equal(self, delivery: Delivery) -> bool:
        return any(row.key == _key(delivery) for row in self._rows.values())

    def due(self, now: float, limit: int, out: Collection[int] = ()) -> list[Delivery]:
        """Return at most *limit* messages that are due at *now*, the longest due first."""
        due = sorted(waiting for waiting in self._waiting(out) if waiting[0] <= now)
        return [self._rows[number].delivery for _, number in due[:limit]]

    def next_due(self, out: Collection[int] = ()) -> float | None:
        """Return the time of the next due row, in seconds since the epoch; None for never."""
        return min((until for until, _ in self._waiting(out)), default=None)

    def is_blocked(self, lane: str, row: int = 0) -> bool:
        """Tell whether a row of *lane* stands before *row*; before row 0, any one does."""
        return self.blocked_by(lane, row) is not None

    def blocked_by(self, lane: str, row: int = 0) -> Blocker | None:
        """Return the first row of *lane*, None if none stands before *row*."""
        first = min(self._lane(lane), default=None)
        if first is None or (row and first >= row):
            return None
        until = self._rows[first].until
        return Blocker(first, "quarantined" if until is None else "deferred", until)

    def begin_process(self) -> None:
        """Forget the memory of the former process."""
        self._failed.clear()

    def steps_of(self, delivery: Delivery) -> Mapping[str, RecordedStep]:
        """Return the steps of the message that are done, by name."""
        self.has_steps = True
        key = self._steps_key(delivery)
        with self._lock:
            failed = dict(self._failed.get(key, {}))
            steps = dict(self._steps.get(key, {}))
        found = {name: RecordedStep(result, is_durable=False) for name, result in failed.items()}
        return found | {name: RecordedStep(result) for name, result in steps.items()}

    def record_step(self, delivery: Delivery, name: str, result: str) -> Future[None]:
        """Record a step at once, unless there is an :attr:`error`."""
        self.has_steps = True
        key = self._steps_key(delivery)
        steps = self._steps if self.error is None else self._failed
        with self._lock:
            steps.setdefault(key, {}).setdefault(name, result)
        done: Future[None] = Future()
        if self.error is None:
            done.set_result(None)
        else:
            done.set_exception(self.error)
        return done

    def settled(self, delivery: Delivery, *, stays: bool) -> None:
        """Forget the steps of a message that is settled for good."""
        if not (stays or delivery.row):
            self._steps.pop(self._steps_key(delivery), None)

    def _steps_key(self, delivery: Delivery) -> _StepKey:
        row = self._rows.get(delivery.row)
        return _step_key(delivery, _key(delivery) if row is None else row.key)

    @property
    def deferred(self) -> list[tuple[Delivery, float]]:
        """The deferred messages, each with its time, in the order in which they first came."""
        rows = self._rows.values()
        return [(row.delivery, row.until) for row in rows if row.until is not None]

    @property
    def quarantined(self) -> list[tuple[Delivery, str]]:
        """The quarantined messages, each with its reason, in the order in which they first came."""
        return [(row.delivery, row.reason) for row in self._rows.values() if row.until is None]

    async def _commit(self) -> None:
        # As with a disk, something else may happen before a write is done.
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    def _waiting(self, out: Collection[int]) -> list[tuple[float, int]]:
        """Return the due time and number of each deferred row that is the first of its lane."""
        first: dict[str, int] = {}
        for number, row in sorted(self._rows.items()):
            first.setdefault(row.delivery.lane, number)
        return [
            (row.until, number)
            for number, row in self._rows.items()
            if row.until is not None
            and number not in out
            and (not row.delivery.lane or first[row.delivery.lane] == number)
        ]

    def _lane(self, lane: str) -> list[int]:
        return [n for n, row in self._rows.items() if lane and row.delivery.lane == lane]

    def _quarantine_followers(self, lane: str) -> None:
        rows = sorted(self._lane(lane))
        first = next((number for number in rows if self._rows[number].until is None), None)
        for number in rows:
            row = self._rows[number]
            if first is not None and number > first and row.until is not None:
                self._rows[number] = replace(row, until=None, reason=behind(first))

    def _put(self, row: _Row) -> None:
        number = row.delivery.row
        if number and number not in self._rows:
            # It was dropped while it ran.
            return
        is_another = self._equal.is_another(row.delivery)
        if not number and not is_another:
            number = next((n for n, old in self._rows.items() if old.key == row.key), 0)
        if number not in self._rows:
            number = self._latest = self._latest + 1
        first = self._rows.get(number, row)
        delivery = row.delivery._replace(
            generation=0,
            delivery_tag=number,
            row=number,
            lane=first.delivery.lane,
            replayed=False,
            arrived_at=0.0,
        )
        self._rows[number] = replace(row, key=first.key, delivery=delivery)
        self._quarantine_followers(delivery.lane)


def _key(delivery: Delivery) -> _Key:
    headers = repr(delivery.published_headers)
    return delivery.queue, delivery.message_id, delivery.routing_key, delivery.body, headers


def _step_key(delivery: Delivery, key: _Key) -> _StepKey:
    if delivery.message_id:
        # Whatever queue it came from.
        return key[1:]
    return key if delivery.row else (delivery.generation, delivery.delivery_tag)
