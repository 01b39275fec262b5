# SPDX-License-Identifier: GPL-2.0-or-later
"""Each failure has the result that docs/explanation/publishing.md names: with real servers.

The other rows of that table are tests of crashes (``test_publishing_crashes``), of messengers
(``test_messengers``) and of ``publish()`` (``tests/unit/test_outbox.py``).
"""

import threading
import uuid
from contextlib import suppress

import pika
import pytest
import sqlalchemy as sa
from fedora_messaging import message as upstream
from sqlalchemy.orm import Session

from consumer_framework.publishing.events import RelayCounters, RelayObservers, TopicPaused
from consumer_framework.publishing.messengers import Endpoints, find
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.publishing.policy import Policy, Unroutable
from consumer_framework.publishing.relay import Relay, Step
from consumer_framework.publishing.store import OutboxError, OutboxStore, create_engine
from consumer_framework.settings import OutboxRule
from consumer_framework.testing.broker import reserve_port
from consumer_framework.testing.fakes import FakeClock
from tests.unit.outboxes import NOW, message, spooled

from .instance import until
from .outbox import MARIADB, POSTGRESQL, SQLITE, on_every_database, on_servers
from .test_outbox_meetings import Running, stopped


@pytest.fixture
def store(outbox_url):
    store = OutboxStore.connect(outbox_url)
    store.migrate()
    yield store
    store.close()


class Sending:
    """A relay with the messenger `amqp`, whose clock a test has in its hands."""

    def __init__(self, store, *urls, policy=None):
        self.clock, self.counters = FakeClock(NOW), RelayCounters()
        self.events: list[object] = []
        self.messenger = find("amqp")(Endpoints(urls, timeout=2.0))
        self.relay = Relay(
            store,
            self.messenger,
            policy or Policy(),
            clock=self.clock,
            observer=RelayObservers(self.counters, self),
            chance=lambda: 0.0,
        )

    def notify(self, event):
        self.events.append(event)

    def later(self, seconds=0.0):
        self.clock.advance(seconds)
        while self.relay.step() is Step.SENT:
            pass


class Queue:
    """A queue that a test binds."""

    def __init__(self, channel):
        self.channel, self.name = channel, channel.queue_declare("", exclusive=True).method.queue

    def bind(self, exchange, topic):
        self.channel.queue_bind(self.name, exchange, topic)

    def topics(self):
        """Empty it, and return the topics of its messages."""
        found = []
        while (got := self.channel.basic_get(self.name, auto_ack=True))[0] is not None:
            found.append(got[0].routing_key)
        return found


@pytest.fixture
def queue(broker):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield Queue(connection.channel())


@on_every_database
def test_a_missing_exchange_pauses_its_own_messages_until_it_exists(store, broker, queue):
    exchange, topic = f"failures.{uuid.uuid4()}", f"a.{uuid.uuid4()}"
    queue.bind("amq.topic", topic)
    sending = Sending(store, broker.url)
    store.put(spooled(message(topic=topic, exchange=exchange), message(topic=topic)))
    sending.later()
    assert queue.topics() == [topic]
    [paused] = [event for event in sending.events if isinstance(event, TopicPaused)]
    assert (paused.exchange, paused.topic) == (exchange, topic)
    assert "NOT_FOUND" in paused.reason
    assert [row.state for row in store.rows()] == ["waiting"]
    queue.channel.exchange_declare(exchange, auto_delete=True)
    queue.bind(exchange, topic)
    sending.later(600)
    assert queue.topics() == [topic]
    assert store.rows() == []
    sending.relay.close()


