# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn pydantic's errors into problems with a TOML path, in the words of TOML."""

from __future__ import annotations

import difflib
import re
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args, get_origin

from consumer_framework.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pydantic
    from pydantic_core import ErrorDetails

Location: TypeAlias = tuple[int | str, ...]


def toml_path(prefix: str, location: Location) -> str:
    """Return the TOML path of *location* in the table *prefix*."""
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'
            path += f".{key}" if path else key
    return path


def in_document(location: Location, document: Any) -> Location:
    """Return *location* without the members of unions that pydantic adds to keys and indexes.

    *document* is the validated document: it has all of the keys.
    """
    kept: list[int | str] = []
    for part in location:
        if _has(document, part):
            document = document[part]
            kept.append(part)
    return tuple(kept)


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def keys_at(root: Any, location: Location) -> set[str]:
    """Return the keys that the model *root* knows in the table at *location*."""
    kinds = [root]
    for part in location:
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
    return {key for kind in kinds for key in getattr(kind, "model_fields", ())}


def _inside(kind: Any, part: int | str) -> Iterator[Any]:
    field = getattr(kind, "model_fields", {}).get(part)
    arguments = get_args(kind)
    if field is not None:
        yield from _alternatives(field.annotation)
    elif get_origin(kind) in (list, tuple) and isinstance(part, int):
        yield from _alternatives(arguments[0])
    elif get_origin(kind) is dict:
        yield from _alternatives(arguments[1])


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _alternatives(choice)
    else:
        yield annotation


def from_pydantic(
    error: pydantic.ValidationError, prefix: str, root: Any, document: Any
) -> Iterable[Problem]:
    """Turn the errors of a validation into problems, one for each place.

    Args:
        error: The exception of pydantic.
        prefix: The TOML path of *document*.
        root: The model that *document* was validated with.
        document: The validated table.
    """
    for location, items in _by_place(error, document).items():
        path = toml_path(prefix, location)
        if items[0]["type"] == "extra_forbidden":
            yield _unknown_key(path, keys_at(root, location[:-1]), str(location[-1]))
        else:
            yield _problem(path, items)


def _by_place(error: pydantic.ValidationError, document: Any) -> dict[Any, list[ErrorDetails]]:
    # Each member of a union has errors of its own for the same value.
    places: dict[Any, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        if _is_echo(item):
            continue
        places.setdefault(_place(item, document), []).append(item)
    return places


def _is_echo(item: ErrorDetails) -> bool:
    # Pydantic also calls an array too short because of wrong items, which have their own errors.
    return item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]


def _place(item: ErrorDetails, document: Any) -> Location:
    if item["type"] == "missing":
        return (*in_document(item["loc"][:-1], document), item["loc"][-1])
    return in_document(item["loc"], document)


# Errors of alternatives that only a class may have are no help for a file.
_PYTHON_ONLY = {"is_subclass_of", "is_type", "is_instance_of"}


def _problem(path: str, items: Sequence[ErrorDetails]) -> Problem:
    items = [item for item in items if item["type"] not in _PYTHON_ONLY] or items
    said = list(dict.fromkeys(_said(item) for item in items))
    (first, cure), *others = said
    more = (message.removeprefix("must be ") for message, _ in others)
    return Problem(path, " or ".join([first, *more]), cure)


def _said(item: ErrorDetails) -> tuple[str, str]:
    """Return the message of an error, and the cure."""
    kind, context = item["type"], item.get("ctx", {})
    now = f"it is {_toml_type(item['input'])} now"
    if kind == "missing":
        return "this key is required", "add it"
    if kind in {"enum", "literal_error"}:
        return _choice(str(context["expected"]), item["input"])
    if kind in _LENGTHS:
        return _LENGTHS[kind](context)
    if kind.endswith(("_type", "_parsing")):
        return _sentence(item["msg"]), now
    if kind in {"value_error", "assertion_error"}:
        return item["msg"].partition(", ")[2], ""
    return _sentence(item["msg"]), ""


_LENGTHS: dict[str, Callable[[Any], tuple[str, str]]] = {
    "too_short": lambda context: (f"must have {_at_least(context['min_length'])}", "add one"),
    "too_long": lambda context: (f"must have at most {context['max_length']} items", "remove some"),
}


def _at_least(count: int) -> str:
    return "at least 1 item" if count == 1 else f"at least {count} items"


def _choice(expected: str, value: Any) -> tuple[str, str]:
    # Pydantic lists the choices as 'a', 'b' or 'c'.
    said = f"must be {expected}".replace("'", '"')
    if not isinstance(value, str):
        return said, f"it is {_toml_type(value)} now"
    near = difflib.get_close_matches(value.lower(), re.findall(r"'([^']*)'", expected), 1)
    return said, f'did you mean "{near[0]}"?' if near else ""


def unknown_keys(prefix: str, table: Mapping[str, Any], known: set[str] | None) -> list[Problem]:
    """List the keys of *table* that are not *known*; None knows every key."""
    if known is None:
        return []
    return list(_unknown_keys(prefix, table, known))


def _unknown_keys(prefix: str, table: Mapping[str, Any], known: set[str]) -> Iterator[Problem]:
    for key in table:
        if key not in known:
            yield _unknown_key(toml_path(prefix, (key,)), known, key)


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
    """Return pydantic's message as the rest of a line that starts with the key."""
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
    """Name the type of *value*. The value itself is not shown: it may be a secret."""
    return _TOML_TYPES.get(type(value), f"a {type(value).__name__}")
