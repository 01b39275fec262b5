# SPDX-License-Identifier: GPL-2.0-or-later
"""A database that is the user's: its engine, the values that its columns take, and its faults.

A fault is one of three kinds (:class:`Kind`): the message has a value that the table refuses, the
transaction met another one and may be repeated, or the database itself is away or is not as the
configuration says. Only the first is a fault of the message.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool

from consumer_framework.core import secrets
from consumer_framework.core.text import clipped, printable
from consumer_framework.settings.credentials import SCHEME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Seconds to connect to a server.
_CONNECT = 10
_DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mariadb"}
_BACKENDS = frozenset({"sqlite", "postgresql", "mariadb", "mysql"})
_LONGEST_REASON = 500


class DatabaseConfigError(ValueError):
    """A URL is none of a database that can be used; the message says why, and the cure."""


class Kind(Enum):
    """The kind of a fault."""

    MESSAGE = "message"
    AGAIN = "again"
    DATABASE = "database"


# Engines.


def engine_of(url: str, password: str | None, timeout: float) -> sa.Engine:
    """Return an engine for *url*, which connects when it is first used.

    Args:
        url: The URL. The driver of ``postgresql://`` is psycopg 3, and that of ``mariadb://`` and
            ``mysql://`` is PyMySQL, unless the URL names another.
        password: The password in place of that of the URL; None for the URL's.
        timeout: Seconds that a statement may take.

    Raises:
        DatabaseConfigError: It cannot be understood, or its driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
        if password is not None:
            parsed = parsed.set(password=password)
        if str(parsed.password or "").startswith(SCHEME):
            raise DatabaseConfigError(f'names a credential; write password = "{parsed.password}"')
        if parsed.password:
            secrets.hide(str(parsed.password), "the password of consumer_config.database")
        name = parsed.drivername
        parsed = parsed.set(drivername=_DRIVERS.get(name.replace("mysql", "mariadb"), name))
        engine = _engine(parsed, timeout)
    except sa.exc.ArgumentError as error:
        cure = "write sqlite:////PATH, postgresql://USER@HOST/NAME or mariadb://USER@HOST/NAME"
        raise DatabaseConfigError(f"is no URL of a database; {cure}") from error
    except ImportError as error:
        extra = _EXTRAS.get(error.name or "", "")
        cure = f"pip install 'consumer-framework[{extra}]'" if extra else "install it"
        raise DatabaseConfigError(f"needs a package that is missing: {error}; {cure}") from error
    if engine.dialect.is_async:
        raise DatabaseConfigError("names an asynchronous driver; leave out the name of the driver")
    return engine


def _engine(url: sa.URL, timeout: float) -> sa.Engine:
    backend = url.get_backend_name()
    if backend not in _BACKENDS:
        raise DatabaseConfigError("is of another kind; use SQLite, PostgreSQL or MariaDB")
    if backend == "sqlite":
        return _sqlite(url, timeout)
    make_options = _DRIVER_OPTIONS.get(url.get_driver_name())
    options = make_options(timeout) if make_options else {}
    engine = sa.create_engine(
        url,
        pool_pre_ping=True,
        max_overflow=-1,  # the slots of the instance are the limit
        isolation_level="READ COMMITTED",
        connect_args={key: value for key, value in options.items() if key not in url.query},
    )
    if backend != "postgresql":
        event.listen(engine, "connect", _be_strict)
    return engine


def _be_strict(connection: Any, _record: Any) -> None:
    """Let MariaDB refuse values that do not fit. Without strict mode it cuts them silently."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')")


def _libpq(timeout: float) -> dict[str, Any]:
    # https://www.postgresql.org/docs/current/libpq-connect.html: milliseconds without an answer.
    return {"connect_timeout": _CONNECT, "tcp_user_timeout": int(timeout * 1000)}


def _pymysql(timeout: float) -> dict[str, Any]:
    limit = max(1, int(timeout))
    return {"connect_timeout": _CONNECT, "read_timeout": limit, "write_timeout": limit}


_DRIVER_OPTIONS: dict[str, Callable[[float], dict[str, Any]]] = {
    "psycopg": _libpq,
    "psycopg2": _libpq,
    "pymysql": _pymysql,
}


def _sqlite(url: sa.URL, timeout: float) -> sa.Engine:
    path = url.database or ""
    if not Path(path).is_absolute():
        raise DatabaseConfigError("must have the absolute path of a file: sqlite:////PATH")
    # `mode=rw`: SQLite would make a file that is missing, or that a disk has which is not mounted.
    # No pool: SQLite goes on writing into a file that was replaced meanwhile.
    engine = sa.create_engine(
        f"sqlite:///file:{quote(path)}?mode=rw&uri=true",
        poolclass=NullPool,
        connect_args={"timeout": timeout},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def limit_time(connection: sa.Connection, timeout: float) -> None:
    """Bound each statement of the transaction of *connection*, where drivers have no such option.

    Args:
        connection: A connection in a transaction.
        timeout: Seconds.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(timeout * 1000)}")


# Values.


def _moment(value: Any, column: sa.DateTime) -> datetime:
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = datetime.fromtimestamp(value, UTC)
    else:
        found = datetime.fromisoformat(value)
    if column.timezone:
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _integer(value: Any, _column: Any) -> int:
    found = int(value)
    if isinstance(value, float) and found != value:
        raise ValueError(value)
    return found


