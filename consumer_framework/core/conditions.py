# SPDX-License-Identifier: GPL-2.0-or-later
"""Select messages by conditions on their parts, as the option ``--where`` writes them.

A condition is a path, an operator and a value: ``body.build.name=kernel``. The path begins with one
of :data:`ROOTS`, and for a message of the store also with one of :data:`STORED_ROOTS`. The words
after it are keys of tables, and numbers of list entries. A list without a number stands for each
of its entries: ``body.builds.name=kernel`` holds if one of the builds has that name. A key may
itself contain dots.

============ ========================================================================
``=``        one of the values is equal to the text, or to the number, true, false, null
``!=``       none of them is; so it holds, too, if there is no value
``~``        the regular expression is found in one of the values
``!~``       it is found in none of them
``< <= > >=`` one of the values is such a number; a length of time, such as 2h, is one of seconds
(none)       there is a value
============ ========================================================================

A regular expression has no look-around and no backreferences, so that it takes linear time: the
instance itself evaluates the conditions that an operator sends.
"""

from __future__ import annotations

import json
import operator
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import SchemaError, SchemaValidator, core_schema

from .text import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOTS = ("topic", "id", "queue", "exchange", "severity", "headers", "body")
# A message of the store has these values, too.
STORED_ROOTS = (*ROOTS, "error", "cause", "reason", "attempts", "age", "key")
_PARTS = re.compile(r"([^=!~<>]+?)\s*(!=|!~|>=|<=|=|~|<|>)\s*(.*)", re.DOTALL)
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class ConditionError(ValueError):
    """A text is no condition; the message says why, and the cure."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. Make it with :func:`condition_of`.

    Attributes:
        path: The words of the path.
        test: Tells if the condition holds for the values at the path.
        text: The condition as it was written.
    """

    path: tuple[str, ...]
    test: Callable[[Sequence[Any]], bool]
    text: str

    def holds(self, message: Mapping[str, Any]) -> bool:
        """Tell if *message*, a table with the word that the path begins with, fits.

        Lists that are nested without sense have no values.
        """
        try:
            values = list(_values(message, self.path))
        except RecursionError:
            values = []
        return self.test(values)


def condition_of(text: str, roots: Sequence[str] = ROOTS) -> Condition:
    """Read a condition.

    Args:
        text: The condition.
        roots: The words that its path may begin with.

    Raises:
        ConditionError: It is none.
    """
    found = _PARTS.fullmatch(text.strip())
    path, sign, wanted = found.groups() if found else (text.strip(), "", "")
    words = tuple(path.split("."))
    if words[0] not in roots:
        known = ", ".join(roots)
        cure = f"write body.{path} for a key of the body" if path else "write KEY=VALUE"
        raise ConditionError(f"{path!r} begins with none of {known}; {cure}")
    return Condition(words, _test(sign, wanted), text)


def _test(sign: str, wanted: str) -> Callable[[Sequence[Any]], bool]:
    if not sign:
        return bool
    if sign in _ORDERS:
        limit, order = _number(wanted), _ORDERS[sign]
        return lambda values: any(_is_number(value) and order(value, limit) for value in values)
    one = _found(wanted) if sign.endswith("~") else _equal(wanted)
    if sign.startswith("!"):
        return lambda values: not any(map(one, values))
    return lambda values: any(map(one, values))


def _number(text: str) -> float:
    with suppress(ValueError):
        return float(text)
    try:
        return seconds(text)
    except ValueError:
        cure = "write one, or a length of time such as 2h, after <, <=, > or >="
        raise ConditionError(f"{text!r} is no number; {cure}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(wanted: str) -> Callable[[Any], bool]:
    try:
        number: float | None = float(wanted)
    except ValueError:
        number = None
    words = {"true": True, "false": False, "null": None}

    def is_equal(value: Any) -> bool:
        if isinstance(value, str):
            return value == wanted
        if _is_number(value):
            return number is not None and bool(value == number)
        return wanted in words and value is words[wanted]

    return is_equal


def _found(wanted: str) -> Callable[[Any], bool]:
    try:
        # Rust's engine takes linear time, whatever an operator writes and a publisher sends.
        pattern = SchemaValidator(core_schema.str_schema(pattern=wanted))
    except SchemaError as error:
        reason = str(error).rpartition("error: ")[2].partition("\n")[0]
        raise ConditionError(f"{wanted!r} is no regular expression: {reason}") from None

    def is_found(value: Any) -> bool:
        if isinstance(value, dict | list):
            return False
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        # Rust has no lone surrogates.
        text = text.encode("utf-8", "backslashreplace").decode()
        return pattern.isinstance_python(text)

    return is_found


def _values(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield each value at *path*; of a list at its end, the list and its entries."""
    if isinstance(value, list):
        if path and path[0].isdecimal():
            # Slices, since a list has no key that may be missing.
            for entry in value[int(path[0]) :][:1]:
                yield from _values(entry, path[1:])
            return
        for entry in value:
            yield from _values(entry, path)
    if not path:
        yield value
    elif isinstance(value, dict):
        for length in range(1, len(path) + 1):
            key = ".".join(path[:length])
            if key in value:
                yield from _values(value[key], path[length:])
