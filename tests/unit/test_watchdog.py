# SPDX-License-Identifier: GPL-2.0-or-later
"""Feeding the watchdog. The verdict is tested in test_vitality.py."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet import task

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.health import Healthy, Overrun, Unhealthy
from consumer_framework.core.lifecycle import State
from consumer_framework.runtime.watchdog import FEEDS, BlockedLoop, Watchdog
from consumer_framework.testing import FakeNotifier, make_delivery

SECONDS = 0.03


class Flight:
    def __init__(self):
        self.charged = None

    def charge_only(self, guilty):
        self.charged = list(guilty)


class Instance(SimpleNamespace):
    """The parts of an instance that are judged: it is set up, and consumes from nothing."""

    def __init__(self, seconds=SECONDS):
        clock = SystemClock()
        super().__init__(
            notifier=FakeNotifier(watchdog_seconds=seconds),
            session=SimpleNamespace(
                client=None, subscriptions=(), is_complete=False, is_paused=False
            ),
            reactor=task.Clock(),
            clock=clock,
            state=State.CONSUMING,
            progress_at=clock.monotonic(),
            executor=SimpleNamespace(overruns=lambda: self.runs),
            files=SimpleNamespace(flight=Flight()),
            publications=SimpleNamespace(is_stuck=False),
            health=SimpleNamespace(stuck="", samples={}, look=lambda: None),
            runs=(),
        )


@pytest.fixture(autouse=True)
def _faulthandler_as_before():
    was_enabled = faulthandler.is_enabled()
    yield
    if was_enabled and sys.__stderr__ is not None:
        faulthandler.enable(file=sys.__stderr__)


def watched(instance, until):
    """Run a watchdog until the calls of the service manager satisfy *until*."""

    async def scenario():
        watchdog = Watchdog(instance)
        watchdog.start()
        async with asyncio.timeout(20):
            while not until(instance.notifier):  # noqa: ASYNC110 -- it knows of no loop
                await asyncio.sleep(SECONDS / FEEDS)
        watchdog.stop()
        told = len(instance.notifier.calls)
        await asyncio.sleep(2 * SECONDS)
        assert len(instance.notifier.calls) == told, "it was stopped"

    asyncio.run(scenario())
    return instance.notifier


def test_it_is_fed_for_as_long_as_the_loop_turns_and_nothing_is_wrong():
    notifier = watched(Instance(), lambda told: told.feeds >= 5)
    assert not notifier.is_triggered


def test_a_defect_in_the_look_at_the_health_does_not_let_the_service_manager_abort(caplog):
    instance = Instance()
    looked = []

    def look():
        looked.append(True)
        if len(looked) > 1:
            raise RuntimeError("a defect")

    instance.health.look = look
    notifier = watched(instance, lambda told: told.feeds >= 5)
    assert not notifier.is_triggered
    assert "a defect" in caplog.text


def test_it_is_not_fed_while_the_handler_is_made_which_may_block_the_loop():
    instance = Instance()
    instance.executor = None
    instance.state = State.BUILDING
    assert watched(instance, lambda _: True).calls == []


@pytest.mark.parametrize("state", [State.FAILING, State.DRAINING])
def test_it_is_fed_while_it_drains_or_a_last_word_would_let_the_service_manager_wait(state):
    instance = Instance()
    instance.executor = None
    instance.state = state
    assert not watched(instance, lambda told: told.feeds >= 2).is_triggered


def test_its_margin_is_the_time_that_the_longest_silence_left():
    async def scenario(seconds: float) -> float | None:
        instance: Any = Instance(seconds=seconds)
        watchdog = Watchdog(instance)
        assert watchdog.margin is None
        watchdog.start()
        async with asyncio.timeout(20):
            while seconds and instance.notifier.feeds < 3:  # noqa: ASYNC110 -- it knows of no loop
                await asyncio.sleep(SECONDS / FEEDS)
        watchdog.stop()
        return watchdog.margin

    assert asyncio.run(scenario(0)) is None
    margin = asyncio.run(scenario(SECONDS))
    assert margin is not None
    assert margin < SECONDS


def test_its_verdict_can_be_asked_at_any_time():
    async def scenario(runs):
        instance: Any = Instance()
        instance.runs = runs
        return Watchdog(instance).verdict()

    late = Overrun("message 1", (make_delivery(),), 0.0, is_cancelled=False)
    assert isinstance(asyncio.run(scenario(())), Healthy)
    verdict = asyncio.run(scenario((late,)))
    assert isinstance(verdict, Unhealthy)
    assert "the handler does not return: message 1" in verdict.reason


def test_a_service_manager_that_does_not_wait_is_not_fed():
    assert watched(Instance(seconds=0), lambda _: True).calls == []


def test_without_a_service_manager_that_waits_an_operator_sees_that_the_instance_is_stuck(caplog):
    instance = Instance(seconds=0)
    instance.runs = (Overrun("message 1", (), instance.progress_at - 5, is_cancelled=False),)
    notifier = watched(instance, lambda _: bool(instance.health.stuck))
    assert notifier.calls == [], "nothing would restart it"
    assert instance.health.stuck.startswith("the handler does not return: message 1")
    (line,) = caplog.messages
    assert line.startswith("stuck, and nothing restarts it: the handler does not return")


def test_an_instance_that_moves_again_is_not_stuck_any_more():
    instance = Instance(seconds=0)
    instance.health.stuck = "the handler does not return"
    watched(instance, lambda _: not instance.health.stuck)


def test_a_stuck_instance_logs_the_reason_and_its_stacks_once_and_pings_no_watchdog(capfd, caplog):
    instance = Instance()
    delivery = make_delivery()
    instance.runs = (
        Overrun("message 1", (delivery,), instance.progress_at - 5, is_cancelled=False),
    )
    notifier = watched(instance, lambda told: len(told.calls) >= 3)
    assert notifier.feeds == 0
    assert set(notifier.calls) == {("trigger", notifier.status_line)}
    assert notifier.status_line.startswith("Stuck: the handler does not return: message 1")
    (line,) = caplog.messages
    assert "the handler does not return: message 1" in line
    stacks = capfd.readouterr().err
    assert stacks.count("Current thread") == 1
    assert "in _check" in stacks
    assert instance.files.flight.charged == [delivery]
    assert not faulthandler.is_enabled(), "SIGABRT would write them a second time"


def blocks_the_loop(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_a_blocked_event_loop_is_warned_of_with_the_blocking_code(caplog):
    async def scenario():
        watched = BlockedLoop(limit=0.2, interval=0.05)
        watched.start()
        await asyncio.sleep(0.5)
        assert caplog.records == [], "it runs"
        blocks_the_loop(1)
        async with asyncio.timeout(20):
            while len(caplog.records) < 2:  # noqa: ASYNC110 -- it knows of no loop
                await asyncio.sleep(0.05)
        watched.stop()

    asyncio.run(scenario())
    blocked, runs = (record.getMessage() for record in caplog.records)
    assert "the event loop is blocked for " in blocked
    assert f" by blocks_the_loop ({__file__}, line " in blocked
    assert runs == "the event loop runs again"
