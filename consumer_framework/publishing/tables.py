# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of the outbox and their rows, as values; and the INSERT of an application.

**States.** ``waiting`` rows are to be sent; ``dead`` ones can never be sent, and wait for an
operator. A waiting row is due when its ``due`` has come: 0 for a new row, so that the clocks of
applications do not matter, and a time in seconds since the epoch after a failure.

The migrations declare the types of the columns; here they matter for values only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from .message import Outgoing
from .migrations import VERSION_TABLE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

# The channel of PostgreSQL's NOTIFY.
CHANNEL = "fm_outbox"

_metadata = sa.MetaData()
outbox_table = sa.Table(
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
counts_table = sa.Table(
    "fm_outbox_counts",
    _metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger),
)
lease_table = sa.Table(
    "fm_outbox_lease",
    _metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64)),
    sa.Column("until", sa.Double),
)
version_table = sa.Table(VERSION_TABLE, _metadata, sa.Column("version_num", sa.String(32)))

c = outbox_table.c
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
MESSAGE = (
    c.id,
    c.message_id,
    c.topic,
    c.body,
    c.headers,
    c.exchange,
    c.priority,
    c.ordering_key,
    c.created,
    c.attempts,
    c.on_failure,
)


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


# json.loads() would look for an encoding and for blanks first.
_decode = json.JSONDecoder().raw_decode


def parts(row: Any, bodies: Mapping[int, bytes] | None = None) -> tuple[int, Outgoing, int, str]:
    """Return the values of a :class:`Claimed`.

    Args:
        row: It begins with the columns :data:`MESSAGE`.
        bodies: The body by id, where the row has none.
    """
    id_, message_id, topic, body, headers, exchange, priority, key, created, attempts, choice = row[
        :11
    ]
    if body is None and bodies:
        body = bodies[id_]
    fields, _ = _decode(headers)
    message = Outgoing(message_id, topic, bytes(body), fields, exchange, priority, key, created)
    return id_, message, attempts, choice


# Each dialect's INSERT as text, because SQLAlchemy's way to execute one takes longer than SQLite.
_statements: dict[tuple[str, str, str], tuple[str, tuple[str, ...] | None]] = {}


def insert_for(dialect: sa.Dialect) -> tuple[str, tuple[str, ...] | None]:
    """Return the INSERT of *dialect*, and the order of its parameters if they have no names."""
    key = (dialect.name, dialect.driver, dialect.paramstyle)
    try:
        return _statements[key]
    except KeyError:
        values: dict[str, Any] = {name: sa.bindparam(name) for name in _WRITTEN}
        compiled: Any = sa.insert(outbox_table).values(values).compile(dialect=dialect)
        order = tuple(compiled.positiontup) if compiled.positional else None
        return _statements.setdefault(key, (str(compiled), order))


def _values_of(message: Outgoing, on_failure: str) -> tuple[Any, ...]:
    """Return the columns that an INSERT writes, in the order of their names above."""
    return (
        message.id,
        message.topic,
        message.exchange,
        message.body,
        json.dumps(dict(message.headers)),
        message.priority,
        message.ordering_key,
        message.created,
        on_failure,
    )


def insert(connection: sa.Connection, messages: Iterable[tuple[Outgoing, str]]) -> None:
    """Insert *messages* in the transaction of *connection*, in their order.

    Args:
        connection: Of any engine whose database has the table.
        messages: Each with ``"wait"``, ``"skip"`` or ``"spool"``.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database did not take them.
    """
    dialect = connection.dialect
    statement, order = insert_for(dialect)
    rows: list[Any] = [dict(zip(_WRITTEN, _values_of(*one), strict=True)) for one in messages]
    if not rows:
        return
    if order is not None:
        rows = [tuple(row[name] for name in order) for row in rows]
    connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0])
    if dialect.name == "postgresql":
        # PostgreSQL delivers it when the transaction commits, once for each transaction.
        connection.exec_driver_sql(f"NOTIFY {CHANNEL}")


_INSERT_INTO_FILE = f"INSERT INTO fm_outbox ({', '.join(_WRITTEN)}) VALUES "  # noqa: S608


def insert_into_file(driver: sqlite3.Connection, messages: Iterable[tuple[Outgoing, str]]) -> None:
    """Insert *messages* with sqlite3 alone: SQLAlchemy would take longer than the commit.

    Raises:
        sqlite3.Error: The database did not take them.
    """
    insert_rows(driver, _INSERT_INTO_FILE, [_values_of(*one) for one in messages])


# Rows of one statement. SQLite before 3.32 takes 999 parameters, and a message has nine.
_AT_ONCE = 100


def insert_rows(
    driver: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert *rows*, many with one statement.

    For each row of ``executemany()``, sqlite3 would let other threads of the process run, and then
    wait for them.

    Args:
        driver: In a transaction.
        statement: An INSERT as far as its ``VALUES``.
        rows: All have the same length, up to nine.

    Raises:
        sqlite3.Error: The database did not take them.
    """
    for start in range(0, len(rows), _AT_ONCE):
        portion = rows[start : start + _AT_ONCE]
        places = f"({', '.join('?' * len(portion[0]))})"
        values = list(chain.from_iterable(portion))
        driver.execute(statement + ", ".join([places] * len(portion)), values)
