# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the requests about a running process: events, levels of the log, stacks."""

from __future__ import annotations

import asyncio
import logging
import re
import threading

import pytest

from consumer_framework.adapters.executor import Executor, Limits
from consumer_framework.author.handler import Handler
from consumer_framework.core.delivery import Failed, Skipped, Succeeded
from consumer_framework.core.disposition import Ack, Quarantine
from consumer_framework.core.gate import Reason
from consumer_framework.core.lifecycle import State
from consumer_framework.core.ports import Observers, Paused, Ran, Settled, StateChanged
from consumer_framework.core.recovery import Decision
from consumer_framework.runtime.control.schema import Happened, LogLevel, Missed
from consumer_framework.runtime.log_levels import LogLevels
from consumer_framework.runtime.observe.events import MOST_WAITING, EventFeed, happened_of
from consumer_framework.runtime.stacks import messages_in_flight, stacks_of_process
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeClock, FakeFlightRecorder

DELIVERY = make_delivery(queue="q", message_id="m")


def settled(disposition, *, is_void=False):
    return Settled(DELIVERY, Succeeded(), Decision(disposition, DELIVERY.history), is_void)


@pytest.mark.parametrize(
    ("event", "kind", "result", "reason"),
    [
        (Ran(DELIVERY, Succeeded()), "ran", "succeeded", ""),
        (Ran(DELIVERY, Failed(KeyError("x"))), "ran", "failed", "KeyError: 'x'"),
        (Ran(DELIVERY, Skipped("not ours")), "ran", "skipped", "not ours"),
        (settled(Ack()), "settled", "ack", ""),
        (settled(Quarantine("poison")), "settled", "quarantine", "poison"),
        (settled(Ack(), is_void=True), "settled", "void", ""),
        (StateChanged(State.PAUSED, State.CONSUMING), "state", "consuming", ""),
        (Paused(Reason.OPERATOR, "why"), "paused", "paused", "why"),
        (Paused(Reason.STORE, ""), "paused", "resumed", "store"),
    ],
)
def test_each_event_is_told_without_the_body_of_its_message(event, kind, result, reason):
    told = happened_of(event, 5.0)
    assert (told.event, told.at, told.result, told.reason) == (kind, 5.0, result, reason)
    is_about_message = kind in {"ran", "settled"}
    assert (told.message_id, told.queue) == (("m", "q") if is_about_message else ("", ""))
    assert told.attempt == is_about_message


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_an_exception_that_has_no_text_is_told_by_its_name():
    # The event comes in the middle of the settle of a message.
    assert happened_of(Ran(DELIVERY, Failed(MuteError())), 5.0).reason == "MuteError"


def test_a_long_reason_is_cut():
    told = happened_of(settled(Quarantine("x" * 10_000)), 5.0)
    assert len(told.reason) < 1000


def test_a_client_that_is_too_slow_loses_the_oldest_events_and_is_told_how_many():
    async def run():
        observers, feed = Observers(), EventFeed(FakeClock(5.0))
        events = feed.follow(observers)
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        observers.notify(Paused(Reason.STORE, "0"))
        assert await first == Happened("paused", 5.0, "paused", "0")
        for number in range(MOST_WAITING + 3):
            observers.notify(Paused(Reason.STORE, f"{number + 1}"))
        assert await anext(events) == Missed(3)
        for number in range(MOST_WAITING):
            assert await anext(events) == Happened("paused", 5.0, "paused", f"{number + 4}")
        await events.aclose()

    asyncio.run(run())


def test_a_client_gets_the_kinds_that_it_wants_and_is_forgotten_at_its_end():
    async def run():
        observers, feed = Observers(), EventFeed(FakeClock(5.0), {"state"})
        events = feed.follow(observers)
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        observers.notify(Paused(Reason.STORE, "why"))
        observers.notify(StateChanged(State.CONNECTING, State.SUBSCRIBING))
        assert await first == Happened("state", 5.0, "subscribing")
        await events.aclose()
        observers.notify(StateChanged(State.CONNECTING, State.SUBSCRIBING))
        again = feed.follow(Observers())
        waiting = asyncio.ensure_future(anext(again))
        await asyncio.sleep(0)
        assert not waiting.done(), "it was not told of the last event"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(run())


# The levels of loggers.


class Timers:
    """Calls functions when the test says so."""

    def __init__(self):
        self.due = []

    def call_later(self, seconds, function):
        entry = (seconds, function)
        self.due.append(entry)

        def prevent():
            if entry in self.due:
                self.due.remove(entry)

        return prevent

    def ring(self, seconds):
        for entry in [each for each in self.due if each[0] == seconds]:
            self.due.remove(entry)
            entry[1]()


@pytest.fixture
def timers():
    return Timers()


@pytest.fixture
def levels(timers):
    names = ("", "consumer_framework", "fedora_messaging", "authors")
    before = {name: logging.getLogger(name).level for name in names}
    logging.getLogger("authors").setLevel(logging.WARNING)
    yield LogLevels(timers.call_later, lambda: 100.0)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_the_level_of_the_whole_log_changes_and_comes_back(levels, timers):
    names = ("", "consumer_framework", "fedora_messaging")
    before = [logging.getLogger(name).level for name in names]
    report = levels.change(LogLevel("DEBUG", 60))
    assert (report.level, report.until) == ("DEBUG", 160.0)
    assert [logging.getLogger(name).level for name in names] == [logging.DEBUG] * 3
    assert logging.getLogger("authors").level == logging.WARNING
    timers.ring(60)
    assert [logging.getLogger(name).level for name in names] == before


