# SPDX-License-Identifier: GPL-2.0-or-later
"""A step of a handler is done once for each message, whatever fails after it."""

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
import time
from unittest.mock import MagicMock

import pytest
from fedora_messaging.message import Message
from twisted.internet import defer

from consumer_framework import BatchConsumer, Consumer, Defer, Quarantine, Retry
from consumer_framework.core.errors import StepResultError, StoreError
from consumer_framework.testing import Ack, Harness, Hold
from consumer_framework.testing import Quarantine as Quarantined
from consumer_framework.testing.fake_store import FakeStore

DAY = 86400.0
NO_RETRY = {"recovery": {"immediate": 0, "delays": []}}


def message(number=1):
    return Message(topic="org.example.test", body={"n": number})


class Steps(Consumer):
    """Does two steps, and fails as often as a test says after each."""

    latest: "Steps"

    def __init__(self, config):
        super().__init__(config)
        self.done = []
        self.failures = {}
        Steps.latest = self

    def effect(self, name, result):
        self.done.append(name)
        return result

    def fail(self, name):
        error = (config := self.config.get("fail", {})).get(name)
        if error:
            config[name] = None
            raise error

    def handle(self, _message):
        with self.once("file") as step:
            bug = step.run(self.effect, "file", 17)
        self.fail("after file")
        with self.once("comment") as step:
            step.run(self.effect, "comment", result=None)
            self.fail("in comment")
        self.fail("after comment")
        self.config.setdefault("bugs", []).append(bug)


class AsyncSteps(Steps):
    async def later(self, name, result):
        await asyncio.sleep(1.0)
        return self.effect(name, result)

    async def handle(self, _message):
        async with self.once("file") as step:
            bug = await step.run(self.later, "file", 17)
        self.fail("after file")
        async with self.once("comment") as step:
            await step.run(self.effect, "comment", result=None)
            self.fail("in comment")
        self.fail("after comment")
        self.config.setdefault("bugs", []).append(bug)


BOTH = pytest.mark.parametrize("consumer", [Steps, AsyncSteps])


def harness_of(consumer, errors=None, **settings):
    return Harness(consumer, config={"fail": errors or {}}, settings=settings)


def settle(harness, given):
    disposition = harness.deliver(given)
    if disposition is None:
        # Coroutines sleep.
        harness.advance(5)
    return disposition


@BOTH
@pytest.mark.parametrize("place", ["after file", "in comment", "after comment"])
def test_a_retry_skips_the_steps_that_are_done_and_has_their_results(consumer, place):
    with harness_of(consumer, {place: ValueError("no")}) as harness:
        given = message()
        settle(harness, given)
        harness.advance("1h")
        assert harness.acked == [given]
        assert len(harness.attempts(given)) == 1
        assert Steps.latest.done == ["file", "comment"]
        assert Steps.latest.config["bugs"] == [17]


class FailingEffect:
    done: list[str]

    def effect(self, name, result):
        self.done.append(name)
        if self.done == ["file"]:
            raise ValueError("once")
        return result


class FailingSteps(FailingEffect, Steps):
    pass


class FailingAsyncSteps(FailingEffect, AsyncSteps):
    pass


@pytest.mark.parametrize("consumer", [FailingSteps, FailingAsyncSteps])
def test_a_step_that_fails_is_done_again(consumer):
    with harness_of(consumer) as harness:
        given = message()
        settle(harness, given)
        harness.advance("1h")
        assert harness.acked == [given]
        assert Steps.latest.done == ["file", "file", "comment"]


@BOTH
def test_a_redelivery_to_a_new_process_skips_the_steps_that_were_done(consumer):
    # One retry at once would succeed.
    errors = {"after file": Retry(after=60)}
    with harness_of(consumer, errors) as harness:
        given = message()
        settle(harness, given)
        assert (harness.held, Steps.latest.done) == ([given], ["file"])
        harness.crash()
        harness.advance(5)
        assert harness.acked == [given]
        assert Steps.latest.done == ["comment"]
        assert Steps.latest.config["bugs"] == [17]


@BOTH
def test_a_deferred_message_skips_its_steps_when_it_runs_from_the_store(consumer):
    with harness_of(consumer, {"after file": Retry(after="1d")}) as harness:
        given = message()
        settle(harness, given)
        assert harness.deferred == [given]
        harness.crash()
        harness.advance("25h")
        assert harness.acked == [given]
        assert Steps.latest.done == ["comment"]


def test_a_message_that_is_published_again_has_steps_of_its_own_after_the_first_is_settled():
    with harness_of(Steps) as harness:
        given = message()
        assert harness.deliver(given) == harness.deliver(given) == Ack()
        assert Steps.latest.done == ["file", "comment"] * 2


