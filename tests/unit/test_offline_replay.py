# SPDX-License-Identifier: GPL-2.0-or-later
"""A replay of a stopped instance publishes what its handler publishes."""

import asyncio
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fedora_messaging.message import Message

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.publishing.message import outgoing
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.testing import make_delivery

HANDLER = """
from fedora_messaging import api
from fedora_messaging.message import Message
from consumer_framework import publishing


def handle(message):
    publishing.publish(Message(topic="first"))
    api.publish(Message(topic="second"))
    if message.body["fails"]:
        raise ValueError("broken")
"""
CONFIGURATION = """
amqp_url = "amqp://guest:guest@127.0.0.1:1/"
callback = "published_in_replay:handle"
[queues.sample]
durable = false
auto_delete = true
exclusive = true
arguments = {}
[[bindings]]
queue = "sample"
exchange = "amq.topic"
routing_keys = ["#"]
[qos]
prefetch_count = 1
prefetch_size = 0
"""


def quarantine(state: Path, *, fails: bool) -> None:
    message = outgoing(Message(topic="a", body={"fails": fails}), exchange="e", now=0)
    delivery = make_delivery(
        queue="sample", message_id=message.id, body=message.body, headers=message.headers
    )
    with closing(Store.open(state, limits=Limits())) as store:
        asyncio.run(store.quarantine(delivery, "poison"))


def replay(tmp_path: Path, state: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "published_in_replay.py").write_text(HANDLER)
    file = tmp_path / "sample.toml"
    file.write_text(CONFIGURATION)
    command = [str(Path(sys.executable).parent / "fm-consumer"), "quarantine", "replay", "--all"]
    return subprocess.run(
        [*command, "--conf", str(file), "--state-dir", str(state)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )


@pytest.mark.parametrize(("fails", "topics"), [(False, ["first", "second"]), (True, [])])
def test_a_replay_of_a_stopped_instance_leaves_its_messages_in_the_outbox(tmp_path, fails, topics):
    state = tmp_path / "state"
    state.mkdir()
    quarantine(state, fails=fails)
    done = replay(tmp_path, state)
    assert done.returncode == int(fails), done.stderr
    found: list[str] = []
    if (file := state / "outbox.sqlite3").exists():
        store = OutboxStore.connect(f"sqlite:///{file}")
        found = [row.message.topic for row in store.rows()]
        store.close()
    assert found == topics


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may give files away")
def test_an_outbox_that_root_makes_belongs_to_the_owner_of_its_directory(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    quarantine(state, fails=False)
    for place in (state, *state.iterdir()):
        os.chown(place, 12345, 12345)
    assert replay(tmp_path, state).returncode == 0
    assert {(file.stat().st_uid, file.stat().st_gid) for file in state.iterdir()} == {
        (12345, 12345)
    }
