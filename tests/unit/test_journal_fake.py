# SPDX-License-Identifier: GPL-2.0-or-later
"""What the fake journal has beyond the port: a disk that fails at will, and a look inside."""

import asyncio

import pytest

from consumer_framework.core.errors import JournalError
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fake_store import FakeJournal


def test_writes_fail_while_the_disk_does_and_leave_nothing():
    journal = FakeJournal()
    asyncio.run(journal.defer(make_delivery(message_id="1"), 1.0))
    journal.error = JournalError("disk full")
    for write in (
        journal.defer(make_delivery(message_id="2"), 1.0),
        journal.quarantine(make_delivery(message_id="2"), "poison"),
        journal.remove(1),
    ):
        with pytest.raises(JournalError, match="disk full"):
            asyncio.run(write)
    assert not journal.is_open(make_delivery(message_id="2"))
    journal.error = None
    asyncio.run(journal.remove(1))
    assert not journal.is_open(make_delivery(message_id="1"))


def test_a_test_sees_what_is_deferred_and_what_is_quarantined():
    journal = FakeJournal()
    asyncio.run(journal.defer(make_delivery(message_id="1"), 7.0))
    asyncio.run(journal.quarantine(make_delivery(message_id="2"), "poison"))
    ((deferred, until),) = journal.deferred
    ((quarantined, reason),) = journal.quarantined
    assert (deferred.message_id, until) == ("1", 7.0)
    assert (quarantined.message_id, reason) == ("2", "poison")
