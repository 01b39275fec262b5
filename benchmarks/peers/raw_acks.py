# SPDX-License-Identifier: GPL-2.0-or-later
"""The broker's limit with acknowledgements: one for all messages of each read.

Usage: raw_acks URL QUEUE PREFETCH. Nothing is decoded; no consumer that acknowledges is faster.
"""

import sys

from pika import spec

from benchmarks.peers.tally import TALLY
from benchmarks.wire import Wire


def main() -> None:
    """Count deliveries by the headers of their frames, and acknowledge them together."""
    url, queue, prefetch = sys.argv[1:]
    with Wire(url) as wire:
        wire.call(spec.Basic.Qos(prefetch_count=int(prefetch)), spec.Basic.QosOk)
        wire.send_method(spec.Basic.Consume(queue=queue))
        tag = 0
        for count in wire.deliveries():
            tag += count
            wire.send_method(spec.Basic.Ack(tag, multiple=True))
            TALLY.arrived(count)


if __name__ == "__main__":
    main()
