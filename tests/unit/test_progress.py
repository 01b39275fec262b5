# SPDX-License-Identifier: GPL-2.0-or-later
"""The rate of an instance, its uptime, and the proof that it works."""

import pytest

from consumer_framework.core.stats import Progress


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
