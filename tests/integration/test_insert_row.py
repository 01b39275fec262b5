# SPDX-License-Identifier: GPL-2.0-or-later
"""`InsertRow` keeps its promise with SQLite, PostgreSQL and MariaDB, also while they are away."""

from __future__ import annotations

import json
import signal

import pytest
import sqlalchemy as sa
from fedora_messaging.message import Message

from consumer_framework.core.disposition import Ack, Hold, Quarantine
from consumer_framework.kit.user_database import engine_of
from consumer_framework.testing import Harness

from .instance import publish, until
from .outbox import POSTGRESQL, on_every_database, on_servers
from .test_ready_made import start_kit  # noqa: F401 -- a fixture

CONSUMER = "consumer_framework.kit.insert_row:InsertRow"
COLUMNS = {
    "message_id": "id",
    "number": "body.n",
    "name": "body.name",
    "at": "body.at",
    "data": "body",
    "parent": "body.parent",
}


@pytest.fixture
def engine(outbox_url):
    engine = engine_of(outbox_url, None, 10)
    if engine.dialect.name == "sqlite":
        # The consumer itself makes no file.
        engine.dispose()
        engine = sa.create_engine(outbox_url)
    metadata = sa.MetaData()
    sa.Table("parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "builds",
        metadata,
        sa.Column("row", sa.Integer, primary_key=True),
        sa.Column("message_id", sa.String(36), unique=True, nullable=False),
        sa.Column("number", sa.Integer, sa.CheckConstraint("number < 100")),
        sa.Column("name", sa.String(10)),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("data", sa.JSON),
        sa.Column("parent", sa.ForeignKey("parents.id")),
    )
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def rows(engine, columns="number"):
    with engine.connect() as connection:
        return connection.exec_driver_sql(f"SELECT {columns} FROM builds ORDER BY number").all()  # noqa: S608 -- columns of a test


def message(n=1, **body):
    return Message(topic="org.example.build", body={"n": n, **body})


def inserting(url, **settings):
    config = {"database": url, "table": "builds", "columns": COLUMNS, "timeout": "5s"}
    return Harness(CONSUMER, config=config, settings={"batch": {"size": 1}, **settings})


@on_every_database
def test_a_row_has_the_values_and_a_message_that_comes_again_none(outbox_url, engine):
    first = message(1, name="clé", at="2026-11-27T14:03:55Z", list=[1, None])
    with inserting(outbox_url, batch={"size": 3, "seconds": 60}) as run:
        for each in (first, message(2), first):
            run.deliver(each)
        run.deliver(first)
        run.advance("1m")
        assert len(run.acked) == 4
    found = rows(engine, "number, message_id, name, at, data")
    assert [row[0] for row in found] == [1, 2]
    assert found[0][1] == first.id
    assert found[0][2] == "clé"
    assert str(found[0][3]).startswith("2026-11-27 14:03:55")
    data = found[0][4]
    assert (json.loads(data) if isinstance(data, str) else data) == first.body


@on_every_database
def test_only_messages_whose_values_are_refused_are_quarantined(outbox_url, engine):
    is_sqlite = engine.dialect.name == "sqlite"
    # SQLite keeps a text of any length.
    bad = [message(100), message("x"), message(7, at="never"), message(1 << 70)]
    bad += [] if is_sqlite else [message(5, name="x" * 11)]
    bad += [message(6, name="a\0b")] if engine.dialect.name == "postgresql" else []
    with inserting(outbox_url, batch={"size": 10, "seconds": 60}) as run:
        for each in (message(1), *bad, message(2)):
            run.deliver(each)
        run.advance("1m")
        assert run.quarantined == bad
        assert all(why for _, why in run.store.quarantined)
    assert [row[0] for row in rows(engine)] == [1, 2]


@on_servers
def test_a_row_whose_parent_comes_later_is_tried_again(outbox_url, engine):
    child = message(1, parent=7)
    with inserting(outbox_url) as run:
        assert isinstance(run.deliver(child), Hold)
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO parents VALUES (7)")
        run.advance("1m")
        assert run.acked == [child]


@on_servers
def test_another_unique_key_is_a_fault_of_the_message(outbox_url, engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX one_number ON builds (number)")
    with inserting(outbox_url) as run:
        assert isinstance(run.deliver(message(1)), Ack)
        assert isinstance(run.deliver(message(1)), Quarantine)


@on_servers
def test_a_statement_that_waits_too_long_is_a_broken_dependency(outbox_url, engine):
    lock = {"postgresql": "LOCK TABLE builds", "mysql": "LOCK TABLES builds WRITE"}
    lock["mariadb"] = lock["mysql"]
    waiting = message(1)
    config = {"database": outbox_url, "table": "builds", "columns": COLUMNS, "timeout": "1s"}
    with (
        Harness(CONSUMER, config=config, settings={"batch": {"size": 1}}, patience=30) as run,
        engine.connect() as connection,
    ):
        connection.exec_driver_sql(lock[engine.dialect.name])
        found = run.deliver(waiting)
        assert isinstance(found, Hold)
        assert "builds" not in found.reason
        connection.invalidate()
        run.advance("1h")
        assert run.acked == [waiting]


@pytest.mark.parametrize("outbox_url", [POSTGRESQL], indirect=True)
def test_nothing_is_lost_nor_doubled_by_an_outage_and_a_kill(
    outbox_url,
    engine,
    database_server,
    start_kit,  # noqa: F811 -- the fixture
    broker,
    queue_name,
):
    columns = "columns = {message_id = 'id', number = 'body.n'}"
    config = f"database = '{outbox_url}'\ntable = 'builds'\n{columns}\ntimeout = '5s'\n"
    tables = "[consumer_config.framework.batch]\nsize = 5\nseconds = '50ms'\n"
    tables += "[consumer_config.framework.recovery.breaker]\nprobe = ['100ms']\n"
    instance = start_kit(CONSUMER, config, tables)
    publish(broker.url, queue_name, range(40))
    until(lambda: len(rows(engine)) >= 5, lambda: instance.log)
    engine.dispose()
    database_server.stop()
    publish(broker.url, queue_name, range(40, 60))
    until(lambda: "paused" in instance.log, lambda: instance.log)
    instance.stop(signal.SIGKILL)
    database_server.start()
    instance.start().ready()
    until(lambda: len(rows(engine)) == 60, lambda: instance.log)
    assert [row[0] for row in rows(engine)] == list(range(60))
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert instance.store() == []
