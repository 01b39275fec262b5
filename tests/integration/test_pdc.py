# SPDX-License-Identifier: GPL-2.0-or-later
"""PDC's messengers with PDC's settings: stored, then sent, whatever fails meanwhile."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pika
import pytest
from fedora_messaging.exceptions import ValidationError

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.publishing import lines
from consumer_framework.publishing.collecting import Publisher
from consumer_framework.publishing.integrations.pdc import PdcMessenger, messenger
from consumer_framework.publishing.message import OutboxError, PublishError
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.settings import OnFailure, OutboxSettings, Unroutable
from consumer_framework.testing.broker import reserve_port

from .fedmsg_bus import RsaAuthority, Subscriber, free_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer_framework.publishing.collecting import Entry


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def channel(broker):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield connection.channel()


@pytest.fixture
def exchange(channel, queue_name) -> Iterator[str]:
    """Return an exchange as PDC has one, whose messages arrive in the queue of the test."""
    name = f"pdc.{uuid.uuid4().hex}"
    channel.exchange_declare(name, "topic", durable=False)
    channel.queue_declare(queue_name)
    channel.queue_bind(queue_name, name, "#")
    yield name
    channel.exchange_delete(name)


def a_bus(url: str, exchange: str) -> dict[str, Any]:
    """Return the settings of PDC's documentation, for the broker of the test."""
    kind = {"name": exchange, "type": "topic", "durable": False}
    return {"MLP": "kombu", "URL": url, "EXCHANGE": kind, "OPTIONS": {}}


@pytest.fixture
def arrived(channel, queue_name):
    """Return a function that waits for a number of messages, and returns key, body and id."""

    def take(count):
        found = []

        def is_done():
            while (got := channel.basic_get(queue_name, auto_ack=True))[0] is not None:
                found.append((got[0].routing_key, json.loads(got[2]), got[1].message_id))
            return len(found) >= count

        until(is_done)
        return found

    return take


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[..., PdcMessenger]]:
    """Return a function that makes a messenger with an outbox of the test."""
    made: list[PdcMessenger] = []
    url = f"sqlite:///{tmp_path / 'outbox.sqlite3'}"

    def new(bus: dict[str, Any], **options: Any) -> PdcMessenger:
        if "direct" not in options:
            options.setdefault("outbox", url)
        made.append(messenger(bus, **{"timeout": 5.0, **options}))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture
def store(tmp_path) -> Iterator[OutboxStore]:
    store = OutboxStore.connect(f"sqlite:///{tmp_path / 'outbox.sqlite3'}")
    store.migrate()
    yield store
    store.close()


def numbered(*numbers: int) -> list[tuple[str, dict[str, Any]]]:
    return [(".compose", {"n": n}) for n in numbers]


def bodies(found) -> list[Any]:
    return [body for _, body, _ in found]


@pytest.mark.parametrize("options", [{}, {"direct": True}])
def test_messages_arrive_at_the_addresses_of_pdc(options, broker, exchange, make, arrived):
    bus = make(a_bus(broker.url, exchange), **options)
    bus.send_message(".compose", {"action": "create"})
    bus.send_messages(
        [
            (
                ".release",
                {"at": dt.datetime(2015, 8, 14, 9, 0, tzinfo=dt.UTC), "n": Decimal("1.5")},
            ),
            (".images", {"of": {"b", "a"}, "id": uuid.UUID(int=7), "day": dt.date(2015, 8, 14)}),
        ]
    )
    assert [(key, body) for key, body, _ in arrived(3)] == [
        (".compose", {"action": "create"}),
        (".release", {"at": "2015-08-14T09:00:00+00:00", "n": "1.5"}),
        (".images", {"of": ["a", "b"], "id": str(uuid.UUID(int=7)), "day": "2015-08-14"}),
    ]


def test_a_broker_that_is_away_delays_no_request_and_loses_no_message(
    broker, proxy, exchange, make, arrived
):
    proxy.refuse()
    bus = make(a_bus(proxy.url_for(broker.url), exchange))
    bus.send_messages(numbered(1, 2))
    bus.send_messages(numbered(3))
    proxy.accept()
    assert bodies(arrived(3)) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_connection_that_drops_is_made_again_in_both_ways(broker, proxy, exchange, make, arrived):
    for options in ({}, {"direct": True}):
        bus = make(a_bus(proxy.url_for(broker.url), exchange), **options)
        bus.send_messages(numbered(1))
        assert bodies(arrived(1)) == [{"n": 1}]
        proxy.cut()
        bus.send_messages(numbered(2))
        assert bodies(arrived(1)) == [{"n": 2}]
        bus.close()


