# SPDX-License-Identifier: GPL-2.0-or-later
"""Checkers: compiled tables in front of the ``jsonschema`` library."""

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

# Errors of which the best match is raised. A long array may have millions of errors.
_ERRORS = 1000

# Raises jsonschema.ValidationError for an invalid value.
Checker: TypeAlias = Callable[[Any], None]


def checker_for(schema: Any) -> Checker:
    """Make a function that raises the exceptions of ``jsonschema.validate(value, schema)``.

    The exception is the same, with the same message and paths. Two differences remain. Of more
    than 1,000 errors the best of the first 1,000 is raised. A value nested so deeply that the
    library runs out of stack may be found valid instead.

    Args:
        schema: A schema, which must not be changed afterwards. For an invalid schema the function
            raises ``jsonschema.SchemaError`` for every value.
    """
    validator = _validator_for(schema)
    if validator is None:
        return functools.partial(jsonschema.validate, schema=schema)
    check = functools.partial(_check, validator)
    try:
        table = compiled(schema, type(validator))
    except Exception:  # noqa: BLE001 -- the library may support it, or has the error to raise
        return check
    return _fast(table, check)


def _validator_for(schema: Any) -> Validator | None:
    """Do once the preparations that jsonschema.validate() makes for every value.

    Returns:
        None where they must be made for every value.
    """
    if not isinstance(schema, dict):
        return None
    try:
        known: Any = validator_for(schema, default=cast("Any", None))
        if "$schema" in schema and known is None:
            # An unknown dialect: the library warns of it every time.
            return None
        kind = validator_for(schema)
        kind.check_schema(schema)
    except Exception:  # noqa: BLE001 -- the library raises it anew every time
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
        except Exception:  # noqa: BLE001, S110 -- no verdict, and the library has one
            pass
        check(value)

    return fast
