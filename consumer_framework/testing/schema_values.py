# SPDX-License-Identifier: GPL-2.0-or-later
"""Make values that a JSON schema allows.

:class:`SchemaValues` walks through a schema and makes one value of it. It leaves each decision to a
:class:`Choices`, so that the same walk makes the plain example of a test and the many examples of
hypothesis.

- A schema with ``$ref``, ``allOf``, ``anyOf``, ``oneOf`` or ``if`` becomes a list of
  *alternatives*: flat schemas without these keywords. The first alternative whose value the schema
  allows is taken.
- Keywords that forbid values, such as ``not``, are checked, and not obeyed.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jsonschema
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Schema = Mapping[str, Any]

T = TypeVar("T")

ABSENT: Any = object()
# A schema of a message has far fewer; a product of many `anyOf` would have no end.
_MOST_ALTERNATIVES = 256
_DEEPEST = 40
# For an item that no other item of the array equals.
_MORE_TRIES = 20


class NoValueError(Exception):
    """The schema allows no value, or none that this module can find."""


class Choices(Protocol):
    """Decides everything that a schema leaves open."""

    def ordered(self, options: Sequence[T]) -> Sequence[T]:
        """Return *options* in the order in which they are tried."""

    def wants(self, name: str, depth: int) -> bool:
        """Decide if an optional property is there; *depth* is the number of objects around it."""

    def size(self, low: int, high: int | None, depth: int) -> int:
        """Choose the length of an array."""

    def multiplier(self, low: int | None, high: int | None, ordinal: int) -> int:
        """Choose a whole number; *ordinal* is the place in the array that wants different ones."""

    def number(self, low: float | None, high: float | None) -> float:
        """Choose a number from *low* to *high*."""

    def text(self, hint: str, ordinal: int, schema: Schema) -> str:
        """Choose a text with the length, the pattern and the format of *schema*.

        Args:
            hint: The name of the property.
            ordinal: As for :meth:`multiplier`.
            schema: Its ``minLength``, ``maxLength``, ``pattern`` and ``format`` count.

        Raises:
            NoValueError: No text fits.
        """

    def anything(self, hint: str) -> Any:
        """Choose any JSON value."""


class SchemaValues:
    """Makes values of one schema.

    Args:
        schema: The whole schema, in which a ``$ref`` is looked up.
        choices: Decides.
    """

    def __init__(self, schema: Schema, choices: Choices) -> None:
        self._schema = schema
        self._choices = choices
        kind = jsonschema.validators.validator_for(schema)
        self._validator = kind(schema)
        resource = Resource.from_contents(schema, default_specification=DRAFT4)
        base = resource.id() or ""
        self._resolver = Registry().with_resource(base, resource).resolver(base)

    def value(self, given: Any = ABSENT) -> Any:
        """Make a value.

        Args:
            given: A part of the value: objects in it get the properties that they lack.

        Raises:
            NoValueError: The schema does not allow it; the text names the place.
        """
        value = self._value(self._schema, "value", given, 0, 0)
        for error in self._validator.iter_errors(value):
            raise NoValueError(f"{error.json_path}: {error.message}")
        return value

    def _value(self, schema: Any, hint: str, given: Any, depth: int, ordinal: int) -> Any:
        if depth > _DEEPEST:
            raise NoValueError(f"{hint}: the schema has no end")
        if not isinstance(schema, dict):
            return self._of_boolean(schema, hint, given)
        alternatives = self._alternatives(schema)
        reason = f"{hint}: the schema allows nothing"
        for flat in self._choices.ordered(alternatives):
            try:
                value = self._of_flat(flat, hint, given, depth, ordinal)
            except NoValueError as error:
                reason = str(error)
                continue
            if len(alternatives) == 1 or self._allows(schema, value):
                return value
        if given is not ABSENT:
            # The check of the whole value names its fault.
            return given
        raise NoValueError(reason)

    def _of_boolean(self, schema: Any, hint: str, given: Any) -> Any:
        if schema is False:
            raise NoValueError(f"{hint}: the schema allows nothing")
        return self._choices.anything(hint) if given is ABSENT else given

    def _allows(self, schema: Schema, value: Any) -> bool:
        return bool(self._validator.evolve(schema=schema).is_valid(value))

    # From a schema to its alternatives.

    def _alternatives(self, schema: Any, depth: int = 0) -> list[dict[str, Any]]:
        """Return the flat schemas of *schema*: each allows some of its values."""
        if not isinstance(schema, dict):
            return [{}] if schema is not False else []
        if depth > _DEEPEST:
            return []
        own = {key: value for key, value in schema.items() if key not in _COMBINING}
        groups: list[list[dict[str, Any]]] = [[own]]
        if isinstance(schema.get("$ref"), str):
            groups.append(self._alternatives(self._resolved(schema["$ref"]), depth + 1))
        groups += [self._alternatives(part, depth + 1) for part in schema.get("allOf", ())]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                found = [self._alternatives(part, depth + 1) for part in schema[keyword]]
                groups.append(list(itertools.chain.from_iterable(found)))
        if "if" in schema:
            groups.append(self._conditional(schema, depth + 1))
        products = itertools.islice(itertools.product(*groups), _MOST_ALTERNATIVES)
        return [_merged(parts) for parts in products]

    def _conditional(self, schema: Schema, depth: int) -> list[dict[str, Any]]:
        then = {"allOf": [schema["if"], schema.get("then", True)]}
        return [
            *self._alternatives(then, depth),
            *self._alternatives(schema.get("else", True), depth),
        ]

    def _resolved(self, reference: str) -> Any:
        try:
            return self._resolver.lookup(reference).contents
        except Unresolvable:
            raise NoValueError(f"the schema refers to {reference}, which is not in it") from None

    # From a flat schema to a value.

    def _of_flat(self, flat: Schema, hint: str, given: Any, depth: int, ordinal: int) -> Any:
        if given is ABSENT:
            return self._made(flat, hint, depth, ordinal)
        if isinstance(given, dict):
            return self._object(flat, given, depth)
        return self._completed(flat, hint, given, depth) if isinstance(given, list) else given

    def _made(self, flat: Schema, hint: str, depth: int, ordinal: int) -> Any:
        if "const" in flat:
            return flat["const"]
        kinds = _types(flat)
        if "enum" in flat:
            return self._first([one for one in flat["enum"] if _has_type(one, kinds)], hint)
        if not kinds:
            return self._choices.anything(hint)
        kind = self._first(kinds, hint)
        makers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(flat, {}, depth),
            "array": lambda: self._array(flat, hint, depth),
            "string": lambda: self._choices.text(hint, ordinal, flat),
            "integer": lambda: self._number(flat, 1, hint, ordinal),
            "number": lambda: self._number(flat, None, hint, ordinal),
            "boolean": lambda: self._first([False, True], hint),
            "null": lambda: None,
        }
        if kind not in makers:
            raise NoValueError(f"{hint}: there is no type {kind!r}")
        return makers[kind]()

    def _first(self, options: Sequence[T], hint: str) -> T:
        if not options:
            raise NoValueError(f"{hint}: the schema allows nothing")
        return self._choices.ordered(options)[0]

    def _object(self, flat: Schema, given: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = _mapping(flat.get("properties"))
        required = [name for name in _listed(flat.get("required")) if isinstance(name, str)]
        optional = [name for name in properties if name not in {*required, *given}]
        names = [*required, *(name for name in optional if self._choices.wants(name, depth))]
        lacking = flat.get("minProperties", 0) - len({*names, *given})
        spare = (f"property{number}" for number in itertools.count(1))
        more = itertools.chain((name for name in optional if name not in names), spare)
        names += [*itertools.islice(more, max(lacking, 0)), *given]
        return {
            name: self._value(_schema_of(flat, name), name, given.get(name, ABSENT), depth + 1, 0)
            for name in dict.fromkeys(names)
        }

    def _completed(self, flat: Schema, hint: str, given: list[Any], depth: int) -> list[Any]:
        schemas = _items(flat)
        return [
            self._value(schema, hint, item, depth + 1, 0)
            for schema, item in zip(schemas, given, strict=False)
        ]

    def _array(self, flat: Schema, hint: str, depth: int) -> list[Any]:
        low = max(flat.get("minItems", 0), 1 if "contains" in flat else 0)
        size = self._choices.size(low, flat.get("maxItems"), depth)
        values: list[Any] = []
        tries = size + (_MORE_TRIES if flat.get("uniqueItems") else 0)
        for ordinal, schema in enumerate(itertools.islice(_items(flat), tries)):
            if len(values) == size:
                break
            value = self._value(schema, hint, ABSENT, depth + 1, ordinal)
            if not flat.get("uniqueItems") or value not in values:
                values.append(value)
        return values

    def _number(self, flat: Schema, step: float | None, hint: str, ordinal: int) -> float:
        low, high = _limits(flat)
        step = flat.get("multipleOf", step)
        if step is not None:
            first, last = _multipliers(flat, low, high, step)
            if first is not None and last is not None and first > last:
                raise NoValueError(f"{hint}: no number fits")
            multiple: float = self._choices.multiplier(first, last, ordinal) * step
            return multiple
        if low is not None and _forbids(flat, "Minimum", low):
            low = math.nextafter(low, math.inf)
        if high is not None and _forbids(flat, "Maximum", high):
            high = math.nextafter(high, -math.inf)
        if low is not None and high is not None and low > high:
            raise NoValueError(f"{hint}: no number fits")
        return self._choices.number(low, high)


_COMBINING = {
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "then",
    "else",
    "not",
    "definitions",
    "$defs",
}
# The keywords of which the stricter value counts.
_STRICTER = {
    **dict.fromkeys(("minimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "maxLength", "maxItems", "maxProperties"), min),
}
_KEYWORDS_OF_TYPES = {
    "properties": "object",
    "required": "object",
    "items": "array",
    "pattern": "string",
    "minLength": "string",
    "format": "string",
    "minimum": "number",
    "maximum": "number",
}


def _merged(schemas: Iterable[Schema]) -> dict[str, Any]:
    """Return one flat schema that allows the values which all *schemas* allow."""
    merged: dict[str, Any] = {}
    for schema in schemas:
        for key, value in schema.items():
            merged[key] = _both(key, merged[key], value) if key in merged else value
    return merged


def _both(key: str, one: Any, other: Any) -> Any:
    if key in _STRICTER:
        return _STRICTER[key](one, other)
    if key == "required":
        return [*_listed(one), *_listed(other)]
    if key == "enum":
        return [value for value in one if value in other]
    if key == "type":
        return [*_covered(_kinds(one), _kinds(other)), *_covered(_kinds(other), _kinds(one))]
    if key in ("properties", "patternProperties"):
        shared = {name: {"allOf": [one[name], other[name]]} for name in one if name in other}
        return {**one, **other, **shared}
    return other


def _covered(kinds: Sequence[str], by: Sequence[str]) -> list[str]:
    """Return those *kinds* of which *by* has each value: a whole number is a number, too."""
    return [kind for kind in kinds if kind in by or (kind == "integer" and "number" in by)]


def _kinds(written: Any) -> list[str]:
    return [written] if isinstance(written, str) else [k for k in written if isinstance(k, str)]


def _types(flat: Schema) -> list[str]:
    if "type" in flat:
        kinds = _kinds(flat["type"])
        return [] if "any" in kinds else kinds
    return list(dict.fromkeys(k for word, k in _KEYWORDS_OF_TYPES.items() if word in flat))


def _has_type(value: Any, kinds: Sequence[str]) -> bool:
    return not kinds or jsonschema.Draft7Validator({"type": list(kinds)}).is_valid(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _schema_of(flat: Schema, name: str) -> Any:
    """Return the schema of the property *name*."""
    properties = _mapping(flat.get("properties"))
    if name in properties:
        return properties[name]
    for pattern, schema in _mapping(flat.get("patternProperties")).items():
        if re.search(pattern, name):
            return schema
    return flat.get("additionalProperties", True)


def _items(flat: Schema) -> Iterator[Any]:
    """Return the schema of each item."""
    rest = flat.get("items", True)
    first = flat.get("prefixItems", [])
    if isinstance(rest, list):
        first, rest = rest, flat.get("additionalItems", True)
    if "contains" in flat:
        rest = {"allOf": [rest, flat["contains"]]}
    return itertools.chain(first, itertools.repeat(rest))


def _limits(flat: Schema) -> tuple[float | None, float | None]:
    lows = [flat.get("minimum"), flat.get("exclusiveMinimum")]
    highs = [flat.get("maximum"), flat.get("exclusiveMaximum")]
    # Draft 4 has `exclusiveMinimum: true`.
    low = max((x for x in lows if x is not None and not isinstance(x, bool)), default=None)
    high = min((x for x in highs if x is not None and not isinstance(x, bool)), default=None)
    return low, high


def _multipliers(
    flat: Schema, low: float | None, high: float | None, step: float
) -> tuple[int | None, int | None]:
    """Return the least and the greatest multiple of *step* that the limits allow, in steps."""
    first = None if low is None else math.ceil(low / step)
    last = None if high is None else math.floor(high / step)
    if first is not None and _forbids(flat, "Minimum", first * step):
        first += 1
    if last is not None and _forbids(flat, "Maximum", last * step):
        last -= 1
    return first, last


def _forbids(flat: Schema, limit: str, value: float) -> bool:
    exclusive = flat.get(f"exclusive{limit}")
    if isinstance(exclusive, bool):
        return exclusive and value == flat.get(limit.lower())
    return exclusive is not None and value == exclusive
