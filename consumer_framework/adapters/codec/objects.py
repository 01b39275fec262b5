# SPDX-License-Identifier: GPL-2.0-or-later
"""The keywords that concern objects; :mod:`.keywords` has the others, and the rules for all."""

from __future__ import annotations

import re
from typing import Any

from .verdicts import ANYTHING, Check, Compiler, Schema, Table, all_of, holds, only


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
    # Of the others `properties` takes care, in one go with their values.
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
