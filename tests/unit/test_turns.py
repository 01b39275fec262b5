# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of messages while one of them goes through several routes."""

import asyncio
import contextlib

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.routed import Turns
from consumer_framework.testing import make_delivery


def turns(*, serial=True):
    return Turns(SystemClock(), lambda: serial)


def delivery(number):
    return make_delivery(delivery_tag=number)


async def settle_down():
    for _ in range(5):
        await asyncio.sleep(0)


def waiting(line, heard, number, *, passes=False):
    async def wait():
        take = line.pass_by if passes else line.take
        heard.append((number, await take(delivery(number))))

    return asyncio.get_running_loop().create_task(wait())


def play(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_messages_get_their_turns_in_the_order_of_their_coming():
    async def scenario():
        line = turns()
        heard: list[tuple[int, bool]] = []
        assert await line.take(delivery(0))
        tasks = [waiting(line, heard, number, passes=number == 2) for number in (1, 2, 3)]
        await settle_down()
        assert heard == []
        line.leave()
        await settle_down()
        assert heard == [(1, True)]
        line.leave()
        await settle_down()
        # The second passes by, and the third follows at once.
        assert heard[1:] == [(2, True), (3, True)]
        line.leave()
        assert not line.is_taken
        await asyncio.gather(*tasks)

    play(scenario)


def test_without_an_order_nobody_waits():
    async def scenario():
        line = turns(serial=False)
        assert await line.take(delivery(0))
        assert await line.take(delivery(1))
        line.leave()
        line.leave()
        assert not line.is_taken

    play(scenario)


def test_a_message_that_waits_can_be_withdrawn():
    async def scenario():
        line = turns()
        heard: list[tuple[int, bool]] = []
        await line.take(delivery(0))
        tasks = [waiting(line, heard, n, passes=n == 1) for n in (1, 2, 3)]
        await settle_down()
        assert line.withdraw(lambda each: each.delivery_tag != 3) == 2
        await settle_down()
        assert heard == [(1, False), (2, False)]
        line.leave()
        await asyncio.gather(*tasks)
        assert heard[2:] == [(3, True)]

    play(scenario)


def test_a_caller_that_is_cancelled_leaves_the_line_whatever_it_was_told_meanwhile():
    async def scenario():
        line = turns()
        heard: list[tuple[int, bool]] = []
        await line.take(delivery(0))
        waits, called, withdrawn, last = (waiting(line, heard, n) for n in (1, 2, 3, 4))
        await settle_down()
        waits.cancel()
        await settle_down()
        line.leave()
        called.cancel()
        line.withdraw(lambda each: each.delivery_tag == 3)
        withdrawn.cancel()
        await settle_down()
        assert heard == [(4, True)]
        line.leave()
        assert not line.is_taken
        for task in (waits, called, withdrawn):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await last

    play(scenario)
