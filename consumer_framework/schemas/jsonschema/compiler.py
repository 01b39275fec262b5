# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile a schema that the ``jsonschema`` library has checked into a table of verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsonschema import (
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
from jsonschema.validators import validator_for
from referencing import Registry
from referencing import jsonschema as specifications

from . import keywords
from .verdicts import all_of, combined, late, same

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jsonschema.protocols import Validator
    from referencing import Specification

    from .verdicts import Check, Keyword, Schema, Table

# An id below the root changes the base of the references beside it.
_IDS = ("$id", "id")


class UnsupportedError(ValueError):
    """The schema is left to the library."""


@dataclass(frozen=True, slots=True)
class _Dialect:
    specification: Specification[Any]
    keywords: Mapping[str, Keyword]
    ignores_siblings_of_ref: bool = False


# The library's other keywords leave the schema to the library: $dynamicRef, $recursiveRef,
# unevaluatedItems and unevaluatedProperties.
_LATEST: Mapping[str, Keyword] = {
    "$ref": keywords.ref,
    "additionalProperties": keywords.additional_properties,
    "allOf": keywords.all_of_,
    "anyOf": keywords.any_of_,
    "const": keywords.const,
    "contains": keywords.contains,
    "dependentRequired": keywords.dependent_required,
    "dependentSchemas": keywords.dependent_schemas,
    "enum": keywords.enum,
    "exclusiveMaximum": keywords.exclusive_maximum,
    "exclusiveMinimum": keywords.exclusive_minimum,
    "format": keywords.format_,
    "if": keywords.if_,
    "items": keywords.items,
    "maxItems": keywords.max_items,
    "maxLength": keywords.max_length,
    "maxProperties": keywords.max_properties,
    "maximum": keywords.maximum,
    "minItems": keywords.min_items,
    "minLength": keywords.min_length,
    "minProperties": keywords.min_properties,
    "minimum": keywords.minimum,
    "multipleOf": keywords.multiple_of,
    "not": keywords.not_,
    "oneOf": keywords.one_of_,
    "pattern": keywords.pattern,
    "patternProperties": keywords.pattern_properties,
    "prefixItems": keywords.prefix_items,
    "properties": keywords.properties,
    "propertyNames": keywords.property_names,
    "required": keywords.required,
    "type": keywords.type_,
    "uniqueItems": keywords.unique_items,
}
_2019 = {
    **_LATEST,
    "items": keywords.items_before_2020,
    "additionalItems": keywords.additional_items,
}
_DRAFT6 = {
    **_2019,
    "contains": keywords.contains_before_2019,
    "dependencies": keywords.dependencies,
}
_DRAFT4 = {
    **_DRAFT6,
    "type": keywords.type_draft4,
    "minimum": keywords.minimum_draft4,
    "maximum": keywords.maximum_draft4,
}
_DIALECTS: Mapping[type[Validator], _Dialect] = {
    Draft4Validator: _Dialect(specifications.DRAFT4, _DRAFT4, ignores_siblings_of_ref=True),
    Draft6Validator: _Dialect(specifications.DRAFT6, _DRAFT6, ignores_siblings_of_ref=True),
    Draft7Validator: _Dialect(specifications.DRAFT7, _DRAFT6, ignores_siblings_of_ref=True),
    Draft201909Validator: _Dialect(specifications.DRAFT201909, _2019),
    Draft202012Validator: _Dialect(specifications.DRAFT202012, _LATEST),
}


def compiled(schema: Any, validator: type[Validator]) -> Table:
    """Compile *schema* into a table.

    Args:
        schema: A schema that ``validator.check_schema`` has accepted.
        validator: The validator class that :func:`jsonschema.validate` takes for it.

    Raises:
        Exception: The schema has an unsupported part, or an error that the library raises while
            it checks a value.
    """
    return _Compiler(schema, validator).table(schema)


class _Compiler:
    """Compile one document."""

    def __init__(self, root: Any, validator: type[Validator]) -> None:
        self._validator = validator
        self._dialect = _DIALECTS[validator]
        self._root = root
        self._references: dict[str, Table] = {}

    def table(self, schema: Any) -> Table:
        if isinstance(schema, bool):
            return same(schema)
        if validator_for(schema, default=self._validator) is not self._validator:
            raise UnsupportedError("a subschema of another dialect")
        tables = [
            self._dialect.keywords[name](value, schema, self)
            for name, value in self._applicable(schema)
            if name in self._validator.VALIDATORS
        ]
        return combined(all_of, tables)

    def _applicable(self, schema: Schema) -> Iterable[tuple[str, Any]]:
        if self._dialect.ignores_siblings_of_ref and schema.get("$ref") is not None:
            return [("$ref", schema["$ref"])]
        return schema.items()

    def reference(self, ref: str) -> Table:
        if ref not in self._references:
            table: dict[type, Any] = {}
            # A schema may refer to itself: the table is used before it is filled, and filled
            # before it is called.
            self._references[ref] = same(late(table))
            table.update(self.table(self._resolved(ref)))
            self._references[ref] = table
        return self._references[ref]

    def _resolved(self, ref: str) -> Any:
        if any(_has_id(value) for value in self._root.values()):
            raise UnsupportedError("a reference in a schema with several ids")
        resource = self._dialect.specification.create_resource(self._root)
        # An empty registry: references to other documents are not found.
        return Registry().resolver_with_root(resource).lookup(ref).contents

    def delegate(self, schema: Schema) -> Check:
        check: Check = self._validator(schema).is_valid
        return check


def _has_id(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_id(each) for each in value)
    if not isinstance(value, dict):
        return False
    return any(isinstance(value.get(name), str) for name in _IDS) or any(
        _has_id(each) for each in value.values()
    )
