# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the routes of a consumer with the bindings of a configuration.

A route by topic says which messages it needs. A route by message class does so as far as the
installed classes declare their topics, most of them without the prefix that their publisher puts
before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedora_messaging.message import Message

from consumer_framework.adapters import codec, config
from consumer_framework.author.consumer import table_of
from consumer_framework.core.topics import MANY, ONE, covers, intersects, words_of
from consumer_framework.runtime.assembly import loader
from consumer_framework.runtime.assembly.access import from_outside
from consumer_framework.runtime.assembly.configuration import RunOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from consumer_framework.author.routing import Route, RouteTable
    from consumer_framework.settings import Settings

# The first words of a topic that has its prefix already, such as org.fedoraproject.prod.
_PREFIXED = re.compile(r"^[a-z0-9-]+\.(?:[a-z0-9-]+|\*)\.(?:prod|stg|dev)\.")


@dataclass(frozen=True, slots=True)
class RouteNeeds:
    """The messages that a route needs.

    Attributes:
        route: The name of the route.
        keys: Routing keys that bring them.
        topics: Patterns of all topics that it takes, as far as they are known.
        classes: The message classes that the route names.
        undeclared: Installed classes of the route that declare no topic: no key is known for them.
        absent: Classes that the route names and no installed package registers: no message has
            such a class.
    """

    route: str
    keys: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    undeclared: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConsumerNeeds:
    """The messages that all routes of a consumer need.

    Attributes:
        callback: The consumer as ``module:Class``.
        routes: Its routes; empty for a consumer without routes.
        takes_rest: Whether its ``handle`` takes all other messages.
        queue: The queue to bind; "" if the configuration names none, or several.
        exchange: The exchange to bind to.
    """

    callback: str
    routes: tuple[RouteNeeds, ...] = ()
    takes_rest: bool = True
    queue: str = ""
    exchange: str = "amq.topic"

    @property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """The routing keys that bring all messages, each with the names of the routes it serves."""
        all_keys = _unique(key for needs in self.routes for key in needs.keys)
        return {
            key: tuple(n.route for n in self.routes if any(covers([key], own) for own in n.keys))
            for index, key in enumerate(all_keys)
            if not any(_replaces(other, at, key, index) for at, other in enumerate(all_keys))
        }


def _replaces(other: str, at: int, key: str, index: int) -> bool:
    """Tell whether the key *other*, at the place *at*, makes *key* superfluous."""
    return at != index and covers([other], key) and (at < index or not covers([key], other))


def needs_of(file: Path | None, spec: str = "", spec_in_file: str = "") -> ConsumerNeeds:
    """Find the messages that a consumer needs.

    Args:
        file: The configuration; None for the defaults.
        spec: The consumer as ``module:Class``; "" for the one of the file.
        spec_in_file: The same as ``FILE.py:Class``.

    Raises:
        ConfigurationError: The configuration or the consumer cannot be used.
    """
    access = from_outside(file, file.stem if file else "")
    settings = config.load(file, access=access)
    options = RunOptions(file, spec, spec_in_file, access=access)
    target = loader.target_of(options, settings.callback)
    table = table_of(target.value, settings.topic_prefix)
    if table is None:
        return ConsumerNeeds(target.name)
    queues = list(settings.queues) if file is not None else []
    exchanges = {binding.exchange for binding in settings.bindings if binding.exchange}
    return ConsumerNeeds(
        target.name,
        tuple(route_needs(route, table) for route in table.routes),
        table.takes_rest,
        queues[0] if len(queues) == 1 else "",
        exchanges.pop() if len(exchanges) == 1 else "amq.topic",
    )


def route_needs(route: Route, table: RouteTable) -> RouteNeeds:
    """Find the messages that *route* needs."""
    prefix = table.topic_prefix.rstrip(".")
    classes = {kind: codec.registered_below(kind) for kind in route.classes}
    known = [kind for registered in classes.values() for kind in registered]
    named = tuple(_name(kind) for kind in route.classes)
    absent = tuple(_name(kind) for kind, registered in classes.items() if not registered)
    if route.patterns:
        keys = [_with_prefix(pattern, prefix, prefix) for pattern in route.patterns]
        topics = table.patterns_of(route)
        return RouteNeeds(route.name, _unique(keys), topics, named, absent=absent)
    if Message in route.classes:
        # Every message is one of these.
        return RouteNeeds(route.name, (MANY,), (MANY,), named)
    declared = [_topic(kind) for kind in known if _topic(kind)]
    keys = [_with_prefix(topic, prefix, "#") for topic in declared]
    topics = _unique(f"#.{topic}" for topic in declared)
    undeclared = _unique(_name(kind) for kind in known if not _topic(kind))
    return RouteNeeds(route.name, _unique(keys), topics, named, undeclared, absent)


def _with_prefix(pattern: str, prefix: str, otherwise: str) -> str:
    """Return *pattern* as publishers write it; *otherwise* stands for a prefix that is not known.

    The pattern of an author may have the prefix, or not.
    """
    if _PREFIXED.match(pattern) or (prefix and intersects(pattern, f"{prefix}.#")):
        return pattern
    before = prefix or otherwise
    return f"{before}.{pattern}" if before else pattern


def _topic(kind: type[Message]) -> str:
    topic: Any = getattr(kind, "topic", "")
    return topic if isinstance(topic, str) else ""


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


# The comparison, both ways.

# Exchanges that every broker has (AMQP 0-9-1, section 3.1.3); others are of type topic mostly.
_EXCHANGE_TYPES = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
}


def exchange_type(settings: Settings, exchange: str) -> str:
    """Return the type of an exchange, as the configuration declares it or as its name says."""
    kind: str = settings.exchanges.get(exchange, {}).get(
        "type", _EXCHANGE_TYPES.get(exchange, "topic")
    )
    return kind


@dataclass(frozen=True, slots=True)
class Feed:
    """The messages that a routing key of a configuration brings.

    Attributes:
        binding: The index of its binding.
        index: Its index in the binding.
        key: The routing key.
        pattern: The topics of the messages.
    """

    binding: int
    index: int
    key: str
    pattern: str


def feeds_of(settings: Settings) -> Iterator[Feed]:
    """Yield the messages that each routing key brings; none for a key that brings no message."""
    for number, binding in enumerate(settings.bindings):
        kind = exchange_type(settings, binding.exchange)
        for index, key in enumerate(binding.routing_keys):
            if kind in {"fanout", "headers"}:
                yield Feed(number, index, key, MANY)
            elif kind == "topic" or not {ONE, MANY} & set(words_of(key)):
                yield Feed(number, index, key, key)


def hungry(needs: Iterable[RouteNeeds], feeds: Collection[Feed]) -> Iterator[RouteNeeds]:
    """Yield the routes for which no feed has a message."""
    for route in needs:
        is_known = route.topics and not route.undeclared
        pairs = ((topic, feed.pattern) for topic in route.topics for feed in feeds)
        if is_known and not any(intersects(*pair) for pair in pairs):
            yield route


def superfluous(
    needs: Collection[RouteNeeds], feeds: Iterable[Feed]
) -> Iterator[tuple[Feed, bool]]:
    """Yield the feeds with messages that no route takes, and whether that is so for all of them.

    Nothing is known if a route takes messages of a class that declares no topic.
    """
    if any(route.undeclared for route in needs):
        return
    taken = [topic for route in needs for topic in route.topics]
    for feed in feeds:
        if not covers(taken, feed.pattern):
            yield feed, not any(intersects(each, feed.pattern) for each in taken)
