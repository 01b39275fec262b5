# SPDX-License-Identifier: GPL-2.0-or-later
"""Says of other people's exceptions what a handler means by them.

Also in a callback that runs under ``fedora-messaging consume``, which knows no signal of ours:
there they become the nearest of its own, :func:`for_upstream` says which.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary

from consumer_framework.core.attempt import said
from consumer_framework.core.errors import (
    Defer,
    DependencyFault,
    Drop,
    ExitCode,
    Halt,
    Quarantine,
    Retry,
    Signal,
    Skip,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Kinds: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
    _Rule: TypeAlias = tuple[Kinds, str, str]

# Seconds that "defer" means.
DEFER = 300.0

F = TypeVar("F", bound="Callable[..., Any]")

Word: TypeAlias = Literal["skip", "retry", "defer", "drop", "quarantine", "dependency", "halt"]

_SIGNALS: dict[str, Callable[[str], Signal]] = {
    "skip": Skip,
    "retry": Retry,
    "defer": lambda reason: Defer(time.time() + DEFER, reason),
    "drop": Drop,
    "quarantine": Quarantine,
    "dependency": DependencyFault,
    "halt": lambda reason: Halt(ExitCode.HANDLER_FAILED, reason, requeue=True),
}


@contextmanager
def translate(rules: Mapping[Kinds, Word] | None = None, *, reason: str = "") -> Iterator[None]:
    """Raise the signal that *rules* have for an exception, in its place.

    >>> with translate({KeyError: "drop", (OSError, EOFError): "dependency"}):
    ...     raise ConnectionRefusedError("the database")
    Traceback (most recent call last):
        ...
    consumer_framework.core.errors.DependencyFault: ConnectionRefusedError: the database

    Signals, and exceptions that no rule names, pass through.

    Args:
        rules: What follows an exception of these classes; the first that matches decides.
            ``"retry"``, ``"defer"`` (for five minutes), ``"dependency"``, ``"drop"``,
            ``"quarantine"``, ``"skip"`` or ``"halt"`` (with exit code 13; the message stays).
        reason: Why, for the log; what the exception says where it is empty.

    Raises:
        ValueError: A rule names no such word.
    """
    checked = tuple(_rule(kinds, word, reason) for kinds, word in (rules or {}).items())
    try:
        yield
    except BaseException as error:  # noqa: BLE001 -- the rules decide
        _answer(error, checked)


def on(*exceptions: type[BaseException], then: Word, reason: str = "") -> Callable[[F], F]:
    """Decorate a handler, sync or async: an exception of these classes means *then*.

    Decorators are read from above; the first that matches decides:

    >>> @on(ConnectionError, then="dependency")
    ... @on(OSError, then="retry")
    ... @on(KeyError, then="drop", reason="not one of ours")
    ... def handle(message):
    ...     return message["build"]
    >>> handle({})
    Traceback (most recent call last):
        ...
    consumer_framework.core.errors.Drop: not one of ours

    Args:
        exceptions: Classes of exceptions.
        then: One of the words of :func:`translate`.
        reason: Why, for the log; what the exception says where it is empty.

    Raises:
        ValueError: *then* is no such word.
    """
    rule = _rule(exceptions, then, reason)

    def decorate(function: F) -> F:
        inner, rules = _decorated.get(function, (function, ()))
        wrapper = _wrapped(inner, (rule, *rules))
        _decorated[wrapper] = inner, (rule, *rules)
        return cast("F", wrapper)

    return decorate


@contextmanager
def hosting() -> Iterator[None]:
    """Mark this process as one whose host understands this package's signals, inside the block.

    An instance, a replay in a command's own process, and the test harness each enter it.
    """
    _hosts.append(None)
    try:
        yield
    finally:
        _hosts.pop()


def is_hosted() -> bool:
    """Return whether this package's own host, or its test harness, runs the handler."""
    return bool(_hosts)


def for_upstream(signal: Signal) -> BaseException:
    """The exception of fedora-messaging that comes nearest to *signal*.

    Returns:
        ``Drop`` and ``HaltConsumer`` for what they are here; ``Nack`` for everything else that
        must not be lost. There is no quarantine there, nor a delay: the broker delivers the
        message again at once.
    """
    upstream: Any = importlib.import_module("fedora_messaging.exceptions")
    match signal:
        case Drop():
            error = upstream.Drop(signal.reason)
        case Halt():
            error = upstream.HaltConsumer(signal.exit_code, signal.reason, signal.requeue)
        case _:
            error = upstream.Nack(signal.reason)
    return cast("BaseException", error)


# One entry for each host of this process that runs now: a harness may run inside another one.
_hosts: list[None] = []

# The functions that were decorated, with the decorated one innermost and the rules outermost first.
_decorated: WeakKeyDictionary[Callable[..., Any], tuple[Callable[..., Any], tuple[_Rule, ...]]]
_decorated = WeakKeyDictionary()


def _rule(kinds: Kinds, word: str, reason: str) -> _Rule:
    if word not in _SIGNALS:
        raise ValueError(f"{word!r} is none of {', '.join(_SIGNALS)}")
    return kinds, word, reason


def _wrapped(function: Callable[..., Any], rules: tuple[_Rule, ...]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_later(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 -- the rules decide
                return _answer(error, rules)

        return run_later

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 -- the rules decide
            return _answer(error, rules)

    return run


def _answer(error: BaseException, rules: tuple[_Rule, ...]) -> None:
    """Raise what *rules* make of *error*; return where success is what they make of it."""
    signal = _signal_for(error, rules)
    if signal is None:
        raise error
    if is_hosted():
        raise signal from _cause(signal, error)
    if not isinstance(signal, Skip):
        raise for_upstream(signal) from error


def _signal_for(error: BaseException, rules: tuple[_Rule, ...]) -> Signal | None:
    if isinstance(error, Signal):
        return error
    if _is_upstreams(error):
        return None
    for kinds, word, reason in rules:
        if isinstance(error, kinds):
            return _SIGNALS[word](reason or said(error))
    return None


def _cause(signal: Signal, error: BaseException) -> BaseException | None:
    return error.__cause__ if signal is error else error


def _is_upstreams(error: BaseException) -> bool:
    """Whether it is a signal of fedora-messaging's: it can be none where that is not imported."""
    upstream: Any = sys.modules.get("fedora_messaging.exceptions")
    return upstream is not None and isinstance(error, upstream.ConsumeException)
