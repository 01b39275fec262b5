# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks values against JSON schemas with jsonschema's verdicts, in a fraction of its time.

A schema is compiled into Python functions once. They are only ever believed when they call a value
valid: what they do not, a schema that they do not cover, and whatever makes them raise, goes to
jsonschema, whose verdict and error stand. So the one mistake that could be made here is to let an
invalid value pass; tests/unit/test_schemas.py hunts for it.

Not fastjsonschema: it has no draft after 7, fills defaults into what it checks, and takes True for
1. Not jsonschema-rs: its regular expressions and numbers are Rust's, and Fedora does not have it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jsonschema
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for

from .compiler import compiled
from .verdicts import holds

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from .verdicts import Table

# A long array may have millions; the best of the first ones will do.
_ERRORS = 1000

Checker: TypeAlias = Callable[[Any], None]


def checker(schema: Any) -> Checker:
    """Make a function that raises what ``jsonschema.validate(value, schema)`` raises.

    A schema that is no valid one makes a function that says so for every value. Values so deep
    that jsonschema runs out of stack may be found valid instead.

    Args:
        schema: It must not be changed afterwards.
    """
    validator = _checked(schema)
    if validator is None:
        return functools.partial(jsonschema.validate, schema=schema)
    try:
        table = compiled(schema, type(validator))
    except Exception:  # noqa: BLE001 -- jsonschema may know better, or has the error to raise
        return functools.partial(_check, validator)
    return _fast(table, functools.partial(_check, validator))


def _checked(schema: Any) -> Validator | None:
    """Do once what jsonschema.validate() does every time; None where that would not do."""
    if not isinstance(schema, dict):
        return None
    try:
        known: Any = validator_for(schema, default=cast("Any", None))
        if "$schema" in schema and known is None:
            # An unknown dialect: jsonschema warns of it every time.
            return None
        kind = validator_for(schema)
        kind.check_schema(schema)
    except Exception:  # noqa: BLE001 -- jsonschema raises it anew every time
        return None
    return kind(schema)


def _check(validator: Validator, value: Any) -> None:
    errors = itertools.islice(validator.iter_errors(value), _ERRORS)
    error = best_match(errors)  # type: ignore[no-untyped-call]
    if error is not None:
        raise error


def _fast(table: Table, check: Checker) -> Checker:
    def fast(value: Any) -> None:
        try:
            if holds(table, value):
                return
        except Exception:  # noqa: BLE001, S110 -- no verdict, and jsonschema has one
            pass
        check(value)

    return fast
