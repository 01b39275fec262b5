# SPDX-License-Identifier: GPL-2.0-or-later
"""More and fewer slots, and another rate, while messages are handled."""

import asyncio
import threading

import pytest

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.adapters.executor import Executor, Limits
from consumer_framework.author.handler import Handler
from consumer_framework.core.delivery import Failed, Succeeded, Withdrawn
from consumer_framework.core.gate import Gate, Reason
from consumer_framework.core.intake import Intake
from consumer_framework.core.limits import TokenBucket
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

PATIENCE = 30


def play(scenario):
    """Run *scenario*; one that would wait for ever fails."""
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


def numbered(tag):
    return make_delivery(delivery_tag=tag, message_id=str(tag))


async def turns():
    for _ in range(300):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():  # noqa: ASYNC110 -- threads know no events of asyncio's
        await asyncio.sleep(0.001)


class Gated:
    """A handler whose runs end one by one, when they are let go."""

    def __init__(self, form):
        self.begun: list[int] = []
        self.ended: list[int] = []
        self._permits = threading.Semaphore(0)
        self.handler = Handler("test", self.in_thread if form == "threads" else self.on_loop)

    @property
    def running(self):
        return len(self.begun) - len(self.ended)

    def in_thread(self, number):
        self.begun.append(number)
        assert self._permits.acquire(timeout=PATIENCE)
        self.ended.append(number)

    async def on_loop(self, number):
        self.begun.append(number)
        await until(lambda: self._permits.acquire(blocking=False))
        self.ended.append(number)

    def let_go(self, count=1):
        self._permits.release(count)


@pytest.fixture(params=["threads", "coroutines"])
def gated(request):
    return Gated(request.param)


def executor_of(handler, slots, **limits):
    flight = FakeFlightRecorder(places=64)
    return Executor(handler, lambda d: d.delivery_tag, flight, Limits(slots, **limits))


def run_all(executor, numbers):
    return [asyncio.create_task(executor.run(numbered(number))) for number in numbers]


async def ended(executor, runs):
    assert await asyncio.gather(*runs) == [Succeeded()] * len(runs)
    executor.close()
    assert not executor.is_busy


# Slots.


def test_new_slots_begin_with_waiting_messages(gated):
    async def scenario():
        executor = executor_of(gated.handler, 1)
        runs = run_all(executor, range(6))
        await until(lambda: gated.running == 1)
        executor.resize(Limits(4))
        await until(lambda: gated.running == 4)
        await turns()
        assert sorted(gated.begun) == [0, 1, 2, 3]
        gated.let_go(6)
        await ended(executor, runs)

    play(scenario())


def test_removed_slots_let_their_runs_end_and_begin_no_other(gated):
    async def scenario():
        executor = executor_of(gated.handler, 3)
        runs = run_all(executor, range(6))
        await until(lambda: gated.running == 3)
        executor.resize(Limits(1))
        for done in (1, 2):
            gated.let_go()
            await until(lambda: len(gated.ended) == done)
            await asyncio.sleep(0.01)
            assert len(gated.begun) == 3
        gated.let_go()
        await until(lambda: len(gated.begun) == 4)
        assert gated.running == 1
        gated.let_go(3)
        await ended(executor, runs)
        assert gated.begun[3:] == [3, 4, 5]

    play(scenario())


def test_slots_that_run_nothing_are_gone_at_once(gated):
    async def scenario():
        executor = executor_of(gated.handler, 4)
        first = run_all(executor, range(4))
        await until(lambda: gated.running == 4)
        gated.let_go(4)
        await asyncio.gather(*first)
        executor.resize(Limits(1))
        runs = run_all(executor, range(4, 8))
        await until(lambda: gated.running == 1)
        await asyncio.sleep(0.01)
        assert gated.running == 1
        gated.let_go(4)
        await ended(executor, runs)
        assert gated.begun[4:] == [4, 5, 6, 7]

    play(scenario())


def test_runs_that_no_slot_has_begun_can_be_withdrawn_after_a_change_too(gated):
    async def scenario():
        executor = executor_of(gated.handler, 3)
        runs = run_all(executor, range(6))
        await until(lambda: gated.running == 3)
        executor.resize(Limits(1))
        assert executor.withdraw() == 3
        gated.let_go(3)
        outcomes = await asyncio.gather(*runs)
        assert outcomes == [Succeeded()] * 3 + [Withdrawn()] * 3
        runs = run_all(executor, [6, 7])
        await until(lambda: gated.running == 1)
        await asyncio.sleep(0.01)
        assert gated.running == 1
        gated.let_go(2)
        await ended(executor, runs)

    play(scenario())


