# SPDX-License-Identifier: GPL-2.0-or-later
"""No store: what an instance has that keeps nothing on a disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.core.errors import StoreError

from . import Store
from .files import MIGRATIONS
from .reader import Reader
from .records import Expired

if TYPE_CHECKING:
    from collections.abc import Iterable

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery

    from .retention import Limits


_NOWHERE = "there is no store to write to: give one with --state-dir"


class NoStore(Store):
    """A store that is always empty: its messages stay with the broker."""

    keeps = False

    def __init__(self) -> None:
        connection = sqlite3.connect(":memory:")
        for script in MIGRATIONS:
            connection.executescript(script)
        Reader.__init__(self, Path("memory"), connection)
        self._damaged = set()

    @property
    def commits(self) -> int:
        """None ever."""
        return 0

    def limit(self, limits: Limits) -> None:
        """Nothing is limited."""

    def close(self) -> None:
        """Forget nothing."""
        Reader.close(self)

    def is_open(self, _delivery: Delivery) -> bool:
        """Never."""
        return False

    def is_blocked(self, _lane: str, _row: int = 0) -> bool:
        """Never."""
        return False

    async def defer(self, _delivery: Delivery, _until: float) -> None:
        """Refuse it: the message stays with the broker."""
        raise StoreError(_NOWHERE)

    async def quarantine(self, _delivery: Delivery, _reason: str) -> None:
        """Refuse it: the message stays with the broker."""
        raise StoreError(_NOWHERE)

    async def remove(self, row: int) -> None:
        """No row is there."""

    async def drop(self, _ids: Iterable[int]) -> list[int]:
        """Drop nothing."""
        return []

    async def claim(self, _row: int) -> bool:
        """No row is there."""
        return False

    async def release(self, _row: int, _attempt: Attempt | None = None) -> bool:
        """No row is there."""
        return False

    async def resolve(self, _row: int) -> bool:
        """No row is there."""
        return False

    async def supersede(self, _row: int, _body: bytes) -> int | None:
        """No row is there."""
        return None

    async def expire(self, _now: float, export_to: Path | None = None, _most: float = 0) -> Expired:
        """Nothing expires."""
        return Expired(0, export_to or Path())
