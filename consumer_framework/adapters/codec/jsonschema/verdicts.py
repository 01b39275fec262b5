# SPDX-License-Identifier: GPL-2.0-or-later
"""What a schema says of each of JSON's types, and how such sayings are combined.

Most of what is in a message is settled by its type alone: a string where a string is asked for.
A table says so without a call; where the value matters as well, it has the check to call.

Every verdict is exact, in both directions: ``not`` and ``oneOf`` turn one into the other. What is
not exact is an exception instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Protocol, TypeAlias

Check: TypeAlias = Callable[[Any], bool]
Verdict: TypeAlias = bool | Check
# By exact type. A value of any other, which JSON does not have (headers may: a timestamp, a
# subclass of int), is a KeyError.
Table: TypeAlias = Mapping[type, Verdict]

Schema: TypeAlias = Mapping[str, Any]

TYPES = (dict, list, str, int, float, bool, NoneType)


class Compiler(Protocol):
    """What keywords need of the compiler."""

    def table(self, schema: Any) -> Table:
        """Compile a subschema."""
        ...

    def reference(self, ref: str) -> Table:
        """Compile what a ``$ref`` refers to."""
        ...

    def delegate(self, schema: Schema) -> Check:
        """Have jsonschema decide, on a schema without subschemas."""
        ...


Keyword: TypeAlias = Callable[[Any, Schema, Compiler], Table]


def same(verdict: Verdict) -> Table:
    """One verdict for every type."""
    return dict.fromkeys(TYPES, verdict)


ANYTHING = same(verdict=True)


def only(kinds: Sequence[type], verdict: Verdict) -> Table:
    """A keyword that concerns some types, and lets everything else be."""
    return {**ANYTHING, **dict.fromkeys(kinds, verdict)}


def holds(table: Table, value: Any) -> bool:
    """Whether *value* is valid.

    Raises:
        KeyError: It is of a type that JSON does not have.
    """
    verdict = table[type(value)]
    return verdict is True or (verdict is not False and verdict(value))


def late(table: Table) -> Check:
    """Check with a table that is not filled yet: a schema that refers to itself."""
    return lambda value: holds(table, value)


def combined(how: Callable[[Sequence[Verdict]], Verdict], tables: Sequence[Table]) -> Table:
    """Combine tables type by type."""
    return {kind: how([table[kind] for table in tables]) for kind in TYPES}


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """``allOf``, and the keywords of one schema."""
    if any(verdict is False for verdict in verdicts):
        return False
    checks = _checks(verdicts)
    if len(checks) <= 1:
        return checks[0] if checks else True

    def check(value: Any) -> bool:
        for each in checks:  # noqa: SIM110 -- all() takes twice as long
            if not each(value):
                return False
        return True

    return check


def any_of(verdicts: Sequence[Verdict]) -> Verdict:
    """``anyOf``, and a list of types."""
    if any(verdict is True for verdict in verdicts):
        return True
    checks = _checks(verdicts)
    if len(checks) <= 1:
        return checks[0] if checks else False
    return lambda value: any(check(value) for check in checks)


def one_of(verdicts: Sequence[Verdict]) -> Verdict:
    """``oneOf``: exactly one."""
    certain = sum(verdict is True for verdict in verdicts)
    checks = _checks(verdicts)
    if certain > 1:
        return False
    if certain == 1:
        return all_of([negated(check) for check in checks])
    if len(checks) <= 1:
        return checks[0] if checks else False
    return lambda value: sum(check(value) for check in checks) == 1


def negated(verdict: Verdict) -> Verdict:
    """``not``."""
    if isinstance(verdict, bool):
        return not verdict
    return lambda value: not verdict(value)


def _checks(verdicts: Sequence[Verdict]) -> list[Check]:
    return [verdict for verdict in verdicts if not isinstance(verdict, bool)]
