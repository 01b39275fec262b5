# SPDX-License-Identifier: GPL-2.0-or-later
"""Topics get new names by pairs of patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.topics import matches
from consumer_framework.kit.topic_map import TopicMap, TopicMapError

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
    ("old", "new"),
    [("a.#", "b"), ("a.*", "b.#"), ("a", "#"), ("a b", "c"), ("a*", "c"), ("", "c"), ("c", "")],
)
def test_a_pair_that_does_not_fit_together_is_refused(old, new):
    with pytest.raises(TopicMapError, match="; "):
        TopicMap.of({old: new})


@given(PATTERNS, TOPICS)
def test_a_pair_fits_the_topics_that_its_old_pattern_matches(pattern, topic):
    same = TopicMap.of({pattern: pattern})
    assert same.renamed(topic) == (topic if matches(pattern, topic) else None)


@pytest.mark.parametrize(("general", "special"), [("#", "a.#.b"), ("a.#", "a.*"), ("*.b", "a.b")])
def test_pairs_that_leave_no_topic_out_are_seen(general, special):
    assert TopicMap.of({general: general}).has_all(special)


def test_the_new_topics_of_a_pattern_are_known():
    topics = TopicMap.of({"a.#": "b.#", "c.x": "d"})
    assert topics.results("a.b.c") == ["b.b.c"]
    assert topics.results("c.*") == ["d"]
    assert topics.results("x.#") == []
    assert topics.results("e") == []
