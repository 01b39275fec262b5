# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger ``amqp`` sends a batch that is larger than its window."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from consumer_framework.publishing.messengers import Reject, Retry, Scope, Sent

from .instance import until
from .messengers import numbered, numbers, prepared

COUNT, WINDOW = 3000, 8

on_amqp = pytest.mark.parametrize("target", ["amqp-3"], indirect=True)


@on_amqp
@pytest.mark.parametrize("window", [1, 3, WINDOW, 2 * COUNT])
def test_a_batch_arrives_in_its_order_whatever_the_window_is(
    target, connect, topic, arrived, window
):
    messenger = connect("amqp", target.url, window=window)
    assert messenger.send_many(numbered(topic, 300)) == [Sent(routed=True)] * 300
    assert numbers(arrived()) == list(range(300))


@on_amqp
def test_a_connection_that_breaks_repeats_a_window_at_most(
    target, target_proxy, connect, topic, topic_queue, channel, arrived
):
    def depth():
        return channel.queue_declare(topic_queue, passive=True).method.message_count

    messenger = connect("amqp", target.url_at(target_proxy.port), window=WINDOW)
    messenger.open()
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(messenger.send_many, numbered(topic, COUNT))
        until(lambda: depth() > 50, "the first messages")
        target_proxy.cut()
        assert sending.result() == [Sent(routed=True)] * COUNT
    found = numbers(arrived())
    assert list(dict.fromkeys(found)) == list(range(COUNT))
    assert len(found) <= COUNT + WINDOW


@on_amqp
def test_a_channel_that_the_broker_closes_amid_a_large_batch_repeats_a_window_at_most(
    target, connect, topic, arrived
):
    batch = numbered(topic, 300)
    missing = range(40, 300, 20)
    for n in missing:
        batch[n] = prepared(f"{topic}.{n}", exchange="missing")
    batch[111] = prepared(f"{topic}.other", exchange="missing too")
    messenger = connect("amqp", target.url, window=WINDOW)
    results = messenger.send_many(batch)
    refused = {n for n, result in enumerate(results) if isinstance(result, Retry | Reject)}
    assert refused == {*missing, 111}
    assert {results[n].scope for n in missing} == {Scope.TOPIC}
    assert all(result == Sent(routed=True) for n, result in enumerate(results) if n not in refused)
    found = numbers(arrived())
    assert list(dict.fromkeys(found)) == [n for n in range(300) if n not in refused]
    copies = Counter(found).total() - len(set(found))
    # The broker closed the channel once for each of the two exchanges; then they were known.
    assert copies <= 2 * WINDOW
