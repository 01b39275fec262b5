# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one instance as a Twisted service, from the construction of its handler to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from functools import partial
from typing import TYPE_CHECKING

from fedora_messaging.exceptions import ConfigurationException
from twisted.application.internet import UNIXServer
from twisted.application.service import MultiService
from twisted.internet import defer, task
from twisted.internet import error as twisted_error

from consumer_framework.core.errors import ConfigurationError, ExitCode, Problem, StoreError
from consumer_framework.core.lifecycle import Effect, Event, State
from consumer_framework.publishing.report import RelayReport
from consumer_framework.runtime.control.requests import Responder
from consumer_framework.runtime.control.schema import (
    RelayStatus,
    RelayStatusReport,
    Reload,
)
from consumer_framework.runtime.control.server import ControlFactory
from consumer_framework.settings.workers import number_on_host

from .drain import Drain, cut_short
from .lanes import lane_finder
from .live_requests import LiveRequests
from .monitoring_port import MonitoringPort
from .observe.pages import InstancePages
from .process_exit import PATIENCE, ProcessExit
from .reload import Reloader
from .signals import Signals
from .startup import Startup
from .state_files import control_socket, operators_socket, runtime_directory
from .tasks import SupervisedTasks, reraise_own_cancellation
from .watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from consumer_framework.runtime.assembly.configuration import RunOptions

    from .instance import Instance
    from .lanes import LaneFinder

_log = logging.getLogger(__name__)

# Seconds between two updates of the line in `systemctl status`.
STATUS_INTERVAL = 5.0
# Seconds that cancelled coroutines have to end when nothing waits for them.
LAST_TURNS = 0.2
# Seconds between two removals of messages in the quarantine that are too old.
RETENTION_INTERVAL = 3600.0


