# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a store, for the instance that writes it and for any other process."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import DamagedRowError, StoreError
from consumer_framework.core.ordering import Blocker

from . import ramps
from .export import damaged_line_of, line_of
from .files import described
from .matching import columns_for, fits
from .records import Group, Row, State, Stats, delivery_of, in_lane_order, key_of, text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from consumer_framework.core.conditions import Condition
    from consumer_framework.core.delivery import Delivery

    from .ramps import StoredRamp

# A superseded row has another key: its child answers for both.
IS_OPEN = "SELECT 1 FROM messages WHERE queue = ? AND key = ?"
# Named, for SQLite prefers the index by state where it has not counted the rows.
DUE = """SELECT * FROM messages INDEXED BY messages_by_due
    WHERE state = 'deferred' AND waits = 0 AND due <= ?
    AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY due LIMIT ?"""
DUE_NUMBERS = DUE.replace("*", "id", 1)
NEXT_DUE = """SELECT due FROM messages INDEXED BY messages_by_due
    WHERE state = 'deferred' AND waits = 0
    AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY due LIMIT 1"""
COUNT_DUE = """SELECT count(*) FROM messages INDEXED BY messages_by_due
    WHERE state = 'deferred' AND waits = 0 AND due <= ?"""
FIRST = """SELECT id, state, due FROM messages INDEXED BY messages_by_lane
    WHERE lane = ? AND lane <> '' AND state <> 'superseded' AND position < ?
    ORDER BY position LIMIT 1"""
_IN_ORDER = """SELECT m.id, m.lane FROM json_each(?) AS wanted JOIN messages AS m
    ON m.id = wanted.value WHERE m.lane <> '' ORDER BY m.position"""
POSITION = "SELECT position FROM messages WHERE id = ?"
LAST_DUE = "SELECT max(due) FROM messages WHERE state = 'deferred'"
ATTEMPTS = """SELECT row_id, at, error, message, traceback, fingerprint, route FROM attempts
    WHERE row_id IN (SELECT value FROM json_each(?)) ORDER BY id"""

_LATEST = """FROM messages AS m LEFT JOIN attempts AS a
    ON a.id = (SELECT max(id) FROM attempts WHERE row_id = m.id)"""
_ROW = f"""SELECT m.id, m.state, m.queue, m.exchange, m.routing_key, m.message_id,
    length(m.body) AS size, m.due, m.reason, m.fingerprint,
    (SELECT count(*) FROM attempts WHERE row_id = m.id) AS attempts,
    coalesce(a.error, '') AS error, coalesce(a.message, '') AS message,
    m.crashes, m.created, m.updated, m.parent, m.lane,
    CASE WHEN m.waits = 1 AND m.state <> 'superseded' THEN
        (SELECT f.id FROM messages AS f WHERE f.lane = m.lane AND f.lane <> ''
        AND f.state <> 'superseded' ORDER BY f.position LIMIT 1) END AS behind, m.ordered_by,
    m.position
    {_LATEST}"""  # noqa: S608 -- of constants
_GROUPS = """SELECT fingerprint, count(*), min(created), max(updated), min(id) FROM messages
    WHERE state = 'quarantined' AND (?1 IS NULL OR id IN (SELECT value FROM json_each(?1)))
    GROUP BY fingerprint ORDER BY count(*) DESC, fingerprint"""
_TEXTS = """SELECT count(DISTINCT a.message) FROM messages AS m JOIN attempts AS a
    ON a.id = (SELECT max(id) FROM attempts WHERE row_id = m.id)
    WHERE m.state = 'quarantined' AND m.fingerprint = ?2
    AND (?1 IS NULL OR m.id IN (SELECT value FROM json_each(?1)))"""
_OLDEST = "SELECT min(updated) FROM messages WHERE state = 'quarantined'"
# The routes of a consumer are in the history of a row.
STEPS = """SELECT s.name, s.result FROM messages AS m JOIN steps AS s
    ON s.key = CASE m.message_id WHEN '' THEN m.key ELSE substr(m.key, 1, 32) END
    WHERE m.id = ? AND s.name NOT LIKE 'route:%' ORDER BY s.rowid"""
BLOCKED_LANES = """SELECT count(*) FROM messages INDEXED BY messages_blocking
    WHERE lane <> '' AND state = 'quarantined' AND waits = 0"""

_LAST = 2**63 - 1
# Bytes that one read of due messages returns at most, except that it always returns one message.
DUE_BYTES = 8 << 20


