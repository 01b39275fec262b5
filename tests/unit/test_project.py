# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of a project's answers, and the decision about each file of an update."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.kit import project
from consumer_framework.kit.project import Effect, File, effect_on
from consumer_framework.settings import instance_name_problem


@pytest.mark.parametrize("name", ["a", "build-watcher", "x1-2y", "a" * 28])
def test_a_good_name_is_taken(name):
    assert project.name_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("Build_Watcher", "write build-watcher"),
        ("BuildWatcher", "write build-watcher"),
        ("my consumer", "write my-consumer"),
        ("a--b", "write a-b"),
        ("-a-", "write a"),
        ("../etc", "write etc"),
        ("1st", "write st"),
        ("", "a letter first"),
        ("9", "a letter first"),
        ("ünder", "write nder"),
        ("a" * 29, f"write {'a' * 28}"),
        ("class", "write class-consumer"),
        ("match", "write match-consumer"),
        ("logging", "write logging-consumer"),
        ("consumer-framework", "write consumer-framework-consumer"),
        ("tests", "write tests-consumer"),
    ],
)
def test_a_bad_name_is_refused_with_a_better_one(name, cure):
    assert cure in project.name_problem(name)


@given(st.text(max_size=40))
def test_a_name_that_is_proposed_is_not_malformed(name):
    problem = project.name_problem(name)
    proposed = problem.rpartition("write ")[2]
    if "; write " in problem:
        assert "it needs" not in project.name_problem(proposed)
    if not problem:
        assert instance_name_problem(name) is None
        assert project.module_of(name).isidentifier()


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        ("", "at least one topic"),
        ("a..b", "an empty word"),
        ("a.b*", "whole words"),
        ("a.b,c.d", "spaces between topics"),
        ("a\x00b", "cannot be printed"),
        ("a" * 256, "longer than 255 bytes"),
        ("a.b #", "which it publishes"),
        ("*.example.*", "which it publishes"),
    ],
)
def test_bad_topics_are_refused_with_the_reason(topics, said):
    assert said in project.topics_problem(topics, "org.example.mine")


def test_good_topics_are_taken():
    assert project.topics_problem("a.*.b.# c", "org.example.mine") == ""
    assert project.topics_problem("#") == ""


@pytest.mark.parametrize(
    ("key", "answer", "said"),
    [
        ("summary", 'Says "hello"', 'without "'),
        ("summary", "Ends.", "without a full stop"),
        ("summary", "small", "capital letter"),
        ("summary", "X" * 79, "at most 78"),
        ("summary", " X", "without spaces around it"),
        ("author", "A\nB", "one line"),
        ("author", "A <a@b>", "without <"),
        ("email", "nobody", "jane@example.com"),
        ("url", "ftp://example.com", "https://"),
        ("handler", "threads", "'threads' is none of sync, async"),
        ("database", "yes", "'yes' is none of False, True"),
        ("created", "2026-13-01", "write a date"),
    ],
)
def test_a_wrong_answer_is_named_with_its_cure(key, answer, said):
    [(found, problem)] = project.wrong_answers({key: answer}).items()
    assert found == key
    assert said in problem


OLD, NEW, MINE = File(b"old"), File(b"new"), File(b"mine")


@pytest.mark.parametrize(
    ("old", "new", "here", "effect"),
    [
        (OLD, OLD, MINE, Effect.NOTHING),
        (OLD, OLD, None, Effect.NOTHING),
        (OLD, NEW, NEW, Effect.NOTHING),
        (OLD, None, None, Effect.NOTHING),
        (None, NEW, None, Effect.ADD),
        (OLD, NEW, OLD, Effect.REPLACE),
        (OLD, None, OLD, Effect.REMOVE),
        (OLD, NEW, MINE, Effect.MERGE),
        (None, NEW, MINE, Effect.MERGE),
        (OLD, NEW, None, Effect.STAY_AWAY),
        (OLD, None, MINE, Effect.STAY),
    ],
)
def test_an_update_changes_a_file_as_its_three_versions_say(old, new, here, effect):
    assert effect_on(old, new, here) is effect


FILES = st.sampled_from([None, OLD, NEW, MINE])


@given(FILES, FILES, FILES)
def test_an_update_never_replaces_or_removes_the_edit_of_an_author(old, new, here):
    if here not in (old, new):
        assert effect_on(old, new, here) not in {Effect.REPLACE, Effect.REMOVE, Effect.ADD}


def test_the_next_commands_make_a_virtual_environment_where_there_is_none():
    answers = {"schema": True}
    inside = project.next_commands("x", answers, in_venv=True)
    assert inside == ("cd x", "pip install -e ./messages -e '.[test]'", "pytest")
    outside = project.next_commands("x", {"schema": False}, in_venv=False)
    assert "python3 -m venv" in outside[1]
    assert outside[2] == "pip install -e '.[test]' && pytest"
