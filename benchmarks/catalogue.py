# SPDX-License-Identifier: GPL-2.0-or-later
"""The peers of the comparison, and the command that starts each."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .messages import Sample

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PREFETCH = 100
"""The prefetch of every peer that lets one choose."""


@dataclass(frozen=True)
class Task:
    """The task of one run.

    Attributes:
        url: The broker's URL.
        queue: The name of the queue, which exists.
        count: Messages to handle.
        directory: An empty directory for the run's files.
        skip: Messages to handle before the clock starts.
        latency: True if the handler reads the messages' time stamps.
        environment: More environment variables.
    """

    url: str
    queue: str
    count: int
    directory: Path
    skip: int = 0
    latency: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """One way to consume.

    Attributes:
        name: Its name on the command line.
        label: Its name in tables.
        command: Returns the command line of a task, and writes the files that the command needs.
        envelope: Makes a message's body.
        arguments: Returns the arguments of its queue.
        ready: Its log line when it consumes; "notify" if it tells a service manager.
    """

    name: str
    label: str
    command: Callable[[Task], list[str]]
    envelope: Callable[[Sample, str, int], bytes] = messages.json_body
    arguments: Callable[[str], dict[str, Any]] = lambda _: {}
    ready: str = ""


def script(module: str) -> Callable[[Task], list[str]]:
    """Return a peer that is a program of this package."""

    def command(task: Task) -> list[str]:
        python = [sys.executable, "-m", f"benchmarks.peers.{module}"]
        return [*python, task.url, task.queue, str(PREFETCH)]

    return command


def dramatiq(_: Task) -> list[str]:
    """Start dramatiq's worker, with one process and one thread as everybody else has."""
    options = ["--processes", "1", "--threads", "1", "--worker-shutdown-timeout", "2000"]
    return [str(BIN / "dramatiq"), "benchmarks.peers.dramatiq_actor", *options]


def dramatiq_envelope(sample: Sample, message_id: str, stamp: int) -> bytes:
    """Put a body into the envelope that dramatiq sends and takes."""
    envelope = {
        "queue_name": "bench.dramatiq",
        "actor_name": "handle",
        "args": [sample.body],
        "kwargs": {"stamp": stamp},
        "options": {},
        "message_id": message_id,
        "message_timestamp": int(time.time() * 1000),
    }
    return json.dumps(envelope, separators=(",", ":")).encode()


def dramatiq_arguments(queue: str) -> dict[str, Any]:
    """Return the arguments with which dramatiq declares its queues."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{queue}.XQ"}


def configuration(
    task: Task, callback: str, prefetch: int | None = None, framework: str = "", key: str = "#"
) -> Path:
    """Write the file that `fedora-messaging` and `fm-consumer` read alike.

    Args:
        task: The task, with the broker and the queue.
        callback: The handler.
        prefetch: The prefetch; None for the program's default.
        framework: Lines of ``[consumer_config.framework]``.
        key: The routing key of the binding.
    """
    qos = f"[qos]\nprefetch_size = 0\nprefetch_count = {prefetch}\n" if prefetch else ""
    table = f"[consumer_config.framework]\n{framework}\n" if framework else ""
    queue = json.dumps(task.queue)
    path = task.directory / "bench.toml"
    path.write_text(
        f"amqp_url = {json.dumps(task.url)}\ncallback = {json.dumps(callback)}\n"
        f"passive_declares = true\n{qos}{table}"
        f"[queues.{queue}]\ndurable = true\nauto_delete = false\nexclusive = false\n"
        "arguments = {}\n"
        f'[[bindings]]\nqueue = {queue}\nexchange = "amq.topic"\n'
        f"routing_keys = [{json.dumps(key)}]\n"
    )
    return path


def upstream(callback: str) -> Callable[[Task], list[str]]:
    """Return `fedora-messaging consume` with a callback of `peers.upstream`."""

    def command(task: Task) -> list[str]:
        name = f"benchmarks.peers.upstream:{callback}"
        conf = configuration(task, name, PREFETCH)
        return [str(BIN / "fedora-messaging"), "--conf", str(conf), "consume"]

    return command


def framework(
    callback: str, prefetch: int | None = None, lines: str = ""
) -> Callable[[Task], list[str]]:
    """Return `fm-consumer run`, with everything that is on by default."""

    def command(task: Task) -> list[str]:
        conf = configuration(task, f"benchmarks.peers.{callback}", prefetch, lines)
        return [str(BIN / "fm-consumer"), "run", "--conf", str(conf)]

    return command


CONSUMING = "Successfully registered AMQP consumer"
"""The log line of `fedora-messaging consume` when the broker sends it messages."""

FRAMEWORK = "fm-consumer"
"""The beginning of the framework's labels."""
OURS = "class"
UPSTREAM = "fedora-messaging"
LIMIT = "raw"

PEERS = [
    Peer(OURS, "fm-consumer, class", framework("framework:Handler"), ready="notify"),
    Peer(
        "class-prefetch",
        f"fm-consumer, class, prefetch {PREFETCH}",
        framework("framework:Handler", PREFETCH),
        ready="notify",
    ),
    Peer("function", "fm-consumer, function", framework("upstream:function"), ready="notify"),
    Peer("coroutine", "fm-consumer, coroutine", framework("upstream:coroutine"), ready="notify"),
    Peer(UPSTREAM, "fedora-messaging consume, class", upstream("Callback"), ready=CONSUMING),
    Peer(
        "fedora-messaging-function",
        "fedora-messaging consume, function",
        upstream("function"),
        ready=CONSUMING,
    ),
    Peer(
        "fedora-messaging-coroutine",
        "fedora-messaging consume, coroutine",
        upstream("coroutine"),
        ready=CONSUMING,
    ),
    Peer("pika", "pika BlockingConnection", script("pika_blocking")),
    Peer("kombu", "kombu ConsumerMixin", script("kombu_mixin")),
    Peer("aio-pika", "aio-pika iterator", script("aio_pika_iterator")),
    Peer("faststream", "FastStream", script("faststream_app")),
    Peer(
        "dramatiq",
        "dramatiq, 1 thread",
        dramatiq,
        envelope=dramatiq_envelope,
        arguments=dramatiq_arguments,
    ),
    Peer(LIMIT, "broker's own limit (automatic ack)", script("raw_reader")),
    Peer(f"{LIMIT}-acks", "broker's limit with acknowledgements", script("raw_acks")),
]


def named(names: tuple[str, ...]) -> list[Peer]:
    """Return the peers with these *names*, in the order of the tables; without names, all."""
    return [peer for peer in PEERS if not names or peer.name in names]
