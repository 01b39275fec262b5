# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a consumer from PyPI under both commands, on a queue of its own, and see its messages."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pika
import pytest

from .installed_consumers import REPOSITORY, install, python_path
from .instance import HEADERS, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMMANDS = {
    "fedora-messaging": ["from fedora_messaging.cli import cli; cli()", "consume"],
    "fm-consumer": ["from consumer_framework.cli import main; main()", "run"],
}
PSYCOPG2 = "postgresql+psycopg2"
RECORDED = os.environ.get("RECORDED_MESSAGES", "*/data/fedora-messages.jsonl")

both_commands = pytest.mark.parametrize("command", COMMANDS)


def message(topic: str, body: Any, **headers: Any) -> dict[str, Any]:
    """Return a message as `fedora_messaging.message.dumps` writes it."""
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{topic} {body}")),
        "topic": topic,
        "body": body,
        "headers": {**HEADERS, "sent-at": "2024-05-01T12:00:00+00:00", **headers},
    }


def recorded(*topics: str) -> list[dict[str, Any]]:
    """Return real messages of Fedora's services with one of *topics* in their topic."""
    found = sorted(REPOSITORY.parent.glob(RECORDED))
    if not found:
        pytest.skip(f"no recorded messages: RECORDED_MESSAGES={RECORDED} names no file")
    lines = [json.loads(line) for path in found for line in path.read_text().split("\n") if line]
    return [line for line in lines if any(topic in line["topic"] for topic in topics or [""])]


@dataclass
class World:
    """One run of a consumer, with its queues and the messages that it published.

    Attributes:
        ended: Its exit code, and the number of messages that it left on the queue.
        published: Topic and body of each message that it published.
    """

    url: str
    start: Callable[..., Any]
    name: str = field(default_factory=lambda: f"real.{uuid.uuid4()}")
    ended: tuple[int, int] = (-1, -1)
    published: list[tuple[str, Any]] = field(default_factory=list)
    instance: Any = None

    def __post_init__(self) -> None:
        self._queues: list[str] = []
        self._connection = pika.BlockingConnection(pika.URLParameters(self.url))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()
        self._channel.exchange_declare(self.name, "topic", durable=True)
        self._channel.queue_declare(self.name, durable=True)
        self._channel.queue_bind(self.name, self.name, "in.#")
        self._all = self.queue(self.name, "#")

    def close(self) -> None:
        self._channel.exchange_delete(self.name)
        for queue in (self.name, *self._queues):
            self._channel.queue_delete(queue)
        self._connection.close()

    def queue(self, exchange: str, key: str) -> str:
        """Bind a new queue, and return its name."""
        name: str = self._channel.queue_declare("").method.queue
        self._queues.append(name)
        self._channel.queue_bind(name, exchange, key)
        return name

    def depth(self, queue: str) -> int:
        count: int = self._channel.queue_declare(queue, passive=True).method.message_count
        return count

    def take(self, queue: str) -> list[tuple[Any, Any, Any]]:
        """Empty *queue*, and return its messages."""
        found: list[tuple[Any, Any, Any]] = []
        while (got := self._channel.basic_get(queue, True))[0] is not None:
            found.append(got)
        return found

    def begin(
        self, command: str, python: Path, callback: str, toml: str = "", **environment: str
    ) -> None:
        """Start the consumer under *command*."""
        queue = f'[queues."{self.name}"]\ndurable = true\nauto_delete = false\nexclusive = false\n'
        binding = f'queue = "{self.name}"\nexchange = "{self.name}"\nrouting_keys = ["in.#"]\n'
        self.instance = self.start(
            self.url,
            f"{queue}arguments = {{}}\n[[bindings]]\n{binding}",
            "",
            extra=f'publish_exchange = "{self.name}"\n{toml}',
            command=[str(python), "-c", *COMMANDS[command], "--callback", callback],
            environment={
                "PYTHONPATH": python_path(),
                "RUNTIME_DIRECTORY": "",
                **environment,
            },
        )

    def consume(
        self, messages: list[dict[str, Any]], is_done: Callable[[], bool], publishes: int = 0
    ) -> None:
        """Publish *messages*, wait until *is_done* and *publishes* messages came, and stop it.

        The last message must have an effect, because the consumer stops after it.
        """
        until(
            lambda: self._consumers() == 1,
            lambda: f"it consumes\n{self.instance.log}",
        )
        for one in messages:
            properties = pika.BasicProperties(
                message_id=one["id"],
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                headers=one["headers"],
            )
            body = json.dumps(one["body"]).encode()
            self._channel.basic_publish(self.name, f"in.{one['topic']}", body, properties)
        seen = len(messages) + publishes
        until(
            lambda: self.depth(self.name) == 0 and self.depth(self._all) == seen and is_done(),
            lambda: f"all is done\n{self.instance.log[-5000:]}",
        )
        self.ended = self.instance.stop(), self.depth(self.name)
        self.published = self._published({one["id"] for one in messages})

    def _consumers(self) -> int:
        count: int = self._channel.queue_declare(self.name, passive=True).method.consumer_count
        return count

    def _published(self, given: set[str]) -> list[tuple[str, Any]]:
        found = [
            (method.routing_key, json.loads(body))
            for method, properties, body in self.take(self._all)
            if properties.message_id not in given
        ]
        return sorted(found, key=repr)


@pytest.fixture
def world(broker, start) -> Iterator[World]:
    made = World(broker.url, start)
    yield made
    made.close()


def tagged(build: int, tag: str) -> dict[str, Any]:
    body = {"build_id": build, "name": "bash", "version": "5.2", "release": f"{build}.fc40"}
    body |= {"tag": tag, "tag_id": 1, "instance": "primary", "user": "bodhi", "owner": "bodhi"}
    return message("org.fedoraproject.prod.buildsys.tag", body)


def installed(name: str, *requirements: str, without_dependencies: tuple[str, ...] = ()) -> Path:
    """Return the Python that has the consumer, or skip the test."""
    python = install(name, requirements, without_dependencies)
    if isinstance(python, str):
        pytest.skip(f"{name} does not install: {python}")
    return python
