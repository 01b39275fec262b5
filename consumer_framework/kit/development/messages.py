# SPDX-License-Identifier: GPL-2.0-or-later
"""Valid messages for the topics that the bindings of a consumer ask for.

A topic gets the messages of the installed schemas that it has. The wildcards of a pattern become
words, so that the topic of the message fits it. A topic without an installed schema gets plain
messages.
"""

from __future__ import annotations

import copy
import itertools
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from fedora_messaging import message as upstream
from fedora_messaging.message import Message

from consumer_framework.core.topics import MANY, ONE, covers, matches, words_of
from consumer_framework.kit.recorded import BadRecordError, read
from consumer_framework.kit.schema_packages import installed, need_of
from consumer_framework.testing.builders import message_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pika

    from consumer_framework.kit.schema_packages import Schema

# The word in the place of a wildcard: as Fedora names the environment of development.
_WORD = "dev"
# Kinds of messages that are named at the start.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Source:
    """Messages of one kind.

    Attributes:
        exchange: The exchange to publish to.
        topic: The topic of the messages.
        schema: The name of their schema; "" for plain messages.
    """

    exchange: str
    topic: str
    schema: str


def sources_of(
    bindings: Iterable[Mapping[str, Any]], schemas: Sequence[Schema], pattern: str = MANY
) -> list[Source]:
    """Return the kinds of messages that fit *bindings*.

    Args:
        bindings: The bindings of the configuration.
        schemas: The installed schemas.
        pattern: Only topics that match it.
    """
    usable = [s for s in schemas if not s.fault and not s.is_deprecated]
    found = (
        source
        for binding in bindings
        for key in binding.get("routing_keys") or ()
        for source in _sources(_exchange(binding), _narrower(key, pattern), usable)
        if matches(pattern, source.topic)
    )
    return list(dict.fromkeys(found))


def _narrower(key: str, pattern: str) -> str:
    return pattern if covers([key], pattern) else key


def _exchange(binding: Mapping[str, Any]) -> str:
    return str(binding.get("exchange", "amq.topic"))


def _sources(exchange: str, key: str, usable: Sequence[Schema]) -> Iterator[Source]:
    schemas = [s for s in usable if s.topic] if key == MANY else need_of(key, usable).exact
    newest: dict[str, Schema] = {}
    for schema in sorted(schemas, key=lambda schema: -schema.generation):
        newest.setdefault(schema.subject, schema)
    topics = [(topic_for(key, s.topic or s.subject), s.name) for s in newest.values()]
    fitting = [Source(exchange, topic, name) for topic, name in topics if topic is not None]
    yield from fitting or [Source(exchange, plain_topic(key), "")]


def topic_for(pattern: str, topic: str) -> str | None:
    """Return *topic*, of a schema, with the prefix that *pattern* needs; None if it cannot fit."""
    words = words_of(pattern)
    for length in range(len(words) + 1):
        prefix = [_WORD if word in {ONE, MANY} else word for word in words[:length]]
        whole = ".".join([*prefix, topic])
        if matches(pattern, whole):
            return whole
    return None


def plain_topic(pattern: str) -> str:
    """Return some topic that matches *pattern*."""
    return ".".join(_WORD if word in {ONE, MANY} else word for word in words_of(pattern))


def described(
    bindings: Sequence[Mapping[str, Any]], pattern: str
) -> tuple[list[Source], list[str]]:
    """Return the kinds of messages that fit *bindings*, and lines about them.

    Args:
        bindings: The bindings of the configuration.
        pattern: Only topics that match it.
    """
    schemas = installed()
    sources = sources_of(bindings, schemas, pattern)
    lines = [
        f"sends {source.topic} ({source.schema or 'no schema'})" for source in sources[:_NAMED]
    ]
    if len(sources) > _NAMED:
        lines.append(f"and {len(sources) - _NAMED} more; --topic PATTERN chooses some")
    if not sources:
        lines.append(f"no binding takes a topic that matches {pattern}")
    keys = [key for binding in bindings for key in binding.get("routing_keys") or ()]
    for need in (need_of(key, schemas) for key in keys):
        if need.packages and not need.exact:
            packages = " or ".join(need.packages)
            lines.append(f"valid messages need the schemas: pip install {packages}")
    return sources, list(dict.fromkeys(lines))


@dataclass(frozen=True, slots=True)
class Sendable:
    """A message to send.

    Attributes:
        exchange: The exchange to publish to.
        topic: The topic.
        properties: The AMQP properties, with an id that no other message has.
        body: The bytes of the body.
    """

    exchange: str
    topic: str
    properties: pika.BasicProperties
    body: bytes

    @classmethod
    def of(cls, exchange: str, message: Message) -> Self:
        """Return *message* as it is sent."""
        # Upstream has no public names for them.
        properties, body = message._properties, message._encoded_body  # noqa: SLF001
        return cls(exchange, message.topic, properties, body)

    @property
    def id(self) -> str:
        """The message id."""
        return self.properties.message_id or ""


@dataclass
class Generated:
    """Makes messages of *sources*, one kind after the other, without an end.

    Attributes:
        sources: The kinds. Those whose schema has no valid message are taken out.
    """

    sources: list[Source]
    _faults: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __iter__(self) -> Iterator[Sendable]:
        """Yield messages; end once no kind is left."""
        while self.sources:
            for source in list(self.sources):
                number = next(self._numbers)
                if not source.schema:
                    body = {"n": number, "text": "a message of fm-consumer dev"}
                    yield Sendable.of(source.exchange, Message(topic=source.topic, body=body))
                    continue
                try:
                    made = message_of(upstream.get_class(source.schema), topic=source.topic)
                except Exception as error:  # noqa: BLE001 -- anybody's message class
                    self.sources.remove(source)
                    self._faults.append(f"no message of {source.schema} can be made: {error}")
                else:
                    yield Sendable.of(source.exchange, made)

    def take_faults(self) -> list[str]:
        """Return the reasons why kinds were taken out since the last call."""
        found, self._faults = self._faults, []
        return found


def recorded(file: Path, bindings: Sequence[Mapping[str, Any]]) -> list[Sendable]:
    """Read the messages of a file, with new ids, for the exchange of a binding that fits each.

    Args:
        file: A file that :mod:`consumer_framework.kit.recorded` knows.
        bindings: The bindings of the configuration.

    Raises:
        OSError: The file cannot be read.
        BadRecordError: A line is no message.
    """
    found = []
    for each in read(file):
        if isinstance(each, BadRecordError):
            raise each
        delivery = each.delivery
        properties: Any = copy.copy(delivery.properties)
        properties.message_id = str(uuid.uuid4())
        topic = delivery.routing_key
        found.append(Sendable(exchange_for(topic, bindings), topic, properties, delivery.body))
    return found


def exchange_for(topic: str, bindings: Sequence[Mapping[str, Any]]) -> str:
    """Return the exchange from which a binding takes *topic*; of the first binding if none does."""
    fitting = (
        binding
        for binding in bindings
        if any(matches(key, topic) for key in binding.get("routing_keys") or ())
    )
    chosen = next(fitting, bindings[0] if bindings else {})
    return _exchange(chosen)
