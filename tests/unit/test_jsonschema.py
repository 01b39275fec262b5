# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdicts of compiled schemas are jsonschema's."""

import datetime as dt
import decimal
import json
import warnings
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema.validators import validator_for

from consumer_framework.schemas.jsonschema import checker_for, compiler
from consumer_framework.schemas.jsonschema.verdicts import holds

from .json_schemas import DRAFTS, KEYWORDS, values, values_for
from .json_schemas import schemas as generated

OLD = ["draft4", "draft6", "draft7"]
NEW = ["2019-09", "2020-12"]


def raised(validate):
    """Return the exception of *validate* in a form that can be compared."""
    try:
        validate()
    except jsonschema.ValidationError as error:
        return (
            type(error),
            error.message,
            list(error.absolute_path),
            list(error.absolute_schema_path),
        )
    except RecursionError as error:
        return (type(error),)
    except BaseException as error:  # noqa: BLE001 -- to be compared
        if type(error).__name__ == "PanicException":
            # rpds, below jsonschema, may make this of a RecursionError.
            return (RecursionError,)
        return type(error), str(error)
    return None


def check_all(schema, instances):
    """Assert that the checker and the compiled schema have the verdicts of jsonschema."""
    check = checker_for(schema)
    try:
        table = compiler.compiled(schema, validator_for(schema))
    except Exception:  # noqa: BLE001 -- jsonschema is asked
        table = None
    for instance in instances:
        expected = raised(lambda: jsonschema.validate(instance, schema))
        assert raised(lambda: check(instance)) == expected, instance
        has_verdict = expected is None or expected[0] is jsonschema.ValidationError
        if table is not None and has_verdict:
            # Also where a wrong "invalid" would be made good by asking jsonschema: inside of
            # `not` it would be a wrong "valid".
            assert holds(table, instance) == (expected is None), instance


# pytest-twisted takes no parameters together with hypothesis.
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(list(DRAFTS)), st.data())
def test_generated_schemas_have_the_verdicts_of_jsonschema(draft, data):
    schema = data.draw(generated(draft))
    instances = data.draw(st.lists(values_for(schema, schema), min_size=1, max_size=6))
    check_all(schema, [*instances, data.draw(values)])


# Rules that are easily got wrong, with the verdict written down.

