# SPDX-License-Identifier: GPL-2.0-or-later
"""A quorum queue drops messages that came back too often; none is lost that never ran."""

from __future__ import annotations

import json
import signal

import pika
import pytest

from .instance import publish, queue_table, until

LIMIT = 3
HANDLER = """
def handler(message):
    note("start", message)
    time.sleep(0.1)
    note("done", message)
"""
ORDERING = 'ordering = "key"\nordering_key = "topic"\n'
RECOVERY = "[consumer_config.framework.recovery]\ncrash_attempts = 100\n"


@pytest.fixture
def dead(broker, queue_name):
    """Return a function that takes the dropped bodies from the dead-letter queue."""
    name = f"{queue_name}.dead"
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(name, durable=True)

        def bodies():
            while (found := channel.basic_get(name, auto_ack=True))[0] is not None:
                taken.append(json.loads(found[2] or b"")["n"])
            return taken

        taken: list[int] = []
        yield bodies
        channel.queue_delete(name)


def limited(queue_name, limit=LIMIT):
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{queue_name}.dead",
    }
    return queue_table(queue_name, arguments=arguments)


def test_ten_restarts_and_some_kills_lose_nothing_that_never_ran(broker, queue_name, start, dead):
    """The restarts keep the order within a key, too."""
    count = 26
    extra = f"[consumer_config.framework]\n{ORDERING}{RECOVERY}"
    instance = start(broker.url, limited(queue_name), HANDLER, extra=extra).ready()
    publish(broker.url, queue_name, range(count))
    for restart in range(13):
        instance.noted("start", len(instance.notes("start")) + 1)
        if restart % 4 == 3:
            instance.stop(signal.SIGKILL)
        else:
            assert instance.stop() == 0
        instance.start().ready()
    until(lambda: broker.depth(queue_name) == (0, 1), "the queue is empty")
    until(lambda: instance.store() == [], "what was kept is handled")
    assert instance.stop() == 0
    started = {note["body"]["n"] for note in instance.notes("start")}
    assert started == set(range(count))
    assert set(dead()) <= started
    first_of_each = list(dict.fromkeys(note["body"]["n"] for note in instance.notes("start")))
    assert first_of_each == list(range(count))


@pytest.mark.parametrize("limit", [0, 1])
def test_a_message_that_may_not_come_back_goes_to_the_store_at_a_stop(
    broker, queue_name, start, dead, limit
):
    instance = start(broker.url, limited(queue_name, limit), HANDLER).ready()
    publish(broker.url, queue_name, range(6))
    for _ in range(3):
        instance.noted("start", len(instance.notes("start")) + 1)
        assert instance.stop() == 0
        instance.start().ready()
    until(lambda: len(instance.notes("done")) >= 6, "all are handled")
    until(lambda: instance.store() == [], "what was kept is handled")
    assert instance.stop() == 0
    assert sorted(note["body"]["n"] for note in instance.notes("done")) == list(range(6))
    assert dead() == []


def test_large_messages_that_are_not_to_wait_in_memory_are_not_dropped(
    broker, queue_name, start, dead
):
    extra = "[qos]\nprefetch_count = 20\n[consumer_config.framework]\nread_ahead_bytes = 4194304\n"
    instance = start(broker.url, limited(queue_name, 0), LARGE, extra=extra).ready()
    assert instance.stop() == 0
    bodies = [json.dumps({"n": n, "much": "x" * 1_500_000}).encode() for n in range(12)]
    publish(broker.url, queue_name, bodies)
    instance.start().ready()
    until(lambda: len(instance.notes("done")) + len(dead()) >= 12, "all are handled, or lost")
    assert sorted(note["body"]["n"] for note in instance.notes("done")) == list(range(12))
    assert dead() == []
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


LARGE = """
def handler(message):
    del message.body["much"]
    time.sleep(0.02)
    note("done", message)
"""
