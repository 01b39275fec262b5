# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of the outbox, in SQLite, PostgreSQL or MariaDB. No broker and no policy is known here.

A row is a message that was accepted for publishing. An application inserts rows in its own
transaction (:func:`insert`). A relay claims rows for a time (:meth:`.Claims.claim`), sends them,
and settles them (:meth:`.Claims.settle`): it deletes a row only after the broker has confirmed the
message. If the relay dies, its claims end, and the rows are claimed again.

- :mod:`.tables` has the columns, the states of a row, and :func:`insert`.
- :mod:`.database` has engines, transactions and migrations.
- :mod:`.claims` is the table for relays.
- This file adds the rest of a publisher's interface, and that of an operator.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from .claims import LONGEST_CLAIM, Claims, Settled, Waker, free
from .database import create_engine
from .message import DEAD, DISCARDED, WAITING, OutboxError
from .tables import (
    MESSAGE,
    Claimed,
    Row,
    c,
    counts_table,
    insert,
    insert_into_file,
    outbox_table,
    parts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .message import Outgoing

__all__ = [
    "DEAD",
    "WAITING",
    "Claimed",
    "OutboxError",
    "OutboxStats",
    "OutboxStore",
    "Row",
    "Settled",
    "Waker",
    "create_engine",
    "insert",
]

# Rows that one statement of an operator's command changes, so that no lock is held for long.
PORTION = 1000
# Seconds for which a row says that it is discarded: several looks of its publisher.
_TELLING = 1.0
# Statistics of a table count no further than this, because counting is a scan.
COUNTED = 1_000_000
_ROWS = sa.select(*MESSAGE, c.state, c.reason, c.due, c.claimed_until)


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """The contents of the outbox at one moment.

    Attributes:
        waiting: The number of rows to send, counted up to a million.
        retrying: Those of them that failed, or are behind one that failed; counted likewise.
        dead: The number of rows that can never be sent, counted likewise.
        oldest: When the oldest waiting message was published, in seconds since the epoch, or None.
            Of the rows that are retried, the ten thousand that are due first are regarded.
        counts: Totals since the table was made, by name: ``sent``, ``skipped``, ``unroutable``.
    """

    waiting: int
    retrying: int
    dead: int
    oldest: float | None
    counts: Mapping[str, int]


class OutboxStore(Claims):
    """The outbox's table in one database. Several threads may use it at once.

    Args:
        engine: An application's engine, whose connections the store uses as well. Of a SQLite file
            the store opens connections of its own.

    Raises:
        ConfigurationError: The database is none that an outbox can be in.
    """

    # For publishers

    def insert(self, connection: sa.Connection, messages: Iterable[tuple[Outgoing, str]]) -> None:
        """Insert *messages* in the transaction of *connection*: see :func:`insert`."""
        insert(connection, messages)

    def put(self, messages: Iterable[tuple[Outgoing, str]]) -> None:
        """Insert *messages* in a transaction of their own, and commit it.

        Raises:
            OutboxError: None of them was stored.
        """
        if self.is_sqlite:
            with self.file_transaction() as driver:
                insert_into_file(driver, messages)
            return
        with self.transaction() as connection:
            insert(connection, messages)

    def state_of(self, message_id: str, since_row: int) -> tuple[str, str] | None:
        """Return the state and the reason of a row, or None if there is none any more.

        Args:
            message_id: The id of its message.
            since_row: The row is after this one: see :meth:`last_row`.
        """
        statement = (
            sa.select(c.state, c.reason)
            .where(c.id > since_row, c.message_id == message_id)
            .order_by(c.id)
            .limit(1)
        )
        with self.reading() as connection:
            found = connection.execute(statement).first()
        return None if found is None else (found.state, found.reason or "")

    def last_row(self) -> int:
        """Return the highest id in the table, 0 if it is empty."""
        with self.reading() as connection:
            return int(connection.scalar(sa.select(sa.func.max(c.id))) or 0)

    # For operators

    def stats(self) -> OutboxStats:
        """Count the rows."""

        def counted(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
            some = sa.select(sa.literal(1).label("one")).where(*where).limit(COUNTED).subquery()
            return sa.select(sa.func.count()).select_from(some).scalar_subquery()

        waiting = c.state == WAITING
        failed = sa.select(c.created).where(waiting, c.due > 0)
        failed_first = failed.order_by(c.due, c.id).limit(10_000).subquery()
        new = sa.select(c.created).where(waiting, c.due == 0).order_by(c.id).limit(1)
        numbers = sa.select(
            counted(waiting),
            counted(waiting, c.due > 0),
            counted(c.state == DEAD),
            sa.select(sa.func.min(failed_first.c.created)).scalar_subquery(),
            new.scalar_subquery(),
        )
        with self.reading() as connection:
            waiting_, retrying, dead, *ages = connection.execute(numbers).one()
            counts = {row.name: row.value for row in connection.execute(sa.select(counts_table))}
        oldest = min((age for age in ages if age is not None), default=None)
        return OutboxStats(waiting_, retrying, dead, oldest, counts)

    def rows(
        self,
        state: str | None = None,
        *,
        after_row: int = 0,
        limit: int = 100,
        message_id: str | None = None,
        accept: Callable[[Row], bool] = lambda _row: True,
    ) -> list[Row]:
        """Return rows in the order of their ids.

        Args:
            state: ``"waiting"``, ``"dead"``, or None for both.
            after_row: Begin after this id.
            limit: The number of rows at most.
            message_id: Only rows with this message id; None for all.
            accept: Only the rows for which it returns true.
        """
        found: list[Row] = []
        while len(found) < limit:
            where = [c.id > after_row]
            if state is not None:
                where.append(c.state == state)
            if message_id is not None:
                where.append(c.message_id == message_id)
            with self.reading() as connection:
                statement = _ROWS.where(*where).order_by(c.id).limit(min(limit, PORTION))
                portion = [_row(row) for row in connection.execute(statement)]
            found += [row for row in portion if accept(row)]
            if len(portion) < min(limit, PORTION):
                break
            after_row = portion[-1].row
        return found[:limit]

    def show(self, row: int) -> Row | None:
        """Return the row with the id *row*, or None."""
        with self.reading() as connection:
            found = connection.execute(_ROWS.where(c.id == row)).first()
        return None if found is None else _row(found)

    def export(self, state: str | None = None) -> Iterator[Row]:
        """Yield every row, in the order of their ids. No transaction stays open meanwhile."""
        after = 0
        while portion := self.rows(state, after_row=after, limit=100):
            yield from portion
            after = portion[-1].row

    def retry(self, rows: Iterable[int] | None = None) -> int:
        """Make rows due at once; dead ones wait again. Rows that a relay has are left alone.

        Args:
            rows: Their ids; None for every dead row.

        Returns:
            The number of rows.
        """
        values = {"state": WAITING, "due": 0.0, "claimed_by": None, "claimed_until": None}
        return self._change(
            rows, DEAD, lambda ids: sa.update(outbox_table).where(ids).values(values)
        )

    def discard(self, rows: Iterable[int]) -> int:
        """Delete rows, with their messages, that no relay has. Returns their number.

        A row that is gone means "sent" to a publisher that waits for it. So such rows say for a
        moment that they are discarded.
        """
        chosen = list(rows)
        told = sa.update(outbox_table).values(state=DEAD, reason=DISCARDED)
        awaited = sa.and_(c.state == WAITING, c.on_failure == "wait")
        if self._change(chosen, None, lambda ids: told.where(ids, awaited)):
            time.sleep(_TELLING)
        return self._change(chosen, None, lambda ids: sa.delete(outbox_table).where(ids))

    def purge(self, state: str = DEAD, *, before: float | None = None) -> int:
        """Delete every row in *state*, or those published *before* a time of the epoch."""
        older = None if before is None else c.created < before
        return self._change(None, state, lambda ids: sa.delete(outbox_table).where(ids), older)

    def _change(
        self,
        rows: Iterable[int] | None,
        state: str | None,
        statement: Callable[[sa.ColumnElement[bool]], sa.Update | sa.Delete],
        where: sa.ColumnElement[bool] | None = None,
    ) -> int:
        changed = 0
        for portion in self._portions(rows, state, where):
            now = time.time()
            unclaimed = [c.id.in_(portion), free(now, now + LONGEST_CLAIM)]
            if rows is None:
                # Again, since somebody else may have changed a row meanwhile.
                unclaimed += self._chosen(state, where)
            with self.transaction() as connection:
                changed += connection.execute(statement(sa.and_(*unclaimed))).rowcount
        return changed

    def _portions(
        self,
        rows: Iterable[int] | None,
        state: str | None,
        where: sa.ColumnElement[bool] | None,
    ) -> Iterator[list[int]]:
        if rows is not None:
            ids = list(rows)
            yield from (ids[start : start + PORTION] for start in range(0, len(ids), PORTION))
            return
        after = 0
        while True:
            some = sa.select(c.id).where(c.id > after, *self._chosen(state, where))
            with self.reading() as connection:
                portion = list(connection.scalars(some.order_by(c.id).limit(PORTION)))
            if not portion:
                return
            after = portion[-1]
            yield portion

    @staticmethod
    def _chosen(
        state: str | None, where: sa.ColumnElement[bool] | None
    ) -> list[sa.ColumnElement[bool]]:
        chosen: list[sa.ColumnElement[bool]] = [c.state == state]
        return chosen if where is None else [*chosen, where]


def _row(row: Any) -> Row:
    return Row(*parts(row), row.state, row.reason or "", row.due, row.claimed_until)
