# SPDX-License-Identifier: GPL-2.0-or-later
"""No message is lost in a cluster whose nodes are killed, paused, cut off, split off and drained.

The test takes minutes, so it is a part of ``make chaos``: ``CHAOS=full``.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pika
import pytest

from consumer_framework.testing.broker import Broker

from .cluster import SIZE, Cluster, missing
from .instance import HEADERS, queue_table, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(os.environ.get("CHAOS") != "full", reason="takes minutes: make chaos"),
    # pika leaves the socket of a failed connection open.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

QUEUE = "chaos"
QUORUM = {"x-queue-type": "quorum"}
HANDLER = """
import random

def handler(message):
    note("start", message)
    time.sleep(0.004)
    if random.random() < 0.02:
        raise RuntimeError("now and then")
    note("done", message)
"""
RECOVERY = '[consumer_config.framework.recovery]\nimmediate = 2\ndelays = ["1s", "2s"]\n'


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if lacking := Broker.missing() or missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        until(lambda: len(running_nodes(running)) == SIZE, "one cluster", 60)
        yield running


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 -- `make chaos` shows it


def running_nodes(cluster: Cluster) -> list[str]:
    said = json.loads(cluster.ctl(0, "cluster_status", "--formatter", "json"))
    nodes: list[str] = said["running_nodes"]
    return nodes


class Publisher:
    """Publishes all the time, through any node that answers, until each message is confirmed."""

    def __init__(self, cluster: Cluster) -> None:
        self.confirmed: list[str] = []
        self._ports = [proxy.port for proxy in cluster.proxies]
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        turn = 0
        pending = ""
        while not self._stop.is_set():
            turn += 1
            parameters = pika.URLParameters(self._cluster.url(self._ports[turn % SIZE]))
            parameters.socket_timeout = parameters.stack_timeout = 3
            parameters.blocked_connection_timeout = 5
            with suppress(pika.exceptions.AMQPError, OSError):
                connection = pika.BlockingConnection(parameters)
                channel = connection.channel()
                channel.confirm_delivery()
                while not self._stop.is_set():
                    # A message without a confirmation is published again with its id.
                    pending = pending or str(uuid.uuid4())
                    self._publish(channel, pending)
                    self.confirmed.append(pending)
                    pending = ""
                    connection.sleep(0.01)
                connection.close()
            time.sleep(0.2)

    def _publish(self, channel, message_id: str) -> None:
        properties = pika.BasicProperties(
            message_id=message_id,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            headers=HEADERS,
        )
        channel.basic_publish("amq.topic", QUEUE, b'{"n": 1}', properties, mandatory=True)


def test_no_message_is_lost_while_nodes_die_hang_part_and_are_drained(cluster, start):
    table = queue_table(QUEUE, arguments=QUORUM)
    ports = [proxy.port for proxy in cluster.proxies]
    listed = json.dumps([f"127.0.0.1:{port}" for port in ports[1:]])
    brokers = f"[consumer_config.framework]\nbrokers = {listed}\nslots = 2\n{RECOVERY}"
    balanced = f"[consumer_config.framework]\n{RECOVERY}"
    instances = [
        start(cluster.url(ports[0]), table, HANDLER, extra=brokers).ready(120),
        start(cluster.url(cluster.balancer_port), table, HANDLER, extra=balanced).ready(120),
    ]

    def moved(what: str, number: int) -> None:
        """Wait until both instances consume again."""
        before = [len(instance.notes("done")) for instance in instances]
        for instance, count in zip(instances, before, strict=True):
            instance.noted("done", count + 20, 120)
        say(f"{what} of node {number}: {sum(before)} done before, and both go on")

    with Publisher(cluster) as publisher:
        moved("start", 0)
        for number in range(SIZE):
            cluster.kill(number)
            time.sleep(3)
            moved("kill", number)
            cluster.start(number)
            moved("return", number)
        for number in (0, 2):
            cluster.pause(number, 20)
            moved("pause", number)
            cluster.proxies[number].stall()
            time.sleep(12)
            moved("partition of the clients", number)
            cluster.proxies[number].cut()
            cluster.proxies[number].resume()
            cluster.split(number, 25)
            moved("split", number)
            cluster.drain(number, 5)
            moved("drain", number)
        until(lambda: len(running_nodes(cluster)) == SIZE, "all are back", 120)
        moved("end", 0)
    confirmed = set(publisher.confirmed)

    def kept() -> set[str]:
        return {row.message_id for instance in instances for row in instance.store()}

    def missed() -> set[str]:
        done = {note["id"] for instance in instances for note in instance.notes("done")}
        return confirmed - done - kept()

    until(lambda: not missed(), "each message has ended", 180)
    assert [instance.stop() for instance in instances] == [0, 0]
    runs = Counter(note["id"] for instance in instances for note in instance.notes("done"))
    ledger = {
        "confirmed": len(confirmed),
        "handled": len(confirmed & runs.keys()),
        "handled more than once": sum(1 for count in runs.values() if count > 1),
        "kept for an operator": len(confirmed & kept()),
        "lost": len(missed()),
        "connections lost": sum(i.log.count("no connection to the broker") for i in instances),
    }
    say(json.dumps(ledger, indent=2))
    assert not missed()
    assert len(confirmed) > 1000
