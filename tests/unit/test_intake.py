# SPDX-License-Identifier: GPL-2.0-or-later
"""The deliveries that wait for a slot."""

import asyncio

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.core.gate import Gate
from consumer_framework.core.intake import Intake
from consumer_framework.testing import make_delivery


def numbered(tag, generation=1):
    return make_delivery(delivery_tag=tag, generation=generation)


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


def test_deliveries_are_taken_in_the_order_of_their_arrival():
    async def scenario():
        intake = Intake(SystemClock())
        for tag in (1, 2, 3):
            intake.put(numbered(tag))
        assert len(intake) == 3
        assert [await intake.take() for _ in range(3)] == [numbered(tag) for tag in (1, 2, 3)]
        assert len(intake) == 0

    asyncio.run(scenario())


def test_a_delivery_that_was_put_first_is_taken_first():
    async def scenario():
        intake = Intake(SystemClock())
        for tag in (1, 2):
            intake.put(numbered(tag))
        intake.put_first(numbered(3))
        assert len(intake) == 3
        assert [await intake.take() for _ in range(3)] == [numbered(tag) for tag in (3, 1, 2)]

    asyncio.run(scenario())


def test_a_delivery_that_is_put_first_wakes_a_waiting_slot():
    async def scenario():
        intake = Intake(SystemClock())
        slots = [asyncio.create_task(intake.take()) for _ in range(2)]
        await turns()
        intake.put_first(numbered(1))
        await turns()
        assert slots[0].result() == numbered(1)
        assert not slots[1].done()
        intake.put_first(numbered(2))
        assert await slots[1] == numbered(2)

    asyncio.run(scenario())


def test_rows_that_are_due_and_new_deliveries_take_turns():
    async def scenario():
        intake = Intake(SystemClock())
        rows = [make_delivery(delivery_tag=n, generation=0, row=n) for n in (11, 12, 13)]
        for delivery in [*rows, numbered(1), numbered(2), numbered(3), numbered(4), numbered(5)]:
            intake.put(delivery)
        intake.put_first(numbered(9))
        taken = [await intake.take() for _ in range(9)]
        tags = [delivery.delivery_tag for delivery in taken if delivery is not None]
        assert tags == [9, 11, 1, 12, 2, 13, 3, 4, 5]

    asyncio.run(scenario())


def test_slots_that_wait_get_one_delivery_each():
    async def scenario():
        intake = Intake(SystemClock())
        slots = [asyncio.create_task(intake.take()) for _ in range(3)]
        await turns()
        intake.put(numbered(1))
        intake.put(numbered(2))
        await turns()
        assert [slot.result() for slot in slots[:2]] == [numbered(1), numbered(2)]
        assert not slots[2].done()
        intake.put(numbered(3))
        assert await slots[2] == numbered(3)

    asyncio.run(scenario())


def test_a_slot_that_is_quicker_than_the_woken_one_leaves_no_slot_stuck():
    async def scenario():
        intake = Intake(SystemClock())
        woken = asyncio.create_task(intake.take())
        await turns()
        intake.put(numbered(1))
        assert await intake.take() == numbered(1)
        await turns()
        assert not woken.done()
        intake.put(numbered(2))
        assert await woken == numbered(2)

    asyncio.run(scenario())


def test_a_canceled_slot_takes_no_delivery_from_the_others():
    async def scenario():
        intake = Intake(SystemClock())
        canceled, other = (asyncio.create_task(intake.take()) for _ in range(2))
        await turns()
        canceled.cancel()
        await turns()
        intake.put(numbered(1))
        assert await other == numbered(1)

    asyncio.run(scenario())


def test_only_deliveries_of_a_channel_that_is_gone_are_forgotten():
    async def scenario():
        intake = Intake(SystemClock())
        for tag, generation in ((1, 1), (1, 2), (2, 1)):
            intake.put(numbered(tag, generation))
        assert intake.discard(1) == [numbered(1, 1), numbered(2, 1)]
        assert intake.discard(1) == []
        assert await intake.take() == numbered(1, 2)

    asyncio.run(scenario())


def test_a_slot_whose_delivery_was_forgotten_waits_for_the_next_one():
    async def scenario():
        intake = Intake(SystemClock())
        slot = asyncio.create_task(intake.take())
        await turns()
        intake.put(numbered(1, 1))
        intake.discard(1)
        await turns()
        assert not slot.done()
        intake.put(numbered(1, 2))
        assert await slot == numbered(1, 2)

    asyncio.run(scenario())


def test_a_closed_intake_gives_no_slot_a_delivery_and_returns_the_waiting_ones():
    async def scenario():
        gate = Gate()
        intake = Intake(SystemClock(), gate=gate)
        slots = [asyncio.create_task(intake.take()) for _ in range(2)]
        await turns()
        gate.close()
        assert await asyncio.gather(*slots) == [None, None]
        intake.put(numbered(1))
        intake.put(numbered(2))
        assert await intake.take() is None
        assert intake.clear() == [numbered(1), numbered(2)]
        assert intake.clear() == []

    asyncio.run(scenario())
