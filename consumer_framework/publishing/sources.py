# SPDX-License-Identifier: GPL-2.0-or-later
"""Store the messages that handlers published, once for each run of a handler.

A handler's messages are committed before its delivery is acknowledged. Two accidents would store
them a second time:

- The process dies between the commit and the acknowledgement. The broker delivers the message
  again, the handler runs again, and publishes again.
- The database does not answer the commit. Nobody knows if it happened, and it is tried again.

So the sources are committed in the same transaction: a row for each delivery, with the number of
its run. A run that is written again finds its own number. A delivery that comes again finds the row
of the one before, and its messages are left out, because those of the first run are stored. A
delivery that does not come again replaces the row: an equal message was published anew. So does one
whose row is of this process, which settles a redelivery of its own without a second run.

A batch is left out only if all of its deliveries are known. A message without an id is never known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from .tables import insert, insert_into_file, insert_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .collecting import Entry
    from .store import OutboxStore
    from .writer import RunToStore

# Seconds for which a source is known: a broker redelivers as soon as a consumer is there again.
KNOWN_SECONDS = 7 * 86400.0
# Sources that are known. At most as many deliveries as are unacknowledged come again.
KNOWN_SOURCES = 100_000
# Of one statement: SQLite takes 32766 parameters, and 999 before 3.32.
_PORTION = 500

_sources = sa.Table(
    "fm_outbox_sources",
    sa.MetaData(),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("run", sa.String(64)),
    sa.Column("stored", sa.Double),
)
_s = _sources.c


def store_runs(store: OutboxStore, runs: Sequence[RunToStore], now: float) -> int:
    """Store the messages of *runs* and their sources, in one transaction.

    Args:
        store: Its tables are there.
        runs: In the order of their messages.
        now: Seconds since the epoch.

    Returns:
        The number of messages that were stored.

    Raises:
        OutboxError: None of them was stored, or the end of the commit is not known.
    """
    if store.is_sqlite:
        with store.file_transaction() as driver:
            fresh = _not_known(runs, lambda keys: driver.execute(_find_in_file(keys), keys))
            messages = _messages_of(fresh)
            insert_into_file(driver, messages)
            insert_rows(driver, _REPLACE_IN_FILE, _rows_of(fresh, now))
            return len(messages)
    with store.transaction() as connection:
        fresh = _not_known(runs, lambda keys: connection.execute(_FIND, {"keys": keys}))
        messages = _messages_of(fresh)
        insert(connection, messages)
        if rows := _rows_of(fresh, now):
            connection.execute(_FORGET, {"keys": [source for source, _, _ in rows]})
            connection.execute(_ADD, [dict(zip(_NAMES, row, strict=True)) for row in rows])
        return len(messages)


_FIND = sa.select(_s.source, _s.run).where(_s.source.in_(sa.bindparam("keys", expanding=True)))
_FORGET = sa.delete(_sources).where(_s.source.in_(sa.bindparam("keys", expanding=True)))
_ADD = sa.insert(_sources)
_NAMES = ("source", "run", "stored")
_REPLACE_IN_FILE = "INSERT OR REPLACE INTO fm_outbox_sources (source, run, stored) VALUES "


def _find_in_file(keys: Sequence[str]) -> str:
    places = ", ".join("?" * len(keys))
    return f"SELECT source, run FROM fm_outbox_sources WHERE source IN ({places})"  # noqa: S608


def _not_known(
    runs: Sequence[RunToStore], find: Callable[[list[str]], Iterable[Any]]
) -> list[RunToStore]:
    """Return the *runs* that are not stored; *find* yields the known ones of some sources."""
    keys = [key for run in runs if run.may_be_known for key in run.keys]
    known: dict[str, str] = {}
    for start in range(0, len(keys), _PORTION):
        known.update(map(tuple, find(keys[start : start + _PORTION])))
    return [run for run in runs if not (run.may_be_known and run.is_known(known))]


def _messages_of(runs: Sequence[RunToStore]) -> list[Entry]:
    # The executor knows no more of them than that they can be stored.
    return cast("list[Entry]", [entry for run in runs for entry in run.published.messages])


def _rows_of(runs: Sequence[RunToStore], now: float) -> list[tuple[str, str, float]]:
    # Two equal messages may be in one group: the later one has the row.
    rows = {key: (key, run.run, now) for run in runs for key in run.keys}
    return list(rows.values())


def forget_old_sources(store: OutboxStore, now: float) -> None:
    """Forget the sources that are too old, or too many.

    Raises:
        OutboxError: The database did not do it.
    """
    oldest = sa.select(_s.stored).order_by(_s.stored.desc()).offset(KNOWN_SOURCES).limit(1)
    with store.transaction() as connection:
        first = connection.scalar(oldest) or 0.0
        limit = max(first, now - KNOWN_SECONDS)
        connection.execute(sa.delete(_sources).where(_s.stored <= limit))
