# SPDX-License-Identifier: GPL-2.0-or-later
"""pika's BlockingConnection, with an acknowledgement for each message.

Usage: pika_blocking URL QUEUE PREFETCH
"""

import json
import sys
from typing import Any

import pika

from benchmarks.peers.tally import TALLY


def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
    """Handle a message, then acknowledge it."""
    json.loads(body)
    TALLY.handled(properties.headers)
    channel.basic_ack(method.delivery_tag)


def main() -> None:
    """Consume until killed."""
    url, queue, prefetch = sys.argv[1:]
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.basic_qos(prefetch_count=int(prefetch))
    channel.basic_consume(queue, on_message)
    channel.start_consuming()


if __name__ == "__main__":
    main()
