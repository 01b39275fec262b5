# SPDX-License-Identifier: GPL-2.0-or-later
"""Find short texts that match a regular expression, without another package."""

from __future__ import annotations

import re
import string
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_CHARACTERS = string.ascii_letters + string.digits + "-_ ./:" + string.punctuation + "é\t\n"
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}


def matching_texts(pattern: str, repeats: Iterable[int]) -> Iterator[str]:
    r"""Return texts that probably match *pattern*; the caller checks it.

    Lookarounds and references back are left out.

    >>> list(matching_texts(r"^FEDORA-\d{4}-[0-9a-f]+$", [0, 2]))
    ['FEDORA-0000-a', 'FEDORA-0000-aaa']

    Args:
        pattern: As for :func:`re.search`.
        repeats: For each text the number of repeats beyond the fewest.
    """
    tokens = import_module("re._parser").parse(pattern)
    for more in repeats:
        yield _text(tokens, more)


def _text(tokens: Any, more: int) -> str:
    return "".join(_of_token(str(kind), value, more) for kind, value in tokens)


def _of_token(kind: str, value: Any, more: int) -> str:
    makers = {
        "LITERAL": lambda: chr(value),
        "ANY": lambda: "a",
        "NOT_LITERAL": lambda: next(one for one in _CHARACTERS if ord(one) != value),
        "IN": lambda: next((one for one in _CHARACTERS if _is_in(one, value)), ""),
        "MAX_REPEAT": lambda: _repeated(value, more),
        "MIN_REPEAT": lambda: _repeated(value, more),
        "POSSESSIVE_REPEAT": lambda: _repeated(value, more),
        "SUBPATTERN": lambda: _text(value[-1], more),
        "BRANCH": lambda: _text(value[1][0], more),
    }
    make: Callable[[], str] = makers.get(kind, str)
    return make()


def _repeated(value: Any, more: int) -> str:
    least, most, inner = value
    return _text(inner, more) * min(int(least) + more, int(most))


def _is_in(character: str, members: Any) -> bool:
    """Tell whether a set such as ``[^a-z]`` has *character*."""
    kinds = [str(kind) for kind, _ in members]
    found = any(_is_member(character, str(kind), value) for kind, value in members)
    return found != ("NEGATE" in kinds)


def _is_member(character: str, kind: str, value: Any) -> bool:
    match kind:
        case "LITERAL":
            return bool(ord(character) == value)
        case "RANGE":
            return bool(value[0] <= ord(character) <= value[1])
        case "CATEGORY":
            return bool(re.match(_CATEGORIES[str(value)], character))
        case _:
            return False
