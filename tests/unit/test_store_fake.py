# SPDX-License-Identifier: GPL-2.0-or-later
"""The fake store has more than the port: a disk that fails at will, and a view of its rows."""

import asyncio

import pytest

from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fake_store import FakeStore


def test_writes_fail_while_the_disk_does_and_leave_nothing():
    store = FakeStore()
    asyncio.run(store.defer(make_delivery(message_id="1"), 1.0))
    store.error = StoreError("disk full")
    for write in (
        store.defer(make_delivery(message_id="2"), 1.0),
        store.quarantine(make_delivery(message_id="2"), "poison"),
        store.remove(1),
    ):
        with pytest.raises(StoreError, match="disk full"):
            asyncio.run(write)
    assert not store.is_open(make_delivery(message_id="2"))
    store.error = None
    asyncio.run(store.remove(1))
    assert not store.is_open(make_delivery(message_id="1"))


def test_a_test_sees_the_deferred_and_the_quarantined_messages():
    store = FakeStore()
    asyncio.run(store.defer(make_delivery(message_id="1"), 7.0))
    asyncio.run(store.quarantine(make_delivery(message_id="2"), "poison"))
    ((deferred, until),) = store.deferred
    ((quarantined, reason),) = store.quarantined
    assert (deferred.message_id, until) == ("1", 7.0)
    assert (quarantined.message_id, reason) == ("2", "poison")
