# SPDX-License-Identifier: GPL-2.0-or-later
"""The conditions of ``--where``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.conditions import ConditionError, condition_of

MESSAGE = {
    "topic": "org.example.build",
    "id": "7",
    "severity": 30,
    "headers": {"x": 1, "sent-at": "now"},
    "body": {
        "build": {"name": "kernel", "id": 17, "scratch": False, "owner": None, "time": 1.5},
        "builds": [{"name": "bash"}, {"name": "zsh", "tags": ["f1", "f2"]}],
        "a.b": {"c": "dotted"},
        "empty": {},
    },
}


@pytest.mark.parametrize(
    "text",
    [
        "topic=org.example.build",
        "topic~^org\\.example",
        "topic!~fedora",
        "id=7",
        "severity>=30",
        "headers.x=1",
        "headers.sent-at",
        "headers.y!=1",
        "body.build.name=kernel",
        "body.build.name != bash",
        "body.build.id=17",
        "body.build.id=17.0",
        "body.build.id>16.5",
        "body.build.id<18",
        "body.build.id<=17",
        "body.build.id~^1",
        "body.build.scratch=false",
        "body.build.scratch!=0",
        "body.build.owner=null",
        "body.build.time=1.5",
        "body.builds.name=zsh",
        "body.builds.0.name=bash",
        "body.builds.1.name~z",
        "body.builds.tags=f2",
        "body.builds.9.name!=zsh",
        "body.builds",
        "body.a.b.c=dotted",
        "body.empty",
    ],
)
def test_a_condition_holds(text):
    assert condition_of(text).holds(MESSAGE)


@pytest.mark.parametrize(
    "text",
    [
        "topic=org.example",
        "topic~fedora",
        "body.build.name=Kernel",
        "body.build.name!=kernel",
        "body.build.name>1",
        "body.build.id=true",
        "body.build.id>17",
        "body.build.scratch=0",
        "body.build.scratch<1",
        "body.build.owner=",
        "body.build~kernel",
        "body.builds.name=csh",
        "body.builds.2.name",
        "body.builds.name!=zsh",
        "body.missing",
        "body.build.name.first=k",
        "queue=q",
        "body.build=17",
    ],
)
def test_a_condition_does_not_hold(text):
    assert not condition_of(text).holds(MESSAGE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("build.name=x", "write body.build.name for a key of the body"),
        ("=x", "write KEY=VALUE|body"),
        ("", "write KEY=VALUE"),
        ("body.n>many", "'many' is no number"),
        ("topic~[", "no regular expression"),
    ],
)
def test_a_text_that_is_no_condition_is_refused_with_a_cure(text, told):
    with pytest.raises(ConditionError) as caught:
        condition_of(text)
    assert any(words in str(caught.value) for words in told.split("|"))


KEYS = st.text("ab", min_size=1, max_size=2)
VALUES = st.one_of(st.text("xyz", max_size=3), st.integers(-3, 3), st.booleans(), st.none())
BODIES = st.recursive(VALUES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@given(BODIES, st.lists(KEYS, max_size=3), st.text("xyz0123", max_size=2))
def test_a_condition_and_its_contrary_never_agree(body, path, value):
    where = ".".join(("body", *path))
    for sign, contrary in (("=", "!="), ("~", "!~")):
        message = {"body": body}
        holds = condition_of(f"{where}{sign}{value}").holds(message)
        assert holds != condition_of(f"{where}{contrary}{value}").holds(message)


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_each_value_is_found_by_its_path(body):
    for outer, inner in body.items():
        for key, value in inner.items():
            text = value if isinstance(value, str) else str(value).lower()
            text = "null" if value is None else text
            assert condition_of(f"body.{outer}.{key}={text}").holds({"body": body})


def test_a_list_that_is_nested_very_deeply_has_no_values():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert not condition_of("body.list=1").holds({"body": {"list": nested}})
    assert condition_of("body.list!=1").holds({"body": {"list": nested}})
    while nested:
        # Else its destruction recurses.
        nested = nested.pop()  # type: ignore[assignment]


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(a*)*b", "a{0,100}a{0,100}a{0,100}b"], ids=str
)
def test_no_regular_expression_takes_long_for_any_text(pattern):
    """With an engine that tries all ways, these would not end (CWE-1333)."""
    assert not condition_of(f"topic~{pattern}c").holds({"topic": "a" * 100_000})
