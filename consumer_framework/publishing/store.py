# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of the outbox, in SQLite, PostgreSQL or MariaDB. No broker and no policy is known here.

A row is a message that was accepted for publishing. An application inserts rows in its own
transaction (:func:`insert`). A relay claims rows for a time (:meth:`OutboxStore.claim`), sends
them, and settles them (:meth:`OutboxStore.settle`): it deletes a row only after the broker has
confirmed the message. If the relay dies, its claims end, and the rows are claimed again.

**States.** ``waiting`` rows are to be sent; ``dead`` ones can never be sent, and wait for an
operator. A waiting row is due when its ``due`` has come: 0 for a new row, so that the clocks of
applications do not matter, and a time in seconds since the epoch after a failure.

**Order.** Rows are claimed in the order of their ids. A row with an ordering key is claimed only
together with, or after, every earlier waiting row of that key. The rows behind a row that waits
get its due time (they are parked): the table is never scanned for the few rows that may be sent.
The ids of transactions that run at once have no order between them.

**Claims.** Each claim has a token of its own. Whoever settles a row must still hold its claim, so a
relay that was stopped for longer than its claim cannot delete a row that another relay has now.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.secrets import redact
from consumer_framework.core.text import clipped

from .message import Outgoing, PublishError
from .migrations import HEAD, VERSION_TABLE, upgrade

try:
    import sqlalchemy as sa
    from sqlalchemy import event
    from sqlalchemy.pool import QueuePool
except ImportError as _error:  # pragma: no cover -- the tests have it
    raise ConfigurationError(
        Problem(
            "",
            f"publishing needs a package that is missing: {_error}",
            "install it: pip install 'consumer-framework[outbox]'",
        )
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "Claimed",
    "OutboxError",
    "OutboxStats",
    "OutboxStore",
    "Row",
    "Settled",
    "Waker",
    "create_engine",
]

WAITING, DEAD = "waiting", "dead"
# Seconds that a statement waits for another writer of the same SQLite file.
BUSY = 30.0
# Rows that one statement of an operator's command changes, so that no lock is held for long.
PORTION = 1000
# A claim gets no more bodies once it has so many bytes.
CLAIM_BYTES = 32 << 20
# Rows that are parked behind the same waiting row in one claim.
_PARKED = 1000
# Parkings without a row to send before a claim comes back empty.
_ROUNDS = 10
# Seconds that rows wait behind one that another live relay has.
_BEHIND_CLAIM = 1.0
# Rows that a claim looks at, at least: the first ones may be behind one that failed.
_LEAST_READ = 64
# Seconds after which a failed row comes before new ones where a claim has one row.
_OVERDUE = 30.0
_LONGEST_REASON = 1000
# Statistics of a table count no further than this, because counting is a scan.
COUNTED = 1_000_000
_CHANNEL = "fm_outbox"
_LEASE_NAME = "relay"
# Any number, the same in each process.
_MIGRATION_LOCK = 3172450291

_metadata = sa.MetaData()
# The migrations declare the types; here they matter for values only.
_outbox = sa.Table(
    "fm_outbox",
    _metadata,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("message_id", sa.String(255)),
    sa.Column("topic", sa.String(255)),
    sa.Column("exchange", sa.String(255)),
    sa.Column("body", sa.LargeBinary),
    sa.Column("headers", sa.Text),
    sa.Column("priority", sa.SmallInteger),
    sa.Column("ordering_key", sa.String(255)),
    sa.Column("created", sa.Double),
    sa.Column("due", sa.Double),
    sa.Column("attempts", sa.Integer),
    sa.Column("state", sa.String(8)),
    sa.Column("reason", sa.Text),
    sa.Column("claimed_by", sa.String(64)),
    sa.Column("claimed_until", sa.Double),
    sa.Column("on_failure", sa.String(8)),
)
_counts = sa.Table(
    "fm_outbox_counts",
    _metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger),
)
_lease = sa.Table(
    "fm_outbox_lease",
    _metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64)),
    sa.Column("until", sa.Double),
)
_version = sa.Table(VERSION_TABLE, _metadata, sa.Column("version_num", sa.String(32)))

