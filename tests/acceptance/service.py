# SPDX-License-Identifier: GPL-2.0-or-later
"""Run an instance of the unit in a container, with messages. Knows nothing of pytest."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import pika

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from consumer_framework.testing.broker import Broker

    from .container import Container

HEADERS = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}

# Each handled message is a line of the journal. The tests count these lines.
CONSUMER = """
import time
from consumer_framework import Consumer, Defer, Quarantine

class Sample(Consumer):
    def handle(self, message):
        if time.time() < message.body.get("not_before", 0):
            raise Defer(message.body["not_before"])
        if message.body.get("poison"):
            raise Quarantine("poison")
        print(f"start {message.id}", flush=True)
        time.sleep(float(message.body.get("sleep", 0)))
        print(f"handled {message.id}", flush=True)
"""


def install_module(container: Container, name: str = "acceptance", text: str = CONSUMER) -> None:
    """Let every instance import a module, ``NAME_consumer``."""
    container.run("mkdir", "-p", "/etc/fedora-messaging")
    container.write(f"/usr/local/lib/consumers/{name}_consumer.py", text)
    container.write(
        "/etc/systemd/system/fm-consumer@.service.d/module.conf",
        "[Service]\nEnvironment=PYTHONPATH=/usr/local/lib/consumers\n",
    )
    container.run("systemctl", "daemon-reload")


class Service:
    """One instance of fm-consumer@.service in the container."""

    def __init__(self, container: Container, name: str) -> None:
        self.container = container
        self.name = name
        self.unit = f"fm-consumer@{name}"

    def configure(
        self, url: str, queue: str, extra: str = "", callback: str = "acceptance_consumer:Sample"
    ) -> None:
        self.container.write(
            f"/etc/fedora-messaging/{self.name}.toml",
            f'amqp_url = "{url}"\n'
            f'callback = "{callback}"\n'
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
