# SPDX-License-Identifier: GPL-2.0-or-later
"""Does the steps of a start before it connects, and finds the errors that would end it.

It also warns of a class that publishes too early. fedora_messaging's ``publish`` waits for a
connection, which comes after ``setup``, and gives up after 30 seconds. The code of the class is
read, not run: a call by a name that is looked up at run time stays unseen.
"""

from __future__ import annotations

import dis
import socket
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fedora_messaging
from fedora_messaging import api

from consumer_framework.adapters import codec, config
from consumer_framework.adapters.store.files import is_locked_elsewhere
from consumer_framework.core.errors import ConfigurationError, Problem, ProblemCollector
from consumer_framework.runtime.assembly import loader
from consumer_framework.runtime.assembly.configuration import check_logging, load
from consumer_framework.runtime.assembly.plan import framework_in_force, make_plan
from consumer_framework.settings import Framework

from .findings import Finding, Level, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.adapters.config import Access
    from consumer_framework.runtime.assembly.configuration import RunOptions
    from consumer_framework.runtime.assembly.loader import Target
    from consumer_framework.settings import Monitoring, Settings


@dataclass(frozen=True, slots=True)
class Start:
    """The result of :func:`examine`.

    Attributes:
        settings: None if the file cannot be used.
        framework: The settings of the file, over those of the author's class.
        problems: Every problem that would end the start.
        target: The author's object; None if it cannot be imported.
    """

    settings: Settings | None
    framework: Framework
    problems: tuple[Problem, ...]
    target: Target | None = None


def examine(options: RunOptions, absent: frozenset[str] = frozenset()) -> Start:
    """Do all that a start does before it connects, and leave no trace.

    Args:
        options: The options of the start.
        absent: The TOML paths of credentials that cannot be seen here.
    """
    source = options.source
    found = ProblemCollector(source)
    settings = found.call(load, options)
    found.call(codec.load_schemas)
    if settings is None:
        return Start(None, Framework(), found.problems)
    found.call(check_logging, settings, source)
    # It reports every problem of the callback, and of its settings.
    found.call(make_plan, options, settings, absent)
    target = ProblemCollector().call(loader.target_of, options, settings.callback)
    framework = settings.framework
    if target is not None:
        framework = framework_in_force(framework, target)
    return Start(settings, framework, found.problems, target)


@dataclass(frozen=True, slots=True)
class NamedCredentials:
    """The credentials that a configuration names.

    Attributes:
        paths: The TOML paths that name one.
        absent: Those of them whose credential is not there.
        unseen: The problems of credentials that only the service itself can read.
    """

    paths: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    unseen: tuple[Problem, ...] = ()

    @classmethod
    def in_file(cls, path: Path | None, access: Access) -> NamedCredentials:
        """Find the credentials that the file *path* names; none if it cannot be read."""
        if path is None:
            return cls()
        try:
            paths = frozenset(reference.path for reference in config.references(path, access))
            found = config.substituted(path, access)
        except ConfigurationError:
            return cls()
        return cls(paths, found.absent, found.unseen)

    @property
    def hides_the_broker(self) -> bool:
        """Tell whether the broker cannot be asked without the absent credentials."""
        return any(path == "amqp_url" or path.startswith("tls.") for path in self.absent)

    def findings(self) -> Iterator[Finding]:
        """Note the credentials that could not be checked."""
        for problem in self.unseen:
            yield Finding(Level.INFO, problem)


def monitoring_findings(
    monitoring: Monitoring | None, directory: Path, worker: int = 1
) -> Iterator[Finding]:
    """Report a port that another process has, unless the instance itself runs; and a default.

    Args:
        monitoring: The address to listen on; None for no monitoring server.
        directory: The state directory, which the instance locks while it runs.
        worker: The number of the instance among the workers of its file.
    """
    if monitoring is None:
        return
    if not monitoring.address:
        what = "is not set, so only this host reaches the port"
        cure = 'set "127.0.0.1" if that is right; "0.0.0.0" or "::" for every address of the host'
        yield info("monitoring.address", what, cure)
    if not is_locked_elsewhere(directory):
        yield from _port_findings(*monitoring.place(worker))


def _port_findings(address: str, port: int) -> Iterator[Finding]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        # As Twisted does: a connection that has just ended is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except (OSError, OverflowError) as refused:
            reason = getattr(refused, "strerror", None) or str(refused)
            what = f"cannot listen on port {port}: {reason}; the instance works without its pages"
            yield warning("monitoring.port", what, "use another port")


_PUBLISHERS = frozenset({"publish", "twisted_publish"})
# Methods that early code may name, to be called with a message later.
_MESSAGE_METHODS = frozenset({"handle", "handle_batch", "__call__"})


def publish_findings(target: Target) -> Iterator[Finding]:
    """Warn of a plain class that publishes when it is made: before there is an outbox."""
    kind = target.value
    if not loader.is_plain_class(target):
        return
    method = getattr(kind, "__init__", None)
    if isinstance(method, types.FunctionType) and _publishes(method, kind, set()):
        what = f"{kind.__name__}.__init__ calls fedora_messaging.api.publish, and the instance is "
        what += "not ready to publish then: the call raises RuntimeError"
        yield warning("callback", what, "publish when the first message is handled")


def _publishes(function: types.FunctionType, kind: type, seen: set[object]) -> bool:
    # It, or a function of its own module and class that it calls.
    if function in seen:
        return False
    seen.add(function)
    return any(
        _calls_publish(code, function, kind, seen) for code in _code_objects(function.__code__)
    )


def _code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    # Also that of the functions within it.
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_objects(constant)


def _calls_publish(
    code: types.CodeType, function: types.FunctionType, kind: type, seen: set[object]
) -> bool:
    names = {how: set(_names_in(code, *how)) for how in (_GLOBAL, _ATTRIBUTE, _IMPORTED)}
    found = [function.__globals__.get(name) for name in names[_GLOBAL]]
    is_near = any(each is api or each is fedora_messaging for each in found)
    is_near = is_near or bool(names[_IMPORTED] & {"fedora_messaging", "fedora_messaging.api"})
    if is_near and _PUBLISHERS & (names[_ATTRIBUTE] | names[_IMPORTED]):
        return True
    if any(each is getattr(api, name) for name in _PUBLISHERS for each in found):
        return True
    methods = (
        vars(base).get(name)
        for base in kind.__mro__
        for name in names[_ATTRIBUTE] - _MESSAGE_METHODS
    )
    return any(
        _publishes(each, kind, seen)
        for each in (*found, *methods)
        if isinstance(each, types.FunctionType) and each.__module__ == function.__module__
    )


_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_IMPORTED = ("IMPORT_NAME", "IMPORT_FROM")


def _names_in(code: types.CodeType, *operations: str) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in operations and isinstance(instruction.argval, str):
            yield instruction.argval
