# SPDX-License-Identifier: GPL-2.0-or-later
"""From the bytes of a delivery to a fedora-messaging message, or not."""

import codecs
import concurrent.futures
import contextlib
import copy
import json
import logging
from typing import Any

import jsonschema
import pika
import pytest
from fedora_messaging import message as upstream
from fedora_messaging.exceptions import ValidationError
from fedora_messaging.message import Message

from consumer_framework import schemas
from consumer_framework.adapters import codec
from consumer_framework.adapters.codec import registry
from consumer_framework.core.attempt import first_line
from consumer_framework.core.delivery import RAW_PROPERTIES
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.testing import make_delivery


def delivery_of(message, **changes):
    changes.setdefault("queue", "queue")
    return make_delivery()._replace(
        routing_key=message._encoded_routing_key,
        properties=message._properties,
        body=message._encoded_body,
        **changes,
    )


def delivery_with(body, **properties):
    given = {
        "message_id": "1",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20},
        **properties,
    }
    return make_delivery(body=body)._replace(properties=pika.BasicProperties(**given))


def test_a_published_message_arrives_with_the_name_of_its_queue():
    sent = Message(topic="a.topic", body={"key": ["é", 1]}, severity=upstream.ERROR)
    arrived = codec.decode(delivery_of(sent, queue="the queue"))
    assert isinstance(arrived, Message)
    assert arrived == sent
    assert (arrived.topic, arrived.body, arrived.severity) == ("a.topic", sent.body, 40)
    assert arrived.id == sent.id
    assert arrived.queue == "the queue"


def test_the_schema_header_chooses_the_class():
    codec.load_schemas()
    headers = {
        "fedora_messaging_schema": "bodhi.update.comment.v1",
        "fedora_messaging_severity": 20,
    }
    with pytest.raises(ValidationError, match="is a required property"):
        codec.decode(delivery_with(b'{"no": "comment"}', headers=headers))
    assert upstream.get_class("bodhi.update.comment.v1").__name__ == "UpdateCommentV1"


def test_a_message_whose_schema_is_not_installed_is_a_plain_message():
    headers = {"fedora_messaging_schema": "no.such", "fedora_messaging_severity": 20}
    arrived = codec.decode(delivery_with(b'{"a": 1}', headers=headers))
    assert type(arrived) is Message


@pytest.mark.parametrize(
    "text",
    [' {"a": 1}', '{"a": 1}\n', '\t{"a": [1, 2.5e3, null, true, NaN, "\\u00e9"]} \r\n', "{}"],
)
def test_white_space_around_a_body_changes_nothing(text):
    assert repr(codec.decode(delivery_with(text.encode())).body) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", ["", " ", "{", "{} {}", '{"a": 1}x', '{"a": 1,}', "\ufeff{}", '{"a": "\n"}', "nul"]
)
def test_a_body_that_is_no_json_fails_as_json_loads_does(text):
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(ValidationError) as refused:
        codec.decode(delivery_with(text.encode()))
    assert str(refused.value.__cause__) == str(expected.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"\xff\xfe", b'{"a": ', b'"text"', b"5", b"[1]", b"true"],
)
def test_a_body_that_is_no_json_object_is_undecodable(body):
    with pytest.raises(ValidationError) as refused:
        codec.decode(delivery_with(body))
    assert first_line(refused.value), "there is something to tell an operator"


@pytest.mark.parametrize("body", [b"null", b"0", b"false", b'""', b"[]"])
def test_a_body_that_upstream_would_take_for_an_empty_object_is_undecodable(body):
    with pytest.raises(codec.UndecodableError, match="not an object"):
        codec.decode(delivery_with(body))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", None])
def test_an_empty_object_is_a_message(encoding):
    body = "{ }".encode(encoding or "utf-8")
    assert codec.decode(delivery_with(body, content_encoding=encoding)).body == {}


def test_headers_that_do_not_fit_are_undecodable():
    headers = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": "high"}
    with pytest.raises(ValidationError, match="not of type 'number'"):
        codec.decode(delivery_with(b"{}", headers=headers))


def test_a_message_without_headers_or_an_id_is_a_plain_message_as_upstream_has_it():
    arrived = codec.decode(delivery_with(b'{"a": 1}', headers=None, message_id=None))
    assert type(arrived) is Message
    assert (arrived.body, arrived.id, arrived._headers) == ({"a": 1}, None, {})


