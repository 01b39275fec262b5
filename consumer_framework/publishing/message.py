# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn a message class of fedora-messaging into the bytes and values that a messenger sends.

Every fault of a message is found here, before anything is stored: an invalid body, a body that is
no JSON, a topic that AMQP has no room for. The caller gets the exception. So the outbox holds no
row that can never be sent for such a reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jsonschema
from fedora_messaging import message as upstream
from fedora_messaging.exceptions import ValidationError

from consumer_framework import schemas
from consumer_framework.core.errors import ConsumerFrameworkError

from .trace_context import trace_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A routing key is a short string (AMQP 0-9-1, section 4.2.5.3).
MAX_TOPIC = 255
# It is an octet (AMQP 0-9-1, section 1.8, class basic).
MAX_PRIORITY = 255
# RabbitMQ's default limit is 128 MiB up to 3.x, and 16 MiB since 4.0
# (https://www.rabbitmq.com/docs/configure#config-items, max_message_size).
MAX_BODY = 16 * 1024 * 1024
# As JSON. All headers of a message are in one frame, and RabbitMQ's has 131,072 bytes
# (https://www.rabbitmq.com/docs/configure#config-items, frame_max).
MAX_HEADERS = 120_000
_INTEGERS = 1 << 63
# json.dumps() would make an encoder for each message, because it allows NaN.
_encode = json.JSONEncoder(allow_nan=False).encode
# Headers of which any number up to the first limit, each with text up to the second one, have fewer
# bytes than MAX_HEADERS, even if JSON escapes each character.
_FEW, _SHORT = 50, 100
# The states of a row: to be sent, and impossible to send.
WAITING, DEAD = "waiting", "dead"
# The reason of a dead row that is deleted at once, when its publisher has been told.
DISCARDED = "an operator discarded it"


class PublishError(ConsumerFrameworkError):
    """A message was refused before it was stored; it is not sent.

    Attributes:
        is_final: True if another attempt with the same message is of no use.
    """

    is_final = True


class OutboxError(PublishError):
    """The database did not do it: it is down, full or has no outbox. Nothing was stored.

    There is one exception: a connection that breaks during the commit. Nobody knows its end then,
    and the message may be stored.
    """

    is_final = False


class NotSentError(PublishError):
    """The message is stored, and the relay has not sent it in time. The relay keeps trying.

    If an operator discarded the message meanwhile, the text of the error says so.
    """

    is_final = False


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that was accepted for publishing.

    Attributes:
        id: The message id, the same each time the message is sent.
        topic: The routing key, with the ``topic_prefix`` of the configuration.
        body: JSON in UTF-8.
        headers: The headers of fedora-messaging's wire format, and those of the publisher.
        exchange: The name of the exchange.
        priority: From 0 to 255, or None.
        ordering_key: Messages with the same key are sent in the order of their insertion; ``""``
            for none.
        created: Seconds since the epoch.
    """

    id: str
    topic: str
    body: bytes
    headers: Mapping[str, Any]
    exchange: str
    priority: int | None = None
    ordering_key: str = ""
    created: float = 0.0

    @property
    def size(self) -> int:
        """The length of the body in bytes."""
        return len(self.body)


def outgoing(  # noqa: PLR0913 -- each is a value of its own
    message: upstream.Message,
    *,
    exchange: str,
    topic_prefix: str = "",
    ordering_key: str | None = None,
    now: float,
    max_body: int = MAX_BODY,
    validate: Callable[[upstream.Message], None] | None = None,
) -> Outgoing:
    """Validate *message*, serialise it, and check its size.

    Args:
        message: An instance of any message class. It is not changed.
        exchange: The exchange to publish to.
        topic_prefix: Text before the topic, joined with a dot.
        ordering_key: At most 255 characters; None and ``""`` for no order.
        now: Seconds since the epoch.
        max_body: The largest body, in bytes.
        validate: Does the work of ``message.validate()``, with the same errors; None for
            :func:`consumer_framework.schemas.validate`.

    Raises:
        fedora_messaging.exceptions.ValidationError: The body does not fit the schema of its class.
        PublishError: The body cannot be JSON, or it, the topic, the ordering key or the priority is
            too large.
    """
    try:
        (validate or schemas.validate)(message)
    except jsonschema.ValidationError as error:
        raise ValidationError(error) from error
    except RecursionError as error:
        raise PublishError(f"the body of message {message.id} is nested too deeply") from error
    # As upstream joins them: fedora_messaging.message.Message._encoded_routing_key.
    topic = f"{topic_prefix.rstrip('.')}.{message.topic}" if topic_prefix else message.topic
    if not message.topic:
        raise PublishError("the message has no topic: set it in its class or its constructor")
    key = ordering_key or ""
    texts = {"topic": topic, "exchange": exchange, "message id": message.id, "ordering key": key}
    for name, text in texts.items():
        _check_text(name, text)
    try:
        body = _encode(message.body).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PublishError(f"the body of message {message.id} is no JSON: {error}") from error
    if len(body) > max_body:
        raise PublishError(
            f"the body of message {message.id} has {len(body)} bytes; {max_body} are allowed"
        )
    headers = dict(message._headers)  # noqa: SLF001 -- upstream has no public name for them
    if "traceparent" not in headers:
        headers.update(trace_headers(message.id, exchange, topic))
    _check_headers(message.id, headers)
    # Not `message.priority`, which is 0 for a message without one.
    priority = message._properties.priority  # noqa: SLF001
    if not (priority is None or (type(priority) is int and 0 <= priority <= MAX_PRIORITY)):
        raise PublishError(f"the priority of message {message.id} is {priority!r}: use 0 to 255")
    return Outgoing(message.id, topic, body, headers, exchange, priority, key, now)


def with_headers(message: Outgoing, headers: Mapping[str, Any] | None) -> Outgoing:
    """Return *message* with further *headers*: facts about the message, apart from its body.

    Args:
        message: The message. It is not changed.
        headers: Names and values; None for none.

    Raises:
        PublishError: A header is no JSON, or the message has a header of this name.
    """
    if not headers:
        return message
    for name in headers.keys() & message.headers.keys():
        raise PublishError(f"message {message.id} has a header {name!r} of its own")
    changed = {**message.headers, **headers}
    _check_headers(message.id, changed)
    return replace(message, headers=changed)


def _check_headers(message_id: str, headers: Mapping[str, Any]) -> None:
    """Refuse headers that AMQP's field table cannot carry (AMQP 0-9-1, section 4.2.5.5)."""
    if _are_plain(headers):
        return
    what = f"the headers of message {message_id}"
    try:
        size = len(json.dumps(headers))
    except (TypeError, ValueError, RecursionError) as error:
        raise PublishError(f"{what} are no JSON: {error}") from error
    for name, value in headers.items():
        if (fault := _field_fault(name, value)) is not None:
            raise PublishError(f"{what} cannot be sent: {name!r} {fault}")
    if size > MAX_HEADERS:
        raise PublishError(f"{what} have {size} bytes; {MAX_HEADERS} are allowed")


