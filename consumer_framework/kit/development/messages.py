# SPDX-License-Identifier: GPL-2.0-or-later
"""Valid messages for the topics that the bindings of a consumer ask for.

A topic gets the messages of the installed schemas that it has. The wildcards of a pattern become
words, so that the topic of the message fits it. A topic without an installed schema gets plain
messages.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedora_messaging import message as upstream
from fedora_messaging.message import Message

from consumer_framework.core.topics import MANY, ONE, matches, words_of
from consumer_framework.kit.schema_packages import installed, need_of
from consumer_framework.publishing.lines import LineError, LineReader
from consumer_framework.testing.builders import message_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

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
        for source in _sources(str(binding.get("exchange", "amq.topic")), key, usable)
        if matches(pattern, source.topic)
    )
    return list(dict.fromkeys(found))


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
    lines = [f"sends {source.topic} ({source.schema or 'no schema'})" for source in sources[:_NAMED]]
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


@dataclass
class Generated:
    """Makes messages of *sources*, one kind after the other, without an end.

    Attributes:
        sources: The kinds. Those whose schema has no valid message are taken out.
    """

    sources: list[Source]
    _faults: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __iter__(self) -> Iterator[tuple[str, Message]]:
        """Yield exchanges and messages; end once no kind is left."""
        while self.sources:
            for source in list(self.sources):
                number = next(self._numbers)
                if not source.schema:
                    body = {"n": number, "text": "a message of fm-consumer dev"}
                    yield source.exchange, Message(topic=source.topic, body=body)
                    continue
                try:
                    yield (
                        source.exchange,
                        self.make(upstream.get_class(source.schema), source.topic),
                    )
                except (ValueError, TypeError) as error:
                    self.sources.remove(source)
                    self.faults.append(f"no valid message of {source.schema}: {error}")


def recorded(file: Path, bindings: Sequence[Mapping[str, Any]]) -> list[tuple[str, Message]]:
    """Read the messages of a file, with new ids, each with the exchange of a binding that fits it.

    Raises:
        OSError: The file cannot be read.
        LineError: A line is no message; the text begins with its number.
    """
    reader = LineReader(new_ids=True)
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found += [(exchange_for(each.topic, bindings), each) for each in reader.read(line)]
        except LineError as error:
            raise LineError(f"{file}: line {number}: {error}", error.cure) from None
    return found


def exchange_for(topic: str, bindings: Sequence[Mapping[str, Any]]) -> str:
    """Return the exchange from which a binding takes *topic*; of the first binding if none does."""
    fitting = (
        binding
        for binding in bindings
        if any(matches(key, topic) for key in binding.get("routing_keys") or ())
    )
    chosen = next(fitting, bindings[0] if bindings else {})
    return str(chosen.get("exchange", "amq.topic"))