def test_an_id_that_is_no_utf_8_is_text_for_the_handler():
    odd: Any = b"\xffid"
    assert codec.decode(delivery_with(b"{}", message_id=odd)).id == "\\xffid"


def test_a_message_whose_properties_cannot_be_decoded_is_undecodable():
    with pytest.raises(codec.UndecodableError, match="its properties cannot be decoded"):
        codec.decode(delivery_with(b'{"a": 1}', headers={RAW_PROPERTIES: b"?"}))


def test_a_message_with_empty_headers_is_a_plain_message_as_upstream_has_it():
    arrived = codec.decode(delivery_with(b'{"a": 1}', headers={}))
    assert type(arrived) is Message
    assert arrived.severity == upstream.INFO


def test_a_message_without_an_encoding_is_taken_for_utf_8():
    arrived = codec.decode(delivery_with('{"a": "é"}'.encode(), content_encoding=None))
    assert isinstance(arrived, Message)
    assert arrived.body == {"a": "é"}


@pytest.mark.parametrize(
    "encoding",
    [
        "gzip",
        "punycode",
        "idna",
        "unicode_escape",
        "raw_unicode_escape",
        "utf-7",
        "rot13",
        "x" * 255,
        "",
        b"\xff",
        "mbcs",
        "undefined",
        "hz",
    ],
)
def test_a_codec_that_is_no_plain_encoding_of_text_is_undecodable_and_not_looked_up(
    encoding, monkeypatch
):
    monkeypatch.setattr(codecs, "lookup", lambda name: pytest.fail(f"{name} was looked up"))
    with pytest.raises(codec.UndecodableError, match="its content_encoding is"):
        codec.decode(delivery_with(b"{}", content_encoding=encoding))


@pytest.mark.parametrize(
    "encoding",
    [
        "UTF8",
        "utf-8-sig",
        "utf-16",
        "UTF-16LE",
        "utf-32-be",
        "us-ascii",
        "ascii",
        "latin-1",
        "ISO-8859-1",
        "iso-8859-15",
        "windows-1252",
    ],
)
def test_every_plain_encoding_of_text_is_decoded(encoding):
    text = '{"a": "e"}' if "ascii" in encoding else '{"a": "é"}'
    arrived = codec.decode(delivery_with(text.encode(encoding), content_encoding=encoding))
    assert arrived.body == json.loads(text)


def test_a_schema_class_that_raises_raises_for_the_pipeline_to_catch(monkeypatch):
    class Broken(Message):
        def validate(self):
            raise ZeroDivisionError

    monkeypatch.setitem(upstream._schema_name_to_class, "broken", Broken)
    monkeypatch.setattr(upstream, "_registry_loaded", True)
    headers = {"fedora_messaging_schema": "broken", "fedora_messaging_severity": 20}
    with pytest.raises(ZeroDivisionError):
        codec.decode(delivery_with(b"{}", headers=headers))


# Classes as nobody expects them.


@pytest.fixture
def register(monkeypatch):
    """Register a class as the schema "mine", and decode messages of it."""

    def decode(kind, body=b"{}", **headers):
        monkeypatch.setitem(upstream._schema_name_to_class, "mine", kind)
        given = {"fedora_messaging_schema": "mine", "fedora_messaging_severity": 20, **headers}
        return codec.decode(delivery_with(body, headers=given))

    return decode


STRICT = {"type": "object", "required": ["a"]}


class OfTheInstance(Message):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        vars(self)["body_schema"] = STRICT


class OfTheTopic(Message):
    @property
    def body_schema(self):  # type: ignore[override]
        return dict(STRICT)


class OfTheHeaders(Message):
    headers_schema = {"properties": {"fedora_messaging_severity": {"maximum": 10}}}  # noqa: RUF012


class WithItsOwnCheck(Message):
    def validate(self):
        super().validate()
        jsonschema.validate(self.body, STRICT)


class Wrapping(Message):
    body_schema = STRICT

    def __init__(self, body=None, **kwargs):
        super().__init__(body=body and body["inner"], **kwargs)


@pytest.mark.parametrize("kind", [OfTheInstance, OfTheTopic, WithItsOwnCheck])
def test_a_class_that_brings_its_own_schema_or_check_is_asked_every_time(register, kind):
    for _ in range(2):
        with pytest.raises(ValidationError, match="'a' is a required property"):
            register(kind)
        assert type(register(kind, b'{"a": 1}')) is kind


