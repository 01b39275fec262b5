# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a consumer under faults, and account for every message that was published."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pika

from consumer_framework.adapters.store import Store
from consumer_framework.core.errors import StoreError

from .catalogue import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .catalogue import Task

RESTART_DELAY = 1.0
"""Seconds before the stand-in for a service manager starts a process again."""
PROBES = 20
PROBE_SECONDS = 5.0
HEADERS = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}


@dataclass(frozen=True)
class Sent:
    """A message to publish.

    Attributes:
        id: Its id.
        body: The instruction for the handler, or the very bytes.
        properties: AMQP properties that differ from those of a valid message.
        poison: True if it can never be handled.
    """

    id: str
    body: dict[str, Any] | bytes
    properties: dict[str, Any]
    poison: bool


@dataclass(frozen=True)
class Ledger:
    """The fate of the messages.

    Attributes:
        published: Messages that were published.
        handled: Messages whose handler succeeded.
        again: Successes beyond the first, over all messages.
        quarantined: Messages kept for an operator.
        deferred: Messages that the store keeps to run again.
        dropped: Messages that were rejected for good.
        queued: Messages still in the queue.
        lost: Messages that are nowhere.
        poison_runs: Handler runs per second of messages that can never succeed.
        starts: Starts of the process.
        consumers: Consumers of the queue in the end; a process should be one.
        consuming: True if messages that came at the end were handled.
    """

    published: int
    handled: int
    again: int
    quarantined: int
    deferred: int
    dropped: int
    queued: int
    lost: int
    poison_runs: float
    starts: int
    consumers: int
    consuming: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


class Queue:
    """The queue of a run. Rejected messages go to another queue, to be counted.

    Args:
        url: The broker's URL.
        name: Its name.
    """

    def __init__(self, url: str, name: str) -> None:
        self.name, self._dead = name, f"{name}.rejected"
        self._url = url
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": self._dead}
        with self._connection() as connection:
            channel = connection.channel()
            for queue, given in ((name, arguments), (self._dead, {})):
                channel.queue_delete(queue)
                channel.queue_declare(queue, durable=True, arguments=given)
            channel.queue_bind(name, "amq.topic", name)

    def _connection(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self._url))

    def publish(self, messages: Iterable[Sent]) -> None:
        """Publish *messages*, confirmed."""
        with self._connection() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for sent in messages:
                body = sent.body if isinstance(sent.body, bytes) else json.dumps(sent.body).encode()
                given = {
                    "message_id": sent.id,
                    "content_type": "application/json",
                    "content_encoding": "utf-8",
                    "delivery_mode": 2,
                    "headers": HEADERS,
                    **sent.properties,
                }
                properties = pika.BasicProperties(**given)
                channel.basic_publish("amq.topic", self.name, body, properties, mandatory=True)

    def consumers(self) -> int:
        """Return the number of consumers of the queue."""
        with self._connection() as connection:
            found = connection.channel().queue_declare(self.name, passive=True)
            return int(found.method.consumer_count)

    def take(self) -> tuple[set[str], set[str]]:
        """Return the ids of the queued and of the rejected messages, and empty both queues."""
        with self._connection() as connection:
            channel = connection.channel()
            return self._taken(channel, self.name), self._taken(channel, self._dead)

    @staticmethod
    def _taken(channel: Any, queue: str) -> set[str]:
        found = set()
        while (properties := channel.basic_get(queue, auto_ack=True)[1]) is not None:
            found.add(properties.message_id)
        return found


class Service:
    """A consumer that is started again whenever it ends, as a service manager does.

    Args:
        command: Its command line.
        task: The task, with the directory of its files.
    """

    def __init__(self, command: list[str], task: Task) -> None:
        self._command = command
        self._directory = task.directory
        self._notes = task.directory / "notes"
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_at = 0.0
        self.starts = 0

    def keep_up(self) -> None:
        """Start the process if it ended a while ago."""
        if self._process is not None and self._process.poll() is None:
            self._ended_at = time.monotonic()
        elif self._process is None or time.monotonic() - self._ended_at > RESTART_DELAY:
            self._start()

    def _start(self) -> None:
        self.starts += 1
        self._ended_at = time.monotonic()
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "PYTHONPATH": str(ROOT),
            "STATE_DIRECTORY": str(self._directory / "state"),
            "RUNTIME_DIRECTORY": str(self._directory),
            "BENCH_NOTES": str(self._notes),
        }
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, cwd=ROOT, stdout=log, stderr=log
            )

    def run_for(self, seconds: float) -> None:
        """Keep the process up for so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.keep_up()
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, seconds: float = 10.0) -> None:
        """Ask the process to end, and kill it if it does not."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            self.kill()

    def noted(self, event: str) -> Counter[str]:
        """Count the handler's notes by message id."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return Counter(line.split()[1] for line in lines if line.startswith(f"{event} "))

    def store(self, state: str) -> set[str]:
        """Return the message ids of the rows in a state; none without a store."""
        try:
            reader = Store.read(self._directory / "state")
        except StoreError:
            return set()
        try:
            return {row.message_id for row in reader.rows(state=None) if row.state == state}
        finally:
            reader.close()


def probes() -> list[Sent]:
    """Return messages that test if the process still consumes."""
    return [
        Sent(f"probe-{number}", {"do": "nothing"}, {}, poison=False) for number in range(PROBES)
    ]


def answers(service: Service, queue: Queue) -> bool:
    """Publish a few messages; return True if they were handled soon."""
    queue.publish(probes())
    deadline = time.monotonic() + PROBE_SECONDS
    while time.monotonic() < deadline:
        service.run_for(0.1)
        if sum(name.startswith("probe-") for name in service.noted("done")) == PROBES:
            return True
    return False


@dataclass(frozen=True)
class Alive:
    """The observations before the service was stopped; see `Ledger`."""

    poison_runs: float
    consuming: bool
    consumers: int


def look(service: Service, queue: Queue, published: list[Sent], seconds: float) -> Alive:
    """Observe a service that had *published* for so many *seconds*."""
    runs = service.noted("run")
    poison = sum(runs[sent.id] for sent in published if sent.poison)
    consuming = answers(service, queue)
    return Alive(poison / seconds, consuming, queue.consumers())


def account(service: Service, queue: Queue, published: list[Sent], alive: Alive) -> Ledger:
    """Find every message of *published*, once the service is stopped."""
    ids = {sent.id for sent in published}
    done = Counter({name: n for name, n in service.noted("done").items() if name in ids})
    queued, dropped = (found & ids for found in queue.take())
    kept = {state: service.store(state) & ids for state in ("quarantined", "deferred")}
    found = set(done) | queued | dropped | kept["quarantined"] | kept["deferred"]
    return Ledger(
        published=len(ids),
        handled=len(done),
        again=done.total() - len(done),
        quarantined=len(kept["quarantined"]),
        deferred=len(kept["deferred"]),
        dropped=len(dropped),
        queued=len(queued),
        lost=len(ids - found),
        starts=service.starts,
        **asdict(alive),
    )
