# SPDX-License-Identifier: GPL-2.0-or-later
"""Features of publishing meet: relay and restart, operator and operator, clock and lease."""

import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from fedora_messaging import message as upstream

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.publishing.events import RelayCounters
from consumer_framework.publishing.messengers import Reject, Retry, Scope, Sent
from consumer_framework.publishing.outbox import NotSentError, Outbox
from consumer_framework.publishing.policy import Policy
from consumer_framework.publishing.relay import Relay
from consumer_framework.publishing.store import OutboxError, OutboxStore, create_engine
from consumer_framework.settings import OnFailure, OutboxSettings
from tests.unit.outboxes import LEASE, NOW, Scripted, Setup, message, spooled

from .instance import until
from .outbox import on_every_database, on_servers
from .publishing_chaos import Bench, Chaos


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


@on_every_database
def test_a_relay_that_claims_ahead_sends_each_message_once_and_each_key_in_order(store):
    # Hundreds without a key, and then some with: only the first ones let the relay claim ahead.
    keys = [*[""] * 500, *["", "a", "b", "a"] * 50]
    messages = [message(key) for key in keys]
    with Running(store) as relay:
        for start in range(0, len(messages), 100):
            store.put(spooled(*messages[start : start + 100]))
        until(lambda: len(relay.ids) >= len(messages), "all are sent")
        until(lambda: not store.rows(), "all are settled")
    assert sorted(relay.ids) == sorted(one.id for one in messages)
    for key in "ab":
        expected = [one.id for one in messages if one.ordering_key == key]
        assert [one.id for one in relay.messenger.sent if one.ordering_key == key] == expected
    assert relay.claims_lost == 0


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


@on_every_database
def test_a_relay_that_starts_before_the_tables_exist_sends_once_they_are_made(outbox_url):
    store, one = OutboxStore.connect(outbox_url), message()
    with Running(store) as relay:
        until(lambda: relay.store_failures, "the relay misses the tables")
        assert "create its tables" in relay.last_error
        store.migrate()
        store.put(spooled(one))
        until(lambda: relay.ids == [one.id], "the message is sent")
    store.close()


@on_every_database
def test_a_migration_while_a_relay_works_does_no_harm(store, outbox_url):
    other, messages = OutboxStore.connect(outbox_url), [message("k") for _ in range(200)]
    with Running(store) as relay:
        for one in messages:
            other.put(spooled(one))
            if one is messages[100]:
                other.migrate()
        until(lambda: len(relay.ids) == 200, "all are sent")
        assert relay.ids == [one.id for one in messages]
        assert relay.store_failures == 0
    other.close()


@on_every_database
def test_a_purge_while_a_relay_works_deletes_dead_rows_only(store, outbox_url):
    other, messages = OutboxStore.connect(outbox_url), [message("k") for _ in range(300)]
    dead = {one.id for one in messages[::3]}
    purged = 0
    with Running(store) as relay:
        relay.messenger.answer = lambda one: Reject("odd") if one.id in dead else Sent(routed=True)
        for one in messages:
            other.put(spooled(one))
            purged += other.purge()
        until(lambda: relay.dead + relay.sent == 300, "all are sent or dead")
        until(lambda: not other.stats().waiting, "the last batch is settled")
    purged += other.purge()
    other.close()
    assert purged == len(dead)
    assert relay.ids == [one.id for one in messages if one.id not in dead]


@on_every_database
def test_messages_to_skip_do_not_hold_up_their_key_while_no_endpoint_answers(store):
    setup = Setup(store)
    first, skipped, second = message("k"), message("k"), message("k")
    setup.put(first)
    setup.put(skipped, on_failure="skip")
    setup.put(second)
    setup.messenger.refuses = ConnectionRefusedError("nobody there")
    setup.steps()
    assert [row.message for row in setup.rows] == [first, second]
    setup.messenger.refuses = None
    setup.later(30)
    assert setup.sent == [first.id, second.id]
    assert setup.counters.skipped == 1


@on_every_database
def test_a_dead_message_that_is_retried_is_sent_before_the_waiting_ones_of_its_key(store):
    setup = Setup(store)
    bad, failing, last = (message("k") for _ in range(3))
    setup.put(bad, failing, last)
    setup.messenger.answer = lambda one: Reject("odd") if one == bad else Retry("no", Scope.MESSAGE)
    setup.steps()
    assert [row.state for row in setup.rows] == ["dead", "waiting", "waiting"]
    setup.messenger.answer = lambda _: Sent(routed=True)
    assert store.retry() == 1
    setup.later(60)
    assert setup.sent == [bad.id, failing.id, last.id]


@on_every_database
def test_a_publisher_that_waits_is_told_when_another_relay_takes_over(store, outbox_url):
    dead = SystemClock().time()
    store.lease("dead", 2, dead)
    settings = OutboxSettings(on_failure=OnFailure.WAIT)
    outbox = Outbox(outbox_url, settings)
    with pytest.raises(NotSentError, match="is stored, and not sent yet"):
        outbox.publish(upstream.Message(topic="a"), timeout=0.1)
    assert store.claim("dead.1", 10, 2, dead)
    waiting = threading.Thread(target=outbox.publish, args=(upstream.Message(topic="b"),))
    waiting.start()
    with Running(store) as relay:
        waiting.join(60)
        assert not waiting.is_alive()
        until(lambda: len(relay.ids) == 2, "the other message is sent too")
    outbox.close()


@on_every_database
def test_a_relay_that_was_stopped_past_its_lease_settles_nothing_of_its_successor(
    outbox_url, broker, tmp_path
):
    with Bench(outbox_url, broker, tmp_path) as bench:
        # It stops itself when it has claimed its second batch, and before it sends it.
        bench.start("relay one", point=("after the claim", 2, signal.SIGSTOP))
        bench.start("script")
        until(lambda: is_stopped(bench.programs["relay one"].process.pid), "it is stopped")
        bench.start("relay two")
        until(lambda: bench.claims("relay two") > 3, "the other relay works")
        os.kill(bench.programs["relay one"].process.pid, signal.SIGCONT)
        claims = bench.claims("relay two")
        until(lambda: bench.claims("relay two") > claims + 3, "both go on")
        ledger = bench.ledger(Chaos(bench.programs, broker), [])
    assert not ledger.wrong, str(ledger)


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
