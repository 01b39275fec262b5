# SPDX-License-Identifier: GPL-2.0-or-later
"""Topics and patterns, compared with a matcher that follows the specification word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.topics import (
    TopicMatcher,
    covers,
    intersects,
    matches,
    pattern_fault,
    words_of,
)

words = st.sampled_from(["a", "b", "", "a*", "#b"])
topics = st.lists(st.one_of(words, st.sampled_from(["*", "#", "c"])), max_size=6).map(".".join)
patterns = st.lists(st.one_of(words, st.sampled_from(["*", "#"])), max_size=5).map(".".join)
several = st.lists(patterns, max_size=4)


def naive(pattern: list[str], topic: list[str]) -> bool:
    """Match as the specification says it: AMQP 0-9-1, section 3.1.3.3."""
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return any(naive(pattern[1:], topic[n:]) for n in range(len(topic) + 1))
    return bool(topic) and pattern[0] in {"*", topic[0]} and naive(pattern[1:], topic[1:])


def fits(pattern: str, topic: str) -> bool:
    return naive(words_of(pattern), words_of(topic))


@given(pattern=patterns, topic=topics)
def test_a_pattern_matches_the_topics_of_the_specification(pattern, topic):
    assert matches(pattern, topic) == fits(pattern, topic)


@given(given_patterns=st.lists(patterns, max_size=12), topic=topics)
def test_a_matcher_finds_each_matching_pattern_once_and_in_order(given_patterns, topic):
    matcher = TopicMatcher(given_patterns)
    expected = tuple(n for n, pattern in enumerate(given_patterns) if fits(pattern, topic))
    assert matcher.find(topic) == expected
    assert matcher.find(topic) == expected  # remembered


def test_wildcards_on_either_side_of_many_words_do_not_make_a_match_slow():
    # A regular expression with backtracking would not end.
    pattern = ".".join(["#", "a"] * 40 + ["b"])
    assert not matches(pattern, ".".join(["a"] * 120))
    assert matches(pattern, ".".join(["a"] * 120 + ["b"]))


@given(first=patterns, second=patterns, topic=topics)
def test_patterns_with_a_common_topic_intersect(first, second, topic):
    if fits(first, topic) and fits(second, topic):
        assert intersects(first, second)
    assert intersects(first, second) == intersects(second, first)


@given(pattern=patterns, topic=topics.filter(lambda t: not {"*", "#"} & set(words_of(t))))
def test_a_topic_without_wildcards_intersects_exactly_the_patterns_that_match_it(pattern, topic):
    assert intersects(pattern, topic) == fits(pattern, topic)
    assert covers([pattern], topic) == fits(pattern, topic)


def _examples(pattern: list[str]) -> list[list[str]]:
    """Return topics of a pattern; if two patterns share a topic, or differ, some of these do."""
    if not pattern:
        return [[]]
    rests = _examples(pattern[1:])
    starts: list[list[str]] = [[pattern[0]]]
    if pattern[0] == "*":
        starts = [["a"], ["b"], [""], ["other"]]
    if pattern[0] == "#":
        ones = [["a"], ["b"], ["other"]]
        starts = [[], *ones, *([*x, *y] for x in ones for y in ones)]
    return [[*start, *rest] for start in starts for rest in rests]


short = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3).map(".".join)


@given(first=short, second=short)
def test_patterns_intersect_only_with_a_common_topic(first, second):
    common = [
        topic
        for one, other in ((first, second), (second, first))
        for topic in _examples(words_of(one))
        if naive(words_of(other), topic)
    ]
    assert intersects(first, second) == bool(common)


@given(general=several, special=patterns, topic=topics)
def test_patterns_that_cover_another_match_each_of_its_topics(general, special, topic):
    if covers(general, special) and fits(special, topic):
        assert any(fits(pattern, topic) for pattern in general)


@given(general=st.lists(short, max_size=2), special=short)
def test_patterns_that_do_not_cover_another_miss_one_of_its_topics(general, special):
    missed = [
        topic
        for topic in _examples(words_of(special))
        if not any(naive(words_of(pattern), topic) for pattern in general)
    ]
    assert covers(general, special) == (not missed)


@pytest.mark.parametrize(
    ("general", "special"),
    [
        (["#"], "a.*.#"),
        (["#.*"], "*.#"),
        (["*.#", ""], "#"),
        (["a.#", "*.b"], "a.*"),
        (["", "*", "*.*.#"], "#"),
        (["a.#.#"], "a"),
    ],
)
def test_several_patterns_together_may_cover_another(general, special):
    assert covers(general, special)


def test_a_comparison_that_would_take_long_finds_no_cover():
    # Each word doubles the number of positions.
    general = [".".join(["#", "a"] + ["*"] * 40)]
    assert not covers(general, ".".join(["#", "a"] + ["*"] * 40 + ["b"]))
    assert not covers(general, "#.b.#")


@pytest.mark.parametrize(
    ("pattern", "cure"),
    [
        ("foo*", '"foo.#"'),
        ("*foo", '"#.foo"'),
        ("a.b#", '"a.b.#"'),
        ("a.**", '"a.#"'),
        ("a.f*o", '"a.#"'),
        ("a. b", "remove it"),
        (7, "text"),
        (None, "text"),
    ],
)
def test_a_pattern_that_cannot_mean_anything_ordinary_has_a_fault_and_a_cure(pattern, cure):
    fault = pattern_fault(pattern)
    assert fault is not None
    assert cure in fault[1]


@pytest.mark.parametrize("pattern", ["#", "*", "a", "", "a..b", "a.*.b.#", "*.*.#", "a-b.c_d.v2"])
def test_a_pattern_of_whole_words_has_no_fault(pattern):
    assert pattern_fault(pattern) is None
