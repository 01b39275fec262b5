# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that the author's functions can be called as the host calls them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from consumer_framework.core.consumer import BatchConsumer, Consumer

if TYPE_CHECKING:
    from collections.abc import Callable

# A problem, and its cure.
Found = tuple[str, str]

_NEVER_RUNS = "contains yield: calling it makes a generator, and its code never runs"


def callback_problem(value: Any) -> Found | None:
    """Say why *value*, a function or a callable object, cannot handle a message, if it cannot."""
    cure = "give it one parameter, the message"
    return _problem(value, "it", cure) or _generator_problem(type(value), "__call__")


def class_problem(value: type) -> Found | None:
    """Say why an instance of *value*, a plain class, cannot handle a message, if it cannot."""
    return _method_problem(value, "__call__", "(self, message)")


def consumer_problem(value: type[Consumer]) -> Found | None:
    """Say why the host cannot call *value* or one of its methods, if it cannot."""
    if not _takes(value, 1):
        return (
            "has an __init__ that cannot be called with the config alone",
            "write __init__(self, config), and call super().__init__(config) in it",
        )
    methods = {"handle": "(self, message)", "setup": "(self)", "teardown": "(self)"}
    if issubclass(value, BatchConsumer):
        methods["handle_batch"] = "(self, messages)"
    if hasattr(value, "ordering_key"):
        methods["ordering_key"] = "(self, message)"
    found = (_method_problem(value, name, form) for name, form in methods.items())
    return next(filter(None, found), None)


def _method_problem(value: type, name: str, form: str) -> Found | None:
    method = getattr(value, name)
    if not callable(method):
        return f"has a {name} that is no method", f"write {name}{form}"
    # A static or class method is not given the instance.
    written = inspect.getattr_static(value, name)
    is_bound = isinstance(written, staticmethod | classmethod)
    count = form.count(",") + 1 - is_bound
    if not _takes(method, count):
        return f"has a {name}{_signature(method)} that cannot be called", f"write {name}{form}"
    return _generator_problem(value, name)


def _generator_problem(value: type, name: str) -> Found | None:
    method = getattr(value, name, None)
    if _is_generator(method):
        return f"has a {name}() that {_NEVER_RUNS}", "remove the yield"
    return None


def _problem(function: Callable[..., Any], what: str, cure: str) -> Found | None:
    if not _takes(function, 1):
        return f"takes other arguments than one message: {what} is {_signature(function)}", cure
    if _is_generator(function):
        return _NEVER_RUNS, "remove the yield"
    return None


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether *function* can be called with so many arguments, as far as Python can tell."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        pass  # some objects of C have no signature to look at
    return True


def _signature(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function))