@on_every_database
def test_an_unroutable_message_is_sent_dead_or_tried_again_by_its_topic(store, broker, queue):
    topic = f"b.{uuid.uuid4()}"
    rules = tuple(
        OutboxRule(topics=f"{topic}.{choice.value}", unroutable=choice) for choice in Unroutable
    )
    sending = Sending(store, broker.url, policy=Policy(rules=rules))
    topics = [f"{topic}.{choice.value}" for choice in Unroutable]
    store.put(spooled(*(message("k", topic=one) for one in topics)))
    sending.later()
    states = {row.message.topic.rpartition(".")[2]: row.state for row in store.rows()}
    assert states == {"dead": "dead", "retry": "waiting"}
    assert (sending.counters.sent, sending.counters.dead) == (1, 1)
    queue.bind("amq.topic", f"{topic}.#")
    assert store.retry() == 1
    sending.later(300)
    assert sorted(queue.topics()) == [f"{topic}.dead", f"{topic}.retry"]
    assert store.rows() == []
    sending.relay.close()


@on_every_database
def test_a_broker_that_is_down_is_tried_until_it_answers_and_no_attempt_counts(
    store, broker, proxy, queue
):
    topic = f"c.{uuid.uuid4()}"
    queue.bind("amq.topic", topic)
    with reserve_port() as port:
        dead = f"amqp://127.0.0.1:{port.getsockname()[1]}/%2F"
        sending = Sending(store, dead, proxy.url_for(broker.url))
        sending.later()
        proxy.refuse()
        proxy.cut()
        store.put(spooled(message("k", topic=topic), message("k", topic=topic)))
        before = store.rows()
        for _ in range(20):
            sending.later(30)
            assert (sending.relay.endpoint_until or 0) > sending.clock.time()
        after = store.rows()
        assert [row.message for row in after] == [row.message for row in before]
        assert queue.topics() == []
        proxy.accept()
        sending.later(300)
    assert queue.topics() == [topic, topic]
    assert store.rows() == []
    sending.relay.close()


@on_servers
def test_a_database_that_is_down_fails_the_callers_transaction(store, outbox_url, database_server):
    outbox, engine = Outbox(outbox_url), create_engine(outbox_url)

    def publish():
        with Session(engine) as session, session.begin():
            outbox.publish(upstream.Message(topic="a"), session=session)

    with Running(store) as relay:
        with stopped(database_server):
            with pytest.raises(sa.exc.OperationalError):
                publish()
            with pytest.raises(OutboxError):
                outbox.publish(upstream.Message(topic="b"))
        publish()
        until(lambda: len(relay.ids) == 1, "the message is sent")
    assert store.rows() == []
    assert relay.sent == 1
    engine.dispose()
    outbox.close()


@pytest.mark.parametrize("own_database", [SQLITE, POSTGRESQL, MARIADB], indirect=True)
def test_a_full_disk_fails_the_callers_transaction_and_the_relay_goes_on_with_room(own_database):
    disk = own_database.disk
    if disk is None:
        pytest.skip("needs root, to mount a small disk")
    store = OutboxStore.connect(own_database.url)
    store.migrate()
    outbox, engine = Outbox(own_database.url), create_engine(own_database.url)
    accepted = []

    def publish():
        with Session(engine) as session, session.begin():
            text = "x" * 50_000
            sent = outbox.publish(upstream.Message(topic="a", body={"x": text}), session=session)
        accepted.append(sent.id)

    def publishes():
        with suppress(sa.exc.SQLAlchemyError):
            publish()
            return True

    def fail():
        disk.fill()
        for _ in range(200):
            publish()

    with Running(store) as relay:
        relay.messenger.refuses = ConnectionRefusedError("nobody there")
        publish()
        with pytest.raises(sa.exc.SQLAlchemyError):
            fail()
        relay.messenger.refuses = None
        threading.Event().wait(2)
        disk.free()
        if own_database.server is not None and not own_database.server.is_running:
            own_database.server.start()
        until(publishes, "there is room")
        until(lambda: not store.rows(limit=1), "all are sent")
    assert list(dict.fromkeys(relay.ids)) == accepted
    engine.dispose()
    outbox.close()
    store.close()
