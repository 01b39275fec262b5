# SPDX-License-Identifier: GPL-2.0-or-later
"""Failing handlers recover, or their messages are quarantined, with a real broker."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from typing import Any

import pika
import pytest

from .control import call
from .instance import HEADERS, publish, queue_table, until

QUICK = """
[consumer_config.framework.recovery]
delays = ["1s"]
"""

POISON = """
def handler(message):
    note("run", message)
    if message.body["n"] % 10 == 3:
        raise ValueError("poison")
"""


def test_a_poison_message_is_tried_again_and_quarantined_and_stops_no_other(
    broker, queue_name, start
):
    instance = start(broker.url, queue_table(queue_name), POISON, extra=QUICK).ready()
    publish(broker.url, queue_name, range(30))
    until(lambda: len(instance.store()) == 3, "three are quarantined")
    runs = Counter(note["body"]["n"] for note in instance.notes("run"))
    assert runs == {n: 3 if n % 10 == 3 else 1 for n in range(30)}
    assert broker.depth(queue_name) == (0, 1)
    rows = instance.store()
    assert {row.state for row in rows} == {"quarantined"}
    assert {row.message_id for row in rows} == {"3", "13", "23"}
    assert all(row.attempts == 3 for row in rows)
    assert all("handler" in row.fingerprint for row in rows)
    assert instance.log.count("Traceback") == 1, "one cause, one traceback"
    assert instance.told("3 quarantined") or until(
        lambda: instance.told("3 quarantined"), "the status says so"
    )
    assert instance.stop() == 0


UNDECODABLE: dict[str, tuple[bytes, dict[str, Any]]] = {
    "gzip": (b'{"n": 1}', {"content_encoding": "gzip"}),
    "no such encoding": (b'{"n": 1}', {"content_encoding": "no-such"}),
    "bad utf-8": (b'{"n": "\xff"}', {}),
    "no json": (b"no json", {}),
    "deep json": (b"[" * 100_000 + b"]" * 100_000, {}),
    "null": (b"null", {}),
    "zero": (b"0", {}),
    "array": (b"[]", {}),
    "full array": (b"[1]", {}),
    "table as schema": (b'{"n": 1}', {"headers": {**HEADERS, "fedora_messaging_schema": {"a": 1}}}),
    "text as severity": (
        b'{"n": 1}',
        {"headers": {**HEADERS, "fedora_messaging_severity": "high"}},
    ),
}


def test_everything_undecodable_is_kept_as_it_was_received(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), POISON).ready()
    for body, properties in UNDECODABLE.values():
        publish(broker.url, queue_name, [body], **properties)
    publish(broker.url, queue_name, [1])
    instance.noted("run", 1)
    until(lambda: len(instance.store()) == len(UNDECODABLE), "all are quarantined")
    kept = instance.bodies()
    assert kept == [body for body, _ in UNDECODABLE.values()]
    assert [n["body"] for n in instance.notes()] == [{"n": 1}]
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_equal_messages_without_id_or_headers_are_handled_and_each_is_kept_when_it_fails(
    broker, queue_name, start
):
    extra = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n"
    instance = start(broker.url, queue_table(queue_name), POISON, extra=extra)
    equal = [b'{"n": 3}'] * 10
    instance.ready()
    instance.stop()
    publish(broker.url, queue_name, equal, headers=None, message_id=None)
    instance.start().ready()
    until(lambda: len(instance.store()) == 10, "each has a row")
    assert {row.error for row in instance.store()} == {"ValueError"}
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_a_retry_beyond_the_ceiling_is_deferred_and_runs_after_a_restart(broker, queue_name, start):
    handler = """
def handler(message):
    note("run", message)
    if len(open(os.environ["NOTES"]).readlines()) == 1:
        raise Nack("not yet")
"""
    extra = """
