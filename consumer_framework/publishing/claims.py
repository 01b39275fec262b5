# SPDX-License-Identifier: GPL-2.0-or-later
"""The outbox's table as a relay uses it: the lease, claims, settlement, waiting for rows.

**Order.** Rows are claimed in the order of their ids. A row with an ordering key is claimed only
together with, or after, every earlier waiting row of that key. The rows behind a row that waits
get its due time (they are parked): the table is never scanned for the few rows that may be sent.
The ids of transactions that run at once have no order between them.

**Claims.** Each claim has a token of its own. Whoever settles a row must still hold its claim, so a
relay that was stopped for longer than its claim cannot delete a row that another relay has now.
"""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import accumulate, takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import sqlalchemy as sa

from consumer_framework.core.secrets import redact
from consumer_framework.core.text import clipped

from .database import Database
from .message import DEAD, WAITING, OutboxError
from .policy import LONGEST
from .tables import (
    CHANNEL,
    MESSAGE,
    Claimed,
    c,
    counts_table,
    lease_table,
    outbox_table,
    parts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Seconds that no claim lasts for: twice the longest lease that can be configured.
LONGEST_CLAIM = 7200.0
# A claim gets no more bodies once it has so many bytes.
CLAIM_BYTES = 32 << 20
# Rows that are parked behind the same waiting row in one claim.
_PARKED = 1000
# A body with at most so many bytes is read before its row is chosen.
SMALL_BODY = 8192
# Parkings without a row to send before a claim comes back empty.
_ROUNDS = 10
# Seconds that rows wait behind one that another live relay has.
_BEHIND_CLAIM = 1.0
# Rows that a claim looks at, at least: the first ones may be behind one that failed.
_LEAST_READ = 64
# Seconds after which a failed row comes before new ones where a claim has one row.
_OVERDUE = 30.0
_LONGEST_REASON = 1000
_LEASE_NAME = "relay"
_ID = attrgetter("id")


class Settled(NamedTuple):
    """The result of :meth:`OutboxStore.settle`.

    Attributes:
        done: The number of rows that were settled.
        lost: The number of rows whose claim had ended: another relay has them, or had.
    """

    done: int
    lost: int


class Lease(NamedTuple):
    """The lease of an outbox: the relay that holds it, and its end in seconds since the epoch."""

    owner: str
    until: float


class Waker(Protocol):
    """Waits until rows may have been inserted. One thread uses it."""

    def wait(self, timeout: float) -> bool:
        """Wait for at most *timeout* seconds; return true if there may be new rows.

        Raises:
            OutboxError: The database is gone. The waker is of no use any more.
        """
        ...

    def close(self) -> None:
        """Release its connection."""
        ...


class Claims(Database):
    """The table for relays."""

    def lease(self, owner: str, seconds: float, now: float) -> bool:
        """Become, or remain, the one relay of this outbox for *seconds* from *now*.

        Returns:
            False if another owner has the lease.
        """
        free = sa.or_(lease_table.c.owner == owner, lease_table.c.until <= now)
        update = sa.update(lease_table).where(lease_table.c.name == _LEASE_NAME, free)
        values = {"owner": owner, "until": now + seconds}
        with self.transaction() as connection:
            if connection.execute(update.values(values)).rowcount:
                return True
            if connection.scalar(
                sa.select(lease_table.c.owner).where(lease_table.c.name == _LEASE_NAME)
            ):
                return False
        try:
            with self.transaction() as connection:
                connection.execute(sa.insert(lease_table).values(name=_LEASE_NAME, **values))
        except OutboxError as error:
            if isinstance(error.__cause__, sa.exc.IntegrityError):
                return False
            raise
        return True

    def lease_holder(self) -> Lease | None:
        """Return the lease that was last taken; None before the first relay."""
        columns = (lease_table.c.owner, lease_table.c.until)
        with self.reading() as connection:
            found = connection.execute(
                sa.select(*columns).where(lease_table.c.name == _LEASE_NAME)
            ).first()
        return None if found is None else Lease(found.owner, found.until)

    def extend(
        self, owner: str | None, seconds: float, now: float, token: str, rows: Sequence[int]
    ) -> bool:
        """Keep a lease and a claim for *seconds* from *now*, while their batch is on its way.

        Args:
            owner: The owner of the lease; None for a relay without one.
            seconds: The new length of both.
            now: Seconds since the epoch.
            token: As it was given to :meth:`claim`.
            rows: The ids of the claimed rows. They are not searched for by their token, because
                that would be a scan.

        Returns:
            False if another relay has the lease, or some of the rows.
        """
        held = sa.update(lease_table).where(
            lease_table.c.name == _LEASE_NAME, lease_table.c.owner == owner
        )
        claimed = sa.update(outbox_table).where(c.id.in_(rows), c.claimed_by == token)
        is_kept = True
        with self.transaction() as connection:
            if owner is not None:
                is_kept = bool(connection.execute(held.values(until=now + seconds)).rowcount)
            if rows:
                kept = connection.execute(claimed.values(claimed_until=now + seconds)).rowcount
                is_kept &= kept == len(rows)
        return is_kept

    def leased_until(self) -> float:
        """Return the end of the lease of the relay, in seconds since the epoch; 0 for no relay."""
        until = sa.select(lease_table.c.until).where(lease_table.c.name == _LEASE_NAME)
        with self.reading() as connection:
            return float(connection.scalar(until) or 0.0)

    def release(self, owner: str, token: str = "", rows: Sequence[int] = ()) -> None:
        """Give back the lease of *owner*, and its claim.

        Args:
            owner: As it was given to :meth:`lease`.
            token: As it was given to :meth:`claim`.
            rows: The ids of the claimed rows. They are not searched for by their token, because
                that would be a scan.
        """
        free = sa.update(lease_table).where(
            lease_table.c.name == _LEASE_NAME, lease_table.c.owner == owner
        )
        claims = sa.update(outbox_table).where(c.id.in_(rows), c.claimed_by == token)
        with self.transaction() as connection:
            connection.execute(free.values(until=0.0))
            if rows:
                connection.execute(claims.values(claimed_by=None, claimed_until=None))

    def claim(self, token: str, limit: int, lease: float, now: float) -> list[Claimed]:
        """Claim rows that are due, in the order of their ids.

        Args:
            token: At most 64 characters, different for each call.
            limit: The number of rows at most.
            lease: Seconds for which nobody else may claim them.
            now: Seconds since the epoch.

        Raises:
            OutboxError: The database did not do it.
        """
        with self.transaction() as connection:
            far = now + max(LONGEST, 2 * lease)
            for _ in range(_ROUNDS):
                rows, has_parked = self._claimable(connection, limit, now, far)
                if rows or not has_parked:
                    break
            if not rows:
                return []
            values = {"token": token, "until": now + lease}
            _execute(connection, _CLAIM, [row.id for row in rows], values)
            bodies = {}
            if large := [row.id for row in rows if row.body is None]:
                found = sa.select(c.id, c.body).where(c.id.in_(large))
                bodies = dict(map(tuple, connection.execute(found)))
            return [Claimed(*parts(row, bodies)) for row in rows]

    def _claimable(
        self, connection: sa.Connection, limit: int, now: float, far: float
    ) -> tuple[list[sa.Row[Any]], bool]:
        """Return the rows to claim, and true if others were parked."""
        parameters = {"now": now, "far": far, "limit": max(limit, _LEAST_READ)}
        retried = connection.execute(_RETRIED, parameters).all()
        fresh = connection.execute(_FRESH, parameters).all()
        lanes: dict[str, list[sa.Row[Any]]] = defaultdict(list)
        for row in sorted([*retried, *fresh], key=_ID):
            lanes[row.ordering_key].append(row)
        free = lanes.pop("", [])
        has_parked = False
        for key, rows in lanes.items():
            if rows[0].head != rows[0].id:
                has_parked |= self._park(connection, key, now, far)
            elif len(rows) == 1:
                free += rows
            else:
                free += _prefix(connection, key, rows)
        chosen = _shared(free, {row.id for row in retried}, limit, now)
        return _within(chosen), has_parked

    @staticmethod
    def _park(connection: sa.Connection, key: str, now: float, far: float) -> bool:
        """Let the rows behind the first one of *key* wait as long as it does."""
        lane = (c.ordering_key == key, c.state == WAITING)
        columns = (c.id, c.due, c.claimed_until)
        head = connection.execute(sa.select(*columns).where(*lane).order_by(c.id).limit(1)).first()
        if head is None:
            return False
        until = head.due
        if until <= now:
            if head.claimed_until is None or not now < head.claimed_until <= far:
                # It is due: another relay is about to claim it, or the limit left it out.
                return False
            until = min(head.claimed_until, now + _BEHIND_CLAIM)
        behind = sa.select(c.id).where(*lane, c.due <= now, c.id > head.id, free(now, far))
        behind = behind.order_by(c.id).limit(_PARKED).with_for_update(skip_locked=True)
        ids = list(connection.scalars(behind))
        if ids:
            connection.execute(sa.update(outbox_table).where(c.id.in_(ids)).values(due=until))
        return bool(ids)

    def settle(  # noqa: PLR0913 -- each is a list of its own
        self,
        token: str,
        *,
        sent: Sequence[int] = (),
        discarded: Sequence[int] = (),
        retries: Sequence[tuple[int, float, str]] = (),
        parked: Sequence[tuple[int, float, str]] = (),
        dead: Sequence[tuple[int, str]] = (),
        released: Sequence[int] = (),
        counts: Mapping[str, int] | None = None,
    ) -> Settled:
        """Settle rows that were claimed with *token*, in one transaction.

        Args:
            token: As it was given to :meth:`claim`.
            sent: Rows whose messages were confirmed; they are deleted.
            discarded: Rows to delete although their messages were not sent.
            retries: Rows that failed, each with the time of its next attempt in seconds since the
                epoch (0 for at once), and the reason.
            parked: Likewise, of rows that were not tried: the attempt does not count.
            dead: Rows that can never be sent, each with the reason.
            released: Rows to give back as they were.
            counts: Numbers to add to the totals, by name.

        Raises:
            OutboxError: The database did not do it. The rows stay claimed until their claims end.
        """
        lists: tuple[Sequence[Any], ...] = (sent, discarded, retries, parked, dead, released)
        done, settled = 0, sum(map(len, lists))
        with self.transaction() as connection:
            for ids in (sent, discarded):
                if ids:
                    done += _execute(connection, _DELETE, ids, {"token": token})
            if released:
                free = sa.update(outbox_table).where(c.id.in_(released), c.claimed_by == token)
                freed = connection.execute(free.values(claimed_by=None, claimed_until=None))
                done += freed.rowcount
            for row, due, reason in retries:
                values = {"row": row, "token": token, "new_due": due, "new_reason": _line(reason)}
                done += connection.execute(_RETRY, values).rowcount
            for row, due, reason in parked:
                values = {"row": row, "token": token, "new_due": due, "new_reason": _line(reason)}
                done += connection.execute(_PARK, values).rowcount
            for row, reason in dead:
                values = {"row": row, "token": token, "new_reason": _line(reason)}
                done += connection.execute(_BURY, values).rowcount
            # If all were settled before, by a commit that seemed to fail, they are counted.
            for name, value in (counts or {}).items() if done or not settled else ():
                if value:
                    _count(connection, name, value)
        return Settled(done, settled - done)

    def discard_skippable(self, after_row: int, limit: int) -> tuple[int, int]:
        """Delete rows with ``on_failure = "skip"`` that nobody has claimed, and count them.

        A relay does it while no endpoint answers. It looks at no row twice.

        Args:
            after_row: Look at rows after this id.
            limit: Look at so many rows.

        Returns:
            The id of the last row that was looked at, and the number of deleted rows.
        """
        look = sa.select(c.id, c.on_failure, c.state, c.claimed_by).where(c.id > after_row)
        with self.reading() as connection:
            seen = list(connection.execute(look.order_by(c.id).limit(limit)))
        ids = [
            row.id
            for row in seen
            if row.on_failure == "skip" and row.state == WAITING and row.claimed_by is None
        ]
        deleted = 0
        if ids:
            with self.transaction() as connection:
                gone = sa.delete(outbox_table).where(c.id.in_(ids), c.claimed_by.is_(None))
                deleted = connection.execute(gone).rowcount
                _count(connection, "skipped", deleted)
        return (seen[-1].id if seen else after_row), deleted

    def rebase(self, now: float, longest: float) -> int:
        """Make rows due that are due later than *longest* seconds from *now*.

        Nothing waits for so long by itself: the clock was set back. A lease that lasts longer is
        ended for the same reason. Returns the number of rows.
        """
        far = now + longest
        late = sa.update(outbox_table).where(c.state == WAITING, c.due > far)
        leases = sa.update(lease_table).where(lease_table.c.until > far)
        with self.transaction() as connection:
            connection.execute(leases.values(until=now))
            return connection.execute(late.values(due=now)).rowcount

    def waker(self) -> Waker:
        """Return a waker for the thread of a relay.

        Raises:
            OutboxError: The database does not answer.
        """
        with self.told():
            match self.engine.dialect.name:
                case "sqlite":
                    return _SqliteWaker(self)
                case "postgresql" if self.engine.dialect.driver == "psycopg":
                    return _PostgresWaker(self)
            return _PollingWaker()


def free(now: Any, far: Any) -> sa.ColumnElement[bool]:
    """Return the condition that no relay has a row at *now*.

    No claim lasts until *far*: the clock was set back after it.
    """
    return sa.or_(c.claimed_until.is_(None), c.claimed_until <= now, c.claimed_until > far)


# Statements for many rows. SQLAlchemy would take longer for a thousand parameters than the database
# needs for the rows; and it need not remember a statement that is of use once.
_CLAIM = "UPDATE fm_outbox SET claimed_by = :token, claimed_until = :until WHERE id IN ({})"
_DELETE = "DELETE FROM fm_outbox WHERE claimed_by = :token AND id IN ({})"


def _execute(
    connection: sa.Connection, statement: str, rows: Sequence[int], values: dict[str, Any]
) -> int:
    """Execute *statement* for the *rows* with these ids; return the number of changed rows."""
    text = sa.text(statement.format(", ".join(map(str, rows))))
    return connection.execute(text, values, execution_options={"compiled_cache": None}).rowcount


def _candidates(*due: sa.ColumnElement[bool]) -> sa.Select[Any]:
    earlier = outbox_table.alias("earlier")
    lane = (earlier.c.ordering_key == c.ordering_key, earlier.c.state == WAITING)
    first = sa.select(earlier.c.id).where(*lane).order_by(earlier.c.id).limit(1)
    head = sa.case((c.ordering_key == "", c.id), else_=first.scalar_subquery()).label("head")
    size = sa.func.length(c.body).label("size")
    # Larger bodies are read once their rows are chosen.
    body = sa.case((size <= SMALL_BODY, c.body)).label("body")
    columns = (body if column is c.body else column for column in MESSAGE)
    rows = sa.select(*columns, c.due, size, head)
    rows = rows.where(c.state == WAITING, *due, free(sa.bindparam("now"), sa.bindparam("far")))
    return rows.limit(sa.bindparam("limit")).with_for_update(skip_locked=True)


# Both are ranges of the index (state, due, id), in its order: no row is sorted.
_FRESH = _candidates(c.due == 0).order_by(c.id)
_RETRIED = _candidates(c.due > 0, c.due <= sa.bindparam("now")).order_by(c.due, c.id)

_HELD = (c.id == sa.bindparam("row"), c.claimed_by == sa.bindparam("token"))
_FAILED: dict[str, Any] = {
    "attempts": c.attempts + 1,
    "reason": sa.bindparam("new_reason"),
    "claimed_by": None,
    "claimed_until": None,
}
_RETRY = sa.update(outbox_table).where(*_HELD).values(due=sa.bindparam("new_due"), **_FAILED)
_PARK = _RETRY.values(attempts=c.attempts)
_BURY = sa.update(outbox_table).where(*_HELD).values(state=DEAD, **_FAILED)


def _prefix(connection: sa.Connection, key: str, rows: list[sa.Row[Any]]) -> list[sa.Row[Any]]:
    """Return the rows of *key* that no other waiting row stands before."""
    lane = sa.select(c.id).where(c.ordering_key == key, c.state == WAITING)
    first = list(connection.scalars(lane.order_by(c.id).limit(len(rows))))
    count = 0
    while count < min(len(rows), len(first)) and rows[count].id == first[count]:
        count += 1
    return rows[:count]


def _shared(
    rows: list[sa.Row[Any]], retried: set[int], limit: int, now: float
) -> list[sa.Row[Any]]:
    """Choose *limit* of the *rows*, so that neither new rows nor failed ones wait for the others.

    The rows of a key stay together, so none comes without the earlier ones. The result is in the
    order of ids.
    """
    in_order = sorted(rows, key=_ID)
    if not retried:
        return in_order[:limit]
    keys = {row.ordering_key for row in in_order if row.id in retried} - {""}
    failed = [row for row in in_order if row.id in retried or row.ordering_key in keys]
    new = [row for row in in_order if row.id not in retried and row.ordering_key not in keys]
    half = limit // 2 or int(bool(failed) and now - failed[0].due > _OVERDUE)
    count = min(len(failed), max(half, limit - len(new)))
    return sorted([*failed[:count], *new[: limit - count]], key=_ID)


def _within(rows: list[sa.Row[Any]]) -> list[sa.Row[Any]]:
    """Return the first *rows*, whose bodies fit into one claim; one always does."""
    sizes = accumulate(row.size for row in rows)
    count = sum(1 for _ in takewhile(lambda size: size <= CLAIM_BYTES, sizes))
    return rows[: max(count, 1)]


def _line(reason: str) -> str:
    return clipped(redact(reason), _LONGEST_REASON)


def _count(connection: sa.Connection, name: str, value: int) -> None:
    update = sa.update(counts_table).where(counts_table.c.name == name)
    if not connection.execute(update.values(value=counts_table.c.value + value)).rowcount:
        connection.execute(sa.insert(counts_table).values(name=name, value=value))


class _PollingWaker:
    """Sleeps for a short time: the caller looks into the table itself."""

    def wait(self, timeout: float) -> bool:
        time.sleep(timeout)
        return True

    def close(self) -> None:
        """Nothing is open."""


class _SqliteWaker:
    """Looks at ``PRAGMA data_version``, which changes with each commit of another connection."""

    def __init__(self, database: Database) -> None:
        self._told = database.told
        self._connection = database.engine.raw_connection()
        self.version = self._look()

    def _look(self) -> int:
        with self._told():
            cursor = self._connection.cursor()
            cursor.execute("PRAGMA data_version")
            (version,) = cursor.fetchone() or (0,)
            cursor.close()
            return int(version)

    def wait(self, timeout: float) -> bool:
        before = self.version
        self.version = self._look()
        if self.version == before:
            time.sleep(timeout)
            self.version = self._look()
        return self.version != before

    def close(self) -> None:
        self._connection.close()


class _PostgresWaker:
    """Listens for the NOTIFY of an insert."""

    def __init__(self, database: Database) -> None:
        self._told = database.told
        engine = database.engine
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # The pool does not get it back, because it listens for as long as it lives.
        self._connection.detach()
        self._connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        self._driver: Any = self._connection.connection.dbapi_connection

    def wait(self, timeout: float) -> bool:
        with self._told():
            return any(True for _ in self._driver.notifies(timeout=timeout, stop_after=1))

    def close(self) -> None:
        self._connection.close()
