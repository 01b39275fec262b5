# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways to publish that are compared, each a function; run as a program, one of them.

``python -m benchmarks.publishers NAME URL COUNT`` publishes COUNT messages to the broker at URL, or
into a new outbox, and prints its figures as JSON. Everything that a long-running publisher does
once (connect, create tables, create messages) comes before the clock starts. Each publisher works
in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
from fedora_messaging import api, config
from fedora_messaging.message import get_class

from .messages import EXCHANGE, samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fedora_messaging.message import Message

    from consumer_framework.publishing.message import Outgoing
    from consumer_framework.publishing.outbox import Outbox

SCHEMA = "fedora_messaging_schema"
# Rows that one transaction of the store claims or settles, and messages of a large transaction.
CLAIM, TRANSACTION = 200, 100


@dataclass
class Clock:
    """Measures the block that publishes.

    Attributes:
        seconds: Its length.
        cpu: The CPU time of the process in it, in seconds.
    """

    seconds: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the block."""
        began, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - began
        self.cpu += time.process_time() - cpu


@dataclass(frozen=True)
class Task:
    """The task of one run.

    Attributes:
        url: The broker.
        count: The number of messages.
        clock: Measures them.
        directory: An empty directory.
    """

    url: str
    count: int
    clock: Clock = field(default_factory=Clock)
    directory: Path = Path()

    def messages(self) -> list[Message]:
        """Return the messages: of real applications, with ids of their own, 1,024 bytes each."""
        return [
            get_class(sample.headers[SCHEMA])(topic=sample.topic, body=sample.body)
            for sample in islice(cycle(samples()), self.count)
        ]

    def encoded(self) -> list[tuple[str, bytes, pika.BasicProperties]]:
        """Return topic, body and properties of each message."""
        return [
            (message.topic, json.dumps(message.body).encode(), message._properties)  # noqa: SLF001
            for message in self.messages()
        ]


# Upstream, and the libraries by themselves


def _api(task: Task, threads: int) -> None:
    config.conf.load_config()  # it would replace the URL with the first access
    config.conf["amqp_url"] = task.url
    messages = task.messages()
    api.publish(messages.pop())
    with ThreadPoolExecutor(threads) as pool, task.clock.running():
        for _ in pool.map(api.publish, messages):
            pass


def _blocking(task: Task) -> None:
    with pika.BlockingConnection(pika.URLParameters(task.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        encoded = task.encoded()
        with task.clock.running():
            for topic, body, properties in encoded:
                channel.basic_publish(EXCHANGE, topic, body, properties, mandatory=True)


class _Pipeline:
    """Publishes with pika's asynchronous connection.

    Args:
        task: The task.
        window: The number of messages that are not confirmed yet, at most.
    """

    def __init__(self, task: Task, window: int) -> None:
        self._task, self._window = task, window
        self._messages = task.encoded()
        self._sent = 0
        self._unconfirmed: dict[int, None] = {}
        self._measured: Any = None
        parameters = pika.URLParameters(task.url)
        self._connection = pika.SelectConnection(parameters, on_open_callback=self._opened)
        self._connection.ioloop.start()

    def _opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirmed, lambda _: self._start())

    def _start(self) -> None:
        self._measured = self._task.clock.running()
        self._measured.__enter__()
        self._fill()

    def _fill(self) -> None:
        room = self._window - len(self._unconfirmed)
        for topic, body, properties in self._messages[self._sent : self._sent + room]:
            self._channel.basic_publish(EXCHANGE, topic, body, properties, mandatory=True)
            self._sent += 1
            self._unconfirmed[self._sent] = None

    def _on_confirmed(self, frame: Any) -> None:
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        tags = takewhile(lambda one: one <= tag, list(self._unconfirmed)) if multiple else [tag]
        for one in tags:
            del self._unconfirmed[one]
        self._fill()
        if not self._unconfirmed:
            self._measured.__exit__(None, None, None)
            self._connection.add_on_close_callback(lambda *_: self._connection.ioloop.stop())
            self._connection.close()


def _kombu(task: Task) -> None:
    import kombu  # noqa: PLC0415 -- not everybody has it

    options = {"confirm_publish": True}
    with kombu.Connection(task.url, transport_options=options) as connection:
        producer = connection.Producer()
        messages = [(one.topic, one.body, dict(one._headers), one.id) for one in task.messages()]  # noqa: SLF001
        with task.clock.running():
            for topic, body, headers, identity in messages:
                producer.publish(
                    body,
                    routing_key=topic,
                    exchange=EXCHANGE,
                    serializer="json",
                    headers=headers,
                    message_id=identity,
                    mandatory=True,
                    delivery_mode=2,
                )


def _aio_pika(task: Task) -> None:
    asyncio.run(_aio(task, 200))


async def _aio(task: Task, at_once: int) -> None:
    import aio_pika  # noqa: PLC0415 -- not everybody has it

    async with await aio_pika.connect(task.url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        messages = iter(
            [
                (topic, aio_pika.Message(body, headers=dict(of.headers), delivery_mode=2))
                for topic, body, of in task.encoded()
            ]
        )

        async def work() -> None:
            for topic, message in messages:
                await exchange.publish(message, topic, mandatory=True)

        with task.clock.running():
            await asyncio.gather(*(work() for _ in range(at_once)))


# consumer_framework


@contextmanager
def _outbox(task: Task) -> Iterator[Outbox]:
    from consumer_framework.publishing.outbox import Outbox  # noqa: PLC0415

    made = Outbox(f"sqlite:///{task.directory}/outbox.sqlite3")
    with closing(made):
        made.store.migrate()
        yield made


def _prepared(messages: Sequence[Message]) -> list[tuple[Outgoing, str]]:
    from consumer_framework.publishing.message import outgoing  # noqa: PLC0415

    now = time.time()
    return [(outgoing(message, exchange=EXCHANGE, now=now), "spool") for message in messages]


def _warm(messages: Sequence[Message]) -> None:
    """Compile the schemas of the messages, as a program does once."""
    _prepared(messages[: len(samples())])


def _amqp(task: Task) -> Any:
    from consumer_framework.publishing.messengers import Endpoints  # noqa: PLC0415
    from consumer_framework.publishing.messengers.amqp import Amqp  # noqa: PLC0415

    return Amqp(Endpoints((task.url,)))


def _relay(task: Task) -> None:
    """Send a full outbox, as ``fm-consumer outbox relay`` does."""
    from consumer_framework.adapters.clock import SystemClock  # noqa: PLC0415
    from consumer_framework.publishing.events import RelayCounters  # noqa: PLC0415
    from consumer_framework.publishing.policy import Policy  # noqa: PLC0415
    from consumer_framework.publishing.relay import Relay  # noqa: PLC0415

    with _outbox(task) as outbox:
        outbox.store.put(_prepared(task.messages()))
        counters, stop = RelayCounters(), threading.Event()
        relay = Relay(
            outbox.store, _amqp(task), Policy(), clock=SystemClock(), observer=counters, window=100
        )
        thread = threading.Thread(target=relay.run, args=[stop])
        with task.clock.running():
            thread.start()
            while counters.sent < task.count:
                time.sleep(0.002)
        stop.set()
        thread.join()


def _direct(task: Task) -> None:
    from consumer_framework.publishing.direct import Sender  # noqa: PLC0415
    from consumer_framework.settings import OutboxSettings  # noqa: PLC0415

    messages = task.messages()
    _warm(messages)
    with Sender(_amqp(task), OutboxSettings(window=100), exchange=EXCHANGE) as send:
        send(messages.pop())
        with task.clock.running():
            send.many(messages)


def _publish(task: Task) -> None:
    """Publish into SQLite, one commit each."""
    with _outbox(task) as outbox:
        messages = task.messages()
        _warm(messages)
        outbox.publish(messages.pop())
        with task.clock.running():
            for message in messages:
                outbox.publish(message)


def _transaction(task: Task) -> None:
    with _outbox(task) as outbox:
        messages = task.messages()
        _warm(messages)
        outbox.publish(messages.pop())
        with task.clock.running():
            for start in range(0, len(messages), TRANSACTION):
                with outbox.transaction():
                    for message in messages[start : start + TRANSACTION]:
                        outbox.publish(message)


def _in_handler(task: Task) -> None:
    """Collect what a handler publishes, one run of it for each message; nothing is stored."""
    with _outbox(task) as outbox:
        messages = task.messages()
        _warm(messages)
        with task.clock.running():
            for message in messages:
                with outbox.collect():
                    outbox.publish(message)


def _claim(task: Task) -> None:
    """Claim and settle as a relay does, without a broker."""
    with _outbox(task) as outbox:
        store = outbox.store
        store.put(_prepared(task.messages()))
        with task.clock.running():
            for number in range(task.count):
                token = f"bench.{number}"
                rows = [one.row for one in store.claim(token, CLAIM, 30.0, time.time())]
                if not rows:
                    break
                store.settle(token, sent=rows, counts={"sent": len(rows)})


PUBLISHERS: dict[str, Callable[[Task], object]] = {
    "api": lambda task: _api(task, 1),
    "api-8": lambda task: _api(task, 8),
    "pika": _blocking,
    "kombu": _kombu,
    "aio-pika": _aio_pika,
    "pika-100": lambda task: _Pipeline(task, 100),
    "pika-1000": lambda task: _Pipeline(task, 1000),
    "relay": _relay,
    "direct": _direct,
    "sqlite": _publish,
    "sqlite-100": _transaction,
    "handler": _in_handler,
    "claim": _claim,
}


def main() -> None:
    """Run one publisher, and print its figures."""
    name, url, count = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        task = Task(url, int(count), directory=Path(directory))
        PUBLISHERS[name](task)
    print(json.dumps(asdict(task.clock)), flush=True)
    # fedora-messaging's reactor runs in a thread that does not end.
    os._exit(0)


if __name__ == "__main__":
    main()