class Runner(MultiService):
    """Starts an instance, serves its orders, drains it and ends the process.

    Args:
        instance: The instance; its reactor is stopped when the instance is.
        options: The options of the start, for a reload.

    Attributes:
        process_exit: Ends the process, once the reactor has stopped.
    """

    process_exit: ProcessExit

    def __init__(self, instance: Instance, options: RunOptions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._instance = instance
        self._name = options.instance
        self._tasks = SupervisedTasks(self._task_failed)
        self._startup = Startup(
            instance.plan,
            instance.files.flight,
            self._waits_for_dependency,
            instance.gate,
            steps=instance.files.store,
            traces=instance.traces,
        )
        self._reloader = Reloader(instance, options, self._tasks.spawn)
        self._signals = Signals(instance.reactor, instance.stop, self._reloader.begin)
        self._watchdog = Watchdog(instance)
        self._pages = InstancePages(instance, self._watchdog, options.instance)
        self._add_monitoring(options)
        self._status_timer = task.LoopingCall(self._refresh)
        self._retention_timer = task.LoopingCall(lambda: self._tasks.spawn(self._expire()))
        self._lane_of: LaneFinder | None = None
        self._building: asyncio.Task[None] | None = None
        self._start_end = 0.0
        self._last_turns = 0.0
        self._ended: defer.Deferred[None] = defer.Deferred()
        instance.add_effects(
            {
                Effect.CONNECT: self._connect,
                Effect.DRAIN: self._begin_drain,
                Effect.CUT_SHORT: self._cut_short,
                Effect.EXIT: self._exit,
            }
        )

    def _add_monitoring(self, options: RunOptions) -> None:
        instance, monitoring = self._instance, self._instance.settings.monitoring
        if monitoring is not None:
            MonitoringPort(
                monitoring.place(number_on_host(options.instance)),
                self._pages.by_path,
                instance.reactor,
                partial(instance.remarks.__setitem__, "monitoring"),
            ).setServiceParent(self)  # type: ignore[no-untyped-call]

    # Starting.

    def startService(self) -> None:  # noqa: N802 -- Twisted's name
        """Start: build the handler, connect, consume. Call it while the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        instance = self._instance
        self._signals.catch()
        instance.reactor.addSystemEventTrigger("before", "shutdown", self._on_shutdown)
        self._status_timer.start(STATUS_INTERVAL)
        self._watchdog.start()
        self._retention_timer.start(RETENTION_INTERVAL)
        self._start_end = instance.clock.monotonic() + instance.plan.framework.start_timeout
        instance.deadline.start(lambda: self._start_end)
        self._building = self._tasks.spawn(self._build())

    async def _build(self) -> None:
        instance = self._instance
        try:
            built = await self._startup.run()
        except ConfigurationException as error:
            instance.failed(ConfigurationError(Problem("consumer_config", error.message)))
        except BaseException as error:  # noqa: BLE001 -- the author's code, and its sys.exit()
            reraise_own_cancellation(error)
            _log.error("the handler cannot be set up", exc_info=error)
            what = f"the handler cannot be set up: {type(error).__name__}: {error}"
            instance.end(ExitCode.HANDLER_FAILED, what)
        else:
            if built is not None:
                handler, instance.executor = built
                self._lane_of = lane_finder(instance.plan, handler)
                # Its __init__ and setup may have taken them.
                self._signals.catch()
                instance.happened(Event.BUILT)
                if not instance.gate.is_closed:
                    instance.health.start()
        finally:
            instance.is_built.set()

    def _waits_for_dependency(self, what: str) -> None:
        self._instance.trouble = what
        self._instance.status.announce()

    def _connect(self) -> None:
        instance = self._instance
        assert instance.executor is not None  # noqa: S101 -- the table: CONNECT follows BUILT
        instance.dispatcher.start(instance.executor, self._lane_of, self._tasks.watch)
        instance.memory_relief.start()
        instance.publications.start()
        try:
            self._listen()
        except (twisted_error.CannotListenError, OSError) as error:
            _log.warning("no replay while this runs: the control socket: %s", error)
        instance.session.service.setServiceParent(self)  # type: ignore[no-untyped-call]

    def _listen(self) -> None:
        files, dispatcher = self._instance.files, self._instance.dispatcher
        directory = files.directory or runtime_directory()
        if directory is None:
            _log.warning("no command reaches this instance: there is no $RUNTIME_DIRECTORY")
            return
        responder = Responder(
            files.store,
            dispatcher.replay,
            dispatcher.drop_rows,
            dispatcher.store_changed,
            self._instance.status.report,
        )
        factory = ControlFactory(
            {
                **responder.by_type,
                **LiveRequests(self._instance, self._name).by_type,
                Reload: self._reloader.respond,
                RelayStatus: self._respond_relay_status,
            },
            self._pages.by_path,
        )
        path = control_socket(directory)
        self._listen_at(path, factory, 0o600)
        if (operators := operators_socket(path)) is not None:
            self._listen_at(operators, factory, 0o660)

    def _listen_at(self, path: Path, factory: ControlFactory, mode: int) -> None:
        path.unlink(missing_ok=True)
        server = UNIXServer(str(path), factory, mode=mode)  # type: ignore[no-untyped-call]
        server.setServiceParent(self)  # type: ignore[no-untyped-call]

    # Running.

    async def _respond_relay_status(
        self, _request: RelayStatus
    ) -> AsyncGenerator[RelayStatusReport, None]:
        status = self._instance.publications.status
        relay = RelayReport(state="idle") if status is None else status.report()
        yield RelayStatusReport(relay, os.getpid())

    def _refresh(self) -> None:
        # The author's code may have taken the signals.
        self._signals.catch()
        self._instance.publications.count()
        self._instance.status.announce()

    async def _expire(self) -> None:
        try:
            expired = await self._instance.files.store.expire(self._instance.clock.time())
        except StoreError as error:
            _log.warning("what is too old cannot be exported, and is kept: %s", error)
        else:
            if expired.rows:
                _log.warning("%d quarantined messages expired to %s", expired.rows, expired.file)

    def _task_failed(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and self._instance.state is State.STOPPED:
            # _cut_short cancelled it, and not the author's code.
            return
        _log.critical("please report this defect of consumer_framework", exc_info=error)
        self._instance.end(ExitCode.UNEXPECTED, f"internal error: {error!r}")

    # Stopping.

    def _on_shutdown(self) -> defer.Deferred[None] | None:
        """Drain before the end of a reactor that other code has stopped."""
        if self._instance.state is State.STOPPED:
            return None
        if not self._instance.gate.is_closed:
            self._instance.happened(Event.STOP)
        return self._ended

    def _begin_drain(self) -> None:
        drain = Drain(self._instance, self._start_end, self._teardown_failed)
        self._instance.begin_drain(drain)
        self._tasks.spawn(self._drain(drain))

    async def _drain(self, drain: Drain) -> None:
        try:
            await drain.run(self._building)
        finally:
            self._instance.happened(Event.DRAINED)

    def _teardown_failed(self, error: BaseException) -> None:
        self._instance.end(ExitCode.HANDLER_FAILED, f"teardown failed: {error}")

    def _cut_short(self) -> None:
        self._instance.deadline.stop()
        cut_short(self._instance)
        self._tasks.cancel()
        self._last_turns = LAST_TURNS

    def _exit(self) -> None:
        instance = self._instance
        self._status_timer.stop()
        self._retention_timer.stop()
        self._watchdog.stop()
        instance.close()
        is_cut_short = self._last_turns > 0
        patience = 0.0 if is_cut_short else min(instance.plan.limits.patience, PATIENCE)
        self.process_exit = ProcessExit(instance.exit_code, patience, instance.notifier)
        self._signals.finish(self.process_exit.now)
        asyncio.get_running_loop().call_later(self._last_turns, self._stop_reactor)

    def _stop_reactor(self) -> None:
        self._ended.callback(None)
        with contextlib.suppress(twisted_error.ReactorNotRunning):
            self._instance.reactor.stop()