def _boolean(value: Any, _column: Any) -> bool:
    if value not in {False, True}:
        raise ValueError(value)
    return bool(value)


def _decimal(value: Any, _column: Any) -> Decimal:
    return Decimal(str(value))


def _text(value: Any, _column: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(value: Any, _column: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else value


def _bytes(value: Any, _column: Any) -> bytes:
    return value if isinstance(value, bytes) else _text(value, _column).encode()


# The first that fits decides; subclasses stand before their bases. The words are for errors.
_CONVERSIONS: tuple[tuple[type[sa.types.TypeEngine[Any]], str, Callable[[Any, Any], Any]], ...] = (
    (sa.JSON, "JSON", lambda value, _: value),
    (sa.ARRAY, "a list", lambda value, _: list(value) if isinstance(value, list) else [value]),
    (sa.DateTime, "a time such as 2026-11-27T14:03:55+00:00", _moment),
    (sa.Date, "a date such as 2026-11-27", lambda value, _: date.fromisoformat(value[:10])),
    (sa.Time, "a time of day such as 14:03:55", lambda value, _: time.fromisoformat(value)),
    (sa.Boolean, "true or false", _boolean),
    (sa.Integer, "an integer", _integer),
    (sa.Float, "a number", lambda value, _: float(value)),
    (sa.Numeric, "a number", _decimal),
    (sa.Uuid, "a UUID", lambda value, _: uuid.UUID(str(value))),
    (sa.LargeBinary, "bytes", _bytes),
    (sa.types.NullType, "a value", _plain),
    (sa.types.TypeEngine, "text", _text),
)


def value_for(column: sa.Column[Any], value: Any) -> Any:
    """Return *value*, of a message, as *column* takes it; NULL for None.

    Raises:
        ValueError: The column cannot have it; the message says the type that it needs.
    """
    kind = column.type
    if value is None:
        # A column of JSON would get JSON's null.
        return sa.null() if isinstance(kind, sa.JSON) else None
    words, convert = next((w, c) for base, w, c in _CONVERSIONS if isinstance(kind, base))
    try:
        return convert(value, kind)
    except (ValueError, TypeError, LookupError, ArithmeticError, OSError) as error:
        shown = printable(clipped(json.dumps(value, default=str), 80))
        raise ValueError(f"{shown} is no value for its column {column.name}: {words}") from error


# Faults.

# SQLSTATE (Appendix A of PostgreSQL's manual): the codes, or their first two characters.
_POSTGRESQL = {
    "23503": Kind.AGAIN,  # the row that a foreign key names may come later
    "21": Kind.MESSAGE,
    "22": Kind.MESSAGE,
    "23": Kind.MESSAGE,
    "40": Kind.AGAIN,
}
# https://mariadb.com/kb/en/mariadb-error-codes/
_MARIADB = {
    1205: Kind.AGAIN,  # a lock took too long
    1213: Kind.AGAIN,  # a deadlock
    1452: Kind.AGAIN,  # a foreign key
    1264: Kind.MESSAGE,
    1292: Kind.MESSAGE,
    1364: Kind.MESSAGE,
    1366: Kind.MESSAGE,
    1406: Kind.MESSAGE,
    1644: Kind.MESSAGE,  # a trigger refuses it (SIGNAL)
    4025: Kind.MESSAGE,  # a CHECK
}
DUPLICATE = 1062
# SQLAlchemy's own; and errors of values that a driver does not even send: too large an integer, a
# lone surrogate.
FAULTS = (sa.exc.SQLAlchemyError, OverflowError, ValueError)


def kind_of(error: Exception) -> Kind:
    """Return the kind of a fault that a statement or a commit raised."""
    if not isinstance(error, sa.exc.DBAPIError):
        is_value = isinstance(error, sa.exc.StatementError | OverflowError | ValueError)
        return Kind.MESSAGE if is_value else Kind.DATABASE
    cause: Any = error.orig
    if error.connection_invalidated or cause is None:
        return Kind.DATABASE
    if isinstance(cause, sqlite3.Error):
        is_foreign = cause.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
        return Kind.AGAIN if is_foreign else _by_class(error)
    number = cause.args[0] if cause.args else None
    if isinstance(number, int):
        # MariaDB; SQLSTATE says less there.
        return _MARIADB.get(number) or _by_class(error)
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if not isinstance(state, str):
        return _by_class(error)
    return _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2]) or Kind.DATABASE


def _by_class(error: sa.exc.DBAPIError) -> Kind:
    is_value = isinstance(error, sa.exc.DataError | sa.exc.IntegrityError)
    return Kind.MESSAGE if is_value else Kind.DATABASE


def reason_of(error: Exception) -> str:
    """Return one line about a fault, without secrets."""
    cause = getattr(error, "orig", None) or error
    parts: Sequence[Any] = getattr(cause, "args", ())
    # PyMySQL: the number and the text.
    text = str(parts[1]) if len(parts) > 1 and isinstance(parts[0], int) else str(cause)
    first = text.strip().partition("\n")[0] or type(cause).__name__
    return printable(clipped(secrets.redact(first), _LONGEST_REASON))
