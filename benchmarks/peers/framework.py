# SPDX-License-Identifier: GPL-2.0-or-later
"""Handlers for `fm-consumer run`; its functions and coroutines are those of `upstream`."""

import os
import time
import zlib
from typing import Any

from fedora_messaging.message import Message

from benchmarks.peers.tally import TALLY
from consumer_framework import Consumer, publishing


class Handler(Consumer):
    """Counts, and does nothing else."""

    def handle(self, message: Any) -> None:
        """Handle a message."""
        TALLY.handled(message._headers)  # noqa: SLF001


class Publishing(Consumer):
    """Publishes a message for each one that it handles."""

    def handle(self, message: Any) -> None:
        """Handle a message."""
        body = {"answer to": message.id, "text": "x" * 950}
        answer = Message(topic="bench.answer", body=body)
        # To an exchange without the queue of the benchmark.
        publishing.publish(answer, exchange="amq.fanout")
        TALLY.handled(message._headers)  # noqa: SLF001


class Slow(Consumer):
    """Takes 10 ms, like a handler that waits for another service."""

    def handle(self, message: Any) -> None:
        """Handle a message."""
        time.sleep(0.01)
        TALLY.handled(message._headers)  # noqa: SLF001


class Failing(Consumer):
    """Fails always for some of each hundred messages; counts each message once."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.failing = int(os.environ["BENCH_FAILING"])
        self.seen: set[str] = set()

    def handle(self, message: Any) -> None:
        """Handle a message, or fail."""
        if message.id not in self.seen:
            self.seen.add(message.id)
            TALLY.handled(message._headers)  # noqa: SLF001
        if zlib.crc32(message.id.encode()) % 100 < self.failing:
            raise ValueError("the benchmark's")
