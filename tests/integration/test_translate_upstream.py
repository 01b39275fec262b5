# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy helpers work in a callback under ``fedora-messaging consume``."""

from __future__ import annotations

import sys
from pathlib import Path

import pika

from .instance import publish, queue_table, until

UPSTREAM_COMMAND = [str(Path(sys.executable).with_name("fedora-messaging")), "consume"]

HANDLER = """
from consumer_framework import Retry, on, translate

seen = set()

@on(KeyError, then="drop", reason="not one of ours")
@on(OSError, then="halt")
def handler(message):
    number = message.body["n"]
    note("run", message)
    if number == 0:
        raise KeyError("dropped")
    if number == 1 and number not in seen:
        seen.add(number)
        raise Retry("again")
    if number == 2 and number not in seen:
        seen.add(number)
        with translate({ValueError: "quarantine"}):
            raise ValueError("kept")
    if number == 3:
        raise ConnectionError("stops")
    note("done", message)
"""


def depth(broker, queue):
    try:
        return broker.depth(queue)
    except pika.exceptions.ChannelClosedByBroker:
        return None


def test_decisions_become_upstreams_exceptions_and_only_dropped_messages_are_lost(
    broker, queue_name, start
):
    instance = start(broker.url, queue_table(queue_name), HANDLER, command=UPSTREAM_COMMAND)
    until(lambda: depth(broker, queue_name) == (0, 1), f"it consumes\n{instance.log}")
    publish(broker.url, queue_name, range(3))
    assert sorted(note["body"]["n"] for note in instance.noted("done", 2)) == [1, 2]
    assert sorted(note["body"]["n"] for note in instance.noted("run", 5)) == [0, 1, 1, 2, 2]
    publish(broker.url, queue_name, [3])
    assert instance.wait() == 13
    until(lambda: depth(broker, queue_name) == (1, 0), "the message is still there")
