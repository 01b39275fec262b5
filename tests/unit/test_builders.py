# SPDX-License-Identifier: GPL-2.0-or-later
"""A valid message of any message class can be built, once plainly and as a strategy."""

import logging
from importlib.metadata import entry_points

import hypothesis
import jsonschema
import pytest
from fedora_messaging import message as upstream
from fedora_messaging.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from consumer_framework.testing import message_of, messages
from consumer_framework.testing.builders import DrawnChoices, PlainChoices
from consumer_framework.testing.schema_values import NoValueError, SchemaValues

INSTALLED = sorted(entry_points(group="fedora.messages"), key=lambda point: point.name)
FEW = settings(max_examples=5, database=None, phases=[Phase.generate], derandomize=True)
DRAFT4 = "http://json-schema.org/draft-04/schema#"
SCHEMAS = [
    {"type": "integer", "minimum": 3, "maximum": 4},
    {"$schema": DRAFT4, "type": "integer", "minimum": 3, "exclusiveMinimum": True},
    {"type": "integer", "exclusiveMaximum": -3, "multipleOf": 5},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    {"type": "number", "minimum": 1, "exclusiveMaximum": 1.5},
    {"type": "number", "multipleOf": 0.5, "minimum": 0.75},
    {"minimum": 7},
    {"type": "string", "minLength": 9, "maxLength": 9},
    {"type": "string", "maxLength": 2},
    {"type": "string", "pattern": r"^FEDORA-\d{4}-[0-9a-f]{10}$"},
    {"type": "string", "pattern": r"^[^a-z]+(a|b)?\s.\w\W$", "minLength": 12},
    {"type": "string", "pattern": r"[^\d]x{2,3}\S\D[\s]"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uri"},
    {"type": "string", "format": "ipv6"},
    {"type": "string", "format": "duration"},
    {"enum": [None, "a"]},
    {"const": {"a": 1}},
    {"type": ["null", "boolean"]},
    {"type": "null"},
    {"type": "array", "items": {"type": "string"}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 2, "maxItems": 2},
    {"type": "array", "prefixItems": [{"type": "null"}, {"const": 2}], "minItems": 2},
    {"$schema": DRAFT4, "type": "array", "items": [{"type": "null"}], "maxItems": 1},
    {"type": "array", "contains": {"const": 1}},
    {"properties": {"a": {"$ref": "#/$defs/b"}}, "required": ["a"], "$defs": {"b": {"const": 1}}},
    {"patternProperties": {"^n": {"const": 3}}, "required": ["n"], "type": "object"},
    {"type": "object", "minProperties": 3, "properties": {"a": {}}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "required": ["a"]},
    {"allOf": [{"type": ["number", "string"], "minimum": 1}, {"type": "integer", "minimum": 2}]},
    {"allOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
    {
        "allOf": [
            {"properties": {"a": {"minLength": 3}}, "required": ["a"]},
            {"properties": {"a": {"type": "string"}, "b": True}, "required": ["a", "b"]},
        ]
    },
    {"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "string"}]},
    {"anyOf": [False, {"type": "string"}]},
    {
        "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "then": {"required": ["b"]},
        "else": {"required": ["c"]},
    },
    {
        "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["a"],
        "type": "object",
    },
    {"properties": {"a": True}, "required": ["a"]},
]
IMPOSSIBLE = [
    ({"type": "integer", "minimum": 2, "maximum": 1}, "no number fits"),
    ({"type": "number", "minimum": 1, "exclusiveMaximum": 1}, "no number fits"),
    ({"properties": {"a": False}, "required": ["a"]}, "a: the schema allows nothing"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "not of type"),
    ({"enum": [1], "type": "string"}, "allows nothing"),
    ({"$ref": "#/definitions/a"}, "refers to #/definitions/a"),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "the schema has no end"),
    ({"$ref": "#"}, "allows nothing"),
    ({"type": "string", "pattern": r"^(a)\1(?!b)c$"}, "give a text for the pattern"),
    ({"type": "string", "not": {"minLength": 0}}, "should not be valid"),
]


class Typed(Message):
    topic = "a.typed"
    body_schema = {  # noqa: RUF012 -- as message classes are written
        "type": "object",
        "properties": {"builds": {"type": "array", "items": {"$ref": "#/definitions/build"}}},
        "definitions": {
            "build": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "id": {"type": "integer"}},
                "required": ["name", "id"],
            }
        },
        "required": ["builds"],
    }


class Headed(Message):
    headers_schema = {  # noqa: RUF012
        "type": "object",
        "properties": {"origin": {"enum": ["here"]}},
        "required": ["origin"],
    }


class Changing(Message):
    @property
    def body_schema(self):  # type: ignore[override]
        return {
            "type": "object",
            "properties": {"topic": {"const": self.topic}},
            "required": ["topic"],
        }


