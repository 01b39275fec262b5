# SPDX-License-Identifier: GPL-2.0-or-later
"""The rate of an instance, its uptime, and the proof that it works."""

import pytest

from consumer_framework.core.stats import Progress, RetryShare, Snapshot, Trend


def progress_of(*looks):
    """Return a progress from 1000 on, read at these (seconds since then, handled messages)."""
    progress = Progress(1000.0)
    for after, handled in looks:
        progress.look(handled, 1000.0 + after)
    return progress


def test_at_the_start_nothing_is_known_and_nothing_is_divided_by_zero():
    assert progress_of().rate(1000.0) == 0
    assert progress_of((0, 0)).rate(1000.0) == 0
    assert progress_of((0.1, 50)).rate(1000.1) == 0


def test_in_the_first_minute_a_rate_is_the_average_since_the_start():
    assert progress_of((5, 50), (10, 200)).rate(1010.0) == 20


def test_after_the_first_minute_a_rate_is_the_average_of_a_minute():
    looks = [(after, min(after, 300) * 10) for after in range(0, 601, 5)]
    assert progress_of(*looks[:61]).rate(1300.0) == 10
    assert progress_of(*looks[:67]).rate(1330.0) == 5
    assert progress_of(*looks).rate(1600.0) == 0


def test_after_a_long_time_without_a_reading_a_rate_is_the_average_of_that_time():
    progress = progress_of((5, 0), (3605, 7200))
    assert progress.rate(4605.0) == pytest.approx(2, rel=0.01)


def test_frequent_readings_take_no_memory():
    progress = progress_of(*((n / 1000, n) for n in range(100_000)))
    assert progress.rate(1099.999) == pytest.approx(1000, rel=0.05)
    assert len(progress._samples) <= 62


def test_the_uptime_counts_from_the_start():
    assert Progress(1000.0).up(1090.5) == 90.5


@pytest.mark.parametrize(
    ("after", "handled", "is_proven"),
    [
        (0, 0, False),
        (59, 99, False),
        (1, 100, True),
        (60, 1, True),
        (86400, 0, False),
    ],
)
def test_an_instance_is_proven_after_many_messages_or_after_one_and_a_minute(
    after, handled, is_proven
):
    assert progress_of((after, handled)).is_proven(1000.0 + after) is is_proven


# The trend of a number, and the share of retries.


def trend_of(values, step=10.0):
    trend = Trend()
    for number, value in enumerate(values):
        trend.add(value, 1000.0 + number * step)
    return trend


def test_a_number_that_grows_steadily_has_that_growth():
    assert trend_of([5.0 * n for n in range(20)]).growth == pytest.approx(0.5)
    assert trend_of([900.0 - n for n in range(20)]).growth == pytest.approx(-0.1)
    assert trend_of([7.0] * 20).growth == 0.0


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3, 4], [0, 10, 20, 30, 40]])
def test_a_short_time_makes_no_trend(values):
    assert trend_of(values).growth is None


def test_one_high_value_makes_no_trend_as_its_ends_would():
    growth = trend_of([0.0] * 59 + [1000.0]).growth
    assert growth is not None
    assert growth < 1000.0 / 590 / 5


def test_a_trend_is_that_of_the_last_ten_minutes():
    past = [1000.0 * n for n in range(100)]
    assert trend_of([*past, *[0.0] * 61]).growth == 0.0


def test_values_that_come_fast_are_left_out():
    assert trend_of(range(100), step=0.1).growth is None


def test_runs_of_the_last_minutes_are_counted():
    share = RetryShare()
    assert (share.runs, share.retried) == (0, 0)
    share.look(Snapshot(received=100, held=10), 1000.0)
    assert (share.runs, share.retried) == (100, 10)
    share.look(Snapshot(received=104, held=11, deferred=1, requeued=1), 1301.0)
    assert (share.runs, share.retried) == (4, 3)


def test_no_more_runs_are_tried_again_than_there_were():
    share = RetryShare()
    share.look(Snapshot(received=1, held=1, deferred=1), 1000.0)
    assert (share.runs, share.retried) == (1, 1)
