# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of ``fm-consumer top``: its table, its details, its keys."""

from __future__ import annotations

import asyncio
import re
import time
from html import unescape

import pytest

pytest.importorskip("textual")

from consumer_framework.cli.top_screen import TopApp
from consumer_framework.cli.top_sources import Source
from consumer_framework.core.loss import Loss
from consumer_framework.operate.details import Cause, Details, Handler, InFlight
from consumer_framework.operate.hosts import HostsError
from consumer_framework.operate.rows import Row

# Seconds; the machine may be busy.
PATIENCE = 30.0


def row(name, condition="consuming", **more):
    return Row("", name, name, is_active=True, should_run=True, condition=condition, **more)


class Instances(Source):
    """Rows and details that a test chooses; orders are noted.

    Attributes:
        now: The rows of the next looks, or the error that they raise.
    """

    def __init__(self, rows, details=Details()):  # noqa: B008 -- frozen
        self.now = rows
        self._details = details
        self.orders = []
        self.is_closed = False

    def rows(self):
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def details(self, row):
        return self._details

    def order(self, row, verb):
        self.orders.append((verb, row.name))
        if row.name == "stubborn":
            raise HostsError("it cannot be paused")
        return "paused it"

    def close(self):
        self.is_closed = True


class Terminal:
    """The app in a terminal of 80 columns and 24 lines."""

    def __init__(self, app, pilot):
        self.app, self.pilot = app, pilot

    @property
    def text(self):
        """The text of the screen, as its picture has it."""
        picture = self.app.export_screenshot()
        return unescape(" ".join(re.findall(r">([^<]+)</text>", picture))).replace("\xa0", " ")

    async def shows(self, *texts):
        end = time.monotonic() + PATIENCE
        while missing := [text for text in texts if text not in self.text]:
            assert time.monotonic() < end, f"{missing} in {self.text}"
            await self.pilot.pause(0.02)

    async def is_without(self, text):
        end = time.monotonic() + PATIENCE
        while text in self.text:
            assert time.monotonic() < end, f"{text} in {self.text}"
            await self.pilot.pause(0.02)

    async def press(self, *keys):
        await self.pilot.press(*keys)


def on_screen(source, play, interval=0.1):
    async def run():
        app = TopApp(source, interval)
        async with app.run_test(size=(80, 24), notifications=True) as pilot:
            await play(Terminal(app, pilot))
        return app

    return asyncio.run(run())


def test_the_table_shows_each_instance_with_the_reason_of_the_one_below_the_cursor():
    loss = Loss("the queue is full", 7300.0, "add workers")
    lagging = row("builds", "lagging", reason="9 wait", rate=118.0, lag=12_345, lag_seconds=60.0)
    source = Instances([lagging, row("koji", quarantined=7, loss=loss), row("web")])

    async def play(terminal):
        await terminal.shows("3 instances: 1 lagging, 2 consuming", "118/s", "12.3k", "2h")
        await terminal.shows("builds: lagging: 9 wait")
        await terminal.press("down")
        await terminal.is_without("builds: lagging: 9 wait")
        await terminal.press("q")

    on_screen(source, play)
    assert source.is_closed


def test_a_look_that_fails_is_shown_above_the_former_rows_until_the_next_one():
    source = Instances([row("a")])

    async def play(terminal):
        await terminal.shows("1 instance: 1 consuming")
        source.now = HostsError("ssh cannot be run")
        await terminal.shows("ssh cannot be run", "1 instance: 1 consuming")
        source.now = [row("a"), row("b")]
        await terminal.shows("2 instances")
        await terminal.is_without("ssh cannot be run")

    on_screen(source, play)


def test_the_cursor_stays_on_its_instance_when_another_one_becomes_urgent():
    source = Instances([row("a"), row("b", reason="mine"), row("c")])

    async def play(terminal):
        await terminal.shows("3 instances")
        await terminal.press("down")
        await terminal.shows("b: consuming: mine")
        source.now = [*source.now[:2], row("c", "failed")]
        await terminal.shows("1 failed", "b: consuming: mine")

    on_screen(source, play)


