# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that a process died with run alone."""

import asyncio
from typing import Any

from consumer_framework.core.attempt import History
from consumer_framework.core.delivery import Succeeded, Withdrawn
from consumer_framework.core.gate import Gate
from consumer_framework.runtime.suspects import SuspectIsolation
from consumer_framework.testing import FakeClock, make_delivery


class Runner:
    """Runs until it is told to end."""

    is_quick = True

    def __init__(self):
        self.running: dict[str, asyncio.Future[Any]] = {}
        self.stopped = False

    async def run(self, delivery):
        future = self.running[delivery.message_id] = asyncio.get_running_loop().create_future()
        try:
            return await future
        finally:
            del self.running[delivery.message_id]

    def stop(self):
        self.stopped = True

    def withdraw(self, which=lambda _delivery: True):
        return 0

    async def end(self, name):
        self.running[name].set_result(Succeeded())
        await turns()


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


def of(name):
    """A message; one whose name begins with "s" is a suspect."""
    return make_delivery(message_id=name, history=History(crashes=int(name.startswith("s"))))


async def begun(*names, gate=None):
    runner = Runner()
    alone = SuspectIsolation(runner, FakeClock(), gate)
    tasks = {name: asyncio.ensure_future(alone.run(of(name))) for name in names}
    await turns()
    return runner, alone, tasks


def test_a_suspect_waits_for_running_messages_and_lets_the_others_wait():
    async def scenario():
        runner, alone, tasks = await begun("a", "b", "s1", "c", "s2", "d")
        assert alone.is_quick
        assert set(runner.running) == {"a", "b"}
        await runner.end("a")
        await runner.end("b")
        assert set(runner.running) == {"s1"}
        await runner.end("s1")
        assert set(runner.running) == {"s2"}
        await runner.end("s2")
        assert set(runner.running) == {"c", "d"}
        await runner.end("c")
        await runner.end("d")
        assert await asyncio.gather(*tasks.values()) == [Succeeded()] * 6

    asyncio.run(scenario())


def test_waiting_runs_can_be_withdrawn_and_none_begins_after_a_stop():
    async def scenario():
        gate = Gate()
        runner, alone, tasks = await begun("a", "s1", "b", "c", gate=gate)
        assert alone.withdraw(lambda delivery: delivery.message_id == "s1") == 1
        assert isinstance(await tasks["s1"], Withdrawn)
        await turns()
        assert set(runner.running) == {"a", "b", "c"}, "no suspect is left"
        late = asyncio.ensure_future(alone.run(of("s2")))
        other = asyncio.ensure_future(alone.run(of("s3")))
        await turns()
        gate.close()
        alone.stop()
        for name in ("a", "b", "c"):
            await runner.end(name)
        assert runner.stopped
        assert not runner.running
        assert alone.withdraw() == 2
        assert await asyncio.gather(late, other) == [Withdrawn()] * 2

    asyncio.run(scenario())


async def begin_behind_a_suspect(alone):
    asyncio.ensure_future(alone.run(of("s3")))  # noqa: RUF006 -- ended by the test
    waits = asyncio.ensure_future(alone.run(of("c")))
    await turns()
    return waits


def test_a_cancelled_run_does_not_block_others():
    async def scenario():
        runner, alone, tasks = await begun("s1", "s2", "a")
        tasks["s2"].cancel()
        await turns()
        tasks["s1"].cancel()
        # It is let in, and cancelled before it goes on.
        await asyncio.sleep(0)
        tasks["a"].cancel()
        await turns()
        assert not runner.running
        waits = await begin_behind_a_suspect(alone)
        alone.withdraw()
        waits.cancel()
        await turns()
        await runner.end("s3")
        last = asyncio.ensure_future(alone.run(of("b")))
        await turns()
        assert set(runner.running) == {"b"}
        await runner.end("b")
        assert isinstance(await last, Succeeded)

    asyncio.run(scenario())
