# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one instance: executes what the lifecycle table says, and tells it what happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedora_messaging import api
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.twisted.monitor import monitor_service
from twisted.application.internet import UNIXServer
from twisted.application.service import MultiService
from twisted.internet import defer, task
from twisted.internet import error as twisted_error

from consumer_framework.adapters import codec
from consumer_framework.adapters.amqp import Channels, Session
from consumer_framework.adapters.executor import Executor
from consumer_framework.core.errors import (
    ConfigurationError,
    ExitCode,
    Fault,
    JournalError,
    Problem,
)
from consumer_framework.core.lifecycle import Effect, Event, State, advance
from consumer_framework.core.status import counts_text, status_line

from .control import ControlFactory
from .lane import lane_of
from .orders import Orders
from .recorder import LogRecorder, describe
from .signals import Signals
from .slots import Slots
from .stores import control_socket
from .tasks import Tasks

if TYPE_CHECKING:
    import signal
    from collections.abc import Coroutine

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Halt
    from consumer_framework.core.ports import Clock, Notifier
    from consumer_framework.core.settings import Settings

    from .lane import LaneOf
    from .plan import Plan
    from .stores import Stores

_log = logging.getLogger(__name__)

# Seconds between two looks at whether `systemctl status` should say something new.
STATUS_INTERVAL = 5.0
# Seconds between two looks at what in the quarantine is too old.
RETENTION_INTERVAL = 3600.0


