# SPDX-License-Identifier: GPL-2.0-or-later
"""Held deliveries wait unacknowledged in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.intake import Holds
from consumer_framework.testing import FakeClock, make_delivery

TIMES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), max_size=20)


def filled(entries):
    holds = Holds(100, FakeClock())
    for tag, (until, generation) in enumerate(entries):
        holds.put(make_delivery(delivery_tag=tag, generation=generation), until)
    return holds


def tags(deliveries):
    return [delivery.delivery_tag for delivery in deliveries]


def in_order(entries):
    return sorted(range(len(entries)), key=lambda tag: (entries[tag][0], tag))


def test_there_is_room_for_as_many_deliveries_as_hold_slots():
    holds = Holds(2, FakeClock())
    holds.put(make_delivery(delivery_tag=1), 5)
    assert holds.has_room
    holds.put(make_delivery(delivery_tag=2), 5)
    assert not holds.has_room
    assert not Holds(0, FakeClock()).has_room


def test_without_held_deliveries_none_is_ever_due():
    holds = Holds(1, FakeClock())
    assert (holds.next_due(), holds.first(), holds.due(1e9), holds.clear()) == (None, [], [], [])


@given(TIMES, st.integers(0, 20))
def test_due_deliveries_come_in_the_order_of_their_times_and_the_others_stay(entries, now):
    holds = filled(entries)
    due = [tag for tag in in_order(entries) if entries[tag][0] <= now]
    assert tags(holds.due(now)) == due
    assert len(holds) == len(entries) - len(due)
    rest = [until for until, _ in entries if until > now]
    assert holds.next_due() == min(rest, default=None)


@given(TIMES)
def test_every_held_delivery_comes_out_once(entries):
    assert tags(filled(entries).clear()) == in_order(entries)
    holds = filled(entries)
    one_by_one = [delivery for _ in entries for delivery in holds.first()]
    assert tags(one_by_one) == in_order(entries)
    assert len(holds) == 0


@given(TIMES)
def test_only_deliveries_of_a_lost_channel_are_discarded(entries):
    holds = filled(entries)
    gone = holds.discard(2)
    assert sorted(tags(gone)) == [tag for tag, (_, gen) in enumerate(entries) if gen == 2]
    kept = [tag for tag in in_order(entries) if entries[tag][1] != 2]
    assert tags(holds.due(100)) == kept


def test_fewer_hold_slots_lose_no_held_delivery():
    holds = Holds(3, FakeClock())
    for tag in (1, 2, 3):
        holds.put(make_delivery(delivery_tag=tag), tag)
    holds.resize(1)
    assert not holds.has_room
    assert [delivery.delivery_tag for delivery in holds.due(2)] == [1, 2]
    assert not holds.has_room
    assert [delivery.delivery_tag for delivery in holds.due(3)] == [3]
    assert holds.has_room


class Settable(FakeClock):
    """A clock that a test sets."""

    def set_back(self, seconds):
        self._time -= seconds


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_setting_the_clock_does_not_change_how_long_a_delivery_is_held(jump):
    clock = Settable(10_000.0)
    holds = Holds(1, clock)
    holds.put(make_delivery(), clock.time() + 10)
    clock.set_back(jump)
    assert holds.due(clock.monotonic() + 9.9) == []
    clock.advance(10)
    assert holds.next_due() == clock.monotonic()
    assert holds.due(clock.monotonic()) == [make_delivery()]
