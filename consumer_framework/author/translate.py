# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn other people's exceptions into the signals that a handler means by them.

A callback that uses this may also run under ``fedora-messaging consume``, which does not know the
signals of this package. There the exceptions become the nearest ones of fedora-messaging; see
:func:`for_upstream`. A host of this package marks its process with :func:`hosting`.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary

from consumer_framework.core.attempt import one_line
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

# Seconds that the word "defer" stands for.
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
    """Replace an exception of the block by the signal that *rules* have for it.

    >>> with translate({KeyError: "drop", (OSError, EOFError): "dependency"}):
    ...     raise ConnectionRefusedError("the database")
    Traceback (most recent call last):
        ...
    consumer_framework.core.errors.DependencyFault: ConnectionRefusedError: the database

    Signals, and exceptions that no rule names, pass through.

    Args:
        rules: Exception classes, and the word for each; the first rule that matches decides. The
            words are ``"retry"``, ``"defer"`` (for five minutes), ``"dependency"``, ``"drop"``,
            ``"quarantine"``, ``"skip"`` and ``"halt"`` (with exit code 13; the message stays).
        reason: The reason in the log; if empty, the class and the text of the exception.

    Raises:
        ValueError: A rule has another word.
        Signal: The signal of the rule. Under ``fedora-messaging consume``, the exception of
            fedora-messaging that comes nearest.
    """
    checked = tuple(_rule(kinds, word, reason) for kinds, word in (rules or {}).items())
    try:
        yield
    except BaseException as error:  # noqa: BLE001 -- the rules decide
        _answer(error, checked)


def on(*exceptions: type[BaseException], then: Word, reason: str = "") -> Callable[[F], F]:
    """Decorate a handler, plain or coroutine: an exception of these classes means *then*.

    Of several decorators, the first from above that matches decides:

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
        reason: The reason in the log; if empty, the class and the text of the exception.

    Raises:
        ValueError: *then* is another word.
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
    """Return the exception of fedora-messaging that comes nearest to *signal*.

    Returns:
        ``Drop`` for :class:`.Drop`, ``HaltConsumer`` for :class:`.Halt`, and ``Nack`` for the
        other signals, whose messages must not be lost. fedora-messaging has neither a quarantine
        nor a delay, so the broker delivers the message again at once.
    """
    # Late: it takes a quarter of a second, and only this function needs it.
    from fedora_messaging import exceptions as upstream  # noqa: PLC0415

    match signal:
        case Drop():
            return upstream.Drop(signal.reason)
        case Halt():
            return upstream.HaltConsumer(signal.exit_code, signal.reason, signal.requeue)
        case _:
            return upstream.Nack(signal.reason)


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
    """Raise the signal of *rules* for *error*; return where that is a success."""
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
            return _SIGNALS[word](reason or one_line(error))
    return None


def _cause(signal: Signal, error: BaseException) -> BaseException | None:
    return error.__cause__ if signal is error else error


def _is_upstreams(error: BaseException) -> bool:
    # An exception can be fedora-messaging's only where that is imported.
    upstream: Any = sys.modules.get("fedora_messaging.exceptions")
    return upstream is not None and isinstance(error, upstream.ConsumeException)
