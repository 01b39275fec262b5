# SPDX-License-Identifier: GPL-2.0-or-later
"""Lengths of time, moments, counts and columns, as people read and write them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.text import (
    about,
    age,
    duration_text,
    fit,
    moment,
    plural,
    seconds,
    size,
    width,
)


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
def test_lengths_of_time_are_read_as_people_write_them(written, length):
    assert seconds(written) == length


@pytest.mark.parametrize("written", ["", "10", "s", "10 parsecs", "-1s", -1, True, None, [], "1m!"])
def test_an_invalid_length_of_time_is_refused_with_examples(written):
    with pytest.raises(ValueError, match='"1h 30m"'):
        seconds(written)


@pytest.mark.parametrize(
    ("length", "written"), [(0, "0s"), (90, "1m 30s"), (86400, "1d"), (3600.5, "1h 0.5s")]
)
def test_a_length_of_time_is_written_for_people(length, written):
    assert duration_text(length) == written


@given(st.integers(0, 10**10).map(lambda milliseconds: milliseconds / 1000))
def test_a_written_length_of_time_is_read_back_equal(length):
    assert seconds(duration_text(length)) == pytest.approx(length, abs=1e-3)


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
def test_a_rough_length_of_time_is_in_the_largest_unit_that_fits_twice(length, written):
    assert about(length) == written


@pytest.mark.parametrize(
    ("length", "written"),
    [
        (-1, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (7199, "119m"),
        (7200, "2h"),
        (172799, "47h"),
        (172800, "2d"),
    ],
)
def test_an_age_in_a_table_has_the_largest_unit_that_tells_enough(length, written):
    assert age(length) == written


def test_a_moment_is_written_in_the_local_time_zone(monkeypatch):
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert moment(0) == "1970-01-01 02:00:00+02:00"
        assert moment(1e20) == "1e+20"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_counts_and_sizes_have_their_unit():
    assert [plural(n, "message") for n in (0, 1, 1200)] == [
        "0 messages",
        "1 message",
        "1,200 messages",
    ]
    assert [size(n) for n in (812, 1024, 5 * 2**18, 2**50)] == [
        "812 B",
        "1.0 KiB",
        "1.2 MiB",
        "1024.0 TiB",
    ]


@pytest.mark.parametrize(
    ("characters", "columns"),
    [("", 0), ("tea", 3), ("čaj", 3), ("お茶", 4), ("e\u0301", 1), ("a\u200bb", 2)],
)
def test_a_character_takes_no_column_one_or_two(characters, columns):
    assert width(characters) == columns


@given(
    st.text(
        st.sampled_from("1a漢é\u0301\U0001122c\ufe0f❤👨")
        | st.characters(categories=["L", "M", "N", "P", "S"])
    ),
    st.integers(1, 30),
)
def test_text_that_is_cut_fits_and_ends_in_an_ellipsis(characters, columns):
    for keep_end in (False, True):
        cut = fit(characters, columns, keep_end=keep_end)
        assert width(cut) <= columns
        assert cut == characters or cut[-1 if not keep_end else 0] == "…"
    assert fit(characters, None) == characters


@pytest.mark.parametrize("keep_end", [False, True])
def test_text_is_cut_no_shorter_than_it_must_be(keep_end):
    for columns in range(12):
        cut = fit("漢a" * 10, columns, keep_end=keep_end)
        assert columns - 1 <= width(cut) <= max(columns, 1)
    assert fit("", 0) == ""
