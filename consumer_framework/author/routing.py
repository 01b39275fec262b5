# SPDX-License-Identifier: GPL-2.0-or-later
"""Routes: methods of a consumer that take the messages of some topics, or of some message classes.

A class collects its routes when it is created: those of its base classes first, then its own, in
the order of their definition. A method that overrides a route is that route; with decorators of its
own it has other conditions, and ``name = None`` removes the route.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.topics import TopicMatcher, pattern_fault

from .handler import is_coroutine_callable
from .heartbeat import deliveries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fedora_messaging.message import Message

    F = TypeVar("F", bound="Callable[..., Any]")

# Methods that the instance calls, each for a purpose.
_OTHERS = frozenset({"handle", "setup", "teardown", "ordering_key", "stop_requested"})
# The attribute of a decorated method.
_MARK = "__consumer_framework_route__"
# Pairs of a topic and a message class that a table remembers.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Route:
    """A method that takes some of the messages.

    Attributes:
        name: The name of the method, and of the route.
        patterns: The patterns of its topics, as :func:`on_topic` has them; empty for any topic.
        classes: The message classes that it takes, with their subclasses; empty for any class.
    """

    name: str = ""
    patterns: tuple[str, ...] = ()
    classes: tuple[type[Message], ...] = ()


def on_topic(*patterns: str) -> Callable[[F], F]:
    """Decorate a method of a :class:`.Consumer`: it takes the messages of these topics.

    A pattern is compared with the topic as a topic exchange of the broker does it: ``*`` stands for
    one word between dots, ``#`` for any number of words, none included. It matches the topic as it
    is, and the topic without the ``topic_prefix`` of the configuration::

        class Builds(Consumer):
            @on_topic("org.fedoraproject.*.buildsys.build.state.change")
            def built(self, message): ...

            @on_topic("org.fedoraproject.*.buildsys.tag", "org.fedoraproject.*.buildsys.untag")
            async def tagged(self, message): ...

    The method may be a plain method or a coroutine method. If a message matches several methods,
    they run one after the other, and each has its own outcome: a retry runs only those that are not
    done. A method with :func:`on_message` as well takes the messages that fit both.

    Args:
        patterns: One pattern or more; a message matches if one of them does.

    Raises:
        ConfigurationError: When the class is created: a pattern mixes a wildcard with other text,
            or there is none.
    """
    return _marked("on_topic", lambda route: replace(route, patterns=(*route.patterns, *patterns)))


def on_message(*classes: type[Message]) -> Callable[[F], F]:
    """Decorate a method of a :class:`.Consumer`: it takes the messages of these classes.

    A message has the class that its schema names, if the package with that class is installed; else
    its class is ``fedora_messaging.message.Message``. Subclasses of *classes* count as well::

        class Updates(Consumer):
            @on_message(bodhi.UpdateCommentV1)
            def commented(self, message): ...

    See :func:`on_topic` for all else.

    Args:
        classes: One message class or more.

    Raises:
        ConfigurationError: When the class is created: one of *classes* is no message class, or
            there is none.
    """
    return _marked("on_message", lambda route: replace(route, classes=(*route.classes, *classes)))


def _marked(decorator: str, change: Callable[[Route], Route]) -> Callable[[F], F]:
    def decorate(method: F) -> F:
        if not inspect.isfunction(method):
            kind = type(method).__name__
            raise TypeError(f"@{decorator} decorates methods, and this is a {kind}: put it nearest")
        decorators, route = vars(method).get(_MARK, ((), Route()))
        setattr(method, _MARK, ((*decorators, decorator), change(route)))
        return cast("F", method)

    return decorate


# The routes of a class.


def collected(kind: type) -> tuple[Route, ...]:
    """Return the routes of the class *kind*, those of its base classes first.

    Raises:
        ConfigurationError: With every fault of the routes that the class itself defines.
    """
    found: dict[str, tuple[tuple[str, ...], Route]] = {}
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            if inspect.isfunction(value) and _MARK in vars(value):
                decorators, route = vars(value)[_MARK]
                found[name] = decorators, replace(route, name=name)
            elif name in found and value is None:
                del found[name]
    problems = [problem for marks in found.values() for problem in _problems(kind, *marks)]
    if problems:
        raise ConfigurationError(*problems, source=f"{kind.__module__}.{kind.__qualname__}")
    return tuple(route for _, route in found.values())


def _problems(kind: type, decorators: tuple[str, ...], route: Route) -> Iterator[Problem]:
    place = f"{kind.__qualname__}.{route.name}"
    if route.name in _OTHERS:
        what = f"{place} is decorated as a route, and the instance calls it for itself"
        yield Problem("callback", what, "give the route a name of its own")
    for name, given in (("on_topic", route.patterns), ("on_message", route.classes)):
        if name in decorators and not given:
            what = f"@{name} of {place} names nothing"
            yield Problem("callback", what, 'name a pattern, such as "#", or a message class')
    for pattern in route.patterns:
        if fault := pattern_fault(pattern):
            what = f"@on_topic of {place}: {pattern!r} {fault[0]}"
            yield Problem("callback", what, fault[1])
    for each in route.classes:
        if not _is_message_class(each):
            what = f"@on_message of {place}: {each!r} is no message class"
            yield Problem("callback", what, "name a subclass of fedora_messaging.message.Message")


def _is_message_class(value: object) -> bool:
    # Late: an author who names a message class has imported it.
    from fedora_messaging.message import Message  # noqa: PLC0415

    return inspect.isclass(value) and issubclass(value, Message)


def call_of(methods: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Return a function that gives a message to the route of the current run.

    It is a coroutine function if all routes are: then no run needs a thread.

    Args:
        methods: The routes by name; ``""`` is the name of ``handle``.
    """

    def call(message: Any) -> Any:
        return methods[deliveries()[0].route](message)

    async def call_later(message: Any) -> Any:
        return await methods[deliveries()[0].route](message)

    is_coroutine = all(map(is_coroutine_callable, methods.values()))
    return call_later if is_coroutine else call