_c = _outbox.c
_WRITTEN = (
    "message_id",
    "topic",
    "exchange",
    "body",
    "headers",
    "priority",
    "ordering_key",
    "created",
    "on_failure",
)
_DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mariadb"}


class OutboxError(PublishError):
    """The database did not do it: it is down, full or has no outbox. Nothing was stored."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A row that a relay may send now.

    Attributes:
        row: The id of the row.
        message: The message.
        attempts: The number of attempts that failed.
        on_failure: ``"wait"``, ``"skip"`` or ``"spool"``, as the publisher chose.
    """

    row: int
    message: Outgoing
    attempts: int
    on_failure: str


@dataclass(frozen=True, slots=True)
class Row(Claimed):
    """A row as an operator sees it.

    Attributes:
        state: ``"waiting"`` or ``"dead"``.
        reason: The last failure, ``""`` for none.
        due: When it may be sent, in seconds since the epoch; 0 for at once.
        claimed_until: The end of the claim of a relay, in seconds since the epoch; None for none.
    """

    state: str
    reason: str
    due: float
    claimed_until: float | None


class Settled(NamedTuple):
    """The result of :meth:`OutboxStore.settle`.

    Attributes:
        done: The number of rows that were settled.
        lost: The number of rows whose claim had ended: another relay has them, or had.
    """

    done: int
    lost: int


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


def create_engine(url: str | sa.URL) -> sa.Engine:
    """Return an engine for *url* with the durability that an outbox needs.

    SQLite files get WAL, ``synchronous=FULL`` and ``BEGIN IMMEDIATE``. The driver of
    ``postgresql://`` is psycopg 3, and that of ``mariadb://`` and ``mysql://`` is PyMySQL, unless
    the URL names another.

    Raises:
        ConfigurationError: The URL cannot be understood, or its driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
        name = parsed.drivername
        parsed = parsed.set(drivername=_DRIVERS.get(name.replace("mysql", "mariadb"), name))
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, wal=True)
        return sa.create_engine(parsed, pool_pre_ping=True, **_READ_COMMITTED)
    except sa.exc.ArgumentError as error:
        cure = "write sqlite:////PATH, postgresql://USER@HOST/NAME or mariadb://USER@HOST/NAME"
        raise _unusable("the URL of the outbox's database cannot be understood", cure) from error
    except ImportError as error:
        extra = _EXTRAS.get(error.name or "", "")
        cure = f"install it: pip install 'consumer-framework[{extra}]'" if extra else "install it"
        raise _unusable(f"a package for the outbox's database is missing: {error}", cure) from error


_OF_STATEMENTS = (sa.exc.ProgrammingError, sa.exc.OperationalError, sqlite3.OperationalError)
# Applications insert while a relay claims: in MariaDB a stricter level locks the gaps between keys,
# and in PostgreSQL it fails where a row has changed. The default of an application may be another.
_READ_COMMITTED: dict[str, Any] = {"isolation_level": "READ COMMITTED"}


def _unusable(what: str, cure: str) -> ConfigurationError:
    return ConfigurationError(Problem("consumer_config.framework.outbox.database", what, cure))


def _sqlite(url: sa.URL, *, wal: bool) -> sa.Engine:
    """Make an engine whose transactions begin with ``BEGIN IMMEDIATE``.

    sqlite3 itself begins a transaction before the first change only, and then another writer makes
    it fail at once, without a wait (https://www.sqlite.org/isolation.html).
    """
    engine = sa.create_engine(url, poolclass=QueuePool, connect_args={"timeout": BUSY})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        if wal:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _own(engine: sa.Engine) -> tuple[sa.Engine, bool]:
    """Return the engine to use beside the application's, and true if it is ours to dispose of."""
    match engine.dialect.name:
        case "postgresql" | "mysql" | "mariadb":
            return engine.execution_options(**_READ_COMMITTED), False
        case "sqlite" if engine.url.database and ":memory:" not in engine.url.database:
            return _sqlite(engine.url, wal=False), True
    cure = "use a SQLite file, PostgreSQL or MariaDB"
    raise _unusable(f"the outbox cannot be in {engine.dialect.name} with this URL", cure)


# Each dialect's INSERT as text, because SQLAlchemy's way to execute one takes longer than SQLite.
_statements: dict[tuple[str, str, str], tuple[str, tuple[str, ...] | None]] = {}


def _insert_for(dialect: sa.Dialect) -> tuple[str, tuple[str, ...] | None]:
    """Return the INSERT of *dialect*, and the order of its parameters if they have no names."""
    key = (dialect.name, dialect.driver, dialect.paramstyle)
    try:
        return _statements[key]
    except KeyError:
        values: dict[str, Any] = {name: sa.bindparam(name) for name in _WRITTEN}
        compiled: Any = sa.insert(_outbox).values(values).compile(dialect=dialect)
        order = tuple(compiled.positiontup) if compiled.positional else None
        return _statements.setdefault(key, (str(compiled), order))


def _values(message: Outgoing, on_failure: str) -> dict[str, Any]:
    return {
        "message_id": message.id,
        "topic": message.topic,
        "exchange": message.exchange,
        "body": message.body,
        "headers": json.dumps(dict(message.headers)),
        "priority": message.priority,
        "ordering_key": message.ordering_key,
        "created": message.created,
        "on_failure": on_failure,
    }


def insert(connection: sa.Connection, messages: Iterable[tuple[Outgoing, str]]) -> None:
    """Insert *messages* in the transaction of *connection*, in their order.

    Args:
        connection: Of any engine whose database has the table.
        messages: Each with ``"wait"``, ``"skip"`` or ``"spool"``.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database did not take them.
    """
    dialect = connection.dialect
    statement, order = _insert_for(dialect)
    rows: list[Any] = [_values(message, on_failure) for message, on_failure in messages]
    if not rows:
        return
    if order is not None:
        rows = [tuple(row[name] for name in order) for row in rows]
    connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0])
    if dialect.name == "postgresql":
        # PostgreSQL delivers it when the transaction commits, once for each transaction.
        connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")


