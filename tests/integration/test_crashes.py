# SPDX-License-Identifier: GPL-2.0-or-later
"""No message is lost when the process is killed, the network is cut or the broker is gone.

Each test accounts for every published message: handled, quarantined, dropped by order, or still
waiting (in its queue or deferred). `make chaos` runs the long form.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections import Counter

import pika
import pytest

from consumer_framework.adapters.amqp.channels import MANY
from consumer_framework.runtime.task_pool import HAND_OVER
from consumer_framework.testing.broker import Broker
from consumer_framework.testing.broker.proxy import Proxy

from .chaos import KILLER, Chaos, Ledger, Publisher, is_for_good, make_worker
from .instance import publish, queue_table, until
from .killer import POINTS

FULL = os.environ.get("CHAOS") == "full"

RECOVERY = """
[consumer_config.framework.recovery]
immediate = 0
delays = ["1s"]
hold_slots = 1
crash_attempts = 1000
"""

# The number of a message decides its fate: poison, dropped, retried, deferred or handled.
HANDLER = r"""
from consumer_framework import Defer, Drop, Retry

def seen_before(message):
    # Over kills as well, or a second death would make the retry the last one.
    with open(os.environ["NOTES"] + ".seen", "a+") as seen:
        seen.seek(0)
        if f"{message.id}\n" in seen.readlines():
            return True
        seen.write(f"{message.id}\n")
        return False

def handler(message):
    n = message.body["n"]
    if n % 20 == 3:
        raise ValueError("poison")
    if n % 20 == 5:
        note("dropped", message)
        raise Drop("unwanted")
    if n % 20 in (7, 8) and not seen_before(message):
        if n % 20 == 7:
            raise Retry("once more")
        raise Defer(time.time() + 1)
    note("handled", message)
"""


def waiting(broker, queue):
    """Empty the queue, and return the ids of its messages."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        found = []
        while (properties := channel.basic_get(queue, auto_ack=True)[1]) is not None:
            found.append(properties.message_id)
        return found


def ledger(instance, broker, queue):
    """Return the place of each message."""
    rows = instance.store()
    return {
        "handled": {note["id"] for note in instance.notes("handled")},
        "dropped": {note["id"] for note in instance.notes("dropped")},
        "quarantined": {row.message_id for row in rows if row.state == "quarantined"},
        "deferred": {row.message_id for row in rows if row.state == "deferred"},
        "queued": set(waiting(broker, queue)),
    }


def check(places, published):
    lost = set(published) - set().union(*places.values())
    assert not lost, f"lost: {sorted(lost)}"
    unknown = set().union(*places.values()) - set(published)
    assert not unknown, f"from nowhere: {sorted(unknown)}"
    final = [places[name] for name in ("handled", "quarantined", "queued", "deferred")]
    both = [one & other for i, one in enumerate(final) for other in final[i + 1 :]]
    assert not any(both), f"in two places: {both}"


@pytest.mark.parametrize("number", [1, 4] if FULL else [2])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_boundary_loses_nothing(broker, queue_name, start, point, number, tmp_path):
    plan = tmp_path / "plan"
    plan.write_text(f"{point}\n{number}")
    command = [sys.executable, str(KILLER), str(plan)]
    instance = start(
        broker.url, queue_table(queue_name), HANDLER, extra=RECOVERY, prefix=command
    ).ready()
    published = [str(n) for n in range(80)]
    publish(broker.url, queue_name, range(80))
    assert instance.wait(30) == -signal.SIGKILL
    instance.start().ready()
    until(lambda: settled(instance, broker, queue_name, 80), f"all are settled\n{instance.log}", 40)
    assert instance.stop() == 0
    places = ledger(instance, broker, queue_name)
    check(places, published)
    assert not places["queued"]
    assert not places["deferred"]
    assert len(places["quarantined"]) == 4
    assert len(places["dropped"]) == 4
    extra = Counter(note["id"] for note in instance.notes("handled")).total() - 72
    assert extra <= HAND_OVER + MANY, "only what the broker had not heard of may run again"


def settled(instance, broker, queue, count):
    rows = instance.store()
    done = {n["id"] for n in instance.notes()} | {r.message_id for r in rows}
    states = {row.state for row in rows}
    return len(done) == count and "deferred" not in states and broker.depth(queue)[0] == 0


def test_nothing_is_lost_in_chaos(queue_name, start, tmp_path):
    """Check the guarantees of docs/explanation/recovery.md while everything fails at random."""
    seconds = 480 if FULL else 20
    luck = random.Random(7)  # noqa: S311 -- reproducible
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    begun = time.monotonic()
    with Broker() as own, Proxy("127.0.0.1", own.port) as proxy:
        url = proxy.url_for(own.url)
        workers = [
            make_worker(start, url, f"{queue_name}.{ordered}", tmp_path, is_ordered=ordered)
            for ordered in (False, True)
        ]
        chaos = Chaos(own, proxy, workers, luck)
        publisher = Publisher(own.url, workers)
        publisher.start()
        try:
            chaos.run(seconds, kills=100 if FULL else 8)
        finally:
            publisher.stop()
        chaos.settle(300 if FULL else 90)
        assert [worker.instance.stop() for worker in workers] == [0, 0]
        ledgers = [Ledger(worker, set(waiting(own, worker.queue))) for worker in workers]
    lines = [f"The chaos took {time.monotonic() - begun:.0f} s."]
    lines += [f"{count} times: {what}." for what, count in sorted(chaos.done.items())]
    sys.stdout.write("\n".join(["", *lines, *map(str, ledgers)]))
    for one in ledgers:
        assert not one.wrong, str(one)
        assert not one.queued
        assert not one.deferred
        assert all(is_for_good(one.worker, name) for name in one.quarantined)
    kills = sum(sum(one.kills.values()) for one in ledgers)
    hits = sum(one.in_handler for one in ledgers)
    assert hits >= kills / 4, f"only {hits} of {kills} kills hit a running handler"
    if FULL:
        commits = sum(n for one in ledgers for how, n in one.kills.items() if "commit" in how)
        assert commits >= kills / 20, f"only {commits} of {kills} kills hit a commit"
