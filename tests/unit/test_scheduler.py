# SPDX-License-Identifier: GPL-2.0-or-later
"""The scheduler: few rows are out at once, and it is quick however many are due."""

import asyncio

import pytest
from twisted.internet import task

from consumer_framework.core.errors import StoreError
from consumer_framework.core.gate import Gate, Reason
from consumer_framework.core.intake import Holds, Intake
from consumer_framework.runtime import scheduler
from consumer_framework.testing import FakeClock, make_delivery
from consumer_framework.testing.fake_store import FakeStore


class CountingStore(FakeStore):
    """Remembers how many rows each look brought, and can be unreadable."""

    def __init__(self):
        super().__init__()
        self.looks = []
        self.unreadable = None
        self.rebased = []

    async def rebase(self, now):
        await super().rebase(now)
        self.rebased.append(now)
        return 0

    def due(self, now, limit, out=()):
        if self.unreadable:
            raise self.unreadable
        found = super().due(now, limit, out)
        self.looks.append(len(found))
        return found


class Rig:
    def __init__(self, rows, body=b"{}", lane=""):
        self.clock, self.reactor = FakeClock(1000.0), task.Clock()
        self.store, self.intake, self.holds = (
            CountingStore(),
            Intake(self.clock),
            Holds(4, self.clock),
        )
        self.gate = Gate()
        self.rows, self.body, self.lane = rows, body, lane
        self.scheduler = scheduler.Scheduler(
            self.holds, self.store, self.intake, self.clock, self.reactor, self.gate, lambda: None
        )

    async def fill(self):
        for number in range(self.rows):
            delivery = make_delivery(message_id=str(number), body=self.body, lane=self.lane)
            await self.store.defer(delivery, 900.0)
        self.scheduler.read_store()

    async def handle_one(self):
        delivery = await asyncio.wait_for(self.intake.take(), 5)
        assert delivery is not None
        await self.store.remove(delivery.row)
        self.intake.left(delivery)
        self.scheduler.done(delivery)
        await asyncio.sleep(0)
        return delivery.message_id


def play(rig, scenario):
    async def main():
        await rig.fill()
        await scenario(rig)

    asyncio.run(main())


def test_all_rows_that_are_due_run_without_waiting_for_a_timer():
    async def scenario(rig):
        assert [await rig.handle_one() for _ in range(1000)] == [str(n) for n in range(1000)]

    play(Rig(1000), scenario)


def test_no_more_rows_are_out_than_may_be_and_none_is_read_twice():
    async def scenario(rig):
        assert len(rig.intake) == scheduler.MOST_OUT
        assert rig.scheduler.is_behind
        for _ in range(1000):
            await rig.handle_one()
            assert len(rig.intake) <= scheduler.MOST_OUT
        assert sum(rig.store.looks) == 1000
        assert len(rig.store.looks) <= 1000 / (scheduler.MOST_OUT / 2) + 1
        assert not rig.scheduler.is_behind

    play(Rig(1000), scenario)


def test_rows_that_are_deferred_again_bring_no_more_than_those_that_are_due():
    async def scenario(rig):
        for _ in range(600):
            delivery = await asyncio.wait_for(rig.intake.take(), 5)
            assert delivery is not None
            await rig.store.defer(delivery, 2000.0)
            rig.scheduler.done(delivery)
            rig.scheduler.deferred(2000.0)
            await asyncio.sleep(0)
        assert len(rig.intake) == 0
        assert sum(rig.store.looks) == 600
        assert len(rig.store.looks) < 12

    play(Rig(600), scenario)


def test_large_bodies_are_bounded_by_their_bytes(monkeypatch):
    monkeypatch.setattr(scheduler, "MOST_BYTES", 4000)

    async def scenario(rig):
        first = len(rig.intake)
        for _ in range(first):
            await rig.handle_one()
        assert len(rig.intake) > 0, "there is room again"
        assert await rig.handle_one() == str(first)

    play(Rig(400, body=b"x" * 100), scenario)


def test_the_next_row_of_a_lane_follows_when_the_one_before_it_is_done():
    async def scenario(rig):
        assert [await rig.handle_one() for _ in range(40)] == [str(n) for n in range(40)]

    play(Rig(40, lane="key"), scenario)


def test_a_store_that_cannot_be_read_is_said_once_and_read_again(caplog):
    async def scenario(rig):
        rig.store.unreadable = StoreError("disk I/O error")
        while len(rig.intake):
            await rig.handle_one()
        rig.scheduler.read_store()
        assert caplog.text.count("disk I/O error") == 1
        rig.store.unreadable = None
        rig.clock.advance(scheduler.UNREADABLE_SLEEP)
        rig.reactor.advance(scheduler.UNREADABLE_SLEEP)
        while len(rig.intake):
            await rig.handle_one()
        assert sum(rig.store.looks) == 400

    play(Rig(400), scenario)


@pytest.mark.parametrize("until", [1000.5, 1020.0])
def test_the_alarm_rings_for_the_latest_deferred_message(until):
    async def scenario(rig):
        await rig.store.defer(make_delivery(), until)
        rig.scheduler.deferred(until)
        await asyncio.sleep(0)
        assert len(rig.intake) == 0
        rig.clock.advance(until - 1000)
        rig.reactor.advance(until - 1000)
        assert len(rig.intake) == 1

    play(Rig(0), scenario)


def test_rows_are_brought_forward_when_the_clock_is_set_back(caplog):
    async def scenario(rig):
        await rig.store.defer(make_delivery(), 1010.0)
        rig.clock._time -= 3600
        rig.scheduler.read_store()
        for _ in range(3):
            await asyncio.sleep(0)
        assert rig.store.rebased == [1000.0 - 3600]
        assert "set back by 3600 s" in caplog.text
        rig.scheduler.read_store()
        await asyncio.sleep(0)
        assert len(rig.store.rebased) == 1

    play(Rig(0), scenario)


def test_rows_that_cannot_be_brought_forward_are_logged(caplog):
    async def scenario(rig):
        rig.store.error = StoreError("the disk is full")
        rig.clock._time -= 3600
        rig.scheduler.read_store()
        for _ in range(3):
            await asyncio.sleep(0)
        assert "may be late by as much: the disk is full" in caplog.text

    play(Rig(0), scenario)


def test_nothing_comes_back_while_the_gate_is_shut_and_everything_when_it_opens():
    async def scenario(rig):
        rig.gate.suspend(Reason.DEPENDENCY)
        await rig.store.defer(make_delivery(message_id="late"), 900.0)
        rig.scheduler.read_store()
        assert len(rig.intake) == 0
        assert rig.reactor.getDelayedCalls() == []
        rig.gate.suspend(Reason.STORE)
        rig.gate.resume(Reason.DEPENDENCY)
        assert len(rig.intake) == 1, "rows make room where the store is full"

    play(Rig(0), scenario)


def test_a_store_that_works_again_during_a_drain_brings_nothing_back():
    async def scenario(rig):
        rig.gate.suspend(Reason.STORE)
        rig.gate.close()
        await rig.store.defer(make_delivery(message_id="late"), 900.0)
        rig.gate.resume(Reason.STORE)
        rig.scheduler.deferred(900.0)
        await asyncio.sleep(0)
        assert len(rig.intake) == 0
        assert rig.reactor.getDelayedCalls() == []

    play(Rig(0), scenario)
