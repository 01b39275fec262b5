# SPDX-License-Identifier: GPL-2.0-or-later
"""A replay of recorded messages ends as a real instance at a real broker does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pika

from consumer_framework.adapters.store import Store

from .instance import FM_CONSUMER, publish, until

if TYPE_CHECKING:
    from pathlib import Path

    from .instance import Instance

HANDLER = """
from consumer_framework import Defer, Quarantine, Retry, Skip
from fedora_messaging import api

seen = {}
def handler(message):
    n = message.body["n"]
    tries = seen[message.id] = seen.get(message.id, 0) + 1
    note("run", message)
    kind = n % 9
    if kind == 1 and tries < 2:
        raise ValueError("once")
    if kind == 2 and tries < 4:
        raise OSError("three times")
    if kind == 3:
        raise KeyError("always")
    if kind == 4:
        raise Drop("on purpose")
    if kind == 5:
        raise Quarantine("aside")
    if kind == 6:
        raise Skip("nothing to do")
    if kind == 7 and tries < 2:
        raise Defer(time.time() + 1.5)
    if kind == 8 and tries < 3:
        raise Nack()
    if kind == 0:
        api.publish(api.Message(topic="a.result", body={"n": n}))
"""
SETTINGS = """
[consumer_config.framework.recovery]
immediate = 1
delays = ["200ms", "400ms"]
hold_slots = 1
"""
COUNT = 36
# By kind, how often the handler gets a message.
_RUNS = (1, 2, 4, 4, 1, 1, 1, 2, 3)
_AS_A_REPLAY_SAYS = {
    "succeeded": "acknowledged",
    "skipped": "acknowledged",
    "dropped": "dropped",
    "invalid": "quarantined",
    "quarantined": "quarantined",
}


def command(instance: Instance, *words: object, **environment: str) -> str:
    done = subprocess.run(
        [str(FM_CONSUMER), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(instance.configuration.parent),
            "NOTES": str(instance.configuration.parent / "replayed_notes"),
            **environment,
        },
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout


def queues(broker: Any, name: str, dropped: str) -> str:
    """Declare a queue, and another one for the messages that it drops; return its TOML."""
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dropped}
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(dropped)
        channel.queue_declare(name, durable=True, arguments=arguments)
        channel.queue_bind(name, "amq.topic", name)
    return (
        f'[queues."{name}"]\ndurable = true\nauto_delete = false\nexclusive = false\n'
        f"arguments = {json.dumps(arguments).replace(': ', ' = ')}\n"
        f'[[bindings]]\nqueue = "{name}"\nexchange = "amq.topic"\nrouting_keys = ["{name}"]\n'
    )


def taken_out(broker: Any, queue: str) -> list[str]:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        found = []
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            properties: Any = got[1]
            found.append(properties.message_id)
        channel.queue_delete(queue)
    return found


def test_recorded_messages_end_in_a_replay_as_at_a_real_broker(broker, start, queue_name, tmp_path):
    dropped = f"{queue_name}.dropped"
    table = queues(broker, queue_name, dropped)
    publish(broker.url, queue_name, range(COUNT))
    publish(broker.url, queue_name, [b"\xff"], message_id="bytes")
    publish(broker.url, queue_name, [b"[]"], message_id="list")
    instance: Instance = start(broker.url, table, HANDLER, extra=SETTINGS, command=["true"])
    instance.wait()

    file = tmp_path / "recorded.jsonl"
    command(instance, "record", "--conf", instance.configuration, "--queue", queue_name, file)
    lines = command(instance, "replay", "--conf", instance.configuration, "--json", file)
    *ends, summary = map(json.loads, lines.splitlines())
    replayed = {
        each["id"]: (_AS_A_REPLAY_SAYS[each["ended"]], each["runs"], len(each["failures"]))
        for each in ends
    }
    assert summary["published"] == COUNT / 9

    instance = start(broker.url, table, HANDLER, extra=SETTINGS).ready()
    runs = sum(_RUNS[n % 9] for n in range(COUNT))
    until(lambda: len(instance.notes("run")) >= runs, lambda: f"{runs} runs\n{instance.log}")
    until(lambda: len(quarantined(instance)) == 10, lambda: f"10 rows\n{instance.log}")
    a_test_of_a_live_row_fails_as_the_message_did(instance)
    assert instance.stop() == 0
    real = ends_of(instance, taken_out(broker, dropped))
    assert replayed == real
    assert Counter(fate for fate, _, _ in real.values()) == {
        "acknowledged": 24,
        "quarantined": 10,
        "dropped": 4,
    }


def quarantined(instance: Instance) -> dict[str, int]:
    """Return the failed attempts of each quarantined message."""
    with closing(Store.read(instance.state)) as store:
        return {row.message_id: row.attempts for row in store.rows(state="quarantined")}


def ends_of(instance: Instance, dropped: list[str]) -> dict[str, tuple[str, int, int]]:
    """Return the fate of each message, its runs and its failures."""
    rows, runs = quarantined(instance), Counter(note["id"] for note in instance.notes("run"))
    found = {}
    for name in [*map(str, range(COUNT)), "bytes", "list"]:
        fate = "quarantined" if name in rows else "dropped" if name in dropped else "acknowledged"
        # Of a message that is done nobody keeps the failures: each is a run before the last one.
        usual = runs[name] - 1 if name.isdigit() and int(name) % 9 != 7 else 0
        found[name] = (fate, runs[name] or 1, rows.get(name, usual))
    return found


def a_test_of_a_live_row_fails_as_the_message_did(instance: Instance) -> None:
    directory: Path = instance.configuration.parent
    target = directory / "test_row.py"
    at = ["--conf", instance.configuration, "--state-dir", instance.state]
    found = json.loads(command(instance, "quarantine", "list", "--rows", "--json", *at))
    row = next(row["id"] for row in found if row["error"] == "KeyError")
    command(instance, "quarantine", "to-test", *at, row, "-o", target)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(target)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "NOTES": os.devnull},
    )
    assert done.returncode == 1
    assert "KeyError: 'always'" in done.stdout
