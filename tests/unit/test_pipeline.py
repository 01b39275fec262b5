# SPDX-License-Identifier: GPL-2.0-or-later
"""The delivery path, from arrival to settle."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from consumer_framework.core import disposition as to
from consumer_framework.core import settler
from consumer_framework.core.delivery import (
    Crashed,
    Failed,
    SettledBefore,
    Skipped,
    Succeeded,
    Undecodable,
)
from consumer_framework.core.errors import (
    Defer,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Retry,
    StoreError,
)
from consumer_framework.core.intake import Holds
from consumer_framework.core.memory import MEMORY_SECONDS, Histories, LostAcks, UnsettledRuns
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.recovery import BEHIND, OnExhausted, Policy
from consumer_framework.core.settler import Settler
from consumer_framework.testing import (
    FakeAcknowledger,
    FakeClock,
    FakeObserver,
    make_delivery,
)
from consumer_framework.testing.fake_store import FakeStore
from consumer_framework.testing.fakes import FakeFlightRecorder

# Gives failed messages back, as upstream's Nack does.
REQUEUE = Policy(schedule=(), on_exhausted=OnExhausted.REQUEUE)


class Runner:
    """Runs nothing: each run ends as the test says."""

    is_quick = False

    def __init__(self, decode, flight):
        self.runs = []
        self._decode = decode
        self._flight = flight

    async def run(self, delivery):
        try:
            message = self._decode(delivery)
        except Exception as error:  # noqa: BLE001 -- as the executor
            return Undecodable(error)
        outcome = asyncio.get_running_loop().create_future()
        self.runs.append((message, outcome))
        place = self._flight.took_off(delivery)
        try:
            return await outcome
        finally:
            self._flight.landed(place)

    def stop(self):
        raise AssertionError("the host stops, and the pipeline does not")

    def withdraw(self, which=lambda _delivery: True):
        raise AssertionError("the host withdraws, and the pipeline does not")

    def end(self, outcome, number=-1):
        self.runs[number][1].set_result(outcome)

    @property
    def messages(self):
        return [message for message, _ in self.runs]


class Path:
    """A pipeline between fakes."""

    def __init__(self, decode=lambda delivery: delivery.body, policy=Policy()):  # noqa: B008
        self.acknowledger = FakeAcknowledger()
        self.store = FakeStore()
        self.flight = FakeFlightRecorder(places=64)
        self.runner = Runner(decode, self.flight)
        self.observer = FakeObserver()
        self.clock = FakeClock()
        self.troubles: list[str] = []
        self.done: list[tuple[Any, bool]] = []
        self.settler = Settler(
            self.acknowledger,
            self.store,
            self.flight,
            self.observer,
            Holds(4, self.clock),
            Histories(),
            UnsettledRuns(self.clock),
            LostAcks(self.clock),
            store_failed=self.troubles.append,
            store_works=lambda: self.troubles.append("works"),
            done=lambda what, told: self.done.append((what.delivery, told)),
            clock=self.clock,
            spawn=asyncio.create_task,
        )
        self.pipeline = Pipeline(
            handler=self.runner,
            policy=policy,
            store=self.store,
            observer=self.observer,
            clock=self.clock,
            chance=lambda: 0.5,
            settler=self.settler,
        )

    async def process(self, delivery):
        """Return the disposition of *delivery* once all writes are done."""
        _, decision = await self.pipeline.process(delivery)
        await self.commits()
        return decision.disposition

    async def take(self, delivery):
        """A slot takes *delivery*; the task ends when it is settled."""
        task = asyncio.create_task(self.process(delivery))
        await self.turns()
        return task

    async def turns(self):
        for _ in range(5):
            await asyncio.sleep(0)

    def cut(self):
        """The channel goes, another one comes; returns its generation."""
        self.acknowledger.close(self.acknowledger._latest)
        return self.acknowledger.open()

    async def retries(self):
        """Let a commit be tried again, several times."""
        for _ in range(3):
            self.clock.advance(settler.COMMIT_RETRY)
            for _ in range(5):
                await asyncio.sleep(0)

    async def commits(self):
        """Wait until no commit is under way."""
        waiting = asyncio.create_task(self.settler.commits())
        await self.turns()
        while not waiting.done():
            self.clock.advance(settler.REQUEUE_PAUSE)
            await self.turns()
        await waiting

    @property
    def last_settle(self):
        """The only settle, in short."""
        ((delivery, outcome, decision, is_void),) = self.observer.settled
        return delivery, outcome, decision.disposition, is_void

    @property
    def told(self):
        """The settles in order, each with its generation and tag."""
        return [(d.generation, d.delivery_tag, how) for d, how in self.acknowledger.told]


def play(scenario):
    # A slot that waits for ever fails its test.
    asyncio.run(asyncio.wait_for(scenario, 20))


SETTLES = [
    (Succeeded(), to.Ack(), "ack"),
    (Skipped("not ours"), to.Ack(), "ack"),
    (Failed(Retry("busy")), to.Hold(0.0, "Retry: busy"), None),
    (Failed(Defer(5000, "later")), to.Defer(5000.0, "Defer: later"), "ack"),
    (Failed(Drop("old")), to.Reject("old"), "reject"),
    (Failed(Quarantine("odd")), to.Quarantine("odd"), "ack"),
    (Failed(DependencyFault("the database")), to.Hold(30.0, "the database"), None),
    (Failed(ValueError("boom")), to.Hold(0.0, "ValueError: boom"), None),
    (Failed(Halt(4, "done")), to.Halt(4, False, "done"), "ack"),
    (Failed(Halt(4, "done", requeue=True)), to.Halt(4, True, "done"), "give_back"),
]


def as_told(delivery, told):
    """Return the calls of an acknowledger that settled only *delivery*."""
    return [] if told is None else [(delivery.generation, delivery.delivery_tag, told)]


def kept(path):
    """Return the numbers of held, deferred and quarantined deliveries."""
    store = path.store
    return len(path.settler.holds), len(store.deferred), len(store.quarantined)


def kept_by(disposition):
    """Return the result of :func:`kept` after one such disposition."""
    return tuple(int(isinstance(disposition, k)) for k in (to.Hold, to.Defer, to.Quarantine))


@pytest.mark.parametrize(("outcome", "disposition", "told"), SETTLES)
def test_each_outcome_is_settled_once_and_recorded(outcome, disposition, told):
    async def scenario():
        path = Path()
        delivery = make_delivery(body=b"a body")
        task = await path.take(delivery)
        assert path.observer.runs == []
        assert path.acknowledger.told == [], "nothing is settled while the handler runs"
        assert list(path.flight.in_flight.values()) == [delivery]
        path.runner.end(outcome)
        assert await task == disposition
        assert path.observer.runs == [delivery]
        assert path.runner.messages == [b"a body"]
        assert path.told == as_told(delivery, told)
        assert kept(path) == kept_by(disposition)
        assert path.last_settle == (delivery, outcome, disposition, False)
        assert path.done == [(delivery, True)]
        assert path.flight.in_flight == {}

    play(scenario())


@pytest.mark.parametrize(
    "error", [ValueError("no JSON"), LookupError("unknown encoding: gzip"), ZeroDivisionError("x")]
)
def test_bytes_that_are_no_message_reach_no_handler_and_are_quarantined(error):
    """Any error of a decoder, a codec or a schema class fails the delivery and not the slot."""

    async def scenario():
        def decode(_delivery):
            raise error

        path = Path(decode)
        delivery = make_delivery(body=b"\xff")
        reason = f"no valid message: {type(error).__name__}: {error}"
        assert await path.process(delivery) == to.Quarantine(reason)
        assert path.runner.runs == []
        assert path.flight.in_flight == {}
        assert path.acknowledger.of(delivery) == "ack"
        ((stored, why),) = path.store.quarantined
        assert (stored.body, why) == (b"\xff", reason)
        (attempt,) = stored.history.attempts
        assert "decode" in attempt.traceback
        assert path.observer.settled[0].outcome == Undecodable(error)

    play(scenario())


@pytest.mark.parametrize("outcome", [Failed(Quarantine("odd")), Failed(Defer(5000))])
def test_nothing_is_acknowledged_before_the_store_has_it(outcome):
    async def scenario():
        path = Path()
        path.store.error = StoreError("no space left on device")
        await end_at_once(path, make_delivery(), outcome)
        await path.retries()
        assert path.acknowledger.told == []
        assert path.observer.settled == []
        assert set(path.troubles) == {"no space left on device"}
        await end_at_once(path, make_delivery(delivery_tag=2, message_id="2"), Succeeded())
        assert path.told == [(1, 2, "ack")], "the slot does not wait for the disk"
        path.store.error = None
        path.clock.advance(settler.COMMIT_RETRY)
        await until(lambda: len(path.troubles) > 1 and path.troubles[-1] == "works")
        assert path.told == [(1, 2, "ack"), (1, 1, "ack")]
        assert path.troubles.count("works") == 1
        assert sum(kept(path)) == 1

    play(scenario())


def test_a_channel_that_goes_while_the_store_fails_ends_the_attempts_to_write():
    async def scenario():
        path = Path()
        path.store.error = StoreError("no space left on device")
        delivery = make_delivery()
        _, decision = await end_at_once(path, delivery, Failed(Quarantine("odd")))
        await path.retries()
        generation = path.cut()
        path.store.error = None
        path.clock.advance(settler.COMMIT_RETRY)
        await until(lambda: path.done)
        assert path.store.quarantined == [], "the broker has the message again"
        assert path.done == [(delivery, False)]
        assert path.troubles[-1] == "works"
        again = make_delivery(generation=generation, redelivered=True)
        assert await path.process(again) == decision.disposition
        assert len(path.runner.runs) == 1
        assert kept(path) == (0, 0, 1)

    play(scenario())


def test_a_drain_waits_for_no_commit_that_the_disk_does_not_take():
    async def scenario():
        path = Path()
        path.store.error = StoreError("no space left on device")
        await end_at_once(path, make_delivery(), Failed(Quarantine("odd")))
        await path.turns()
        await path.commits()
        # By name, before the channel closes: that would count against a delivery-limit.
        assert path.told == [(1, 1, "give_back")]
        assert path.store.quarantined == []

    play(scenario())


async def until(condition):
    while not condition():  # noqa: ASYNC110 -- nothing tells the test
        await asyncio.sleep(0.01)


async def end_at_once(path, delivery, outcome):
    """The result of the pipeline, before anything is written."""
    task = asyncio.create_task(path.pipeline.process(delivery))
    await path.turns()
    path.runner.end(outcome)
    return await task


@pytest.mark.parametrize("outcome", [Failed(Quarantine("odd")), Failed(Defer(5000))])
def test_a_redelivery_that_the_store_has_already_is_acknowledged_and_does_not_run(outcome):
    """The process died between the commit and the ack; another one gets the message."""

    async def scenario():
        before = Path()
        await end_at_once(before, make_delivery(), outcome)
        await before.commits()
        after = Path()
        after.store = before.store
        after.pipeline = replace(after.pipeline, store=before.store)
        again = make_delivery(redelivered=True)
        assert await after.process(again) == to.Ack()
        assert after.runner.runs == []
        assert after.told == [(1, 1, "ack")]
        assert after.last_settle == (again, SettledBefore(), to.Ack(), False)
        assert kept(before) == kept(after)

    play(scenario())


def test_a_message_that_is_published_again_runs_although_the_store_has_one_like_it():
    async def scenario():
        path = Path()
        await end_at_once(path, make_delivery(), Failed(Quarantine("odd")))
        await path.commits()
        await path.take(make_delivery(delivery_tag=2))
        assert len(path.runner.runs) == 2

    play(scenario())


@pytest.mark.parametrize(("crashes", "runs"), [(1, 1), (2, 0), (3, 0)])
def test_a_message_that_killed_the_process_too_often_is_quarantined_before_it_runs(crashes, runs):
    async def scenario():
        flight = FakeFlightRecorder(crashed={("queue", "1", "a.topic", b"{}"): crashes})
        path = Path()
        path.settler.flight = flight
        task = await path.take(make_delivery(redelivered=True))
        assert len(path.runner.runs) == runs
        if not runs:
            assert isinstance(await task, to.Quarantine)
            assert path.told == [(1, 1, "ack")]
            assert kept(path) == (0, 0, 1)
            assert path.observer.settled[0].outcome == Crashed(crashes)
            assert flight.crashes_of(make_delivery()) == 0, "a replay begins anew"

    play(scenario())


def test_a_row_of_the_store_is_settled_in_the_store_and_not_with_the_broker():
    async def scenario():
        path = Path()
        await end_at_once(path, make_delivery(), Failed(Defer(5000)))
        await path.commits()
        assert path.told == [(1, 1, "ack")]
        (due,) = path.store.due(5000, 1)
        task = await path.take(due)
        assert len(path.runner.runs) == 2, "the row itself does not stand in its way"
        path.runner.end(Succeeded())
        assert await task == to.Ack()
        assert path.told == [(1, 1, "ack")]
        assert kept(path) == (0, 0, 0)
        assert path.done[-1] == (due, True)

    play(scenario())


@pytest.mark.parametrize(("outcome", "disposition", "told"), SETTLES)
def test_a_redelivery_during_the_run_is_settled_with_its_outcome(outcome, disposition, told):
    async def scenario():
        path = Path()
        first = make_delivery()
        original = await path.take(first)
        again = make_delivery(generation=path.cut(), redelivered=True)
        redelivery = await path.take(again)
        assert len(path.runner.runs) == 1, "the handler does not run on it beside itself"
        path.runner.end(outcome)
        assert await original == await redelivery == disposition
        assert path.told == as_told(again, told)
        assert kept(path) == kept_by(disposition)
        assert sorted(s.is_void for s in path.observer.settled) == [False, True]
        assert path.observer.runs == [first]

    play(scenario())


@pytest.mark.parametrize(("outcome", "disposition", "told"), SETTLES)
def test_a_redelivery_after_the_run_is_settled_with_its_outcome(outcome, disposition, told):
    async def scenario():
        path = Path()
        original = await path.take(make_delivery())
        generation = path.cut()
        path.runner.end(outcome)
        assert await original == disposition
        assert path.acknowledger.told == []
        assert kept(path) == (0, 0, 0)
        again = make_delivery(generation=generation, redelivered=True)
        assert await path.process(again) == disposition
        assert path.told == as_told(again, told)
        assert kept(path) == kept_by(disposition)
        assert len(path.runner.runs) == 1

    play(scenario())


def test_a_failure_counts_once_after_several_void_settles():
    async def scenario():
        path = Path()
        await end_at_once(path, make_delivery(), Failed(ValueError("boom")))
        (held,) = path.settler.holds.due(0)
        assert len(held.history.attempts) == 1
        task = await path.take(held)
        generation = path.cut()
        path.runner.end(Failed(ValueError("boom")))
        await task
        again = make_delivery(generation=generation, redelivered=True)
        assert await path.process(again) == to.Hold(10.0, "ValueError: boom")
        (held,) = path.settler.holds.due(10)
        assert len(held.history.attempts) == 2
        assert held.generation == generation

    play(scenario())


def test_a_run_answers_for_the_last_of_several_cuts():
    async def scenario():
        path = Path()
        tasks = [await path.take(make_delivery())]
        for _ in range(3):
            again = make_delivery(generation=path.cut(), redelivered=True)
            tasks.append(await path.take(again))
        path.runner.end(Succeeded())
        await asyncio.gather(*tasks)
        assert path.acknowledger.told == [(again, "ack")]
        assert [s.is_void for s in path.observer.settled].count(False) == 1
        assert len(path.runner.runs) == 1

    play(scenario())


def test_a_run_that_was_settled_answers_for_nothing_any_more():
    async def scenario():
        path = Path(policy=REQUEUE)
        task = await path.take(make_delivery())
        path.runner.end(Failed(Retry()))
        await task
        await path.commits()
        assert path.told == [(1, 1, "requeue")]
        await path.take(make_delivery(delivery_tag=2, redelivered=True))
        await path.take(make_delivery(generation=path.cut(), redelivered=True))
        # The second one claims the run that the first one started.
        assert len(path.runner.runs) == 2

    play(scenario())


@pytest.mark.parametrize(
    "change",
    [
        {"redelivered": False},
        {"message_id": "2"},
        {"message_id": None},
        {"body": b"[]"},
        {"queue": "another"},
        {"routing_key": "another.topic"},
        {"generation": 1, "delivery_tag": 2},
    ],
)
def test_a_delivery_that_is_not_surely_the_same_message_runs(change):
    async def scenario():
        path = Path()
        await path.take(make_delivery())
        path.cut()
        await path.take(make_delivery(**{"generation": 2, "redelivered": True, **change}))
        assert len(path.runner.runs) == 2

    play(scenario())


def test_messages_without_an_id_are_recognised_by_their_bytes():
    async def scenario():
        path = Path()
        await path.take(make_delivery(message_id=None))
        again = {"generation": path.cut(), "redelivered": True, "message_id": None}
        await path.take(make_delivery(**again))
        assert len(path.runner.runs) == 1
        await path.take(make_delivery(**again, delivery_tag=2, body=b"[]"))
        assert len(path.runner.runs) == 2

    play(scenario())


def test_of_two_equal_messages_each_has_a_run_of_its_own():
    async def scenario():
        path = Path()
        await path.take(make_delivery())
        again = {"generation": path.cut(), "redelivered": True}
        await path.take(make_delivery(**again, delivery_tag=1))
        await path.take(make_delivery(**again, delivery_tag=2))
        assert len(path.runner.runs) == 2

    play(scenario())


@pytest.mark.parametrize(("seconds", "runs"), [(MEMORY_SECONDS - 1, 1), (MEMORY_SECONDS + 1, 2)])
def test_an_ended_run_is_remembered_for_a_while(seconds, runs):
    async def scenario():
        path = Path()
        task = await path.take(make_delivery())
        generation = path.cut()
        path.runner.end(Succeeded())
        await task
        path.clock.advance(seconds)
        await path.take(make_delivery(generation=generation, redelivered=True))
        assert len(path.runner.runs) == runs

    play(scenario())


def test_a_held_delivery_runs_again_and_no_run_of_the_past_answers_for_it():
    async def scenario():
        path = Path()
        await end_at_once(path, make_delivery(), Failed(Retry()))
        (held,) = path.settler.holds.due(0)
        await path.take(held)
        assert len(path.runner.runs) == 2

    play(scenario())


def test_a_run_is_remembered_until_it_ends():
    async def scenario():
        path = Path()
        await path.take(make_delivery())
        path.clock.advance(100 * MEMORY_SECONDS)
        await path.take(make_delivery(generation=path.cut(), redelivered=True))
        assert len(path.runner.runs) == 1

    play(scenario())


def test_the_memory_of_ended_runs_is_bounded(monkeypatch):
    monkeypatch.setattr("consumer_framework.core.memory.MEMORY_RUNS", 3)

    async def scenario():
        path = Path()
        generation = 1
        for number in range(5):
            task = await path.take(make_delivery(message_id=str(number), generation=generation))
            generation = path.cut()
            path.runner.end(Succeeded())
            await task
        again: dict[str, Any] = {"generation": generation, "redelivered": True}
        for number in (2, 3, 4):
            await path.take(make_delivery(message_id=str(number), delivery_tag=number, **again))
        assert len(path.runner.runs) == 5, "the latest ones are remembered"
        for number in (0, 1):
            await path.take(make_delivery(message_id=str(number), delivery_tag=number, **again))
        assert len(path.runner.runs) == 7

    play(scenario())


@pytest.mark.parametrize("strict", [False, True])
def test_a_store_that_cannot_be_read_lets_nothing_overtake(strict, monkeypatch):
    async def scenario():
        path = Path(policy=Policy(strict=strict))

        def fail(_lane, _row):
            raise StoreError("input/output error")

        monkeypatch.setattr(path.store, "is_blocked", fail)
        delivery = make_delivery(lane="kernel")
        expected = to.GiveBack() if strict else to.Defer(0.0, BEHIND)
        assert await path.process(delivery) == expected
        assert path.runner.messages == []

    play(scenario())
