# SPDX-License-Identifier: GPL-2.0-or-later
"""Inserts a row into a table of the user's database for each message.

A batch is one transaction. One column has the id of the message, and is unique: a message that
comes again, after a crash or since the connection broke during the commit, inserts nothing.

If the table refuses a value, the batch is inserted row by row, and only the messages at fault go to
quarantine.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, Self

import sqlalchemy as sa
from fedora_messaging.exceptions import ConfigurationException
from pydantic import BaseModel, Field, SecretStr, model_validator
from sqlalchemy.dialects import postgresql, sqlite

from consumer_framework.author.consumer import BatchConsumer
from consumer_framework.core.errors import (
    ConfigurationError,
    DependencyFault,
    Problem,
    Quarantine,
    Retry,
    TemporaryProblem,
)
from consumer_framework.core.text import Duration

from .message_json import as_document
from .user_database import (
    DUPLICATE,
    FAULTS,
    DatabaseConfigError,
    Kind,
    engine_of,
    kind_of,
    limit_time,
    reason_of,
    value_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fedora_messaging.message import Message

    from consumer_framework.author.batch import Batch

_ROOTS = ("id", "topic", "queue", "severity", "priority", "headers", "body")


class InsertRowConfig(BaseModel):
    """The keys of :class:`InsertRow`."""

    database: SecretStr
    """The URL: `"postgresql://USER@HOST/NAME"`, `"mariadb://USER@HOST/NAME"` or
    `"sqlite:////PATH"`."""
    password: SecretStr | None = None
    """The password for it. Write `"credential:NAME"`."""
    table: Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)?$")]
    """The table, or `"SCHEMA.TABLE"`. It must exist."""
    columns: Annotated[dict[str, str], Field(min_length=1)]
    """A path in the message for each column: `n = "body.build.id"`. One column has the path `"id"`,
    and must be unique in the table."""
    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """The database may take so long for a statement."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for column, path in self.columns.items():
            root = path.split(".", maxsplit=1)[0]
            if root not in _ROOTS:
                raise ValueError(
                    f"columns.{column}: {path!r} begins with none of {', '.join(_ROOTS)}; "
                    f"write body.{path} for a key of the body"
                )
        if list(self.columns.values()).count("id") != 1:
            raise ValueError('columns needs one column for the id of the message: NAME = "id"')
        return self

    @property
    def id_column(self) -> str:
        """The column with the id of the message."""
        return next(column for column, path in self.columns.items() if path == "id")


def value_at(document: Any, path: str) -> Any:
    """Return the value at *path* in a message; None if there is none.

    Args:
        document: The message, as :func:`.as_document` returns it.
        path: Keys of tables, and numbers of list entries, with dots between them. A key may itself
            contain dots.
    """
    words = path.split(".") if path else []
    if not words:
        return document
    if isinstance(document, list):
        entry = document[int(words[0]) :][:1] if words[0].isdecimal() else []
        return value_at(entry[0], ".".join(words[1:])) if entry else None
    if not isinstance(document, dict):
        return None
    for length in range(1, len(words) + 1):
        key = ".".join(words[:length])
        if key in document:
            return value_at(document[key], ".".join(words[length:]))
    return None