def test_the_headers_are_checked_against_the_class_and_against_upstreams(register):
    with pytest.raises(ValidationError, match="20 is greater than the maximum of 10"):
        register(OfTheHeaders)
    with pytest.raises(ValidationError, match="5 is not one of"):
        register(OfTheHeaders, fedora_messaging_severity=5)
    assert register(OfTheHeaders, fedora_messaging_severity=10).severity == 10


def test_the_body_that_a_class_makes_is_checked(register):
    with pytest.raises(ValidationError, match="'a' is a required property"):
        register(Wrapping, b'{"inner": {"b": 1}}')
    with pytest.raises(ValidationError, match="is not of type 'object'"):
        register(Wrapping, b'{"inner": [1]}')
    assert register(Wrapping, b'{"inner": {"a": 1}}').body == {"a": 1}


def test_an_invalid_schema_fails_every_message_of_its_class(register):
    class Invalid(Message):
        body_schema = {"type": "strnig"}  # noqa: RUF012

    for _ in range(2):
        with pytest.raises(jsonschema.SchemaError):
            register(Invalid)


def test_a_schema_that_is_replaced_is_not_mistaken_for_the_first(register):
    class Replaced(Message):
        body_schema = STRICT

    with pytest.raises(ValidationError):
        register(Replaced)
    Replaced.body_schema = {"type": "object"}
    assert register(Replaced).body == {}


def test_a_panic_below_jsonschema_is_an_exception_like_others(register):
    panic = type("PanicException", (BaseException,), {})

    class Panics(Message):
        def validate(self):
            raise panic("__eq__ failed!: PyErr")

    with pytest.raises(RecursionError, match="nested too deeply"):
        register(Panics)


def test_an_exception_that_ends_the_process_is_let_through(register):
    class Interrupted(Message):
        def validate(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register(Interrupted)


def test_a_body_too_deep_for_python_is_an_exception():
    with pytest.raises(RecursionError):
        codec.decode(delivery_with(b'{"a":' * 100_000 + b"1" + b"}" * 100_000))


def test_a_number_too_long_for_python_is_undecodable():
    with pytest.raises(ValidationError, match="integer string conversion"):
        codec.decode(delivery_with(b'{"a": ' + b"1" * 5000 + b"}"))


def test_a_schema_header_that_is_a_table_is_an_exception():
    headers = {"fedora_messaging_schema": {"a": 1}, "fedora_messaging_severity": 20}
    with pytest.raises(TypeError, match="unhashable"):
        codec.decode(delivery_with(b"{}", headers=headers))


def test_the_schemas_are_loaded_by_the_first_message_at_the_latest(monkeypatch):
    monkeypatch.setattr(upstream, "_registry_loaded", False)
    monkeypatch.setattr(upstream, "_schema_name_to_class", {})
    headers = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}
    assert type(codec.decode(delivery_with(b"{}", headers=headers))) is Message
    assert upstream._registry_loaded


def test_schemas_are_compiled_once_and_not_before_they_are_needed(register):
    class Counted(Message):
        body_schema = STRICT

    codec.load_schemas()
    assert Counted not in schemas._validations
    register(Counted, b'{"a": 1}')
    validation = schemas._validations[Counted]
    register(Counted, b'{"a": 1}')
    assert schemas._validations[Counted] is validation


def test_several_threads_may_decode(monkeypatch):
    class Shared(Message):
        body_schema = STRICT

    monkeypatch.setitem(upstream._schema_name_to_class, "shared", Shared)
    headers = {"fedora_messaging_schema": "shared", "fedora_messaging_severity": 20}
    deliveries = [delivery_with(b'{"a": %d}' % n, headers=headers) for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        messages = list(threads.map(codec.decode, deliveries))
    assert [message.body["a"] for message in messages] == list(range(200))


# Changes that a handler makes to its message stay in the message.


def test_a_handler_that_changes_its_message_does_not_change_the_delivery():
    headers = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}
    delivery = delivery_with(b'{"a": 1}', headers=headers, priority=3)
    before = copy.deepcopy(delivery.properties)
    message = codec.decode(delivery)
    assert message.priority == 3
    message.priority = 7
    message.id = "another"
    message._headers["mine"] = True
    message.body["a"] = 2  # type: ignore[index]
    message._headers = {}
    assert delivery.properties == before
    assert delivery.body == b'{"a": 1}'