def test_a_message_that_can_never_be_sent_does_not_fail_the_request_nor_take_the_others_along(
    broker, exchange, make, arrived, caplog
):
    bus = make(a_bus(broker.url, exchange))
    wrong: list[Any] = [
        (".compose", {"n": object()}),
        (".compose", {"n": float("nan")}),
        (".compose", "no object"),
        ("." * 300, {}),
        (None, {}),
    ]
    bus.send_messages([*numbered(1), *wrong, *numbered(2)])
    assert bodies(arrived(2)) == [{"n": 1}, {"n": 2}]
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(told) == len(wrong)
    assert all("fm-consumer publish takes it" in text for text in told)


def test_a_message_that_the_database_does_not_take_is_in_the_log_as_publish_reads_it(
    broker, exchange, make, caplog
):
    bus = make(a_bus(broker.url, exchange), outbox="sqlite:////no/such/directory/outbox.sqlite3")
    bus.send_messages([*numbered(1), (".compose", {"text": "x" * 50_000})])
    told = [r.getMessage() for r in caplog.records if "is lost" in r.getMessage()]
    assert len(told) == 2
    line = told[0].partition("as this line: ")[2]
    [message] = lines.LineReader().read(line.encode())
    assert (message.topic, message.body) == (".compose", {"n": 1})
    assert "unable to open database file" in told[0]
    assert len(told[1]) < 45_000


def test_a_message_that_is_not_sent_directly_is_in_the_log(make, exchange, caplog):
    with reserve_port() as port:
        url = f"amqp://127.0.0.1:{port.getsockname()[1]}//"
        bus = make(a_bus(url, exchange), direct=True, timeout=1.0)
        bus.send_messages(numbered(1, 2))
        bus.send_messages([])
    told = [r.getMessage() for r in caplog.records if "is lost" in r.getMessage()]
    assert [json.loads(text.partition("line: ")[2])["body"] for text in told] == [
        {"n": 1},
        {"n": 2},
    ]
    assert "refused" in told[0]


def test_a_missing_exchange_keeps_its_messages(broker, make, store):
    bus = make(a_bus(broker.url, f"missing.{uuid.uuid4()}"))
    bus.send_messages(numbered(1))
    until(lambda: bool(store.rows(state="waiting", limit=1)[0].reason))
    [row] = store.rows(state="waiting", limit=10)
    assert "NOT_FOUND" in row.reason
    assert (row.message.topic, json.loads(row.message.body)) == (".compose", {"n": 1})


PROGRAM = """
import json, os, sys, time
from consumer_framework.publishing.integrations.pdc import messenger
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.settings import OutboxSettings
bus, outbox = json.loads(sys.argv[1]), Outbox(sys.argv[2], OutboxSettings(lease=1.0))
"""