class Runner(MultiService):
    """One instance, from the construction of its handler to the exit code.

    Args:
        settings: The whole configuration.
        plan: The handler to be made, and how its failures are answered.
        stores: The journal and the flight recorder; closed at the end.
        notifier: Told when the instance is ready, what it does, and that it stops.
        clock: For the memory of redeliveries.
        reactor: Twisted's asyncio reactor; stopped when the instance is.

    Attributes:
        exit_code: What the process should exit with, once the reactor has stopped.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- app.py puts it together, and nobody else
        self,
        settings: Settings,
        plan: Plan,
        stores: Stores,
        notifier: Notifier,
        clock: Clock,
        reactor: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.exit_code: int = ExitCode.OK
        self._settings = settings
        self._plan = plan
        self._stores = stores
        self._notifier = notifier
        self._clock = clock
        self._reactor = reactor
        self._state = State.BUILDING
        self._trouble = ""
        self._executor: Executor | None = None
        self._lane_of: LaneOf | None = None
        self._tasks = Tasks(self._task_failed)
        self._building: asyncio.Task[None] | None = None
        self._stopped: defer.Deferred[None] = defer.Deferred()
        self._signals = Signals(reactor, self._told_to_stop)
        self._recorder = LogRecorder(clock)
        self._channels = Channels(lambda flush: asyncio.get_running_loop().call_soon(flush))
        self._session = Session(
            settings,
            plan.prefetch_count,
            self._channels,
            self,
            reactor,
            snapshot=self._recorder.snapshot,
        )
        self._slots = Slots(
            plan,
            self._channels,
            stores.journal,
            stores.flight,
            self._recorder,
            clock,
            reactor,
            halt=self._halted,
            pause=self._pause,
            resume=self._resume,
        )
        self._status_timer = task.LoopingCall(self._say_status)
        self._retention_timer = task.LoopingCall(lambda: self._tasks.spawn(self._expire()))

    def startService(self) -> None:  # noqa: N802 -- Twisted's name
        """Start: build the handler, connect, consume. Call it while the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        self._signals.catch()
        self._reactor.addSystemEventTrigger("before", "shutdown", self._on_shutdown)
        # What handlers publish with fedora_messaging.api goes over the instance's connection.
        api._twisted_service = self._session.service  # noqa: SLF001
        self._status_timer.start(STATUS_INTERVAL)
        self._retention_timer.start(RETENTION_INTERVAL)
        self._building = self._tasks.spawn(self._build())

    # What the session reports.

    def delivered(self, delivery: Delivery) -> None:
        """Let the next free slot take it."""
        self._slots.put(delivery)

    def voided(self, generation: int) -> None:
        """Forget what no slot took yet: it will be delivered again."""
        self._slots.voided(generation)

    def connected(self) -> None:
        """There is a connection."""
        _log.info("connected to the broker at %s", self._session.service.host)
        self._trouble = ""
        self._happened(Event.CONNECTED)

    def subscribed(self) -> None:
        """Every queue is consumed from."""
        _log.info("consuming from %s", ", ".join(self._session.queues))
        self._trouble = ""
        self._happened(Event.SUBSCRIBED)

    def interrupted(self, reason: str) -> None:
        """One queue is not consumed from."""
        _log.warning("%s; subscribing again", reason)
        self._trouble = reason
        self._happened(Event.INTERRUPTED)

    def lost(self, reason: str, retry_in: float) -> None:
        """There is no connection."""
        if self._state in (State.FAILING, State.DRAINING, State.STOPPED):
            _log.debug("the connection is closed: %s", reason)
        else:
            self._trouble = f"{reason}; next attempt in {retry_in:.0f} s"
            _log.warning(
                "no connection to the broker at %s: %s", self._session.service.host, self._trouble
            )
        self._happened(Event.LOST)

    def failed(self, fault: Fault | ConfigurationError) -> None:
        """The instance cannot go on."""
        for line in str(fault).splitlines():
            _log.error("%s", line)
        self._end(fault.exit_code, str(fault))

    # The lifecycle.

    def _happened(self, event: Event) -> None:
        self._state, effects = advance(self._state, event)
        for effect in effects:
            self._execute(effect)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Effect.CONNECT:
                self._connect()
            case Effect.ANNOUNCE_READY:
                self._notifier.ready(self._status())
            case Effect.ANNOUNCE_STATUS:
                self._say_status()
            case Effect.PAUSE:
                self._session.pause()
                self._slots.give_back_waiting()
            case Effect.RESUME:
                self._session.resume()
            case Effect.DRAIN:
                if self.exit_code == ExitCode.OK:
                    self._trouble = ""
                self._slots.close()
                self._notifier.stopping(self._status())
                self._tasks.spawn(self._drain())
            case Effect.CUT_SHORT:
                self._cut_short()
            case Effect.EXIT:
                self._exit()

    def _end(self, exit_code: int, trouble: str) -> None:
        """Stop with the first exit code that is not 0."""
        if self.exit_code == ExitCode.OK:
            self.exit_code = exit_code
            self._trouble = trouble
        self._happened(Event.FAULT)

    def _told_to_stop(self, number: signal.Signals) -> None:
        if self._state is State.DRAINING:
            self.exit_code = self.exit_code or 128 + number
        _log.info("%s: stopping", number.name)
        self._happened(Event.STOP)

    def _on_shutdown(self) -> defer.Deferred[None] | None:
        """Somebody else stopped the reactor; drain first."""
        if self._state is State.STOPPED:
            return None
        if self._state not in (State.FAILING, State.DRAINING):
            self._happened(Event.STOP)
        return self._stopped

    # Starting.

    async def _build(self) -> None:
        try:
            handler = self._plan.factory()
            executor = Executor(handler, codec.decode, self._stores.flight, self._plan.limits)
            await executor.setup()
        except ConfigurationException as error:
            self.failed(ConfigurationError(Problem("consumer_config", error.message)))
        except BaseException as error:  # noqa: BLE001 -- the author's code, and its sys.exit()
            _reraise_own_cancellation(error)
            _log.error("the handler cannot be set up", exc_info=error)
            what = f"the handler cannot be set up: {type(error).__name__}: {error}"
            self._end(ExitCode.HANDLER_FAILED, what)
        else:
            self._executor = executor
            self._lane_of = lane_of(self._plan, handler)
            self._happened(Event.BUILT)

    def _connect(self) -> None:
        assert self._executor is not None  # noqa: S101 -- the table: CONNECT follows BUILT
        for worker in self._slots.start(self._executor, self._lane_of):
            self._tasks.watch(worker)
        self._monitor()
        try:
            self._listen()
        except twisted_error.CannotListenError as error:
            _log.warning(
                "no replay while this runs: the control socket %s: %s",
                error.port,
                error.socketError,
            )
        try:
            self._session.service.setServiceParent(self)  # type: ignore[no-untyped-call]
        except twisted_error.CannotListenError as error:
            what = f"cannot listen: {error.socketError}"
            self.failed(ConfigurationError(Problem("monitoring.port", what, "use another port")))

    def _monitor(self) -> None:
        monitoring = self._settings.monitoring
        if monitoring is not None:
            service = self._session.service
            monitor_service(service, address=monitoring.address, port=monitoring.port)

    def _listen(self) -> None:
        path = control_socket(self._stores.directory)
        path.unlink(missing_ok=True)
        journal, slots = self._stores.journal, self._slots
        orders = Orders(journal, slots.replay, slots.look, self._report)
        factory = ControlFactory(orders.by_name)
        server = UNIXServer(str(path), factory, mode=0o600)  # type: ignore[no-untyped-call]
        server.setServiceParent(self)  # type: ignore[no-untyped-call]

    # What the slots report.

    def _halted(self, halt: Halt) -> None:
        self._end(halt.exit_code, halt.reason)

    def _pause(self, reason: str) -> None:
        self._trouble = reason
        self._happened(Event.PAUSE)

    def _resume(self) -> None:
        self._trouble = ""
        connected = self._session.is_connected
        self._happened(Event.RESUME if connected else Event.RESUME_OFFLINE)

    # Stopping.

    async def _drain(self) -> None:
        try:
            await self._drain_in_order()
        finally:
            self._happened(Event.DRAINED)

    async def _drain_in_order(self) -> None:
        if self._building is not None:
            await asyncio.wait([self._building])
        try:
            await self._until(self._session.cancel())
        finally:
            # Whatever the broker says: what runs finishes, and the author's code is told.
            await self._finish()

    async def _finish(self) -> None:
        given_back = self._slots.give_back_waiting() + self._slots.give_back_held()
        running = len(self._running)
        _log.info("stopping: %d given back to the broker, %d running", given_back, running)
        await self._slots.finish()
        # What was running may have been held meanwhile.
        self._slots.give_back_held()
        await self._teardown()
        await self._until(self._session.close())
        self._stores.close()

    async def _teardown(self) -> None:
        if self._executor is None:
            return
        try:
            await self._executor.teardown()
        except BaseException as error:  # noqa: BLE001 -- the author's code
            _reraise_own_cancellation(error)
            _log.error("the handler's teardown failed", exc_info=error)
            self._end(ExitCode.HANDLER_FAILED, f"teardown failed: {error}")
        self._executor.close()

    def _cut_short(self) -> None:
        for delivery in self._running:
            _log.warning(
                "%s is left in its handler; the broker will deliver it again", describe(delivery)
            )
        self._session.abort()
        self._tasks.cancel()

    def _exit(self) -> None:
        self._status_timer.stop()
        self._retention_timer.stop()
        self._signals.release()
        self._say_status()
        _log.info(
            "stopped with exit code %d; %s", self.exit_code, counts_text(self._recorder.snapshot())
        )
        self._stopped.callback(None)
        with contextlib.suppress(twisted_error.ReactorNotRunning):
            self._reactor.stop()

    # Helpers.

    def _status(self) -> str:
        return status_line(
            self._state,
            self._session.service.host,
            self._session.queues,
            self._recorder.snapshot(),
            self._trouble,
            running=len(self._running),
        )

    @property
    def _running(self) -> tuple[Delivery, ...]:
        """The deliveries that are in the handler."""
        return self._executor.running if self._executor is not None else ()

    def _report(self) -> dict[str, Any]:
        """What the control socket says of the instance; see docs/reference/cli.md."""
        return {
            "pid": os.getpid(),
            "state": self._state.name.lower(),
            "status": self._status(),
            "trouble": self._trouble,
            "broker": self._session.service.host,
            "queues": list(self._session.queues),
            "held": self._slots.held,
            "counts": {**asdict(self._recorder.snapshot()), "running": len(self._running)},
        }

    async def _expire(self) -> None:
        try:
            expired = await self._stores.journal.expire(self._clock.time())
        except JournalError as error:
            _log.warning("what is too old cannot be exported, and is kept: %s", error)
        else:
            if expired.rows:
                _log.warning("%d quarantined messages expired to %s", expired.rows, expired.file)

    def _say_status(self) -> None:
        self._notifier.status(self._status())

    def _task_failed(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and self._state is State.STOPPED:
            # By _cut_short, and not by the author's code.
            return
        _log.critical("please report this defect of consumer_framework", exc_info=error)
        self._end(ExitCode.UNEXPECTED, f"internal error: {error!r}")

    async def _until(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Await a coroutine of the session's, which awaits Deferreds, in an asyncio task."""
        loop = asyncio.get_running_loop()
        await defer.Deferred.fromCoroutine(coroutine).asFuture(loop)


def _reraise_own_cancellation(error: BaseException) -> None:
    """Let a cancellation of this task through; one that comes out of a handler is its failure."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
