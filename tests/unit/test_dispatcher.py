# SPDX-License-Identifier: GPL-2.0-or-later
"""The dispatcher: its tasks, and an instance that goes on whatever fails, waits or is cut."""

import asyncio
from unittest.mock import patch

import pytest
from fedora_messaging.message import Message

from consumer_framework import Defer, DependencyFault, Quarantine
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.disposition import Ack
from consumer_framework.core.errors import StoreError
from consumer_framework.core.gate import Gate
from consumer_framework.core.intake import Intake
from consumer_framework.runtime.task_pool import HAND_OVER, TaskPool
from consumer_framework.testing import Harness, make_delivery

PATIENCE = 30


def play(scenario):
    """Run *scenario*; a scenario that would wait for ever fails."""
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


def numbered(tag):
    return make_delivery(delivery_tag=tag, message_id=str(tag))


async def turns():
    for _ in range(300):
        await asyncio.sleep(0)


# The tasks that take deliveries.


class Work:
    """Deliveries that are processed when they are let go."""

    def __init__(self):
        self.gate = Gate()
        self.intake = Intake(SystemClock(), gate=self.gate)
        self.tasks = []
        self.now: set[int] = set()
        self.is_quick = False
        self._permits = asyncio.Semaphore(0)
        self.pool = TaskPool(self.intake.take, self._process, self.gate)

    def start(self, size):
        self.pool.start(size, self.tasks.append)

    def put(self, numbers):
        for number in numbers:
            self.intake.put(numbered(number))

    async def _process(self, delivery):
        self.now.add(delivery.delivery_tag)
        await self._permits.acquire()
        self.now.remove(delivery.delivery_tag)
        return self.is_quick

    async def let_go(self, count):
        for _ in range(count):
            self._permits.release()
        await turns()

    async def finish(self):
        self.gate.close()
        await self.pool.finish()
        assert all(task.done() for task in self.tasks)


def test_more_and_fewer_deliveries_are_taken_at_once():
    async def scenario():
        work = Work()
        work.start(2)
        work.put(range(20))
        await turns()
        assert work.now == {0, 1}
        work.pool.resize(5)
        await turns()
        assert work.now == {0, 1, 2, 3, 4}
        assert work.pool.busy == 5
        work.pool.resize(1)
        await work.let_go(4)
        assert len(work.now) == 1
        await work.let_go(1)
        assert len(work.now) == 1
        work.pool.resize(3)
        await turns()
        assert len(work.now) == 3
        await work.let_go(20)
        assert work.pool.busy == 0
        await work.finish()
        assert len(work.tasks) == 2 + HAND_OVER + 3 + 2

    play(scenario())


def test_a_change_that_is_taken_back_makes_no_new_tasks():
    async def scenario():
        work = Work()
        work.start(4)
        for size in (1, 4, 2, 4):
            work.pool.resize(size)
        work.put(range(8))
        await turns()
        assert len(work.now) == 4
        assert len(work.tasks) == 4 + HAND_OVER
        await work.let_go(8)
        await work.finish()

    play(scenario())


def test_a_quick_handler_has_its_next_deliveries_ready():
    async def scenario():
        work = Work()
        work.is_quick = True
        work.start(1)
        work.put(range(100))
        await work.let_go(1)
        assert len(work.now) == 1 + HAND_OVER
        work.is_quick = False
        await work.let_go(1 + HAND_OVER)
        assert len(work.now) == 1
        await work.let_go(100)
        await work.finish()

    play(scenario())


# Failures, cuts and waits.


def message(name, key=""):
    return Message(topic="org.example.test", body={"name": name, "key": key})


class Runs:
    """A handler that remembers its runs, and fails for the given names."""

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


# Pauses, replays and orders, with everything around them.


def numbered_message(n=1):
    return Message(topic="org.example.test", body={"n": n})


def test_messages_that_an_open_breaker_takes_back_do_not_close_it():
    ran = []

    async def handle(message):
        ran.append(message.body["n"])
        await asyncio.sleep(1)
        raise DependencyFault("the database is gone")

    settings = {"recovery": {"breaker": {"consecutive": 1, "probe": ["30s"]}}}
    with Harness(handle, settings=settings) as harness:
        for n in range(5):
            harness.deliver(numbered_message(n))
        harness.advance(1.5)
        assert "the database is gone" in harness.paused
        harness.advance(20)
        assert "the database is gone" in harness.paused
        assert ran == [0]
        assert len(harness.queued) == 4
        harness.advance(10)
        assert ran == [0, 0], "the probe"


