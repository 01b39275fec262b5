# SPDX-License-Identifier: GPL-2.0-or-later
"""Sees the commits of databases: those of sqlite3, and those that SQLAlchemy makes anywhere.

The effect of a transaction is its commit: a process that dies before it leaves nothing behind. A
transaction that changed no row has no effect. Statements that define tables do not count.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
import sys
import weakref
from typing import TYPE_CHECKING, Any

from .effects import clipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .effects import EffectWatch

_CHANGES = re.compile(
    r"\s*(INSERT|UPDATE|DELETE|REPLACE|MERGE|WITH\b.*\b(INSERT|UPDATE|DELETE))\b",
    re.IGNORECASE | re.DOTALL,
)
_COMMITS = re.compile(r"\s*(COMMIT|END)\b", re.IGNORECASE)


def _words(statements: list[str]) -> str:
    more = f" (and {len(statements) - 1} more)" if len(statements) > 1 else ""
    return f"{clipped(statements[0])}{more}"


class SqliteWatch:
    """Sees the commits of connections that ``sqlite3.connect`` makes in its block.

    Args:
        watch: Told of the commits.
    """

    def __init__(self, watch: EffectWatch) -> None:
        self._watch = watch
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch while the block runs."""
        # SQLAlchemy and Django have the second name.
        modules: tuple[Any, ...] = (sqlite3, sqlite3.dbapi2)
        originals = [module.connect for module in modules]
        for module, original in zip(modules, originals, strict=True):
            module.connect = functools.partial(self._connect, original)
        try:
            yield
        finally:
            for module, original in zip(modules, originals, strict=True):
                module.connect = original

    def roll_back(self) -> None:
        """Undo the transactions that are open, as the end of the process does."""
        for connection in list(self._connections):
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()

    def _connect(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        base = kwargs.pop("factory", sqlite3.Connection)
        watched = type(base.__name__, (_WatchedConnection, base), {"watch": self._watch})
        # Another thread may roll it back when the process dies.
        kwargs["check_same_thread"] = False
        connection = original(*args, factory=watched, **kwargs)
        self._connections.add(connection)
        return connection


class _WatchedConnection:
    """A connection of sqlite3 that tells of its commits; mixed into the class of the caller."""

    watch: EffectWatch
    _changes: list[str] | None = None

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        watched = type(factory.__name__, (_WatchedCursor, factory), {"watch": self.watch})
        return self._super.cursor(watched)

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def executescript(self, script: str) -> Any:
        return self.cursor().executescript(script)

    def changed(self, sql: str) -> None:
        """Note a statement that changed something."""
        self._changes = [*(self._changes or ()), sql]

    def commit(self) -> None:
        self.committed(self._super.commit)

    def committed(self, commit: Callable[[], Any]) -> Any:
        """Call *commit*, an effect if something was changed."""
        changes, self._changes = self._changes, None
        return self.watch.around("SQL", _words(changes), commit) if changes else commit()

    def rollback(self) -> None:
        self._changes = None
        self._super.rollback()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()

    @property
    def _super(self) -> Any:
        return super()


class _WatchedCursor:
    """A cursor that notes the statements that changed something."""

    watch: EffectWatch
    connection: Any

    def execute(self, sql: str, *args: Any) -> Any:
        return self._run(sql, lambda: self._super.execute(sql, *args))

    def executemany(self, sql: str, *args: Any) -> Any:
        return self._run(sql, lambda: self._super.executemany(sql, *args))

    def executescript(self, script: str) -> Any:
        # It commits first, and leaves each statement to itself.
        self.connection.commit()
        return self._alone(script, lambda: self._super.executescript(script))

    @property
    def _super(self) -> Any:
        return super()

    def _run(self, sql: str, call: Callable[[], Any]) -> Any:
        if _COMMITS.match(sql):
            return self.connection.committed(call)
        if not _CHANGES.match(sql):
            return call()
        if _commits_itself(self.connection):
            return self._alone(sql, call)
        before = self.connection.total_changes
        returned = call()
        if self.connection.total_changes != before:
            self.connection.changed(sql)
        return returned

    def _alone(self, sql: str, call: Callable[[], Any]) -> Any:
        before = self.connection.total_changes
        return self.watch.around(
            "SQL", clipped(sql), call, lambda: self.connection.total_changes != before
        )


def _commits_itself(connection: Any) -> bool:
    """Tell whether a statement is a transaction of its own."""
    if connection.in_transaction:
        return False
    # Python 3.12 has it; -1 leaves the decision to the isolation level.
    autocommit = getattr(connection, "autocommit", -1)
    return connection.isolation_level is None if autocommit == -1 else bool(autocommit)


class SqlalchemyWatch:
    """Sees the commits that SQLAlchemy makes, with any database and from any engine.

    Args:
        watch: Told of the commits.
    """

    def __init__(self, watch: EffectWatch) -> None:
        self._watch = watch
        # By the connection to the database.
        self._changes: dict[int, tuple[Any, list[str]]] = {}
        self._dialects: list[Any] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch while the block runs, if something has imported SQLAlchemy."""
        if "sqlalchemy.engine" not in sys.modules:
            yield
            return
        from sqlalchemy import event  # noqa: PLC0415 -- only for those who have it
        from sqlalchemy.engine import Engine  # noqa: PLC0415

        listeners: dict[str, Callable[..., Any]] = {
            "after_cursor_execute": self._executed,
            "rollback": self._rolled_back,
        }
        for name, listener in listeners.items():
            event.listen(Engine, name, listener)
        try:
            yield
        finally:
            for name, listener in listeners.items():
                event.remove(Engine, name, listener)
            for dialect in self._dialects:
                del dialect.do_commit

    def roll_back(self) -> None:
        """Undo the transactions that are open, as the end of the process does."""
        for connection, _ in self._changes.values():
            with contextlib.suppress(Exception):
                connection.rollback()
        self._changes.clear()

    def _executed(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not _CHANGES.match(statement) or cursor.rowcount == 0:
            return
        if "do_commit" not in vars(connection.dialect):
            self._dialects.append(connection.dialect)
            commit = connection.dialect.do_commit
            connection.dialect.do_commit = functools.partial(self._commit, commit)
        raw = _raw(connection.connection)
        self._changes.setdefault(id(raw), (raw, []))[1].append(statement)

    def _rolled_back(self, connection: Any) -> None:
        self._changes.pop(id(_raw(connection.connection)), None)

    def _commit(self, commit: Callable[[Any], None], connection: Any) -> None:
        _, changes = self._changes.pop(id(_raw(connection)), (None, []))
        if changes:
            self._watch.around("SQL", _words(changes), lambda: commit(connection))
        else:
            commit(connection)


def _raw(connection: Any) -> Any:
    """Return the connection of the driver, which a pool wraps."""
    return getattr(connection, "dbapi_connection", connection)
