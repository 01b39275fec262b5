# SPDX-License-Identifier: GPL-2.0-or-later
"""dramatiq: an actor, run by `dramatiq benchmarks.peers.dramatiq_actor`.

dramatiq takes only its own envelope; `catalogue.dramatiq_envelope` puts a body into it. Broker and
queue come from BENCH_URL and BENCH_QUEUE, because the worker's command line is dramatiq's.
"""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.tally import STAMP, TALLY

QUEUE = os.environ["BENCH_QUEUE"]
dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_URL"]))


@dramatiq.actor(queue_name=QUEUE, actor_name="handle", max_retries=0)
def handle(_body: dict[str, Any], stamp: int) -> None:
    """Handle a message; dramatiq acknowledges it afterwards."""
    TALLY.handled({STAMP: stamp})
