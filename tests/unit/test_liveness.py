# SPDX-License-Identifier: GPL-2.0-or-later
"""An instance keeps going: a message fails or waits, a connection is cut, the store breaks."""

import asyncio

import pytest
from fedora_messaging.message import Message

from consumer_framework.core.disposition import Ack
from consumer_framework.core.errors import StoreError
from consumer_framework.runtime.dispatcher import HAND_OVER
from consumer_framework.testing import Harness


def message(name, key=""):
    return Message(topic="org.example.test", body={"name": name, "key": key})


class Runs:
    """A handler that remembers what it ran, and fails for the names that it is told."""

    def __init__(self, *failing):
        self.names = []
        self.failing = set(failing)

    async def __call__(self, message):
        name = message.body["name"]
        self.names.append(name)
        if name == "busy":
            await asyncio.sleep(100)
        if name in self.failing:
            raise ValueError(name)

    @property
    def handler(self):
        async def handler(message):
            await self(message)

        return handler


def test_strict_ordering_pauses_while_its_store_cannot_be_read_and_goes_on_by_itself(monkeypatch):
    runs = Runs("bad")
    recovery = {"immediate": 0, "delays": ["10s"], "hold_slots": 0}
    with Harness(runs.handler, settings={"ordering": "strict", "recovery": recovery}) as harness:
        harness.deliver(message("bad"))

        def unreadable(*_):
            raise StoreError("/state/store.sqlite3: disk I/O error")

        monkeypatch.setattr(harness.store, "is_blocked", unreadable)
        harness.deliver(message("next"))
        harness.advance("1m")
        assert "disk I/O error" in harness.paused
        assert "next" not in runs.names
        runs.failing.clear()
        monkeypatch.undo()
        harness.advance("1m")
        assert harness.paused == ""
        assert runs.names[-1] == "next"
        assert isinstance(harness.deliver(message("last")), Ack)


def test_a_retry_that_waits_for_a_slot_when_its_connection_is_cut_keeps_its_attempts():
    runs = Runs("bad")
    recovery = {"immediate": 0, "delays": ["10s", "10s", "10s"]}
    with Harness(runs.handler, settings={"recovery": recovery}) as harness:
        bad = message("bad")
        harness.deliver(bad)
        for _ in range(8):
            harness.deliver(message("busy"))
            for _ in range(HAND_OVER + 2):
                harness.deliver(message("good"))
            harness.advance("20s")  # it is due, and waits for the slot
            harness.cut()
            harness.advance("200s")
        assert runs.names.count("bad") == 4
        assert harness.quarantined == [bad]


def in_order_of_key(names, prefix):
    """The names that begin with *prefix*, each at its last run."""
    last = {name: at for at, name in enumerate(names) if name.startswith(prefix)}
    return sorted(last, key=lambda name: last[name])


KEYED = {"ordering": "key", "ordering_key": "body:key"}


@pytest.mark.parametrize("disturbance", ["nothing", "cut", "crash"])
def test_a_failing_message_and_its_followers_leave_the_read_ahead_to_other_keys(disturbance):
    runs = Runs("a0")
    with Harness(runs.handler, settings=KEYED) as harness:
        mine = [message(f"a{n}", "a") for n in range(260)]
        for each in mine:
            harness.deliver(each)
        for n in range(50):
            harness.deliver(message(f"other{n}", f"key{n}"))
        assert sum(name.startswith("other") for name in runs.names) == 50, "none of them waits"
        assert "a1" not in runs.names
        {"cut": harness.cut, "crash": harness.crash}.get(disturbance, lambda: None)()
        runs.failing.clear()
        harness.advance("10m")
        assert in_order_of_key(runs.names, "a") == [f"a{n}" for n in range(260)]
        assert all(len(harness.runs(each)) == 1 for each in mine[1:])


def test_followers_of_a_quarantined_message_are_quarantined_behind_it_in_their_order():
    runs = Runs("a0")
    with Harness(runs.handler, settings=KEYED) as harness:
        mine = [message(f"a{n}", "a") for n in range(300)]
        for each in mine:
            harness.deliver(each)
        harness.advance("10m")
        assert set(runs.names) == {"a0"}
        assert harness.quarantined == mine


def test_a_few_followers_of_a_failing_message_wait_in_memory():
    runs = Runs("a0")
    with Harness(runs.handler, settings=KEYED) as harness:
        for n in range(10):
            harness.deliver(message(f"a{n}", "a"))
        assert harness.store.deferred == []
        runs.failing.clear()
        harness.advance("10m")
        assert in_order_of_key(runs.names, "a") == [f"a{n}" for n in range(10)]


def test_a_deadly_message_among_several_slots_takes_no_innocent_one_into_quarantine():
    async def handler(message):
        await asyncio.sleep(5)

    with Harness(handler, settings={"slots": 8}) as harness:
        innocent = [message(f"good{n}") for n in range(7)]
        deadly = message("deadly")
        for each in innocent:
            harness.deliver(each)
        harness.deliver(deadly, kills=10)
        harness.advance("10m")
        assert harness.quarantined == [deadly]
        assert sorted(m.id for m in harness.acked) == sorted(m.id for m in innocent)


@pytest.mark.parametrize("seconds", [20, 35])
def test_no_delivery_stays_unacknowledged_for_longer_than_the_ack_timeout(seconds, monkeypatch):
    async def handler(message):
        await asyncio.sleep(seconds)

    ages = []
    settings = {"recovery": {"ack_timeout": "60s"}}
    with Harness(handler, settings=settings) as harness:
        queue = harness._queue
        settle = queue._settle

        def settled(delivery):
            ages.append(harness._instance.time.monotonic() - delivery.arrived_at)
            return settle(delivery)

        monkeypatch.setattr(queue, "_settle", settled)
        for n in range(12):
            harness.deliver(message(str(n)))
        harness.advance("20m")
        assert len(harness.acked) == 12
        assert max(ages) < 60