[consumer_config.framework.recovery]
immediate = 0
delays = ["3s"]
ack_timeout = "2s"
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: [row.state for row in instance.store()] == ["deferred"], "it is deferred")
    until(lambda: broker.depth(queue_name) == (0, 1), "the broker has forgotten it")
    assert instance.stop() == 0
    instance.start().ready()
    instance.noted("run", 2)
    until(lambda: not instance.store(), "it is done")
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_a_message_that_kills_the_process_is_quarantined_before_it_runs_again(
    broker, queue_name, start
):
    handler = """
import signal
def handler(message):
    note("run", message)
    if message.body["n"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    instance = start(broker.url, queue_table(queue_name), handler)
    instance.ready()
    publish(broker.url, queue_name, range(4))
    for _ in range(2):
        assert instance.wait() == -signal.SIGKILL
        instance.start()
    until(lambda: len(instance.store()) == 1, "the killer is quarantined")

    def runs():
        return Counter(note["body"]["n"] for note in instance.notes("run"))

    until(lambda: set(runs()) == {0, 1, 2, 3}, "all have run")
    assert runs()[1] == 2
    assert instance.store()[0].message_id == "1"
    assert "the process died 2 times" in instance.store()[0].reason
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


def test_a_broken_dependency_pauses_the_instance_and_loses_no_message(
    broker, queue_name, start, tmp_path
):
    flag = tmp_path / "works"
    handler = f"""
from consumer_framework import DependencyFault
def handler(message):
    note("run", message)
    if not os.path.exists({str(flag)!r}):
        raise DependencyFault("the database is gone")
    note("done", message)
"""
    extra = """
[consumer_config.framework.recovery]
breaker = { consecutive = 2, probe = ["1s"] }
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, range(20))
    until(lambda: instance.told("STATUS=Paused: the database is gone"), "it is paused")
    until(lambda: broker.depth(queue_name)[1] == 0, "it consumes no more")
    time.sleep(2.5)
    assert len(instance.notes("run")) < 10, "probes, no hot loop"
    flag.touch()
    instance.noted("done", 20)
    assert Counter(n["body"]["n"] for n in instance.notes("done")) == dict.fromkeys(range(20), 1)
    assert broker.depth(queue_name) == (0, 1)
    assert instance.store() == []
    assert instance.stop() == 0


def test_held_messages_are_given_back_when_the_instance_stops(broker, queue_name, start):
    handler = """
def handler(message):
    note("run", message)
    raise Nack("later")
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, range(3))
    instance.noted("run", 6)
    assert instance.stop() == 0
    assert broker.depth(queue_name)[0] + len(instance.store()) == 3


def test_a_retry_keeps_its_count_over_a_cut(broker, queue_name, proxy, start):
    handler = """
def handler(message):
    note("run", message)
    raise ValueError("no")
"""
    extra = '[consumer_config.framework.recovery]\nimmediate = 0\ndelays = ["3s"]\n'
    instance = start(
        proxy.url_for(broker.url), queue_table(queue_name), handler, extra=extra
    ).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("run", 1)
    proxy.cut()
    until(lambda: len(instance.store()) == 1, "it is quarantined")
    assert len(instance.notes("run")) == 2
    assert instance.store()[0].attempts == 2
    assert instance.stop() == 0


def replay(instance, rows):
    path = instance.configuration.parent / "control"
    return call(path, "POST", "/v1/quarantine/replay", {"rows": rows})[1]


def test_a_replay_runs_in_the_running_instance(broker, queue_name, start, tmp_path):
    flag = tmp_path / "mended"
    handler = f"""
def handler(message):
    note("run", message)
    if not os.path.exists({str(flag)!r}):
        raise ValueError("broken")
"""
    extra = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n"
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, range(3))
    until(lambda: len(instance.store()) == 3, "all are quarantined")
    numbers = [row.id for row in instance.store()]
    failed = replay(instance, numbers[:1])
    assert failed == [
        {"begun": numbers[0]},
        {"row": numbers[0], "result": "failed", "reason": "ValueError: broken"},
        {"done": True},
    ]
    flag.touch()
    answers = replay(instance, [*numbers, 999])
    results = [answer for answer in answers if "begun" not in answer]
    assert [answer.get("result") for answer in results] == [
        "succeeded", "succeeded", "succeeded", "skipped", None,
    ]  # fmt: skip
    assert instance.store() == []
    assert instance.stop() == 0


def test_a_second_process_on_the_same_state_waits_and_gives_up(broker, queue_name, start):
    first = start(broker.url, queue_table(queue_name), POISON).ready()
    second = start(
        broker.url,
        queue_table(queue_name),
        POISON,
        extra='[consumer_config.framework]\nstart_timeout = "1s"\n',
        environment={"STATE_DIRECTORY": str(first.state)},
    )
    assert second.wait() == 75
    assert f"in use by process {first.process_id}" in second.log, "it says who has it"
    assert second.told("STATUS=Starting: ")
    assert first.stop() == 0


def test_a_start_goes_on_when_the_state_directory_is_free(broker, queue_name, start):
    first = start(broker.url, queue_table(queue_name), POISON).ready()
    second = start(
        broker.url,
        queue_table(queue_name),
        POISON,
        environment={"STATE_DIRECTORY": str(first.state)},
    )
    until(lambda: second.told("in use by process"), "it waits")
    assert first.stop() == 0
    assert second.ready().stop() == 0


FORKS = """
import multiprocessing
child = None