class InsertRow(BatchConsumer):
    """Insert each message into a table, once."""

    Config = InsertRowConfig
    config: InsertRowConfig

    @classmethod
    def check_config(cls, config: InsertRowConfig, *, connect: bool) -> Iterator[Problem]:
        """Compare the columns with the table: of a SQLite file, and of a server with *connect*."""
        try:
            engine = _engine(config)
        except ConfigurationError as error:
            yield from error.problems
            return
        try:
            if connect or engine.dialect.name == "sqlite":
                _found_table(config, engine)
        except ConfigurationError as error:
            yield from error.problems
        except sa.exc.SQLAlchemyError as error:
            # A server on a local socket may take the user of the service, and not this one.
            if engine.dialect.name == "sqlite" or engine.url.host:
                yield TemporaryProblem("database", str(_away(config, error)))
        finally:
            engine.dispose()

    def setup(self) -> None:
        """Connect, and compare the columns with the table.

        Raises:
            ConfigurationException: There is no such database, table, column or unique key.
            DependencyFault: The database is away.
        """
        config = self.config
        try:
            self._engine = _engine(config)
            self._table = _found_table(config, self._engine)
        except ConfigurationError as error:
            raise ConfigurationException(f"consumer_config.{error.problems[0]}") from error
        except sa.exc.SQLAlchemyError as error:
            raise _away(config, error) from error
        self._statement = _statement(self._table, config.id_column, self._engine.dialect.name)

    def teardown(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def handle_batch(self, messages: Batch) -> None:
        """Insert *messages*.

        Raises:
            DependencyFault: The database is away, or the table is not as it was.
        """
        rows: list[tuple[Message, dict[str, Any]]] = []
        for message in messages:
            try:
                rows.append((message, self._row(message)))
            except ValueError as error:
                messages.fail(message, Quarantine(str(error)))
        if not rows:
            return
        try:
            self._insert([row for _, row in rows])
        except FAULTS as error:
            if kind_of(error) is Kind.DATABASE:
                raise _away(self.config, error) from error
            self._insert_each(messages, rows)

    def _insert_each(self, messages: Batch, rows: Sequence[tuple[Message, dict[str, Any]]]) -> None:
        for message, row in rows:
            try:
                self._insert_one(row)
            except FAULTS as error:
                match kind_of(error):
                    case Kind.DATABASE:
                        raise _away(self.config, error) from error
                    case Kind.AGAIN:
                        messages.fail(message, Retry(self._refused(error)))
                    case Kind.MESSAGE:
                        messages.fail(message, Quarantine(self._refused(error)))

    def _row(self, message: Message) -> dict[str, Any]:
        document = as_document(message)
        row = {}
        for column, path in self.config.columns.items():
            try:
                row[column] = value_for(self._table.c[column], value_at(document, path))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        if not message.id:
            raise ValueError("it has no id")
        return row

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        with self._engine.begin() as connection:
            limit_time(connection, self.config.timeout)
            connection.execute(self._statement, rows)

    def _insert_one(self, row: dict[str, Any]) -> None:
        try:
            self._insert([row])
        except sa.exc.IntegrityError as error:
            if not (_is_duplicate(error) and self._has(row)):
                raise

    def _has(self, row: Mapping[str, Any]) -> bool:
        """Tell if the table has the row of that message, and not only one of a similar id."""
        column = self._table.c[self.config.id_column]
        wanted = row[self.config.id_column]
        with self._engine.connect() as connection:
            found = connection.scalar(sa.select(column).where(column == wanted))
        return bool(found == wanted)

    def _refused(self, error: Exception) -> str:
        return f"the table {self.config.table} refuses the row: {reason_of(error)}"


def _engine(config: InsertRowConfig) -> sa.Engine:
    password = config.password.get_secret_value() if config.password else None
    try:
        return engine_of(config.database.get_secret_value(), password, config.timeout)
    except DatabaseConfigError as error:
        raise ConfigurationError(Problem("database", str(error))) from error


def _away(config: InsertRowConfig, error: Exception) -> DependencyFault:
    url = sa.make_url(config.database.get_secret_value())
    place = url.render_as_string(hide_password=True)
    return DependencyFault(f"the database {place}: {reason_of(error)}")


def _found_table(config: InsertRowConfig, engine: sa.Engine) -> sa.Table:
    """Return the table, which has the columns.

    Raises:
        ConfigurationError: There is no such table, column or unique key.
        SQLAlchemyError: The database is away.
    """
    schema, _, name = config.table.rpartition(".")
    try:
        table = sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=engine)
    except sa.exc.NoSuchTableError as error:
        cure = "create it, or correct the name"
        problem = Problem("table", f"there is no table {config.table}", cure)
        raise ConfigurationError(problem) from error
    for column in config.columns:
        if column not in table.c:
            near = difflib.get_close_matches(column, table.c.keys(), 1)
            cure = f'did you mean "{near[0]}"?' if near else f"it has {', '.join(table.c.keys())}"
            what = f"the table {config.table} has no such column"
            raise ConfigurationError(Problem(f"columns.{column}", what, cure))
    if not _is_unique(table, config.id_column):
        key = config.id_column
        cure = f"CREATE UNIQUE INDEX {name}_{key} ON {config.table} ({key})"
        what = "the column is not unique, so a message could be there twice"
        raise ConfigurationError(Problem(f"columns.{key}", what, cure))
    return table


def _is_unique(table: sa.Table, column: str) -> bool:
    keys = [table.primary_key.columns.keys()]
    keys += [c.columns.keys() for c in table.constraints if isinstance(c, sa.UniqueConstraint)]
    keys += [i.columns.keys() for i in table.indexes if i.unique and not _is_partial(i)]
    return [column] in keys


def _is_partial(index: sa.Index) -> bool:
    options = (index.dialect_options[name] for name in ("postgresql", "sqlite"))
    return any(found.get("where") is not None for found in options)


def _statement(table: sa.Table, key: str, dialect: str) -> sa.Insert:
    """Return the statement that inserts a row, unless there is one with its *key*.

    MariaDB has none that tells this conflict from others: ``INSERT IGNORE`` also stores values that
    do not fit. There the error is looked at.
    """
    match dialect:
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing(index_elements=[key])
        case "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing(index_elements=[key])
    return sa.insert(table)


def _is_duplicate(error: sa.exc.IntegrityError) -> bool:
    cause = error.orig
    return cause is not None and cause.args[:1] == (DUPLICATE,)
