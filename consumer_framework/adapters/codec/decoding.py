# SPDX-License-Identifier: GPL-2.0-or-later
"""From a delivery to the message in it: its properties, its class, its body, its validation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import jsonschema
from fedora_messaging.exceptions import ValidationError
from fedora_messaging.message import INFO

from consumer_framework.core.delivery import RAW_PROPERTIES, codec_of, readable
from consumer_framework.schemas import validate

from .registry import class_of, warn_of_deprecated

if TYPE_CHECKING:
    import pika
    from fedora_messaging.message import Message

    from consumer_framework.core.delivery import Delivery

__all__ = ["UndecodableError", "decode", "validate"]


class UndecodableError(ValueError):
    """The bytes and properties make no message."""


def decode(delivery: Delivery) -> Message:
    """Decode and validate the message in *delivery*. Several threads may call it at once.

    Returns:
        An instance of the class that the message's schema header names, with ``queue`` set, as
        ``fedora_messaging.message.get_message`` makes it.

    Raises:
        Exception: The bytes are no valid message, or a schema class or codec raised. The
            delivery stays as it was received.
    """
    if delivery.decoded:
        message: Message = delivery.decoded.pop()
        return message
    properties = _copied(cast("pika.BasicProperties", delivery.properties))
    headers = cast("dict[str, Any]", properties.headers)
    kind = class_of(headers)
    message = kind(
        body=_body(delivery.body, properties.content_encoding),
        topic=delivery.routing_key,
        properties=properties,
        severity=headers.get("fedora_messaging_severity", INFO),
    )
    try:
        validate(message)
    except jsonschema.ValidationError as error:
        raise ValidationError(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        # rpds, below jsonschema, sometimes makes this of a RecursionError. It is no Exception, and
        # would end the process.
        raise RecursionError("the body is nested too deeply for its schema") from error
    if kind.deprecated:
        warn_of_deprecated(kind, message.topic)
    message.queue = delivery.queue
    return message


def _copied(received: pika.BasicProperties) -> pika.BasicProperties:
    """Make the message's own properties.

    Handlers may change a message's headers and priority, and some schema classes do; a delivery
    that fails is stored as it was received. A copy of two levels is enough for that, and costs a
    fraction of :func:`copy.copy`.
    """
    properties = object.__new__(type(received))
    properties.__dict__.update(received.__dict__)
    # Upstream handles messages without headers, such as those of RabbitMQ's management page.
    properties.headers = dict(received.headers or {})
    if RAW_PROPERTIES in properties.headers:
        raise UndecodableError("its properties cannot be decoded")
    if isinstance(properties.message_id, bytes):
        # pika does not decode an id that is no UTF-8.
        properties.message_id = readable(properties.message_id)
    if properties.content_encoding is None:
        properties.content_encoding = "utf-8"
    return properties


_decode = json.JSONDecoder().raw_decode


def _parsed(text: str) -> Any:
    """Do the work of ``json.loads(text)``, without its searches for white space around a value."""
    try:
        value, end = _decode(text)
    except ValueError:
        value, end = None, -1
    return value if end == len(text) else json.loads(text)


def _body(received: bytes, encoding: str) -> dict[str, Any]:
    try:
        text = received.decode(codec_of(encoding))
    except LookupError as error:
        raise UndecodableError(*error.args) from error
    except UnicodeDecodeError as error:
        raise ValidationError(error) from error
    try:
        body = _parsed(text)
    except ValueError as error:
        raise ValidationError(error) from error
    if not body and not isinstance(body, dict):
        # Message.__init__ would make {} of null, 0, false, "" and [].
        raise UndecodableError(f"its body is {body!r}, not an object")
    return cast("dict[str, Any]", body)
