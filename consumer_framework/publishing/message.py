# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn a message class of fedora-messaging into the bytes and values that a messenger sends.

Every fault of a message is found here, before anything is stored: an invalid body, a body that is
no JSON, a topic that AMQP has no room for. The caller gets the exception. So the outbox holds no
row that can never be sent for such a reason.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedora_messaging import message as upstream

from consumer_framework.core.errors import ConsumerFrameworkError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A routing key is a short string (AMQP 0-9-1, section 4.2.5.3).
MAX_TOPIC = 255
# RabbitMQ's default limit is 128 MiB up to 3.x, and 16 MiB since 4.0
# (https://www.rabbitmq.com/docs/configure#config-items, max_message_size).
MAX_BODY = 16 * 1024 * 1024


class PublishError(ConsumerFrameworkError):
    """A message was refused before it was stored; it is not sent."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that was accepted for publishing.

    Attributes:
        id: The message id, the same each time the message is sent.
        topic: The routing key, with the ``topic_prefix`` of the configuration.
        body: JSON in UTF-8.
        headers: The headers of fedora-messaging's wire format: text and integers only.
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
) -> Outgoing:
    """Validate *message*, serialise it, and check its size.

    Args:
        message: An instance of any message class. It is not changed.
        exchange: The exchange to publish to.
        topic_prefix: Text before the topic, joined with a dot.
        ordering_key: At most 255 characters; None and ``""`` for no order.
        now: Seconds since the epoch.
        max_body: The largest body, in bytes.

    Raises:
        fedora_messaging.exceptions.ValidationError: The body does not fit the schema of its class.
        PublishError: The body cannot be JSON, or it, the topic or the ordering key is too large.
    """
    message.validate()
    topic = f"{topic_prefix}.{message.topic}" if topic_prefix else message.topic
    _check_topic(topic)
    key = ordering_key or ""
    if len(key) > MAX_TOPIC:
        raise PublishError(f"the ordering key has {len(key)} characters; {MAX_TOPIC} are allowed")
    try:
        body = json.dumps(message.body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PublishError(f"the body of message {message.id} is no JSON: {error}") from error
    if len(body) > max_body:
        raise PublishError(
            f"the body of message {message.id} has {len(body)} bytes; {max_body} are allowed"
        )
    headers = dict(message._headers)  # noqa: SLF001 -- upstream has no public name for them
    priority = message.priority
    return Outgoing(message.id, topic, body, headers, exchange, priority, key, now)


def _check_topic(topic: str) -> None:
    if len(topic.encode()) > MAX_TOPIC:
        raise PublishError(f"the topic has {len(topic.encode())} bytes; {MAX_TOPIC} are allowed")
    if not topic:
        raise PublishError("the message has no topic: set it in its class or its constructor")


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


def matches(pattern: str, topic: str) -> bool:
    """Return true if *topic* matches *pattern*, as a topic exchange compares them.

    Args:
        pattern: Words with dots between them; ``*`` is one word, ``#`` any number of words.
        topic: The whole topic, with its prefix.

    See https://www.rabbitmq.com/tutorials/tutorial-five-python.
    """
    return bool(_compiled(pattern).fullmatch(f".{topic}"))


@lru_cache(1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    words = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}
    return re.compile("".join(words.get(w, rf"\.{re.escape(w)}") for w in pattern.split(".")))
