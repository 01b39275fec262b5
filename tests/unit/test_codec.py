# SPDX-License-Identifier: GPL-2.0-or-later
"""From the bytes of a delivery to a fedora-messaging message, or not."""

import contextlib
import dataclasses
import json

import pika
import pytest
from fedora_messaging import message as upstream
from fedora_messaging.exceptions import ValidationError
from fedora_messaging.message import Message

from consumer_framework.adapters import codec
from consumer_framework.core.attempt import first_line
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.testing import make_delivery


def delivery_of(message, **changes):
    changes.setdefault("queue", "queue")
    return dataclasses.replace(
        make_delivery(),
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
    return dataclasses.replace(make_delivery(body=body), properties=pika.BasicProperties(**given))


def test_what_was_published_arrives_with_the_name_of_its_queue():
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
    "body",
    [b"", b"no json", b"\xff\xfe", b'{"a": ', b'"text"', b"5", b"[1]", b"true"],
)
def test_a_body_that_is_no_json_object_is_undecodable(body):
    with pytest.raises(ValidationError) as refused:
        codec.decode(delivery_with(body))
    assert first_line(refused.value), "there is something to tell an operator"


@pytest.mark.parametrize("body", [b"null", b"0", b"false", b'""', b"[]"])
def test_what_upstream_would_take_for_an_empty_object_is_undecodable(body):
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


@pytest.mark.parametrize(
    ("missing", "reason"), [("headers", "no headers"), ("message_id", "no message id")]
)
def test_a_message_without_headers_or_an_id_is_undecodable(missing, reason):
    # Upstream makes some up, which hides that a publisher misbehaves.
    with pytest.raises(codec.UndecodableError, match=reason):
        codec.decode(delivery_with(b'{"a": 1}', **{missing: None}))


def test_a_message_with_empty_headers_is_a_plain_message_as_upstream_has_it():
    arrived = codec.decode(delivery_with(b'{"a": 1}', headers={}))
    assert type(arrived) is Message
    assert arrived.severity == upstream.INFO


def test_a_message_without_an_encoding_is_taken_for_utf_8():
    arrived = codec.decode(delivery_with('{"a": "é"}'.encode(), content_encoding=None))
    assert isinstance(arrived, Message)
    assert arrived.body == {"a": "é"}


def test_an_unknown_encoding_raises_for_the_pipeline_to_catch():
    with pytest.raises(LookupError, match="gzip"):
        codec.decode(delivery_with(b"{}", content_encoding="gzip"))


def test_a_schema_class_that_raises_raises_for_the_pipeline_to_catch(monkeypatch):
    class Broken(Message):
        def validate(self):
            raise ZeroDivisionError

    monkeypatch.setitem(upstream._schema_name_to_class, "broken", Broken)
    monkeypatch.setattr(upstream, "_registry_loaded", True)
    headers = {"fedora_messaging_schema": "broken", "fedora_messaging_severity": 20}
    with pytest.raises(ZeroDivisionError):
        codec.decode(delivery_with(b"{}", headers=headers))


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
    """The bytes and properties are what goes to quarantine."""
    delivery = delivery_with(body, headers=dict(headers), content_encoding=None)
    with contextlib.suppress(ValidationError):
        codec.decode(delivery)
    given = pika.BasicProperties(
        message_id="1", content_type="application/json", headers=dict(headers)
    )
    assert delivery.body == body
    assert delivery.properties == given
