# SPDX-License-Identifier: GPL-2.0-or-later
"""Generated JSON schemas, and values that often satisfy them."""

from typing import Any

import jsonschema
from hypothesis import strategies as st

DRAFTS = {
    "draft4": jsonschema.Draft4Validator,
    "draft6": jsonschema.Draft6Validator,
    "draft7": jsonschema.Draft7Validator,
    "2019-09": jsonschema.Draft201909Validator,
    "2020-12": jsonschema.Draft202012Validator,
}
# Few and close to each other, so that they meet.
NAMES = ["a", "b", "ab", "é", ""]
NUMBERS = [0, 1, 2, 3, -1, 0.0, -0.0, 1.0, 1.5, 2.0, 1e308, float("inf"), float("nan"), 10**30]
NUMBERS += [2**53, 2.0**53, 2**53 + 1]
STRINGS = [*NAMES, "aa", "b" * 3, "1", "𝄞", "e\u0301"]
SCALARS = [None, True, False, *NUMBERS, *STRINGS]
TYPES = ["array", "boolean", "integer", "null", "number", "object", "string"]
PATTERNS = ["", "a", "^a", "b$", "^$", "a|b", "[a-z]", ".", "é", "^.$"]

DEFINITIONS = ["#/definitions/x", "#/definitions/y"]
# Below these a reference upwards comes to an end, together with the value.
_INNER = {
    *("properties", "patternProperties", "additionalProperties", "propertyNames"),
    *("items", "prefixItems", "additionalItems", "contains"),
}

scalars = st.sampled_from(SCALARS)
names = st.sampled_from(NAMES)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)
counts = st.integers(0, 3)
limits = st.sampled_from([-1, 0, 1, 1.0, 1.5, 2, 2**53, 10**30, 1e308])

_ANY_DRAFT = {
    "$ref": lambda _: st.sampled_from([*DEFINITIONS, "#"]),
    "type": lambda _: (
        st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, unique=True)
    ),
    "enum": lambda _: st.lists(values, min_size=1, max_size=4, unique_by=repr),
    "format": lambda _: st.sampled_from(["email", "date-time", "ipv4"]),
    "description": lambda _: st.just("text"),
    "minimum": lambda _: limits,
    "maximum": lambda _: limits,
    "multipleOf": lambda _: st.sampled_from([1, 2, 0.5, 1.0, 3]),
    "minLength": lambda _: counts,
    "maxLength": lambda _: counts,
    "pattern": lambda _: st.sampled_from(PATTERNS),
    "minItems": lambda _: counts,
    "maxItems": lambda _: counts,
    "uniqueItems": lambda _: st.booleans(),
    "minProperties": lambda _: counts,
    "maxProperties": lambda _: counts,
    "properties": lambda sub: st.dictionaries(names, sub, max_size=3),
    "patternProperties": lambda sub: st.dictionaries(st.sampled_from(PATTERNS), sub, max_size=2),
    "additionalProperties": lambda sub: st.booleans() | sub,
    "required": lambda _: st.lists(names, min_size=1, max_size=2, unique=True),
    "allOf": lambda sub: st.lists(sub, min_size=1, max_size=2),
    "anyOf": lambda sub: st.lists(sub, min_size=1, max_size=3),
    "oneOf": lambda sub: st.lists(sub, min_size=1, max_size=3),
    "not": lambda sub: sub,
    "items": lambda sub: sub,
}
_DEPENDENCIES = {
    "dependencies": lambda sub: st.dictionaries(
        names, st.lists(names, min_size=1, max_size=2, unique=True) | sub, max_size=2
    )
}
_DRAFT4 = {
    **_ANY_DRAFT,
    **_DEPENDENCIES,
    "items": lambda sub: sub | st.lists(sub, min_size=1, max_size=2),
    "additionalItems": lambda sub: st.booleans() | sub,
    # The boolean is refused where there is no limit beside it.
    "minimum, exclusiveMinimum": lambda _: st.tuples(limits, st.booleans()),
    "maximum, exclusiveMaximum": lambda _: st.tuples(limits, st.booleans()),
}
_DRAFT6 = {
    **_DRAFT4,
    "const": lambda _: values,
    "contains": lambda sub: sub,
    "exclusiveMinimum": lambda _: limits,
    "exclusiveMaximum": lambda _: limits,
    "propertyNames": lambda sub: sub,
}
for _both in ("minimum, exclusiveMinimum", "maximum, exclusiveMaximum"):
    del _DRAFT6[_both]
_IF = {
    "if": lambda sub: sub,
    "if, then": lambda sub: st.tuples(sub, sub),
    "if, then, else": lambda sub: st.tuples(sub, sub, sub),
    "if, else": lambda sub: st.tuples(sub, sub),
}
_DRAFT7 = {**_DRAFT6, **_IF}
_2019 = {
    **_DRAFT7,
    "contains, minContains": lambda sub: st.tuples(sub, counts),
    "contains, maxContains": lambda sub: st.tuples(sub, counts),
    "dependentRequired": lambda _: st.dictionaries(
        names, st.lists(names, max_size=2, unique=True), max_size=2
    ),
    "dependentSchemas": lambda sub: st.dictionaries(names, sub, max_size=2),
}
_2020 = {
    **_2019,
    "items": lambda sub: sub,
    "prefixItems": lambda sub: st.lists(sub, min_size=1, max_size=3),
}
KEYWORDS = {
    "draft4": _DRAFT4,
    "draft6": _DRAFT6,
    "draft7": _DRAFT7,
    "2019-09": _2019,
    "2020-12": _2020,
}


