# SPDX-License-Identifier: GPL-2.0-or-later
"""`InsertRow` inserts each message once, and tells its faults from those of the database."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.message import Message

from consumer_framework.core.disposition import Ack, Hold, Quarantine
from consumer_framework.core.errors import ConfigurationError, DependencyFault
from consumer_framework.kit.insert_row import value_at
from consumer_framework.kit.user_database import Kind, kind_of, value_for
from consumer_framework.testing import Harness

CONSUMER = "consumer_framework.kit.insert_row:InsertRow"
ALONE = {"batch": {"size": 1}}
TABLE = """
CREATE TABLE builds (
    message_id TEXT PRIMARY KEY, n INTEGER NOT NULL CHECK (n < 100), sent_at DATETIME,
    tags JSON, topic TEXT, other
)
"""
COLUMNS = {
    "message_id": "id",
    "n": "body.build.n",
    "sent_at": "headers.sent-at",
    "tags": "body.tags",
    "topic": "topic",
    "other": "body.other",
}


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "own data.sqlite3"
    execute(found, TABLE)
    return found


def execute(file, *statements):
    with closing(sqlite3.connect(file)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def message(n=1, **body):
    return Message(topic="org.example.build", body={"build": {"n": n}, **body})


def inserting(file, settings=ALONE, **config):
    url = f"sqlite:///{file}"
    keys = {"database": url, "table": "builds", "columns": COLUMNS, **config}
    return Harness(CONSUMER, config=keys, settings=settings)


def test_each_message_is_a_row_and_one_that_comes_again_is_none(file):
    first = message(1, tags=["a", {"b": None}], other=True)
    with inserting(file) as run:
        assert isinstance(run.deliver(first), Ack)
        assert isinstance(run.deliver(message(2)), Ack)
        assert isinstance(run.deliver(first), Ack)
    rows = execute(file, "SELECT * FROM builds ORDER BY n")
    assert [row[1] for row in rows] == [1, 2]
    assert rows[0][0] == first.id
    assert rows[0][2].startswith("20")
    assert rows[0][3:] == ('["a", {"b": null}]', "org.example.build", 1)
    assert rows[1][3:] == (None, "org.example.build", None)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (message("many"), 'body.build.n: "many" is no value for its column n: an integer'),
        (message(1.5), "1.5 is no value"),
        (message(100), "CHECK constraint failed"),
        (message(None), "NOT NULL constraint failed: builds.n"),
        (message(-(1 << 70)), "too large to convert"),
        (message(1, other="\ud800"), "surrogates not allowed"),
    ],
)
def test_a_value_that_the_table_refuses_is_quarantined_and_the_rest_of_the_batch_is_inserted(
    file, bad, reason
):
    with inserting(file, {"batch": {"size": 3, "seconds": 60}}) as run:
        for each in (message(1), bad, message(2)):
            run.deliver(each)
        run.advance("1m")
        assert run.quarantined == [bad]
        [(_, why)] = run.store.quarantined
        assert reason in why
    assert execute(file, "SELECT n FROM builds ORDER BY n") == [(1,), (2,)]


def test_a_message_without_an_id_is_quarantined(file):
    nameless = message()
    nameless.id = None
    with inserting(file) as run:
        assert isinstance(run.deliver(nameless), Quarantine)


def test_messages_wait_while_the_database_is_away_and_no_new_file_is_made(file, tmp_path):
    away = tmp_path / "away"
    with inserting(file, {**ALONE, "recovery": {"breaker": {"probe": ["10s"]}}}) as run:
        file.rename(away)
        waiting = message(1)
        found = run.deliver(waiting)
        assert isinstance(found, Hold)
        assert "unable to open database file" in found.reason
        assert not file.exists()
        run.advance("10h")
        assert not run.acked
        away.rename(file)
        run.advance("10m")
        assert run.acked == [waiting]
    assert execute(file, "SELECT count(*) FROM builds") == [(1,)]


def test_messages_wait_while_the_table_is_not_as_it_was(file):
    with inserting(file) as run:
        execute(file, "ALTER TABLE builds RENAME TO former")
        found = run.deliver(message(1))
        assert isinstance(found, Hold)
        assert "no such table: builds" in found.reason
        execute(file, "ALTER TABLE former RENAME TO builds")
        run.advance("1h")
        assert len(run.acked) == 1


def test_another_unique_key_of_the_table_is_a_fault_of_the_message(file):
    execute(file, "CREATE UNIQUE INDEX one_n ON builds (n)")
    with inserting(file) as run:
        assert isinstance(run.deliver(message(1)), Ack)
        found = run.deliver(message(1))
        assert isinstance(found, Quarantine)
        assert "UNIQUE constraint failed: builds.n" in found.reason


def test_a_database_that_is_away_at_the_start_is_a_broken_dependency(tmp_path):
    file = tmp_path / "later.sqlite3"
    with pytest.raises(DependencyFault, match="unable to open database file"), inserting(file):
        pass
    assert not file.exists()


@pytest.mark.parametrize(
    ("statement", "config", "reason"),
    [
        ("SELECT 1", {"table": "tables"}, "there is no table tables; create it"),
        ("SELECT 1", {"columns": {**COLUMNS, "topics": "topic"}}, 'did you mean "topic"'),
        ("SELECT 1", {"columns": {"message_id": "id", "xyz": "topic"}}, "it has message_id, n"),
        ("SELECT 1", {"columns": {"topic": "id"}}, "CREATE UNIQUE INDEX builds_topic ON builds"),
        (
            "CREATE UNIQUE INDEX part ON builds (topic) WHERE n > 1",
            {"columns": {"topic": "id"}},
            "is not unique",
        ),
        ("SELECT 1", {"database": "sqlite:///own.db"}, "must have the absolute path"),
        (
            "SELECT 1",
            {"database": "mariadb://u:credential:p@h/d"},
            'write password = "credential:p"',
        ),
        ("SELECT 1", {"database": "nonsense"}, "is no URL of a database; write sqlite:"),
        ("SELECT 1", {"database": "oracle://host/db"}, "of another kind|missing"),
        ("SELECT 1", {"database": "mssql+pyodbc://host/db"}, "use SQLite, PostgreSQL or MariaDB"),
        ("SELECT 1", {"database": "mariadb+asyncmy://host/db"}, "names an asynchronous driver"),
    ],
)
def test_a_configuration_that_does_not_fit_the_database_is_refused_with_a_cure(
    file, statement, config, reason
):
    execute(file, statement)
    with pytest.raises(ConfigurationException, match=reason), inserting(file, **config):
        pass


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"columns": {"message_id": "id", "n": "build.n"}}, "write body.build.n"),
        ({"columns": {"n": "body.n"}}, 'NAME = "id"'),
        ({"columns": {"a": "id", "b": "id"}}, 'NAME = "id"'),
        ({"table": "a.b.c"}, "table"),
        ({"columns": {}}, "columns"),
    ],
)
def test_a_wrong_key_is_named_with_a_cure(file, config, reason):
    with pytest.raises(ConfigurationError, match=reason):
        inserting(file, **config)


def test_a_unique_index_is_enough(file):
    execute(file, "CREATE UNIQUE INDEX one ON builds (topic)")
    with inserting(file, columns={"topic": "id", "n": "body.build.n"}) as run:
        # The primary key of SQLite may be NULL.
        assert isinstance(run.deliver(message(1)), Ack)


DOCUMENT = {"body": {"a": [{"b": 1}, 2], "c.d": {"e": 3}, "f": None}, "id": "x"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("id", "x"),
        ("body.a.0.b", 1),
        ("body.a.1", 2),
        ("body.a", [{"b": 1}, 2]),
        ("body.c.d.e", 3),
        ("body.f", None),
        ("body.a.2", None),
        ("body.a.b", None),
        ("body.f.g", None),
        ("id.x", None),
        ("topic", None),
    ],
)
def test_a_path_leads_to_one_value_or_to_none(path, value):
    assert value_at(DOCUMENT, path) == value


def column(kind):
    return sa.Column("c", kind)


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        (sa.Integer(), "7", 7),
        (sa.Integer(), True, 1),
        (sa.Integer(), 7.0, 7),
        (sa.Boolean(), 1, True),
        (sa.Float(), "1.5", 1.5),
        (sa.Numeric(), 0.1, "0.1"),
        (sa.Text(), {"a": 1}, '{"a": 1}'),
        (sa.Text(), 7, "7"),
        (sa.Text(), True, "true"),
        (sa.LargeBinary(), "ü", "ü".encode()),
        (sa.Date(), "2026-11-27T14:03:55Z", "2026-11-27"),
        (sa.Time(), "14:03:55", "14:03:55"),
        (sa.DateTime(), "2026-11-27T14:03:55+02:00", "2026-11-27 12:03:55"),
        (sa.DateTime(), 0, "1970-01-01 00:00:00"),
        (sa.DateTime(), "2026-11-27", "2026-11-27 00:00:00"),
        (sa.DateTime(timezone=True), "2026-11-27T14:03:55", "2026-11-27 14:03:55+00:00"),
        (sa.Uuid(), "6ba7b8109dad11d180b400c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        (sa.ARRAY(sa.Text()), "one", ["one"]),
        (sa.types.NullType(), [1], "[1]"),
        (sa.Text(), None, None),
    ],
)
def test_a_value_gets_the_type_of_its_column(kind, value, stored):
    found = value_for(column(kind), value)
    assert found == stored if type(found) is type(stored) else str(found) == stored


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (sa.Integer(), 1.5),
        (sa.Integer(), [1]),
        (sa.Boolean(), "yes"),
        (sa.Numeric(), "abc"),
        (sa.Date(), 5),
        (sa.DateTime(), "yesterday"),
        (sa.DateTime(), 1e300),
        (sa.DateTime(), True),
        (sa.Uuid(), "x"),
        (sa.Uuid(), 5),
        (sa.Date(), {"a": 1}),
    ],
)
def test_a_value_that_has_no_such_type_is_refused(kind, value):
    with pytest.raises(ValueError, match="is no value for its column c"):
        value_for(column(kind), value)


class _PostgresError(Exception):
    def __init__(self, sqlstate):
        super().__init__("told")
        self.sqlstate = sqlstate


def dbapi(kind, cause):
    return kind("INSERT", {}, cause)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (dbapi(sa.exc.DataError, _PostgresError("22001")), Kind.MESSAGE),
        (dbapi(sa.exc.IntegrityError, _PostgresError("23505")), Kind.MESSAGE),
        (dbapi(sa.exc.IntegrityError, _PostgresError("23503")), Kind.AGAIN),
        (dbapi(sa.exc.OperationalError, _PostgresError("40P01")), Kind.AGAIN),
        (dbapi(sa.exc.ProgrammingError, _PostgresError("42P01")), Kind.DATABASE),
        (dbapi(sa.exc.OperationalError, _PostgresError("53100")), Kind.DATABASE),
        (dbapi(sa.exc.DataError, _PostgresError(None)), Kind.MESSAGE),
        (dbapi(sa.exc.OperationalError, Exception(4025, "CONSTRAINT")), Kind.MESSAGE),
        (dbapi(sa.exc.OperationalError, Exception(1213, "deadlock")), Kind.AGAIN),
        (dbapi(sa.exc.OperationalError, Exception(2013, "lost")), Kind.DATABASE),
        (dbapi(sa.exc.OperationalError, Exception()), Kind.DATABASE),
        (sa.exc.TimeoutError("the pool"), Kind.DATABASE),
        (sa.exc.StatementError("bad", "INSERT", {}, TypeError()), Kind.MESSAGE),
    ],
)
def test_the_kind_of_a_fault_follows_from_the_code_of_the_database(error, kind):
    assert kind_of(error) is kind
