# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs an instance in this process, from its configuration file to its exit code.

Import it after :func:`.reactor.install`.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fedora_messaging.exceptions import ConfigurationException
from twisted.internet import reactor
from twisted.logger import STDLibLogObserver, globalLogBeginner

from consumer_framework.adapters import codec, config, journald, log
from consumer_framework.adapters.cgroup import most_tasks
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.adapters.systemd import SystemdNotifier, is_journal
from consumer_framework.core.attempt import is_by_author, said
from consumer_framework.core.checks import tasks_problem
from consumer_framework.core.collector import Collector
from consumer_framework.core.errors import ConfigurationError, ExitCode, Problem
from consumer_framework.core.helpers import hosting
from consumer_framework.core.settings import NO_OVERRIDES, Overrides, Recovery, refuse_conflicts

from . import configuration, forks, leaving, loader, rereading, salvage
from .batching import check_batch, with_batch
from .leaving import Leaving
from .ordering import source_for
from .plan import Plan, fitted
from .policy import policy_of
from .publishing import refuse_early
from .reload import Origin
from .runner import Runner
from .startup import make_early
from .stores import (
    CONSUMER_FILES,
    is_directory_given,
    open_stores,
    state_directory,
    wait_for_stores,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.core.settings import Settings

    from .loader import Target

_log = logging.getLogger(__name__)

STDERR = 2


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
        access: How the configuration is got at; None for the instance's own way.
    """

    path: Path | None
    callback: str = ""
    callback_file: str = ""
    overrides: Overrides = NO_OVERRIDES
    instance: str = "default"
    state_directory: Path | None = None
    access: config.Access | None = None

    @property
    def way(self) -> config.Access:
        """How the configuration is got at."""
        return self.access or configuration.inside(self.path, self.instance)


@hosting()
def run(request: Request) -> int:
    """Run an instance until it is told to stop, or cannot go on.

    Returns:
        The exit code; see :class:`.ExitCode`.

    Raises:
        ConfigurationError: It cannot start as it is configured.
        Fault: It cannot start now.
    """
    source = str(request.path) if request.path else config.BUILT_IN
    settings = load(request)
    _set_up_logging(settings, source, request.instance)
    codec.load_schemas()
    refuse_early()
    plan = _own_plan(request, settings, source)
    # The callback may have configured logging when it was imported.
    log.adapt(is_journal)
    _log.info("starting %s with %s", plan.name, source)
    notifier = SystemdNotifier()
    try:
        plan = make_early(plan, notifier)
    except ConfigurationException as error:
        raise ConfigurationError(
            Problem("consumer_config", error.message), source=source
        ) from error
    except Exception as error:  # noqa: BLE001 -- the author's code
        return _not_made(error, notifier)
    directory = state_directory(request.instance, request.state_directory)
    clock = SystemClock()
    stores = wait_for_stores(
        partial(
            open_stores,
            directory,
            request.instance,
            plan.framework,
            is_given=is_directory_given(request.state_directory),
        ),
        plan.framework.start_timeout,
        notifier,
        clock,
    )
    origin = Origin(
        source,
        read=partial(_read_again, request),
        plan=partial(_own_plan, request, source=source),
        set_up_logging=partial(configure_logging, source=source, instance=request.instance),
        names_callback=not (request.callback or request.callback_file),
        handed_over=partial(rereading.handed_over, request.path, request.instance),
        given=partial(rereading.given, path=request.path),
    )
    runner = Runner(settings, plan, stores, notifier, clock, reactor, origin)
    # Twisted declares its reactor as a module.
    untyped: Any = reactor
    forks.keep_sockets(untyped)
    untyped.callLater(0, runner.startService)
    untyped.run()
    # It outlives the instance, and must keep nothing of it: what the author's objects have open is
    # written when they go.
    for call in untyped.getDelayedCalls():
        call.cancel()
    runner.leaving.begin()
    return runner.exit_code


def _not_made(error: Exception, notifier: SystemdNotifier) -> int:
    """Say that the author's ``__init__`` failed, and return the exit code that upstream has."""
    _log.error("the handler cannot be made", exc_info=error)
    notifier.status(f"The handler cannot be made: {said(error)}")
    exit_code = ExitCode.USAGE if isinstance(error, ValueError) else ExitCode.INIT_FAILED
    Leaving(exit_code, leaving.PATIENCE, notifier).begin()
    return exit_code


def _read_again(request: Request, given: bytes | None) -> config.Loaded:
    access = replace(request.way, given=given)
    return config.examine(request.path, request.overrides, access)


def load(request: Request) -> Settings:
    """Load the configuration.

    Raises:
        ConfigurationError: With every problem there is. Where the file has some, those of the
            callback and of the rules that it names are there too, as far as can be told.
    """
    try:
        return config.load(request.path, request.overrides, request.way)
    except ConfigurationError as error:
        more = salvage.problems(request.path, request.callback, request.callback_file, request.way)
        raise ConfigurationError(*dict.fromkeys([*error.located, *more])) from None


def _set_up_logging(settings: Settings, source: str, instance: str) -> None:
    configure_logging(settings, source, instance)
    observer: Any = STDLibLogObserver()
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)


