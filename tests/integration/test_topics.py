# SPDX-License-Identifier: GPL-2.0-or-later
"""The matcher of topics, compared with RabbitMQ's topic exchange."""

import random
from contextlib import closing

import pika

from consumer_framework.core.topics import matches

PATTERNS, TOPICS = 250, 120


def _texts(chance: random.Random, words: list[str], most: int, count: int) -> list[str]:
    drawn = {""}
    while len(drawn) < count:
        drawn.add(".".join(chance.choices(words, k=chance.randint(1, most))))
    return sorted(drawn)


def test_the_matcher_agrees_with_the_topic_exchange_of_a_broker(broker):
    chance = random.Random(13)  # noqa: S311 -- the same each time
    patterns = _texts(chance, ["a", "b", "*", "#", "", "a*"], 5, PATTERNS)
    topics = _texts(chance, ["a", "b", "c", "", "*", "#", "a*"], 6, TOPICS)
    got: dict[str, set[str]] = {pattern: set() for pattern in patterns}
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        queues = {}
        for pattern in patterns:
            queue = channel.queue_declare("", exclusive=True).method.queue
            channel.queue_bind(queue, "amq.topic", pattern)
            queues[queue] = pattern
        for topic in topics:
            channel.basic_publish("amq.topic", topic, topic.encode())
        # The methods of a channel are handled in their order, so all of them have arrived.
        for queue, pattern in queues.items():
            while (body := channel.basic_get(queue, auto_ack=True)[2]) is not None:
                got[pattern].add(body.decode())
    expected = {p: {topic for topic in topics if matches(p, topic)} for p in patterns}
    assert sum(map(len, expected.values())) > PATTERNS
    assert got == expected
