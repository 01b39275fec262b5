# SPDX-License-Identifier: GPL-2.0-or-later
"""FastStream with its RabbitMQ broker: a subscriber that takes the parsed body.

Usage: faststream_app URL QUEUE PREFETCH
"""

import asyncio
import sys
from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

from benchmarks.peers.tally import TALLY


def application(url: str, queue_name: str, prefetch: int) -> FastStream:
    """Build the application; the queue exists already."""
    broker = RabbitBroker(url, logger=None)
    queue = RabbitQueue(queue_name, declare=False)

    @broker.subscriber(queue, channel=Channel(prefetch_count=prefetch))
    async def handle(_body: dict[str, Any], message: RabbitMessage) -> None:
        TALLY.handled(message.headers)

    return FastStream(broker, logger=None)


if __name__ == "__main__":
    asyncio.run(application(sys.argv[1], sys.argv[2], int(sys.argv[3])).run())
