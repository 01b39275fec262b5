# SPDX-License-Identifier: GPL-2.0-or-later
"""The prefetch count follows from the sizes of the messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from consumer_framework.adapters.amqp.channels import Channels
from consumer_framework.runtime import read_ahead
from consumer_framework.runtime.read_ahead import LOOK_AGAIN, SHARE, UNLIMITED, ReadAhead
from consumer_framework.settings import Framework
from consumer_framework.testing import make_delivery

MIB = 1 << 20


class Session:
    """Takes counts, and gives back unless its consumers stay."""

    def __init__(self, channels):
        self.channels = channels
        self.prefetch_count = 105
        self.counts: list[int] = []
        self.stays = False

    def give_back_from(self, delivery):
        if not self.stays:
            self.channels.give_back(delivery)
        return not self.stays


class Host:
    """An instance that gets messages of some size."""

    def __init__(self, limit: int | None = 10 * MIB, **framework):
        self.freed = 0
        channel: Any = SimpleNamespace(
            is_open=True, basic_nack=lambda *_a, **_k: None, basic_ack=lambda *_a, **_k: None
        )
        self.channels = Channels(lambda _turn: None)
        self.generation = self.channels.add(channel)
        self.session = Session(self.channels)
        self.reactor = Clock()
        settings = Framework.model_validate({"read_ahead_bytes": limit, **framework})
        self.plan = SimpleNamespace(framework=settings, prefetch_count=105)
        self.memory_relief = self
        self.read_ahead = ReadAhead(self, self.channels)  # type: ignore[arg-type]
        self.tag = 0

    def apply(self):
        self.session.prefetch_count = self.read_ahead.bounded(self.plan.prefetch_count)
        self.session.counts.append(self.session.prefetch_count)

    def comes(self, size, *, is_settled=False):
        self.tag += 1
        delivery = make_delivery(
            body=b"x" * size, generation=self.generation, delivery_tag=self.tag
        )
        self.channels.arrived(delivery)
        taken = self.read_ahead.takes(delivery)
        if taken and is_settled:
            self.channels.ack(delivery)
        return taken


def test_large_messages_beyond_the_limit_are_given_back_and_fewer_are_sent_ahead():
    host = Host()
    assert [host.comes(4 * MIB) for _ in range(3)] == [True, True, False]
    assert host.session.counts == [2]
    assert host.channels.unsettled_bytes == 8 * MIB


def test_small_messages_change_nothing():
    host = Host()
    assert all(host.comes(1000) for _ in range(105))
    assert host.session.counts == []


def test_never_fewer_are_sent_ahead_than_the_slots_take():
    host = Host(slots=4)
    assert [host.comes(4 * MIB) for _ in range(5)] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert host.session.counts == [4]


def test_the_messages_of_a_consumer_that_stays_are_taken():
    host = Host()
    host.session.stays = True
    assert all(host.comes(4 * MIB) for _ in range(5))


def test_with_small_messages_after_large_ones_more_are_sent_ahead_again_step_by_step():
    host = Host()
    while host.comes(4 * MIB):
        pass
    for _ in range(2000):
        host.comes(1000, is_settled=True)
    assert host.session.counts == [2, 4, 8, 16, 32, 64, 105]


def test_after_a_burst_memory_goes_back_to_the_kernel_once(monkeypatch):
    freed: list[None] = []
    monkeypatch.setattr(read_ahead, "free_memory", lambda: freed.append(None))
    host = Host()
    while host.comes(4 * MIB):
        pass
    host.reactor.advance(LOOK_AGAIN)
    assert freed == []
    host.channels.remove(host.generation)
    host.reactor.advance(LOOK_AGAIN)
    host.reactor.advance(LOOK_AGAIN)
    assert freed == [None]


@pytest.mark.parametrize(("most", "limit"), [(None, UNLIMITED), (768 * MIB, 768 * MIB // SHARE)])
def test_the_limit_follows_from_the_memory_that_there_may_be(monkeypatch, most, limit):
    monkeypatch.setattr(read_ahead, "most_memory", lambda: most)
    host = Host(None)
    assert host.read_ahead.limit == limit
    host.read_ahead.reload()
    assert Host(5 * MIB).read_ahead.limit == 5 * MIB


def test_a_prefetch_without_a_limit_is_bounded_too():
    host = Host()
    assert host.read_ahead.bounded(0) == 0
    while host.comes(4 * MIB):
        pass
    assert host.read_ahead.bounded(0) == 2
