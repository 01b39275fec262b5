# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job: `systemctl start fm-consumer@NAME`, with the real units and a real broker."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest

from consumer_framework.testing.broker import Broker

from .conftest import skip_unless_in_ci

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .container import Container

REPO = Path(__file__).parents[2]
REAL_MESSAGES = REPO.parent / "shared" / "data" / "fedora-messages.jsonl"
HEADERS = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}

# Each message handled is a line of the journal: what the tests count.
CONSUMER = """
import time
from consumer_framework import Consumer

class Sample(Consumer):
    def handle(self, message):
        print(f"start {message.id}", flush=True)
        time.sleep(float(message.body.get("sleep", 0)))
        print(f"handled {message.id}", flush=True)
"""


class Service:
    """One instance of fm-consumer@.service in the container."""

    def __init__(self, container: Container, name: str) -> None:
        self.container = container
        self.name = name
        self.unit = f"fm-consumer@{name}"

    def configure(self, url: str, queue: str, extra: str = "") -> None:
        self.container.write(
            f"/etc/fedora-messaging/{self.name}.toml",
            f'amqp_url = "{url}"\n'
            'callback = "acceptance_consumer:Sample"\n'
            f"{extra}\n"
            f'[queues."{queue}"]\n'
            "durable = true\nauto_delete = false\nexclusive = false\narguments = {}\n"
            f'[[bindings]]\nqueue = "{queue}"\nexchange = "amq.topic"\n'
            f'routing_keys = ["{queue}.#"]\n',
        )

    def systemctl(self, verb: str, *options: str, check: bool = True) -> Any:
        return self.container.run("systemctl", verb, *options, self.unit, check=check)

    def show(self, name: str) -> str:
        return str(self.systemctl("show", f"--property={name}", "--value").stdout).strip()

    def journal(self, *options: str) -> str:
        self.container.run("journalctl", "--sync")
        return str(
            self.container.run("journalctl", "-u", self.unit, "-o", "cat", "-q", *options).stdout
        )

    def noted(self, word: str) -> list[str]:
        lines = self.journal().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{word} ")]

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"in {seconds} s: {what}\n{self.journal()[-8000:]}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    if lacking := Broker.missing():
        skip_unless_in_ci(lacking)
    with Broker() as running:
        yield running


@pytest.fixture(scope="module")
def host(container: Container) -> Container:
    """The container with the units installed as a packager would, and a consumer's module."""
    for unit in (REPO / "units").iterdir():
        container.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
    container.run("mkdir", "-p", "/etc/fedora-messaging", "/usr/local/lib/consumers")
    container.write("/usr/local/lib/consumers/acceptance_consumer.py", CONSUMER)
    container.write(
        "/etc/systemd/system/fm-consumer@.service.d/module.conf",
        "[Service]\nEnvironment=PYTHONPATH=/usr/local/lib/consumers\n",
    )
    container.run("systemctl", "daemon-reload")
    return container


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    name = f"acceptance-{uuid.uuid4()}"
    yield name
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(name)


@pytest.fixture
def make(host: Container, broker: Broker, queue: str) -> Iterator[Callable[..., Service]]:
    """Makes configured instances, and stops them."""
    services: list[Service] = []

    def make_service(name: str, **options: str) -> Service:
        service = Service(host, name)
        service.configure(broker.url, **{"queue": queue, **options})
        services.append(service)
        return service

    yield make_service
    for service in services:
        service.systemctl("stop", check=False)
        service.systemctl("reset-failed", check=False)


def publish(
    broker: Broker, queue: str, messages: Iterable[tuple[str, bytes, dict[str, Any]]]
) -> list[str]:
    """Publish (topic, body, headers), confirmed, and return the ids."""
    ids = []
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for topic, body, headers in messages:
            ids.append(str(uuid.uuid4()))
            properties = pika.BasicProperties(
                message_id=ids[-1], content_encoding="utf-8", headers=headers, delivery_mode=2
            )
            channel.basic_publish("amq.topic", f"{queue}.{topic}", body, properties, mandatory=True)
    return ids