def test_each_of_two_messages_has_its_own_steps():
    with harness_of(Steps) as harness:
        harness.deliver(message(1))
        harness.deliver(message(2))
        assert Steps.latest.done == ["file", "comment"] * 2


def test_a_skipped_step_is_logged(caplog):
    caplog.set_level(logging.INFO)
    with harness_of(Steps, {"after file": ValueError("no")}) as harness:
        harness.deliver(message())
    lines = [r.getMessage() for r in caplog.records if "step" in r.getMessage()]
    assert lines == ["the step 'file' was done before, and is skipped"]


def handled(method, **others):
    """Deliver a message to *method* of a consumer; return its disposition, results and attempts."""
    results = []

    async def coroutine(self, given):
        results.append(await method(self, given))

    def plain(self, given):
        results.append(method(self, given))

    form = coroutine if asyncio.iscoroutinefunction(method) else plain
    with Harness(type("One", (Consumer,), {"handle": form, **others})) as harness:
        given = message()
        disposition = harness.deliver(given)
        return disposition, results, harness.attempts(given)


def test_a_block_may_look_at_the_step_and_set_its_result():
    seen = []

    def handle(self, _message):
        for number in range(2):
            with self.once("a") as step:
                seen.append((step.name, step.done, step.result))
                if not step.done:
                    step.result = {"number": number}
        with self.once("a") as step:
            return step.run(pytest.fail)

    assert handled(handle)[:2] == (Ack(), [{"number": 0}])
    assert seen == [("a", False, None), ("a", True, {"number": 0})]


def test_a_coroutine_s_block_may_do_so_too():
    async def handle(self, _message):
        async with self.once("a") as step:
            step.result = [1]
        async with self.once("a") as step:
            return step.done, step.result, await step.run(pytest.fail)

    assert handled(handle)[:2] == (Ack(), [(True, [1], [1])])


def test_a_block_that_raises_without_run_leaves_the_step_to_be_done():
    def handle(self, _message):
        with contextlib.suppress(KeyError), self.once("a") as step:
            step.result = 1
            raise KeyError
        with self.once("a") as step:
            return step.done, step.result

    assert handled(handle)[1] == [(False, None)]


def test_a_block_that_catches_the_error_of_its_function_leaves_the_step_to_be_done():
    def handle(self, _message):
        with self.once("a") as step, contextlib.suppress(ZeroDivisionError):
            step.run(lambda: 1 / 0)
        with self.once("a") as step:
            return step.done

    assert handled(handle)[:2] == (Ack(), [False])


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("is_done", [False, True])
def test_a_run_that_nobody_awaits_is_refused_and_does_not_count_as_done(is_done):
    async def handle(self, _message):
        if is_done:
            async with self.once("a"):
                pass
        with pytest.raises(RuntimeError, match=r"'a' was not awaited: write `await step\.run"):
            await self.forgets()
        async with self.once("a") as step:
            return step.done

    async def forgets(self):
        async with self.once("a") as step:
            step.run(int)

    assert handled(handle, forgets=forgets)[:2] == (Ack(), [is_done])


@pytest.mark.parametrize("name", ["run", "done", "result"])
def test_a_step_is_used_in_its_block_alone(name):
    def handle(self, _message):
        with pytest.raises(AttributeError, match=rf"as step:`, and in its block `step\.{name}`"):
            getattr(self.once("a"), name)
        assert not hasattr(self.once("a"), "others")

    assert handled(handle)[0] == Ack()


def test_the_result_of_a_step_that_is_done_cannot_be_set():
    def handle(self, _message):
        with self.once("a") as step:
            step.run(int)
            with pytest.raises(RuntimeError, match="'a' is done, and keeps its result"):
                step.result = 2

    assert handled(handle)[0] == Ack()


def test_a_result_is_the_same_in_the_first_run_as_in_later_ones():
    def handle(self, _message):
        with self.once("a") as step:
            return step.run(lambda: {1: (2, 3)})

    assert handled(handle)[1] == [{"1": [2, 3]}]


def test_a_second_run_in_one_step_is_refused_since_it_would_be_skipped_later():
    def handle(self, _message):
        with self.once("a") as step:
            step.run(int)
            with pytest.raises(RuntimeError, match=r"twice in the step 'a': give each effect a"):
                step.run(int)

    assert handled(handle)[0] == Ack()


@pytest.mark.parametrize(
    "result", [object(), float("nan"), "x" * 70_000, MagicMock()], ids=lambda r: type(r).__name__
)
def test_a_result_that_cannot_be_recorded_quarantines_the_message_at_once(result):
    def handle(self, _message):
        with self.once("a") as step:
            step.run(lambda: result)

    disposition, _, attempts = handled(handle)
    assert isinstance(disposition, Quarantined)
    assert len(attempts) == 1
    assert "the result of the step 'a'" in disposition.reason
    assert issubclass(StepResultError, Quarantine)


