# SPDX-License-Identifier: GPL-2.0-or-later
"""Several routes with one message of a real broker: kills between them, a reload, an operator."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pika
import pytest

from .instance import FM_CONSUMER, Instance, publish, queue_table, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Each route does its work, unless a file beside the module says that the process dies in it, or
# that it fails.
HANDLER = """
import pathlib, signal
from consumer_framework import Consumer, on_topic
from consumer_framework.publishing import publish
from fedora_messaging.message import Message

HERE = pathlib.Path(__file__).parent

def once(name):
    try:
        (HERE / name).unlink()
    except FileNotFoundError:
        return False
    return True

class handler(Consumer):


    def _work(self, name, message):
        note("begins " + name, message)
        if once("kill " + name):
            os.kill(os.getpid(), signal.SIGKILL)
        if (HERE / ("fail " + name)).exists():
            raise ValueError(name + " fails")
        publish(Message(topic="out." + message.topic, body={"by": name}))
        note(name, message)

    @on_topic("#")
    def first(self, message):
        self._work("first", message)

    @on_topic("late", "*.late")
    async def second(self, message):
        self._work("second", message)

    @on_topic("*.late")
    def third(self, message):
        self._work("third", message)
"""


def recovery(**more: Any) -> str:
    table = {"immediate": 0, "delays": [], "crash_attempts": 9, **more}
    lines = (f"{key} = {value}" for key, value in table.items())
    return "\n".join(["[consumer_config.framework.recovery]", *lines, ""])


@pytest.fixture
def key(queue_name: str) -> str:
    """Return a routing key of two words, whose queue is *queue_name*."""
    return f"{queue_name.replace('.', '-')}.late"


@pytest.fixture
def published(broker, key: str) -> Iterator[Callable[[], Counter[bytes]]]:
    """Bind a queue for the messages that the routes publish; return a function that reads it."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, "amq.topic", f"out.{key}")
        got: Counter[bytes] = Counter()

        def read() -> Counter[bytes]:
            while (body := channel.basic_get(queue, auto_ack=True)[2]) is not None:
                got[body] += 1
            return got

        yield read


def again(instance: Instance) -> Instance:
    instance.end()
    return instance.start().ready()


def does(instance: Instance, *words: str) -> str:
    conf = ["--conf", str(instance.configuration), "--state-dir", str(instance.state)]
    here = instance.configuration.parent
    environment = {**os.environ, "PYTHONPATH": str(here), "NOTES": str(here / "notes")}
    command = [str(FM_CONSUMER), "quarantine", words[0], *conf, *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_route_that_is_done_never_runs_again_whatever_kills_the_process(
    broker, queue_name, key, start, published
):
    table = queue_table(queue_name, keys=[key])
    instance = start(broker.url, table, HANDLER, extra=recovery())
    here = instance.configuration.parent
    for name in ("kill second", "kill third", "fail third"):
        (here / name).touch()
    instance.ready()
    publish(broker.url, key, [1])
    assert instance.wait() == -signal.SIGKILL
    assert [note["event"] for note in instance.notes()] == [
        "begins first",
        "first",
        "begins second",
    ]
    again(instance)
    assert instance.wait() == -signal.SIGKILL
    again(instance)
    until(lambda: any(r.state == "quarantined" for r in instance.store()), lambda: instance.log)
    [row] = instance.store()
    assert row.reason == "route third: ValueError: third fails"
    shown = does(instance, "show", str(row.id))
    assert "Attempt 1 of 1 in route third" in shown
    assert instance.stop() == 0
    # The operator replays it while the instance is stopped.
    (here / "fail third").unlink()
    does(instance, "replay", str(row.id))
    counts = Counter(note["event"] for note in instance.notes())
    assert {counts[name] for name in ("begins first", "first", "second", "third")} == {1}
    again(instance)
    bodies = [b'{"by": "%s"}' % name for name in (b"first", b"second", b"third")]
    until(lambda: set(published()) == set(bodies), lambda: str(published()))
    assert set(published().values()) == {1}
    assert broker.depth(queue_name)[0] == 0


def test_a_reload_with_another_topic_prefix_changes_the_routes_of_a_held_message(
    broker, queue_name, key, start
):
    prefix, _, _ = key.partition(".")
    deeper = f"{prefix}.deep.late"
    table = queue_table(queue_name, keys=[deeper])
    extra = recovery(delays='["1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s"]')
    instance = start(broker.url, table, HANDLER, extra=extra)
    here = instance.configuration.parent
    (here / "fail first").touch()
    instance.ready()
    publish(broker.url, deeper, [1])
    instance.noted("begins first", 1)
    text = instance.configuration.read_text()
    instance.configuration.write_text(f'topic_prefix = "{prefix}.deep"\n{text}')
    instance.send(signal.SIGHUP)
    instance.noted("second", 1)
    (here / "fail first").unlink()
    instance.noted("first", 1)
    assert instance.stop() == 0
    counts = Counter(note["event"] for note in instance.notes())
    assert (counts["first"], counts["second"], counts["third"]) == (1, 1, 0)
    assert broker.depth(queue_name)[0] == 0
