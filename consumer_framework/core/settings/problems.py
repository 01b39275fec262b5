# SPDX-License-Identifier: GPL-2.0-or-later
"""From pydantic's errors to problems that name a TOML path, and say it in TOML's words."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, get_args

from consumer_framework.core.errors import Problem

from .file import Binding, Monitoring, Queue, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pydantic
    from pydantic import BaseModel


def from_pydantic(error: pydantic.ValidationError, prefix: str, root: Any) -> Iterable[Problem]:
    """Say each error of a validation as a problem.

    Args:
        error: What pydantic raised.
        prefix: The TOML path of what was parsed.
        root: The model that it was parsed with.
    """
    for item in error.errors(include_url=False):
        path = _toml_path(prefix, item["loc"])
        if item["type"] == "extra_forbidden":
            yield _unknown_key(path, _keys_at(root, item["loc"][:-1]), str(item["loc"][-1]))
        elif item["type"] == "missing":
            yield Problem(path, "this key is required", "add it")
        elif item["type"].endswith(("_type", "_parsing")):
            yield Problem(path, _sentence(item["msg"]), f"it is {_toml_type(item['input'])} now")
        elif item["type"] in {"value_error", "assertion_error"}:
            yield Problem(path, item["msg"].partition(", ")[2])
        else:
            yield Problem(path, _sentence(item["msg"]))


def _toml_path(prefix: str, location: tuple[int | str, ...]) -> str:
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'
            path += f".{key}" if path else key
    return path


def _keys_at(root: Any, location: tuple[int | str, ...]) -> set[str]:
    """The keys known in the table at *location*, as far as plain nesting tells."""
    table: Any = root
    for part in location:
        if part not in getattr(table, "model_fields", {}):
            return _keys_of_items(root, location)
        annotation = table.model_fields[part].annotation
        table = next(iter(get_args(annotation)), annotation)
    return set(getattr(table, "model_fields", ()))


def _keys_of_items(root: Any, location: tuple[int | str, ...]) -> set[str]:
    items: dict[str, type[BaseModel]] = {
        "queues": Queue,
        "bindings": Binding,
        "monitoring": Monitoring,
    }
    table = items.get(str(location[0])) if root is Settings else None
    return set(table.model_fields) if table else set()


def unknown_keys(prefix: str, table: Mapping[str, Any], known: set[str] | None) -> list[Problem]:
    """Name the keys of *table* that are not *known*; None knows every key."""
    if known is None:
        return []
    return [_unknown_key(_toml_path(prefix, (k,)), known, k) for k in table if k not in known]


def _unknown_key(path: str, known: set[str], key: str) -> Problem:
    near = difflib.get_close_matches(key, known, 1)
    if near:
        return Problem(path, "unknown key", f'did you mean "{near[0]}"?')
    if known:
        return Problem(path, "unknown key", f"the keys here are {', '.join(sorted(known))}")
    return Problem(path, "unknown key", "remove it")


# Pydantic speaks of Python, the file is TOML.
_WORDS = {
    "Input should be": "must be",
    "valid dictionary": "table",
    "valid list": "array",
    "valid tuple": "array",
    "tuple should": "array should",
    "valid ": "",
    "a integer": "an integer",
    "a array": "an array",
}


def _sentence(message: str) -> str:
    """Pydantic's message as the rest of a line that starts with the key."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message[:1].lower() + message[1:]


_TOML_TYPES: dict[type, str] = {
    bool: "a boolean",
    dict: "a table",
    float: "a float",
    int: "an integer",
    list: "an array",
    str: "a string",
}


def _toml_type(value: Any) -> str:
    """What *value* is, without showing it: it may be a secret."""
    return _TOML_TYPES.get(type(value), f"a {type(value).__name__}")
