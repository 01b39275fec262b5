# SPDX-License-Identifier: GPL-2.0-or-later
"""Handlers that take too long, and handlers that call heartbeat()."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from typing import Any

import pytest
from fedora_messaging.message import Message

from consumer_framework import HandlerTimeoutError, heartbeat
from consumer_framework.adapters.executor import Executor, Limits
from consumer_framework.author.handler import Handler
from consumer_framework.core.delivery import Failed, Succeeded
from consumer_framework.testing import Harness, make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

PATIENCE = 20
DELIVERY = make_delivery()


class Bench:
    """An executor on a loop whose time a test sets."""

    def __init__(self, call, timeout=100.0, decode=lambda delivery: delivery.message_id, **more):
        self._skipped = 0.0
        loop: Any = asyncio.get_running_loop()
        real = loop.time
        loop.time = lambda: real() + self._skipped
        self.executor = Executor(
            Handler("test", call, **more),
            decode,
            FakeFlightRecorder(places=10),
            Limits(slots=2, timeout=timeout, batch_seconds=0.0),
        )

    def run(self):
        return asyncio.create_task(self.executor.run(DELIVERY))

    def skip(self, seconds):
        self._skipped += seconds

    async def told(self):
        """Let timers run that are due."""
        await asyncio.sleep(0.01)

    @property
    def late(self):
        return [(run.subject, run.is_cancelled) for run in self.executor.overruns()]


def play(scenario):
    # No wait_for: the loop's time is skipped. The waits in threads have time limits.
    return asyncio.run(scenario())


class Steps:
    """A plain handler that runs the steps of a test in its thread."""

    def __init__(self):
        self.wanted = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.steps = []

    def __call__(self, message):
        self.done.release()
        while True:
            assert self.wanted.acquire(timeout=PATIENCE)
            step = self.steps.pop(0)
            if step is None:
                return
            step()
            self.done.release()

    async def begun(self):
        assert await asyncio.to_thread(self.done.acquire, timeout=PATIENCE)

    async def step(self, what):
        self.steps.append(what)
        self.wanted.release()
        if what is not None:
            assert await asyncio.to_thread(self.done.acquire, timeout=PATIENCE)


def test_a_plain_handler_over_its_time_is_an_overrun_until_it_returns():
    async def scenario():
        handler = Steps()
        bench = Bench(handler)
        run = bench.run()
        await handler.begun()
        bench.skip(99)
        assert bench.late == []
        bench.skip(2)
        assert bench.late == [("message 1", False)]
        await handler.step(None)
        assert await run == Succeeded()
        assert bench.late == []
        bench.executor.close()

    play(scenario)


def test_a_heartbeat_lets_the_time_of_a_plain_handler_begin_anew():
    async def scenario():
        handler = Steps()
        bench = Bench(handler)
        run = bench.run()
        await handler.begun()
        for _ in range(5):
            bench.skip(90)
            assert bench.late == []
            await handler.step(heartbeat)
        bench.skip(101)
        assert bench.late == [("message 1", False)]
        await handler.step(heartbeat)
        assert bench.late == [], "it gets on, after all"
        await handler.step(None)
        assert await run == Succeeded()
        bench.executor.close()

    play(scenario)


def test_the_overdue_log_waits_for_a_handler_that_gets_on(caplog):
    async def scenario():
        handler = Steps()
        bench = Bench(handler)
        run = bench.run()
        await handler.begun()
        bench.skip(90)
        await handler.step(heartbeat)
        bench.skip(20)
        await bench.told()
        assert "cannot be interrupted" not in caplog.text
        bench.skip(90)
        await bench.told()
        assert "cannot be interrupted" in caplog.text
        await handler.step(None)
        await run
        bench.executor.close()

    play(scenario)


def test_the_longest_overrun_comes_first_and_heartbeats_are_each_ones_own():
    async def scenario():
        first, second = Steps(), Steps()
        handlers = [second, first]
        bench = Bench(lambda message: handlers.pop()(message))  # noqa: PLW0108 -- each has its own
        runs = [bench.run()]
        await first.begun()
        bench.skip(10)
        runs.append(bench.run())
        await second.begun()
        bench.skip(200)
        deadlines = [run.deadline for run in bench.executor.overruns()]
        assert deadlines[1] - deadlines[0] == pytest.approx(10, abs=5)
        await second.step(heartbeat)
        assert [run.deadline for run in bench.executor.overruns()] == deadlines[:1]
        await first.step(None)
        await second.step(None)
        await asyncio.gather(*runs)
        bench.executor.close()

    play(scenario)


def test_a_heartbeat_spares_a_coroutine_its_cancellation():
    async def scenario():
        turn, begun = asyncio.Event(), asyncio.Event()

        async def handle(message):
            begun.set()
            await turn.wait()
            heartbeat()
            turn.clear()
            begun.set()
            await turn.wait()

        bench = Bench(handle)
        run = bench.run()
        await begun.wait()
        begun.clear()
        bench.skip(90)
        turn.set()
        await begun.wait()
        bench.skip(20)
        await bench.told()
        assert not run.done()
        bench.skip(90)
        await bench.told()
        outcome = await run
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, HandlerTimeoutError)
        bench.executor.close()

    play(scenario)


def test_a_coroutine_that_swallows_its_cancellation_is_an_overrun():
    async def scenario():
        release = asyncio.Event()

        async def handle(message):
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        bench = Bench(handle)
        run = bench.run()
        await bench.told()
        bench.skip(101)
        await bench.told()
        assert bench.late == [("message 1", True)]
        release.set()
        await run
        assert bench.late == []
        bench.executor.close()

    play(scenario)


async def beating_elsewhere(beat, done):
    await asyncio.to_thread(beat.wait, PATIENCE)
    await asyncio.to_thread(heartbeat)
    done.set()
    await asyncio.Event().wait()


@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "a coroutine returned"])
def test_a_heartbeat_counts_wherever_the_handlers_context_goes(plain):
    async def scenario():
        beat, done = threading.Event(), asyncio.Event()

        async def handle(message):
            await beating_elsewhere(beat, done)

        bench = Bench((lambda message: handle(message)) if plain else handle)  # noqa: PLW0108
        run = bench.run()
        await bench.told()
        bench.skip(99)
        beat.set()
        await done.wait()
        bench.skip(10)
        assert bench.late == []
        bench.skip(100)
        assert bench.late != []
        run.cancel()
        await asyncio.wait([run])
        bench.executor.close()

    play(scenario)


def test_a_batch_has_one_time_for_all_its_messages():
    async def scenario():
        handler = Steps()
        bench = Bench(print, call_batch=handler)
        run = bench.run()
        await handler.begun()
        bench.skip(99)
        await handler.step(heartbeat)
        bench.skip(99)
        assert bench.late == []
        bench.skip(2)
        assert bench.late == [("message 1", False)]
        await handler.step(None)
        assert await run == Succeeded()
        bench.executor.close()

    play(scenario)


def test_outside_of_a_handler_a_heartbeat_is_nothing():
    heartbeat()
    thread = threading.Thread(target=heartbeat)
    thread.start()
    thread.join()


def test_a_setup_that_takes_long_is_no_overrun():
    async def scenario():
        begun, release = threading.Event(), threading.Event()

        def set_up():
            begun.set()
            release.wait(PATIENCE)

        bench = Bench(print, setup=set_up)
        setup = asyncio.create_task(bench.executor.setup())
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        bench.skip(1000)
        assert bench.late == []
        release.set()
        await setup
        bench.executor.close()

    play(scenario)


@pytest.mark.parametrize("part", ["setup", "teardown"])
def test_in_setup_and_teardown_a_heartbeat_is_nothing(part):
    async def scenario():
        bench = Bench(print, **{part: heartbeat})
        await getattr(bench.executor, part)()
        bench.executor.close()

    play(scenario)


class Text(str):
    """One that can be watched."""

    __slots__ = ("__weakref__",)


def succeed(message):
    heartbeat()


async def succeed_later(message):
    heartbeat()


def fail(message):
    raise ValueError(message)


async def fail_later(message):
    raise ValueError(message)


def refuse(delivery):
    raise ValueError(delivery.message_id)


@pytest.mark.parametrize("decode", [lambda delivery: delivery.message_id, refuse])
@pytest.mark.parametrize(
    "call",
    [succeed, succeed_later, fail, fail_later, lambda message: fail_later(message)],  # noqa: PLW0108
)
def test_after_its_run_nothing_keeps_a_message_alive(call, decode):
    async def scenario():
        bench = Bench(call, decode=decode)
        delivery = make_delivery(routing_key=Text("a.topic"))
        watched = weakref.ref(delivery.routing_key)
        gc.disable()
        try:
            outcome = await bench.executor.run(delivery)
            is_success = decode is not refuse and call in (succeed, succeed_later)
            assert isinstance(outcome, Succeeded) == is_success
            del delivery, outcome
            await bench.told()
            assert watched() is None
        finally:
            gc.enable()
        bench.executor.close()

    play(scenario)


def test_handlers_beat_in_the_harness_too():
    def handle(message):
        heartbeat()

    async def handle_slowly(message):
        for _ in range(5):
            await asyncio.sleep(50)
            heartbeat()

    message = Message(topic="a.topic", body={"n": 1})
    with Harness(handle) as harness:
        harness.deliver(message)
        assert harness.acked == [message]
    with Harness(handle_slowly, settings={"handler_timeout": "1m"}) as harness:
        harness.deliver(message)
        harness.advance("5m")
        assert harness.acked == [message]


# No limit.


@pytest.mark.parametrize("is_later", [False, True])
def test_a_handler_without_a_limit_is_never_late_and_gets_one_when_that_is_set(is_later):
    async def scenario():
        gate, begun = threading.Event(), threading.Event()

        def handle(_message):
            begun.set()
            assert gate.wait(PATIENCE)

        async def handle_later(_message):
            begun.set()
            while not gate.is_set():  # noqa: ASYNC110 -- threads know no events of asyncio's
                await asyncio.sleep(0.001)

        bench = Bench(handle_later if is_later else handle, timeout=math.inf)
        run = bench.run()
        await asyncio.to_thread(begun.wait, PATIENCE)
        bench.skip(10 * 86400.0)
        await bench.told()
        assert bench.late == []
        assert bench.executor.deadline == math.inf
        bench.executor.resize(Limits(slots=2, timeout=100.0))
        assert [is_cancelled for _, is_cancelled in bench.late] == [is_later]
        gate.set()
        outcome = await run
        assert isinstance(outcome, Failed) == is_later
        bench.executor.close()

    play(scenario)


def test_a_stop_waits_for_a_handler_without_a_limit_no_longer_than_ten_minutes():
    assert Limits(timeout=math.inf).patience == 600.0
    assert Limits(timeout=7200.0).patience == 7200.0
