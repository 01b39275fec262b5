# SPDX-License-Identifier: GPL-2.0-or-later
"""Two versions of a schema: their differences, and the programs that they break."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer_framework.kit.schema_changes import Breaks, compare

NOBODY, CONSUMERS, PUBLISHERS, BOTH = Breaks


def of(properties, **more):
    return {"type": "object", "properties": properties, **more}


TEXT, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
A = of({"a": TEXT})


@pytest.mark.parametrize(
    ("old", "new", "breaks", "words"),
    [
        (A, of({"a": TEXT, "b": TEXT}), NOBODY, "body.b was added"),
        (of({"a": TEXT, "b": NUMBER}), A, CONSUMERS, "body.b was removed"),
        (A, of({"b": TEXT}), CONSUMERS, "body.a was renamed to b, it seems"),
        (A, of({"a": TEXT}, required=["a"]), PUBLISHERS, "body.a is required now"),
        (of({"a": TEXT}, required=["a"]), A, CONSUMERS, "body.a is no longer required"),
        (A, of({"a": NUMBER}), BOTH, "body.a is number, and was string"),
        (A, of({"a": {"type": ["string", "null"]}}), CONSUMERS, "is null or string"),
        (of({"a": NUMBER}), of({"a": INTEGER}), PUBLISHERS, "is integer, and was number"),
        (A, of({"a": {}}), CONSUMERS, "body.a is of any type"),
        (A, of({"a": {**TEXT, "maxLength": 9}}), PUBLISHERS, "maxLength is 9, there was none"),
        (of({"a": {"minimum": 2}}), of({"a": {"minimum": 1}}), CONSUMERS, "minimum is 1, it was 2"),
        (of({"a": {"minimum": 2}}), of({"a": {}}), CONSUMERS, "the limit minimum is gone"),
        (of({"a": {"enum": ["x"]}}), of({"a": {"enum": ["x", "y"]}}), CONSUMERS, 'be "y" now'),
        (of({"a": {"enum": ["x", 1]}}), of({"a": {"enum": ["x"]}}), PUBLISHERS, "no longer be 1"),
        (of({"a": {"enum": ["x"]}}), of({"a": {"enum": [1]}}), BOTH, "and may no longer be"),
        (of({"a": {"enum": [1, 2]}}), of({"a": {"enum": [2, 1]}}), NOBODY, "another order"),
        (of({"a": TEXT}), of({"a": {**TEXT, "enum": ["x"]}}), PUBLISHERS, "the keyword enum now"),
        (A, of({"a": {**TEXT, "pattern": "x"}}), PUBLISHERS, "has the keyword pattern now"),
        (of({"a": {"not": TEXT}}), of({"a": {}}), CONSUMERS, "has no longer the keyword not"),
        (of({"a": {"oneOf": [A]}}), of({"a": {"oneOf": []}}), BOTH, "compare them by hand"),
        (of({"a": {"if": A}}), of({"a": {}}), BOTH, "if changed; compare the two by hand"),
        (of({"a": {"items": TEXT}}), of({"a": {"items": {}}}), CONSUMERS, "body.a[] is of any"),
        (of({"a": {"items": [TEXT]}}), of({"a": {}}), BOTH, "items changed"),
        (of({"a": {"uniqueItems": True}}), of({"a": {}}), CONSUMERS, "equal entries now"),
        (of({"a": {}}), of({"a": {"uniqueItems": True}}), PUBLISHERS, "may no longer have equal"),
        (of({"a": {"uniqueItems": False}}), of({"a": {}}), NOBODY, "the same of repeated"),
        (A, of({"a": TEXT}, additionalProperties=False), NOBODY, "no other properties any more"),
        (of({}, additionalProperties=False), of({}), CONSUMERS, "allows other properties now"),
        (of({}, additionalProperties=TEXT), of({}), CONSUMERS, "body.* is of any type"),
        (of({"a": {}}), of({"a": False}), PUBLISHERS, "has the keyword not now"),
        (A, of({"a": True}), CONSUMERS, "body.a is of any type"),
        (of({"a": {"minimum": 0, "exclusiveMinimum": True}}), of({"a": {"minimum": 0}}),
         CONSUMERS, "has no longer the keyword exclusiveMinimum"),
    ],
)  # fmt: skip
def test_each_difference_is_told_with_the_programs_that_it_breaks(old, new, breaks, words):
    [change] = compare(old, new).changes
    assert change.breaks is breaks
    assert words in f"{change.path} {change.text}"


def test_a_property_of_a_closed_schema_breaks_both_sides_as_it_comes_and_goes():
    closed = of({"a": TEXT}, additionalProperties=False)
    wider = of({"a": TEXT, "b": NUMBER}, additionalProperties=False)
    added, removed = compare(closed, wider), compare(wider, closed)
    assert not added.consumers_survive
    assert added.publishers_survive
    assert "the old schema refuses messages that have it" in added.changes[0].text
    assert not removed.consumers_survive
    assert not removed.publishers_survive


def test_titles_descriptions_and_definitions_are_no_differences():
    noted = {**A, "title": "t", "description": "d", "$schema": "x", "definitions": {"b": TEXT}}
    assert compare(A, noted).changes == ()


def test_a_nullable_type_may_be_written_in_several_ways():
    written = {"anyOf": [{"type": "string"}, {"type": "null", "title": "none"}]}
    for keyword in ("anyOf", "oneOf"):
        other = of({"a": {keyword: written["anyOf"]}})
        assert compare(other, of({"a": {"type": ["null", "string"]}})).changes == ()
    overlapping = of({"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}})
    assert not compare(overlapping, of({"a": {"type": "number"}})).consumers_survive


def test_a_reference_is_followed_to_its_definition():
    old = {"$ref": "#/definitions/x~1y", "definitions": {"x/y": A}}
    assert compare(old, {**A, "definitions": {}}).changes == ()
    [change] = compare(old, {**old, "definitions": {"x/y": of({"a": NUMBER})}}).changes
    assert change.path == "body.a"


def test_a_definition_that_changes_is_seen_also_within_a_keyword_that_is_not_compared():
    old = {"allOf": [{"$ref": "#/definitions/x"}], "definitions": {"x": TEXT}}
    assert compare(old, copy.deepcopy(old)).changes == ()
    assert not compare(old, {**old, "definitions": {"x": {}}}).consumers_survive


def test_a_schema_that_contains_itself_is_compared_once():
    old = of({"child": {"$ref": "#"}, "a": TEXT})
    assert compare(old, copy.deepcopy(old)).changes == ()
    found = compare(old, of({"child": {"$ref": "#"}, "a": NUMBER})).changes
    assert [change.path for change in found] == ["body.child.a", "body.a"]


def test_recursions_of_different_schemas_are_not_taken_for_the_same():
    def child(name):
        return of({"child": {"$ref": f"#/definitions/{name}"}})

    old = {**child("a"), "definitions": {"a": child("b"), "b": child("a")}}
    new = {**child("x"), "definitions": {"x": child("a"), "a": child("a")}}
    assert not compare(old, new).consumers_survive


@pytest.mark.parametrize("reference", ["#there", "#/definitions/none"])
def test_a_reference_that_cannot_be_followed_is_equal_only_in_equal_documents(reference):
    old = of({"a": {"$ref": reference}, "b": TEXT})
    assert compare(old, copy.deepcopy(old)).changes == ()
    new = of({"a": {"$ref": reference}, "b": TEXT, "c": TEXT})
    assert not compare(old, new).consumers_survive


def test_a_reference_to_another_document_depends_on_its_name_alone():
    old = of({"a": {"$ref": "https://example.org/x"}})
    assert compare(old, of({**old["properties"], "b": TEXT})).consumers_survive
    assert not compare(old, of({"a": {"$ref": "https://example.org/y"}})).consumers_survive
    beside = of({"a": {"$ref": "https://example.org/x", "minLength": 1}})
    assert not compare(beside, old).consumers_survive


def test_a_property_may_have_the_name_of_a_keyword():
    old = of({"$ref": TEXT, "title": TEXT, "items": TEXT})
    found = compare(old, of({"$ref": NUMBER, "title": NUMBER, "items": NUMBER})).changes
    assert [change.path for change in found] == ["body.$ref", "body.title", "body.items"]


# Over all schemas

NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from(["", "x", "xy"]))
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    small = st.integers(0, 3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(TYPES, st.lists(TYPES, min_size=1, max_size=3, unique=True)),
            "properties": st.dictionaries(NAMES, inner, max_size=3),
            "required": st.lists(NAMES, max_size=2, unique=True),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "patternProperties": st.dictionaries(st.sampled_from(["a", "^b"]), inner, max_size=1),
            "items": st.one_of(inner, st.lists(inner, max_size=2)),
            "enum": st.lists(SCALARS, min_size=1, max_size=3),
            "minimum": small, "maximum": small, "minLength": small, "maxItems": small,
            "minProperties": small, "uniqueItems": st.booleans(), "const": SCALARS,
            "anyOf": st.lists(inner, min_size=1, max_size=2), "not": inner, "if": inner,
            "then": inner, "contains": inner, "pattern": st.sampled_from(["x", "y"]),
        },
    )  # fmt: skip


SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.booleans(), st.just({})), _schemas, max_leaves=6
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def two_versions(draw):
    """Draw a schema, and the same with some of its keywords added, exchanged or dropped."""
    old = draw(_schemas(SCHEMAS))
    other = draw(_schemas(SCHEMAS))
    if draw(st.integers(0, 3)):
        return old, {**other, **old}
    new = {**old, **{key: other[key] for key in other if draw(st.booleans())}}
    return old, {key: new[key] for key in new if draw(st.integers(0, 4))}


def fits(schema, value):
    return jsonschema.Draft7Validator(schema).is_valid(value)


@given(_schemas(SCHEMAS))
def test_a_schema_does_not_differ_from_itself(schema):
    assert compare(schema, copy.deepcopy(schema)).changes == ()


@settings(max_examples=200, deadline=None)
@given(two_versions(), st.lists(VALUES, min_size=5, max_size=20))
def test_where_consumers_survive_each_new_message_fits_the_old_schema(versions, values):
    old, new = versions
    if compare(old, new).consumers_survive:
        for value in values:
            assert fits(old, value) or not fits(new, value)


def test_that_property_is_no_idle_one():
    assert fits({"enum": [1]}, 1)
    assert not compare({"enum": [1]}, {}).consumers_survive


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(NAMES, SCHEMAS, max_size=3),
    st.dictionaries(NAMES, SCHEMAS, max_size=3),
    st.lists(NAMES, max_size=2, unique=True),
    st.lists(VALUES, min_size=5, max_size=20),
)
def test_where_publishers_survive_each_old_message_fits_the_new_schema(
    before, after, required, values
):
    old, new = of(before), of({**before, **after}, required=required)
    if compare(old, new).publishers_survive:
        for value in values:
            if isinstance(value, dict) and set(value) <= set(before):
                assert fits(new, value) or not fits(old, value)
