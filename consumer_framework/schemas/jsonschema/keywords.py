# SPDX-License-Identifier: GPL-2.0-or-later
"""The keywords of JSON Schema, each as a function that makes a table of verdicts.

Each function takes the keyword's value, the schema that contains it, and the compiler of
subschemas. A value that the function cannot handle raises an exception, which leaves the whole
schema to the ``jsonschema`` library.

A function has exactly the library's meaning of its keyword, also where that differs from the
specification's. The functions have the names of the library's own, in its ``_keywords.py`` and
``_legacy_keywords.py``, so that both can be read side by side.
"""

from __future__ import annotations

import operator
import re
from types import NoneType
from typing import TYPE_CHECKING, Any

from .verdicts import (
    ANYTHING,
    TYPES,
    Check,
    Compiler,
    Keyword,
    Schema,
    Table,
    Verdict,
    all_of,
    any_of,
    combined,
    holds,
    negated,
    one_of,
    only,
    same,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_NUMBERS = (int, float)
_CONTAINERS = (dict, list)
_TYPE_NAMES: Mapping[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (NoneType,),
    "number": _NUMBERS,
    "object": (dict,),
    "string": (str,),
}


# Any type.


def ref(ref: Any, _schema: Schema, compiler: Compiler) -> Table:
    return compiler.reference(ref)


def type_draft4(names: Any, _schema: Schema, _compiler: Compiler) -> Table:
    names = [names] if isinstance(names, str) else names
    kinds = {kind for name in names for kind in _TYPE_NAMES[name]}
    return {kind: kind in kinds for kind in TYPES}


def type_(names: Any, schema: Schema, compiler: Compiler) -> Table:
    table = dict(type_draft4(names, schema, compiler))
    if "integer" in ([names] if isinstance(names, str) else names):
        # 1.0 is an integer since draft 6.
        table[float] = any_of([table[float], float.is_integer])
    return table


def enum(values: Any, _schema: Schema, compiler: Compiler) -> Table:
    if not all(type(value) in TYPES for value in values):
        raise TypeError("an enum of values that JSON does not have")
    scalars = [value for value in values if type(value) not in _CONTAINERS]
    table: dict[type, Verdict] = {
        bool: _is_any_of([value for value in scalars if type(value) is bool]),
        NoneType: None in scalars,
        str: _is_any_of([value for value in scalars if type(value) is str]),
    }
    # True is not equal to 1, but 1.0 is.
    number = _is_any_of([value for value in scalars if type(value) in _NUMBERS])
    table.update(dict.fromkeys(_NUMBERS, number))
    containers = [value for value in values if type(value) in _CONTAINERS]
    deep = compiler.delegate({"enum": containers}) if containers else False
    return {**table, **dict.fromkeys(_CONTAINERS, deep)}


def const(value: Any, schema: Schema, compiler: Compiler) -> Table:
    return enum([value], schema, compiler)


def _is_any_of(values: list[Any]) -> Verdict:
    return frozenset(values).__contains__ if values else False


def all_of_(schemas: Any, _schema: Schema, compiler: Compiler) -> Table:
    return combined(all_of, [compiler.table(schema) for schema in schemas])


def any_of_(schemas: Any, _schema: Schema, compiler: Compiler) -> Table:
    return combined(any_of, [compiler.table(schema) for schema in schemas])


def one_of_(schemas: Any, _schema: Schema, compiler: Compiler) -> Table:
    return combined(one_of, [compiler.table(schema) for schema in schemas])


def not_(schema: Any, _schema: Schema, compiler: Compiler) -> Table:
    table = compiler.table(schema)
    return {kind: negated(table[kind]) for kind in TYPES}


def if_(condition: Any, schema: Schema, compiler: Compiler) -> Table:
    when = compiler.table(condition)
    then = compiler.table(schema.get("then", True))
    otherwise = compiler.table(schema.get("else", True))
    return same(lambda value: holds(then if holds(when, value) else otherwise, value))


def format_(_name: Any, _schema: Schema, _compiler: Compiler) -> Table:
    # jsonschema.validate() gets no format checker.
    return ANYTHING


# Numbers. Every comparison with NaN is false, which makes it valid.


def minimum(limit: Any, _schema: Schema, _compiler: Compiler) -> Table:
    return only(_NUMBERS, lambda value: not value < limit)


def maximum(limit: Any, _schema: Schema, _compiler: Compiler) -> Table:
    return only(_NUMBERS, lambda value: not value > limit)


def exclusive_minimum(limit: Any, _schema: Schema, _compiler: Compiler) -> Table:
    return only(_NUMBERS, lambda value: not value <= limit)


def exclusive_maximum(limit: Any, _schema: Schema, _compiler: Compiler) -> Table:
    return only(_NUMBERS, lambda value: not value >= limit)


def minimum_draft4(limit: Any, schema: Schema, compiler: Compiler) -> Table:
    is_exclusive = schema.get("exclusiveMinimum", False)
    return (exclusive_minimum if is_exclusive else minimum)(limit, schema, compiler)


def maximum_draft4(limit: Any, schema: Schema, compiler: Compiler) -> Table:
    is_exclusive = schema.get("exclusiveMaximum", False)
    return (exclusive_maximum if is_exclusive else maximum)(limit, schema, compiler)


def multiple_of(divisor: Any, _schema: Schema, compiler: Compiler) -> Table:
    if isinstance(divisor, float):
        # jsonschema raises for NaN and infinity; whether it gets there depends on its order.
        raise TypeError("a multipleOf that is no integer")
    return only(_NUMBERS, compiler.delegate({"multipleOf": divisor}))


# Strings.


def pattern(pattern: Any, _schema: Schema, _compiler: Compiler) -> Table:
    search = re.compile(pattern).search
    return only([str], lambda value: search(value) is not None)


def _length(kind: type, is_beyond: Callable[[int, Any], bool]) -> Keyword:
    def keyword(limit: Any, _schema: Schema, _compiler: Compiler) -> Table:
        return only([kind], lambda value: not is_beyond(len(value), limit))

    return keyword


min_length, max_length = _length(str, operator.lt), _length(str, operator.gt)
min_items, max_items = _length(list, operator.lt), _length(list, operator.gt)
min_properties, max_properties = _length(dict, operator.lt), _length(dict, operator.gt)


# Arrays.


def items(items: Any, schema: Schema, compiler: Compiler) -> Table:
    return _each_from(len(schema.get("prefixItems", [])), compiler.table(items))


def items_before_2020(items: Any, schema: Schema, compiler: Compiler) -> Table:
    if isinstance(items, list):
        return prefix_items(items, schema, compiler)
    return _each_from(0, compiler.table(items))


def prefix_items(schemas: Any, _schema: Schema, compiler: Compiler) -> Table:
    tables = [compiler.table(schema) for schema in schemas]

    def check(values: list[Any]) -> bool:
        pairs = zip(tables, values, strict=False)
        return all(holds(table, value) for table, value in pairs)

    return only([list], check)


def additional_items(rest: Any, schema: Schema, compiler: Compiler) -> Table:
    if isinstance(schema.get("items", {}), dict):
        return ANYTHING
    return _each_from(len(schema["items"]), compiler.table(rest))


def _each_from(start: int, table: Table) -> Table:
    def check(values: list[Any]) -> bool:
        for value in values[start:] if start else values:
            verdict = table[type(value)]
            if verdict is not True and (verdict is False or not verdict(value)):
                return False
        return True

    return ANYTHING if table == ANYTHING else only([list], check)


def contains(schema: Any, parent: Schema, compiler: Compiler) -> Table:
    table = compiler.table(schema)
    least, most = parent.get("minContains", 1), parent.get("maxContains")

    def check(values: list[Any]) -> bool:
        matches = sum(holds(table, value) for value in values)
        return not (matches < least or (most is not None and matches > most))

    return only([list], check)


def contains_before_2019(schema: Any, _parent: Schema, compiler: Compiler) -> Table:
    table = compiler.table(schema)
    return only([list], lambda values: any(holds(table, value) for value in values))


def unique_items(is_wanted: Any, _schema: Schema, compiler: Compiler) -> Table:
    if not is_wanted:
        return ANYTHING
    # The library's verdict depends on the order of elements of different types, and on NaN.
    full = compiler.delegate({"uniqueItems": True})

    def check(values: list[Any]) -> bool:
        if all(type(value) is str for value in values):
            return len(set(values)) == len(values)
        return full(values)

    return only([list], check)


# Objects.


def properties(schemas: Any, parent: Schema, compiler: Compiler) -> Table:
    tables = {name: compiler.table(schema) for name, schema in schemas.items()}
    needed = frozenset(parent.get("required", ()))
    rules = [
        (name, table, name in needed)
        for name, table in tables.items()
        if table != ANYTHING or name in needed
    ]

    def check(value: dict[str, Any]) -> bool:
        for name, table, is_needed in rules:
            if name in value:
                each = value[name]
                verdict = table[type(each)]
                if verdict is not True and (verdict is False or not verdict(each)):
                    return False
            elif is_needed:
                return False
        return True

    return only([dict], check if rules else True)


def required(names: Any, parent: Schema, _compiler: Compiler) -> Table:
    # `properties` checks the other names, together with their values.
    needed = frozenset(names).difference(parent.get("properties", ()))
    return only([dict], (lambda value: value.keys() >= needed) if needed else True)


def additional_properties(schema: Any, parent: Schema, compiler: Compiler) -> Table:
    table = compiler.table(schema)
    if table == ANYTHING:
        return ANYTHING
    known = frozenset(parent.get("properties", {}))
    patterns = "|".join(parent.get("patternProperties", {}))
    search = re.compile(patterns).search if patterns else lambda _: None

    def check(value: dict[str, Any]) -> bool:
        if value.keys() <= known:
            return True
        return all(
            name in known or search(name) is not None or holds(table, each)
            for name, each in value.items()
        )

    return only([dict], check)


def pattern_properties(schemas: Any, _schema: Schema, compiler: Compiler) -> Table:
    rules = [
        (re.compile(pattern).search, compiler.table(schema)) for pattern, schema in schemas.items()
    ]

    def check(value: dict[str, Any]) -> bool:
        return all(
            search(name) is None or holds(table, each)
            for search, table in rules
            for name, each in value.items()
        )

    return only([dict], check)


def property_names(schema: Any, _schema: Schema, compiler: Compiler) -> Table:
    table = compiler.table(schema)
    return only([dict], lambda value: all(holds(table, name) for name in value))


def dependent_required(dependencies: Any, _schema: Schema, _compiler: Compiler) -> Table:
    rules = [(name, frozenset(needed)) for name, needed in dependencies.items()]
    return only([dict], all_of([_depends(name, needed) for name, needed in rules]))


def _depends(name: str, needed: frozenset[str]) -> Check:
    return lambda value: name not in value or value.keys() >= needed


def dependent_schemas(schemas: Any, _schema: Schema, compiler: Compiler) -> Table:
    rules = [(name, compiler.table(schema)) for name, schema in schemas.items()]
    return only([dict], all_of([_applies(name, table) for name, table in rules]))


def _applies(name: str, table: Table) -> Check:
    return lambda value: name not in value or holds(table, value)


def dependencies(both: Any, schema: Schema, compiler: Compiler) -> Table:
    lists = {name: needed for name, needed in both.items() if isinstance(needed, list)}
    schemas = {name: needed for name, needed in both.items() if name not in lists}
    tables = (
        dependent_required(lists, schema, compiler),
        dependent_schemas(schemas, schema, compiler),
    )
    return only([dict], all_of([table[dict] for table in tables]))
