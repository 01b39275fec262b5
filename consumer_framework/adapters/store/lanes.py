# SPDX-License-Identifier: GPL-2.0-or-later
"""What keeps the rows of a lane in order.

The schema knows which rows wait for another one to leave (see ``lanes.sql``). Here is the rest:
nothing stays deferred behind a quarantined row, and the event loop knows at once which lanes have
any rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.ordering import behind

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    Changes = dict[str, bool]

LANE = "SELECT lane FROM messages WHERE id = ?"
FIRST_QUARANTINED = """SELECT id, position FROM messages INDEXED BY messages_quarantined_by_lane
    WHERE lane = ? AND lane <> '' AND state = 'quarantined' ORDER BY position LIMIT 1"""
# Where no attempt was made, the reason is the fingerprint.
QUARANTINE_BEHIND = """UPDATE messages INDEXED BY messages_deferred_by_lane
    SET state = 'quarantined', due = NULL, updated = :now, reason = :reason,
    fingerprint = CASE fingerprint WHEN reason THEN :reason ELSE fingerprint END
    WHERE lane = :lane AND lane <> '' AND state = 'deferred' AND position > :position"""
IS_USED = """SELECT 1 FROM messages INDEXED BY messages_by_lane
    WHERE lane = ? AND lane <> '' AND state <> 'superseded' LIMIT 1"""
USED = """SELECT DISTINCT lane FROM messages INDEXED BY messages_by_lane
    WHERE lane <> '' AND state <> 'superseded'"""

# Rows come and go in two ways only: whatever becomes of one in between, it stays open, or an
# edited copy is.
_WATCH = (
    """CREATE TEMP TRIGGER watch_joined AFTER INSERT ON main.messages WHEN NEW.lane <> ''
    BEGIN SELECT lane_touched(NEW.lane); END""",
    """CREATE TEMP TRIGGER watch_left AFTER DELETE ON main.messages WHEN OLD.lane <> ''
    BEGIN SELECT lane_touched(OLD.lane); END""",
)


def quarantine_followers(connection: sqlite3.Connection, lane: str, now: float) -> None:
    """Quarantine what is deferred behind a quarantined row of *lane*; it would never be due."""
    found = connection.execute(FIRST_QUARANTINED, (lane,)).fetchone() if lane else None
    if found is not None:
        number, position = found
        values = {"lane": lane, "position": position, "reason": behind(number), "now": now}
        connection.execute(QUARANTINE_BEHIND, values)


def lane_of(connection: sqlite3.Connection, number: int) -> str:
    """Return the lane of a row that is there."""
    lane: str = connection.execute(LANE, (number,)).fetchone()[0]
    return lane


class Lanes:
    """The lanes that have open rows, in memory: what every delivery is asked for.

    Args:
        connection: The one that writes.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._touched: set[str] = set()
        self._used = {lane for (lane,) in connection.execute(USED)}
        connection.create_function("lane_touched", 1, self._touch)
        for trigger in _WATCH:
            connection.execute(trigger)

    def __contains__(self, lane: str) -> bool:
        return lane in self._used

    def changes(self) -> Changes:
        """Return what the current transaction makes of the lanes; call it before the commit."""
        touched = set(self._touched)
        self._touched.clear()
        return {lane: self._is_used(lane) for lane in touched}

    def committed(self, changes: Changes) -> None:
        """Let *changes* be seen; call it after the commit."""
        self._used.update(_those(changes, used=True))
        self._used.difference_update(_those(changes, used=False))

    def _is_used(self, lane: str) -> bool:
        return self._connection.execute(IS_USED, (lane,)).fetchone() is not None

    def _touch(self, lane: str) -> None:
        self._touched.add(lane)


def _those(changes: Changes, *, used: bool) -> Iterable[str]:
    return (lane for lane, is_used in changes.items() if is_used == used)
