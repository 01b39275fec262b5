# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs an instance in this process, from its configuration file to its exit code.

Import it after :func:`.reactor.install`.

What else is wrong, where a configuration file cannot be used.

So that whoever mends it learns of everything at once, and not of one thing after the other.

Keeps the instance's sockets from processes that a handler forks.

A forked process, as ``multiprocessing`` starts it by default before Python 3.14, has every socket
of its parent. Where it outlives a parent that is killed, the broker would see a consumer that is
alive, and would deliver messages to it, until heartbeats have been missing for minutes.

Refuses ``fedora_messaging.api.publish`` where it cannot work, before anything is sent.

It blocks until the event loop has sent the message. On the loop's own thread that is for ever, and
fedora-messaging notices only after it has told the loop to send.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fedora_messaging import api
from fedora_messaging.exceptions import ConfigurationException
from twisted.internet import reactor
from twisted.logger import STDLibLogObserver, globalLogBeginner

from consumer_framework.adapters import codec, config, log
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.adapters.systemd import journald
from consumer_framework.adapters.systemd.cgroup import most_tasks
from consumer_framework.adapters.systemd.notify import SystemdNotifier, is_journal
from consumer_framework.author.translate import hosting
from consumer_framework.core.attempt import is_by_author, said
from consumer_framework.core.errors import Collector, ConfigurationError, ExitCode, Problem
from consumer_framework.runtime.assembly.plan import (
    RULES,
    Plan,
    check_batch,
    exception,
    fitted,
    policy_of,
    source_for,
    tasks_problem,
    with_batch,
)
from consumer_framework.settings import NO_OVERRIDES, Overrides, Recovery, refuse_conflicts

from . import reload
from .assembly import loader
from .assembly.access import from_inside
from .process_exit import PATIENCE, ProcessExit
from .reload import Origin
from .runner import Runner
from .startup import make_early
from .state_files import (
    CONSUMER_FILES,
    is_directory_given,
    open_state_files,
    state_directory,
    wait_for_state_files,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from consumer_framework.adapters.config import Access
    from consumer_framework.runtime.assembly.loader import Target
    from consumer_framework.settings import Settings


def problems(
    path: Path | None, callback: str, callback_file: str, access: Access = config.PLAIN
) -> tuple[Problem, ...]:
    """Say what is wrong with the callback and the rules of a file that is itself wrong.

    Nothing where the file cannot be read; and nothing about what was of a wrong type, which is
    told already. Imports the author's module.

    Args:
        path: The configuration file.
        callback: What ``--callback`` says instead of the file.
        callback_file: What ``--callback-file`` says instead of both.
        access: How the file is got at.
    """
    try:
        document = config.preview(path, access) if path else {}
        absent = config.substituted(path, access).absent
    except ConfigurationError:
        return ()
    found = Collector(str(path or config.BUILT_IN))
    written = document.get("callback")
    if written is None or isinstance(written, str):
        source = str(path or config.BUILT_IN)
        target = found.call(loader.target_of, callback, callback_file, written, source)
        own = document.get("consumer_config", {})
        if target is not None and isinstance(own, dict):
            found.call(loader.factory, target, own, absent)
    for name, where in _exceptions(document):
        found.call(exception, name, where)
    return found.problems


def _exceptions(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The names in rules, and where each is."""
    table: Any = document
    for key in RULES.split("."):
        table = table.get(key) if isinstance(table, dict) else None
    for index, rule in enumerate(table if isinstance(table, list) else ()):
        names = rule.get("exceptions") if isinstance(rule, dict) else ()
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str):
                yield name, f"{RULES}[{index}].exceptions"


def keep_sockets(reactor: Any) -> None:
    """Have every process that is forked from now on let go of the sockets of *reactor*.

    Only forks of Python's own are seen (:func:`os.register_at_fork`); nothing is inherited by
    programs that are started (``subprocess``).
    """
    os.register_at_fork(after_in_child=lambda: let_go(reactor))


def let_go(reactor: Any) -> None:
    """Put ``/dev/null`` in the place of each socket of *reactor*: their numbers stay in use."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for one in {*reactor.getReaders(), *reactor.getWriters()}:
        # One that is closed has the number -1.
        with contextlib.suppress(OSError):
            os.dup2(null, one.fileno(), inheritable=False)
    os.close(null)


_BLOCKS = (
    "api.publish() would block the event loop that is to send the message, so nothing was sent; "
    "in a coroutine write: "
    "await api.twisted_publish(message).asFuture(asyncio.get_running_loop())"
)
_NO_CONNECTION = (
    "there is no connection to the broker yet, or not any more, so nothing was sent; "
    "publish from the handler, not from __init__, setup or when a module is imported"
)


def refuse_early() -> None:
    """Let ``api.publish`` raise RuntimeError where it cannot work."""
    publish = api._twisted_publish_wrapper  # noqa: SLF001
    if getattr(publish, "is_checked", False):
        return

    def checked(*arguments: Any, **named: Any) -> Any:
        if api._twisted_service is None:  # noqa: SLF001 -- the runner sets it
            raise RuntimeError(_NO_CONNECTION)
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError(_BLOCKS)
        return publish(*arguments, **named)

    checked.is_checked = True  # type: ignore[attr-defined]
    api._twisted_publish_wrapper = checked  # noqa: SLF001


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
        return self.access or from_inside(self.path, self.instance)


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
    files = wait_for_state_files(
        partial(
            open_state_files,
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
        handed_over=partial(reload.handed_over, request.path, request.instance),
        given=partial(reload.given, path=request.path),
    )
    runner = Runner(settings, plan, files, notifier, clock, reactor, origin)
    # Twisted declares its reactor as a module.
    untyped: Any = reactor
    keep_sockets(untyped)
    untyped.callLater(0, runner.startService)
    untyped.run()
    # It outlives the instance, and must keep nothing of it: what the author's objects have open is
    # written when they go.
    for call in untyped.getDelayedCalls():
        call.cancel()
    runner.process_exit.begin()
    return runner.exit_code


def _not_made(error: Exception, notifier: SystemdNotifier) -> int:
    """Say that the author's ``__init__`` failed, and return the exit code that upstream has."""
    _log.error("the handler cannot be made", exc_info=error)
    notifier.status(f"The handler cannot be made: {said(error)}")
    exit_code = ExitCode.USAGE if isinstance(error, ValueError) else ExitCode.INIT_FAILED
    ProcessExit(exit_code, PATIENCE, notifier).begin()
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
        more = problems(request.path, request.callback, request.callback_file, request.way)
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