def test_messages_that_a_pause_takes_back_come_again_in_order():
    ran: list[int] = []

    async def handle(message):
        ran.append(message.body["n"])
        await asyncio.sleep(1)
        if len(ran) == 1:
            raise DependencyFault("the database is gone")

    settings = {"recovery": {"breaker": {"consecutive": 1, "probe": ["30s"]}}}
    with Harness(handle, settings=settings) as harness:
        messages = [numbered_message(n) for n in range(5)]
        for one in messages:
            harness.deliver(one)
        harness.advance("2m")
        assert harness.paused == ""
        assert ran == [0, 0, 1, 2, 3, 4]
        assert harness.acked == messages


def test_a_replay_that_is_deferred_while_the_disk_is_full_runs_again_once():
    ran = []

    async def handle(message):
        ran.append(harness.now)
        if len(ran) == 1:
            raise Quarantine("poison")
        if len(ran) == 2:
            raise Defer(harness.now + 1)
        await asyncio.sleep(1)

    with Harness(handle, settings={"slots": 2}) as harness:
        one = numbered_message()
        harness.deliver(one)
        harness.store.error = StoreError("no space left on device")
        assert harness.replay(one) is None
        harness.advance(60)
        harness.store.error = None
        harness.advance(60)
        assert harness.acked == [one]
        assert len(ran) == 3


def test_with_strict_ordering_a_dependency_that_works_again_lets_the_first_message_go_on():
    """Also where that fails for another reason then."""
    plan = [DependencyFault("the database is gone"), ValueError("once"), None]
    ran = []

    def handle(message):
        ran.append(message.body["n"])
        error = plan.pop(0) if plan else None
        if error is not None:
            raise error

    recovery = {
        "hold_slots": 0,
        "immediate": 0,
        "delays": ["10s"],
        "breaker": {"consecutive": 1, "probe": ["30s"]},
    }
    with Harness(handle, settings={"ordering": "strict", "recovery": recovery}) as harness:
        messages = [numbered_message(n) for n in range(3)]
        for one in messages:
            harness.deliver(one)
        assert "the database is gone" in harness.paused
        assert "nothing may overtake it" in harness.paused
        harness.advance(31)
        assert ran == [0, 0]
        assert "the database is gone" not in harness.paused
        assert "nothing may overtake it" in harness.paused
        harness.advance(15)
        assert ran == [0, 0, 0, 1, 2]
        assert harness.paused == ""
        assert harness.acked == messages


def test_a_probe_that_never_saw_the_dependency_is_followed_by_another():
    """It was deferred, and is no valid message any more where it comes back."""
    plan: list[BaseException] = [DependencyFault("gone")]

    def handle(message):
        if plan:
            raise plan.pop()

    recovery = {"hold_slots": 0, "breaker": {"consecutive": 1, "probe": ["30s"]}}
    with Harness(handle, settings={"recovery": recovery}) as harness:
        first, second = numbered_message(1), numbered_message(2)
        harness.deliver(first)
        harness.deliver(second)
        assert harness.queued == [second]
        with patch("consumer_framework.adapters.codec.decode", side_effect=ValueError("schema")):
            harness.advance(31)
        assert harness.quarantined == [first]
        assert harness.paused
        harness.advance(31)
        assert harness.paused == ""
        assert harness.acked == [second]


def test_messages_that_wait_behind_one_that_goes_back_go_back_behind_it():
    ran = []

    async def handle(message):
        ran.append(message.body["n"])
        await asyncio.sleep(3)
        if len(ran) == 1:
            raise ValueError("once")

    recovery = {"immediate": 0, "delays": [], "on_exhausted": "requeue"}
    settings = {"ordering": "key", "ordering_key": "topic", "recovery": recovery, "slots": 2}
    with Harness(handle, settings=settings) as harness:
        messages = [numbered_message(n) for n in range(3)]
        for one in messages:
            harness.deliver(one)
        harness.advance(30)
        assert ran == [0, 0, 1, 2]
        assert harness.acked == messages