def test_after_many_changes_there_are_as_many_slots_as_in_the_last_one(gated):
    async def scenario():
        executor = executor_of(gated.handler, 2)
        runs = run_all(executor, range(100))
        for count in (8, 1, 5, 3, 16, 2, 64, 1, 7, 3):
            executor.resize(Limits(count))
            gated.let_go(3)
            await turns()
        # The runs that had begun before have to end first.
        while gated.running != 3:
            gated.let_go()
            await asyncio.sleep(0.005)
        gated.let_go(3)
        await asyncio.sleep(0.05)
        assert gated.running <= 3
        executor.resize(Limits(2))
        gated.let_go(100)
        await ended(executor, runs)
        assert len(gated.begun) == 100

    play(scenario())


def test_with_one_slot_left_the_order_is_kept(gated):
    async def scenario():
        executor = executor_of(gated.handler, 5)
        executor.resize(Limits(1))
        gated.let_go(200)
        await ended(executor, run_all(executor, range(200)))
        assert gated.ended == list(range(200))

    play(scenario())


# The other limits.


def test_a_shorter_timeout_applies_to_running_handlers_too():
    async def scenario():
        async def handle(_message):
            await asyncio.sleep(PATIENCE)

        executor = executor_of(Handler("test", handle), 1, timeout=PATIENCE)
        (run,) = run_all(executor, [1])
        await turns()
        executor.resize(Limits(1, timeout=0.01))
        outcome = await run
        assert isinstance(outcome, Failed)
        assert "10 ms" in str(outcome.error) or "0.01" in str(outcome.error)
        executor.close()

    play(scenario())


def test_a_batch_that_waits_is_run_where_it_is_full_now():
    async def scenario():
        seen = []
        batches = Handler("test", lambda _: None, call_batch=lambda batch: seen.append(list(batch)))
        executor = executor_of(batches, 1, batch_size=100, batch_seconds=PATIENCE)
        runs = run_all(executor, range(3))
        await turns()
        assert seen == []
        executor.resize(Limits(1, batch_size=3, batch_seconds=PATIENCE))
        await ended(executor, runs)
        assert seen == [[0, 1, 2]]

    play(scenario())


# The rate.


def test_a_removed_limit_frees_the_deliveries_that_waited_for_it():
    async def scenario():
        intake = Intake(SystemClock(), TokenBucket(1 / 86400, burst=1))
        for tag in range(5):
            intake.put(numbered(tag))
        takers = [asyncio.create_task(intake.take()) for _ in range(5)]
        await turns()
        assert sum(taker.done() for taker in takers) == 1
        intake.limit(None)
        assert await asyncio.gather(*takers) == [numbered(tag) for tag in range(5)]

    play(scenario())


def test_a_new_limit_is_for_slots_that_wait_for_messages_already():
    async def scenario():
        intake = Intake(SystemClock())
        takers = [asyncio.create_task(intake.take()) for _ in range(4)]
        await turns()
        intake.limit(TokenBucket(1 / 86400, burst=2))
        await turns()
        for tag in range(4):
            intake.put(numbered(tag))
        await turns()
        assert sum(taker.done() for taker in takers) == 2
        intake.limit(TokenBucket(1e6, burst=1000))
        assert len(await asyncio.gather(*takers)) == 4

    play(scenario())


def test_a_closed_intake_frees_the_slots_that_wait_for_the_rate():
    async def scenario():
        gate = Gate()
        intake = Intake(SystemClock(), TokenBucket(1 / 86400, burst=1), gate=gate)
        intake.put(numbered(1))
        intake.put(numbered(2))
        await intake.take()
        taker = asyncio.create_task(intake.take())
        await turns()
        gate.close()
        assert await taker is None

    play(scenario())


@pytest.mark.parametrize("bucket", [None, TokenBucket(1e6, 1000)], ids=["no limit", "a rate"])
def test_a_suspended_intake_keeps_new_deliveries_until_it_resumes(bucket):
    async def scenario():
        gate = Gate()
        intake = Intake(SystemClock(), bucket, gate=gate)
        gate.suspend(Reason.RECONNECTION)
        takers = [asyncio.create_task(intake.take()) for _ in range(2)]
        await turns()
        for tag in range(3):
            intake.put(numbered(tag))
        await turns()
        assert not any(taker.done() for taker in takers)
        assert len(intake) == 3
        gate.resume(Reason.RECONNECTION)
        assert await asyncio.gather(*takers) == [numbered(0), numbered(1)]
        gate.suspend(Reason.RECONNECTION)
        taker = asyncio.create_task(intake.take())
        await turns()
        assert not taker.done()
        gate.close()
        assert await taker is None

    play(scenario())
