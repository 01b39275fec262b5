# SPDX-License-Identifier: GPL-2.0-or-later
"""Applications publish: in their transaction or in one of the outbox's own."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from fedora_messaging import config as upstream_config
from fedora_messaging import message as upstream
from fedora_messaging.exceptions import ValidationError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from consumer_framework import publishing
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.publishing.message import PublishError, outgoing, restored
from consumer_framework.publishing.outbox import (
    NotSentError,
    Outbox,
    database_of,
    default,
    set_default,
)
from consumer_framework.publishing.store import OutboxError, OutboxStore, create_engine
from consumer_framework.settings import OnFailure, OutboxRule, OutboxSettings
from tests.unit.outboxes import LEASE, NOW, Setup


class Typed(upstream.Message):
    topic = "typed"
    body_schema = {  # noqa: RUF012 -- as upstream has it
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
    }


class Own(Typed):
    def validate(self):
        raise ZeroDivisionError


@pytest.fixture(autouse=True)
def _register(monkeypatch):
    upstream.get_name(upstream.Message)
    for kind in (Typed, Own):
        monkeypatch.setitem(upstream._class_to_schema_name, kind, kind.__name__)


def a_message(topic="app.done", **body):
    return upstream.Message(topic=topic, body=body)


def with_priority(priority):
    message = a_message()
    # The setter writes a header too, which the schema of headers would refuse.
    message._properties.priority = priority
    return message


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/outbox.sqlite3"


@pytest.fixture
def outbox(url):
    outbox = Outbox(url, topic_prefix="org.example", clock=lambda: NOW)
    yield outbox
    outbox.close()


def topics(outbox):
    return [row.message.topic for row in outbox.store.rows()]


def test_a_published_message_is_in_the_table_as_it_will_be_sent(outbox):
    message = a_message(n=1)
    accepted = outbox.publish(message, "key")
    [row] = outbox.store.rows()
    assert row.message == accepted
    assert (accepted.id, accepted.topic) == (message.id, "org.example.app.done")
    assert (accepted.exchange, accepted.ordering_key, accepted.created) == ("amq.topic", "key", NOW)
    assert accepted.priority is None
    assert row.on_failure == "spool"
    again = restored(accepted)
    assert (again.body, again.id) == ({"n": 1}, message.id)


def test_the_exchange_may_be_another(outbox):
    assert outbox.publish(a_message(), exchange="other").exchange == "other"


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (a_message(topic="t" * 250), "the topic has 262 bytes; 255 are allowed"),
        (a_message(topic="a\0"), "the topic has a NUL character"),
        (a_message(topic="\ud800"), "the topic is no text"),
        (upstream.Message(), "the message has no topic"),
        (a_message(n=float("nan")), "is no JSON"),
        (a_message(n=object()), "is no JSON"),
        (a_message(n="x" * (17 << 20)), "bytes; 16777216 are allowed"),
        (upstream.Message(topic="a", headers={"x": b"bytes"}), "the headers of message"),  # type: ignore[dict-item]
        (with_priority(256), "the priority of message .* is 256: use 0 to 255"),
        (with_priority(-1), "use 0 to 255"),
        (with_priority(1 << 70), "use 0 to 255"),
    ],
)
def test_a_message_that_can_never_be_sent_is_refused_and_not_stored(outbox, message, problem):
    outbox.publish(a_message())
    with pytest.raises(PublishError, match=problem):
        outbox.publish(message)
    assert len(outbox.store.rows()) == 1


def test_an_ordering_key_that_is_too_long_is_refused(outbox):
    with pytest.raises(PublishError, match="the ordering key has 256 bytes"):
        outbox.publish(a_message(), "k" * 256)


def test_a_message_that_does_not_fit_its_schema_is_refused(outbox):
    with pytest.raises(ValidationError):
        outbox.publish(Typed(body={"n": "one"}))
    with pytest.raises(ValidationError):
        outbox.publish(upstream.Message(topic="a", body="text"))  # type: ignore[arg-type]
    outbox.publish(Typed(body={"n": 1}))
    assert len(outbox.store.rows()) == 1


def test_schemas_of_instances_and_own_validations_count(outbox):
    one = Typed(body={"n": 1})
    one.body_schema = {"required": ["m"]}  # type: ignore[misc]
    with pytest.raises(ValidationError):
        outbox.publish(one)
    with pytest.raises(ZeroDivisionError):
        outbox.publish(Own(body={"n": 1}))


def test_a_runtime_may_bring_its_own_validation(url):
    seen: list[object] = []
    outbox = Outbox(url, validate=seen.append)
    message = Typed(body={})
    outbox.publish(message)
    assert seen == [message]
    outbox.close()


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("kind", ["session", "scoped_session", "connection"])
def test_a_message_shares_the_fate_of_the_callers_transaction(outbox, url, kind, ends):
    outbox.store.migrate()
    engine = sa.create_engine(url)
    transaction: Any = {
        "session": lambda: Session(engine),
        "scoped_session": lambda: scoped_session(sessionmaker(engine)),
        "connection": engine.connect,
    }[kind]()
    if kind == "connection":
        outbox.publish(a_message(), connection=transaction)
    else:
        outbox.publish(a_message(), session=transaction)
    getattr(transaction, ends)()
    transaction.close()
    assert len(outbox.store.rows()) == (ends == "commit")
    engine.dispose()


def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(outbox, url):
    outbox.store.migrate()
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        outbox.publish(a_message("kept"), session=session)
        savepoint = session.begin_nested()
        outbox.publish(a_message("gone"), session=session)
        savepoint.rollback()
    assert topics(outbox) == ["org.example.kept"]
    engine.dispose()


def test_the_engine_of_an_application_serves_as_database(url):
    OutboxStore.connect(url).migrate()
    engine = sa.create_engine(url)
    outbox = Outbox(engine)
    with engine.begin() as connection:
        outbox.publish(a_message("a"), connection=connection)
    outbox.publish(a_message("b"))
    assert topics(outbox) == ["a", "b"]
    outbox.close()
    engine.dispose()


def test_a_database_in_memory_is_refused():
    with pytest.raises(ConfigurationError, match="the outbox cannot be in sqlite"):
        Outbox(sa.create_engine("sqlite://"))


@pytest.mark.parametrize("url", ["oracle://me@host/x", "mssql+pyodbc://host/x", "redis://host"])
def test_a_database_that_no_outbox_can_be_in_is_refused_by_its_name(url):
    name = url.partition(":")[0].partition("+")[0]
    expected = f"the outbox cannot be in {name}; write sqlite:////PATH, postgresql://.* mariadb://"
    with pytest.raises(ConfigurationError, match=expected):
        Outbox(url)


@pytest.mark.parametrize("url", ["nonsense", "postgresql://host:port/name"])
def test_a_url_that_means_nothing_is_refused(url):
    with pytest.raises(ConfigurationError, match="cannot be understood; write sqlite:////PATH"):
        Outbox(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_url_of_a_database_in_memory_is_refused(url):
    with pytest.raises(ConfigurationError, match="a database in memory keeps no message"):
        Outbox(url)


def test_a_driver_for_coroutines_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="the driver aiosqlite is for coroutines"):
        Outbox(f"sqlite+aiosqlite:///{tmp_path}/outbox.sqlite3")


def test_the_configuration_names_a_sqlite_file_by_its_absolute_path():
    with pytest.raises(ConfigurationError, match=r"outbox\.database: is no absolute path; write"):
        database_of(OutboxSettings(database="sqlite:///outbox.sqlite3"))


def test_a_file_in_a_directory_that_is_not_there_is_told_with_the_cure(tmp_path):
    with pytest.raises(OutboxError, match="unable to open database file; is its directory there"):
        Outbox(f"sqlite:///{tmp_path}/gone/outbox.sqlite3").publish(a_message())


def test_a_missing_driver_is_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'consumer-framework\[mariadb\]'"):
        Outbox("mariadb://root@localhost/x")


def test_the_public_names_are_there_and_import_no_database():
    code = (
        "import sys; import consumer_framework.publishing as p\n"
        "for name in p.__all__: getattr(p, name)\n"
        "print([name for name in ('sqlalchemy', 'alembic', 'twisted') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'publsih'"):
        _ = publishing.publsih  # type: ignore[attr-defined]


def test_a_block_stores_all_its_messages_at_its_end(outbox):
    outbox.publish(a_message("first"))
    with outbox.transaction():
        outbox.publish(a_message("a"))
        outbox.publish(a_message("b"))
        assert len(outbox.store.rows()) == 1
    assert topics(outbox) == ["org.example.first", "org.example.a", "org.example.b"]


def test_a_block_that_raises_stores_nothing(outbox):
    def fail():
        with outbox.transaction():
            outbox.publish(a_message())
            raise ZeroDivisionError

    outbox.store.migrate()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert topics(outbox) == []


def test_nested_blocks_store_with_the_outermost(outbox):
    def fail():
        with outbox.transaction():
            outbox.publish(a_message("lost"))
            raise ZeroDivisionError

    outbox.store.migrate()
    with outbox.transaction():
        with outbox.transaction():
            outbox.publish(a_message("inner"))
        with pytest.raises(ZeroDivisionError):
            fail()
        outbox.publish(a_message("outer"))
        assert topics(outbox) == []
    assert topics(outbox) == ["org.example.inner", "org.example.outer"]


def test_collected_messages_are_stored_once_and_only_by_a_commit(outbox):
    with outbox.collect() as pending:
        outbox.publish(a_message())
    outbox.store.migrate()
    assert topics(outbox) == []
    pending.commit()
    pending.commit()
    assert len(topics(outbox)) == 1


def test_a_task_that_outlives_its_block_stores_at_once(outbox):
    async def main():
        go = asyncio.Event()

        async def later():
            await go.wait()
            await outbox.publish_async(a_message("late"))

        async with outbox.transaction_async():
            task = asyncio.create_task(later())
            await outbox.publish_async(a_message("inside"))
        go.set()
        await task

    asyncio.run(main())
    assert topics(outbox) == ["org.example.inside", "org.example.late"]


def test_a_task_that_outlives_an_inner_block_publishes_into_the_outer_one(outbox):
    async def main():
        go = asyncio.Event()

        async def later():
            await go.wait()
            await outbox.publish_async(a_message("late"))

        outbox.publish(a_message("before"))
        with outbox.collect() as discarded:
            with outbox.collect():
                task = asyncio.create_task(later())
            go.set()
            await task
        return [message.topic for message, _ in discarded.messages]

    assert asyncio.run(main()) == ["org.example.late"]
    assert topics(outbox) == ["org.example.before"]


def test_a_message_after_the_commit_of_its_block_is_stored_at_once(outbox):
    with outbox.collect() as pending:
        outbox.publish(a_message("a"))
        pending.commit()
        outbox.publish(a_message("b"))
    assert topics(outbox) == ["org.example.a", "org.example.b"]


def test_a_commit_that_failed_may_be_tried_again(outbox, monkeypatch):
    outbox.store.migrate()
    with outbox.collect() as pending:
        outbox.publish(a_message())
    right = outbox.store.put

    def put(messages):
        monkeypatch.setattr(outbox.store, "put", right)
        raise OutboxError("the disk is full")

    monkeypatch.setattr(outbox.store, "put", put)
    with pytest.raises(OutboxError, match="the disk is full"):
        pending.commit()
    pending.commit()
    assert len(topics(outbox)) == 1


def test_another_thread_is_no_part_of_a_block(outbox):
    with outbox.transaction():
        thread = threading.Thread(target=outbox.publish, args=(a_message(),))
        thread.start()
        thread.join()
        assert len(topics(outbox)) == 1


def test_coroutines_publish_without_blocking_the_loop(outbox, monkeypatch):
    outbox.store.migrate()
    right = outbox.store.put

    def slow(messages):
        time.sleep(0.3)
        right(messages)

    monkeypatch.setattr(outbox.store, "put", slow)

    async def main():
        turns = 0
        task = asyncio.gather(*(outbox.publish_async(a_message(n=n)) for n in range(3)))
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert asyncio.run(main()) > 5
    assert len(topics(outbox)) == 3


def test_blocks_of_coroutines_do_not_mix(outbox):
    async def publish(name, fails):
        with contextlib.suppress(ZeroDivisionError):
            async with outbox.transaction_async():
                await outbox.publish_async(a_message(f"{name}.a"))
                await asyncio.sleep(0.01)
                outbox.publish(a_message(f"{name}.b"))
                if fails:
                    raise ZeroDivisionError

    async def main():
        await asyncio.gather(publish("one", False), publish("two", True), publish("three", False))

    asyncio.run(main())
    expected = {f"org.example.{name}.{part}" for name in ("one", "three") for part in "ab"}
    assert set(topics(outbox)) == expected


def test_ten_threads_publish_at_once(outbox):
    def publish():
        for n in range(20):
            outbox.publish(a_message(n=n))

    threads = [threading.Thread(target=publish) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outbox.store.stats().waiting == 200


def test_a_forked_child_publishes_and_leaves_the_parents_connections_alone(outbox):
    outbox.publish(a_message("parent"))
    with outbox.store.transaction() as connection:
        child = os.fork()
        if child == 0:
            os._exit(0 if topics(outbox) == ["org.example.parent"] else 1)
        assert os.waitpid(child, 0)[1] == 0
        outbox.store.insert(
            connection, [(outgoing(a_message("x"), exchange="e", now=NOW), "spool")]
        )
    child = os.fork()
    if child == 0:
        status = 1
        try:
            outbox.publish(a_message("child"))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    outbox.publish(a_message("after"))
    assert topics(outbox) == ["org.example.parent", "x", "org.example.child", "org.example.after"]


def test_a_file_that_is_deleted_is_made_anew_and_nothing_more_is_written_to_the_old_one(
    outbox, tmp_path
):
    outbox.publish(a_message("before"))
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(OutboxError, match="no such table"):
        outbox.publish(a_message("refused"))
    outbox.publish(a_message("after"))
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/outbox.sqlite3")
    assert [row.message.topic for row in store.rows()] == ["org.example.after"]
    store.close()


def test_a_file_that_is_replaced_gets_the_messages_from_then_on(outbox, url, tmp_path):
    outbox.publish(a_message("before"))
    other = Outbox(f"sqlite:///{tmp_path}/other.sqlite3")
    other.publish(a_message("other"))
    other.close()
    for file in tmp_path.glob("outbox.sqlite3*"):
        file.unlink()
    (tmp_path / "other.sqlite3").rename(tmp_path / "outbox.sqlite3")
    outbox.publish(a_message("after"))
    assert topics(outbox) == ["other", "org.example.after"]


def test_a_file_that_another_program_writes_is_switched_to_wal_once_it_is_free(url, tmp_path):
    other = sqlite3.connect(tmp_path / "outbox.sqlite3", isolation_level=None)
    other.execute("CREATE TABLE builds (id)")
    other.execute("BEGIN IMMEDIATE")
    outbox = Outbox(url)
    thread = threading.Thread(target=outbox.publish, args=(a_message(),))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    other.execute("COMMIT")
    thread.join(10)
    assert other.execute("SELECT count(*) FROM builds").fetchone() == (0,)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    assert topics(outbox) == ["app.done"]
    outbox.close()


def test_a_fork_that_python_does_not_know_of_leaves_the_parents_connections_alone(
    outbox, monkeypatch
):
    outbox.publish(a_message("parent"))
    before = outbox.store.engine.pool
    pid = os.getpid()
    # As in a worker that uWSGI has forked: no hook of `os.register_at_fork` was called.
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    outbox.publish(a_message("child"))
    assert outbox.store.engine.pool is not before
    assert before.checkedin() == 1
    assert topics(outbox) == ["org.example.parent", "org.example.child"]


def waiting_outbox(url):
    rules = (OutboxRule(topics="wait.#", on_failure=OnFailure.WAIT),)
    return Outbox(url, OutboxSettings(rules=rules))


def test_with_wait_an_earlier_row_of_the_same_message_does_not_matter(url):
    outbox = waiting_outbox(url)
    message = a_message("wait.a")
    with pytest.raises(NotSentError):
        outbox.publish(message, timeout=0)
    store = OutboxStore.connect(url)
    [claimed] = store.claim("token", 1, LEASE, NOW)
    store.settle("token", dead=[(claimed.row, "refused")])
    with pytest.raises(NotSentError, match="not sent yet"):
        outbox.publish(message, timeout=0)
    store.close()
    outbox.close()


def test_with_wait_publish_returns_when_the_message_is_sent(url):
    outbox = waiting_outbox(url)
    outbox.publish(a_message("other"))
    setup = Setup(OutboxStore.connect(url))
    thread = threading.Thread(target=outbox.publish, args=(a_message("wait.a"),))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    setup.steps()
    thread.join(10)
    assert not thread.is_alive()
    outbox.close()


def test_with_wait_publish_tells_that_an_operator_discarded_the_message(url):
    outbox = waiting_outbox(url)
    store = outbox.prepared()
    with ThreadPoolExecutor(1) as pool:
        published = pool.submit(outbox.publish, a_message("wait.a"))
        while not (rows := store.rows()):
            assert not published.done()
        assert store.discard(row.row for row in rows) == 1
        with pytest.raises(NotSentError, match="is not sent: an operator discarded it"):
            published.result(60)
    assert store.rows() == []
    outbox.close()


def test_with_wait_a_message_that_is_not_sent_in_time_stays_stored(url):
    outbox = waiting_outbox(url)
    with pytest.raises(NotSentError, match="is stored, and not sent yet"):
        outbox.publish(a_message("wait.a"), timeout=0.05)
    assert topics(outbox) == ["wait.a"]
    outbox.close()


def test_with_wait_a_database_that_goes_away_does_not_hide_that_the_message_is_stored(
    url, monkeypatch
):
    outbox = waiting_outbox(url)

    def state_of(*_):
        raise OutboxError("the database is away")

    monkeypatch.setattr(outbox.store, "state_of", state_of)
    with pytest.raises(NotSentError, match="not sent yet; the last attempt: the database is away"):
        outbox.publish(a_message("wait.a"), timeout=0.05)
    assert topics(outbox) == ["wait.a"]
    outbox.close()


def test_with_wait_a_message_that_can_never_be_sent_raises(url, monkeypatch):
    outbox = waiting_outbox(url)
    right = OutboxStore.put

    def put(store, messages):
        right(store, messages)
        [one] = store.claim("a", 1, LEASE, NOW)
        store.settle("a", dead=[(one.row, "too odd")])

    monkeypatch.setattr(OutboxStore, "put", put)
    with pytest.raises(PublishError, match="can never be sent: too odd"):
        outbox.publish(a_message("wait.a"))
    outbox.close()


def test_the_choice_for_a_failure_is_stored_with_the_message(url):
    rules = (OutboxRule(topics="#", on_failure=OnFailure.SKIP),)
    outbox = Outbox(url, OutboxSettings(rules=rules))
    outbox.publish(a_message())
    assert outbox.store.rows()[0].on_failure == "skip"
    outbox.close()


def test_a_disk_that_is_full_is_told_to_the_caller(outbox):
    outbox.publish(a_message())
    with outbox.store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        driver = connection.connection.driver_connection
        driver.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(OutboxError, match="database or disk is full"):
        outbox.publish(a_message(text="x" * 100_000))
    assert len(topics(outbox)) == 1


@pytest.fixture
def configuration(tmp_path, monkeypatch):
    conf = {**upstream_config.DEFAULTS, "topic_prefix": "org.example", "publish_exchange": "mine"}
    monkeypatch.setattr(upstream_config, "conf", conf)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    before = set_default(None)

    def configure(**table):
        conf["consumer_config"] = {"framework": {"outbox": table}}

    yield configure
    if (made := set_default(before)) is not None:
        made.close()


def test_the_function_publishes_by_the_configuration_file(configuration, url):
    configuration(database=url, on_failure="skip")
    accepted = publishing.publish(a_message(), "key")
    assert (accepted.topic, accepted.exchange) == ("org.example.app.done", "mine")
    [row] = default().store.rows()
    assert (row.on_failure, row.message.ordering_key) == ("skip", "key")
    asyncio.run(publishing.publish_async(a_message()))
    assert len(default().store.rows()) == 2


def test_the_outbox_is_in_the_state_directory_by_default(configuration, tmp_path, monkeypatch):
    configuration()
    file = tmp_path / "app.toml"
    monkeypatch.setenv("FEDORA_MESSAGING_CONF", str(file))
    with pytest.raises(ConfigurationError) as caught:
        publishing.publish(a_message())
    told = f"{file} (there is no such file): consumer_config.framework.outbox.database: is not set"
    assert str(caught.value).startswith(told)
    file.touch()
    with pytest.raises(ConfigurationError, match=r"app\.toml: consumer_config\.framework\.outbox"):
        publishing.publish(a_message())
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    publishing.publish(a_message())
    assert (tmp_path / "outbox.sqlite3").exists()


def test_a_wrong_configuration_names_its_path(configuration):
    configuration(window="many")
    with pytest.raises(ConfigurationError, match=r"consumer_config\.framework\.outbox\.window"):
        publishing.publish(a_message())


def test_an_import_of_publishing_does_not_import_sqlalchemy():
    code = "import sys, consumer_framework.publishing as p; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
