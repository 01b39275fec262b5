# SPDX-License-Identifier: GPL-2.0-or-later
"""Another handler takes over while messages are handled."""

import asyncio
import threading

import pytest

from consumer_framework.adapters.executor import Executor, Limits
from consumer_framework.author.handler import Handler
from consumer_framework.core.delivery import Succeeded
from consumer_framework.core.errors import HandlerTimeoutError
from consumer_framework.core.gate import Gate
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

PATIENCE = 30


def play(scenario):
    """Run *scenario*; one that would wait for ever fails."""
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


async def until(condition):
    while not condition():  # noqa: ASYNC110 -- threads know no events of asyncio's
        await asyncio.sleep(0.001)


class Life:
    """Handlers that write down their life, and wait where a gate is closed."""

    def __init__(self, form):
        self.lines: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.gates: dict[str, threading.Event] = {}
        self._form = form

    def handler(self, name, *, fails=False):
        gate = self.gates[name] = threading.Event()
        gate.set()

        def setup():
            self._note(f"{name} setup")
            if fails:
                raise RuntimeError(name)

        def call(number):
            self._note(f"{name} begin {number}")
            assert gate.wait(PATIENCE)
            self._note(f"{name} end {number}")

        async def call_later(number):
            self._note(f"{name} begin {number}")
            await until(gate.is_set)
            self._note(f"{name} end {number}")

        calls = {"plain": call, "coroutine": call_later, "awaitable": lambda n: call_later(n)}  # noqa: PLW0108
        return Handler(name, calls[self._form], setup, lambda: self._note(f"{name} teardown"))

    def _note(self, line):
        self.lines.append(line)
        self.threads.add(threading.current_thread())

    def of(self, name):
        return [line.partition(" ")[2] for line in self.lines if line.startswith(name)]


@pytest.fixture(params=["plain", "coroutine", "awaitable"])
def life(request):
    return Life(request.param)


def executor_of(handler, slots=1, gate=None):
    flight = FakeFlightRecorder(places=64)
    return Executor(handler, lambda d: d.delivery_tag, flight, Limits(slots), gate)


def run(executor, numbers):
    deliveries = [make_delivery(delivery_tag=n, message_id=str(n)) for n in numbers]
    return [asyncio.create_task(executor.run(delivery)) for delivery in deliveries]


async def end(executor, runs):
    assert await asyncio.gather(*runs) == [Succeeded()] * len(runs)
    await executor.teardown()
    executor.close()
    assert not executor.is_busy
    assert executor.running == ()


def test_the_new_one_is_set_up_before_the_former_one_is_torn_down(life):
    async def scenario():
        executor = executor_of(life.handler("a"))
        await executor.setup()
        runs = run(executor, [1])
        await asyncio.gather(*runs)
        leaving = await executor.replace(life.handler("b"))
        assert leaving is not None
        assert await leaving is None
        await end(executor, run(executor, [2]))
        assert life.lines == [
            *("a setup", "a begin 1", "a end 1", "b setup", "a teardown"),
            *("b begin 2", "b end 2", "b teardown"),
        ]

    play(scenario())


def test_runs_that_have_begun_end_with_the_former_handler_before_its_teardown(life):
    async def scenario():
        executor = executor_of(life.handler("a"), 3)
        life.gates["a"].clear()
        runs = run(executor, [1, 2])
        await until(lambda: len(life.lines) == 2)
        leaving = await executor.replace(life.handler("b"))
        assert leaving is not None
        runs += run(executor, [3, 4, 5])
        await until(lambda: life.of("b").count("end 5") == 1)
        assert not leaving.done()
        assert "teardown" not in life.of("a")
        life.gates["a"].set()
        await leaving
        assert life.of("a")[-1] == "teardown"
        assert sorted(life.of("a")[2:4]) == ["end 1", "end 2"]
        await end(executor, runs)

    play(scenario())


def test_runs_that_wait_for_a_slot_get_the_new_handler(life):
    async def scenario():
        executor = executor_of(life.handler("a"), 2)
        life.gates["a"].clear()
        runs = run(executor, range(6))
        await until(lambda: len(life.lines) == 2)
        # Where there are threads, setup waits for one.
        change = asyncio.create_task(executor.replace(life.handler("b")))
        await asyncio.sleep(0.01)
        life.gates["a"].set()
        await change
        await end(executor, runs)
        began = [line for line in life.lines if "begin" in line]
        names = [line[0] for line in began]
        assert names == sorted(names), "between messages"
        assert life.lines.index("a teardown") > max(
            index for index, line in enumerate(life.lines) if line.startswith("a end")
        )

    play(scenario())


