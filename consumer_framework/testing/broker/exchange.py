# SPDX-License-Identifier: GPL-2.0-or-later
"""A test's own exchange on a real broker, and the consumers that run against it.

Tests share a broker, because it takes seconds to start. :class:`OwnExchange` keeps them apart: its
messages, queues and consumers are those of one test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pika
from fedora_messaging.message import get_message

from consumer_framework.runtime.control.client import ControlError, connected_to
from consumer_framework.runtime.control.schema import Status, StatusReport
from consumer_framework.runtime.state_files import CONTROL
from consumer_framework.settings.toml_writer import to_toml

from .place import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from fedora_messaging.message import Message

    from . import Broker

# Seconds.
_POLL = 0.05
_TIMEOUT = 60.0
# Lines of the log that a failure shows.
_TAIL = 30
_PROGRAM = "from consumer_framework.cli import main; main()"
_QUEUE = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}}


class OwnExchange:
    """A topic exchange for one test, on a broker that tests share.

    Entering the context declares it; leaving it deletes it, and its queues. Use it from one
    thread::

        with Broker() as broker, OwnExchange(broker) as rabbitmq:
            seen = rabbitmq.subscribe("org.example.seen")
            with rabbitmq.run("sample:Sample", topics=["org.example.#"]) as running:
                rabbitmq.publish(message)
                running.wait_settled()
            assert seen.get().body == {"package": "kernel"}

    Args:
        broker: A running broker.

    Attributes:
        broker: The same broker, which a test may stop and start.
        name: The name of the exchange.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.name = f"test.{uuid.uuid4().hex}"
        self._queues: list[str] = []
        self._connection: pika.BlockingConnection | None = None

    def __enter__(self) -> Self:
        self._channel().exchange_declare(self.name, "topic", durable=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.broker.pid is None:
            return
        channel = self._channel()
        for queue in self._queues:
            channel.queue_delete(queue)
        channel.exchange_delete(self.name)
        channel.connection.close()

    @property
    def url(self) -> str:
        """The URL of the broker, for an ``amqp_url``."""
        return self.broker.url

    def publish(self, message: Message) -> None:
        """Publish *message*, and wait until the broker has it.

        Raises:
            BrokerError: No queue takes its topic.
        """
        body, properties = message._encoded_body, message._properties  # noqa: SLF001 -- as upstream
        channel = self._channel()
        channel.confirm_delivery()
        try:
            channel.basic_publish(self.name, message.topic, body, properties, mandatory=True)
        except pika.exceptions.UnroutableError:
            cure = "run a consumer with that topic, or subscribe to it, before you publish"
            raise BrokerError(f"no queue takes the topic {message.topic!r}: {cure}") from None

    def subscribe(self, *topics: str) -> Subscription:
        """Collect the messages with these topics that are published from now on.

        Args:
            topics: Binding keys, such as ``org.example.#``; none for all messages.
        """
        return Subscription(self._channel, self._bound(topics or ("#",)))

    @contextmanager
    def run(
        self,
        consumer: Any,
        *,
        topics: tuple[str, ...] | list[str] = ("#",),
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = _TIMEOUT,
    ) -> Iterator[RunningConsumer]:
        """Run *consumer* by ``fm-consumer run``, in a process of its own, while the block runs.

        It consumes from a queue of its own, and publishes to this exchange.

        Args:
            consumer: A consumer that another process can import: an object of a module, or its
                ``"module:object"``.
            topics: The binding keys of its queue.
            config: ``[consumer_config]``.
            settings: ``[consumer_config.framework]``.
            timeout: Seconds that it may take to consume, and to stop.

        Raises:
            BrokerError: It does not start in time, or it ends with an error that the block did not
                ask for with :meth:`RunningConsumer.wait_end`. The text has the end of its log.
        """
        queue = self._bound(tuple(topics))
        document = {
            "amqp_url": self.url,
            "callback": _name_of(consumer),
            "publish_exchange": self.name,
            "queues": {queue: _QUEUE},
            "bindings": [
                {"queue": queue, "exchange": self.name, "routing_keys": list(topics)},
            ],
            "consumer_config": {**(config or {}), "framework": dict(settings or {})},
        }
        with ExitStack() as stack:
            running = RunningConsumer(document, timeout)
            stack.callback(running.close)
            running.wait_until_consuming()
            yield running
            running.end_well()

    def _bound(self, topics: tuple[str, ...]) -> str:
        channel = self._channel()
        queue = f"{self.name}.{len(self._queues) + 1}"
        channel.queue_declare(queue, durable=True)
        self._queues.append(queue)
        for topic in topics:
            channel.queue_bind(queue, self.name, topic)
        return queue

    def _channel(self) -> Any:
        """Return a new channel; the broker may have been restarted since the last one."""
        if self._connection is None or not _is_alive(self._connection):
            parameters = pika.URLParameters(self.url)
            # The test does not look at the connection while nothing happens.
            parameters.heartbeat = 0
            self._connection = pika.BlockingConnection(parameters)
        return self._connection.channel()


def _is_alive(connection: pika.BlockingConnection) -> bool:
    try:
        connection.process_data_events(0)
    except pika.exceptions.AMQPError:
        return False
    return bool(connection.is_open)


def _name_of(consumer: Any) -> str:
    if isinstance(consumer, str):
        return consumer
    return f"{consumer.__module__}:{consumer.__qualname__}"


class Subscription:
    """The messages of some topics, in the order of their arrival.

    Args:
        channel: Returns a channel.
        queue: The queue that collects them.
    """

    def __init__(self, channel: Callable[[], Any], queue: str) -> None:
        self._channel = channel
        self._queue = queue

    def get(self, timeout: float = 10.0) -> Message:
        """Return the next message, and wait for it *timeout* seconds at most.

        Raises:
            BrokerError: None came in time.
        """
        channel = self._channel()
        end = time.monotonic() + timeout
        while True:
            method, properties, body = channel.basic_get(self._queue, auto_ack=True)
            if method is not None:
                return get_message(method.routing_key, properties, body)
            if time.monotonic() > end:
                raise BrokerError(f"no message came in {timeout:g} seconds")
            time.sleep(_POLL)

    def empty(self) -> bool:
        """Tell whether no message waits."""
        counted = self._channel().queue_declare(self._queue, passive=True)
        return bool(counted.method.message_count == 0)


class RunningConsumer:
    """A consumer in a process of its own, made by :meth:`OwnExchange.run`.

    Args:
        document: Its configuration.
        timeout: Seconds that each wait may take, if the caller does not say.
    """

    def __init__(self, document: Mapping[str, Any], timeout: float) -> None:
        self._timeout = timeout
        # The name of a socket is short, so that the directory of a test may be too long for it.
        self._directory = Path(tempfile.mkdtemp(prefix="fm-"))
        self._file = self._directory / "consumer.toml"
        self._log = self._directory / "log"
        self._is_awaited = False
        self._file.write_text(to_toml(document), encoding="utf-8")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- this Python
                [sys.executable, "-c", _PROGRAM, "run", "--conf", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "FEDORA_MESSAGING_CONF": str(self._file),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "RUNTIME_DIRECTORY": str(self._directory),
                    "STATE_DIRECTORY": str(self._directory / "state"),
                },
            )

    @property
    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def status(self) -> StatusReport | None:
        """Return its own report, as of ``fm-consumer status``; None while it cannot be asked."""
        with suppress(ControlError), connected_to([self._directory / CONTROL]) as client:
            if client is not None:
                [report] = client.ask(Status())
                return report
        return None

    def wait_until_consuming(self, timeout: float | None = None) -> None:
        """Wait until it consumes.

        Raises:
            BrokerError: It has ended, or *timeout* seconds are over.
        """
        self._wait("it does not consume", lambda s: s.state == "consuming", timeout)

    def wait_settled(self, count: int = 1, timeout: float | None = None) -> StatusReport:
        """Wait until *count* messages are done: acknowledged, quarantined or rejected.

        Returns:
            Its report, with the ``counts`` of the messages by their fate.

        Raises:
            BrokerError: It has ended, or *timeout* seconds are over.
        """
        what = f"fewer than {count} messages are done"
        return self._wait(what, lambda status: _done(status) >= count, timeout)

    def wait_end(self, timeout: float | None = None) -> int:
        """Wait for its end, which the test expects, and return the exit code.

        Raises:
            BrokerError: *timeout* seconds are over.
        """
        self._is_awaited = True
        return self._waited(timeout)

    def kill(self) -> None:
        """Kill it, as by SIGKILL."""
        self._process.kill()
        self.wait_end()

    def end_well(self) -> None:
        """Stop it, as a service manager does.

        Raises:
            BrokerError: Its exit code is not 0, unless the test has waited for that.
        """
        if self._is_awaited:
            return
        self._process.terminate()
        code = self._waited(None)
        if code:
            raise BrokerError(self._trouble(f"the consumer ended with exit code {code}"))

    def close(self) -> None:
        """Kill it if it still runs, and remove its files."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _waited(self, timeout: float | None) -> int:
        try:
            return self._process.wait(self._timeout if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            raise BrokerError(self._trouble("the consumer does not end")) from None

    def _wait(
        self, trouble: str, condition: Callable[[StatusReport], bool], timeout: float | None
    ) -> StatusReport:
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        while True:
            code = self._process.poll()
            if code is not None:
                self._is_awaited = True
                raise BrokerError(self._trouble(f"the consumer ended with exit code {code}"))
            status = self.status()
            if status is not None and condition(status):
                return status
            if time.monotonic() > end:
                raise BrokerError(self._trouble(trouble))
            time.sleep(_POLL)

    def _trouble(self, what: str) -> str:
        return "\n".join([f"{what}; the end of its log:", *self.log.splitlines()[-_TAIL:]])


def _done(status: StatusReport) -> int:
    return status.counts.acked + status.counts.quarantined + status.counts.rejected
