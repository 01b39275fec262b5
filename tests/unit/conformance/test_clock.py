# SPDX-License-Identifier: GPL-2.0-or-later
"""FakeClock and SystemClock."""

import asyncio
import time

import pytest

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.testing import FakeClock


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()])
def test_a_clock_never_goes_back(clock):
    times = [clock.monotonic() for _ in range(100)]
    assert times == sorted(times)
    assert all(isinstance(time, float) for time in times)


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock(1e9)])
def test_a_clock_knows_the_time_since_the_epoch(clock):
    assert isinstance(clock.time(), float)
    assert clock.time() > 9e8


def test_the_system_clock_tells_the_machines_time():
    before = time.time()
    assert before <= SystemClock().time() <= time.time()


def test_a_fake_clock_advances_only_when_it_is_told():
    clock = FakeClock(10.0)
    assert clock.monotonic() == clock.monotonic() == 10
    assert clock.time() == clock.time() == 10
    clock.advance(2.5)
    clock.advance(0)
    assert clock.monotonic() == clock.time() == 12.5


def test_a_fake_clock_cannot_be_turned_back():
    with pytest.raises(ValueError, match="-1"):
        FakeClock().advance(-1)


def test_setting_the_time_of_a_fake_clock_leaves_its_monotonic_time():
    clock = FakeClock(100.0)
    clock.set_time(50.0)
    assert (clock.time(), clock.monotonic()) == (50, 100)
    clock.advance(2)
    assert (clock.time(), clock.monotonic()) == (52, 102)


# Waiting. The fake is told to go on; the machine's clock goes on by itself.


def passing(clock):
    """Let a hundredth of a second pass."""
    if isinstance(clock, FakeClock):
        clock.advance(0.01)
        return asyncio.sleep(0)
    return asyncio.sleep(0.02)


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()])
def test_a_sleep_ends_when_its_time_has_passed(clock):
    async def scenario():
        sleeping = asyncio.create_task(clock.sleep(0.01))
        await asyncio.sleep(0)
        assert not sleeping.done()
        await passing(clock)
        await asyncio.wait_for(sleeping, 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()])
def test_a_call_comes_when_its_time_has_passed_unless_it_is_cancelled(clock):
    async def scenario():
        calls = []
        clock.call_later(0.01, lambda: calls.append("due"))
        clock.call_later(0.01, lambda: calls.append("cancelled")).cancel()
        clock.call_later(3600, lambda: calls.append("late")).cancel()
        assert calls == []
        await passing(clock)
        assert calls == ["due"]

    asyncio.run(scenario())


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()])
def test_a_future_is_waited_for_until_it_has_a_result(clock):
    async def scenario():
        future = clock.create_future()
        asyncio.get_running_loop().call_soon(future.set_result, 7)
        assert not future.done()
        assert await future == 7

    asyncio.run(scenario())
