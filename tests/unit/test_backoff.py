# SPDX-License-Identifier: GPL-2.0-or-later
"""The delays between attempts double up to a ceiling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.limits import backoff_delay as delay

attempts = st.integers(1, 10_000)
spreads = st.floats(0, 1)


def test_the_delay_doubles_from_the_first_one_up_to_the_ceiling():
    assert [delay(n, 0) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_the_first_delay_and_the_ceiling_are_the_callers():
    assert [delay(n, 0, first=5, ceiling=12) for n in (1, 2, 3)] == [5, 10, 12]


@given(attempts, spreads)
def test_the_spread_takes_away_half_of_the_delay_at_most(attempt, spread):
    assert delay(attempt, 0) / 2 <= delay(attempt, spread) <= delay(attempt, 0)


@given(attempts, spreads)
def test_no_delay_exceeds_the_ceiling_and_none_is_zero(attempt, spread):
    assert 0 < delay(attempt, spread) <= 30


@given(attempts, spreads)
def test_the_delay_never_shrinks_with_the_attempts(attempt, spread):
    assert delay(attempt + 1, spread) >= delay(attempt, spread)


def test_clients_that_fail_together_come_back_apart():
    assert delay(6, 0) != pytest.approx(delay(6, 0.5)) != pytest.approx(delay(6, 1))
