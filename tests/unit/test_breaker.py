# SPDX-License-Identifier: GPL-2.0-or-later
"""The breaker opens after consecutive dependency faults."""

from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.limits import Breaker


def after(events, consecutive=3, probe=(30.0, 300.0)):
    breaker = Breaker(consecutive, probe)
    for event in events:
        breaker = breaker.fault() if event else breaker.success()
    return breaker


def test_the_configured_number_of_consecutive_faults_opens_it():
    assert not after([1, 1]).is_open
    assert after([1, 1, 1]).is_open
    assert not after([1, 1, 0, 1, 1]).is_open


def test_probes_come_later_and_later_up_to_the_last():
    assert [after([1] * n).wait for n in (3, 4, 5, 6)] == [30, 300, 300, 300]


def test_a_success_closes_it_and_resets_the_count():
    assert after([1, 1, 1, 1, 0]) == Breaker(3, (30.0, 300.0))


@given(st.lists(st.booleans()), st.integers(1, 5))
def test_it_is_open_where_the_last_outcomes_are_faults_and_only_there(events, consecutive):
    faults = 0
    for event in events:
        faults = faults + 1 if event else 0
    assert after(events, consecutive).is_open == (faults >= consecutive)


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 5))
def test_other_limits_neither_open_nor_close_it(events, consecutive, others):
    before = after(events, consecutive)
    then = before.resized(others, (1.0,))
    assert then.is_open == before.is_open
    assert then.wait == 1.0
    if not then.is_open:
        assert then.faults <= before.faults
    assert not then.success().is_open