def bodies(count: int, **more: Any) -> list[tuple[str, bytes, dict[str, Any]]]:
    return [("t", json.dumps({"n": n, **more}).encode(), HEADERS) for n in range(count)]


def test_start_returns_once_it_consumes_and_every_message_is_handled_once(make, broker, queue):
    sample = make("sample")
    sample.systemctl("start")
    assert broker.depth(queue) == (0, 1), "start returned, so the consumer is there"
    ids = publish(broker, queue, bodies(500))
    sample.until(lambda: len(sample.noted("handled")) >= 500, "500 are handled")
    assert Counter(sample.noted("handled")) == Counter(ids)
    assert broker.depth(queue) == (0, 1)
    sample.until(lambda: "500 handled" in sample.show("StatusText"), "the status counts them")
    status = sample.systemctl("status").stdout
    assert f'Status: "Consuming from {queue}; 500 handled"' in status
    sample.systemctl("stop")
    assert sample.show("Result") == "success"
    assert broker.depth(queue) == (0, 0)


@pytest.mark.skipif(not REAL_MESSAGES.exists(), reason="the real messages are not beside the repo")
def test_the_real_messages_of_fedora_are_each_handled_once(make, broker, queue):
    lines = [json.loads(line) for line in REAL_MESSAGES.read_text().split("\n") if line]
    real = [
        (line["topic"][-120:], json.dumps(line["body"]).encode(), {**HEADERS, **line["headers"]})
        for line in lines
    ]
    service = make("real")
    service.systemctl("start")
    ids = publish(broker, queue, real)
    assert len(ids) > 400
    service.until(lambda: len(service.noted("handled")) >= len(ids), "all are handled", 60)
    assert Counter(service.noted("handled")) == Counter(ids)


def test_stop_waits_for_the_handler_and_loses_nothing(make, broker, queue):
    service = make("stopping")
    service.systemctl("start")
    ids = publish(broker, queue, [*bodies(1, sleep=3), *bodies(5)])
    service.until(lambda: service.noted("start"), "the slow handler runs")
    service.systemctl("stop")
    assert service.noted("handled") == ids[:1]
    assert broker.depth(queue) == (5, 0)
    service.systemctl("start")
    service.until(lambda: len(service.noted("handled")) == 6, "the rest follows")
    assert Counter(service.noted("handled")) == Counter(ids)


def test_a_kill_restarts_it_and_loses_nothing(make, broker, queue):
    service = make("killed")
    service.systemctl("start")
    ids = publish(broker, queue, [*bodies(3), *bodies(1, sleep=2), *bodies(3)])
    service.until(lambda: len(service.noted("start")) == 4, "the slow handler runs")
    service.systemctl("kill", "-s", "KILL")
    service.until(lambda: set(service.noted("handled")) == set(ids), "all are handled")
    assert service.show("NRestarts") == "1"
    runs = Counter(service.noted("start"))
    assert runs.pop(ids[3]) == 2, "the one it was killed in"
    assert set(runs.values()) == {1}
    service.until(lambda: broker.depth(queue) == (0, 1), "nothing is left")


def test_two_instances_on_one_queue_share_the_messages(make, broker, queue):
    one = make("one", extra="[qos]\nprefetch_count = 1")
    two = make("two", extra="[qos]\nprefetch_count = 1")
    one.systemctl("start")
    two.systemctl("start")
    ids = publish(broker, queue, bodies(40, sleep=0.05))
    one.until(
        lambda: len(one.noted("handled")) + len(two.noted("handled")) >= 40, "all are handled"
    )
    shares = [one.noted("handled"), two.noted("handled")]
    assert Counter(shares[0] + shares[1]) == Counter(ids)
    assert all(12 <= len(share) <= 28 for share in shares), "in turns"