def run(script, *arguments):
    command = [sys.executable, "-c", PROGRAM + script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_process_that_is_killed_after_the_request_loses_nothing(
    broker, proxy, exchange, make, arrived, tmp_path
):
    proxy.refuse()
    bus = a_bus(proxy.url_for(broker.url), exchange)
    outbox = f"sqlite:///{tmp_path / 'outbox.sqlite3'}"
    script = """
sent = messenger(bus, outbox)
sent.send_messages([(".compose", {"n": n}) for n in range(3)])
print("answered", flush=True)
time.sleep(600)
"""
    process = run(script, json.dumps(bus), outbox)
    assert process.stdout
    assert process.stdout.readline() == "answered\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    proxy.accept()
    make(bus)  # the next process of the application
    assert bodies(arrived(3)) == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("way", ["outbox", "direct"])
def test_the_children_of_a_process_send_too(way, broker, exchange, arrived, tmp_path):
    script = """
sent = messenger(bus, **{"direct": True} if sys.argv[3] == "direct" else {"outbox": outbox})
sent.send_message(".compose", {"n": 0})
parent, children = os.getpid(), []
for n in (1, 2):
    child = os.fork()
    if child == 0:
        while os.getppid() == parent:
            time.sleep(0.02)
        sent.send_message(".compose", {"n": n})
        time.sleep(600)
    children.append(child)
print(*children, flush=True)
time.sleep(600)
"""
    outbox = f"sqlite:///{tmp_path / 'outbox.sqlite3'}"
    process = run(script, json.dumps(a_bus(broker.url, exchange)), outbox, way)
    assert process.stdout
    children = process.stdout.readline().split()
    process.kill()
    process.wait()
    try:
        assert {body["n"] for body in bodies(arrived(3))} == {0, 1, 2}
    finally:
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_process_that_ends_at_once_loses_nothing(broker, exchange, make, arrived, tmp_path):
    outbox = f"sqlite:///{tmp_path / 'outbox.sqlite3'}"
    script = "messenger(bus, outbox).send_message('.compose', {'n': 1})"
    process = run(script, json.dumps(a_bus(broker.url, exchange)), outbox)
    process.communicate(timeout=60)
    assert process.returncode == 0
    # Its lease was given back, so this relay need not wait for the end of it.
    make(a_bus(broker.url, exchange))
    assert bodies(arrived(1)) == [{"n": 1}]


def test_several_threads_send_at_once(broker, exchange, make, arrived):
    bus = make(a_bus(broker.url, exchange), direct=True)
    threads = [
        threading.Thread(target=bus.send_messages, args=(numbered(*range(n, n + 10)),))
        for n in range(0, 80, 10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(body["n"] for body in bodies(arrived(80))) == list(range(80))


# Transactions


class InTransaction(Outbox):
    """An outbox whose caller has a transaction, as Django's has one."""

    is_in_transaction = True


def test_in_a_transaction_a_fault_is_raised_so_that_it_undoes_the_request(
    broker, exchange, make, tmp_path
):
    outbox = InTransaction(f"sqlite:///{tmp_path / 'outbox.sqlite3'}")
    bus = make(a_bus(broker.url, exchange), outbox=outbox, relay=False)
    wrong: Any = "no object"
    with pytest.raises(ValidationError):
        bus.send_messages([*numbered(1), (".compose", wrong)])
    with pytest.raises(PublishError, match="no JSON"):
        bus.send_messages([(".compose", {"n": object()})])
    outbox.store.migrate()
    assert outbox.store.stats().waiting == 0
    torn = InTransaction("sqlite:////no/such/directory/outbox.sqlite3")
    with pytest.raises(OutboxError):
        make(a_bus(broker.url, exchange), outbox=torn, relay=False).send_messages(numbered(1))


def test_a_block_of_the_outbox_collects_the_messages(broker, exchange, make, tmp_path, arrived):
    outbox = Outbox(f"sqlite:///{tmp_path / 'outbox.sqlite3'}")
    outbox.store.migrate()
    bus = make(a_bus(broker.url, exchange), outbox=outbox)
    with outbox.transaction():
        bus.send_messages(numbered(1, 2))
        assert outbox.store.stats().waiting == 0
    with suppress(KeyError), outbox.transaction():
        bus.send_messages(numbered(3))
        raise KeyError
    bus.send_messages(numbered(4))
    assert bodies(arrived(3)) == [{"n": 1}, {"n": 2}, {"n": 4}]


# The other messengers


def test_a_subscriber_of_fedmsg_gets_the_topic_without_the_dot(make, tmp_path):
    authority = RsaAuthority(tmp_path)
    files = asdict(authority.issue("pdc-host.example.org"))
    url = free_url()
    bus = {"MLP": "fedmsg", "URL": url, "TOPIC": "org.fedoraproject.dev.pdc"}
    bus |= {"CERT_FILE": files["certfile"], "KEY_FILE": files["keyfile"]}
    with Subscriber(url) as subscriber:
        make(bus).send_message(".compose", {"n": 1})
        [(topic, got)] = subscriber.take(1)
    assert topic == got["topic"] == "org.fedoraproject.dev.pdc.compose"
    assert got["msg"] == {"n": 1}
    assert authority.verify(got) == "pdc-host.example.org"


def test_a_message_waits_for_a_subscriber_of_fedmsg_if_the_outbox_says_so(make, tmp_path, store):
    url = free_url()
    bus = {"MLP": "fedmsg", "URL": url, "OPTIONS": {"post_init_sleep": 0.1}}
    settings = OutboxSettings(unroutable=Unroutable.RETRY)
    outbox = Outbox(f"sqlite:///{tmp_path / 'outbox.sqlite3'}", settings)
    make(bus, outbox=outbox).send_message(".compose", {"n": 1})
    until(
        lambda: [row.reason for row in store.rows(limit=1)] == ["no queue is bound for its topic"]
    )
    with Subscriber(url) as subscriber:
        [(topic, got)] = subscriber.take(1, 30)
    assert topic == f"com.example.dev.{__name__.partition('.')[0]}.compose"
    assert got["msg"] == {"n": 1}
    until(lambda: store.stats().waiting == 0)


CLASS = """
import json, pathlib
path = pathlib.Path(__file__).with_name("calls")
class Messenger:
    def send_message(self, topic, msg):
        with path.open("a") as file:
            print(json.dumps([topic, msg]), file=file)
        if path.read_text().count("\\n") == 1:
            raise OSError("away")
        if msg.get("never"):
            raise ValueError("never")
"""


def test_a_class_of_the_application_sends_and_fails_without_loss(
    make, tmp_path, monkeypatch, store
):
    (tmp_path / "own_messengers.py").write_text(CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    bus = make({"BACKEND": "own_messengers.Messenger"})
    bus.send_messages([(".compose", {"n": 1}), (".compose", {"never": 1})])
    calls = tmp_path / "calls"
    until(lambda: calls.exists() and calls.read_text().count('"n": 1') == 2)
    until(lambda: store.stats().dead == 1)
    with pytest.raises(ConfigurationError, match=r"own_messengers\.No cannot be made"):
        make({"BACKEND": "own_messengers.No"})


def test_a_test_records_the_messages_of_a_block():
    bus = messenger({"MLP": "test"})
    bus.send_message(".before", {})
    with bus.listen() as messages:
        bus.send_message(".compose", {"n": 1})
    bus.send_message(".after", {})
    assert messages == [(".compose", {"n": 1})]
    dummy = messenger({"MLP": ""})
    dummy.send_messages(numbered(1, 2))
    dummy.close()


# The outbox


def test_the_outbox_is_in_the_state_directory_unless_one_is_named(
    broker, exchange, tmp_path, monkeypatch, arrived
):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with pytest.raises(ConfigurationError, match="direct=True"):
        messenger(a_bus(broker.url, exchange))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    bus = messenger(a_bus(broker.url, exchange))
    bus.send_messages(numbered(1))
    assert bodies(arrived(1)) == [{"n": 1}]
    bus.close()
    assert (tmp_path / "outbox.sqlite3").exists()


class Elsewhere(Publisher):
    """An outbox that another process has to read."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[Entry] = []

    def _put(self, messages: list[Entry]) -> None:
        self.stored += messages

    def _last_row(self) -> int:
        return 0

    def _state_of(self, message_id: str, since: int) -> tuple[str, str] | None:
        return None


def test_a_relay_in_the_process_needs_an_outbox_that_it_can_read(make):
    outbox = Elsewhere()
    with pytest.raises(ConfigurationError, match="a relay in this process"):
        make(a_bus("amqp://", "x"), outbox=outbox, relay=True)
    make(a_bus("amqp://", "x"), outbox=outbox).send_messages(numbered(1))
    [(message, choice)] = outbox.stored
    assert (message.exchange, message.topic, choice) == ("x", ".compose", "spool")


def test_a_message_to_wait_for_is_no_failure_of_the_request(make, tmp_path, caplog):
    with reserve_port() as port:
        url = f"amqp://127.0.0.1:{port.getsockname()[1]}//"
        settings = OutboxSettings(on_failure=OnFailure.WAIT)
        outbox = Outbox(f"sqlite:///{tmp_path / 'outbox.sqlite3'}", settings)
        bus = make(a_bus(url, "x"), outbox=outbox, timeout=0.5, relay=False)
        bus.send_messages(numbered(1))
        assert outbox.store.stats().waiting == 1
    assert "is stored, and not sent yet" in caplog.text