class Reader:
    """Reads a store. Every method raises :class:`.StoreError` where the disk fails.

    It sees every write that was committed before the call, and never delays the writer.

    Args:
        file: The database, for error messages.
        connection: Belongs to the reader from now on; :meth:`close` closes it.
    """

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self._file = file
        self._connection = connection
        connection.row_factory = sqlite3.Row

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def is_open(self, delivery: Delivery) -> bool:
        """Tell whether this message has a deferred, quarantined or replaying row."""
        return bool(self._select(IS_OPEN, delivery.queue, key_of(delivery)))

    def due(self, now: float, limit: int = 100, out: Collection[int] = ()) -> list[Delivery]:
        """Return the deferred messages that are due at *now*, the longest due first.

        Of each lane that is at most the first row: the next one is due when the first is gone.

        Args:
            now: Seconds since the epoch.
            limit: Return so many at most, and no more than :data:`DUE_BYTES`. A row stays due, and
                is returned again, until it is removed, or written with another state or time.
            out: Rows to leave out, since the caller has them already.
        """
        wanted = now, json.dumps([*out]), limit
        try:
            return self._due(*wanted)
        except StoreError:
            return self._due_one_by_one(*wanted)

    def _due(self, now: float, out: str, limit: int) -> list[Delivery]:
        rows: list[Any] = []
        size = 0
        with self._cursor(DUE, now, out, limit) as cursor:
            for row in cursor:
                rows.append(row)
                size += row["kept"]
                if size >= DUE_BYTES:
                    break
        attempts = self._attempts(rows)
        found = (self._sound(partial(delivery_of, r, attempts[r["id"]])) for r in rows)
        return [delivery for delivery in found if delivery is not None]

    def _due_one_by_one(self, now: float, out: str, limit: int) -> list[Delivery]:
        """Leave out the rows that SQLite cannot read."""
        numbers = self._select(DUE_NUMBERS, now, out, limit)
        found = (self._sound(partial(self.delivery, number)) for (number,) in numbers)
        return [delivery for delivery in found if delivery is not None]

    def _sound(self, read: Callable[[], Delivery | None]) -> Delivery | None:
        try:
            return read()
        except DamagedRowError as error:
            self._found_damaged(error)
            return None

    def _found_damaged(self, error: DamagedRowError) -> None:
        """Do nothing about a deferred row that cannot be read: only the writer can."""

    def next_due(self, out: Collection[int] = ()) -> float | None:
        """Return the time of the next due message, in seconds since the epoch; None for none.

        Args:
            out: Rows to leave out, since the caller has them already.
        """
        found = self._select(NEXT_DUE, json.dumps([*out]))
        return found[0][0] if found else None

    def count_due(self, now: float) -> int:
        """Return the number of messages that are due at *now*."""
        count: int = self._select(COUNT_DUE, now)[0][0]
        return count

    def is_blocked(self, lane: str, row: int = 0) -> bool:
        """Tell whether an open row of *lane* stands before *row*; any row stands before row 0."""
        return self.blocked_by(lane, row) is not None

    def blocked_by(self, lane: str, row: int = 0) -> Blocker | None:
        """Return the first open row of *lane*, None where none stands before *row*.

        Args:
            lane: An ordering key. "" is no lane, and no row stands before its rows.
            row: The number of a row, 0 for a message that has none yet.
        """
        found = self._select(FIRST, text(lane), self._position(row)) if lane else None
        return Blocker(*found[0]) if found else None

    def _position(self, row: int) -> int:
        found = self._select(POSITION, row) if row else [(_LAST,)]
        position: int = found[0][0] if found else row
        return position

    def last_due(self) -> float | None:
        """Return the time when the last deferred message is due; None where there is none."""
        when: float | None = self._select(LAST_DUE)[0][0]
        return when

    def rows(  # noqa: PLR0913 -- one for each option
        self,
        *,
        state: State | None = "quarantined",
        fingerprint: str | None = None,
        queue: str | None = None,
        topic: str | None = None,
        after: int | None = None,
        limit: int = -1,
        where: Sequence[Condition] = (),
        now: float = 0.0,
    ) -> list[Row]:
        """Return the rows that match, in the order in which they were first written.

        Args:
            state: The state; None for any.
            fingerprint: The fingerprint of the latest attempt; None for any.
            queue: The queue; None for any.
            topic: A shell pattern (``org.fedoraproject.*.bodhi.*``); None for any.
            after: Return rows with greater numbers; None for all.
            limit: Return so many at most, -1 for all.
            where: Conditions that all hold; see :data:`.conditions.STORED_ROOTS`.
            now: Seconds since the epoch, for conditions on the age.
        """
        wanted = {
            "m.state = ?": state,
            "m.fingerprint = ?": fingerprint,
            "m.queue = ?": queue,
            "m.routing_key GLOB ?": topic,
            "m.id > ?": after,
        }
        chosen = {term: value for term, value in wanted.items() if value is not None}
        if where:
            found = self._matching(where, chosen, now)
            numbers = list(islice(found, None if limit < 0 else limit))
            chosen = {"m.id IN (SELECT value FROM json_each(?))": json.dumps(numbers)}
        terms = " AND ".join(chosen) or "TRUE"
        query = f"{_ROW} WHERE {terms} ORDER BY m.id LIMIT ?"
        return [_row_of(row) for row in self._select(query, *chosen.values(), limit)]

    def matching(self, where: Sequence[Condition], now: float) -> list[int]:
        """Return the numbers of the quarantined rows for which all conditions *where* hold.

        The messages are read one by one, so that the memory does not grow with their number.
        """
        return list(self._matching(where, {"m.state = ?": "quarantined"}, now))

    def _matching(
        self, where: Sequence[Condition], chosen: Mapping[str, object], now: float
    ) -> Iterator[int]:
        terms = " AND ".join(chosen) or "TRUE"
        query = f"SELECT {columns_for(where)} {_LATEST} WHERE {terms} ORDER BY m.id"
        with self._cursor(query, *chosen.values()) as cursor:
            for row in cursor:
                if fits(row, where, now):
                    yield row["id"]

    def row(self, number: int) -> Row | None:
        """Return row *number*, None where there is none."""
        found = self._select(f"{_ROW} WHERE m.id = ?", number)
        return _row_of(found[0]) if found else None

    def steps(self, number: int) -> dict[str, Any]:
        """Return the steps of an author's handler that are done for row *number*, with results."""
        found = self._select(STEPS, number)
        return {name: json.loads(result) for name, result in found}

    def delivery(self, number: int) -> Delivery | None:
        """Return the message of row *number*, with its whole history; None where there is none.

        Raises:
            DamagedRowError: The row differs from the row that was written.
        """
        try:
            found = self._select("SELECT * FROM messages WHERE id = ?", number)
            attempts = self._attempts(found)
        except StoreError as error:
            if not error.lasting:
                # The disk may work again.
                raise
            raise DamagedRowError(number, str(error)) from error
        return delivery_of(found[0], attempts[number]) if found else None

    def in_lane_order(self, numbers: Iterable[int]) -> list[int]:
        """Sort the rows of each lane, in the places that the lane has among *numbers*."""
        given = list(numbers)
        return in_lane_order(given, self._select(_IN_ORDER, json.dumps(given)))

    def groups(self, where: Sequence[Condition] = (), now: float = 0.0) -> list[Group]:
        """Return the causes of quarantined messages, the most frequent first.

        Args:
            where: Count only messages for which all these conditions hold.
            now: Seconds since the epoch, for conditions on the age.
        """
        among = json.dumps(self.matching(where, now)) if where else None
        groups = []
        for fingerprint, count, first, last, number in self._select(_GROUPS, among):
            sample = self.row(number)
            # None, where the writer deleted it since.
            if sample is not None:
                others = max(self._select(_TEXTS, among, fingerprint)[0][0] - 1, 0)
                groups.append(Group(fingerprint, count, first, last, sample, others))
        return groups

    def ramp(self) -> StoredRamp | None:
        """Return the replay in stages that is under way or was interrupted; None for none."""
        found = self._select(ramps.PLAN)
        return ramps.ramp_of(found[0], self._select(ramps.ROWS)) if found else None

    def stats(self) -> Stats:
        """Return the number of messages in each state; takes no longer for many messages."""
        totals = {state: (rows, size) for state, rows, size in self._select("SELECT * FROM totals")}
        rows = {state: count for state, (count, _) in totals.items()}
        return Stats(
            **rows,
            bytes=sum(size for _, size in totals.values()),
            oldest=self._select(_OLDEST)[0][0],
            next_due=self.next_due(),
            blocked_lanes=self._select(BLOCKED_LANES)[0][0],
        )

    def export(self, ids: Iterable[int]) -> Iterator[str]:
        r"""Yield messages in fedora-messaging's JSON-lines format, each line with its ``\n``.

        Split them at ``\n`` alone. Bytes that are no valid message are exported without ``body``
        and ``headers``: ``body_base64`` and ``properties`` have the received message. A damaged row
        is exported as far as it can be read, with the reason. A row that is gone is left out.
        """
        for number in ids:
            try:
                delivery = self.delivery(number)
            except DamagedRowError as error:
                yield self.damaged_line(error)
                continue
            if delivery is not None:
                yield line_of(delivery)

    def damaged_line(self, error: DamagedRowError) -> str:
        """Return the rest of a damaged row as one line of JSON, which is no message."""
        found: list[Any] = []
        with suppress(StoreError):
            found = self._select("SELECT * FROM messages WHERE id = ?", error.row)
        return damaged_line_of(error, found[0] if found else None)

    def _attempts(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, list[tuple[Any, ...]]]:
        attempts: dict[int, list[tuple[Any, ...]]] = {row["id"]: [] for row in rows}
        for number, *columns in self._select(ATTEMPTS, json.dumps([*attempts])):
            attempts[number].append(tuple(columns))
        return attempts

    def _select(self, query: str, *values: object) -> list[Any]:
        with self._cursor(query, *values) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _cursor(self, query: str, *values: object) -> Iterator[sqlite3.Cursor]:
        with described(self._file), closing(self._connection.execute(query, values)) as cursor:
            yield cursor


def _row_of(values: Iterable[Any]) -> Row:
    # Topics that are no UTF-8 were once kept as bytes.
    columns: Any = (text(value) if isinstance(value, bytes) else value for value in values)
    return Row(*columns)
