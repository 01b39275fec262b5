# SPDX-License-Identifier: GPL-2.0-or-later
"""Topics get new names by pairs of patterns, and patterns with a common topic are found."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumer_framework.kit.topic_map import TopicMap, TopicMapError, have_common_topic
from consumer_framework.publishing.message import matches

TABLE = {
    "org.example.prod.#": "mirror.#",
    "org.*.stg.*": "stg.*.of.*",
    "a.#.z": "#",
    "exact.topic": "other.topic",
}
WORDS = st.sampled_from(["a", "b", "*", "#"])
PATTERNS = st.lists(WORDS, min_size=1, max_size=4).map(".".join)
TOPICS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("topic", "new"),
    [
        ("org.example.prod.build.done", "mirror.build.done"),
        ("org.example.prod", "mirror"),
        ("org.x.stg.y", "stg.x.of.y"),
        ("a.b.c.z", "b.c"),
        ("exact.topic", "other.topic"),
        ("a.z", None),
        ("org.x.stg.y.z", None),
        ("exact.topic.more", None),
        ("orgXexample.prod", None),
    ],
)
def test_wildcards_of_the_new_topic_are_the_words_of_the_old_one(topic, new):
    assert TopicMap.of(TABLE).renamed(topic) == new


def test_the_first_pair_that_fits_decides():
    assert TopicMap.of({"a.b": "one", "a.*": "two.*"}).renamed("a.b") == "one"


@pytest.mark.parametrize(
    ("old", "new"), [("a.#", "b"), ("a.*", "b.#"), ("a", "#"), ("a..b", "c"), ("", "c"), ("c", "")]
)
def test_a_pair_that_does_not_fit_together_is_refused(old, new):
    with pytest.raises(TopicMapError, match=r"wildcards|words and dots"):
        TopicMap.of({old: new})


@given(PATTERNS, PATTERNS, TOPICS)
@example("#", "#", "a")
@example("a.#", "*", "a")
def test_patterns_that_match_one_topic_have_one_in_common(one, other, topic):
    if matches(one, topic) and matches(other, topic):
        assert have_common_topic(one, other)


@pytest.mark.parametrize(
    ("one", "other"), [("a", "b"), ("a.*", "a"), ("*.a", "#.b"), ("a.#.b", "b.#"), ("*", "*.*")]
)
def test_patterns_without_a_common_topic_are_told_apart(one, other):
    assert not have_common_topic(one, other)
    assert not have_common_topic(other, one)


@given(PATTERNS, PATTERNS, TOPICS)
def test_a_pattern_that_covers_another_fits_all_of_its_topics(general, special, topic):
    table = TopicMap.of({general: general})
    if table.has_all(special) and matches(special, topic):
        assert table.renamed(topic) == topic


@pytest.mark.parametrize(("general", "special"), [("#", "a.#.b"), ("a.#", "a.*"), ("*.b", "a.b")])
def test_an_obvious_cover_is_seen(general, special):
    assert TopicMap.of({general: general}).has_all(special)


def test_the_new_topics_of_a_pattern_are_known():
    topics = TopicMap.of({"a.#": "b.#", "c.x": "d"})
    assert topics.results("a.b.c") == ["b.b.c"]
    assert topics.results("c.*") == ["d"]
    assert topics.results("x.#") == []
    assert topics.results("e") == []