def test_a_step_within_a_step_has_another_name():
    def handle(self, _message):
        with self.once("a") as outer:
            with pytest.raises(RuntimeError, match="'a' is under way already"), self.once("a"):
                pass
            with self.once("b") as inner:
                inner.run(int)
            assert not outer.done
        return outer.done

    assert handled(handle)[1] == [True]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "1 to 200 characters, not ''"),
        ("x" * 201, "1 to 200 characters"),
        (7, "not 7"),
        ("route:a", "those of the framework"),
        ("half a pair: \ud800", "valid text, not 'half a pair: .ud800'"),
    ],
)
def test_a_name_that_is_none_is_refused(name, why):
    def handle(self, _message):
        with pytest.raises(ValueError, match=why):
            self.once(name)

    assert handled(handle)[0] == Ack()


def test_a_coroutine_is_told_of_async_with():
    async def handle(self, _message):
        with pytest.raises(RuntimeError, match=r"`async with self\.once"), self.once("a"):
            pass

    assert handled(handle)[0] == Ack()


@pytest.mark.parametrize("make", [lambda: asyncio.sleep(0), lambda: defer.succeed(1)])
def test_a_plain_handler_is_told_of_async_with_when_its_function_is_a_coroutine_s(make):
    def handle(self, _message):
        with pytest.raises(TypeError, match=r"'a' returned an awaitable"), self.once("a") as step:
            step.run(make)
        with self.once("a") as step:
            return step.done

    assert handled(handle)[:2] == (Ack(), [False])


def test_a_coroutine_may_wait_for_a_deferred():
    async def handle(self, _message):
        async with self.once("a") as step:
            return await step.run(defer.succeed, 3)

    assert handled(handle)[:2] == (Ack(), [3])


def test_a_thread_and_a_task_of_the_handler_may_do_a_step():
    async def handle(self, _message):
        def in_thread():
            with self.once("thread") as step:
                return step.run(lambda: 1)

        async def in_task():
            async with self.once("task") as step:
                return await step.run(lambda: 2)

        return await asyncio.to_thread(in_thread), await asyncio.create_task(in_task())

    assert handled(handle)[:2] == (Ack(), [(1, 2)])


def test_a_plain_thread_needs_the_handler_s_context():
    def handle(self, _message):
        found = []

        def use():
            try:
                with self.once("a") as step:
                    found.append(step.run(lambda: 1))
            except RuntimeError as error:
                found.append(str(error)[:33])

        context = contextvars.copy_context()
        for run in use, lambda: context.run(use):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        return found

    assert handled(handle)[1] == [["once() works only while a handler", 1]]


class Asks(Consumer):
    """Asks for a step where no handler has a message."""

    def ask(self):
        with pytest.raises(RuntimeError, match="only while a handler has a message"):
            self.once("a")
        self.config.append("asked")

    def setup(self):
        self.ask()

    def handle(self, _message):
        self.is_over = threading.Event()
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self.ask_when_over,))
        self.thread.start()

    def ask_when_over(self):
        assert self.is_over.wait(10)
        self.ask()

    def teardown(self):
        self.is_over.set()
        self.thread.join()
        self.ask()


def test_a_step_needs_a_handler_that_has_a_message():
    asked: list[str] = []
    Asks(asked).ask()
    with Harness(type("Here", (Asks,), {"config": asked, "__init__": lambda *_: None})) as harness:
        harness.deliver(message())
    # By nobody's handler, in setup, in a thread that outlived its handler, and in teardown.
    assert asked == ["asked"] * 4


def test_a_process_that_the_handler_forks_has_no_steps():
    def handle(self, _message):
        child = os.fork()
        if child == 0:
            try:
                self.once("a")
            except RuntimeError:
                os._exit(7)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert handled(handle)[1] == [7]


# The store does not work.


@BOTH
def test_a_step_that_cannot_be_recorded_is_not_done_again_by_the_same_process(consumer):
    with harness_of(consumer) as harness:
        harness.store.error = StoreError("the disk is full")
        given = message()
        settle(harness, given)
        assert harness.held == [given]
        assert Steps.latest.done == ["file"]
        harness.advance("3m")
        assert Steps.latest.done == ["file"]
        harness.store.error = None
        harness.advance("10m")
        assert harness.acked == [given]
        assert Steps.latest.done == ["file", "comment"]
        assert harness.attempts(given) == ()


