# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the wait of good messages behind many that always fail, with all defaults.

    python -m benchmarks.behind [--failing N] [--seconds N] [--json]

The failing messages are in the queue when the instance starts; good ones come at 50 a second.
It prints the number of good messages that were handled, and their seconds from publication to
handler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pika
from fedora_messaging.message import Message

from consumer_framework.testing.broker import Broker

RATE = 50
QUEUE = "behind"
# Seconds that the instance has for the last good messages.
LAST = 10
CONSUMER = """
import time

out = open("waits", "a", buffering=1)


def handle(message):
    if "at" not in message.body:
        raise ValueError("broken")
    out.write(f"{time.time() - message.body['at']}\\n")
"""
CONFIGURATION = """
amqp_url = "{url}"
queues.behind = {{durable = true, auto_delete = false, exclusive = false, arguments = {{}}}}

[[bindings]]
queue = "behind"
exchange = "amq.topic"
routing_keys = ["#"]
"""


def publish(channel: Any, body: dict[str, float]) -> None:
    """Publish one message to the exchange of the queue."""
    message = Message(topic="org.example.behind", body=body)
    channel.basic_publish(
        "amq.topic",
        message.topic,
        message._encoded_body,  # noqa: SLF001 -- as upstream publishes it
        message._properties,  # noqa: SLF001
    )


def measure(directory: Path, failing: int, seconds: float) -> dict[str, float]:
    """Run one instance and return the waits of the good messages, in seconds."""
    (directory / "sample.py").write_text(CONSUMER)
    with Broker() as broker, (directory / "log").open("w") as log:
        (directory / "sample.toml").write_text(CONFIGURATION.format(url=broker.url))
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        channel.queue_bind(QUEUE, "amq.topic", "#")
        for number in range(failing):
            publish(channel, {"n": number})
        program = str(Path(sys.executable).with_name("fm-consumer"))
        options = ("--conf", "sample.toml", "--callback-file", "sample.py:handle")
        command = (program, "run", *options, "--state-dir", "state")
        instance = subprocess.Popen(command, cwd=directory, stderr=log)
        try:
            end, good = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                publish(channel, {"at": time.time()})
                good += 1
                connection.sleep(1 / RATE)
            connection.sleep(LAST)
        finally:
            instance.terminate()
            instance.wait(60)
        connection.close()
    waits = [float(line) for line in (directory / "waits").read_text().split()]
    return {
        "failing": failing,
        "published": good,
        "handled": len(waits),
        "longest": max(waits),
        "median": statistics.median(waits),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--failing", type=int, default=10_000, help="messages that always fail")
    parser.add_argument("--seconds", type=float, default=110, help="how long good messages come")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), given.failing, given.seconds)
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['handled']} of {found['published']} good messages behind {found['failing']}:")
    print(f"longest wait {found['longest']:.1f} s, median {found['median']:.3f} s")


if __name__ == "__main__":
    main()
