# SPDX-License-Identifier: GPL-2.0-or-later
"""FakeAcknowledger; tests/integration/test_acknowledger_conformance.py tests the real one."""

import asyncio

import pytest

from consumer_framework.testing import FakeAcknowledger, make_delivery

from .acknowledger import AcknowledgerSuite, World


class FakeWorld(World):
    """A broker that applies the calls that the fake got."""

    def __init__(self):
        self.acknowledger = FakeAcknowledger()
        self._generation = 1

    def play(self, scenario):
        asyncio.run(scenario)

    async def deliver(self, count):
        return [
            make_delivery(body=body, generation=self._generation, delivery_tag=tag)
            for tag, body in enumerate((b"a", b"b", b"c")[:count], 1)
        ]

    async def cut(self):
        self.acknowledger.close(self._generation)
        self._generation = self.acknowledger.open()

    async def left(self):
        told = self.acknowledger.told
        gone = {delivery.body for delivery, settle in told if settle != "give_back"}
        return {b"a", b"b", b"c"} - gone


class TestFakeAcknowledger(AcknowledgerSuite):
    @pytest.fixture
    def world(self):
        return FakeWorld()

    def test_it_says_what_a_delivery_was_told(self, world):
        first, second = make_delivery(), make_delivery(delivery_tag=2)
        assert world.acknowledger.of(first) is None
        world.acknowledger.reject(first)
        assert world.acknowledger.of(first) == "reject"
        assert world.acknowledger.of(second) is None

    def test_a_delivery_that_is_settled_twice_fails_the_test(self, world):
        first = make_delivery()
        world.acknowledger.ack(first)
        with pytest.raises(AssertionError, match="ack and then give_back"):
            world.acknowledger.give_back(first)

    def test_it_may_start_with_any_number_of_channels(self):
        acknowledger = FakeAcknowledger(generations=0)
        assert not acknowledger.is_open(make_delivery())
        assert not acknowledger.ack(make_delivery())
        assert acknowledger.open() == 1
        assert acknowledger.ack(make_delivery())
