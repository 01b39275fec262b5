# SPDX-License-Identifier: GPL-2.0-or-later
"""Match topics with patterns, as a topic exchange does; the one matcher of the product.

A topic is a list of words with dots between them. In a pattern, the word ``*`` stands for exactly
one word, and the word ``#`` for any number of words, none included; other words stand for
themselves (AMQP 0-9-1, section 3.1.3.3). RabbitMQ decides the cases that the specification leaves
open, and a test compares with it:

- A topic without characters has no words, not one empty word: ``#`` matches it, and ``*`` does not.
- Words may be empty otherwise: ``a..b`` has three words, and ``a.*.b`` matches it.
- A sign within a longer word stands for itself: ``foo*`` matches ``foo*`` alone.

All patterns of a :class:`TopicMatcher` are in one tree of words, so a topic takes time for its own
words, and not for each pattern; no pattern makes a match slow. Topics that come again take one
look-up. :func:`covers` and :func:`intersects` compare patterns with each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ONE, MANY = "*", "#"
# Topics that a matcher remembers: real applications have tens.
_REMEMBERED = 4096
# Positions that `covers` looks at. A pattern of ordinary length needs less than a hundred.
_MOST_POSITIONS = 5000
# A word that no pattern has; words of patterns contain no dot.
_OTHER = "."

# Positions in patterns: the number of the pattern, and of the next word in it.
_Positions: TypeAlias = "frozenset[tuple[int, int]]"


def words_of(text: str) -> list[str]:
    """Return the words of a topic or a pattern."""
    return text.split(".") if text else []


def matches(pattern: str, topic: str) -> bool:
    """Return True if *topic* matches *pattern*, as a topic exchange compares them.

    Args:
        pattern: Words with dots between them; ``*`` is one word, ``#`` any number of words.
        topic: The whole topic, with its prefix.
    """
    return bool(_matcher_of(pattern).find(topic))


class TopicMatcher:
    """Finds the patterns that match a topic. Several threads may use it at once.

    Args:
        patterns: The patterns, each with the number of its place.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._root = _Node()
        for number, pattern in enumerate(patterns):
            self._root.add(words_of(pattern), number)
        # A dictionary look-up in C for a topic that came before.
        self.find: Callable[[str], tuple[int, ...]] = lru_cache(_REMEMBERED)(self._search)

    def _search(self, topic: str) -> tuple[int, ...]:
        """Return the numbers of the patterns that match *topic*, in ascending order."""
        nodes = dict.fromkeys(self._root.with_many())
        for word in words_of(topic):
            nodes = dict.fromkeys(
                reached
                for node in nodes
                for following in node.after(word)
                for reached in following.with_many()
            )
        return tuple(sorted({number for node in nodes for number in node.ends}))


