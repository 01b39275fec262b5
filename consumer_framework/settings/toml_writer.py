# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a configuration as TOML: the standard library reads it only."""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document: Mapping[str, Any]) -> str:
    """Write *document* as TOML, with a heading for each table.

    Raises:
        ConfigurationError: A value is of a type that TOML does not have.
    """
    return "\n".join(_table(document, "")).strip() + "\n"


def _table(table: Mapping[str, Any], path: str) -> Iterator[str]:
    nested = {key: value for key, value in table.items() if _is_nested(value)}
    for key, value in table.items():
        if key not in nested and value is not None:
            yield f"{_key(key)} = {_value(value, f'{path}{key}')}"
    for key, value in nested.items():
        inner = f"{path}{_key(key)}"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(value, list):
                yield f"\n[[{inner}]]"
            elif not all(map(_is_nested, each.values())):
                yield f"\n[{inner}]"
            yield from _table(each, f"{inner}.")


def _is_nested(value: Any) -> bool:
    is_tables = isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
    return (isinstance(value, dict) and bool(value)) or bool(is_tables)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any, path: str) -> str:
    match value:
        case str():
            return _text(value)
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case list() | tuple():
            return f"[{', '.join(_value(each, path) for each in value)}]"
        case dict():
            pairs = (f"{_key(k)} = {_value(v, path)}" for k, v in value.items())
            return f"{{{', '.join(pairs)}}}"
    problem = Problem(path, f"has a value of type {type(value).__name__}", "write it as text")
    raise ConfigurationError(problem)


def _text(text: str) -> str:
    # JSON's strings are TOML's, but for DEL. Pairs of surrogates are none in TOML.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
