# SPDX-License-Identifier: GPL-2.0-or-later
"""The database of an outbox: engines, transactions, forks, migrations. It knows no rows."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.secrets import redact

from .message import OutboxError
from .migrations import VERSION_TABLE, is_newer, new_file, serves, upgrade
from .tables import CHANNEL, outbox_table, version_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

# Seconds to connect to a server; drivers wait longer, or for ever.
CONNECT = 10
# The drivers that have the option.
_LIMITED = {"psycopg", "psycopg2", "pymysql", "mysqldb"}
# Seconds that a statement waits for another writer of the same SQLite file.
BUSY = 30.0
# Seconds between two attempts where SQLite itself does not wait.
_LOOK = 0.05
# Any number, the same in each process.
_MIGRATION_LOCK = 3172450291
# SQLite's only word for each reason why there is no file.
_NO_FILE = "unable to open database file"
_BACKENDS = {"sqlite", "postgresql", "mariadb", "mysql"}
_URLS = "write sqlite:////PATH, postgresql://USER@HOST/NAME or mariadb://USER@HOST/NAME"
_DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mariadb"}


def create_engine(url: str | sa.URL) -> sa.Engine:
    """Return an engine for *url* with the durability that an outbox needs.

    SQLite files get WAL, ``synchronous=FULL`` and ``BEGIN IMMEDIATE``. The driver of
    ``postgresql://`` is psycopg 3, and that of ``mariadb://`` and ``mysql://`` is PyMySQL, unless
    the URL names another.

    Raises:
        ConfigurationError: The URL cannot be understood or names another database, or its driver is
            not installed.
    """
    try:
        parsed = sa.make_url(url)
        name = parsed.drivername
        parsed = parsed.set(drivername=_DRIVERS.get(name.replace("mysql", "mariadb"), name))
        if (refused := _refusal(parsed)) is not None:
            raise _unusable(refused, _URLS)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, wal=True)
        is_known = parsed.get_driver_name() in _LIMITED and "connect_timeout" not in parsed.query
        limit = {"connect_timeout": CONNECT} if is_known else {}
        return sa.create_engine(parsed, pool_pre_ping=True, connect_args=limit, **_READ_COMMITTED)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise _unusable("the URL of the outbox's database cannot be understood", _URLS) from error
    except ImportError as error:
        extra = _EXTRAS.get(error.name or "", "")
        cure = f"install it: pip install 'consumer-framework[{extra}]'" if extra else "install it"
        raise _unusable(f"a package for the outbox's database is missing: {error}", cure) from error


def _refusal(url: sa.URL) -> str | None:
    """Return the reason why no outbox can be at *url*, or None."""
    backend = url.get_backend_name()
    if backend not in _BACKENDS:
        return f"the outbox cannot be in {backend}"
    if url.get_dialect().is_async:
        return f"the driver {url.get_driver_name()} is for coroutines, and the outbox uses threads"
    if backend == "sqlite" and (not url.database or ":memory:" in url.database):
        return "a database in memory keeps no message"
    return None


# Applications insert while a relay claims: in MariaDB a stricter level locks the gaps between keys,
# and in PostgreSQL it fails where a row has changed. The default of an application may be another.
_READ_COMMITTED: dict[str, Any] = {"isolation_level": "READ COMMITTED"}


def _unusable(what: str, cure: str) -> ConfigurationError:
    return ConfigurationError(Problem("consumer_config.framework.outbox.database", what, cure))


# A missing table or column: SQLSTATE of PostgreSQL (Appendix A of its manual), errors of MariaDB.
_LACKING = {"42P01", "42703", 1146, 1054}


def _lacks_table(cause: BaseException) -> bool:
    if isinstance(cause, sqlite3.Error):
        return str(cause).startswith(("no such table", "no such column")) or (
            "has no column named" in str(cause)
        )
    return not _LACKING.isdisjoint({getattr(cause, "sqlstate", None), *cause.args[:1]})


_UPDATE = "update consumer-framework on this host"


def _of_newer(version: str) -> str:
    return f"has tables of version {version}, which this program is too old for"


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
            _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    @event.listens_for(engine, "checkout")
    def _used(_connection: Any, record: Any, _proxy: Any) -> None:
        found = _identity(url.database)
        known = record.info.setdefault("file", found)
        if known is None:
            record.info["file"] = found
        elif known != found:
            # SQLite goes on writing into a file that was deleted. The pool connects anew.
            raise sa.exc.DisconnectionError("the file was replaced")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Let the file have WAL. SQLite does not wait for another writer here, as it does elsewhere."""
    end = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(_LOOK)
        else:
            return


def _identity(file: str | None) -> tuple[int, int] | None:
    try:
        status = os.stat(file or "")  # noqa: PTH116 -- at each use of a connection
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _own(engine: sa.Engine) -> tuple[sa.Engine, bool]:
    """Return the engine to use beside the application's, and true if it is ours to dispose of."""
    match engine.dialect.name:
        case "postgresql" | "mysql" | "mariadb":
            return engine.execution_options(**_READ_COMMITTED), False
        case "sqlite" if engine.url.database and ":memory:" not in engine.url.database:
            return _sqlite(engine.url, wal=False), True
    cure = "use a SQLite file, PostgreSQL or MariaDB"
    raise _unusable(f"the outbox cannot be in {engine.dialect.name} with this URL", cure)


_stores: weakref.WeakSet[Database] = weakref.WeakSet()
# Connections that a forked child got from its parent. They are never used nor closed there: closing
# one could end a transaction of the parent.
_inherited: list[Any] = []


def _forked() -> None:
    for store in list(_stores):
        store._after_fork()  # noqa: SLF001 -- this module's own


os.register_at_fork(after_in_child=_forked)


