# SPDX-License-Identifier: GPL-2.0-or-later
"""The limit of the rate at which messages are handled."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.limits import TokenBucket, per_second

# Seconds by which a clock advances at least between two calls.
TURN = 1e-6
RATES = st.one_of(
    st.floats(1 / 86400, 1e6), st.integers(1, 1000).map(float), st.just(1 / 3), st.just(1.5)
)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/s", 100.0),
        ("90/m", 1.5),
        ("2.5/h", 2.5 / 3600),
        ("1/d", 1 / 86400),
        (" 5 / s ", 5.0),
        ("1000000/s", 1e6),
    ],
)
def test_a_rate_is_a_number_in_a_unit_of_time(text, rate):
    assert per_second(text) == pytest.approx(rate)


@pytest.mark.parametrize(
    "text",
    [
        *("", "100", "/s", "100/", "100/w", "100/min", "-1/s", "0/s", "0.0/d", "1e3/s", "1/s/s"),
        *("1000001/s", "0.5/d", ".5/s", "1./s", "inf/s", "nan/s"),
        *(100, 1.5, None, True, ["1/s"]),
    ],
)
def test_any_other_rate_is_refused_with_valid_examples(text):
    with pytest.raises(ValueError, match=r'such as "100/s", "90/m" or "10/h"'):
        per_second(text)


def allowed(bucket, moments):
    """Return the moments at which a token was taken."""
    return [now for now in moments if bucket.take(now) == 0.0]


@given(
    rate=RATES,
    burst=st.one_of(st.none(), st.integers(1, 50)),
    start=st.floats(0, 1e6),
    steps=st.lists(st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 0.01)), max_size=150),
)
def test_no_window_of_time_has_more_tokens_than_the_burst_plus_the_rate(rate, burst, start, steps):
    now, moments = start, []
    for step in steps:
        now += step
        moments.append(now)
    passed = allowed(TokenBucket(rate, burst), moments)
    most = burst or max(1, math.floor(rate))
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            window = passed[last] - passed[first]
            assert last - first + 1 <= most + rate * window + 1e-6


@given(rate=RATES, burst=st.one_of(st.none(), st.integers(1, 50)), start=st.floats(0, 1e4))
def test_a_caller_that_waits_as_told_soon_gets_a_token(rate, burst, start):
    bucket, now = TokenBucket(rate, burst), start
    for _ in range(100):
        # Rounding may cost a second, short wait.
        waits: list[float] = []
        while (wait := bucket.take(now)) and len(waits) < 3:
            waits.append(wait)
            now += max(wait, TURN)
        assert not wait
        assert sum(waits) <= (1 + 1e-6) / rate + TURN


@given(rate=RATES, start=st.floats(0, 1e4))
def test_in_the_long_run_the_rate_is_reached(rate, start):
    bucket, now, taken = TokenBucket(rate, burst=1), start, 0
    while taken < 200:
        wait = bucket.take(now)
        taken += wait == 0
        now += max(wait, TURN)
    assert now - start <= 200 / rate + 1e-3


def test_after_a_pause_a_burst_goes_at_once_and_no_more():
    bucket = TokenBucket(10, burst=3)
    assert [bucket.take(0.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    assert [bucket.take(1000.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]


@pytest.mark.parametrize(("rate", "burst"), [(100.0, 100), (1.5, 1), (0.01, 1)])
def test_the_default_burst_is_the_tokens_of_one_second_and_at_least_one(rate, burst):
    bucket = TokenBucket(rate)
    assert len(allowed(bucket, [5.0] * 200)) == burst


def test_a_call_that_returned_a_wait_takes_no_token():
    bucket = TokenBucket(1, burst=1)
    assert bucket.take(0.0) == 0
    for now in (0.1, 0.2, 0.3, 0.9):
        assert bucket.take(now) == pytest.approx(1 - now)
    assert bucket.take(1.0) == 0
