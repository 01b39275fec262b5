# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls of the author's health(): in time, one at a time, and never in anybody's way."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from contextlib import asynccontextmanager

import pytest

from consumer_framework.adapters.executor.health_calls import HealthCalls

LONG = 20.0


def played(scenario):
    """Make a test of a coroutine function."""

    @functools.wraps(scenario)
    def test(*args, **fixtures):
        asyncio.run(asyncio.wait_for(scenario(*args, **fixtures), LONG))

    return test


async def eventually(condition):
    while not condition():  # noqa: ASYNC110 -- it knows of no loop
        await asyncio.sleep(0.005)


class Calls(HealthCalls):
    """Calls a function every few milliseconds."""

    def __init__(self, function, patience=LONG):
        self.function = function
        super().__init__(lambda: self.function, lambda: (0.005, patience))

    @asynccontextmanager
    async def going_on(self):
        self.start()
        try:
            yield self
        finally:
            self.stop()

    async def reports(self, fault):
        await eventually(lambda: self.fault == fault)


def returns(value):
    def health():
        return value

    return health


def raises(error):
    def health():
        raise error

    return health


@pytest.mark.parametrize(
    ("health", "fault"),
    [
        (returns("the index is 3 h old"), "the index is 3 h old"),
        (returns("two\nlines\x1b[2J"), r"two lines\x1b[2J"),
        (raises(OSError("no database")), "OSError: no database"),
        (raises(SystemExit(3)), "SystemExit: 3"),
        (
            returns(False),
            "health() returned an object of type bool: return None, or the fault as text",
        ),
    ],
)
@played
async def test_a_fault_is_the_text_or_the_exception(health, fault, caplog):
    async with Calls(health).going_on() as calls:
        await calls.reports(fault)
        calls.function = returns(None)
        await calls.reports("")
    levels = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert levels[0] == (logging.WARNING, f"the consumer is not well: {fault}")


@played
async def test_a_fault_that_stays_is_logged_once_though_its_words_change(caplog):
    called = []

    def health():
        called.append(1)
        return f"the index is {len(called)} h old"

    async with Calls(health).going_on() as calls:
        await eventually(lambda: calls.fault == "the index is 5 h old")
    assert len(caplog.records) == 1


@played
async def test_a_coroutine_method_runs_on_the_event_loop():
    threads = []

    async def health():
        await asyncio.sleep(0)
        threads.append(threading.current_thread())
        return "no database"

    async with Calls(health).going_on() as calls:
        await calls.reports("no database")
    assert {*threads} == {threading.current_thread()}


@played
async def test_a_plain_method_runs_in_a_thread_of_its_own_and_may_return_an_awaitable():
    threads = []

    async def later():
        return "no database"

    def health():
        threads.append(threading.current_thread())
        return later()

    async with Calls(health).going_on() as calls:
        await calls.reports("no database")
    assert threading.current_thread() not in threads


@played
async def test_a_call_that_takes_too_long_is_a_fault_and_no_second_one_begins_meanwhile():
    go, called = threading.Event(), []

    def health():
        called.append(1)
        assert go.wait(LONG)

    async with Calls(health, patience=0.01).going_on() as calls:
        await calls.reports("health() takes longer than 0.01s")
        await asyncio.sleep(0.1)
        assert len(called) == 1
        # The next call ends in its time.
        calls.function = returns("")
        go.set()
        await calls.reports("")


@played
async def test_a_coroutine_that_takes_too_long_is_cancelled():
    ended = []

    async def health():
        try:
            await asyncio.sleep(LONG)
        finally:
            ended.append(1)

    async with Calls(health, patience=0.01).going_on() as calls:
        await calls.reports("health() takes longer than 0.01s")
        await eventually(lambda: ended)


@played
async def test_the_report_of_a_handler_that_was_replaced_is_ignored():
    go, begun = threading.Event(), threading.Event()

    def former():
        begun.set()
        assert go.wait(LONG)
        return "of the former"

    async with Calls(former).going_on() as calls:
        assert await asyncio.to_thread(begun.wait, LONG)
        calls.function = returns("of the new one")
        go.set()
        seen = set()
        while calls.fault != "of the new one":
            seen.add(calls.fault)
            await asyncio.sleep(0.001)
    assert seen == {""}


@played
async def test_after_the_stop_nothing_is_called_and_no_result_counts():
    go, called = threading.Event(), []

    def health():
        called.append(1)
        assert go.wait(LONG)
        return "no database"

    async with Calls(health).going_on() as calls:
        await eventually(lambda: called)
    go.set()
    await asyncio.sleep(0.05)
    assert (calls.fault, len(called)) == ("", 1)


@played
async def test_a_consumer_without_a_health_has_no_fault():
    async with Calls(returns("no database")).going_on() as calls:
        await calls.reports("no database")
        calls.function = None
        await calls.reports("")
