# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of verdicts, one verdict for each of JSON's types, and the ways to combine them.

The type of a value alone settles most checks: a string where a string is wanted. A table gives
such a verdict without a call. Where the value matters as well, the table has a function to call.

Every verdict is exact in both directions, since ``not`` and ``oneOf`` turn a "valid" into an
"invalid" and back. A check that cannot be exact raises an exception instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Protocol, TypeAlias

Check: TypeAlias = Callable[[Any], bool]
Verdict: TypeAlias = bool | Check
# By exact type. A value of another type is a KeyError. JSON has no other types; headers may have
# them: a timestamp, a subclass of int.
Table: TypeAlias = Mapping[type, Verdict]

Schema: TypeAlias = Mapping[str, Any]

TYPES = (dict, list, str, int, float, bool, NoneType)


class Compiler(Protocol):
    """The part of the compiler that keywords use."""

    def table(self, schema: Any) -> Table:
        """Compile a subschema."""
        ...

    def reference(self, ref: str) -> Table:
        """Compile the schema that a ``$ref`` refers to."""
        ...

    def delegate(self, schema: Schema) -> Check:
        """Return the library's own check for a schema without subschemas."""
        ...


Keyword: TypeAlias = Callable[[Any, Schema, Compiler], Table]


def same(verdict: Verdict) -> Table:
    """Return a table with one verdict for every type."""
    return dict.fromkeys(TYPES, verdict)


ANYTHING = same(verdict=True)


def only(kinds: Sequence[type], verdict: Verdict) -> Table:
    """Return a table with *verdict* for *kinds*, in which all other types are valid."""
    return {**ANYTHING, **dict.fromkeys(kinds, verdict)}


def holds(table: Table, value: Any) -> bool:
    """Return whether *value* is valid.

    Raises:
        KeyError: The value has a type that JSON does not have.
    """
    verdict = table[type(value)]
    return verdict is True or (verdict is not False and verdict(value))


def late(table: Table) -> Check:
    """Return a check with a table that is filled later, for a schema that refers to itself."""
    return lambda value: holds(table, value)


def combined(how: Callable[[Sequence[Verdict]], Verdict], tables: Sequence[Table]) -> Table:
    """Combine *tables* type by type."""
    return {kind: how([table[kind] for table in tables]) for kind in TYPES}


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of ``allOf``, and of the keywords of one schema."""
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
    """Return the verdict of ``anyOf``, and of a list of types."""
    if any(verdict is True for verdict in verdicts):
        return True
    checks = _checks(verdicts)
    if len(checks) <= 1:
        return checks[0] if checks else False
    return lambda value: any(check(value) for check in checks)


def one_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of ``oneOf``: exactly one is valid."""
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
    """Return the verdict of ``not``."""
    if isinstance(verdict, bool):
        return not verdict
    return lambda value: not verdict(value)


def _checks(verdicts: Sequence[Verdict]) -> list[Check]:
    return [verdict for verdict in verdicts if not isinstance(verdict, bool)]
