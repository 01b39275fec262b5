# SPDX-License-Identifier: GPL-2.0-or-later
"""Features of publishing meet: relay and restart, operator and operator, clock and lease."""

import threading
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from fedora_messaging import message as upstream

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.publishing.events import RelayCounters
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.publishing.policy import Policy
from consumer_framework.publishing.relay import Relay
from consumer_framework.publishing.store import OutboxError, OutboxStore, create_engine
from tests.unit.outboxes import LEASE, NOW, Scripted, message, spooled

from .instance import until
from .outbox import on_every_database, on_servers


@pytest.fixture
def store(outbox_url):
    store = OutboxStore.connect(outbox_url)
    store.migrate()
    yield store
    store.close()


class Running(RelayCounters):
    """A relay that runs in a thread, with a short lease and the real clock."""

    def __init__(self, store):
        super().__init__()
        self.store, self.messenger = store, Scripted()
        self._stop = threading.Event()
        relay = Relay(
            store,
            self.messenger,
            Policy(),
            clock=SystemClock(),
            observer=self,
            lease=2.0,
            chance=lambda: 1.0,
        )
        self._thread = threading.Thread(target=relay.run, args=(self._stop,))

    @property
    def ids(self):
        return [one.id for one in self.messenger.sent]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@contextmanager
def stopped(server):
    server.stop()
    try:
        yield
    finally:
        server.start()


@on_servers
def test_a_database_that_is_restarted_does_not_end_an_idle_relay(store, database_server):
    with Running(store) as relay:
        first, second = message(), message()
        store.put(spooled(first))
        until(lambda: relay.ids == [first.id], "the first message is sent")
        with stopped(database_server):
            until(lambda: relay.store_failures, "the relay misses its database")
            with pytest.raises(OutboxError):
                store.put(spooled(second))
        store.put(spooled(second))
        until(lambda: relay.ids == [first.id, second.id], "the second message is sent")


@on_every_database
@pytest.mark.parametrize("before", [None, NOW + 1])
def test_a_dead_row_that_is_retried_meanwhile_is_not_purged(store, outbox_url, monkeypatch, before):
    store.put(spooled(message()))
    [one] = store.claim("a", 1, LEASE, NOW)
    store.settle("a", dead=[(one.row, "no")])
    other = OutboxStore.connect(outbox_url)

    def retry():
        # The purge has read the row, and deletes it now.
        monkeypatch.undo()
        assert other.retry() == 1
        return NOW

    monkeypatch.setattr("time.time", retry)
    assert store.purge(before=before) == 0
    other.close()
    assert [row.state for row in store.rows()] == ["waiting"]


@on_every_database
def test_a_database_without_room_is_not_told_to_lack_tables(store):
    """MariaDB names the table: "The table 'fm_outbox' is full"."""
    if not store.is_sqlite:
        with store.transaction() as connection:
            connection.exec_driver_sql("ALTER TABLE fm_outbox ADD CHECK (topic <> 'fm_outbox')")
    with pytest.raises(OutboxError) as failed:
        store.put(spooled(message(topic=None if store.is_sqlite else "fm_outbox")))
    assert "fm_outbox" in str(failed.value)
    assert "migrate" not in str(failed.value)


@on_servers
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "AUTOCOMMIT"])
def test_the_isolation_of_the_applications_engine_does_not_matter(store, outbox_url, level):
    engine = sa.create_engine(create_engine(outbox_url).url, isolation_level=level)
    outbox = Outbox(engine)
    with Running(outbox.store) as relay:
        threads = [
            threading.Thread(
                target=lambda: [outbox.publish(upstream.Message(topic="a")) for _ in range(50)]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: len(relay.ids) == 200, "all are sent")
        assert relay.store_failures == 0

    def fail():
        with outbox.store.transaction() as connection:
            outbox.store.insert(connection, spooled(message()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.rows() == []
    engine.dispose()


@on_servers
def test_a_relay_is_woken_over_the_connections_of_the_applications_engine(store, outbox_url):
    """The engine may know more than its URL tells, such as certificates."""
    url = create_engine(outbox_url).url
    connect = sa.create_engine(url).dialect.connect
    driver = sa.create_engine(url).dialect.create_connect_args(url)[1]
    engine = sa.create_engine(
        f"{url.drivername}://nowhere.invalid/", creator=lambda: connect(**driver)
    )
    waker = OutboxStore(engine).waker()
    store.put(spooled(message()))
    assert waker.wait(5.0)
    waker.close()
    engine.dispose()
