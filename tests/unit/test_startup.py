# SPDX-License-Identifier: GPL-2.0-or-later
"""The author's set-up, tried until its dependencies are there."""

import asyncio

import pytest

from consumer_framework.author.handler import Handler
from consumer_framework.core import limits
from consumer_framework.core.errors import DependencyFault, Skip
from consumer_framework.core.gate import Gate
from consumer_framework.core.recovery import Policy, Rule, Then
from consumer_framework.runtime.assembly.plan import Plan
from consumer_framework.runtime.startup import Startup
from consumer_framework.settings import Framework
from consumer_framework.testing.fakes import FakeFlightRecorder

PATIENCE = 20
GONE = DependencyFault("the database is gone")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Attempts follow each other quickly, and grow apart all the same."""
    real = limits.backoff_delay
    monkeypatch.setattr(
        limits, "backoff_delay", lambda attempt, spread: real(attempt, spread) / 1000
    )


class Author:
    """Code whose parts fail so often."""

    def __init__(self, *errors, fails="setup", is_coroutine=False, rules=()):
        self.errors = list(errors)
        self.fails = fails
        self.made = 0
        self.said = []
        self.gate = Gate()
        plan = Plan("test", self._make, Policy(rules=rules), Framework())
        self.startup = None
        self.is_coroutine = is_coroutine
        self.plan = plan

    def _fail(self):
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error

    async def _fail_later(self):
        await asyncio.sleep(0)
        self._fail()

    def _make(self):
        self.made += 1
        if self.fails == "init":
            self._fail()
            return Handler("test", print)
        return Handler("test", print, setup=self._fail_later if self.is_coroutine else self._fail)

    def said_one(self, what):
        self.said.append(what)

    def run(self, meanwhile=None):
        async def scenario():
            startup = Startup(
                self.plan, FakeFlightRecorder(places=1), self.said_one, self.gate, lambda: 0.0
            )
            self.startup = startup
            task = asyncio.ensure_future(startup.run())
            if meanwhile:
                await meanwhile(startup)
            built = await asyncio.wait_for(task, PATIENCE)
            if built:
                built[1].close()
            return built

        return asyncio.run(scenario())


def test_a_set_up_that_succeeds_is_done_once_and_nothing_is_said():
    author = Author()
    handler, executor = author.run()
    assert handler.name == "test"
    assert executor.running == ()
    assert author.made == 1
    assert author.said == []


@pytest.mark.parametrize(
    "options", [{"fails": "init"}, {"fails": "setup"}, {"fails": "setup", "is_coroutine": True}]
)
def test_a_broken_dependency_is_waited_out_with_a_new_handler_for_each_attempt(options):
    author = Author(GONE, ConnectionRefusedError(111, "refused"), GONE, **options)
    assert author.run() is not None
    assert author.made == 4
    assert [what for what in author.said if what] == [
        "the database is gone; attempt 2 in 0 s",
        "ConnectionRefusedError: [Errno 111] refused; attempt 3 in 0 s",
        "the database is gone; attempt 4 in 0 s",
    ]
    assert author.said[-1] == "", "the last attempt began"


@pytest.mark.parametrize("fails", ["init", "setup"])
@pytest.mark.parametrize("error", [ValueError("typo"), Skip("x"), SystemExit(3)])
def test_an_error_of_setup_that_is_no_dependency_fault_is_raised_at_once(fails, error):
    author = Author(GONE, error, fails=fails)
    with pytest.raises(type(error)):
        author.run()
    assert author.made == 2


def test_a_rule_makes_a_dependency_of_any_exception():
    author = Author(LookupError("x"), rules=(Rule((LookupError,), Then.DEPENDENCY),))
    assert author.run() is not None
    assert author.made == 2


def test_an_order_to_stop_ends_the_wait_between_two_attempts(monkeypatch):
    monkeypatch.setattr(limits, "backoff_delay", lambda _attempt, _spread: 3600.0)
    author = Author(GONE, GONE)

    async def stop(startup):
        while not author.said:  # noqa: ASYNC110 -- a list tells nobody
            await asyncio.sleep(0.001)
        author.gate.close()

    assert author.run(stop) is None
    assert author.made == 1


def test_an_attempt_that_succeeds_after_an_order_to_stop_is_a_success():
    author = Author()

    async def stop(startup):
        author.gate.close()

    assert author.run(stop) is not None
