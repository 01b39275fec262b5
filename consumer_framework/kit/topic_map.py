# SPDX-License-Identifier: GPL-2.0-or-later
"""Rename topics by pairs of patterns.

A pattern is that of a topic exchange: words with dots between them, where ``*`` is one word and
``#`` any number of words. The wildcards of the new topic stand, one after the other, for the words
that those of the old one took: ``org.example.#`` → ``mirror.#`` makes ``mirror.build.done`` of
``org.example.build.done``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from consumer_framework.core.topics import MANY, ONE, covers, intersects, pattern_fault, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_WILDCARDS = frozenset({ONE, MANY})


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
        words = words_of(self.new)
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
        if _WILDCARDS.isdisjoint(words_of(pattern)):
            new = self.renamed(pattern)
            return [] if new is None else [new]
        return [rule.new for rule in self.rules if intersects(rule.old, pattern)]

    def has_all(self, pattern: str) -> bool:
        """Tell if some pair fits each topic of *pattern*."""
        return covers((rule.old for rule in self.rules), pattern)


def _rule(old: str, new: str) -> _Rule:
    for pattern in (old, new):
        fault = pattern_fault(pattern) or (None if pattern else ("has no words", "write a topic"))
        if fault:
            raise TopicMapError(f"{pattern!r} {fault[0]}; {fault[1]}")
    wildcards = [[word for word in words_of(p) if word in _WILDCARDS] for p in (old, new)]
    if wildcards[0] != wildcards[1]:
        raise TopicMapError(
            f"{old!r} and {new!r} have different wildcards; each * and # of the old topic must be "
            "in the new one, in the same order"
        )
    groups = {ONE: r"(\.[^.]*)", MANY: r"((?:\.[^.]*)*)"}
    words = (groups.get(word, rf"\.{re.escape(word)}") for word in words_of(old))
    return _Rule(old, new, re.compile("".join(words)))
