# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs an instance in this process, from its configuration to its exit code.

Import it after :func:`.reactor.install`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from fedora_messaging.exceptions import ConfigurationException
from twisted.internet import reactor
from twisted.logger import STDLibLogObserver, globalLogBeginner

from consumer_framework.adapters import codec, log
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.adapters.systemd.notify import SystemdNotifier, is_journal
from consumer_framework.author.translate import hosting
from consumer_framework.core.attempt import one_line
from consumer_framework.core.errors import ConfigurationError, ExitCode, Problem
from consumer_framework.publishing import upstream

from .assembly.configuration import configure_logging, load
from .assembly.plan import plan_of_this_process
from .instance import Instance, Surroundings
from .process_exit import PATIENCE, ProcessExit
from .publications import refuse_early
from .runner import Runner
from .startup import make_early
from .state_files import (
    is_directory_given,
    open_state_files,
    state_directory,
    wait_for_state_files,
)

if TYPE_CHECKING:
    from consumer_framework.adapters.tracing import Tracing
    from consumer_framework.core.ports import Observer
    from consumer_framework.settings import Framework

    from .assembly.configuration import RunOptions

_log = logging.getLogger(__name__)


@hosting()
@upstream.replaced(refuse_early)
def run(options: RunOptions, observer: Observer | None = None) -> int:
    """Run an instance until it is told to stop, or cannot go on.

    Args:
        options: The options of the start.
        observer: Is told of each run, settle, pause and state, after the instance's own observers;
            None for none.

    Returns:
        The exit code; see :class:`.ExitCode`.

    Raises:
        ConfigurationError: It cannot start as it is configured.
        Fault: It cannot start now.
    """
    settings = load(options)
    configure_logging(settings, options)
    to_logging: Any = STDLibLogObserver()
    globalLogBeginner.beginLoggingTo([to_logging], redirectStandardIO=False)
    codec.load_schemas()
    plan = plan_of_this_process(options, settings)
    # The callback may have configured logging when it was imported.
    log.adapt(is_journal)
    _log.info("starting %s with %s", plan.name, options.source)
    notifier = SystemdNotifier()
    try:
        plan = make_early(plan, notifier)
    except ConfigurationException as error:
        problem = Problem("consumer_config", error.message)
        raise ConfigurationError(problem, source=options.source) from error
    except Exception as error:  # noqa: BLE001 -- the author's code
        return _fail_before_start(error, notifier)
    clock = SystemClock()
    open_files = partial(
        open_state_files,
        state_directory(options.instance, options.state_directory),
        options.instance,
        plan.framework,
        is_given=is_directory_given(options.state_directory),
    )
    patience = plan.framework.start_timeout
    files = wait_for_state_files(open_files, patience, notifier, clock)
    traces = _traces_of(plan.framework, options.instance)
    surroundings = Surroundings(files, notifier, clock, reactor, observer, traces)
    instance = Instance(settings, plan, surroundings)
    runner = Runner(instance, options)
    _run_reactor(instance, runner)
    if traces is not None:
        traces.close()
    runner.process_exit.begin()
    return instance.exit_code


def _run_reactor(instance: Instance, runner: Runner) -> None:
    # Twisted declares its reactor as a module.
    untyped: Any = reactor
    close_sockets_in_forks(untyped)
    untyped.callLater(0, runner.startService)
    with instance.publications.installed():
        untyped.run()
    # The reactor outlives the instance, and must keep nothing of it: files that the author's
    # objects have open are written when the objects go.
    for call in untyped.getDelayedCalls():
        call.cancel()


def _traces_of(framework: Framework, instance: str) -> Tracing | None:
    """Begin to trace, if the settings ask for it."""
    if not framework.traces:
        return None
    from consumer_framework.adapters import tracing  # noqa: PLC0415 -- of an extra

    return tracing.start(instance)


def _fail_before_start(error: Exception, notifier: SystemdNotifier) -> int:
    """Report that the author's ``__init__`` failed; returns the exit code that upstream has."""
    _log.error("the handler cannot be made", exc_info=error)
    notifier.status(f"The handler cannot be made: {one_line(error)}")
    exit_code = ExitCode.USAGE if isinstance(error, ValueError) else ExitCode.INIT_FAILED
    ProcessExit(exit_code, PATIENCE, notifier).begin()
    return exit_code


def close_sockets_in_forks(reactor: Any) -> None:
    """Have every process that is forked from now on close the sockets of *reactor*.

    A forked process, as ``multiprocessing`` starts it by default before Python 3.14, has every
    socket of its parent. If it outlived a parent that was killed, the broker would see a consumer
    that is alive, and would deliver messages to it until heartbeats have been missing for minutes.

    Only forks of Python's own are seen (:func:`os.register_at_fork`); programs that are started
    (``subprocess``) inherit nothing.
    """
    os.register_at_fork(after_in_child=lambda: close_sockets(reactor))


def close_sockets(reactor: Any) -> None:
    """Put ``/dev/null`` in the place of each socket of *reactor*: their numbers stay in use."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for one in {*reactor.getReaders(), *reactor.getWriters()}:
        # One that is closed has the number -1.
        with contextlib.suppress(OSError):
            os.dup2(null, one.fileno(), inheritable=False)
    os.close(null)