class _Node:
    """A place in the tree of words: all patterns that begin with the same words.

    Attributes:
        children: The places after one more word of the patterns.
        ends: The numbers of the patterns that end here.
        is_many: Whether the last word is ``#``, so that any word leads here again.
    """

    __slots__ = ("children", "ends", "is_many")

    def __init__(self, *, is_many: bool = False) -> None:
        self.children: dict[str, _Node] = {}
        self.ends: list[int] = []
        self.is_many = is_many

    def add(self, words: Sequence[str], number: int) -> None:
        """Put the pattern *number* with *words* below this place."""
        node = self
        for word in words:
            if word not in node.children:
                node.children[word] = _Node(is_many=word == MANY)
            node = node.children[word]
        node.ends.append(number)

    def after(self, word: str) -> Iterator[_Node]:
        """Yield the places that *word* of a topic leads to."""
        if self.is_many:
            yield self
        if (literal := self.children.get(word)) is not None:
            yield literal
        if word != ONE and (any_word := self.children.get(ONE)) is not None:
            yield any_word

    def with_many(self) -> Iterator[_Node]:
        """Yield this place, and those after it that take no word."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.children.get(MANY)


@lru_cache(1024)
def _matcher_of(pattern: str) -> TopicMatcher:
    return TopicMatcher((pattern,))


def pattern_fault(pattern: object) -> tuple[str, str] | None:
    """Return the reason why *pattern* matches no ordinary topic, and the cure.

    Returns:
        None for a pattern without a fault. RabbitMQ accepts each pattern; one with a fault matches
        no ordinary topic.
    """
    if not isinstance(pattern, str):
        return f"is a {type(pattern).__name__}, not text", 'write it as text, such as "a.b.#"'
    words = words_of(pattern)
    if odd := [word for word in words if _is_half_wild(word)]:
        better = ".".join(map(_split_wildcard, words))
        what = (
            'matches no ordinary topic: "*" (one word) and "#" (any number of words) stand for '
            f'whole words between dots, and "{odd[0]}" mixes one with other text'
        )
        return what, f'write "{better}", for one'
    return ("has a space in it, and topics have none", "remove it") if " " in pattern else None


def _is_half_wild(word: str) -> bool:
    return word not in {ONE, MANY} and (ONE in word or MANY in word)


def _split_wildcard(word: str) -> str:
    # The author meant a word, perhaps, and any others after it.
    if not _is_half_wild(word):
        return word
    text = word.strip(ONE + MANY)
    if not text or ONE in text or MANY in text:
        return MANY
    return f"{text}.{MANY}" if word.startswith(text) else f"{MANY}.{text}"


# Comparison of patterns.


def intersects(first: str, second: str) -> bool:
    """Return True if a topic matches both patterns."""
    left, right = words_of(first), words_of(second)
    rows = len(left) + 1
    columns = len(right) + 1
    # fits[i][j]: the words from i of one and from j of the other have a topic in common.
    fits = [[False] * columns for _ in range(rows)]
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            fits[i][j] = _fits(left[i:], right[j:], fits, i, j)
    return fits[0][0]


def _fits(
    left: Sequence[str], right: Sequence[str], fits: list[list[bool]], i: int, j: int
) -> bool:
    if not (left or right):
        return True
    if left[:1] == [MANY]:
        return fits[i + 1][j] or (bool(right) and fits[i][j + 1])
    if right[:1] == [MANY]:
        return fits[i][j + 1] or (bool(left) and fits[i + 1][j])
    if not (left and right):
        return False
    return (left[0] == right[0] or ONE in {left[0], right[0]}) and fits[i + 1][j + 1]


def covers(patterns: Iterable[str], special: str) -> bool:
    """Return True if each topic that matches *special* matches one of *patterns*.

    Returns:
        False as well if the patterns are so long and so many that the answer would take long.
    """
    general = [words_of(pattern) for pattern in patterns]
    words = words_of(special)
    alphabet = {word for each in general for word in each} - {ONE, MANY} | {_OTHER}
    start = 0, _closed(general, {(number, 0) for number in range(len(general))})
    seen, waiting = {start}, [start]
    while waiting:
        place, positions = waiting.pop()
        is_end = all(word == MANY for word in words[place:])
        if is_end and not any(at == len(general[number]) for number, at in positions):
            return False
        for reached in _next_of(words, place, general, positions, alphabet):
            if reached not in seen:
                if len(seen) >= _MOST_POSITIONS:
                    return False
                seen.add(reached)
                waiting.append(reached)
    return True


def _next_of(
    words: Sequence[str],
    place: int,
    general: Sequence[Sequence[str]],
    positions: _Positions,
    alphabet: set[str],
) -> Iterator[tuple[int, _Positions]]:
    """Yield the places after one more word, in the special pattern and in the general ones."""
    for index in range(place, len(words)):
        word = words[index]
        is_wild = word in {ONE, MANY}
        for letter in alphabet if is_wild else (word,):
            after = index if word == MANY else index + 1
            yield after, _stepped(general, positions, letter)
        if word != MANY:
            return


def _stepped(general: Sequence[Sequence[str]], positions: _Positions, letter: str) -> _Positions:
    reached = set()
    for number, at in positions:
        word = general[number][at] if at < len(general[number]) else None
        if word == MANY:
            reached.add((number, at))
        elif word in {letter, ONE}:
            reached.add((number, at + 1))
    return _closed(general, reached)


def _closed(general: Sequence[Sequence[str]], positions: set[tuple[int, int]]) -> _Positions:
    """Add the positions behind each ``#``, which may stand for no word."""
    closed = set(positions)
    for number, at in positions:
        following = at
        while following < len(general[number]) and general[number][following] == MANY:
            following += 1
            closed.add((number, following))
    return frozenset(closed)