def configure_logging(settings: Settings, source: str, instance: str) -> None:
    """Log as *settings* say, from now on.

    Raises:
        ConfigurationError: They cannot be used.
    """
    is_native = is_journal(STDERR) and journald.is_reachable()
    journal = journald.JournalHandler() if is_native else None
    with _described(source):
        log.set_up(settings.log_config, is_journal, journal)
    for handler in log.handlers():
        if isinstance(handler, journald.JournalHandler):
            handler.instance = handler.instance or instance


def check_logging(settings: Settings, source: str) -> None:
    """Find out whether :func:`configure_logging` can do its work, and log as before.

    Raises:
        ConfigurationError: It cannot.
    """
    if settings.log_config is not None:
        with _described(source):
            log.rehearse(settings.log_config)


@contextmanager
def _described(source: str) -> Iterator[None]:
    """Whatever a handler, filter or formatter of anybody's raises says what is wrong with it."""
    try:
        yield
    except Exception as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        what = f"logging cannot be set up: {error}{cause}"
        cure = "see logging.config.dictConfig in Python's documentation"
        raise ConfigurationError(Problem("log_config", what, cure), source=source) from error


def _own_plan(
    request: Request, settings: Settings, source: str, target: Target | None = None
) -> Plan:
    """Make the plan of this process.

    Raises:
        ConfigurationError: As :func:`make_plan`, or there may be too few threads for it.
    """
    plan = make_plan(request, settings, source, target=target)
    problem = tasks_problem(plan.framework, most_tasks())
    if problem:
        raise ConfigurationError(problem, source=source)
    return plan


def make_plan(
    request: Request,
    settings: Settings,
    source: str,
    absent: frozenset[str] = frozenset(),
    target: Target | None = None,
) -> Plan:
    """Find the handler, and put together how its failures are answered.

    Args:
        request: What to run.
        settings: Its configuration.
        source: How errors call that.
        absent: The TOML paths of credentials that are not there: the handler is not made.
        target: The author's object where it was found before, and is to be used again.

    Raises:
        ConfigurationError: With every problem there is: it cannot be imported, does not fit its
            settings, or a rule names what is no exception.
    """
    found = Collector(source)
    target = target or found.call(
        loader.target_of, request.callback, request.callback_file, settings.callback, source
    )
    config_of = settings.consumer_config
    files = state_directory(request.instance, request.state_directory) / CONSUMER_FILES
    factory = found.call(loader.factory, target, config_of, absent, files) if target else None
    own = loader.recovery_of(target) if target else Recovery()
    name = target.name if target else ""
    decided = found.call(policy_of, settings.framework.recovery, own, source, name)
    if decided is not None:
        found.call(refuse_conflicts, settings.framework, decided[1])
    source_of = None
    if target is not None:
        is_by_author(*loader.packages_of(target))
        found.call(check_batch, settings.framework, target.value)
        source_of = found.call(source_for, settings.framework, target.value)
    if target is None or factory is None or decided is None or found.problems:
        raise found.error()
    policy, recovery = decided
    framework = with_batch(settings.framework, target.value)
    usual = loader.usual_timeout(target)
    plan = Plan(name, factory, policy, framework, source_of, target=target, usual_timeout=usual)
    return fitted(plan, settings, recovery)
