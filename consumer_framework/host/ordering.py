# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the ordering key of messages comes from: the file, or the consumer's own method."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

from consumer_framework.core.consumer import Consumer
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.ordering import FORMS, source_from, source_of
from consumer_framework.core.settings import Ordering

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.handler import Handler
    from consumer_framework.core.ordering import Source
    from consumer_framework.core.settings import Framework

    SourceOf: TypeAlias = Callable[[Handler], Source]

_PATH = "consumer_config.framework.ordering_key"


def source_for(framework: Framework, value: Any) -> SourceOf | None:
    """Say where the ordering key of a message is.

    Args:
        framework: The settings; a key that they name stands before the consumer's method.
        value: The author's object (:attr:`.Target.value`).

    Returns:
        What gives the source, once the handler is made; None where there is no order by key.

    Raises:
        ConfigurationError: ``ordering = "key"``, and nothing says what the key is.
    """
    if framework.ordering is not Ordering.KEY:
        return None
    if framework.ordering_key is not None:
        source = source_of(framework.ordering_key)
        return lambda _handler: source
    problem = _method_problem(value)
    if problem:
        raise ConfigurationError(problem)
    return _from_handler


def _from_handler(handler: Handler) -> Source:
    assert handler.ordering_key is not None  # noqa: S101 -- its class was looked at
    return source_from(handler.ordering_key)


def _method_problem(value: Any) -> Problem | None:
    method = getattr(value, "ordering_key", None) if _is_consumer(value) else None
    if method is None:
        what = 'is required with ordering = "key"; it is ' + FORMS
        return Problem(_PATH, what, _cure(value))
    if not callable(method) or inspect.iscoroutinefunction(method):
        what = f"the consumer's ordering_key must be a plain method; it is {_kind(method)} now"
        return Problem(_PATH, what, "write def ordering_key(self, message)")
    return None


def _cure(value: Any) -> str:
    if _is_consumer(value):
        return "add it, or a method ordering_key(self, message) to the consumer"
    return "add it, or let a consumer_framework.Consumer have a method ordering_key(self, message)"


def _is_consumer(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Consumer)


def _kind(method: Any) -> str:
    return "a coroutine method" if callable(method) else f"a {type(method).__name__}"