class Database:
    """The database of an outbox. Several threads may use it at once.

    Args:
        engine: An application's engine, whose connections the store uses as well. Of a SQLite file
            the store opens connections of its own.

    Attributes:
        is_sqlite: True if it is a SQLite file.
        lacks_tables: True if the last error was that a table is missing: the file was replaced.

    Raises:
        ConfigurationError: The database is none that an outbox can be in.
    """

    def __init__(self, engine: sa.Engine) -> None:
        used, is_own = _own(engine)
        self._set_up(used, is_own=is_own)

    @classmethod
    def connect(cls, url: str | sa.URL) -> Self:
        """Return the store of the database at *url*; see :func:`create_engine`."""
        store = cls.__new__(cls)
        store._set_up(create_engine(url), is_own=True)  # noqa: SLF001 -- this class's own
        return store

    def _set_up(self, engine: sa.Engine, *, is_own: bool) -> None:
        self.engine = engine
        self._is_own = is_own
        self.is_sqlite = engine.dialect.name == "sqlite"
        # Threads wait here, and not in SQLite, which polls.
        self._writing = threading.Lock()
        self._pid = os.getpid()
        self.lacks_tables = False
        _stores.add(self)

    @property
    def has_file(self) -> bool:
        """True if this is no SQLite file, or one that is there. An engine would make it."""
        return not self.is_sqlite or os.path.exists(self.engine.url.database or "")  # noqa: PTH110

    @property
    def place(self) -> str:
        """The database, for people; without a password."""
        return self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the connections that are the store's own."""
        if self._is_own:
            self.engine.dispose()

    def _after_fork(self) -> None:
        self._pid = os.getpid()
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
        with self.told():
            if not self.is_sqlite:
                with self.engine.begin() as connection:
                    yield connection
                return
            with self.alone_in_process(), self.engine.begin() as connection:
                yield connection

    @contextlib.contextmanager
    def alone_in_process(self) -> Iterator[None]:
        """Let one thread at a time write to a SQLite file."""
        if not self._writing.acquire(timeout=BUSY):
            raise OutboxError(f"the outbox {self.place} is busy for {BUSY:.0f} s")
        try:
            yield
        finally:
            self._writing.release()

    @contextlib.contextmanager
    def file_transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection of sqlite3 itself, where the database is a SQLite file.

        Commit if the block ends, roll back if it raises.

        Raises:
            OutboxError: The database did not do it.
        """
        with self.told(), self.alone_in_process():
            pooled = self.engine.raw_connection()
            try:
                driver: Any = pooled.driver_connection
                driver.execute("BEGIN IMMEDIATE")
                try:
                    yield driver
                    driver.execute("COMMIT")
                except BaseException:
                    if driver.in_transaction:
                        driver.execute("ROLLBACK")
                    raise
            finally:
                pooled.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection for one transaction that only reads."""
        with self.told(), self.engine.connect() as connection:
            connection.execution_options(reads_only=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn an error of the database into one line."""
        if self._pid != os.getpid():
            # A server in C, such as uWSGI, forks without telling Python.
            self._after_fork()
        try:
            yield
        except (sa.exc.SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error) as error:
            cause = getattr(error, "orig", None) or error
            line = redact(" ".join(str(cause).split()))
            lacks = self.lacks_tables = _lacks_table(cause)
            cure = "; create its tables: fm-consumer outbox migrate" if lacks else ""
            if line == _NO_FILE:
                cure = "; is its directory there, and may this user write into it?"
            raise OutboxError(f"the outbox {self.place}: {line}{cure}") from error

    def migrate(self) -> None:
        """Create the tables, or bring them to the version of this code. Doing it twice is no harm.

        Raises:
            OutboxError: The database did not do it, or its tables are of a newer version that this
                code cannot use.
        """
        with self._alone(), self.transaction() as connection:
            found = self._found_version(connection)
            if found is not None and serves(found):
                return
            if found is not None and is_newer(found):
                raise OutboxError(f"the outbox {self.place} {_of_newer(found)}: {_UPDATE}")
            ours = {VERSION_TABLE, outbox_table.name}
            if self.is_sqlite and ours.isdisjoint(sa.inspect(connection).get_table_names()):
                for statement in new_file.STATEMENTS:
                    connection.exec_driver_sql(statement)
                return
            try:
                upgrade(connection)
            except Exception as error:
                if not type(error).__module__.startswith("alembic"):
                    raise
                text = f"the outbox {self.place} has tables of an unknown version"
                raise OutboxError(f"{text}: {error}") from error

    def fault_of_tables(self, migrate: str) -> tuple[str, str] | None:
        """Return the reason why this code cannot use the tables, and the cure; None if it can.

        Args:
            migrate: The command that brings them to the version of this code.

        Raises:
            OutboxError: The database does not answer.
        """
        with self.reading() as connection:
            found = self._found_version(connection)
        if found is None:
            return "has no tables", f"run: {migrate}"
        if serves(found):
            return None
        if is_newer(found):
            return _of_newer(found), _UPDATE
        return f"has tables of an older version, {found}", f"run: {migrate}"

    @staticmethod
    def _found_version(connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.scalar(sa.select(version_table.c.version_num))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time migrate. SQLite's transaction does that by itself."""
        locks = {
            "postgresql": f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})",
            # It ends with the connection: MariaDB's changes of tables commit by themselves.
            "mysql": f"SELECT GET_LOCK('{CHANNEL}', {BUSY:.0f})",
        }
        locks["mariadb"] = locks["mysql"]
        lock = locks.get(self.engine.dialect.name)
        if lock is None:
            yield
            return
        with self.told(), self.engine.connect() as connection:
            connection.exec_driver_sql(lock)
            try:
                yield
            finally:
                connection.invalidate()
