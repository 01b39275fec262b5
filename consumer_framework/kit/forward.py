# SPDX-License-Identifier: GPL-2.0-or-later
"""Forwards each message to another exchange or broker, through the outbox.

The copy is stored in the outbox before the message is acknowledged, as every message that a handler
publishes. The relay sends it, by the messenger and to the endpoints of the outbox. So no message is
lost while the other broker is away, and a copy may come twice, with the id of the message.

Each copy has a header with the marks of the forwarders that it has passed. A forwarder does not
send a message again that has its own mark: two brokers may forward to each other.
"""

from __future__ import annotations

import copy
import hashlib
import socket
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from fedora_messaging import config as upstream
from fedora_messaging.exceptions import ConfigurationException, ValidationError
from pydantic import BaseModel, Field, StringConstraints, model_validator

from consumer_framework.author.consumer import Consumer
from consumer_framework.author.heartbeat import deliveries
from consumer_framework.core.conditions import condition_of
from consumer_framework.core.delivery import readable
from consumer_framework.core.errors import ConfigurationError, Problem, Quarantine, Skip
from consumer_framework.core.topics import intersects
from consumer_framework.publishing.message import PublishError
from consumer_framework.publishing.outbox import default
from consumer_framework.settings.brokers import addresses

from .message_json import as_document
from .topic_map import TopicMap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fedora_messaging.message import Message

