# SPDX-License-Identifier: GPL-2.0-or-later
"""Rename topics by pairs of patterns, and tell if two patterns have a topic in common.

A pattern is that of a topic exchange: words with dots between them, where ``*`` is one word and
``#`` any number of words. The wildcards of the new topic stand, one after the other, for the words
that those of the old one took: ``org.example.#`` → ``mirror.#`` makes ``mirror.build.done`` of
``org.example.build.done``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_WILDCARDS = frozenset("*#")


class TopicMapError(ValueError):
    """A pair of patterns does not fit together; the message says why, and the cure."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pair. :attr:`pattern` has a group for each wildcard, which matches with a dot before."""

    old: str
    new: str
    pattern: re.Pattern[str]

    def renamed(self, topic: str) -> str | None:
        found = self.pattern.fullmatch(f".{topic}")
        if found is None:
            return None
        taken = iter(found.groups())
        words = self.new.split(".")
        parts = (next(taken) if word in _WILDCARDS else f".{word}" for word in words)
        return "".join(parts).removeprefix(".")


@dataclass(frozen=True, slots=True)
class TopicMap:
    """New topics for old ones; the first pair that fits decides. Make it with :meth:`of`."""

    rules: tuple[_Rule, ...]

    @classmethod
    def of(cls, table: Mapping[str, str]) -> Self:
        """Read pairs of an old and a new pattern.

        Raises:
            TopicMapError: A pair has other wildcards on one side than on the other.
        """
        return cls(tuple(_rule(old, new) for old, new in table.items()))

    def renamed(self, topic: str) -> str | None:
        """Return the new topic for *topic*; None if no pair fits, or nothing would be left."""
        found = (rule.renamed(topic) for rule in self.rules)
        return next((new for new in found if new is not None), None) or None

    def results(self, pattern: str) -> list[str]:
        """Return patterns for the new topics that topics of *pattern* get."""
        if _WILDCARDS.isdisjoint(pattern.split(".")):
            new = self.renamed(pattern)
            return [] if new is None else [new]
        return [rule.new for rule in self.rules if have_common_topic(rule.old, pattern)]

    def has_all(self, pattern: str) -> bool:
        """Tell if one pair fits each topic of *pattern*."""
        words = pattern.split(".")
        return any(_covers(rule.old.split("."), words) for rule in self.rules)


def _rule(old: str, new: str) -> _Rule:
    for pattern in (old, new):
        if not pattern or "" in pattern.split("."):
            raise TopicMapError(f"{pattern!r} is no pattern of topics: write words and dots")
    wildcards = [[word for word in p.split(".") if word in _WILDCARDS] for p in (old, new)]
    if wildcards[0] != wildcards[1]:
        raise TopicMapError(
            f"{old!r} and {new!r} have different wildcards; each * and # of the old topic must be "
            "in the new one, in the same order"
        )
    groups = {"*": r"(\.[^.]+)", "#": r"((?:\.[^.]+)*)"}
    words = (groups.get(word, rf"\.{re.escape(word)}") for word in old.split("."))
    return _Rule(old, new, re.compile("".join(words)))


def _covers(general: list[str], special: list[str]) -> bool:
    """Tell if *general* fits each topic of *special*; False for a few where it does."""
    if not general or general[0] != "#":
        is_first = bool(general and special) and (
            general[0] == special[0] or (general[0] == "*" and special[0] != "#")
        )
        return (not general and not special) or (is_first and _covers(general[1:], special[1:]))
    return any(_covers(general[1:], special[i:]) for i in range(len(special) + 1))


def have_common_topic(one: str, other: str) -> bool:
    """Tell if some topic fits both patterns."""
    first, second = tuple(one.split(".")), tuple(other.split("."))

    @cache
    def meet(i: int, j: int) -> bool:
        if i == len(first) and j == len(second):
            return True
        if i < len(first) and first[i] == "#":
            return meet(i + 1, j) or (j < len(second) and meet(i, j + 1))
        if j < len(second) and second[j] == "#":
            return meet(i, j + 1) or (i < len(first) and meet(i + 1, j))
        if i == len(first) or j == len(second):
            return False
        is_same = first[i] == second[j] or not _WILDCARDS.isdisjoint({first[i], second[j]})
        return is_same and meet(i + 1, j + 1)

    return meet(0, 0)
