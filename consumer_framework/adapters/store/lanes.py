# SPDX-License-Identifier: GPL-2.0-or-later
"""Lanes: rows with the same ordering key, which run in the order in which they arrived.

The schema knows which rows wait for an earlier row of their lane (``lanes.sql``). This module does
the rest: it quarantines deferred rows behind a quarantined row, and it tells the event loop
without a read which lanes have rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.ordering import behind

if TYPE_CHECKING:
    import sqlite3

    # Lanes, and whether they have open rows now.
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

# A lane gets or loses an open row only by an insertion or a deletion: between these, either the row
# itself is open, or an edited copy of it.
_WATCH = (
    """CREATE TEMP TRIGGER watch_joined AFTER INSERT ON main.messages WHEN NEW.lane <> ''
    BEGIN SELECT lane_touched(NEW.lane); END""",
    """CREATE TEMP TRIGGER watch_left AFTER DELETE ON main.messages WHEN OLD.lane <> ''
    BEGIN SELECT lane_touched(OLD.lane); END""",
)


def quarantine_followers(connection: sqlite3.Connection, lane: str, now: float) -> None:
    """Quarantine the deferred rows behind a quarantined row of *lane*: they would never be due."""
    found = connection.execute(FIRST_QUARANTINED, (lane,)).fetchone() if lane else None
    if found is not None:
        number, position = found
        values = {"lane": lane, "position": position, "reason": behind(number), "now": now}
        connection.execute(QUARANTINE_BEHIND, values)


def lane_of(connection: sqlite3.Connection, number: int) -> str:
    """Return the lane of an existing row."""
    lane: str = connection.execute(LANE, (number,)).fetchone()[0]
    return lane


class Lanes:
    """The lanes that have open rows, in memory: every delivery is looked up here.

    Args:
        connection: The connection of the writer.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._touched: set[str] = set()
        self._used = {lane for (lane,) in connection.execute(USED)}
        connection.create_function("lane_touched", 1, self._touched.add)
        for trigger in _WATCH:
            connection.execute(trigger)

    def __contains__(self, lane: str) -> bool:
        return lane in self._used

    def changes(self) -> Changes:
        """Return the changes by the current transaction; call it before the commit."""
        touched = set(self._touched)
        self._touched.clear()
        return {lane: self._is_used(lane) for lane in touched}

    def committed(self, changes: Changes) -> None:
        """Show *changes* to the event loop; call it after the commit."""
        self._used.update(lane for lane, is_used in changes.items() if is_used)
        self._used.difference_update(lane for lane, is_used in changes.items() if not is_used)

    def _is_used(self, lane: str) -> bool:
        return self._connection.execute(IS_USED, (lane,)).fetchone() is not None
