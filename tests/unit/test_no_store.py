# SPDX-License-Identifier: GPL-2.0-or-later
"""An instance without a store keeps in memory the messages that others write to the store."""

import pytest
from fedora_messaging.message import Message

from consumer_framework.core.errors import StoreError
from consumer_framework.testing import Harness
from consumer_framework.testing.virtual_instance import VirtualInstance

KEYED = {"ordering": "key", "ordering_key": "body:key"}


def message(name, key="", count=0):
    body = {"name": name, "key": key}
    return Message(topic="org.example.test", body=body, headers={"x-delivery-count": count})


@pytest.fixture
def without_store():
    def make(handler, **settings):
        harness = Harness(handler, settings=settings)
        harness.store.keeps = False
        harness.store.error = StoreError("there is no store")
        return harness

    return make


@pytest.mark.parametrize("settings", [{}, KEYED], ids=["no order", "by key"])
def test_a_message_near_the_delivery_limit_runs_and_nothing_pauses(
    without_store, monkeypatch, settings
):
    make_slots = VirtualInstance._make_dispatcher

    def make(self):
        slots = make_slots(self)
        slots.limit_of = lambda _delivery: 3
        return slots

    monkeypatch.setattr(VirtualInstance, "_make_dispatcher", make)
    with without_store(lambda _message: None, **settings) as harness:
        often = message("often", "a", 3)
        harness.deliver(often, kills=1)
        harness.advance(60)
        assert (harness.acked, harness.paused) == ([often], "")


def test_many_followers_of_a_failing_message_wait_in_memory_and_nothing_pauses(without_store):
    failing = ["a0"]

    def handler(each):
        if each.body["name"] in failing:
            raise ValueError(each.body["name"])

    with without_store(handler, **KEYED) as harness:
        mine = [message(f"a{n}", "a") for n in range(260)]
        for each in mine:
            harness.deliver(each)
        assert not harness.paused
        failing.clear()
        harness.advance("10m")
        assert (harness.acked, harness.paused) == (mine, "")