def handler(message):
    global child
    if child is None:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
    note("handled", message, child=child.pid)
"""


def test_a_forked_child_of_a_killed_instance_keeps_neither_its_state_nor_its_messages(
    broker, queue_name, start
):
    instance = start(broker.url, queue_table(queue_name), FORKS).ready()
    publish(broker.url, queue_name, [{"n": 0}])
    [first] = instance.noted("handled", 1)
    instance.send(signal.SIGKILL)
    instance.wait()
    try:
        publish(broker.url, queue_name, [{"n": 1}])
        instance.start()
        second = instance.noted("handled", 2)[1]
    finally:
        os.kill(first["child"], signal.SIGKILL)
    os.kill(second["child"], signal.SIGKILL)
    assert instance.stop() == 0


@pytest.mark.parametrize("where", ["/proc/nowhere", "/dev/null"])
def test_without_a_place_for_its_state_it_says_so(broker, queue_name, start, where):
    instance = start(
        broker.url, queue_table(queue_name), POISON, environment={"STATE_DIRECTORY": where}
    )
    assert instance.wait() == 78
    assert where in instance.log
    assert "--state-dir" in instance.log
    assert "Traceback" not in instance.log


def test_a_burst_of_poison_takes_few_commits(broker, queue_name, start):
    instance = start(
        broker.url, queue_table(queue_name), POISON, extra="[qos]\nprefetch_count = 250\n"
    )
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        instance.ready()
        for number in range(1000):
            properties = pika.BasicProperties(message_id=str(number), headers=HEADERS)
            channel.basic_publish("amq.topic", queue_name, b"no json", properties)
    until(lambda: broker.depth(queue_name)[0] == 0, "all are taken", 60)
    until(lambda: len(instance.store()) == 1000, "they are kept", 60)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 1 MiB for the state of an instance."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_pauses_the_instance_until_there_is_room(broker, queue_name, start, small_disk):
    instance = start(
        broker.url,
        queue_table(queue_name),
        POISON,
        environment={"STATE_DIRECTORY": str(small_disk)},
    ).ready()
    publish(broker.url, queue_name, [b"no json" * 40_000] * 10)
    until(lambda: instance.told("STATUS=Paused: "), "it is paused")
    until(lambda: broker.depth(queue_name)[1] == 0, "it consumes no more")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    instance.state = small_disk
    until(lambda: len(instance.store()) == 10, "it went on by itself", 40)
    until(lambda: broker.depth(queue_name) == (0, 1), "it consumes again")
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


REJECTS = """
[consumer_config.framework.recovery]
delays = ["1s"]
on_exhausted = "reject"
on_invalid = "reject"
"""


def test_a_dead_letter_exchange_gets_invalid_messages_and_those_without_attempts_left(
    broker, queue_name, start
):
    dead = f"{queue_name}.dead"
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    table = queue_table(queue_name, arguments=arguments)
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(dead, exclusive=True)
        instance = start(broker.url, table, POISON, extra=REJECTS).ready()
        publish(broker.url, queue_name, [3, 4])
        channel.basic_publish("amq.topic", queue_name, b"no json", pika.BasicProperties(headers={}))
        letters = []

        def come():
            _, _, body = channel.basic_get(dead, auto_ack=True)
            letters.extend([body] if body else [])
            return len(letters) == 2

        until(come, "two are dead-lettered")
        assert sorted(letters) == [b"no json", b'{"n": 3}']
        assert instance.store() == []
        assert instance.stop() == 0


IN_MEMORY = """
[consumer_config.framework]
store = "memory"
[consumer_config.framework.recovery]
immediate = 0
delays = ["1s"]
"""


def test_without_a_store_failed_messages_stay_with_the_broker(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), POISON, extra=IN_MEMORY).ready()
    publish(broker.url, queue_name, [3, 4])
    runs = instance.noted("run", 4)
    assert Counter(note["body"]["n"] for note in runs) == {3: 3, 4: 1}
    assert instance.told("no store: nothing is deferred or quarantined")
    assert instance.stop() == 0
    assert list(instance.state.glob("*")) == []
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        assert channel.queue_declare(queue_name, passive=True).method.message_count == 1
