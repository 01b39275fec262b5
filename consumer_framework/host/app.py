# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs an instance in this process, from its configuration file to its exit code.

Import it after :func:`.reactor.install`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet import reactor
from twisted.logger import STDLibLogObserver, globalLogBeginner

from consumer_framework.adapters import codec, config, log
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.adapters.systemd import SystemdNotifier, is_journal
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.settings import NO_OVERRIDES, Overrides

from . import loader
from .plan import Plan, fitted, with_batch
from .policy import policy_of
from .runner import Runner
from .stores import open_stores, state_directory

if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.core.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What to run.

    Attributes:
        path: The configuration file; None for fedora-messaging's defaults.
        callback: ``module:object``; "" for the file's ``callback``.
        callback_file: ``path/to/file.py:object``; stands before *callback*.
        overrides: What the command line says instead of the file.
        instance: The instance's name.
        state_directory: Where it keeps its state; None for the usual place.
    """

    path: Path | None
    callback: str = ""
    callback_file: str = ""
    overrides: Overrides = NO_OVERRIDES
    instance: str = "default"
    state_directory: Path | None = None


def run(request: Request) -> int:
    """Run an instance until it is told to stop, or cannot go on.

    Returns:
        The exit code; see :class:`.ExitCode`.

    Raises:
        ConfigurationError: It cannot start as it is configured.
    """
    settings = config.load(request.path, request.overrides)
    source = str(request.path) if request.path else "built-in configuration"
    _set_up_logging(settings, source)
    codec.load_schemas()
    plan = make_plan(request, settings, source)
    directory = state_directory(request.instance, request.state_directory)
    stores = open_stores(directory, request.instance, plan.framework)
    _log.info("starting %s with %s", plan.name, source)
    runner = Runner(settings, plan, stores, SystemdNotifier(), SystemClock(), reactor)
    # Twisted declares its reactor as a module.
    untyped: Any = reactor
    untyped.callLater(0, runner.startService)
    untyped.run()
    return runner.exit_code


def _set_up_logging(settings: Settings, source: str) -> None:
    try:
        log.set_up(settings.log_config, is_journal)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        what = f"logging cannot be set up: {error}{cause}"
        cure = "see logging.config.dictConfig in Python's documentation"
        raise ConfigurationError(Problem("log_config", what, cure), source=source) from error
    observer: Any = STDLibLogObserver()
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)


def make_plan(request: Request, settings: Settings, source: str) -> Plan:
    """Find the handler, and put together how its failures are answered.

    Raises:
        ConfigurationError: It cannot be imported, or does not fit its settings.
    """
    target = _find_target(request, settings, source)
    own = loader.recovery_of(target)
    try:
        factory = loader.factory(target, settings.consumer_config)
        policy, recovery = policy_of(settings.framework.recovery, own, source, target.name)
    except ConfigurationError as error:
        raise ConfigurationError(*error.problems, source=source) from error
    framework = with_batch(settings.framework, target.value)
    return fitted(Plan(target.name, factory, policy, framework), settings, recovery)


def _find_target(request: Request, settings: Settings, source: str) -> loader.Target:
    if request.callback_file:
        return loader.find_in_file(request.callback_file, "--callback-file")
    if request.callback:
        return loader.find(request.callback, "--callback")
    if settings.callback:
        return loader.find(settings.callback, source)
    cure = 'set callback = "module:object", or give --callback or --callback-file'
    raise ConfigurationError(Problem("callback", "there is no callback", cure), source=source)
