# SPDX-License-Identifier: GPL-2.0-or-later
"""A step that a handler has done is not done again: after SIGKILL, from the store, by a command."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing

import pytest

from consumer_framework.adapters.store.steps import AFTER_STOP

from .instance import FM_CONSUMER, publish, queue_table, until

# `FAULT` names the place where the first run fails, and `FAULT.done` says that it has.
PLAIN = """
import signal
from consumer_framework import Consumer, Defer

def fails(place, message, action):
    fault = os.environ["NOTES"] + ".fault"
    if os.environ["FAULT"] == place and not os.path.exists(fault):
        open(fault, "w").close()
        action()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def defer():
    raise Defer(time.time() + 1)

def fail():
    raise ValueError("no")

class handler(Consumer):
    def effect(self, name, message):
        note(name, message)
        fails(f"in {name}", message, die)
        return {"number": 17}

    def handle(self, message):
        with self.once("file") as step:
            found = step.run(self.effect, "file", message)
        fails("killed", message, die)
        fails("deferred", message, defer)
        fails("quarantined", message, fail)
        with self.once("comment") as step:
            step.run(self.effect, "comment", message)
        fails("killed at the end", message, die)
        note("handled", message, found=found)
"""

COROUTINE = (
    PLAIN.replace("    def handle", "    async def handle")
    .replace("with self.once", "async with self.once")
    .replace("step.run(", "await step.run(")
)

ONE_ATTEMPT = """
[consumer_config.framework.recovery]
immediate = 0
delays = []
"""


def steps_of(instance):
    with closing(sqlite3.connect(instance.state / "store.sqlite3")) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM steps ORDER BY name")]


def left_for_a_day(instance):
    """Return the steps that are left, if none is kept for longer than after a stop."""
    with closing(sqlite3.connect(instance.state / "store.sqlite3")) as connection:
        ((latest,),) = connection.execute("SELECT max(until) FROM steps")
    assert latest <= time.time() + AFTER_STOP
    return steps_of(instance)


def effects(instance):
    return [note["event"] for note in instance.notes()]


@pytest.mark.parametrize(
    ("handler", "place", "done"),
    [
        (PLAIN, "killed", ["file"]),
        (COROUTINE, "killed at the end", ["comment", "file"]),
        # Nobody but the other side knows that it happened.
        (COROUTINE, "in comment", ["file"]),
    ],
    ids=["between two steps", "after the last step", "before the record of a step"],
)
def test_a_process_after_sigkill_does_only_the_steps_that_are_left(
    broker, queue_name, start, handler, place, done
):
    environment = {"FAULT": place}
    instance = start(broker.url, queue_table(queue_name), handler, environment=environment).ready()
    publish(broker.url, queue_name, [1])
    assert instance.wait() == -signal.SIGKILL
    assert steps_of(instance) == done
    before = effects(instance)
    instance.start().ready()
    (handled,) = instance.noted("handled", 1)
    assert handled["found"] == {"number": 17}
    left = [name for name in ("file", "comment") if name not in done]
    assert effects(instance) == [*before, *left, "handled"]
    assert instance.stop() == 0
    assert left_for_a_day(instance) == ["comment", "file"]


def test_a_deferred_message_skips_its_steps_in_the_next_process(broker, queue_name, start):
    environment = {"FAULT": "deferred"}
    extra = "[consumer_config.framework.recovery]\nhold_slots = 0"
    instance = start(
        broker.url, queue_table(queue_name), PLAIN, extra=extra, environment=environment
    ).ready()
    publish(broker.url, queue_name, [1])
    until(instance.store, "the row")
    instance.send(signal.SIGKILL)
    instance.wait()
    assert steps_of(instance) == ["file"]
    instance.start().ready()
    instance.noted("handled", 1)
    until(lambda: not instance.store(), "the row is gone")
    assert steps_of(instance) == []
    assert effects(instance) == ["file", "comment", "handled"]


def replay(instance, row):
    """Edit a row of a stopped instance, and run it again."""
    command = [str(FM_CONSUMER), "quarantine", "replay", str(row), "--edit"]
    command += ["--conf", str(instance.configuration), "--state-dir", str(instance.state)]
    directory = instance.configuration.parent
    environment = {
        "EDITOR": "sed -i s/1/2/",
        "FAULT": "none",
        "NOTES": str(directory / "notes"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(directory),
    }
    subprocess.run(command, env=environment, check=True, capture_output=True)


def test_a_replay_of_an_edited_message_by_a_command_skips_the_steps_that_are_done(
    broker, queue_name, start
):
    environment = {"FAULT": "quarantined"}
    instance = start(
        broker.url, queue_table(queue_name), PLAIN, extra=ONE_ATTEMPT, environment=environment
    ).ready()
    publish(broker.url, queue_name, [1])
    (row,) = until(instance.store, "the row")
    assert instance.stop() == 0
    assert steps_of(instance) == ["file"]
    replay(instance, row.id)
    assert effects(instance) == ["file", "comment", "handled"]
    assert [n["body"] for n in instance.notes("comment")] == [{"n": 2}]
    assert instance.store() == []
    assert steps_of(instance) == []


DRAINED = """
import threading
from consumer_framework import Consumer

class handler(Consumer):
    def handle(self, message):
        with self.once("slow") as step:
            step.run(self.slow, message)
        note("handled", message)

    def slow(self, message):
        note("begun", message)
        threading.Event().wait(1)
        note("ended", message)
"""


def test_a_stop_waits_for_the_step_and_its_record(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), DRAINED).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("begun", 1)
    assert instance.stop() == 0
    assert effects(instance) == ["begun", "ended", "handled"]
    assert broker.depth(queue_name)[0] == 0
    assert left_for_a_day(instance) == ["slow"]


IN_MEMORY = """
from consumer_framework import Consumer, Retry

class handler(Consumer):
    def handle(self, message):
        with self.once("file") as step:
            note("file" if not step.done else "skipped", message)
        if not step.done or not self.config.setdefault("failed", False):
            self.config["failed"] = True
            raise Retry(after=0)
        note("handled", message)
"""


def test_an_instance_without_a_store_remembers_steps_while_it_runs(broker, queue_name, start):
    extra = '[consumer_config.framework]\nstore = "memory"'
    instance = start(broker.url, queue_table(queue_name), IN_MEMORY, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("handled", 1)
    assert effects(instance) == ["file", "skipped", "handled"]
    assert not (instance.state / "store.sqlite3").exists()


RELOADED = """
from consumer_framework import Consumer

class handler(Consumer):
    def handle(self, message):
        with self.once("slow") as step:
            step.run(self.slow, message)
        note("handled", message, version=self.config["version"])

    def slow(self, message):
        note("begun", message)
        end = time.monotonic() + 20
        while not os.path.exists(os.environ["NOTES"] + ".go") and time.monotonic() < end:
            time.sleep(0.02)
"""


def test_a_step_goes_on_to_its_record_while_a_reload_replaces_the_handler(
    broker, queue_name, start
):
    extra = "[consumer_config]\nversion = 1"
    instance = start(broker.url, queue_table(queue_name), RELOADED, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("begun", 1)
    text = instance.configuration.read_text()
    instance.configuration.write_text(text.replace("version = 1", "version = 2"))
    instance.send(signal.SIGHUP)
    until(lambda: instance.told("RELOADING=1"), "the reload")
    (instance.configuration.parent / "notes.go").touch()
    publish(broker.url, queue_name, [2])
    instance.noted("handled", 2)
    assert [n["version"] for n in instance.notes("handled")] == [1, 2]
    assert len(instance.notes("begun")) == 2