# The names of the forwarders that a message has passed, separated by spaces.
PASSED = "fm-forwarded-by"
# The broker adds these, and knows their values; some are dates, which no publisher may send again.
_BROKERS_OWN = (
    *("x-death", "x-first-death-", "x-last-death-"),
    *("x-delivery-count", "x-acquired-count", "x-received-from"),
)
# RabbitMQ routes a message to these topics too (https://www.rabbitmq.com/docs/sender-selected).
_ROUTES = frozenset({"CC", "BCC"})
# The headers of fedora-messaging's wire format.
_WIRE = ("fedora_messaging_", "sent-at", "priority")
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class ForwardConfig(BaseModel):
    """The keys of :class:`Forward`."""

    exchange: str | None = None
    """The exchange of the copies. Default: `publish_exchange` of the file."""
    only: tuple[str, ...] = ()
    """Forward only messages that fit all of these conditions, such as `"body.build.name=kernel"`;
    they are those of `fm-consumer tail --where`."""
    topics: dict[str, str] = Field(default_factory=dict)
    """New topics by pattern: `"org.example.#" = "mirror.#"`. The first one that fits decides."""
    other_topics: Literal["keep", "skip"] = "keep"
    """A message whose topic fits none of `topics`: `"keep"` its topic, or `"skip"` the message."""
    headers: Literal["all", "wire"] = "all"
    """`"all"` headers, or only those of fedora-messaging's `"wire"` format."""
    drop_headers: tuple[str, ...] = ()
    """Leave out these headers."""
    in_order: bool = False
    """Send the copies in the order of the messages: one that cannot be sent holds up the others."""
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,60}$")] | None = None
    """The mark of this forwarder in the header `fm-forwarded-by`. Default: a number that is made of
    the broker and the queue."""
    max_hops: Annotated[int, Field(ge=1, le=100)] = 10
    """A message that has passed more forwarders goes to quarantine."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        TopicMap.of(self.topics)
        for text in self.only:
            condition_of(text)
        return self


class Forward(Consumer):
    """Publish each message to another exchange or broker, through the outbox."""

    Config = ForwardConfig
    config: ForwardConfig

    def __init__(self, config: ForwardConfig) -> None:
        super().__init__(config)
        self._map = TopicMap.of(config.topics)
        self._only = [condition_of(text) for text in config.only]

    @classmethod
    def check_config(cls, config: ForwardConfig, *, connect: bool) -> Iterator[Problem]:  # noqa: ARG003 -- it asks nobody
        """Look for a loop."""
        outbox = upstream.conf["consumer_config"].get("framework", {}).get("outbox", {})
        problem = loop_problem(upstream.conf, config, outbox.get("endpoints", ()))
        if problem:
            yield Problem("exchange", problem)

    def setup(self) -> None:
        """Find the outbox, and look for a loop.

        Raises:
            ConfigurationException: There is no outbox, or the copies would come back to the queue.
        """
        try:
            self._outbox = default()
        except ConfigurationError as error:
            cure = "give the instance a state directory, or set outbox.database"
            raise ConfigurationException(f"there is no outbox for the copies; {cure}") from error
        problem = loop_problem(upstream.conf, self.config, self._outbox.settings.endpoints)
        if problem:
            raise ConfigurationException(f"consumer_config.exchange: {problem}")

    def handle(self, message: Message) -> None:
        """Publish a copy of *message*.

        Raises:
            Skip: It is not to be forwarded, or has passed this forwarder before.
            Quarantine: The copy cannot be sent, or the message has passed too many forwarders.
        """
        topic = self._topic_of(message)
        mark = self.config.name or _mark(upstream.conf["amqp_url"], message.queue or "")
        changed = copy.copy(message)
        changed.topic = topic
        properties = changed._properties = copy.copy(message._properties)  # noqa: SLF001 -- upstream has no public names for them
        properties.headers = self._headers(message, mark)
        key = mark if self.config.in_order else None
        try:
            self._outbox.publish(changed, key, exchange=self.config.exchange)
        except (PublishError, ValidationError) as error:
            raise Quarantine(f"the copy cannot be sent: {error}") from error

    def _topic_of(self, message: Message) -> str:
        if self._only:
            document = as_document(message, next(iter(deliveries()), None))
            if not all(condition.holds(document) for condition in self._only):
                raise Skip("it does not fit the conditions of only")
        topic = self._map.renamed(message.topic)
        if topic is None and self.config.other_topics == "skip":
            raise Skip("topics has no pattern for its topic")
        return message.topic if topic is None else topic

    def _headers(self, message: Message, mark: str) -> dict[str, Any]:
        found: Mapping[str, Any] = message._headers  # noqa: SLF001 -- upstream has no public name for them
        passed = str(found.get(PASSED, "")).split()
        if mark in passed:
            raise Skip("it has passed this forwarder before")
        if len(passed) >= self.config.max_hops:
            raise Quarantine(f"it has passed {len(passed)} forwarders: is there a loop?")
        dropped = _ROUTES.union(self.config.drop_headers)
        kept = {
            name: value
            for name, value in found.items()
            if name not in dropped
            and not readable(name).startswith(_BROKERS_OWN)
            and (self.config.headers == "all" or readable(name).startswith(_WIRE))
        }
        return {**kept, PASSED: " ".join([*passed, mark])}


def _mark(url: str, queue: str) -> str:
    """Return the mark of a forwarder: the same at each start, and for each worker of an instance.

    It is a digest, since names of hosts and queues are not for everybody who reads the copies.
    """
    host = urlsplit(url).hostname or "localhost"
    place = [socket.gethostname() if host in _LOCAL else "", *_place(url), queue]
    return hashlib.sha256("\n".join(map(str, place)).encode()).hexdigest()[:16]


def _place(url: str) -> tuple[str, str]:
    """Return the address and the virtual host of a broker."""
    return str(addresses(url)[0]), unquote(urlsplit(url).path.removeprefix("/")) or "/"


def loop_problem(
    document: Mapping[str, Any], config: ForwardConfig, endpoints: Sequence[str] = ()
) -> str:
    """Return the reason why copies would come back to the queue; "" if none is known.

    Conditions may prevent a loop, and the bindings of others are not known. Marks tell the rest.

    Args:
        document: The configuration of fedora-messaging, with its defaults.
        config: The keys of the consumer.
        endpoints: The URLs of the outbox; none for the broker of the instance.
    """
    if config.only or not _is_same_broker(document, endpoints):
        return ""
    exchange = config.exchange or document["publish_exchange"]
    bindings, topics = document["bindings"], TopicMap.of(config.topics)
    bound = [b for b in bindings if b["exchange"] == exchange]
    back = [key for binding in bound for key in binding["routing_keys"]]
    prefix = document["topic_prefix"].rstrip(".")
    for new in _new_topics(config, topics, bindings):
        whole = f"{prefix}.{new}" if prefix else new
        key = next((key for key in back if intersects(key, whole)), None)
        is_sent_again = config.other_topics == "keep" or any(topics.results(whole))
        if key is not None and is_sent_again:
            return (
                f"copies with the topic {whole} in the exchange {exchange} come back to the queue "
                f"by its routing key {key}; choose another exchange, other topics or another broker"
            )
    return ""


def _is_same_broker(document: Mapping[str, Any], endpoints: Sequence[str]) -> bool:
    own = document["amqp_url"]
    brokers = document["consumer_config"].get("framework", {}).get("brokers", ())
    vhost = _place(own)[1]
    places = set(map(str, addresses(own, brokers)))
    found = map(_place, endpoints)
    return not endpoints or any(there in places and its == vhost for there, its in found)


def _new_topics(
    config: ForwardConfig, topics: TopicMap, bindings: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for binding in bindings:
        for key in binding["routing_keys"]:
            yield from topics.results(key)
            if config.other_topics == "keep" and not topics.has_all(key):
                yield key
