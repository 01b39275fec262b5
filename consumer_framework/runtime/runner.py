# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one instance: executes what the lifecycle table says, and tells it what happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any

from fedora_messaging import api
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.twisted.monitor import monitor_service
from twisted.application.internet import UNIXServer
from twisted.application.service import MultiService
from twisted.internet import defer, task
from twisted.internet import error as twisted_error

from consumer_framework.core.errors import (
    ConfigurationError,
    ExitCode,
    Fault,
    Problem,
    StoreError,
)
from consumer_framework.core.gate import SHUTS, Entry
from consumer_framework.core.lifecycle import Effect, Event, State, advance
from consumer_framework.core.text import text
from consumer_framework.runtime.control.requests import Responder
from consumer_framework.runtime.control.schema import Reload
from consumer_framework.runtime.control.server import ControlFactory
from consumer_framework.runtime.observe.status import counts_text

from .drain import Drain, cut_short
from .instance import Instance
from .lanes import lane_finder
from .process_exit import PATIENCE, ProcessExit
from .reload import Reloader
from .signals import Signals
from .startup import Startup
from .state_files import control_socket, runtime_directory
from .tasks import SupervisedTasks, reraise_own_cancellation
from .watchdog import Watchdog

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Halt
    from consumer_framework.core.gate import GateEvent, Reason
    from consumer_framework.core.ports import Clock, Notifier
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.settings import Settings

    from .assembly.configuration import RunOptions
    from .lanes import LaneFinder
    from .state_files import StateFiles

_log = logging.getLogger(__name__)

# Seconds between two looks at whether `systemctl status` should say something new.
STATUS_INTERVAL = 5.0
# Seconds that coroutines have to end when they are cancelled because nobody waits for them.
LAST_TURNS = 0.2
# Seconds between two looks at what in the quarantine is too old.
RETENTION_INTERVAL = 3600.0


