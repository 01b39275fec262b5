# SPDX-License-Identifier: GPL-2.0-or-later
"""kombu's ConsumerMixin, over py-amqp.

Usage: kombu_mixin URL QUEUE PREFETCH
"""

import sys
from typing import Any

from kombu import Connection, Queue
from kombu.mixins import ConsumerMixin

from benchmarks.peers.tally import TALLY


class Worker(ConsumerMixin):
    """Consumes from one queue that exists already."""

    def __init__(self, connection: Connection, queue: str, prefetch: int) -> None:
        self.connection = connection
        self._queue = Queue(queue, no_declare=True)
        self._prefetch = prefetch

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:  # noqa: ARG002
        """Return the one consumer."""
        return [
            consumer(
                queues=[self._queue],
                callbacks=[self.on_message],
                accept=["json"],
                prefetch_count=self._prefetch,
            )
        ]

    def on_message(self, _body: Any, message: Any) -> None:
        """Handle a message, whose body kombu has parsed, then acknowledge it."""
        TALLY.handled(message.headers)
        message.ack()


def main() -> None:
    """Consume until killed."""
    url, queue, prefetch = sys.argv[1:]
    with Connection(url) as connection:
        Worker(connection, queue, int(prefetch)).run()


if __name__ == "__main__":
    main()
