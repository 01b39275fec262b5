# SPDX-License-Identifier: GPL-2.0-or-later
"""From recovery settings, of a file and of a consumer's class, to the policy that decides."""

from __future__ import annotations

import builtins
import difflib
import importlib
from typing import TYPE_CHECKING, cast

from fedora_messaging.exceptions import ConnectionException, PublishTimeout

from consumer_framework.core.collector import Collector
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.recovery import Policy, Rule, Then

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.settings import Recovery


# After all others. A broker that does not take what a handler publishes is no fault of the message.
DEFAULT_RULES = (Rule((PublishTimeout, ConnectionException), Then.DEPENDENCY, "the default"),)

RULES = "consumer_config.framework.recovery.rules"


def policy_of(written: Recovery, own: Recovery, source: str, name: str) -> tuple[Policy, Recovery]:
    """Put a policy together.

    Args:
        written: What the file says.
        own: What the consumer's class says; the file's word stands before it.
        source: The file, for ``fm-consumer explain`` and for errors.
        name: The consumer, likewise.

    Returns:
        The policy, and all the settings in force.

    Raises:
        ConfigurationError: Rules name what is no exception; with every such name.
    """
    found = Collector()
    rules = (
        *_rules(written, source, RULES, found),
        *_rules(own, name, "recovery.rules", found),
    )
    if found.problems:
        raise found.error()
    settings = own.overridden_by(written)
    policy = Policy(
        schedule=(*(0.0 for _ in range(settings.immediate)), *settings.delays),
        hold_ceiling=settings.ack_timeout / 2,
        on_exhausted=settings.on_exhausted,
        on_invalid=settings.on_invalid,
        crash_attempts=settings.crash_attempts,
        rules=(*rules, *DEFAULT_RULES),
        dependency=settings.breaker.probe[0],
    )
    return policy, settings


def _rules(recovery: Recovery, source: str, where: str, found: Collector) -> Iterator[Rule]:
    for index, rule in enumerate(recovery.rules):
        path = f"{where}[{index}]"
        resolved = [found.call(exception, e, f"{path}.exceptions") for e in rule.exceptions]
        exceptions = tuple(e for e in resolved if e is not None)
        yield Rule(exceptions, rule.then, f"{source}: {path}")


def exception(name: str | type[BaseException], path: str) -> type[BaseException]:
    """Import the exception that a rule names.

    Args:
        name: ``package.module.Class``, the bare name of a built-in one, or the class itself.
        path: The TOML path of the rule's ``exceptions``, for errors.

    Raises:
        ConfigurationError: It cannot be imported, or is none.
    """
    if isinstance(name, type):
        return name
    found = _find(name, path)
    if _is_exception(found):
        return cast("type[BaseException]", found)
    raise ConfigurationError(Problem(path, f'"{name}" is no exception', "correct the name"))


def _find(name: str, path: str) -> object:
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name or "builtins"), attribute)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        what = f'"{name}" cannot be imported ({why})'
        raise ConfigurationError(Problem(path, what, _cure(name, module_name))) from error


def _cure(name: str, module_name: str) -> str:
    if not module_name:
        known = [n for n, value in vars(builtins).items() if _is_exception(value)]
        near = difflib.get_close_matches(name, known, 1)
        if near:
            return f'did you mean "{near[0]}"?'
    return "write package.module.Class, and install the package where fm-consumer runs"


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)
