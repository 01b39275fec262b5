# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``fm-consumer run`` would refuse to start with."""

from __future__ import annotations

import logging.config
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import codec
from consumer_framework.core.collector import Collector
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.settings import Framework
from consumer_framework.host import app, loader
from consumer_framework.host.batching import with_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from consumer_framework.core.settings import Settings
    from consumer_framework.host.app import Request
    from consumer_framework.host.loader import Target


@dataclass(frozen=True, slots=True)
class Start:
    """How far a start would come.

    Attributes:
        settings: None where the file cannot be used.
        framework: The settings of the file, over those of the author's class.
        problems: Everything that would end it.
    """

    settings: Settings | None
    framework: Framework
    problems: tuple[Problem, ...]


def examine(request: Request, source: str, absent: frozenset[str] = frozenset()) -> Start:
    """Do what a start does before it connects, and leaves no trace.

    Args:
        request: What to start.
        source: How errors call its file.
        absent: The TOML paths of credentials that cannot be seen.
    """
    found = Collector(source)
    settings = found.call(app.load, request)
    found.call(codec.load_schemas)
    if settings is None:
        return Start(None, Framework(), found.problems)
    found.call(check_logging, settings.log_config)
    # It tells everything that is wrong with the callback and with what goes with it.
    found.call(app.make_plan, request, settings, source, absent)
    target = Collector().call(
        loader.target_of, request.callback, request.callback_file, settings.callback, source
    )
    framework = in_force(settings.framework, target) if target else settings.framework
    return Start(settings, framework, found.problems)


def in_force(framework: Framework, target: Target) -> Framework:
    """Return *framework* with what the class of *target* says of itself."""
    recovery = loader.recovery_of(target).overridden_by(framework.recovery)
    with_recovery = framework.model_copy(update={"recovery": recovery})
    return with_batch(with_recovery, target.value)


def check_logging(table: Mapping[str, Any] | None) -> None:
    """Check ``[log_config]`` without setting it up, which would open its files as a wrong user.

    Raises:
        ConfigurationError: With everything that is seen to be wrong; not everything can be.
    """
    problems = list(_logging_problems(table)) if table is not None else []
    if problems:
        raise ConfigurationError(*problems)


def _logging_problems(table: Mapping[str, Any]) -> Iterator[Problem]:
    if table.get("version") != 1:
        yield _logging_problem("version", "must be 1")
    handlers = table.get("handlers", {})
    handlers = handlers if isinstance(handlers, dict) else {}
    for name, handler in handlers.items():
        kind = handler.get("class") if isinstance(handler, dict) else None
        if isinstance(kind, str) and not _is_importable(kind):
            yield _logging_problem(f"handlers.{name}.class", f"{kind} cannot be imported")
    loggers = table.get("loggers", {})
    named = loggers.items() if isinstance(loggers, dict) else ()
    for path, logger in [
        ("root", table.get("root")),
        *((f"loggers.{name}", logger) for name, logger in named),
    ]:
        used = logger.get("handlers", []) if isinstance(logger, dict) else []
        for name in used if isinstance(used, list) else ():
            if name not in handlers:
                yield _logging_problem(f"{path}.handlers", f'there is no handler "{name}"')


def _logging_problem(path: str, what: str) -> Problem:
    cure = "see logging.config.dictConfig in Python's documentation"
    return Problem(f"log_config.{path}", what, cure)


def _is_importable(name: str) -> bool:
    try:
        logging.config.BaseConfigurator({}).resolve(name)
    except (ValueError, ImportError):
        return False
    return True
