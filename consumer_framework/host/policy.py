# SPDX-License-Identifier: GPL-2.0-or-later
"""From recovery settings, of a file and of a consumer's class, to the policy that decides."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.recovery import Policy, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.settings import Recovery


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
        ConfigurationError: A rule names what is no exception.
    """
    rules = (
        *_rules(written, source, "consumer_config.framework.recovery.rules"),
        *_rules(own, name, "recovery.rules"),
    )
    settings = own.overridden_by(written)
    policy = Policy(
        schedule=(*(0.0 for _ in range(settings.immediate)), *settings.delays),
        hold_ceiling=settings.ack_timeout / 2,
        on_exhausted=settings.on_exhausted,
        crash_attempts=settings.crash_attempts,
        rules=rules,
        dependency=settings.breaker.probe[0],
    )
    return policy, settings


def _rules(recovery: Recovery, source: str, where: str) -> Iterator[Rule]:
    for index, rule in enumerate(recovery.rules):
        path = f"{where}[{index}]"
        exceptions = tuple(_resolve(e, f"{path}.exceptions") for e in rule.exceptions)
        yield Rule(exceptions, rule.then, f"{source}: {path}")


def _resolve(exception: str | type[BaseException], path: str) -> type[BaseException]:
    if isinstance(exception, type):
        return exception
    found = _find(exception, path)
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    raise ConfigurationError(Problem(path, f'"{exception}" is no exception', "correct the name"))


def _find(name: str, path: str) -> object:
    """Import ``package.module.Class``, or a built-in exception by its bare name."""
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name or "builtins"), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        cure = "write package.module.Class, and install the package where fm-consumer runs"
        raise ConfigurationError(
            Problem(path, f'"{name}" cannot be imported: {error}', cure)
        ) from error
