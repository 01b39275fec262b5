# SPDX-License-Identifier: GPL-2.0-or-later
"""Which failures have a line of the log."""

import pytest

from consumer_framework.runtime.observe.log import LINES, MOST_TOLD, QUIET, News, Telling


@pytest.fixture
def news():
    return News()


def test_the_first_news_of_a_kind_are_told_as_such_and_the_next_as_repetitions(news):
    assert news.tell("a", 1, 0.0) is Telling.FIRST
    assert news.tell("a", 2, 1.0) is Telling.AGAIN
    assert news.tell("b", 2, 1.0) is Telling.FIRST


def test_what_is_more_than_so_many_lines_is_counted_and_summed_up_when_it_is_old(news):
    told = [news.tell("a", who, 0.0) for who in range(LINES + 3)]
    assert told == [Telling.FIRST, *[Telling.AGAIN] * (LINES - 1), *[Telling.COUNTED] * 3]
    assert news.ends == QUIET
    assert news.ended(QUIET - 0.1) == {}
    assert news.ended(QUIET) == {"a": 3}
    assert news.ended(QUIET) == {}
    assert news.ends is None


def test_news_that_all_had_lines_are_not_summed_up(news):
    news.tell("a", 1, 0.0)
    assert news.ended(QUIET) == {}


def test_old_news_are_first_news_again(news):
    for who in range(LINES):
        news.tell("a", who, 0.0)
    assert news.tell("a", "other", QUIET) is Telling.FIRST
    assert news.tell("a", "another", QUIET + 1) is Telling.AGAIN


def test_a_message_that_has_a_line_has_all_its_lines(news):
    for who in range(LINES):
        news.tell("held", who, 0.0)
    assert news.tell("held", 3, 1.0) is Telling.AGAIN
    assert news.tell("held", "new", 1.0) is Telling.COUNTED
    assert 3 in news.told
    assert "new" not in news.told


def test_the_lines_of_a_message_that_has_some_are_not_taken_from_others(news):
    for _ in range(3 * LINES):
        news.tell("held", "same", 0.0)
    assert news.tell("held", "new", 0.0) is Telling.AGAIN


def test_after_its_last_line_a_message_has_no_privilege(news):
    news.tell("held", 1, 0.0)
    assert news.told
    news.tell("done", 1, 0.0, is_last=True)
    assert not news.told
    for who in range(LINES):
        news.tell("held", f"other {who}", 0.0)
    assert news.tell("held", 1, 0.0) is Telling.COUNTED


def test_what_is_always_told_is_told_however_often_it_happens_and_takes_nobodys_line(news):
    told = [news.tell("a", who, 0.0, always=True, is_last=True) for who in range(100)]
    assert told == [Telling.FIRST, *[Telling.AGAIN] * 99]
    assert news.tell("a", "other", 0.0) is Telling.AGAIN
    assert news.ended(QUIET) == {}


def test_the_messages_that_are_told_of_are_not_kept_for_ever(news):
    for who in range(MOST_TOLD + 1):
        news.tell(f"kind {who}", who, 0.0)
    assert 0 not in news.told
    assert 1 in news.told
    assert MOST_TOLD in news.told
