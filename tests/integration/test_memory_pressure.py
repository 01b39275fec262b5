# SPDX-License-Identifier: GPL-2.0-or-later
"""An instance takes fewer messages while memory is short, and loses none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .instance import publish, queue_table, until

HANDLER = """
four = threading.Barrier(4)

def handler(message):
    if message.body["n"] >= 200:
        # Four of them have to run at the same time.
        four.wait(20)
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    note("ran", message)
"""
FRAMEWORK = "[consumer_config.framework]\nslots = 4\n"


@pytest.fixture
def environment(tmp_path):
    fifo = tmp_path / "pressure"
    os.mkfifo(fifo)
    return {"MEMORY_PRESSURE_WATCH": str(fifo), "GATE": str(tmp_path / "gate")}


def test_slots_and_prefetch_shrink_and_grow_again_and_each_message_runs_once(
    broker, queue_name, start, environment
):
    def ready():
        return broker.depth(queue_name)[0]

    table = queue_table(queue_name)
    instance = start(broker.url, table, HANDLER, extra=FRAMEWORK, environment=environment).ready()
    publish(broker.url, queue_name, range(200))
    until(lambda: ready() == 200 - 108, f"4 run, and 104 were sent ahead\n{instance.log}")
    Path(environment["MEMORY_PRESSURE_WATCH"]).write_bytes(b"x")
    until(lambda: instance.told("memory is short: 2 of 4 slots"), f"half\n{instance.log}")
    until(lambda: ready() == 200 - 54, "4 run still, and with them half as many are out")
    Path(environment["GATE"]).touch()
    until(lambda: "memory suffices: 4 of 4 slots" in instance.log, f"all\n{instance.log}", 60)
    publish(broker.url, queue_name, range(200, 204))
    instance.noted("ran", 204, seconds=60)
    until(lambda: broker.depth(queue_name) == (0, 1), "all are settled")
    assert sorted(int(note["id"]) for note in instance.notes("ran")) == list(range(204))
    capacity = "2 of 4 slots from now on, and 54 of 108 messages ahead; 104 given back"
    assert f"memory is short: {capacity}" in instance.log
    assert instance.log.count("messages ahead") == 2
    assert instance.stop() == 0
    assert "memory is short" not in instance.notifications[-1]


def test_a_file_that_cannot_be_watched_is_logged_and_stops_nothing(
    broker, queue_name, start, tmp_path
):
    instance = start(
        broker.url,
        queue_table(queue_name),
        HANDLER,
        environment={"MEMORY_PRESSURE_WATCH": str(tmp_path / "nothing"), "GATE": "/"},
    ).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("ran", 1)
    assert "memory pressure is not watched for ($MEMORY_PRESSURE_WATCH)" in instance.log
    assert instance.stop() == 0