def test_a_filter_leaves_the_instances_that_fit_and_escape_takes_it_away():
    source = Instances([row("builds"), row("koji")])

    async def play(terminal):
        await terminal.shows("builds", "koji")
        await terminal.press("slash", "k", "o", "enter")
        await terminal.is_without("builds")
        await terminal.shows("koji")
        await terminal.press("escape")
        await terminal.shows("builds", "koji")

    on_screen(source, play)


def test_enter_shows_messages_in_flight_the_slowest_handlers_and_causes():
    in_flight = InFlight(75.0, 2, "org.example.build", "message-1", "handle (builds.py:12)")
    slow, fast = Handler("builds, on_build", 2.5, 41_200), Handler("koji", 0.02, 1)
    cause = Cause(412, 0.0, "org.example.build", "KeyError: 'name'")
    source = Instances(
        [row("builds", "slow", reason="a handler takes long", handled=41_200, running=1)],
        details=Details((in_flight,), (slow, fast), (cause,)),
    )

    async def play(terminal):
        await terminal.shows("builds")
        await terminal.press("enter")
        await terminal.shows("builds: slow: a handler takes long", "handled 41,200")
        await terminal.shows(
            "1m  run 2  org.example.build", "message-1", "in handle (builds.py:12)"
        )
        await terminal.shows("2.5s  41,200 runs  builds, on_build", "20ms  1 run  koji")
        await terminal.shows("412  KeyError: 'name'")
        await terminal.press("escape")
        await terminal.shows("1 instance")

    on_screen(source, play)


def test_the_details_of_an_instance_that_cannot_be_asked_have_the_reason():
    source = Instances([row("builds")], details=Details(problem="use sudo"))

    async def play(terminal):
        await terminal.shows("builds")
        await terminal.press("enter")
        await terminal.shows("use sudo")

    on_screen(source, play)


def test_the_details_of_an_instance_that_is_gone_say_so():
    source = Instances([row("builds")])

    async def play(terminal):
        await terminal.shows("builds")
        await terminal.press("enter")
        await terminal.shows("builds: consuming")
        source.now = []
        await terminal.shows("the instance is gone")

    on_screen(source, play)


@pytest.mark.parametrize(("key", "verb"), [("p", "pause"), ("r", "resume")])
def test_an_order_is_carried_out_after_a_yes_and_not_after_a_no(key, verb):
    source = Instances([row("builds")])

    async def play(terminal):
        await terminal.shows("builds")
        await terminal.press(key)
        await terminal.shows(f"{verb} builds? y/n")
        await terminal.press("n")
        await terminal.is_without("y/n")
        assert source.orders == []
        await terminal.press(key)
        await terminal.shows(f"{verb} builds? y/n")
        await terminal.press("y")
        await terminal.shows("paused it")

    on_screen(source, play)
    assert source.orders == [(verb, "builds")]


def test_the_name_of_an_instance_of_another_host_does_nothing_to_the_terminal():
    async def play(terminal):
        await terminal.shows("builds")
        await terminal.press("p")
        await terminal.shows(r"pause builds\x1b]0;x\x07? y/n")

    on_screen(Instances([row("builds\x1b]0;x\x07")]), play)


def test_an_order_works_in_the_details_too_and_its_refusal_is_shown():
    source = Instances([row("stubborn")])

    async def play(terminal):
        await terminal.shows("stubborn")
        await terminal.press("enter")
        await terminal.press("p")
        await terminal.shows("pause stubborn? y/n")
        await terminal.press("y")
        await terminal.shows("it cannot be paused")

    on_screen(source, play)


def test_80_instances_scroll_and_hostile_names_do_nothing_to_the_terminal():
    many = [row(f"builds_{number:02}") for number in range(79)]
    source = Instances([*many, row("a\x1b[31m[b]x", "fai\x07led")])

    async def play(terminal):
        await terminal.shows("80 instances", "a\\x1b[31m[b]x", "fai\\x07le")
        await terminal.press("end")
        await terminal.shows("builds_78")

    on_screen(source, play)
