# SPDX-License-Identifier: GPL-2.0-or-later
"""The consumer of the publishing ledger: its handler publishes a message for each that it handles.

The truth about its messages are the messages that it got: each that was published to its queue, and
whose handler does not fail, has one that must arrive. Every tenth handler fails after it published.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions

from consumer_framework.publishing.store import OutboxStore

from .instance import Instance, publish, queue_table, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consumer_framework.testing.broker import Broker

KEYS = 3
# Messages that wait in the queue, so that the handler always has work.
BACKLOG = 30

CONFIGURATION = """
[consumer_config.framework.recovery]
immediate = 0
delays = []
crash_attempts = 1000
[consumer_config.framework.outbox]
endpoints = {endpoints}
lease = "{lease}s"
"""
HANDLER = """
from fedora_messaging.message import Message
from consumer_framework.publishing import publish

def handler(message):
    key = message.body["key"]
    derived = Message(topic="{topic}.consumer", body=message.body)
    derived.id = "out-" + message.id
    publish(derived, key)
    if message.body["n"] % 10 == 3:
        raise ValueError("poison")
"""


class Consumer:
    """An instance that is killed, and started again, with the interface of a program.

    Attributes:
        sure: The numbers of messages that were published to it and confirmed.
        unsure: Those that were not confirmed.
    """

    role = name = "consumer"

    def __init__(self, broker: Broker, topic: str, endpoints: Sequence[str], place: Path) -> None:
        self._broker, self._queue = broker, f"{topic}-source"
        self.instance = Instance(
            place,
            broker.url,
            queue_table(self._queue),
            HANDLER.replace("{topic}", topic),
            extra=CONFIGURATION.format(endpoints=list(endpoints), lease=1).replace("'", '"'),
        )
        self.kills: Counter[str] = Counter()
        self.pids: set[int] = set()
        self.sure: set[int] = set()
        self.unsure: set[int] = set()
        self.instance.start().ready()
        self._over = threading.Event()
        self._source = threading.Thread(target=self._fill)
        self._source.start()

    @property
    def process(self) -> Any:
        return self.instance._process

    def _fill(self) -> None:
        n = 0
        while not self._over.wait(0.1):
            # pika raises ValueError if the broker goes away amid the connection.
            with suppress(pika.exceptions.AMQPError, OSError, ValueError):
                for _ in range(BACKLOG - self._broker.depth(self._queue)[0]):
                    n += 1
                    self.unsure.add(n)
                    body = {"key": f"consumer-{n % KEYS}", "n": n}
                    raw = json.dumps(body).encode()
                    publish(self._broker.url, self._queue, [raw], message_id=str(n))
                    self.unsure.discard(n)
                    self.sure.add(n)

    def kill(self, work: float, _point: object = None) -> None:
        """Kill it after *work* seconds of work, and start it again.

        Raises:
            AssertionError: It ended by itself.
        """
        until(
            lambda: self.instance.told("READY=1") or self.process.poll() is not None,
            "the consumer is ready",
        )
        time.sleep(work)
        assert self.process.poll() is None, self.instance.log[-3000:]
        self.instance.send(signal.SIGKILL)
        self.instance.wait()
        self.kills["at a random moment"] += 1
        self.pids.add(self.instance.process_id)
        self.instance.start()

    def finish(self, seconds: float = 180) -> None:
        """Wait until it has handled everything and its relay has sent everything; stop it."""
        self._over.set()
        self._source.join()
        self.instance.ready()
        until(lambda: self._broker.depth(self._queue)[0] == 0, "it has all messages", seconds)
        self._stop()
        # The messages that it had not begun with are on the queue again.
        while self._broker.depth(self._queue)[0]:
            self.instance.start().ready()
            time.sleep(1)
            self._stop()
        self.instance.start().ready()
        until(self._has_sent, "its relay has sent all", seconds)
        self._stop()

    def _stop(self) -> None:
        assert self.instance.stop() == 0, self.instance.log[-3000:]

    def _has_sent(self) -> bool:
        store = OutboxStore.connect(f"sqlite:///{self.instance.state}/outbox.sqlite3")
        try:
            return not store.rows(limit=1)
        finally:
            store.close()

    def end(self) -> None:
        self._over.set()
        self._source.join()
        self.instance.end()

    @property
    def must(self) -> set[str]:
        return {f"out-{n}" for n in self.sure if n % 10 != 3}

    @property
    def may(self) -> set[str]:
        return {f"out-{n}" for n in self.unsure if n % 10 != 3}
