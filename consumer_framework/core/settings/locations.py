# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in a file something is: from pydantic's locations to TOML paths and known keys."""

from __future__ import annotations

import re
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Iterator

Location: TypeAlias = tuple[int | str, ...]


def toml_path(prefix: str, location: Location) -> str:
    """Write *location*, which is in the table *prefix*, as a TOML path."""
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'
            path += f".{key}" if path else key
    return path


def in_document(location: Location, document: Any) -> Location:
    """Leave out what pydantic puts in a location besides keys and indexes: members of unions.

    *document* is what was validated, and has all of the keys.
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
    """The keys known in the table at *location* of the model *root*, as far as models tell."""
    kinds = [root]
    for part in location:
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
    return {key for kind in kinds for key in getattr(kind, "model_fields", ())}


def _inside(kind: Any, part: int | str) -> Iterator[Any]:
    """What is at *part* of a value of type *kind*."""
    field = getattr(kind, "model_fields", {}).get(part)
    arguments = get_args(kind)
    if field is not None:
        yield from _alternatives(field.annotation)
    elif get_origin(kind) in (list, tuple) and isinstance(part, int):
        yield from _alternatives(arguments[0])
    elif get_origin(kind) is dict:
        yield from _alternatives(arguments[1])


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types that *annotation* allows, each without its metadata."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _alternatives(choice)
    else:
        yield annotation