def _are_plain(headers: Mapping[str, Any]) -> bool:
    """Tell quickly whether all *headers* are short text and numbers, as those of most messages."""
    return len(headers) <= _FEW and all(
        type(name) is str
        and len(name) <= MAX_TOPIC
        and name.isascii()
        and (
            (type(value) is str and len(value) <= _SHORT and value.isascii())
            or (type(value) is int and -_INTEGERS <= value < _INTEGERS)
            or value is True
        )
        for name, value in headers.items()
    )


def _field_fault(name: Any, value: Any) -> str | None:
    """Return the reason why a field table cannot have *value* under *name*, or None."""
    if not (isinstance(name, str) and _is_unicode(name) and len(name.encode()) <= MAX_TOPIC):
        return f"is no name: use text of at most {MAX_TOPIC} bytes"
    match value:
        case list():
            parts = [("", one) for one in value]
        case dict():
            parts = list(value.items())
        case _:
            return _value_fault(value)
    return next(filter(None, (_field_fault(*part) for part in parts)), None)


def _value_fault(value: Any) -> str | None:
    match value:
        case bool() | None:
            return None
        case int():
            is_right = -_INTEGERS <= value < _INTEGERS
            return None if is_right else "has more than 64 bits: write the number as text"
        case str():
            return None if _is_unicode(value) else "is no text: it has a lone surrogate"
    return f"is a {type(value).__name__}: write it as text"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(name: str, text: str) -> None:
    """Refuse a text that AMQP or a database has no room for."""
    try:
        size = len(text.encode())
    except (UnicodeEncodeError, AttributeError) as error:
        raise PublishError(f"the {name} is no text: {text!r}") from error
    if size > MAX_TOPIC:
        raise PublishError(f"the {name} has {size} bytes; {MAX_TOPIC} are allowed")
    if "\0" in text:
        raise PublishError(f"the {name} has a NUL character")


def schema_fault(error: ValidationError) -> str:
    """Return one line about *error*, with the place in the message."""
    cause = error.args[0] if error.args else error
    path = getattr(cause, "json_path", "$")
    text = str(getattr(cause, "message", cause))
    where = "" if path == "$" else f" at {path}"
    return " ".join(f"does not fit its schema{where}: {text}".split())


def restored(message: Outgoing) -> upstream.Message:
    """Return *message* as an instance of its message class, as a consumer would get it.

    Raises:
        fedora_messaging.exceptions.ValidationError: Its class does not accept it.
    """
    import pika  # noqa: PLC0415 -- only the `fedora` messenger and tests need it

    properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        message_id=message.id,
        headers=dict(message.headers),
        priority=message.priority,
    )
    return upstream.get_message(message.topic, properties, message.body)
