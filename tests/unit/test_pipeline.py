# SPDX-License-Identifier: GPL-2.0-or-later
"""The delivery path, from arrival to settle."""

import asyncio
from typing import Any

import pytest

from consumer_framework.core import disposition as to
from consumer_framework.core.delivery import Failed, Succeeded, Undecodable
from consumer_framework.core.errors import Drop, Halt, Retry
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.recovery import UPSTREAM
from consumer_framework.core.redelivery import MEMORY_SECONDS, Unsettled
from consumer_framework.testing import (
    FakeAcknowledger,
    FakeClock,
    FakeRecorder,
    Settlement,
    make_delivery,
)


class Runner:
    """Runs nothing: each run ends as the test says."""

    def __init__(self):
        self.runs = []

    async def run(self, message):
        outcome = asyncio.get_running_loop().create_future()
        self.runs.append((message, outcome))
        return await outcome

    def end(self, outcome, number=-1):
        self.runs[number][1].set_result(outcome)

    @property
    def messages(self):
        return [message for message, _ in self.runs]


class Path:
    """A pipeline between fakes."""

    def __init__(self, decode=lambda delivery: delivery.body):
        self.runner = Runner()
        self.acknowledger = FakeAcknowledger()
        self.recorder = FakeRecorder()
        self.clock = FakeClock()
        self.pipeline = Pipeline(
            decode, self.runner, UPSTREAM, self.acknowledger, self.recorder, Unsettled(self.clock)
        )

    async def take(self, delivery):
        """A slot takes *delivery*; the task ends when it is settled."""
        task = asyncio.create_task(self.pipeline.process(delivery))
        await self.turns()
        return task

    async def turns(self):
        for _ in range(5):
            await asyncio.sleep(0)

    def cut(self):
        """The channel goes, another one comes; returns its generation."""
        self.acknowledger.close(self.acknowledger._latest)
        return self.acknowledger.open()


def play(scenario):
    # A slot that waits for ever fails its test.
    asyncio.run(asyncio.wait_for(scenario, 20))


SETTLES = [
    (Succeeded(), to.Ack(), "ack"),
    (Failed(Retry("busy")), to.Requeue("busy"), "give_back"),
    (Failed(Drop("old")), to.Reject("old"), "reject"),
    (Failed(Halt(4, "done")), to.Halt(4, False, "done"), "ack"),
    (Failed(Halt(4, "done", requeue=True)), to.Halt(4, True, "done"), "give_back"),
]


@pytest.mark.parametrize(("outcome", "disposition", "told"), SETTLES)
def test_each_outcome_is_settled_once_and_recorded(outcome, disposition, told):
    async def scenario():
        path = Path()
        delivery = make_delivery(body=b"a body")
        task = await path.take(delivery)
        assert path.recorder.starts == [delivery]
        assert path.acknowledger.told == [], "nothing is settled while the handler runs"
        path.runner.end(outcome)
        assert await task == disposition
        assert path.runner.messages == [b"a body"]
        assert path.acknowledger.told == [(delivery, told)]
        assert path.recorder.settlements == [Settlement(delivery, outcome, disposition, False)]

    play(scenario())


def test_bytes_that_are_no_message_reach_no_handler():
    async def scenario():
        path = Path(decode=lambda _: Undecodable("no JSON"))
        assert await path.pipeline.process(make_delivery()) == to.Reject("no JSON")
        assert path.runner.runs == []
        assert path.acknowledger.of(make_delivery()) == "reject"

    play(scenario())


def test_a_decoder_that_raises_fails_the_delivery_and_not_the_slot():
    async def scenario():
        error = LookupError("unknown encoding: gzip")

        def decode(_delivery):
            raise error

        path = Path(decode)
        disposition = await path.pipeline.process(make_delivery())
        assert disposition == to.Halt(
            13, True, "the handler raised LookupError: unknown encoding: gzip"
        )
        assert path.acknowledger.of(make_delivery()) == "give_back"
        assert path.recorder.settlements[0].outcome == Failed(error)

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
        assert path.acknowledger.told == [(again, told)]
        assert [s.void for s in path.recorder.settlements] == [True, False]
        assert path.recorder.starts == [first]

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
        again = make_delivery(generation=generation, redelivered=True)
        assert await path.pipeline.process(again) == disposition
        assert path.acknowledger.told == [(again, told)]
        assert len(path.runner.runs) == 1

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
        assert len(path.runner.runs) == 1

    play(scenario())


def test_a_run_that_was_settled_answers_for_nothing_any_more():
    async def scenario():
        path = Path()
        task = await path.take(make_delivery())
        path.runner.end(Failed(Retry()))
        await task
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


def test_a_run_that_goes_on_is_remembered_however_long_it_takes():
    async def scenario():
        path = Path()
        await path.take(make_delivery())
        path.clock.advance(100 * MEMORY_SECONDS)
        await path.take(make_delivery(generation=path.cut(), redelivered=True))
        assert len(path.runner.runs) == 1

    play(scenario())


def test_the_memory_of_ended_runs_is_bounded(monkeypatch):
    monkeypatch.setattr("consumer_framework.core.redelivery.MEMORY_RUNS", 3)

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