def test_a_second_order_for_a_logger_replaces_the_first(levels, timers):
    assert levels.change(LogLevel("DEBUG", 60, "authors")).former == "WARNING"
    assert levels.change(LogLevel("ERROR", 30, "authors")).former == "WARNING"
    timers.ring(60)
    assert logging.getLogger("authors").level == logging.ERROR
    timers.ring(30)
    assert logging.getLogger("authors").level == logging.WARNING


@pytest.mark.parametrize("order", [(60, 30), (30, 60)], ids=["all first", "one first"])
def test_orders_for_all_and_for_one_end_in_any_sequence(levels, timers, order):
    own = logging.getLogger("consumer_framework")
    before = own.level
    levels.change(LogLevel("DEBUG", 60))
    levels.change(LogLevel("ERROR", 30, "consumer_framework"))
    for seconds in order:
        timers.ring(seconds)
    assert own.level == before
    assert timers.due == []


def test_a_log_that_was_configured_anew_meanwhile_stays(levels, timers):
    levels.change(LogLevel("DEBUG", 60, "authors"))
    logging.getLogger("authors").setLevel(logging.CRITICAL)
    timers.ring(60)
    assert logging.getLogger("authors").level == logging.CRITICAL


def test_an_order_after_a_new_configuration_ends_with_the_level_of_that(levels, timers):
    levels.change(LogLevel("DEBUG", 60, "authors"))
    logging.getLogger("authors").setLevel(logging.CRITICAL)
    assert levels.change(LogLevel("INFO", 30, "authors")).former == "CRITICAL"
    timers.ring(30)
    assert logging.getLogger("authors").level == logging.CRITICAL


# Stacks.


def test_the_stacks_name_threads_and_tasks_and_what_they_are_in():
    is_over = threading.Event()

    def waits_in_a_thread():
        is_over.wait(20)

    async def waits_in_a_task():
        await asyncio.Event().wait()

    async def run():
        loop = asyncio.get_running_loop()
        task = loop.create_task(waits_in_a_task(), name="the task")
        await asyncio.sleep(0)
        report = stacks_of_process(loop)
        task.cancel()
        return report

    thread = threading.Thread(target=waits_in_a_thread, name="the thread")
    thread.start()
    try:
        report = asyncio.run(run())
    finally:
        is_over.set()
        thread.join(20)
    functions = {stack.name: [f.function for f in stack.frames] for stack in report.threads}
    assert any("waits_in_a_thread" in function for function in functions["the thread"])
    (task,) = [stack for stack in report.tasks if stack.name.startswith("the task")]
    assert "waits_in_a_task" in task.frames[-1].function
    assert task.frames[-1].file == __file__


def test_a_recursion_is_cut():
    found = []

    def recurse(depth):
        if depth:
            recurse(depth - 1)
        else:
            found.append(stacks_of_process())

    recurse(300)
    (own,) = [stack for stack in found[0].threads if stack.name == "MainThread"]
    assert len(own.frames) == 200
    assert found[0].tasks == ()


# Messages in flight.


def in_flight_while(handle, is_begun, is_over):
    """Run *handle* on a message, and return what is in flight before and after it."""

    async def scenario():
        flight = FakeFlightRecorder(places=1)
        executor = Executor(Handler("test", handle), lambda _: "message", flight, Limits(1))
        loop = asyncio.get_running_loop()
        try:
            running = asyncio.ensure_future(executor.run(DELIVERY))
            async with asyncio.timeout(20):
                while not is_begun.is_set():  # noqa: ASYNC110 -- a thread sets it
                    await asyncio.sleep(0.001)
            found = messages_in_flight(executor, loop.time() + 60)
            is_over.set()
            await running
            return found, messages_in_flight(executor, loop.time())
        finally:
            is_over.set()
            executor.close()

    return asyncio.run(scenario())


def test_a_message_in_a_thread_names_its_slot_and_its_place():
    is_begun, is_over = threading.Event(), threading.Event()

    def waits():
        is_begun.set()
        is_over.wait(20)

    (message,), after = in_flight_while(lambda _message: waits(), is_begun, is_over)
    assert (message.message_id, message.queue, message.attempt) == ("m", "q", 1)
    assert message.slot == "slot-0"
    assert re.search(r"waits \(.*test_live_requests\.py, line \d+\)$", message.place)
    assert 59 < message.age < 100
    assert after == ()


def test_a_message_in_a_coroutine_names_its_place_and_no_slot():
    is_begun, is_over = threading.Event(), threading.Event()

    async def waits():
        is_begun.set()
        while not is_over.is_set():  # noqa: ASYNC110 -- it is all that the handler does
            await asyncio.sleep(0.001)

    async def handle(_message):
        await waits()

    (message,), after = in_flight_while(handle, is_begun, is_over)
    assert message.slot == ""
    assert re.search(r"waits \(.*test_live_requests\.py, line \d+\)$", message.place)
    assert after == ()
