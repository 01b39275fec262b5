# SPDX-License-Identifier: GPL-2.0-or-later
"""aio-pika, as its documentation begins: a robust connection and a queue iterator.

Usage: aio_pika_iterator URL QUEUE PREFETCH
"""

import asyncio
import json
import sys

import aio_pika

from benchmarks.peers.tally import TALLY


async def consume(url: str, queue_name: str, prefetch: int) -> None:
    """Consume until killed; each message is acknowledged when its block ends."""
    connection = await aio_pika.connect_robust(url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=prefetch)
    queue = await channel.get_queue(queue_name)
    async with queue.iterator() as messages:
        async for message in messages:
            async with message.process():
                json.loads(message.body)
                TALLY.handled(message.headers)


if __name__ == "__main__":
    asyncio.run(consume(sys.argv[1], sys.argv[2], int(sys.argv[3])))