_stores: weakref.WeakSet[OutboxStore] = weakref.WeakSet()
# Connections that a forked child got from its parent. They are never used nor closed there: closing
# one could end a transaction of the parent.
_inherited: list[Any] = []


def _forked() -> None:
    for store in list(_stores):
        store._after_fork()  # noqa: SLF001 -- this module's own


os.register_at_fork(after_in_child=_forked)


class OutboxStore:
    """The outbox's table in one database. Several threads may use it at once.

    Args:
        engine: An application's engine, whose connections the store uses as well. Of a SQLite file
            the store opens connections of its own.

    Raises:
        ConfigurationError: The database is none that an outbox can be in.
    """

    def __init__(self, engine: sa.Engine) -> None:
        used, is_own = _own(engine)
        self._set_up(used, is_own=is_own)

    @classmethod
    def connect(cls, url: str | sa.URL) -> OutboxStore:
        """Return the store of the database at *url*; see :func:`create_engine`."""
        store = cls.__new__(cls)
        store._set_up(create_engine(url), is_own=True)  # noqa: SLF001 -- this class's own
        return store

    def _set_up(self, engine: sa.Engine, *, is_own: bool) -> None:
        self.engine = engine
        self._is_own = is_own
        self._is_sqlite = engine.dialect.name == "sqlite"
        # Threads wait here, and not in SQLite, which polls.
        self._writing = threading.Lock()
        _stores.add(self)

    @property
    def place(self) -> str:
        """The database, for people; without a password."""
        return self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the connections that are the store's own."""
        if self._is_own:
            self.engine.dispose()

    def _after_fork(self) -> None:
        self._writing = threading.Lock()
        if self._is_own:
            _inherited.append(self.engine.pool)
            self.engine.dispose(close=False)

    # Transactions

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Yield a connection; commit if the block ends, roll back if it raises.

        Raises:
            OutboxError: The database did not do it.
        """
        with self._told():
            if not self._is_sqlite:
                with self.engine.begin() as connection:
                    yield connection
                return
            with self._alone_in_process(), self.engine.begin() as connection:
                yield connection

    @contextlib.contextmanager
    def _alone_in_process(self) -> Iterator[None]:
        if not self._writing.acquire(timeout=BUSY):
            raise OutboxError(f"the outbox {self.place} is busy for {BUSY:.0f} s")
        try:
            yield
        finally:
            self._writing.release()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._told(), self.engine.connect() as connection:
            connection.execution_options(reads_only=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an error of the database into one line."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error) as error:
            cause = getattr(error, "orig", None) or error
            line = redact(" ".join(str(cause).split()))
            cure = ""
            if isinstance(error, _OF_STATEMENTS):
                is_missing = _outbox.name in line and "lock" not in line.lower()
                cure = "; create its tables with OutboxStore.migrate()" if is_missing else ""
            raise OutboxError(f"the outbox {self.place}: {line}{cure}") from error

    def migrate(self) -> None:
        """Create the tables, or bring them to the version of this code. Doing it twice is no harm.

        Raises:
            ConfigurationError: alembic is not installed.
            OutboxError: The database did not do it, or its tables are of a newer version.
        """
        with self._alone(), self.transaction() as connection:
            if self._found_version(connection) == HEAD:
                return
            try:
                upgrade(connection)
            except ImportError as error:
                cure = "install it: pip install 'consumer-framework[outbox]'"
                raise _unusable(f"a package is missing: {error}", cure) from error
            except Exception as error:
                if not type(error).__module__.startswith("alembic"):
                    raise
                text = f"the tables of the outbox {self.place} are of another version"
                raise OutboxError(f"{text}: {error}") from error

    @property
    def is_current(self) -> bool:
        """True if the tables are of the version that this code needs."""
        with self._reading() as connection:
            return self._found_version(connection) == HEAD

    @staticmethod
    def _found_version(connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.scalar(sa.select(_version.c.version_num))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time migrate. SQLite's transaction does that by itself."""
        locks = {
            "postgresql": f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})",
            # It ends with the connection: MariaDB's changes of tables commit by themselves.
            "mysql": f"SELECT GET_LOCK('{_CHANNEL}', {BUSY:.0f})",
        }
        locks["mariadb"] = locks["mysql"]
        lock = locks.get(self.engine.dialect.name)
        if lock is None:
            yield
            return
        with self._told(), self.engine.connect() as connection:
            connection.exec_driver_sql(lock)
            try:
                yield
            finally:
                connection.invalidate()

    # For publishers

    def insert(self, connection: sa.Connection, messages: Iterable[tuple[Outgoing, str]]) -> None:
        """Insert *messages* in the transaction of *connection*: see :func:`insert`."""
        insert(connection, messages)

    def put(self, messages: Iterable[tuple[Outgoing, str]]) -> None:
        """Insert *messages* in a transaction of their own, and commit it.

        Raises:
            OutboxError: None of them was stored.
        """
        if self._is_sqlite:
            self._put_into_file(list(messages))
            return
        with self.transaction() as connection:
            insert(connection, messages)

    def _put_into_file(self, messages: list[tuple[Outgoing, str]]) -> None:
        """Do it with sqlite3 alone: SQLAlchemy would take longer than the commit."""
        statement, order = _insert_for(self.engine.dialect)
        assert order is not None  # noqa: S101 -- sqlite3 has no names for parameters here
        values = (_values(message, on_failure) for message, on_failure in messages)
        rows = [tuple(row[name] for name in order) for row in values]
        with self._told(), self._alone_in_process():
            pooled = self.engine.raw_connection()
            try:
                driver: Any = pooled.driver_connection
                driver.execute("BEGIN IMMEDIATE")
                try:
                    driver.executemany(statement, rows)
                    driver.execute("COMMIT")
                except BaseException:
                    if driver.in_transaction:
                        driver.execute("ROLLBACK")
                    raise
            finally:
                pooled.close()

    def state_of(self, message_id: str, since_row: int) -> tuple[str, str] | None:
        """Return the state and the reason of a row, or None if there is none any more.

        Args:
            message_id: The id of its message.
            since_row: The row is after this one: see :meth:`last_row`.
        """
        statement = (
            sa.select(_c.state, _c.reason)
            .where(_c.id > since_row, _c.message_id == message_id)
            .order_by(_c.id)
            .limit(1)
        )
        with self._reading() as connection:
            found = connection.execute(statement).first()
        return None if found is None else (found.state, found.reason or "")

    def last_row(self) -> int:
        """Return the highest id in the table, 0 if it is empty."""
        with self._reading() as connection:
            return int(connection.scalar(sa.select(sa.func.max(_c.id))) or 0)

    # For relays

    def lease(self, owner: str, seconds: float, now: float) -> bool:
        """Become, or remain, the one relay of this outbox for *seconds* from *now*.

        Returns:
            False if another owner has the lease.
        """
        free = sa.or_(_lease.c.owner == owner, _lease.c.until <= now)
        update = sa.update(_lease).where(_lease.c.name == _LEASE_NAME, free)
        values = {"owner": owner, "until": now + seconds}
        with self.transaction() as connection:
            if connection.execute(update.values(values)).rowcount:
                return True
            if connection.scalar(sa.select(_lease.c.owner).where(_lease.c.name == _LEASE_NAME)):
                return False
        try:
            with self.transaction() as connection:
                connection.execute(sa.insert(_lease).values(name=_LEASE_NAME, **values))
        except OutboxError as error:
            if isinstance(error.__cause__, sa.exc.IntegrityError):
                return False
            raise
        return True

    def release(self, owner: str) -> None:
        """Give back the lease of *owner*, and the claims whose token begins with it and a dot."""
        free = sa.update(_lease).where(_lease.c.name == _LEASE_NAME, _lease.c.owner == owner)
        claims = sa.update(_outbox).where(_c.state == WAITING, _c.claimed_until.is_not(None))
        claims = claims.where(_c.claimed_by.startswith(f"{owner}.", autoescape=True))
        with self.transaction() as connection:
            connection.execute(free.values(until=0.0))
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
            for _ in range(_ROUNDS):
                rows, has_parked = self._claimable(connection, limit, now)
                if rows or not has_parked:
                    break
            if not rows:
                return []
            claims = sa.update(_outbox).where(_c.id.in_(rows))
            connection.execute(claims.values(claimed_by=token, claimed_until=now + lease))
            found = connection.execute(_CLAIMED.where(_c.id.in_(rows)).order_by(_c.id))
            return [Claimed(*_parts(row)) for row in found]

    def _claimable(
        self, connection: sa.Connection, limit: int, now: float
    ) -> tuple[list[int], bool]:
        """Return the ids of rows to claim, and true if others were parked."""
        parameters = {"now": now, "limit": max(limit, _LEAST_READ)}
        retried = list(connection.execute(_RETRIED, parameters))
        fresh = list(connection.execute(_FRESH, parameters))
        lanes: dict[str, list[sa.Row[Any]]] = defaultdict(list)
        for row in sorted([*retried, *fresh], key=lambda row: row.id):
            lanes[row.ordering_key].append(row)
        free = lanes.pop("", [])
        has_parked = False
        for key, rows in lanes.items():
            if rows[0].head != rows[0].id:
                has_parked |= self._park(connection, key, now)
            elif len(rows) == 1:
                free += rows
            else:
                free += _prefix(connection, key, rows)
        chosen = _shared(free, {row.id for row in retried}, limit, now)
        return _within(chosen), has_parked

    @staticmethod
    def _park(connection: sa.Connection, key: str, now: float) -> bool:
        """Let the rows behind the first one of *key* wait as long as it does."""
        lane = (_c.ordering_key == key, _c.state == WAITING)
        columns = (_c.id, _c.due, _c.claimed_until)
        head = connection.execute(sa.select(*columns).where(*lane).order_by(_c.id).limit(1)).first()
        if head is None:
            return False
        until = head.due
        if until <= now:
            if head.claimed_until is None or head.claimed_until <= now:
                # It is due: another relay is about to claim it, or the limit left it out.
                return False
            until = min(head.claimed_until, now + _BEHIND_CLAIM)
        behind = sa.select(_c.id).where(*lane, _c.due <= now, _c.id > head.id, _free(now))
        behind = behind.order_by(_c.id).limit(_PARKED).with_for_update(skip_locked=True)
        ids = list(connection.scalars(behind))
        if ids:
            connection.execute(sa.update(_outbox).where(_c.id.in_(ids)).values(due=until))
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
                    gone = sa.delete(_outbox).where(_c.id.in_(ids), _c.claimed_by == token)
                    done += connection.execute(gone).rowcount
            if released:
                free = sa.update(_outbox).where(_c.id.in_(released), _c.claimed_by == token)
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
        look = sa.select(_c.id, _c.on_failure, _c.state, _c.claimed_by).where(_c.id > after_row)
        with self._reading() as connection:
            seen = list(connection.execute(look.order_by(_c.id).limit(limit)))
        ids = [
            row.id
            for row in seen
            if row.on_failure == "skip" and row.state == WAITING and row.claimed_by is None
        ]
        deleted = 0
        if ids:
            with self.transaction() as connection:
                gone = sa.delete(_outbox).where(_c.id.in_(ids), _c.claimed_by.is_(None))
                deleted = connection.execute(gone).rowcount
                _count(connection, "skipped", deleted)
        return (seen[-1].id if seen else after_row), deleted

    def rebase(self, now: float, longest: float) -> int:
        """Make rows due that are due later than *longest* seconds from *now*.

        Nothing waits for so long by itself: the clock was set back. Claims and leases that last
        longer are ended for the same reason. Returns the number of rows that are due.
        """
        far = now + longest
        late = sa.update(_outbox).where(_c.state == WAITING, _c.due > far)
        claims = sa.update(_outbox).where(_c.state == WAITING, _c.claimed_until > far)
        leases = sa.update(_lease).where(_lease.c.until > far)
        with self.transaction() as connection:
            connection.execute(leases.values(until=now))
            connection.execute(claims.values(claimed_by=None, claimed_until=None))
            return connection.execute(late.values(due=now)).rowcount

    def waker(self) -> Waker:
        """Return a waker for the thread of a relay.

        Raises:
            OutboxError: The database does not answer.
        """
        with self._told():
            match self.engine.dialect.name:
                case "sqlite":
                    return _SqliteWaker(self.engine, self._told)
                case "postgresql" if self.engine.dialect.driver == "psycopg":
                    return _PostgresWaker(self.engine, self._told)
            return _PollingWaker()

    # For operators

    def stats(self) -> OutboxStats:
        """Count the rows."""

        def counted(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
            some = sa.select(sa.literal(1).label("one")).where(*where).limit(COUNTED).subquery()
            return sa.select(sa.func.count()).select_from(some).scalar_subquery()

        waiting = _c.state == WAITING
        failed = sa.select(_c.created).where(waiting, _c.due > 0)
        failed_first = failed.order_by(_c.due, _c.id).limit(10_000).subquery()
        new = sa.select(_c.created).where(waiting, _c.due == 0).order_by(_c.id).limit(1)
        numbers = sa.select(
            counted(waiting),
            counted(waiting, _c.due > 0),
            counted(_c.state == DEAD),
            sa.select(sa.func.min(failed_first.c.created)).scalar_subquery(),
            new.scalar_subquery(),
        )
        with self._reading() as connection:
            waiting_, retrying, dead, *ages = connection.execute(numbers).one()
            counts = {row.name: row.value for row in connection.execute(sa.select(_counts))}
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
            where = [_c.id > after_row]
            if state is not None:
                where.append(_c.state == state)
            if message_id is not None:
                where.append(_c.message_id == message_id)
            with self._reading() as connection:
                statement = _ROWS.where(*where).order_by(_c.id).limit(min(limit, PORTION))
                portion = [_row(row) for row in connection.execute(statement)]
            found += [row for row in portion if accept(row)]
            if len(portion) < min(limit, PORTION):
                break
            after_row = portion[-1].row
        return found[:limit]

    def show(self, row: int) -> Row | None:
        """Return the row with the id *row*, or None."""
        with self._reading() as connection:
            found = connection.execute(_ROWS.where(_c.id == row)).first()
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
        return self._change(rows, DEAD, lambda ids: sa.update(_outbox).where(ids).values(values))

    def discard(self, rows: Iterable[int]) -> int:
        """Delete rows, with their messages, that no relay has. Returns their number."""
        return self._change(rows, None, lambda ids: sa.delete(_outbox).where(ids))

    def purge(self, state: str = DEAD, *, before: float | None = None) -> int:
        """Delete every row in *state*, or those published *before* a time of the epoch."""
        older = None if before is None else _c.created < before
        return self._change(None, state, lambda ids: sa.delete(_outbox).where(ids), older)

    def _change(
        self,
        rows: Iterable[int] | None,
        state: str | None,
        statement: Callable[[sa.ColumnElement[bool]], sa.Update | sa.Delete],
        where: sa.ColumnElement[bool] | None = None,
    ) -> int:
        changed = 0
        for portion in self._portions(rows, state, where):
            unclaimed = [_c.id.in_(portion), _free(time.time())]
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
            some = sa.select(_c.id).where(_c.id > after, *self._chosen(state, where))
            with self._reading() as connection:
                portion = list(connection.scalars(some.order_by(_c.id).limit(PORTION)))
            if not portion:
                return
            after = portion[-1]
            yield portion

    @staticmethod
    def _chosen(
        state: str | None, where: sa.ColumnElement[bool] | None
    ) -> list[sa.ColumnElement[bool]]:
        chosen: list[sa.ColumnElement[bool]] = [_c.state == state]
        return chosen if where is None else [*chosen, where]


def _free(now: Any) -> sa.ColumnElement[bool]:
    return sa.or_(_c.claimed_until.is_(None), _c.claimed_until <= now)


def _candidates(*due: sa.ColumnElement[bool]) -> sa.Select[Any]:
    earlier = _outbox.alias("earlier")
    lane = (earlier.c.ordering_key == _c.ordering_key, earlier.c.state == WAITING)
    first = sa.select(earlier.c.id).where(*lane).order_by(earlier.c.id).limit(1)
    head = sa.case((_c.ordering_key == "", _c.id), else_=first.scalar_subquery()).label("head")
    size = sa.func.length(_c.body).label("size")
    rows = sa.select(_c.id, _c.ordering_key, _c.due, size, head)
    rows = rows.where(_c.state == WAITING, *due, _free(sa.bindparam("now")))
    return rows.limit(sa.bindparam("limit")).with_for_update(skip_locked=True)


# Both are ranges of the index (state, due, id), in its order: no row is sorted.
_FRESH = _candidates(_c.due == 0).order_by(_c.id)
_RETRIED = _candidates(_c.due > 0, _c.due <= sa.bindparam("now")).order_by(_c.due, _c.id)

_MESSAGE = (
    _c.id,
    _c.message_id,
    _c.topic,
    _c.body,
    _c.headers,
    _c.exchange,
    _c.priority,
    _c.ordering_key,
    _c.created,
    _c.attempts,
    _c.on_failure,
)
_CLAIMED = sa.select(*_MESSAGE)
_ROWS = sa.select(*_MESSAGE, _c.state, _c.reason, _c.due, _c.claimed_until)
_HELD = (_c.id == sa.bindparam("row"), _c.claimed_by == sa.bindparam("token"))
_FAILED: dict[str, Any] = {
    "attempts": _c.attempts + 1,
    "reason": sa.bindparam("new_reason"),
    "claimed_by": None,
    "claimed_until": None,
}
_RETRY = sa.update(_outbox).where(*_HELD).values(due=sa.bindparam("new_due"), **_FAILED)
_PARK = _RETRY.values(attempts=_c.attempts)
_BURY = sa.update(_outbox).where(*_HELD).values(state=DEAD, **_FAILED)


def _parts(row: Any) -> tuple[int, Outgoing, int, str]:
    (id_, message_id, topic, body, headers, exchange, priority, key, created, *rest) = row[:11]
    message = Outgoing(
        message_id, topic, bytes(body), json.loads(headers), exchange, priority, key, created
    )
    return id_, message, *rest


def _row(row: Any) -> Row:
    return Row(*_parts(row), row.state, row.reason or "", row.due, row.claimed_until)


def _prefix(connection: sa.Connection, key: str, rows: list[sa.Row[Any]]) -> list[sa.Row[Any]]:
    """Return the rows of *key* that no other waiting row stands before."""
    lane = sa.select(_c.id).where(_c.ordering_key == key, _c.state == WAITING)
    first = list(connection.scalars(lane.order_by(_c.id).limit(len(rows))))
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
    in_order = sorted(rows, key=lambda row: row.id)
    keys = {row.ordering_key for row in in_order if row.id in retried} - {""}
    failed = [row for row in in_order if row.id in retried or row.ordering_key in keys]
    new = [row for row in in_order if row.id not in retried and row.ordering_key not in keys]
    half = limit // 2 or int(bool(failed) and now - failed[0].due > _OVERDUE)
    count = min(len(failed), max(half, limit - len(new)))
    return sorted([*failed[:count], *new[: limit - count]], key=lambda row: row.id)


def _within(rows: list[sa.Row[Any]]) -> list[int]:
    """Return the ids of the first *rows* whose bodies fit into one claim; one always does."""
    size = 0
    ids: list[int] = []
    for row in rows:
        size += row.size
        if ids and size > CLAIM_BYTES:
            break
        ids.append(row.id)
    return ids


def _line(reason: str) -> str:
    return clipped(redact(reason), _LONGEST_REASON)


def _count(connection: sa.Connection, name: str, value: int) -> None:
    update = sa.update(_counts).where(_counts.c.name == name)
    if not connection.execute(update.values(value=_counts.c.value + value)).rowcount:
        connection.execute(sa.insert(_counts).values(name=name, value=value))


_Told: TypeAlias = "Callable[[], AbstractContextManager[None]]"


class _PollingWaker:
    """Sleeps for a short time: the caller looks into the table itself."""

    def wait(self, timeout: float) -> bool:
        time.sleep(timeout)
        return True

    def close(self) -> None:
        """Nothing is open."""


class _SqliteWaker:
    """Looks at ``PRAGMA data_version``, which changes with each commit of another connection."""

    def __init__(self, engine: sa.Engine, told: _Told) -> None:
        self._told = told
        self._connection = engine.raw_connection()
        self._version = self._look()

    def _look(self) -> int:
        with self._told():
            cursor = self._connection.cursor()
            cursor.execute("PRAGMA data_version")
            (version,) = cursor.fetchone() or (0,)
            cursor.close()
            return int(version)

    def wait(self, timeout: float) -> bool:
        before = self._version
        self._version = self._look()
        if self._version == before:
            time.sleep(timeout)
            self._version = self._look()
        return self._version != before

    def close(self) -> None:
        self._connection.close()


class _PostgresWaker:
    """Listens for the NOTIFY of an insert."""

    def __init__(self, engine: sa.Engine, told: _Told) -> None:
        self._told = told
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # It listens for as long as it lives, so the pool gets it back never.
        self._connection.detach()
        self._connection.exec_driver_sql(f"LISTEN {_CHANNEL}")
        self._driver: Any = self._connection.connection.dbapi_connection

    def wait(self, timeout: float) -> bool:
        with self._told():
            return any(True for _ in self._driver.notifies(timeout=timeout, stop_after=1))

    def close(self) -> None:
        self._connection.close()
