# SPDX-License-Identifier: GPL-2.0-or-later
"""The broker's own limit: a reader with automatic acknowledgement that decodes nothing.

Usage: raw_reader URL QUEUE PREFETCH. The prefetch has no effect without acknowledgements.
"""

import sys

from pika import spec

from benchmarks.peers.tally import TALLY
from benchmarks.wire import Wire


def main() -> None:
    """Count deliveries by the headers of their frames."""
    url, queue, _ = sys.argv[1:]
    with Wire(url) as wire:
        wire.send_method(spec.Basic.Consume(queue=queue, no_ack=True))
        for count in wire.deliveries():
            TALLY.arrived(count)


if __name__ == "__main__":
    main()
