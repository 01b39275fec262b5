# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer outbox relay`` as a process, with a real broker: start, send, reload, stop, die."""

import json
import os
import signal
import socket
import subprocess
import threading
import uuid
from typing import Any

import pika
import pytest
from click.testing import CliRunner

from consumer_framework.cli import main
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.runtime.control.client import connected_to
from consumer_framework.runtime.control.schema import RelayStatus
from consumer_framework.runtime.state_files import RELAY_CONTROL
from tests.unit.outboxes import message, spooled

from .instance import FM_CONSUMER, until
from .outbox import on_every_database, on_servers

SQLITE = pytest.mark.parametrize("outbox_url", ["sqlite"], indirect=True)


class Notifications:
    """The service manager: it receives what the relay notifies."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.lines = []
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        while data := self._socket.recv(8192):
            self.lines += data.decode().splitlines()

    def has(self, text):
        return any(text in line for line in self.lines)


class Relay:
    """A relay in a process, with its outbox and the queue that gets its messages."""

    def __init__(self, url, broker_url, directory, name="web"):
        self.url, self.directory = url, directory
        self.broker_url = broker_url
        self.file = directory / f"{name}.toml"
        self.state = directory / f"{name}.state"
        self.log = directory / f"{name}.log"
        self.topic = f"app.{uuid.uuid4().hex}"
        self.store = OutboxStore.connect(url)
        self.process: Any = None
        notify = directory / f"{name}.notify"
        self.systemd = Notifications(notify)
        self.environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(notify),
            "WATCHDOG_USEC": "1500000",
            "PYTHONUNBUFFERED": "1",
        }
        self.configure()

    def configure(self, outbox='lease = "2s"', framework=""):
        self.file.write_text(
            f'amqp_url = "{self.broker_url}"\n'
            f"[consumer_config.framework]\n{framework}\n"
            f'[consumer_config.framework.outbox]\ndatabase = "{self.url}"\n{outbox}\n'
        )

    def start(self, *, ready=True):
        command = [str(FM_CONSUMER), "outbox", "relay", "--conf", str(self.file)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--state-dir", str(self.state)],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        if ready:
            until(lambda: self.systemd.has("READY=1"), self.text)
        return self

    def text(self):
        return f"{self.log.read_text()}\n{self.systemd.lines}"

    def put(self, *messages):
        self.store.put(spooled(*messages))

    def message(self, n, key=""):
        return message(key, id=f"{self.topic}.{n}", topic=self.topic, body=b'{"n": %d}' % n)

    def is_empty(self):
        return not self.store.rows(limit=1)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)

    def command(self, verb, *words):
        arguments = [verb, "--conf", str(self.file), "--state-dir", str(self.state), *words]
        return CliRunner().invoke(main, ["outbox", *arguments], catch_exceptions=False)

    def state_of(self):
        found = json.loads(self.command("status", "--json").stdout)["relay"]
        return found and found["state"]

    def state_of_process(self):
        """Return the state as the relay says it, also while the database is down."""
        with connected_to([self.state / RELAY_CONTROL]) as running:
            assert running is not None
            [answer] = running.ask(RelayStatus())
        return answer.relay.state

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.store.close()


class Queue:
    """A queue of the broker, and the messages that came to it."""

    def __init__(self, url, topic):
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._name = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(self._name, "amq.topic", topic)
        self.ids = []

    def read(self):
        while (got := self._channel.basic_get(self._name, auto_ack=True))[0] is not None:
            self.ids.append(getattr(got[1], "message_id", None))
        return self.ids

    def close(self):
        self._connection.close()


@pytest.fixture
def relay(outbox_url, broker, tmp_path):
    relay = Relay(outbox_url, broker.url, tmp_path)
    relay.store.migrate()
    yield relay
    relay.close()


@pytest.fixture
def queue(relay, broker):
    queue = Queue(broker.url, relay.topic)
    yield queue
    queue.close()


def ids(messages):
    return [one.id for one in messages]


@on_every_database
def test_a_relay_sends_in_order_and_stops_when_it_is_told_to(relay, queue):
    messages = [relay.message(n, "key") for n in range(20)]
    relay.put(*messages[:10])
    relay.start()
    relay.put(*messages[10:])
    until(lambda: len(queue.read()) == 20, relay.text)
    assert queue.ids == ids(messages)
    until(relay.is_empty, relay.text)
    status = relay.command("status")
    assert status.exit_code == 0
    assert "sending to 127.0.0.1:" in status.stdout or "sending to localhost:" in status.stdout
    assert relay.stop() == 0
    assert relay.systemd.has("STOPPING=1")
    assert relay.systemd.has("Stopped; since its start: 20 sent")
    assert relay.store.lease_holder().until == 0
    assert relay.command("status").exit_code == 1


@SQLITE
def test_the_watchdog_is_fed_and_the_status_has_the_numbers(relay, queue):
    relay.start()
    relay.put(relay.message(1))
    until(lambda: relay.systemd.lines.count("WATCHDOG=1") > 3, relay.text)
    until(lambda: relay.systemd.has("0 waiting, 1 sent"), relay.text)
    line = next(line for line in relay.systemd.lines if "1 sent" in line)
    assert line.startswith("STATUS=sending to ")
    assert queue.read()


@SQLITE
def test_a_broker_that_goes_away_is_waited_for(relay, broker):
    relay.start()
    broker.stop()
    try:
        relay.put(relay.message(1))
        until(lambda: relay.state_of() == "waiting", relay.text)
        assert relay.command("status").exit_code == 1
        assert relay.process.poll() is None
    finally:
        broker.start()
    until(relay.is_empty, relay.text)
    assert relay.state_of() == "sending"
    assert relay.stop() == 0


@SQLITE
def test_a_relay_without_a_broker_is_not_ready_and_gives_up(relay):
    relay.broker_url = "amqp://guest:guest@127.0.0.1:1/"
    relay.configure(framework='start_timeout = "2s"')
    relay.start(ready=False)
    assert relay.process.wait(60) == 75
    assert not relay.systemd.has("READY=1")
    assert relay.systemd.has("EXTEND_TIMEOUT_USEC=")
    assert "not started within 2s (start_timeout): 127.0.0.1:1: " in relay.log.read_text()


@SQLITE
def test_a_relay_of_an_outbox_that_is_not_named_never_starts(relay):
    relay.file.write_text("[consumer_config.framework.outbox]\n")
    relay.start(ready=False)
    assert relay.process.wait(60) == 78
    assert "outbox.database: is not set; set it to the database of" in relay.log.read_text()
    assert relay.systemd.has("STATUS=Not started: ")


@pytest.mark.parametrize("outbox_url", ["postgresql", "mariadb"], indirect=True)
def test_a_relay_waits_for_the_tables_that_an_administrator_makes(outbox_url, broker, tmp_path):
    relay = Relay(outbox_url, broker.url, tmp_path)
    try:
        relay.start(ready=False)
        until(lambda: relay.systemd.has("run: fm-consumer outbox migrate web"), relay.text)
        assert relay.command("migrate").exit_code == 0
        until(lambda: relay.systemd.has("READY=1"), relay.text)
        assert relay.stop() == 0
    finally:
        relay.close()


@SQLITE
def test_sighup_brings_new_settings_into_force(relay, queue):
    relay.configure('messenger = "dummy"')
    relay.start()
    relay.put(relay.message(1))
    until(relay.is_empty, relay.text)
    assert queue.read() == []
    relay.configure('messenger = "amqp"\nlease = "3s"')
    relay.process.send_signal(signal.SIGHUP)
    until(lambda: "reloaded" in relay.log.read_text(), relay.text)
    assert relay.systemd.has("RELOADING=1")
    assert relay.systemd.has("MONOTONIC_USEC=")
    until(lambda: relay.systemd.lines.count("READY=1") == 2, relay.text)
    relay.put(relay.message(2))
    until(lambda: queue.read() == [f"{relay.topic}.2"], relay.text)
    assert relay.stop() == 0


@SQLITE
@pytest.mark.parametrize(
    ("outbox", "why"),
    [
        ("window = 0", "outbox.window: must be greater than or equal to 1"),
        ('messenger = "pigeon"', 'there is no messenger "pigeon"'),
        ("options = {wings = 2}", "outbox.options.wings: unknown key"),
        ('timeout = "1h"', "outbox.timeout: 1h is not shorter than lease"),
        ('endpoints = ["ftp://x"]', "Unexpected URL scheme 'ftp'"),
    ],
)
def test_a_reload_of_a_wrong_file_is_refused_and_the_old_settings_stay(relay, queue, outbox, why):
    relay.start()
    relay.configure(outbox)
    refused = relay.command("reload")
    assert refused.exit_code == 1
    assert "web goes on with its old settings:" in refused.output
    assert why in refused.output
    until(lambda: relay.systemd.has("reload refused: consumer_config.framework."), relay.text)
    relay.put(relay.message(1))
    until(lambda: queue.read() == [f"{relay.topic}.1"], relay.text)
    relay.configure()
    assert "nothing has changed" in relay.command("reload").stdout
    assert "reload refused" not in relay.command("status").stdout
    assert relay.stop() == 0


@SQLITE
def test_a_reload_with_another_database_sends_from_that_one(relay, queue, tmp_path):
    relay.start()
    relay.url = "postgresql://nobody@127.0.0.1:1/x"
    relay.configure()
    refused = relay.command("reload")
    assert refused.exit_code == 1
    assert "postgresql+psycopg://nobody@127.0.0.1:1/x" in refused.output
    relay.url = f"sqlite:///{tmp_path}/second.sqlite3"
    second = OutboxStore.connect(relay.url)
    relay.configure()
    assert relay.command("reload").exit_code == 0
    second.put(spooled(relay.message(2)))
    until(lambda: queue.read() == [f"{relay.topic}.2"], relay.text)
    assert relay.store.lease_holder().until == 0
    second.close()
    assert relay.stop() == 0


@SQLITE
def test_a_reload_of_a_relay_that_does_not_run_is_told(relay):
    said = relay.command("reload")
    assert said.exit_code == 1
    assert "web does not run" in said.output


@on_every_database
def test_a_relay_that_is_killed_loses_nothing(relay, queue):
    messages = [relay.message(n, f"k{n % 3}") for n in range(300)]
    relay.configure('lease = "2s"\nwindow = 5')
    relay.start()
    feeding = threading.Thread(target=lambda: [relay.put(one) for one in messages])
    feeding.start()
    until(lambda: len(queue.read()) > 20, relay.text)
    relay.process.kill()
    relay.process.wait()
    feeding.join()
    relay.systemd.lines.clear()
    relay.start()
    until(relay.is_empty, relay.text)
    assert set(queue.read()) == set(ids(messages))
    first = list(dict.fromkeys(queue.ids))
    for key in range(3):
        of_key = ids(messages[key::3])
        assert [one for one in first if one in of_key] == of_key
    assert relay.stop() == 0


@on_every_database
def test_a_second_relay_stands_by_and_takes_over_when_the_first_is_killed(
    relay, queue, broker, outbox_url, tmp_path
):
    relay.start()
    second = Relay(outbox_url, broker.url, tmp_path, "second")
    try:
        second.start()
        assert second.systemd.has("STATUS=standby: another relay sends")
        assert second.state_of() == "standby"
        assert second.command("status").exit_code == 0
        relay.put(relay.message(1))
        until(lambda: len(queue.read()) == 1, relay.text)
        relay.process.kill()
        relay.put(relay.message(2))
        # The first message may come twice: its relay may have died before it marked the row.
        until(lambda: len(set(queue.read())) == 2, second.text)
        assert queue.ids.count(queue.ids[-1]) == 1, "only the message under way may come twice"
        assert second.state_of() == "sending"
        assert second.stop() == 0
    finally:
        second.close()


@on_servers
def test_a_relay_whose_database_is_restarted_goes_on(relay, queue, database_server):
    relay.start()
    database_server.stop()
    until(lambda: relay.state_of_process() == "failing", relay.text)
    database_server.start()
    relay.put(relay.message(1))
    until(lambda: len(queue.read()) == 1, relay.text)
    assert relay.stop() == 0


@SQLITE
def test_a_second_signal_ends_a_relay_whose_broker_says_nothing(relay):
    silent = socket.create_server(("127.0.0.1", 0))
    relay.configure('lease = "1h"\ntimeout = "10m"')
    relay.start()
    relay.broker_url = f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/"
    relay.configure('lease = "1h"\ntimeout = "9m"')
    assert relay.command("reload").exit_code == 0
    connection, _ = silent.accept()
    relay.process.send_signal(signal.SIGTERM)
    until(lambda: relay.systemd.has("STOPPING=1"), relay.text)
    relay.process.send_signal(signal.SIGTERM)
    assert relay.process.wait(60) == 128 + signal.SIGTERM
    connection.close()
    silent.close()