def test_two_instances_with_two_files_are_independent(make, broker, queue):
    other = f"{queue}-other"
    left, right = make("left"), make("right", queue=other)
    left.systemctl("start")
    right.systemctl("start")
    left_ids, right_ids = publish(broker, queue, bodies(5)), publish(broker, other, bodies(7))
    left.until(lambda: len(left.noted("handled")) == 5, "left is done")
    right.until(lambda: len(right.noted("handled")) == 7, "right is done")
    assert set(left.noted("handled")) == set(left_ids)
    assert set(right.noted("handled")) == set(right_ids)
    left.systemctl("stop")
    assert right.show("ActiveState") == "active"
    users = {service.show("User") for service in (left, right)}
    assert users == {"fm-left", "fm-right"}
    right.systemctl("stop")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(other)


def test_log_lines_carry_their_priority(make, broker, queue):
    service = make("logging")
    service.systemctl("start")
    publish(broker, queue, [("t", b"no json", HEADERS)] * 3)
    service.until(lambda: "no valid message" in service.journal("-p", "err"), "an error")
    assert "consuming from" not in service.journal("-p", "err")
    assert "consuming from" in service.journal("-p", "info")
    assert "<6>" not in service.journal()


def test_what_no_handler_can_read_is_set_aside_and_logged_once_per_cause(make, broker, queue):
    service = make("garbage")
    service.systemctl("start")
    publish(broker, queue, [("t", b"no json %d" % n, HEADERS) for n in range(3)])
    (good,) = publish(broker, queue, bodies(1))
    service.until(lambda: service.noted("handled") == [good], "it stops nothing behind it")
    service.until(lambda: "3 quarantined" in service.show("StatusText"), "they are set aside")
    errors = service.journal("-p", "err")
    assert errors.count("it is quarantined: no valid message") == 1
    service.systemctl("stop")
    assert broker.depth(queue) == (0, 0)


def test_a_broken_configuration_fails_at_once_and_is_not_restarted(make, host):
    service = make("broken", extra="[qos]\nprefetch_cuont = 5")
    assert service.systemctl("start", check=False).returncode != 0
    assert service.show("ExecMainStatus") == "78"
    assert service.show("NRestarts") == "0"
    assert service.show("ActiveState") == "failed"
    assert (
        "/etc/fedora-messaging/broken.toml: qos.prefetch_cuont: unknown key; "
        'did you mean "prefetch_count"?'
    ) in service.journal("-p", "err")
    assert "Traceback" not in service.journal()


def test_an_instance_without_a_configuration_fails_loudly(host):
    started = host.run("systemctl", "start", "fm-consumer@nobody", check=False)
    assert started.returncode != 0
    assert "assert" in started.stderr.lower()


def test_the_target_stops_every_instance(make, host, broker, queue):
    service = make("member")
    service.systemctl("enable")
    host.run("systemctl", "start", "fm-consumers.target")
    service.until(lambda: broker.depth(queue) == (0, 1), "the target started it")
    host.run("systemctl", "stop", "fm-consumers.target")
    service.until(lambda: service.show("ActiveState") == "inactive", "the target stopped it")
    service.systemctl("disable")


def test_the_unit_is_as_hardened_as_promised(make, host):
    service = make("secure")
    service.systemctl("start")
    scored = host.run("systemd-analyze", "security", "--no-pager", f"{service.unit}.service")
    overall = next(line for line in scored.stdout.splitlines() if "Overall exposure" in line)
    assert float(overall.split(":")[1].split()[0]) <= 1.1, overall


def test_systemd_finds_nothing_wrong_with_the_units(host):
    verified = host.run(
        "systemd-analyze", "verify", "fm-consumer@x.service", "fm-consumers.target", check=False
    )
    assert verified.returncode == 0
    # Settings that systemd 254 and later know.
    known = ("RestartSteps", "RestartMaxDelaySec", "ImportCredential")
    complaints = [line for line in verified.stderr.splitlines() if "fm-consumer" in line]
    assert [line for line in complaints if not any(name in line for name in known)] == []