@st.composite
def schemas(draw, draft):
    """Whole documents, with two definitions."""
    schema = draw(_subschemas(draft, 3, DEFINITIONS).filter(lambda each: isinstance(each, dict)))
    definitions = {"x": draw(_subschemas(draft, 1, [])), "y": draw(_subschemas(draft, 2, []))}
    dialect = DRAFTS[draft].META_SCHEMA
    return {
        **schema,
        "$schema": dialect.get("$id") or dialect["id"],
        "definitions": definitions,
    }


@st.composite
def _subschemas(draw, draft, depth, references):
    if draft != "draft4" and not draw(st.integers(0, 9)):
        return draw(st.booleans())
    keywords = KEYWORDS[draft]
    fitting = [name for name in keywords if depth or (name in _ANY_DRAFT and name not in _NESTED)]
    chosen = draw(st.lists(st.sampled_from(fitting), max_size=3, unique=True))
    if "$ref" in chosen and not references:
        chosen.remove("$ref")
    schema: dict[str, Any] = {}
    for name in chosen:
        inner = [*DEFINITIONS, "#"] if name in _INNER else references
        strategy = keywords[name](_subschemas(draft, depth - 1, inner))
        value = draw(st.sampled_from(references) if name == "$ref" else strategy)
        schema.update(zip(name.split(", "), value, strict=True) if "," in name else [(name, value)])
    return schema


_NESTED = {
    *("properties", "patternProperties", "additionalProperties", "items"),
    *("allOf", "anyOf", "oneOf", "not"),
}


@st.composite
def values_for(draw, schema, root, depth=5, *, care=9):
    """Values that the schema asks for, but for one in *care* of their parts."""
    if not isinstance(schema, dict) or depth < 0 or not draw(st.integers(0, care)):
        return draw(values)
    choices = [each for each in _CHOICES if each in schema]
    if choices:
        return draw(_CHOICES[draw(st.sampled_from(choices))](schema, root, depth, care))
    kinds = schema.get("type") or _implied(schema)
    return draw(
        _of_type(
            draw(st.sampled_from([kinds] if isinstance(kinds, str) else kinds)),
            schema,
            root,
            depth,
            care,
        )
    )


def _either(keyword):
    def choose(schema, root, depth, care):
        return st.sampled_from(schema[keyword]).flatmap(
            lambda each: values_for(
                {**_without(schema, keyword), **_dict(each)}, root, depth, care=care
            )
        )

    return choose


def _without(schema, keyword):
    return {name: value for name, value in schema.items() if name != keyword}


def _dict(schema):
    return schema if isinstance(schema, dict) else {}


def _referred(schema, root, depth, care):
    found = root
    reference = schema["$ref"]
    for part in reference.split("/")[1:]:
        found = found[part]
    if reference.removeprefix("#") and "/" not in reference:
        found = next(each for each in root["$defs"].values() if each["$anchor"] == reference[1:])
    return values_for(found, root, depth - 1, care=care)


_CHOICES = {
    "$ref": _referred,
    "const": lambda schema, *_: st.just(schema["const"]),
    "enum": lambda schema, *_: st.sampled_from(schema["enum"]),
    "allOf": _either("allOf"),
    "anyOf": _either("anyOf"),
    "oneOf": _either("oneOf"),
}


def _implied(schema):
    words = " ".join(schema)
    implied = [
        *(["object"] if "ropert" in words or "required" in words or "depend" in words else []),
        *(["array"] if "tems" in words or "contains" in words else []),
        *(["string"] if "Length" in words or "pattern" in schema else []),
        *(["number"] if "imum" in words or "multipleOf" in words else []),
    ]
    return implied or TYPES


def _of_type(kind, schema, root, depth, care):
    simple = {
        "integer": st.sampled_from([n for n in NUMBERS if n == n // 1]),
        "number": st.sampled_from(NUMBERS),
        "string": st.sampled_from(STRINGS),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    if kind == "object":
        return _objects(schema, root, depth, care)
    return _arrays(schema, root, depth, care) if kind == "array" else simple[kind]


@st.composite
def _objects(draw, schema, root, depth, care):
    properties = schema.get("properties", {})
    value = {}
    for name in [*properties, *schema.get("required", [])]:
        if draw(st.integers(0, care)):
            value[name] = draw(values_for(properties.get(name), root, depth - 1, care=care))
    if not draw(st.integers(0, care // 2)):
        value[draw(names)] = draw(scalars)
    return value


@st.composite
def _arrays(draw, schema, root, depth, care):
    items = schema.get("items")
    prefix = schema.get("prefixItems", items if isinstance(items, list) else [])
    rest = items if isinstance(items, dict) else schema.get("contains", {})
    size = draw(st.integers(0, 4))
    each = [*prefix, *[rest] * size][:size]
    return [draw(values_for(schema, root, depth - 1, care=care)) for schema in each]
