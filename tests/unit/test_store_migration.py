# SPDX-License-Identifier: GPL-2.0-or-later
"""A store of an older version keeps all its rows, and works like a new one."""

import asyncio
import sqlite3
from contextlib import closing

import pika
import pytest

from consumer_framework.adapters.store import Limits, Stats, Store
from consumer_framework.adapters.store.files import MIGRATIONS
from consumer_framework.adapters.store.properties import pack
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

_COLUMNS = """(id, queue, key, state, message_id, exchange, routing_key, redelivered, received_at,
    properties, body, due, reason, fingerprint, crashes, created, updated, parent)"""
NONE = pack(pika.BasicProperties())
# Rows of version 1: a deferred row, a quarantined one, one in a replay, and one that was edited
# twice.
ROWS = [
    (1, "deferred", "1", 5.0, None),
    (2, "quarantined", "2", None, None),
    (3, "replaying", "3", None, None),
    (4, "superseded", "4", None, None),
    (5, "superseded", "4", None, 4),
    (7, "quarantined", "4", None, 5),
    (8, "quarantined", "8", None, None),
]


def make_version_1(directory):
    database = directory / "store.sqlite3"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(MIGRATIONS[0])
        connection.executescript("PRAGMA application_id = 0x464D4A4C; PRAGMA user_version = 1;")
        for number, state, message_id, due, parent in ROWS:
            connection.execute(
                f"INSERT INTO messages {_COLUMNS} VALUES (?, 'queue', ?, ?, ?, 'amq.topic', "  # noqa: S608
                "'org.example', 0, 1.5, ?, ?, ?, 'why', 'cause', 2, 10.0, 11.0, ?)",
                (number, b"key %d" % number, state, message_id, NONE, b"%d" % number, due, parent),
            )
        connection.execute(
            "INSERT INTO attempts VALUES (1, 2, 9.0, 'ValueError', 'no', 'Traceback', 'cause')"
        )
        connection.commit()


def test_every_row_of_version_1_is_there_unchanged(tmp_path):
    make_version_1(tmp_path)
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        rows = store.rows(state=None)
        assert [(r.id, r.state, r.message_id, r.due, r.parent) for r in rows] == [
            (number, state.replace("replaying", "quarantined"), message_id, due, parent)
            for number, state, message_id, due, parent in ROWS
        ]
        assert {(row.lane, row.behind, row.reason, row.crashes) for row in rows} == {
            ("", None, "why", 2)
        }
        assert [row.error for row in rows if row.id == 2] == ["ValueError"]
        bodies = [getattr(store.delivery(row.id), "body", None) for row in rows]
        assert bodies == [b"%d" % row[0] for row in ROWS]
        # Bodies, properties, reasons, and one attempt.
        size = 7 * (1 + len(NONE) + len("why")) + len("no" + "Traceback")
        assert store.stats() == Stats(1, 4, 0, 2, size, 11.0, 5.0, 0)


def test_rows_of_version_1_are_due_claimed_and_dropped_as_before(tmp_path):
    make_version_1(tmp_path)

    async def use(store):
        assert [delivery.row for delivery in store.due(9.0)] == [1]
        assert await store.claim(8)
        assert await store.claim(2)
        await store.resolve(2)
        assert await store.drop([7]) == [7]
        assert await store.release(8)
        await store.remove(1)

    with closing(Store.open(tmp_path, limits=Limits())) as store:
        asyncio.run(use(store))
        assert [row.id for row in store.rows(state=None)] == [3, 8]


def test_a_migrated_store_has_the_schema_of_a_new_one(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    make_version_1(tmp_path / "old")
    schemas = []
    for name in "old", "new":
        Store.open(tmp_path / name, limits=Limits()).close()
        with closing(sqlite3.connect(tmp_path / name / "store.sqlite3")) as connection:
            query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
            schemas.append(connection.execute(query).fetchall())
            assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert schemas[0] == schemas[1]


def test_an_edited_row_of_version_1_has_the_place_of_its_first_original(tmp_path):
    make_version_1(tmp_path)
    Store.open(tmp_path, limits=Limits()).close()
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        places = dict(connection.execute("SELECT id, position FROM messages"))
    assert places == {1: 1, 2: 2, 3: 3, 4: 4, 5: 4, 7: 4, 8: 8}


def test_a_reader_does_not_migrate(tmp_path):
    make_version_1(tmp_path)
    with pytest.raises(StoreError, match="older version; start the instance once"):
        Store.read(tmp_path)
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        delivery = make_delivery(message_id="new")
        asyncio.run(store.quarantine(delivery, "poison"))
        assert store.rows()[-1].id == 9