EVERY = [*OLD, *NEW]
SINCE_6 = EVERY[1:]
NAN, INF = float("nan"), float("inf")
TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "more": {"items": {"$ref": "#"}}},
    "additionalProperties": False,
}
CHAIN = {
    "$ref": "#/definitions/a",
    "definitions": {"a": {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/definitions/b"}}]},
                    "b": {"not": {"$ref": "#/definitions/a"}}},
}  # fmt: skip
EXAMPLES = [
    # Booleans are no numbers.
    (EVERY, {"type": "integer"}, True, False),
    (EVERY, {"type": "number"}, False, False),
    (EVERY, {"not": {"type": ["integer", "number"]}}, True, True),
    (EVERY, {"type": "boolean"}, 1, False),
    (EVERY, {"enum": [1]}, True, False),
    (EVERY, {"enum": [True]}, 1, False),
    (EVERY, {"enum": [0, "", None, []]}, False, False),
    (EVERY, {"enum": [[1]]}, [True], False),
    (EVERY, {"enum": [{"a": [0]}]}, {"a": [False]}, False),
    (EVERY, {"minimum": 5}, True, True),
    (EVERY, {"multipleOf": 2}, True, True),
    (EVERY, {"uniqueItems": True}, [1, True], True),
    (EVERY, {"uniqueItems": True}, [[1], [True]], True),
    (SINCE_6, {"const": 0}, False, False),
    (SINCE_6, {"const": False}, 0, False),
    # An integer may be written as a float since draft 6.
    (["draft4"], {"type": "integer"}, 1.0, False),
    (["draft4"], {"type": ["string", "integer"]}, 1.0, False),
    (SINCE_6, {"type": "integer"}, 1.0, True),
    (SINCE_6, {"type": ["string", "integer"]}, -0.0, True),
    (EVERY, {"type": "integer"}, 1.5, False),
    (EVERY, {"type": "integer"}, INF, False),
    (EVERY, {"type": "integer"}, NAN, False),
    (EVERY, {"type": "integer"}, 10**400, True),
    (EVERY, {"type": "number"}, 10**400, True),
    # Equal numbers are equal, and no others.
    (EVERY, {"enum": [1]}, 1.0, True),
    (EVERY, {"enum": [0.0]}, -0.0, True),
    (EVERY, {"enum": [2**53]}, 2.0**53, True),
    (EVERY, {"enum": [2**53 + 1]}, 2.0**53, False),
    (EVERY, {"enum": [1.5]}, 1, False),
    (EVERY, {"enum": ["1"]}, 1, False),
    (EVERY, {"enum": [None]}, 0, False),
    (EVERY, {"enum": [[1, {"a": 1}]]}, [1.0, {"a": 1.0}], True),
    (EVERY, {"enum": [{"a": 1}]}, {"a": 1, "b": 1}, False),
    (EVERY, {"enum": [{}]}, [], False),
    (EVERY, {"enum": ["a"]}, {}, False),
    (EVERY, {"uniqueItems": True}, [1, 1.0], False),
    (EVERY, {"uniqueItems": True}, ["1", 1, 2, "2"], True),
    (EVERY, {"uniqueItems": True}, ["a", "b", "a"], False),
    (EVERY, {"uniqueItems": True}, [{"a": 1}, {"a": 1}], False),
    (EVERY, {"uniqueItems": False}, ["a", "a"], True),
    (SINCE_6, {"const": None}, None, True),
    (SINCE_6, {"const": {"a": [1]}}, {"a": [1.0]}, True),
    # Limits, and values without an order.
    (EVERY, {"minimum": 1}, NAN, True),
    (EVERY, {"maximum": 1}, NAN, True),
    (EVERY, {"maximum": 10**400}, INF, False),
    (EVERY, {"minimum": 1}, "0", True),
    (EVERY, {"minimum": 1}, 1, True),
    (EVERY, {"maximum": 1}, 1.0, True),
    (["draft4"], {"minimum": 1, "exclusiveMinimum": True}, 1, False),
    (["draft4"], {"minimum": 1, "exclusiveMinimum": False}, 1, True),
    (["draft4"], {"maximum": 1, "exclusiveMaximum": True}, 1, False),
    (SINCE_6, {"exclusiveMinimum": 1}, 1, False),
    (SINCE_6, {"exclusiveMinimum": 1}, NAN, True),
    (SINCE_6, {"exclusiveMaximum": 1}, 1, False),
    (SINCE_6, {"exclusiveMaximum": 1}, NAN, True),
    (EVERY, {"multipleOf": 3}, 1e308, False),
    (EVERY, {"multipleOf": 2}, NAN, False),
    (EVERY, {"multipleOf": 2}, 10**400, True),
    (EVERY, {"multipleOf": 2}, 3, False),
    # Lengths are in code points.
    (EVERY, {"maxLength": 1}, "𝄞", True),
    (EVERY, {"maxLength": 1}, "e\u0301", False),
    (EVERY, {"minLength": 1}, "", False),
    (EVERY, {"minLength": 1}, [], True),
    (SINCE_6, {"minLength": 1.0}, "a", True),
    (EVERY, {"minItems": 1, "maxItems": 1}, [0], True),
    (EVERY, {"minItems": 1}, [], False),
    (EVERY, {"maxItems": 0}, [0], False),
    (EVERY, {"minProperties": 1}, {}, False),
    (EVERY, {"maxProperties": 0}, {"a": 1}, False),
    # Patterns are searched for, anywhere.
    (EVERY, {"pattern": ""}, "", True),
    (EVERY, {"pattern": "b"}, "abc", True),
    (EVERY, {"pattern": "^b$"}, "b\n", True),
    (EVERY, {"pattern": "b"}, ["a"], True),
    (EVERY, {"patternProperties": {"a": {"type": "null"}}}, {"bab": 1}, False),
    (EVERY, {"patternProperties": {"": {"type": "null"}}}, {"": 1}, False),
    # The empty pattern alone is none.
    (EVERY, {"patternProperties": {"": {}}, "additionalProperties": False}, {"a": 1}, False),
    (EVERY, {"patternProperties": {"": {}, "b": {}}, "additionalProperties": False}, {"a": 1}, True),  # noqa: E501
    (EVERY, {"patternProperties": {"a": {}}, "additionalProperties": False}, {"ba": 1}, True),
    (EVERY, {"patternProperties": {"a": {}}, "additionalProperties": False}, {"b": 1}, False),
    # Objects.
    (EVERY, {"required": ["a"]}, {"a": None}, True),
    (EVERY, {"required": ["a"]}, {"b": None}, False),
    (EVERY, {"required": ["a"]}, ["a"], True),
    (EVERY, {"required": ["a"], "properties": {"a": {}}}, {}, False),
    (EVERY, {"required": ["a", "b"], "properties": {"a": {}}}, {"a": 1}, False),
    (EVERY, {"properties": {"required": {"type": "null"}}}, {"required": 1}, False),
    (EVERY, {"properties": {"$ref": {"type": "null"}}}, {"$ref": 1}, False),
    (EVERY, {"additionalProperties": {"type": "null"}, "properties": {"a": {}}}, {"a": 1}, True),
    (EVERY, {"additionalProperties": {"type": "null"}, "properties": {"a": {}}}, {"b": 1}, False),
    (EVERY, {"additionalProperties": False}, {}, True),
    (EVERY, {"additionalProperties": False}, {"a": 1}, False),
    (EVERY, {"additionalProperties": False}, [1], True),
    (EVERY, {"additionalProperties": True}, {"a": 1}, True),
    (SINCE_6, {"propertyNames": {"maxLength": 1}}, {"ab": 1}, False),
    (SINCE_6, {"properties": {"a": False}}, {"a": 1}, False),
    (SINCE_6, {"properties": {"a": False}}, {"b": 1}, True),
    (OLD, {"dependencies": {"a": ["b"]}}, {"a": 1}, False),
    (OLD, {"dependencies": {"a": ["b"], "c": {"minProperties": 2}}}, {"c": 1}, False),
    (OLD, {"dependencies": {"a": ["b"]}}, {"c": 1}, True),
    (NEW, {"dependencies": {"a": ["b"]}}, {"a": 1}, True),
    (NEW, {"dependentRequired": {"a": ["b"]}}, {"a": 1}, False),
    (NEW, {"dependentSchemas": {"a": {"minProperties": 2}}}, {"a": 1}, False),
    (OLD, {"dependentRequired": {"a": ["b"]}}, {"a": 1}, True),
    # Arrays.
    (EVERY, {"items": {"type": "null"}}, [None, 1], False),
    (EVERY, {"items": {"type": "null"}}, "text", True),
    ([*OLD, "2019-09"], {"items": [{"type": "null"}]}, [None, 1], True),
    ([*OLD, "2019-09"], {"items": [{"type": "null"}, {}]}, [1], False),
    ([*OLD, "2019-09"], {"items": [{}], "additionalItems": False}, [1, 2], False),
    ([*OLD, "2019-09"], {"items": [{}], "additionalItems": {"type": "null"}}, [1, 2], False),
    ([*OLD, "2019-09"], {"items": [{}], "additionalItems": {"type": "null"}}, [1, None], True),
    (EVERY, {"items": {}, "additionalItems": False}, [1, 2], True),
    (EVERY, {"additionalItems": False}, [1, 2], True),
    (SINCE_6, {"items": False}, [], True),
    (SINCE_6, {"items": False}, [1], False),
    (["2020-12"], {"prefixItems": [{"type": "null"}], "items": False}, [None], True),
    (["2020-12"], {"prefixItems": [{"type": "null"}], "items": False}, [None, None], False),
    (["2020-12"], {"prefixItems": [{"type": "null"}]}, [1], False),
    ([*OLD, "2019-09"], {"prefixItems": [{"type": "null"}]}, [1], True),
    (SINCE_6, {"contains": {"type": "null"}}, [], False),
    (SINCE_6, {"contains": {"type": "null"}}, [1, None], True),
    (["draft4"], {"contains": {"type": "null"}}, [], True),
    (NEW, {"contains": {"type": "null"}, "minContains": 0}, [], True),
    (NEW, {"contains": {"type": "null"}, "minContains": 2}, [None], False),
    (NEW, {"contains": {"type": "null"}, "maxContains": 1}, [None, 1, None], False),
    (OLD[1:], {"contains": {"type": "null"}, "maxContains": 1}, [None, 1, None], True),
    (NEW, {"minContains": 2}, [], True),
    # Combinations.
    (EVERY, {"oneOf": [{"type": "string"}, {"maxLength": 1}]}, "a", False),
    (EVERY, {"oneOf": [{"type": "string"}, {"maxLength": 1}]}, "ab", True),
    (EVERY, {"oneOf": [{"minLength": 1}, {"maxLength": 1}, {"enum": ["a"]}]}, "", True),
    (EVERY, {"oneOf": [{}, {}]}, 1, False),
    (EVERY, {"oneOf": [{"type": "null"}, {"type": "string"}]}, 1, False),
    (EVERY, {"anyOf": [{"minLength": 2}, {"enum": ["a"]}]}, "a", True),
    (EVERY, {"anyOf": [{"minLength": 2}, {"enum": ["a"]}]}, "b", False),
    (EVERY, {"allOf": [{"minLength": 2}, {"maxLength": 2}, {"pattern": "a"}]}, "bb", False),
    (EVERY, {"allOf": [{"minLength": 2}, {"maxLength": 2}, {"pattern": "a"}]}, "ab", True),
    (EVERY, {"not": {}}, 1, False),
    (EVERY, {"not": {"minLength": 2}}, "a", True),
    (EVERY[2:], {"if": {"type": "null"}, "else": {"type": "string"}}, 1, False),
    (EVERY[2:], {"if": {"type": "string"}, "then": {"minLength": 1}}, "", False),
    (EVERY[2:], {"if": {"type": "string"}, "then": {"minLength": 1}}, 0, True),
    (EVERY[2:], {"then": False, "else": False}, 0, True),
    (EVERY[:2], {"if": {}, "then": False}, 0, True),
    # Formats are not checked, nor are keywords that jsonschema does not know.
    (EVERY, {"format": "email"}, "no address", True),
    (EVERY, {"unknown": {"type": "null"}}, 1, True),
    # References.
    (EVERY, TREE, {"value": 1, "more": [{"value": 2}, {"more": [{}]}]}, True),
    (EVERY, TREE, {"value": 1, "more": [{"value": 2}, {"more": [{"value": ""}]}]}, False),
    (EVERY, CHAIN, [[1]], True),
    (EVERY, CHAIN, [[[1]]], False),
    (OLD, {"properties": {"a": {"$ref": "#/definitions/a", "type": "null"}},
           "definitions": {"a": {"type": "string"}}}, {"a": ""}, True),
    (NEW, {"properties": {"a": {"$ref": "#/$defs/a", "type": "null"}},
           "$defs": {"a": {"type": "string"}}}, {"a": ""}, False),
    (EVERY, {"properties": {"a": {"$ref": "#/definitions/a~1b%25"}},
             "definitions": {"a/b%": {"type": "string"}}}, {"a": 1}, False),
    (EVERY, {"properties": {"a": {"$ref": "#/properties/b/items"},
                            "b": {"items": {"type": "string"}}}}, {"a": 1}, False),
    (NEW, {"properties": {"a": {"$ref": "#here"}},
           "$defs": {"a": {"$anchor": "here", "type": "string"}}}, {"a": 1}, False),
]  # fmt: skip
CASES = [
    (draft, schema, instance, is_valid)
    for drafts, schema, instance, is_valid in EXAMPLES
    for draft in drafts
]


def in_draft(draft, schema):
    dialect = DRAFTS[draft].META_SCHEMA
    return {"$schema": dialect.get("$id") or dialect["id"], **schema}


@pytest.mark.parametrize(("draft", "schema", "instance", "is_valid"), CASES)
def test_the_verdict_is_as_written_and_jsonschemas(draft, schema, instance, is_valid):
    schema = in_draft(draft, schema)
    table = compiler.compiled(schema, DRAFTS[draft])
    assert holds(table, instance) is is_valid
    check_all(schema, [instance])
    if "$ref" not in str(schema):
        check_all(in_draft(draft, {"properties": {"x": {"not": schema}}}), [{"x": instance}])


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_keyword_that_is_generated_is_compiled(draft):
    supported = set(compiler._DIALECTS[DRAFTS[draft]].keywords)
    generated_here = {name for names in KEYWORDS[draft] for name in names.split(", ")}
    assert generated_here & set(DRAFTS[draft].VALIDATORS) <= supported
    left = set(DRAFTS[draft].VALIDATORS) - supported
    assert left <= {"$dynamicRef", "$recursiveRef", "unevaluatedItems", "unevaluatedProperties"}
    assert set(DRAFTS[draft].VALIDATORS) - left <= generated_here | {"$ref"}


def test_without_a_dialect_the_latest_is_taken():
    check_all({"prefixItems": [{"type": "null"}]}, [[1], [None]])


# Schemas that are left to jsonschema.

OTHER_DIALECTS = [
    {"$schema": "http://json-schema.org/draft-03/schema#", "type": "any", "minimum": 1},
    {"$schema": "https://example.com/mine", "minimum": 1},
    {"$schema": 5, "minimum": 1},
    {"$schema": "http://json-schema.org/draft-04/schema#",
     "not": {"$schema": "http://json-schema.org/draft-07/schema#", "exclusiveMaximum": 1}},
    {"unevaluatedProperties": False, "minimum": 1},
    {"$dynamicRef": "#", "type": "null"},
    {"properties": {"a": {"$ref": "other.json#/a"}}, "minimum": 1},
    {"properties": {"a": {"$ref": "#/nowhere"}}, "minimum": 1},
    {"properties": {"a": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}},
    {"$id": "https://example.com/root", "$ref": "#/$defs/a", "$defs": {
        "a": {"$id": "a", "$ref": "#/$defs/b", "$defs": {"b": {"minimum": 1}}},
        "b": {"maximum": 1}}},
    {"additionalProperties": False, "patternProperties": {"a": {}, "(?i)b": {}}},
    {"multipleOf": 0.5, "type": "number"},
    {"not": {"multipleOf": 0.5, "type": "string"}},
    {"enum": [(1,), dt.date(2026, 1, 1)]},
    {"items": True, "additionalItems": False, "$schema": DRAFTS["draft7"].META_SCHEMA["$id"]},
]  # fmt: skip
INSTANCES = [None, 0, 2, 1.5, NAN, INF, 1e308, "a", [], [1, 2], {}, {"a": 1}, {"a": {"type": 5}}]


@pytest.mark.parametrize("schema", OTHER_DIALECTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_schema_that_is_not_covered_has_jsonschemas_verdict(schema):
    check = checker_for(schema)
    for instance in INSTANCES:
        assert raised(lambda: check(instance)) == raised(
            lambda: jsonschema.validate(instance, schema)
        )


def test_an_unknown_dialect_is_warned_of_each_time_as_jsonschema_does():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check = checker_for({"$schema": "https://example.com/mine"})
        assert not caught
        check(1)
        check(2)
    assert len(caught) == 2


@pytest.mark.parametrize("schema", [{"type": "strnig"}, {"pattern": "("}, {"required": "a"}, 5])
def test_an_invalid_schema_raises_for_every_value(schema):
    check = checker_for(schema)
    values_of_all_kinds: list[Any] = [1, "", {}]
    for value in values_of_all_kinds:
        expected = raised(lambda: jsonschema.validate(value, schema))
        assert expected is not None
        assert raised(lambda: check(value)) == expected


def test_an_invalid_schema_raises_schema_error():
    check = checker_for({"type": "strnig"})
    for _ in range(2):
        with pytest.raises(jsonschema.SchemaError):
            check(1)


class Long(int):
    """The type that pika makes of a 64-bit integer in the headers."""


@pytest.mark.parametrize(
    "value", [Long(1), Long(3), decimal.Decimal(1), dt.datetime.now(tz=dt.UTC), b"1"]
)
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"type": "number"},
        {"enum": [1]},
        {"not": {"type": "integer"}},
        {"minimum": 2},
        {"oneOf": [{"type": "integer"}, {}]},
    ],
)
def test_types_that_only_headers_have_are_left_to_jsonschema(value, schema):
    schema = {"properties": {"a": schema}}
    check = checker_for(schema)
    expected = raised(lambda: jsonschema.validate({"a": value}, schema))
    assert raised(lambda: check({"a": value})) == expected


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}])
def test_a_schema_without_an_end_raises_as_jsonschema_does(schema):
    assert raised(lambda: checker_for(schema)(1)) == (RecursionError,)


def test_the_error_is_the_best_match():
    schema = {
        "type": "object",
        "properties": {"deep": {"properties": {"a": {"type": "null"}}}},
        "required": ["b"],
    }
    with pytest.raises(jsonschema.ValidationError, match="'b' is a required property"):
        checker_for(schema)({"deep": {"a": 1}})


def test_checking_changes_neither_schema_nor_value():
    schema = {"properties": {"a": {"default": 5, "items": {"$ref": "#"}}}, "required": ["b"]}
    before = json.dumps(schema)
    value: dict[str, Any] = {"b": [{}]}
    checker_for(schema)(value)
    assert (json.dumps(schema), value) == (before, {"b": [{}]})
