# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots, order, batches and rates work with a real broker."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import time
from collections import Counter
from itertools import pairwise

import pika
import pytest
from pika import frame, spec

from .instance import FM_CONSUMER, HEADERS, publish, queue_table, until

FOUR = """
[consumer_config.framework]
slots = 4
"""

# Waits until four runs are at work, as they are with four slots.
SYNC = """
lock, running = threading.Lock(), 0
together = threading.Barrier(4, timeout=20)

def handler(message):
    global running
    with lock:
        running += 1
        note("run", message, running=running)
    together.wait()
    with lock:
        running -= 1
"""

COROUTINE = """
import asyncio
running, together = 0, None

async def handler(message):
    global running, together
    together = together or asyncio.Barrier(4)
    running += 1
    note("run", message, running=running)
    await asyncio.wait_for(together.wait(), 20)
    running -= 1
"""


def by_hand(start, tmp_path, url, queues, handler, extra):
    """Start an instance by hand, so that its control socket is in the state directory."""
    instance = start(
        url,
        queues,
        handler,
        extra=extra,
        options=["--state-dir", str(tmp_path / "state")],
        environment={"STATE_DIRECTORY": "", "RUNTIME_DIRECTORY": ""},
    )
    instance.state = tmp_path / "state"
    return instance.ready()