def test_a_step_that_could_not_be_recorded_is_done_again_by_the_next_process():
    with harness_of(Steps) as harness:
        harness.store.error = StoreError("the disk is full")
        given = message()
        harness.deliver(given)
        former = Steps.latest
        harness.crash()
        harness.store.error = None
        harness.advance("10m")
        assert harness.acked == [given]
        assert (former.done, Steps.latest.done) == (["file"], ["file", "comment"])


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_step_is_not_begun_if_the_steps_cannot_be_read(kind, monkeypatch):
    def plain(self, _message):
        with self.once("a") as step:
            step.run(pytest.fail)

    async def coroutine(self, _message):
        async with self.once("a") as step:
            await step.run(pytest.fail)

    def fail(_self, _delivery):
        raise StoreError("no disk")

    monkeypatch.setattr("consumer_framework.testing.fake_store.FakeStore.steps_of", fail)
    disposition = handled(plain if kind == "plain" else coroutine)[0]
    assert isinstance(disposition, Hold)
    assert disposition.reason.startswith("the step 'a' is not begun, since the steps cannot be")


def test_a_cancelled_coroutine_has_recorded_its_step():
    runs = []

    class Slow(AsyncSteps):
        async def handle(self, _message):
            async with self.once("file") as step:
                await step.run(self.effect, "file", 1)
                runs.append(step)
                await asyncio.sleep(3600 if len(runs) == 1 else 0)

    with harness_of(Slow, handler_timeout="30s") as harness:
        given = message()
        harness.deliver(given)
        harness.advance(40)
        (attempt,) = harness.attempts(given)
        assert attempt.error.endswith("HandlerTimeoutError")
        assert harness.acked == [given]
        assert Steps.latest.done == ["file"]


def test_a_row_that_cannot_be_read_at_the_record_makes_the_message_wait(monkeypatch):
    def handle(self, _message):
        with self.once("a") as step:
            step.run(int)

    def fail(*_):
        raise StoreError("no disk")

    monkeypatch.setattr("consumer_framework.testing.fake_store.FakeStore.record_step", fail)
    disposition = handled(handle)[0]
    assert isinstance(disposition, Hold)
    assert disposition.reason == "the step 'a' is done and cannot be recorded: no disk"


# Batches.


class Batched(BatchConsumer):
    def handle_batch(self, messages):
        for each in messages:
            with self.once("a", each) as step:
                step.run(self.config["done"].append, each.body["n"])
        if self.config["fail"]:
            raise self.config["fail"].pop()


BATCH = {"batch": {"size": 3, "seconds": 1}}


def test_each_message_of_a_batch_has_its_steps():
    config = {"done": [], "fail": [ValueError("no")]}
    with Harness(Batched, config=config, settings=BATCH) as harness:
        given = [message(n) for n in range(3)]
        harness.deliver_raw(b"no JSON")
        for each in given:
            harness.deliver(each)
        harness.advance("1h")
        assert harness.acked == given
        assert config["done"] == [0, 1, 2]


def test_a_batch_consumer_names_the_message_of_a_step():
    class Wrong(Batched):
        def handle_batch(self, messages):
            with pytest.raises(TypeError, match=r"write self\.once\('a', message\)"):
                self.once("a")
            with pytest.raises(ValueError, match="the handler does not have this message"):
                self.once("a", message(7))

    with Harness(Wrong, settings={"batch": {"size": 1}}) as harness:
        assert harness.deliver(message()) == Ack()


def test_a_consumer_of_single_messages_may_name_its_message():
    def handle(self, given):
        with self.once("a", given) as step:
            step.run(int)
        with pytest.raises(ValueError, match="does not have this message"):
            self.once("a", message())
        return step.done

    assert handled(handle)[1] == [True]


def test_a_quarantined_message_keeps_its_steps_for_its_replays():
    with harness_of(Steps, {"after file": ValueError("no")}, **NO_RETRY) as harness:
        given = message()
        assert isinstance(harness.deliver(given), Quarantined)
        harness.advance("1d")
        harness.restart()
        assert isinstance(harness.replay(given), Ack)
        assert Steps.latest.done == ["comment"]


def test_the_memory_of_steps_hears_that_a_message_is_with_its_row_now(monkeypatch):
    heard = []
    monkeypatch.setattr(FakeStore, "settled", lambda _, one, *, stays: heard.append((one, stays)))
    with harness_of(Steps, {"after file": Defer(time.time() + DAY, "not yet")}) as harness:
        given = message()
        harness.deliver(given)
        assert [(one.message_id, stays) for one, stays in heard] == [(given.id, True)]
        harness.advance("25h")
        assert harness.acked == [given]
        assert [(bool(one.row), stays) for one, stays in heard[1:]] == [(True, False)]