class Runner(MultiService):
    """One instance, from the construction of its handler to the exit code.

    Args:
        settings: The whole configuration.
        plan: The handler to be made, and how its failures are answered.
        files: The store and the flight recorder; closed at the end.
        notifier: Told when the instance is ready, what it does, and that it stops.
        clock: For the memory of redeliveries.
        reactor: Twisted's asyncio reactor; stopped when the instance is.
        options: The options of the start, for a reload.

    Attributes:
        exit_code: What the process should exit with, once the reactor has stopped.
        process_exit: Ends the process then.
    """

    process_exit: ProcessExit

    def __init__(  # noqa: PLR0913, PLR0917 -- app.py puts it together, and nobody else
        self,
        settings: Settings,
        plan: Plan,
        files: StateFiles,
        notifier: Notifier,
        clock: Clock,
        reactor: Any,
        options: RunOptions,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.exit_code: int = ExitCode.OK
        self._instance = Instance(
            settings,
            plan,
            files,
            notifier,
            clock,
            reactor,
            self,
            halt=self._halted,
            late=self._late,
        )
        self._reactor = reactor
        self._lane_of: LaneFinder | None = None
        self._tasks = SupervisedTasks(self._task_failed)
        self._building: asyncio.Task[None] | None = None
        gate = self._instance.gate
        self._startup = Startup(plan, files.flight, self._waits_for_dependency, gate)
        gate.listen(self._gate_changed)
        self._start_end = 0.0
        self._last_turns = 0.0
        self._stopped: defer.Deferred[None] = defer.Deferred()
        self._reloader = Reloader(self._instance, options, self._tasks.spawn)
        self._signals = Signals(reactor, self._told_to_stop, self._reloader.begin)
        self._status_timer = task.LoopingCall(self._look)
        self._watchdog = Watchdog(self._instance)
        self._retention_timer = task.LoopingCall(lambda: self._tasks.spawn(self._expire()))

    def startService(self) -> None:  # noqa: N802 -- Twisted's name
        """Start: build the handler, connect, consume. Call it while the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        self._signals.catch()
        self._reactor.addSystemEventTrigger("before", "shutdown", self._on_shutdown)
        self._status_timer.start(STATUS_INTERVAL)
        self._watchdog.start()
        self._retention_timer.start(RETENTION_INTERVAL)
        now, instance = self._instance.clock.monotonic(), self._instance
        self._start_end = now + instance.plan.framework.start_timeout
        self._instance.deadline.start(lambda: self._start_end)
        self._building = self._tasks.spawn(self._build())

    # What the session reports.

    def delivered(self, delivery: Delivery) -> None:
        """Let the next free slot take it, if there is room for it in memory."""
        if self._instance.read_ahead.takes(delivery):
            self._instance.dispatcher.put(delivery)

    def voided(self, generation: int) -> None:
        """Forget what no slot took yet: it will be delivered again."""
        self._instance.dispatcher.voided(generation)

    def connected(self) -> None:
        """There is a connection."""
        _log.info("connected to the broker at %s", self._instance.broker)
        self._instance.trouble = ""
        # What handlers publish with fedora_messaging.api goes over the instance's connection.
        api._twisted_service = self._instance.session.service  # noqa: SLF001
        self._happened(Event.CONNECTED)

    def subscribed(self) -> None:
        """Every queue is consumed from."""
        _log.info("consuming from %s", ", ".join(self._instance.session.queues))
        self._instance.trouble = ""
        self._happened(Event.SUBSCRIBED)

    def interrupted(self, reason: str) -> None:
        """One queue is not consumed from."""
        _log.warning("%s; subscribing again", reason)
        self._instance.trouble = reason
        self._happened(Event.INTERRUPTED)

    def lost(self, reason: str, retry_in: float) -> None:
        """There is no connection."""
        self._instance.remarks["blocked"] = ""
        if self._instance.gate.is_closed:
            _log.debug("the connection is closed: %s", reason)
        else:
            attempt = self._instance.session.service.factory.retries + 1
            self._instance.trouble = f"{reason}; attempt {attempt} in {retry_in:.0f} s"
            _log.warning(
                "no connection to the broker at %s: %s",
                self._instance.broker,
                self._instance.trouble,
            )
        self._happened(Event.LOST)

    def progressed(self) -> None:
        """What takes long goes on."""
        self._instance.news_at = self._instance.clock.monotonic()

    def blocked(self, reason: str) -> None:
        """The broker takes nothing from the connection; "" when that is over."""
        if reason:
            why = f"blocked by the broker ({reason}): it takes no message and no acknowledgement"
            _log.warning("%s", why)
        else:
            why = ""
            _log.info("the broker has ended the blocking of the connection")
        self._instance.remarks["blocked"] = why
        self._instance.say_status()

    def failed(self, fault: Fault | ConfigurationError) -> None:
        """The instance cannot go on."""
        for line in str(fault).splitlines():
            _log.error("%s", line)
        self._end(fault.exit_code, str(fault))

    # The lifecycle.

    def _happened(self, event: Event) -> None:
        self._instance.state, effects = advance(self._instance.state, event)
        self._instance.news_at = self._instance.clock.monotonic()
        for effect in effects:
            self._execute(effect)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Effect.CONNECT:
                self._connect()
            case Effect.ANNOUNCE_READY:
                self._instance.deadline.stop()
                self._instance.announce_ready()
            case Effect.ANNOUNCE_STATUS:
                self._instance.say_status()
            case Effect.PAUSE:
                self._instance.session.pause()
                self._instance.dispatcher.give_back_waiting()
            case Effect.RESUME:
                self._instance.session.resume()
            case Effect.DRAIN:
                if self.exit_code == ExitCode.OK:
                    self._instance.trouble = ""
                self._instance.gate.close()
                self._begin_drain()
            case Effect.CUT_SHORT:
                self._instance.deadline.stop()
                cut_short(self._instance)
                self._tasks.cancel()
                self._last_turns = LAST_TURNS
            case Effect.EXIT:
                self._exit()

    def _end(self, exit_code: int, trouble: str) -> None:
        """Stop with the first exit code that is not 0."""
        if self.exit_code == ExitCode.OK:
            self.exit_code = exit_code
            self._instance.trouble = trouble
        self._happened(Event.FAULT)

    def _told_to_stop(self, number: signal.Signals) -> None:
        if self._instance.state is State.DRAINING:
            self.exit_code = self.exit_code or 128 + number
        is_first = not self._instance.gate.is_closed
        _log.info("%s: stopping", number.name)
        self._happened(Event.STOP)
        if is_first and self._instance.running:
            again = "Ctrl-C" if number is signal.SIGINT else number.name
            how = "to stop now: what runs then is given back, and runs again"
            _log.info("%s; %s again %s", self._instance.status(), again, how)

    def _on_shutdown(self) -> defer.Deferred[None] | None:
        """Somebody else stopped the reactor; drain first."""
        if self._instance.state is State.STOPPED:
            return None
        if not self._instance.gate.is_closed:
            self._happened(Event.STOP)
        return self._stopped

    # Starting.

    async def _build(self) -> None:
        try:
            built = await self._startup.run()
        except ConfigurationException as error:
            self.failed(ConfigurationError(Problem("consumer_config", error.message)))
        except BaseException as error:  # noqa: BLE001 -- the author's code, and its sys.exit()
            reraise_own_cancellation(error)
            _log.error("the handler cannot be set up", exc_info=error)
            what = f"the handler cannot be set up: {type(error).__name__}: {error}"
            self._end(ExitCode.HANDLER_FAILED, what)
        else:
            if built is not None:
                handler, self._instance.executor = built
                self._lane_of = lane_finder(self._instance.plan, handler)
                # Its __init__ and setup may have taken them.
                self._signals.catch()
                self._happened(Event.BUILT)
        finally:
            self._instance.is_built.set()

    def _waits_for_dependency(self, what: str) -> None:
        self._instance.trouble = what
        self._instance.say_status()

    def _connect(self) -> None:
        assert self._instance.executor is not None  # noqa: S101 -- the table: CONNECT follows BUILT
        self._instance.dispatcher.start(self._instance.executor, self._lane_of, self._tasks.watch)
        self._instance.memory_relief.start()
        self._monitor()
        try:
            self._listen()
        except (twisted_error.CannotListenError, OSError) as error:
            _log.warning("no replay while this runs: the control socket: %s", error)
        try:
            self._instance.session.service.setServiceParent(self)  # type: ignore[no-untyped-call]
        except twisted_error.CannotListenError as error:
            what = f"cannot listen: {error.socketError}"
            self.failed(ConfigurationError(Problem("monitoring.port", what, "use another port")))

    def _monitor(self) -> None:
        monitoring = self._instance.settings.monitoring
        if monitoring is not None:
            service = self._instance.session.service
            monitor_service(service, address=monitoring.address, port=monitoring.port)

    def _listen(self) -> None:
        directory = self._instance.files.directory or runtime_directory()
        if directory is None:
            _log.warning("no command reaches this instance: there is no $RUNTIME_DIRECTORY")
            return
        path = control_socket(directory)
        path.unlink(missing_ok=True)
        store, dispatcher = self._instance.files.store, self._instance.dispatcher
        responder = Responder(
            store, dispatcher.replay, dispatcher.dropped, dispatcher.look, self._instance.report
        )
        factory = ControlFactory({**responder.by_type, Reload: self._reloader.respond})
        server = UNIXServer(str(path), factory, mode=0o600)  # type: ignore[no-untyped-call]
        server.setServiceParent(self)  # type: ignore[no-untyped-call]

    # The reports of the dispatcher and of the gate.

    def _halted(self, halt: Halt) -> None:
        self._end(halt.exit_code, halt.reason)

    def _gate_changed(self, _event: GateEvent, reason: Reason | None) -> None:
        if reason is None or Entry.CONSUME not in SHUTS[reason]:
            return
        self._instance.trouble = self._instance.gate.why_not_consuming
        if self._instance.trouble:
            self._happened(Event.PAUSE)
        else:
            connected = self._instance.session.is_connected
            self._happened(Event.RESUME if connected else Event.RESUME_OFFLINE)

    # Stopping.

    def _begin_drain(self) -> None:
        drain = Drain(self._instance, self._start_end, self._teardown_failed)
        self._instance.awaited = lambda: drain.awaited
        # systemd counts the time of the stop from here on, also where nobody told us to.
        self._instance.deadline.stop()
        self._instance.notifier.stopping(self._instance.status())
        self._instance.deadline.start(drain.end)
        self._tasks.spawn(self._drain(drain))

    async def _drain(self, drain: Drain) -> None:
        try:
            await drain.run(self._building)
        finally:
            self._happened(Event.DRAINED)

    def _late(self) -> None:
        """The start, or the drain, has had its time."""
        if self._instance.gate.is_closed:
            what = f"gave up waiting for {self._instance.awaited()}"
            _log.error("%s", what)
            if self.exit_code == ExitCode.OK:
                self.exit_code, self._instance.trouble = ExitCode.HANDLER_FAILED, what
            self._happened(Event.DEADLINE)
        else:
            why = f"not started within {text(self._instance.plan.framework.start_timeout)}"
            what = f"{why} (start_timeout): {self._instance.status()}"
            _log.error("%s", what)
            self._end(ExitCode.TEMPORARY, what)

    def _teardown_failed(self, error: BaseException) -> None:
        self._end(ExitCode.HANDLER_FAILED, f"teardown failed: {error}")

    def _exit(self) -> None:
        self._status_timer.stop()
        self._instance.deadline.stop()
        self._retention_timer.stop()
        self._watchdog.stop()
        self._instance.say_status()
        self._instance.log.close()
        _log.info(
            "stopped with exit code %d; %s",
            self.exit_code,
            counts_text(self._instance.counters.snapshot()),
        )
        self._let_go()
        asyncio.get_running_loop().call_later(self._last_turns, self._stop_reactor)

    def _let_go(self) -> None:
        """Keep nothing of the author's, and nothing that is alive for longer than the instance."""
        if self._instance.executor is not None:
            self._instance.executor.close()
        api._twisted_service = None  # noqa: SLF001
        is_cut_short = self._last_turns > 0
        patience = min(self._instance.plan.limits.patience, PATIENCE)
        self.process_exit = ProcessExit(
            self.exit_code, 0.0 if is_cut_short else patience, self._instance.notifier
        )
        self._signals.finish(self.process_exit.now)

    def _stop_reactor(self) -> None:
        self._stopped.callback(None)
        with contextlib.suppress(twisted_error.ReactorNotRunning):
            self._reactor.stop()

    # Helpers.

    def _look(self) -> None:
        self._signals.catch()
        self._instance.say_status()

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
            # By _cut_short, and not by the author's code.
            return
        _log.critical("please report this defect of consumer_framework", exc_info=error)
        self._end(ExitCode.UNEXPECTED, f"internal error: {error!r}")