def operate(instance, verb, *words):
    """Run a quarantine command on an instance, as an operator does."""
    conf = ["--conf", str(instance.configuration), "--state-dir", str(instance.state)]
    command = [str(FM_CONSUMER), "quarantine", verb, *conf, *words]
    environment = {**os.environ, "PYTHONPATH": str(instance.configuration.parent)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("handler", [SYNC, COROUTINE], ids=["threads", "coroutines"])
def test_four_slots_run_four_handlers_at_once_and_no_more(broker, queue_name, start, handler):
    instance = start(broker.url, queue_table(queue_name), handler, extra=FOUR).ready()
    publish(broker.url, queue_name, range(200))
    runs = instance.noted("run", 200)
    until(lambda: broker.depth(queue_name)[0] == 0, "all are taken")
    assert max(run["running"] for run in runs) == 4
    assert instance.stop() == 0
    assert Counter(n["body"]["n"] for n in instance.notes("run")) == dict.fromkeys(range(200), 1)
    assert broker.depth(queue_name) == (0, 0)
    assert instance.store() == []


# Messages of thirty keys begin and end; now and then one fails first.
BY_KEY = """
import random
luck = random.Random()

def handler(message):
    note("begin", message)
    time.sleep(luck.random() * 0.02)
    if luck.random() < 0.05:
        note("failed", message)
        raise ValueError("now and then")
    note("end", message)
"""

KEYS = """
[consumer_config.framework]
slots = 4
ordering = "key"
ordering_key = "body:key"
[consumer_config.framework.recovery]
immediate = 1
delays = ["1s", "1s", "1s", "1s", "1s"]
hold_slots = 2
crash_attempts = 1000
"""


def publish_keyed(url, key, count, keys):
    bodies = [json.dumps({"n": n, "key": f"k{n % keys}"}).encode() for n in range(count)]
    publish(url, key, bodies)


def check_order(notes, killed=frozenset()):
    """Check that runs of a key never overlap, and end in the order of publishing."""
    by_key: dict[str, list[tuple[str, int]]] = {}
    for one in notes:
        by_key.setdefault(one["body"]["key"], []).append((one["event"], one["body"]["n"]))
    for key, events in by_key.items():
        for (event, n), (following, m) in pairwise(events):
            # A killed process leaves a beginning without an end.
            if event == "begin" and following == "begin":
                assert n in killed, f"{key}: {m} begins while {n} runs"
            if event == "begin" and following != "begin":
                assert n == m, f"{key}: {m} ends while {n} runs"
        ended = list(dict.fromkeys(n for event, n in events if event == "end"))
        assert ended == sorted(ended), f"{key}: {ended}"


def test_messages_with_one_key_keep_their_order_through_failures_cuts_and_a_kill(
    broker, queue_name, proxy, start
):
    """Check the order under failures, cuts and a kill."""
    count, luck = 1200, random.Random(3)  # noqa: S311 -- reproducible
    url = proxy.url_for(broker.url)
    instance = start(url, queue_table(queue_name), BY_KEY, extra=KEYS).ready()
    publish_keyed(broker.url, queue_name, count, 30)
    for step in range(4):
        time.sleep(luck.uniform(0.3, 0.8))
        if step == 2:
            instance.send(signal.SIGKILL)
            instance.wait()
            begun = {note["body"]["n"] for note in instance.notes("begin")}
            killed = begun - {note["body"]["n"] for note in instance.notes("end")}
            instance.start()
        else:
            proxy.cut()
    until(
        lambda: (
            len({n["body"]["n"] for n in instance.notes("end")}) + len(instance.store()) >= count
            and not any(row.state == "deferred" for row in instance.store())
        ),
        "all have ended",
        90,
    )
    assert instance.ready().stop() == 0
    check_order(instance.notes(), killed)
    ended = {note["body"]["n"] for note in instance.notes("end")}
    quarantined = {json.loads(body)["n"] for body in instance.bodies()}
    assert ended | quarantined == set(range(count))
    assert broker.depth(queue_name) == (0, 0)


def test_followers_of_a_quarantined_message_wait_behind_it_and_a_replay_keeps_the_order(
    broker, queue_name, start, tmp_path
):
    flag = tmp_path / "mended"
    handler = f"""
def handler(message):
    note("begin", message)
    if message.body["n"] == 3 and not os.path.exists({str(flag)!r}):
        note("failed", message)
        raise ValueError("poison")
    note("end", message)
"""
    extra = KEYS.replace("immediate = 1", "immediate = 0").replace(
        'delays = ["1s", "1s", "1s", "1s", "1s"]', "delays = []"
    )
    instance = by_hand(start, tmp_path, broker.url, queue_table(queue_name), handler, extra)
    publish_keyed(broker.url, queue_name, 30, 3)
    followers = list(range(3, 30, 3))
    until(lambda: len(instance.store()) == len(followers), "they wait in the quarantine")
    assert {row.state for row in instance.store()} == {"quarantined"}
    assert [json.loads(body)["n"] for body in instance.bodies()] == followers
    assert {n["body"]["n"] for n in instance.noted("end", 21)} == set(range(30)) - set(followers)
    assert [note["body"]["n"] for note in instance.notes("begin")].count(6) == 0
    flag.touch()
    operate(instance, "replay", "--all")
    assert instance.store() == []
    check_order(instance.notes())
    replayed = [note["body"]["n"] for note in instance.notes("end")][21:]
    assert replayed == followers
    assert instance.stop() == 0


STRICT = """
[consumer_config.framework]
ordering = "strict"
[consumer_config.framework.recovery]
immediate = 0
delays = []
"""


def test_with_strict_ordering_a_poison_message_stops_everything_until_it_is_dropped(
    broker, queue_name, start, tmp_path
):
    handler = """
def handler(message):
    note("run", message)
    if message.body["n"] == 5:
        raise ValueError("poison")
"""
    instance = by_hand(start, tmp_path, broker.url, queue_table(queue_name), handler, STRICT)
    publish(broker.url, queue_name, range(20))
    until(lambda: instance.told("STATUS=Paused: "), "it is paused")
    until(lambda: broker.depth(queue_name) == (14, 0), "the rest is on the queue")
    assert instance.told("nothing may overtake it")
    assert [note["body"]["n"] for note in instance.notes("run")] == list(range(6))
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (14, 0)
    instance.start()
    until(lambda: instance.told("STATUS=Paused: "), "it is paused again")
    until(lambda: broker.depth(queue_name) == (14, 0), "and gives back what it was sent")
    assert len(instance.notes("run")) == 6
    operate(instance, "drop", "--all", "--yes")
    instance.noted("run", 20)
    assert [note["body"]["n"] for note in instance.notes("run")] == list(range(20))
    until(lambda: broker.depth(queue_name) == (0, 1), "it consumes again")
    assert instance.stop() == 0


def test_only_the_failed_messages_of_a_batch_come_again_and_each_comes_alone(
    broker, queue_name, start
):
    handler = """
from consumer_framework import BatchConsumer

class handler(BatchConsumer):
    def handle_batch(self, messages):
        for message in messages:
            note("run", message, size=len(messages))
            if message.body["n"] % 10 == 3:
                messages.fail(message, ValueError("poison"))
"""
    extra = """
[consumer_config.framework]
batch = { size = 20, seconds = "500ms" }
[consumer_config.framework.recovery]
immediate = 1
delays = []
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, range(100))
    until(lambda: len(instance.store()) == 10, "the poison is quarantined")
    instance.noted("run", 110)
    runs = Counter(note["body"]["n"] for note in instance.notes("run"))
    assert runs == {n: 2 if n % 10 == 3 else 1 for n in range(100)}
    sizes = {n: [r["size"] for r in instance.notes("run") if r["body"]["n"] == n] for n in runs}
    assert all(sizes[n][1:] == [1] for n in range(3, 100, 10))
    assert max(max(found) for found in sizes.values()) > 1
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_no_window_of_time_has_more_than_the_rate_allows(broker, queue_name, start):
    handler = """
def handler(message):
    note("run", message)
"""
    extra = '[consumer_config.framework]\nrate = "20/s"\nburst = 5\nslots = 4\n'
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, range(60))
    instance.noted("run", 60)
    times = sorted(note["at"] for note in instance.notes("run"))
    for first in range(60):
        for last in range(first, 60):
            # A late note may come close to the next ones; allow half a second for that.
            assert last - first + 1 <= 5 + 20 * (times[last] - times[first] + 0.5)
    assert times[-1] - times[0] > 2, "55 messages at 20 a second"
    assert instance.stop() == 0


def test_a_coroutine_that_takes_too_long_is_cancelled_and_stops_no_other(broker, queue_name, start):
    handler = """
import asyncio
async def handler(message):
    note("run", message)
    if message.body["n"] == 1:
        await asyncio.sleep(3600)
"""
    extra = """
[consumer_config.framework]
handler_timeout = "200ms"
[consumer_config.framework.recovery]
immediate = 1
delays = []
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, range(4))
    until(lambda: len(instance.store()) == 1, "it is quarantined")
    (row,) = instance.store()
    assert row.message_id == "1"
    assert "HandlerTimeoutError" in row.reason
    assert Counter(n["body"]["n"] for n in instance.notes("run")) == {0: 1, 1: 2, 2: 1, 3: 1}
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_large_messages_among_small_ones_arrive_whole_and_in_order(broker, queue_name, start):
    handler = """
import hashlib
def handler(message):
    text = message.body["text"]
    note_body = hashlib.sha256(text.encode()).hexdigest()
    with open(os.environ["NOTES"], "a") as notes:
        line = {"event": "run", "n": message.body["n"], "size": len(text), "digest": note_body}
        notes.write(json.dumps(line) + "\\n")
"""
    luck = random.Random(5)  # noqa: S311 -- reproducible
    sizes = [
        luck.choice([0, 10, 1000, 131_000, 131_072, 262_144, 300_000, 1 << 20]) for _ in range(60)
    ]
    texts = [
        "".join(luck.choices("abcdefgh", k=min(size, 4096))) * (size // 4096 + 1) for size in sizes
    ]
    texts = [text[:size] for text, size in zip(texts, sizes, strict=True)]
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    bodies = [json.dumps({"n": n, "text": text}).encode() for n, text in enumerate(texts)]
    publish(broker.url, queue_name, bodies)
    runs = instance.noted("run", 60)
    assert [run["n"] for run in runs] == list(range(60))
    assert [run["size"] for run in runs] == sizes
    assert [run["digest"] for run in runs] == [
        hashlib.sha256(text.encode()).hexdigest() for text in texts
    ]
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


class RawProperties(pika.BasicProperties):
    """Properties that pika's encoder would never write."""

    def __init__(self, encoded):
        super().__init__()
        self._encoded = encoded

    def encode(self):
        return [self._encoded]


def table(*fields):
    encoded = b"".join(bytes([len(key)]) + key + value for key, value in fields)
    return struct.pack(">I", len(encoded)) + encoded


# This time is beyond Python's last one. RabbitMQ passes it on.
TOO_LATE = struct.pack(">H", 1 << 13) + table((b"when", b"T" + struct.pack(">Q", 2**62)))
NOT_TEXT = struct.pack(">H", 1 << 7) + b"\x03\xff\xfe\xfd"


@pytest.mark.parametrize("size", [10, 150_000, 400_000], ids=["small", "two frames", "large"])
@pytest.mark.parametrize("encoded", [TOO_LATE, NOT_TEXT], ids=["time", "id"])
def test_a_message_with_odd_properties_is_handled_and_so_is_the_next(
    broker, queue_name, start, encoded, size
):
    handler = """
def handler(message):
    note("run", message)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    body = b'{"n": "' + b"x" * size + b'"}'
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.basic_publish("amq.topic", queue_name, body, RawProperties(encoded))
    publish(broker.url, queue_name, [1])
    instance.noted("run", 2)
    assert [len(note["body"]["n"]) for note in instance.notes()[:1]] == [size]
    assert instance.store() == []
    assert "no connection" not in instance.log
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_a_routing_key_that_is_no_text_loses_nothing_and_stops_nothing(broker, queue_name, start):
    handler = """
def handler(message):
    note("run", message)
"""
    instance = start(broker.url, queue_table(queue_name, keys=["#"]), handler).ready()
    properties = pika.BasicProperties(message_id="odd", headers=HEADERS, content_encoding="utf-8")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        method = spec.Basic.Publish(exchange="amq.topic", routing_key=b"\xff\xfe")
        number = channel.channel_number
        send = connection._impl._output_marshaled_frames
        send(
            [
                frame.Method(number, method).marshal(),
                frame.Header(number, 8, properties).marshal(),
                frame.Body(number, b'{"n": 7}').marshal(),
            ]
        )
        connection.process_data_events(0.2)
    publish(broker.url, queue_name, [1])
    until(lambda: "1" in {note["id"] for note in instance.notes("run")}, "the next is handled")
    until(
        lambda: len(instance.store()) + len(instance.notes("run")) == 2,
        f"the odd one is handled or kept\n{instance.log}",
    )
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_large_messages_are_not_all_sent_ahead_and_each_is_handled_once_in_order(
    broker, queue_name, start
):
    extra = "[consumer_config.framework]\nread_ahead_bytes = 4194304\n"
    instance = start(broker.url, queue_table(queue_name), NOTING, extra=extra).ready()
    instance.stop()
    bodies = [json.dumps({"n": n, "much": "x" * 1_500_000}).encode() for n in range(30)]
    publish(broker.url, queue_name, bodies)
    instance.start().ready()
    instance.noted("run", 30)
    assert [note["body"]["n"] for note in instance.notes("run")] == list(range(30))
    lines = broker.ctl("list_consumers", "queue_name", "prefetch_count", "--silent").splitlines()
    found = dict(line.split("\t") for line in lines if "\t" in line)
    assert int(found[queue_name]) < 10
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


NOTING = """
def handler(message):
    del message.body["much"]
    time.sleep(0.02)
    note("run", message)
"""


@pytest.mark.parametrize(
    ("extra", "prefetch"),
    [
        ("", 105),
        ("[consumer_config.framework]\nslots = 4\nread_ahead = 0\n", 8),
        ("[qos]\nprefetch_count = 7\n", 7),
    ],
    ids=["default", "slots", "written"],
)
def test_the_prefetch_count_follows_from_the_slots(broker, queue_name, start, extra, prefetch):
    instance = start(broker.url, queue_table(queue_name), "def handler(m): pass", extra=extra)
    instance.ready()
    lines = broker.ctl("list_consumers", "queue_name", "prefetch_count", "--silent").splitlines()
    found = dict(line.split("\t") for line in lines if "\t" in line)
    assert found[queue_name] == str(prefetch)
    assert instance.stop() == 0