class Picky(Message):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.first = self.body["first"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    upstream.load_message_classes()
    for kind in (Typed, Headed, Changing, Picky):
        name = f"test.{kind.__name__.lower()}"
        monkeypatch.setitem(upstream._class_to_schema_name, kind, name)
        monkeypatch.setitem(upstream._schema_name_to_class, name, kind)


@pytest.mark.filterwarnings("ignore:.* class is deprecated:DeprecationWarning")
@pytest.mark.parametrize("complete", [False, True], ids=["least", "complete"])
def test_a_plain_message_of_each_installed_class_is_valid(complete):
    assert len(INSTALLED) > 80
    for point in INSTALLED:
        kind = point.load()
        message = message_of(kind, complete=complete)
        message.validate()
        assert type(message) is kind, point.name
        assert message.topic, point.name
        assert message == message_of(kind, complete=complete), point.name


@pytest.mark.filterwarnings("ignore:.* class is deprecated:DeprecationWarning")
def test_drawn_messages_of_each_installed_class_are_valid(caplog):
    # Some classes warn of bodies that lack what their properties look at.
    caplog.set_level(logging.ERROR)
    for point in INSTALLED:

        @FEW
        @given(messages(point.load()))
        def check(message):
            message.validate()
            assert 0 < len(message.topic.encode()) < 256

        check()


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_values_fit_their_schema(schema):
    for complete in (False, True):
        value = SchemaValues(schema, PlainChoices(complete=complete)).value()
        jsonschema.validate(value, schema)

    @FEW
    @given(st.data())
    def check(data):
        try:
            value = SchemaValues(schema, DrawnChoices(data.draw)).value()
        except NoValueError:
            hypothesis.reject()
        jsonschema.validate(value, schema)

    check()


@pytest.mark.parametrize(("schema", "reason"), IMPOSSIBLE, ids=str)
def test_a_schema_without_a_value_says_why(schema, reason):
    with pytest.raises(NoValueError, match=reason):
        SchemaValues(schema, PlainChoices()).value()


def test_parts_are_kept_and_the_objects_in_them_completed():
    message = message_of(Typed, builds=[{"id": 4}, {"name": "kernel", "arch": "s390x"}])
    assert message.body == {
        "builds": [{"name": "name", "id": 4}, {"name": "kernel", "id": 0, "arch": "s390x"}]
    }
    assert (message.topic, message.severity) == ("a.typed", upstream.INFO)


def test_topic_severity_headers_and_odd_names_can_be_given():
    message = message_of(
        Message,
        topic="b.topic",
        severity=upstream.ERROR,
        headers={"x-mine": 1},
        body={"topic": "inner", "odd name": 2},
        plain=3,
    )
    assert message.body == {"topic": "inner", "odd name": 2, "plain": 3}
    assert (message.topic, message.severity) == ("b.topic", upstream.ERROR)
    assert message._headers["x-mine"] == 1
    assert message._headers["fedora_messaging_severity"] == upstream.ERROR


def test_a_class_without_a_topic_gets_one_of_its_schema():
    assert message_of(Message).topic == "base.message"


def test_headers_that_a_class_asks_for_are_there():
    assert message_of(Headed)._headers["origin"] == "here"
    assert message_of(Headed)._headers["fedora_messaging_schema"] == "test.headed"


def test_a_schema_that_depends_on_the_topic_is_obeyed():
    assert message_of(Changing, topic="a.b").body == {"topic": "a.b"}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: message_of(Typed, builds=3),
            r"no valid Typed .* the body.builds: 3 is not of type",
        ),
        (lambda: message_of(Typed, builds=[{"id": "4"}]), r"the body.builds\[0\].id: '4' is not"),
        (lambda: messages(Typed, builds=3), r"the body.builds: 3 is not of type"),
        (lambda: message_of(Headed, headers={"origin": "there"}), "'there' is not one of"),
        (lambda: message_of(Message, severity=7), "7 is not one of"),
        (lambda: message_of(Picky), "no valid Picky can be built: KeyError: 'first'"),
    ],
)
def test_parts_that_fit_no_message_are_refused_with_their_place(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


@FEW
@given(messages(Typed, topic=st.sampled_from(["x", "y"]), builds=[{"id": st.integers(5, 6)}]))
def test_parts_of_a_strategy_may_be_strategies(message):
    assert message.topic in {"x", "y"}
    [build] = message.body["builds"]
    assert build["id"] in {5, 6}
    assert isinstance(build["name"], str)


def test_a_drawn_message_has_any_severity_and_any_topic():
    drawn = []

    @settings(max_examples=60, database=None, phases=[Phase.generate], derandomize=True)
    @given(messages(Message))
    def check(message):
        drawn.append(message)

    check()
    assert {message.severity for message in drawn} == {10, 20, 30, 40}
    assert len({message.topic for message in drawn}) > 10


def test_a_message_that_its_class_cannot_make_is_no_example():
    @settings(FEW, suppress_health_check=[HealthCheck.filter_too_much])
    @given(messages(Picky, first=1))
    def check(message):
        assert message.first == 1

    check()

    @settings(FEW, suppress_health_check=[HealthCheck.filter_too_much])
    @given(messages(Picky))
    def never(message):
        raise AssertionError(message)

    with pytest.raises(hypothesis.errors.Unsatisfiable):
        never()
