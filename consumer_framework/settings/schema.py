# SPDX-License-Identifier: GPL-2.0-or-later
"""The declarations of :mod:`.model` as rows of a reference page, and as a JSON schema.

No instance runs this: the documentation is made with it, and ``fm-consumer check --json-schema``.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, SecretStr
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from consumer_framework.core.limits import per_second
from consumer_framework.core.text import duration_text, seconds, seconds_or_endless

from .model import Framework, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import core_schema

# Text that stands for a number, by the function that reads it.
_TEXTUAL = {seconds: "length of time", seconds_or_endless: "length of time", per_second: "rate"}
_TOML = {bool: "boolean", int: "integer", str: "string", float: "float"}
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class Row:
    """One key of a table, as a reference page lists it.

    Attributes:
        key: Its name.
        kind: Its type in TOML's words; ``length of time`` and ``rate`` are text that has a form.
        default: As TOML, in backticks; or ``required``, ``none``, ``derived`` or ``see below``.
        meaning: One paragraph of Markdown.
    """

    key: str
    kind: str
    default: str
    meaning: str

    def __str__(self) -> str:
        return f"| `{self.key}` | {self.kind} | {self.default} | {self.meaning} |"


def rows(model: type[BaseModel], defaults: Mapping[str, Any] | None = None) -> list[Row]:
    """List the keys of *model*, in the order of their declaration.

    Args:
        model: A table of :mod:`.model`.
        defaults: The defaults of a file that has none of the keys, where they are not the model's.
    """
    meanings = _meanings(model)
    return [
        Row(name, kind, _default(name, field, kind, defaults), meanings[name])
        for name, field in model.model_fields.items()
        for kind in [_kind(field.annotation, field.metadata)]
    ]


def json_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of a configuration file, for editors.

    Every key has its type, limits and meaning. No key is required at the top: fedora-messaging has
    a default for each. The author's part of ``consumer_config`` is open.
    """
    schema = Settings.model_json_schema(schema_generator=_SchemaOfFiles)
    framework = Framework.model_json_schema(schema_generator=_SchemaOfFiles)
    schema["$defs"] |= framework.pop("$defs")
    schema["$defs"]["Framework"] = framework
    models: list[type[BaseModel]] = [Settings, *_tables(Settings), Framework, *_tables(Framework)]
    for model in models:
        place = schema if model is Settings else schema["$defs"][model.__name__]
        for key, meaning in _meanings(model).items():
            place["properties"][key]["description"] = _LINK.sub(r"\1", meaning)
    config = schema["properties"]["consumer_config"]
    config["properties"] = {"framework": {"$ref": "#/$defs/Framework"}}
    schema.pop("required")
    schema["title"] = "Configuration of a message consumer"
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def _tables(model: type[BaseModel]) -> list[type[BaseModel]]:
    """List the tables inside *model*, the inner ones too."""
    found: dict[type[BaseModel], None] = {}
    for field in model.model_fields.values():
        for kind in _flat(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= dict.fromkeys([kind, *_tables(kind)])
    return list(found)


def _flat(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [inner for part in arguments for inner in _flat(part)] if arguments else [annotation]


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the text below each declaration: Python itself forgets it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)  # noqa: S101 -- the source of a class
    return {
        declared.target.id: " ".join(below.value.value.split())
        for declared, below in pairwise(tree.body)
        if isinstance(declared, ast.AnnAssign)
        and isinstance(declared.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Name the type of a value in TOML's words, of the value that is there."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _kind(inner, (*metadata, *more))
    for item in metadata:
        if isinstance(item, BeforeValidator) and item.func in _TEXTUAL:
            return _TEXTUAL[item.func]
    if get_origin(annotation) in (Union, UnionType):
        return _kind(next(kind for kind in get_args(annotation) if kind is not type(None)))
    bare = get_origin(annotation) or annotation
    if bare is Literal or issubclass(bare, Enum | Path | SecretStr):
        return "string"
    if issubclass(bare, BaseModel | dict):
        return "table"
    return _TOML.get(bare, "array")


def _default(name: str, field: Any, kind: str, defaults: Mapping[str, Any] | None) -> str:
    if defaults is None and field.is_required():
        return "required"
    own = field.get_default(call_default_factory=True)
    value = own if defaults is None else defaults[name]
    if value is None:
        return "derived" if name == "prefetch_count" else "none"
    if isinstance(value, BaseModel) or (isinstance(value, dict | list) and value):
        return "see below"
    return f"`{json.dumps(_written(value, kind))}`"


def _written(value: Any, kind: str) -> Any:
    """Return *value*, which is parsed, as a file has it."""
    if kind == "length of time":
        return duration_text(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [duration_text(item) if isinstance(item, float) else item for item in value]
    return value


class _SchemaOfFiles(GenerateJsonSchema):
    """Describes a value as a file may have it, not as it is after parsing."""

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        if schema["function"]["function"] in _TEXTUAL:
            return {"type": ["string", "number"]}
        return super().function_before_schema(schema)

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        """Leave out the alternatives that only a class may have: an exception itself."""
        choices = [each for each in schema["choices"] if _of(each)["type"] != "is-subclass"]
        return super().union_schema({**schema, "choices": choices})

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Describe the value that is there: TOML has no null."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Leave out a default that no file has: none, or one in seconds."""
        described = self.generate_inner(schema["schema"])
        value = schema.get("default")
        if isinstance(value, str | bool | int):
            described = {**described, "default": value}
        return described


def _of(choice: Any) -> Any:
    return choice[0] if isinstance(choice, tuple) else choice
