# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the author's code publishes before there is a connection.

fedora_messaging's ``publish`` waits for a connection, which comes after ``setup``; it gives up
after 30 seconds. The code is read, not run: what it calls by a name that is looked up at run time
stays unseen.
"""

from __future__ import annotations

import dis
import inspect
import types
from typing import TYPE_CHECKING

import fedora_messaging
from fedora_messaging import api

from consumer_framework.core.findings import warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.findings import Finding
    from consumer_framework.host.loader import Target

_EARLY = ("__init__", "setup")
_PUBLISHERS = frozenset({"publish", "twisted_publish"})
# What is named early, to be called with a message.
_LATER = frozenset({"handle", "handle_batch", "__call__"})


def publish_findings(target: Target) -> Iterator[Finding]:
    """Warn of a class that publishes when it is made, or set up."""
    kind = target.value
    if not inspect.isclass(kind):
        return
    for name in _EARLY:
        method = getattr(kind, name, None)
        if isinstance(method, types.FunctionType) and _publishes(method, kind, set()):
            what = f"{kind.__name__}.{name} calls fedora_messaging.api.publish, and there is no "
            what += "connection before the first message: it waits for 30 s, and fails"
            yield warning("callback", what, "publish when the first message is handled")


def _publishes(function: types.FunctionType, kind: type, seen: set[object]) -> bool:
    """Whether *function*, or what it calls of its own module and class, publishes."""
    if function in seen:
        return False
    seen.add(function)
    return any(_uses(code, function, kind, seen) for code in _codes(function.__code__))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _uses(
    code: types.CodeType, function: types.FunctionType, kind: type, seen: set[object]
) -> bool:
    names = {how: set(_names(code, *how)) for how in (_GLOBAL, _ATTRIBUTE, _IMPORTED)}
    found = [function.__globals__.get(name) for name in names[_GLOBAL]]
    is_near = any(each is api or each is fedora_messaging for each in found)
    is_near = is_near or bool(names[_IMPORTED] & {"fedora_messaging", "fedora_messaging.api"})
    if is_near and _PUBLISHERS & (names[_ATTRIBUTE] | names[_IMPORTED]):
        return True
    if any(each is getattr(api, name) for name in _PUBLISHERS for each in found):
        return True
    methods = (vars(base).get(name) for base in kind.__mro__ for name in names[_ATTRIBUTE] - _LATER)
    return any(
        _publishes(each, kind, seen)
        for each in (*found, *methods)
        if isinstance(each, types.FunctionType) and each.__module__ == function.__module__
    )


_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_IMPORTED = ("IMPORT_NAME", "IMPORT_FROM")


def _names(code: types.CodeType, *operations: str) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in operations and isinstance(instruction.argval, str):
            yield instruction.argval