def test_two_handlers_share_the_one_slot(life):
    async def scenario():
        executor = executor_of(life.handler("a"))
        runs = run(executor, range(50))
        for name in "bcd":
            await executor.replace(life.handler(name))
            runs += run(executor, range(50))
        await end(executor, runs)
        ordered = [line for line in life.lines if "begin" in line or "end " in line]
        for begin, over in zip(ordered[::2], ordered[1::2], strict=True):
            assert over == begin.replace("begin", "end"), "never two at once"
        if life._form == "plain":
            assert len(life.threads) == 1, "what setup opened is of the thread that uses it"

    play(scenario())


def test_a_setup_that_fails_leaves_the_former_one(life):
    async def scenario():
        executor = executor_of(life.handler("a"))
        with pytest.raises(RuntimeError, match="b"):
            await executor.replace(life.handler("b", fails=True))
        await end(executor, run(executor, [1]))
        assert life.lines == ["b setup", "a begin 1", "a end 1", "a teardown"]

    play(scenario())


def test_a_setup_that_exits_does_not_end_the_process():
    async def scenario():
        def setup():
            raise SystemExit(3)

        executor = executor_of(Handler("a", lambda _: None))
        with pytest.raises(SystemExit):
            await executor.replace(Handler("b", lambda _: None, setup))
        executor.close()

    play(scenario())


def test_a_setup_that_takes_too_long_is_given_up_and_torn_down_when_it_has_ended():
    async def scenario():
        lines: list[str] = []
        gate = asyncio.Event()

        async def setup():
            await gate.wait()
            lines.append("setup")

        executor = executor_of(Handler("a", lambda _: lines.append("a")))
        late = Handler("b", lambda _: lines.append("b"), setup, lambda: lines.append("teardown"))
        with pytest.raises(HandlerTimeoutError, match="setup takes longer than"):
            await executor.replace(late, 0.01)
        await asyncio.gather(*run(executor, [1]))
        gate.set()
        await end(executor, run(executor, [2]))
        assert sorted(lines) == ["a", "a", "setup", "teardown"]

    play(scenario())


def test_a_stop_meanwhile_comes_first(life):
    async def scenario():
        gate = Gate()
        executor = executor_of(life.handler("a"), gate=gate)
        change = asyncio.create_task(executor.replace(life.handler("b")))
        await asyncio.sleep(0)
        gate.close()
        executor.stop()
        teardown = asyncio.create_task(executor.teardown())
        assert await change is None
        await teardown
        executor.close()
        assert life.lines == ["b setup", "b teardown", "a teardown"]

    play(scenario())


@pytest.mark.parametrize("order", ["withdraw", "stop"])
def test_a_withdrawal_takes_no_setup_and_no_teardown(life, order):
    """They wait behind another one for a thread, while the instance pauses or stops."""

    async def scenario():
        event, gate = threading.Event(), Gate()
        executor = executor_of(life.handler("a"), gate=gate)
        blocker = Handler("b", print, lambda: event.wait(PATIENCE), lambda: life.lines.append("b"))
        changes = [asyncio.create_task(executor.replace(blocker))]
        await asyncio.sleep(0)
        changes.append(asyncio.create_task(executor.replace(life.handler("c"))))
        await asyncio.sleep(0)
        if order == "stop":
            gate.close()
        getattr(executor, order)()
        event.set()
        replaced = await asyncio.gather(*changes)
        await executor.teardown()
        executor.close()
        assert life.of("c")[0] == "setup"
        assert sorted(line for line in life.lines if line != "c setup") == (
            ["a teardown", "b", "c teardown"]
        )
        assert (replaced == [None, None]) == (order == "stop")

    play(scenario())


def test_the_end_waits_for_handlers_that_leave(life):
    async def scenario():
        gate = Gate()
        executor = executor_of(life.handler("a"), 2, gate)
        life.gates["a"].clear()
        runs = run(executor, [1])
        await until(lambda: life.lines)
        await executor.replace(life.handler("b"))
        gate.close()
        executor.stop()
        teardown = asyncio.create_task(executor.teardown())
        await asyncio.sleep(0.01)
        assert "teardown" not in life.of("b")
        life.gates["a"].set()
        await teardown
        assert life.of("a")[-1] == "teardown"
        assert life.of("b")[-1] == "teardown"
        await asyncio.gather(*runs)
        executor.close()

    play(scenario())


def test_a_change_goes_on_where_its_caller_is_cancelled(life):
    async def scenario():
        executor = executor_of(life.handler("a"))
        change = asyncio.create_task(executor.replace(life.handler("b")))
        await asyncio.sleep(0)
        change.cancel()
        await until(lambda: "a teardown" in life.lines)
        await end(executor, run(executor, [1]))
        assert life.of("b") == ["setup", "begin 1", "end 1", "teardown"]

    play(scenario())


def test_a_failed_teardown_is_logged_and_has_no_other_effect():
    async def scenario():
        def teardown():
            raise RuntimeError("too late")

        executor = executor_of(Handler("a", lambda _: None, None, teardown))
        leaving = await executor.replace(Handler("b", lambda _: None))
        assert leaving is not None
        assert str(await leaving) == "too late"
        await end(executor, run(executor, [1]))

    play(scenario())
