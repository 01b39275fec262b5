# SPDX-License-Identifier: GPL-2.0-or-later
"""The ten faults of other outboxes, each with the name that it has here: none of them is ours.

The fifth, a scan of a table with many rows, is a test of the store:
``test_no_claim_scans_a_table_with_many_rows``.
"""

import logging
import random

import pytest
import sqlalchemy as sa
from fedora_messaging import message as upstream
from sqlalchemy.orm import Session

from consumer_framework.publishing.events import RelayLog
from consumer_framework.publishing.messengers import Reject, Result, Retry, Scope, Sent
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.publishing.store import OutboxStore, create_engine
from tests.unit.outboxes import LEASE, NOW, Setup, message, spooled

from .outbox import on_every_database

pytestmark = on_every_database


@pytest.fixture
def store(outbox_url):
    store = OutboxStore.connect(outbox_url)
    store.migrate()
    yield store
    store.close()


def ids(messages):
    return [one.id for one in messages]


def test_parallel_relays_do_not_break_the_order_of_a_key(store, outbox_url):
    other = OutboxStore.connect(outbox_url)
    slow, quick = (Setup(one, leased=False, window=5) for one in (store, other))
    messages = [message(f"k{n % 12}") for n in range(120)]
    store.put(spooled(*messages))
    sent: list[str] = []

    def send(one):
        sent.append(one.id)
        return Sent(routed=True)

    def send_late(one):
        # The other relay works while this message is on its way.
        quick.later(0.1)
        return send(one)

    slow.messenger.answer, quick.messenger.answer = send_late, send
    for _ in range(60):
        slow.later(1)
    other.close()
    assert sorted(sent) == sorted(ids(messages))
    assert slow.sent
    assert quick.sent
    for key in {one.ordering_key for one in messages}:
        of_key = [one.id for one in messages if one.ordering_key == key]
        assert [one for one in sent if one in of_key] == of_key


def test_rows_of_a_dead_relay_are_sent_within_its_lease(store):
    one = message()
    store.put(spooled(one))
    store.lease("dead", LEASE, NOW)
    store.claim("dead.1", 10, LEASE, NOW)
    setup = Setup(store)
    setup.later(LEASE - 1)
    assert setup.sent == []
    setup.later(1)
    assert setup.sent == [one.id]


def test_messages_added_after_a_flush_are_sent(store, outbox_url):
    outbox = Outbox(outbox_url)
    engine = create_engine(outbox_url)
    with Session(engine) as session, session.begin():
        outbox.publish(upstream.Message(topic="before"), session=session)
        session.flush()
        outbox.publish(upstream.Message(topic="after"), session=session)
    engine.dispose()
    outbox.close()
    setup = Setup(store)
    setup.steps()
    assert [one.topic for one in setup.messenger.sent] == ["before", "after"]


def test_every_message_is_sent_after_a_reconnect(store):
    setup = Setup(store, window=10)
    messages = [message("k") for _ in range(35)]
    setup.put(*messages)
    setup.messenger.refuses = ConnectionRefusedError("away")
    setup.steps()
    setup.messenger.refuses = None
    first: list[Result] = [Sent(routed=True), Retry("cut")]
    cut = iter(first)
    setup.messenger.answer = lambda _: next(cut, Sent(routed=True))
    setup.later(1)
    assert setup.sent == ids(messages[:1])
    # Much earlier than the lease of the batch that was cut ends.
    setup.later(2)
    assert setup.sent == ids(messages)


def test_no_row_is_deleted_before_the_broker_has_confirmed_it(store):
    setup = Setup(store)
    setup.put(message(), message())
    seen = []

    def answer(_):
        seen.append(len(setup.rows))
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.relay.step()
    assert seen == [2, 2]
    assert setup.rows == []


def test_two_outboxes_in_one_process_do_not_mix(store, outbox_url, tmp_path):
    one, two = Outbox(outbox_url), Outbox(f"sqlite:///{tmp_path}/second.sqlite3")
    with one.transaction():
        one.publish(upstream.Message(topic="one"))
        two.publish(upstream.Message(topic="two"))
        assert [row.message.topic for row in two.store.rows()] == ["two"]
        with two.transaction():
            two.publish(upstream.Message(topic="two"))
            one.publish(upstream.Message(topic="one"))
    assert [row.message.topic for row in one.store.rows()] == ["one", "one"]
    assert [row.message.topic for row in two.store.rows()] == ["two", "two"]
    one.close()
    two.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_recovery_keeps_the_order(store, seed):
    messages = [message(f"k{n % 2}") for n in range(24)]
    store.put(spooled(*messages))
    store.claim("dead.1", 3, LEASE, NOW)
    setup = Setup(store)
    luck = random.Random(seed)  # noqa: S311 -- reproducible
    fates: list[Result] = [
        Retry("no", Scope.MESSAGE),
        Retry("cut"),
        Sent(routed=True),
        Sent(routed=True),
    ]
    setup.messenger.answer = lambda _: luck.choice(fates)
    for _ in range(20):
        setup.later(LEASE)
    setup.messenger.answer = lambda _: Sent(routed=True)
    setup.later(600)
    assert setup.rows == []
    for key in ("k0", "k1"):
        of_key = [one.id for one in messages if one.ordering_key == key]
        assert [one for one in setup.sent if one in of_key] == of_key


@pytest.mark.parametrize("fate", [Retry("no", Scope.MESSAGE), Retry("cut"), Reject("odd")])
def test_a_poison_row_does_not_block_other_keys(store, fate):
    setup = Setup(store)
    poison = message("poison")
    others = [message(f"k{n}") for n in range(5)]
    setup.put(poison, *others)
    broken: set[int] = set()

    def answer(one):
        if one == poison and fate == Retry("cut"):
            # It ends the connection, and nothing else passes on this one.
            broken.add(setup.messenger.opened)
        is_broken = setup.messenger.opened in broken
        return fate if is_broken or one == poison else Sent(routed=True)

    setup.messenger.answer = answer
    for _ in range(10):
        setup.later(1)
    assert sorted(setup.sent) == sorted(ids(others))
    assert len(setup.rows) == 1


def test_a_row_that_can_never_be_sent_is_told(store, caplog):
    setup = Setup(store)
    setup.put(message(id="rejected"), message(id="stuck"))
    setup.messenger.answer = lambda one: (
        Reject("odd") if one.id == "rejected" else Retry("no", Scope.MESSAGE)
    )
    for _ in range(10):
        setup.later(300)
    log = RelayLog()
    with caplog.at_level(logging.WARNING):
        for event in setup.events:
            log.notify(event)
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "Message rejected (app.done) can never be sent" in told
    assert "Message stuck (app.done) failed 10 times: no" in told
    stats = store.stats()
    assert (stats.dead, stats.retrying) == (1, 1)


def test_a_transaction_that_is_rolled_back_sends_nothing(store, outbox_url):
    outbox = Outbox(outbox_url)
    engine = create_engine(outbox_url)
    with engine.connect() as connection:
        outbox.publish(upstream.Message(topic="ghost"), connection=connection)
        connection.rollback()
        connection.execute(sa.text("SELECT 1"))
    engine.dispose()
    outbox.close()
    setup = Setup(store)
    setup.steps()
    assert setup.sent == []
