# SPDX-License-Identifier: GPL-2.0-or-later
"""Several instances keep the order, set up as in docs/howto/keep-messages-in-order.md."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest

from consumer_framework.testing.broker import Broker

from .instance import FM_CONSUMER, HEADERS, publish, queue_table, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .instance import Instance

HANDLER = """
def handler(message):
    note("start", message)
    time.sleep(0.01)
    note("end", message)
"""


def in_order(instances: Sequence[Instance], event: str) -> list[dict[str, Any]]:
    """Return the notes of several instances in the order of time: they share a clock."""
    return sorted((n for i in instances for n in i.notes(event)), key=lambda note: note["at"])


def numbers(notes: Sequence[dict[str, Any]]) -> list[int]:
    return [note["body"]["n"] for note in notes]


@pytest.fixture(params=["classic", "quorum"])
def pair(request, broker, queue_name, start) -> tuple[Instance, Instance]:
    """Start two instances of a queue with a single active consumer; the first is active."""
    queues = queue_table(
        queue_name, arguments={"x-single-active-consumer": True, "x-queue-type": request.param}
    )
    active = start(broker.url, queues, HANDLER).ready()
    return active, start(broker.url, queues, HANDLER).ready()


def test_one_worker_is_active_and_the_other_takes_over_in_order_when_it_is_killed(
    broker, queue_name, pair
):
    active, standby = pair
    publish(broker.url, queue_name, range(50))
    active.noted("end", 10)
    assert standby.notes() == [], "it stands by"
    active.send(signal.SIGKILL)
    publish(broker.url, queue_name, range(50, 80))
    until(lambda: standby.notes("end")[-1:] and numbers(standby.notes("end"))[-1] == 79, "the rest")
    first_of_each = list(dict.fromkeys(numbers(in_order(pair, "start"))))
    assert first_of_each == list(range(80)), "none is lost, none overtakes another"
    twice = {*numbers(active.notes("end"))} & {*numbers(standby.notes("start"))}
    assert len(twice) <= 1, "only the one that it had just handled comes again"


def test_the_other_takes_over_in_order_when_the_active_one_is_stopped(broker, queue_name, pair):
    active, standby = pair
    publish(broker.url, queue_name, range(50))
    active.noted("end", 10)
    assert active.stop() == 0
    until(lambda: len(standby.notes("end")) + len(active.notes("end")) >= 50, "the rest")
    assert numbers(in_order(pair, "start")) == list(range(50)), "each once, in order"
    assert numbers(in_order(pair, "end")) == list(range(50)), "one after the other"


# These tests use the consistent-hash exchange, with the files of the documentation.

KEYED = "builds.by-key"
KEYS = 12
PAGE = Path(__file__).resolve().parents[2] / "docs/howto/keep-messages-in-order.md"


def documented(page: Path) -> list[str]:
    """Return the files on the page, without the lines that name broker and handler."""
    files = re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [file.partition("\n\n")[2] for file in files]


@pytest.fixture(scope="module")
def hashing() -> Iterator[Broker]:
    """Start a node with the exchange, declared as on the page with rabbitmqadmin."""
    if lacking := Broker.missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    with Broker(plugins=["rabbitmq_consistent_hash_exchange"]) as running:
        with pika.BlockingConnection(pika.URLParameters(running.url)) as connection:
            channel = connection.channel()
            arguments = {"hash-header": "build-id"}
            channel.exchange_declare(KEYED, "x-consistent-hash", durable=True, arguments=arguments)
            channel.exchange_bind(KEYED, "amq.topic", "org.fedoraproject.*.buildsys.#")
        yield running


def publish_builds(url: str, numbers: Iterable[int]) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for number in numbers:
            properties = pika.BasicProperties(
                message_id=str(number),
                content_encoding="utf-8",
                delivery_mode=2,
                headers={**HEADERS, "build-id": str(number % KEYS)},
            )
            topic, body = "org.fedoraproject.test.buildsys.tag", json.dumps({"n": number}).encode()
            channel.basic_publish("amq.topic", topic, body, properties, mandatory=True)


def test_all_messages_of_a_key_go_to_one_worker_in_order_and_a_standby_takes_over(hashing, start):
    _, *files = (text for text in documented(PAGE) if "x-single-active-consumer" in text)
    assert len(files) == 2
    workers = [start(hashing.url, file, HANDLER).ready() for file in files]
    standby = start(hashing.url, files[0], HANDLER).ready()
    publish_builds(hashing.url, range(10 * KEYS))
    assert workers[0].stop() == 0
    publish_builds(hashing.url, range(10 * KEYS, 20 * KEYS))
    everybody = [*workers, standby]
    until(lambda: len(in_order(everybody, "end")) >= 20 * KEYS, "every message is handled")
    handled = numbers(in_order(everybody, "start"))
    assert len(handled) == 20 * KEYS
    for key in range(KEYS):
        expected = list(range(key, 20 * KEYS, KEYS))
        assert [number for number in handled if number % KEYS == key] == expected
    keys = [
        {number % KEYS for number in numbers(in_order(group, "start"))}
        for group in ([workers[0], standby], [workers[1]])
    ]
    assert keys[0] & keys[1] == set(), "a key is one queue's"
    assert keys[0] | keys[1] == set(range(KEYS))
    assert all(keys), "both have some"


def test_status_tells_of_instances_that_were_started_by_hand(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), HANDLER).ready()
    publish(broker.url, queue_name, range(3))
    instance.noted("end", 3)
    environment = {
        **os.environ,
        "STATE_DIRECTORY": str(instance.state),
        "RUNTIME_DIRECTORY": str(instance.state.parent),
    }
    command = [str(FM_CONSUMER), "status", "by-hand", "--state-dir", str(instance.state), "--json"]

    def report() -> Any:
        said = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        return json.loads(said.stdout)["groups"][0]["instances"][0]["report"]

    until(lambda: report()["counts"]["acked"] == 3, "it has counted them")
    found = report()
    assert (found["pid"], found["state"]) == (instance.process_id, "consuming")
    assert found["queues"] == [queue_name]
    assert found["broker"].endswith(str(broker.port))
    assert (found["held"], found["deferred"], found["quarantined"]) == (0, 0, 0)
    command[-1] = "--nagios"
    check = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert check.stdout.startswith("FM-CONSUMER OK: by-hand: consuming 1 queue, ")
    assert " by-hand.handled=3c;;;0 " in check.stdout
    assert check.returncode == 0