# Warnings.


@pytest.fixture
def warned(monkeypatch, caplog):
    monkeypatch.setattr(registry, "_warned", set())
    caplog.set_level(logging.DEBUG)
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_schema_that_is_not_installed_is_warned_of_once(warned):
    for name in ("one", "two", "one"):
        codec.decode(delivery_with(b"{}", headers={"fedora_messaging_schema": name}))
    hint = {"fedora_messaging_schema": "three", "fedora_messaging_schema_package": "a_package"}
    codec.decode(delivery_with(b"{}", headers=hint))
    general = "Either install the package with its schema definition or define a schema"
    cures = {"one": general, "two": general}
    cures["three"] = "You can install the missing schema from package 'a_package'"
    assert warned() == [
        f'The schema "{name}" is not in the schema registry! {cure}. '
        "Falling back to the default schema..."
        for name, cure in cures.items()
    ]


def test_a_message_that_names_no_schema_is_not_warned_of(warned):
    codec.decode(delivery_with(b"{}", headers={}))
    assert warned() == []


def test_a_deprecated_schema_is_warned_of_once(warned, register):
    class Old(Message):
        deprecated = True

    for _ in range(2):
        register(Old)
    (warning,) = warned()
    assert warning.startswith(f"A message with a deprecated schema ({__name__}.Old) has been")
    assert "received on topic 'a.topic'. You should check" in warning


def test_an_invalid_message_is_not_logged_by_the_decoder(warned):
    for body in (b"no json", b"\xff", b"[1]"):
        with contextlib.suppress(ValidationError):
            codec.decode(delivery_with(body))
    assert warned() == []


def test_a_publisher_that_makes_names_up_does_not_fill_the_memory(warned):
    for number in range(3 * registry._REMEMBERED_WARNINGS):
        codec.decode(delivery_with(b"{}", headers={"fedora_messaging_schema": f"made-up-{number}"}))
    assert len(registry._warned) <= registry._REMEMBERED_WARNINGS
    assert len(warned()) == 3 * registry._REMEMBERED_WARNINGS


# Broken schema packages.


@pytest.fixture
def install(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def install_package(name, entry_points, source=None):
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}" for key, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[fedora.messages]", *lines, ""]))
        if source is not None:
            module = next(iter(entry_points.values())).partition(":")[0]
            (tmp_path / f"{module}.py").write_text(source)

    return install_package


def test_installed_schemas_load():
    codec.load_schemas()
    assert upstream._registry_loaded


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_schema_a'"),
        ("raise RuntimeError('half an update')", "RuntimeError: half an update"),
        ("", "AttributeError: module 'broken_schema_c' has no attribute 'Message'"),
    ],
    ids=["a", "b", "c"],
)
def test_a_schema_that_cannot_be_imported_is_reported_with_its_package(
    install, source, reason, request
):
    module = f"broken_schema_{request.node.callspec.id}"
    install("broken-schema", {"broken.message": f"{module}:Message"}, source)
    with pytest.raises(ConfigurationError) as caught:
        codec.load_schemas()
    assert str(caught.value) == (
        f'message schemas: schema "broken.message": cannot be imported ({reason}); '
        "repair or remove the package broken-schema"
    )


def test_every_broken_schema_is_reported_at_once(install):
    install("first-schema", {"first.one": "no_such_a:A", "first.two": "no_such_a:B"})
    install("second-schema", {"second": "no_such_b:A", "good": "fedora_messaging.message:Message"})
    with pytest.raises(ConfigurationError) as caught:
        codec.load_schemas()
    assert {problem.path for problem in caught.value.problems} == {
        'schema "first.one"',
        'schema "first.two"',
        'schema "second"',
    }


@pytest.mark.parametrize("headers", [{}, {"fedora_messaging_severity": 40}])
@pytest.mark.parametrize("body", [json.dumps({"a": 1}).encode(), b"no json"])
def test_decoding_leaves_the_delivery_as_it_was_received(body, headers):
    """The bytes and properties go to quarantine as they were received."""
    delivery = delivery_with(body, headers=dict(headers), content_encoding=None)
    with contextlib.suppress(ValidationError):
        codec.decode(delivery)
    given = pika.BasicProperties(
        message_id="1", content_type="application/json", headers=dict(headers)
    )
    assert delivery.body == body
    assert delivery.properties == given