# Finding the routes of a message.


@dataclass(frozen=True)
class RouteTable:
    """Finds the routes of a message. Several threads may use it at once.

    Attributes:
        routes: The routes, in the order in which they run.
        topic_prefix: The ``topic_prefix`` of the configuration; "" for none.
        takes_rest: Whether the consumer's ``handle`` takes the messages without a route.
    """

    routes: tuple[Route, ...]
    topic_prefix: str = ""
    takes_rest: bool = False
    find: Callable[[str, type[Message] | None], tuple[str, ...]] = field(
        init=False, repr=False, compare=False
    )
    _matcher: TopicMatcher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        patterns = [pattern for route in self.routes for pattern in self.patterns_of(route)]
        object.__setattr__(self, "_matcher", TopicMatcher(patterns))
        object.__setattr__(self, "find", lru_cache(_REMEMBERED)(self._search))

    @property
    def needs_class(self) -> bool:
        """True if a route is chosen by message class."""
        return any(route.classes for route in self.routes)

    def patterns_of(self, route: Route) -> tuple[str, ...]:
        """Return the patterns of *route*, each with and without the prefix; ``#`` for any topic."""
        if not route.patterns:
            return ("#",)
        prefix = self.topic_prefix.rstrip(".")
        prefixed = (f"{prefix}.{pattern}" for pattern in route.patterns) if prefix else ()
        return *route.patterns, *prefixed

    def _search(self, topic: str, kind: type[Message] | None) -> tuple[str, ...]:
        """Return the names of the routes that a message matches, in their order.

        Args:
            topic: The routing key.
            kind: The class of the message; None where no route asks for one.

        Returns:
            ``("",)`` for the consumer's ``handle``; empty where nothing takes the message.
        """
        numbers = set(self._matcher.find(topic))
        names = []
        first = 0
        for route in self.routes:
            end = first + len(self.patterns_of(route))
            is_match = not numbers.isdisjoint(range(first, end))
            first = end
            if is_match and (not route.classes or _is_one_of(kind, route.classes)):
                names.append(route.name)
        return tuple(names) or (("",) if self.takes_rest else ())


def _is_one_of(kind: type[Message] | None, classes: tuple[type[Message], ...]) -> bool:
    return kind is not None and issubclass(kind, classes)
