# SPDX-License-Identifier: GPL-2.0-or-later
"""Lengths of time, as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.text import about, seconds, text


@pytest.mark.parametrize(
    ("written", "length"),
    [
        ("10s", 10),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("1h 30m", 5400),
        (" 1d12h ", 129600),
        ("2w", 1209600),
        (0, 0),
        (2.5, 2.5),
    ],
)
def test_what_people_write_is_understood(written, length):
    assert seconds(written) == length


@pytest.mark.parametrize("written", ["", "10", "s", "10 parsecs", "-1s", -1, True, None, [], "1m!"])
def test_what_is_no_length_of_time_is_refused_with_examples(written):
    with pytest.raises(ValueError, match='"1h 30m"'):
        seconds(written)


@pytest.mark.parametrize(
    ("length", "written"), [(0, "0s"), (90, "1m 30s"), (86400, "1d"), (3600.5, "1h 0.5s")]
)
def test_a_length_of_time_is_written_for_people(length, written):
    assert text(length) == written


@given(st.integers(0, 10**10).map(lambda milliseconds: milliseconds / 1000))
def test_what_is_written_is_understood_as_it_was_meant(length):
    assert seconds(text(length)) == pytest.approx(length, abs=1e-3)


@pytest.mark.parametrize(
    ("length", "written"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172799, "47 h"),
        (172800, "2 d"),
        (10**7, "115 d"),
    ],
)
def test_a_rough_length_of_time_is_in_the_largest_unit_of_which_there_are_two(length, written):
    assert about(length) == written
