# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a whole configuration: every error collected, each with its TOML path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pydantic

from consumer_framework.core.errors import ConfigurationError, Problem

from .brokers import broker_problems
from .conflicts import FRAMEWORK, conflicts
from .file import Settings
from .framework import Framework
from .problems import from_pydantic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def parse(document: Mapping[str, Any], *, default_bindings: bool = False) -> Settings:
    """Check a configuration and freeze it.

    Args:
        document: The configuration with fedora-messaging's defaults under it.
        default_bindings: The bindings are those defaults, which must not be blamed.

    Raises:
        ConfigurationError: With every problem there is, each with its TOML path.
    """
    problems = _framework_problems(document)
    if document.get("queues") == {}:
        cure = "add a [queues.NAME] table, or remove [queues] for a queue that the broker names"
        problems.append(Problem("queues", "there is no queue to consume from", cure))
    if not default_bindings:
        problems += _undeclared_queues(document)
    try:
        settings = Settings.model_validate(document)
    except pydantic.ValidationError as error:
        problems = [*from_pydantic(error, "", Settings, document), *problems]
    if problems:
        raise ConfigurationError(*problems)
    return settings


def _undeclared_queues(document: Mapping[str, Any]) -> list[Problem]:
    """fedora-messaging skips such bindings silently, and the consumer waits for ever."""
    queues, bindings = document.get("queues"), document.get("bindings")
    if not isinstance(queues, dict) or not queues or not isinstance(bindings, list):
        return []
    tables = ((i, binding) for i, binding in enumerate(bindings) if isinstance(binding, dict))
    names = ((i, binding.get("queue", "")) for i, binding in tables)
    texts = ((i, name) for i, name in names if isinstance(name, str))
    return [_undeclared_queue(i, name, queues) for i, name in texts if name not in queues]


def _undeclared_queue(index: int, queue: str, declared: Iterable[str]) -> Problem:
    names = ", ".join(f'"{name}"' for name in declared) or "none"
    what = f'there is no [queues."{queue}"] for this binding'
    cure = f"declare it, or name a queue that is declared ({names})"
    return Problem(f"bindings[{index}].queue", what, cure)


def _framework_problems(document: Mapping[str, Any]) -> list[Problem]:
    config = document.get("consumer_config")
    table = config.get("framework", {}) if isinstance(config, dict) else {}
    try:
        framework = Framework.model_validate(table)
    except pydantic.ValidationError as error:
        return list(from_pydantic(error, FRAMEWORK, Framework, table))
    return [*conflicts(framework), *_broker_problems(document.get("amqp_url"), framework)]


def _broker_problems(amqp_url: object, framework: Framework) -> list[Problem]:
    if not isinstance(amqp_url, str):
        return []
    try:
        return list(broker_problems(amqp_url, framework.brokers, f"{FRAMEWORK}.brokers"))
    except ValueError:
        # The URL cannot be understood, which others say.
        return []
