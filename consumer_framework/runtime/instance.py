# SPDX-License-Identifier: GPL-2.0-or-later
"""One instance: its parts, the state of its life, and its reactions to the broker.

All parts are made here, in one place. They share the instance: a reload puts other settings and
another plan into it, and every part reads them there. The table in :mod:`.lifecycle` decides the
next state after an event. The instance carries out the effects that concern its parts; the
:class:`.Runner` adds those that concern the process.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedora_messaging import api

from consumer_framework.adapters.amqp import Channels, Session
from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault
from consumer_framework.core.gate import SHUTS, Gate, GateEntry
from consumer_framework.core.lifecycle import Effect, Event, State, advance
from consumer_framework.core.limits import delivery_count, delivery_limit
from consumer_framework.core.ports import Observers, StateChanged
from consumer_framework.core.stats import Counters
from consumer_framework.core.text import duration_text
from consumer_framework.runtime.observe.log import DeliveryLog
from consumer_framework.runtime.observe.status import StatusReporter, counts_text

from .deadline import Deadline
from .dispatcher import Dispatcher, Ports
from .health import HealthMonitor
from .memory_relief import MemoryRelief
from .publications import Publications
from .read_ahead import ReadAhead

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from consumer_framework.adapters.executor import Executor
    from consumer_framework.adapters.tracing import Tracing
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Halt
    from consumer_framework.core.gate import GateEvent, Reason
    from consumer_framework.core.ports import Clock, Notifier, Observer
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.settings import Settings

    from .drain import Drain
    from .state_files import StateFiles

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The things outside an instance that it works with.

    Attributes:
        files: The store and the flight recorder; a drain closes them.
        notifier: The service manager, which is told that the instance is ready, works and stops.
        clock: The time.
        reactor: Twisted's asyncio reactor.
        observer: A further observer; None for none.
        traces: Traces runs and settles; None for no traces.
    """

    files: StateFiles
    notifier: Notifier
    clock: Clock
    reactor: Any
    observer: Observer | None = None
    traces: Tracing | None = None


class Instance:
    """The parts and the state of one instance.

    It is the listener of its session: the methods from :meth:`delivered` to :meth:`failed` report
    events of the connection.

    Args:
        settings: The whole configuration.
        plan: The handler to be made, and how its failures are answered.
        surroundings: The things outside.

    Attributes:
        gate: Says whether work is taken.
        counters: Counts runs, settles and pauses.
        log: Logs settles, pauses and states.
        observer: Both of these.
        session: The connection and its subscriptions.
        dispatcher: Has the deliveries from their arrival to their settle.
        memory_relief: Lowers slots and prefetch while memory is short.
        read_ahead: Bounds the bytes that wait in memory.
        deadline: Bounds the start and the drain.
        publications: Stores and sends the messages that handlers publish.
        health: Judges its condition, its lag in time and its next loss.
        status: Describes the instance for the service manager and for operators.
        executor: Runs the handler; None until that is set up.
        drain: The drain that is under way; None before.
        state: Where the instance is in its life.
        traces: Traces runs and settles; None for no traces.
        exit_code: The exit code of the process, once the instance is stopped.
        progress_at: When something last happened to it, in seconds of *clock*'s monotonic time.
        trouble: Why it does not consume, or why it stopped; "" for no reason.
        remarks: Further parts of the status line, by their subject; "" for nothing.
        was_ready: Whether it ever consumed from every queue.
        is_built: Set once the handler is set up, or never will be.
        is_reloading: Whether the service manager waits for the end of a reload.
    """

    def __init__(self, settings: Settings, plan: Plan, surroundings: Surroundings) -> None:
        self.settings = settings
        self.plan = plan
        self.files, self.notifier = surroundings.files, surroundings.notifier
        self.clock, self.reactor = surroundings.clock, surroundings.reactor
        self.state = State.BUILDING
        self.exit_code: int = ExitCode.OK
        self.progress_at = self.clock.monotonic()
        self.trouble = ""
        self.remarks: dict[str, str] = {}
        if not self.files.store.keeps:
            self.remarks["store"] = "no store: nothing is deferred or quarantined"
        self.was_ready = self.is_reloading = False
        self.is_built = asyncio.Event()
        self.executor: Executor | None = None
        self.drain: Drain | None = None
        self.traces = surroundings.traces
        self._make_parts(surroundings.observer)
        self._effects: dict[Effect, Callable[[], object]] = {
            Effect.ANNOUNCE_READY: self._announce_ready,
            Effect.ANNOUNCE_STATUS: self.status.announce,
            Effect.PAUSE: self._pause,
            Effect.RESUME: self.session.resume,
        }

    def _make_parts(self, observer: Observer | None) -> None:
        clock, reactor = self.clock, self.reactor
        self.gate = Gate()
        self.counters = Counters()
        self.log = DeliveryLog(clock, reactor.callLater)
        channels = Channels(lambda flush: asyncio.get_running_loop().call_soon(flush))
        self.session = Session(
            self.settings,
            self.plan.prefetch_count,
            channels,
            self,
            reactor,
            snapshot=self.counters.snapshot,
        )
        self.memory_relief = MemoryRelief(self)
        self.read_ahead = ReadAhead(self, channels)
        others = [one for one in (self.traces, observer) if one is not None]
        self.observer = Observers(self.counters, self.log, *others)
        self.publications = Publications(self.settings, self.files.directory, clock)
        self.dispatcher = Dispatcher(
            self.plan,
            Ports(
                channels,
                self.files.store,
                self.files.flight,
                self.observer,
                clock,
                outbox=self.publications,
            ),
            reactor,
            self.gate,
            self._halted,
        )
        self.dispatcher.limit_of = self._delivery_limit
        self.session.take_always(self.dispatcher.is_near_limit)
        self.health = HealthMonitor(self)
        self.status = StatusReporter(self)
        self.deadline = Deadline(
            clock.monotonic, self.notifier, self.status.announce, self._deadline_passed
        )
        self.gate.listen(self._gate_changed)

    def _delivery_limit(self, delivery: Delivery) -> int | None:
        queue = self.settings.queues.get(delivery.queue)
        client = self.session.client
        return delivery_limit(
            queue.arguments if queue is not None else {},
            client.broker_version if client is not None else None,
            is_quorum=delivery_count(delivery) is not None,
        )

    @property
    def broker(self) -> str:
        """``HOST:PORT``."""
        return self.session.service.host

    @property
    def lag(self) -> int | None:
        """The number of messages that were ready in its queues lately; None if that is unknown."""
        samples = self.health.samples.values()
        return sum(sample.ready for sample in samples) if samples else None

    @property
    def running(self) -> tuple[Delivery, ...]:
        """The deliveries that are in the handler."""
        return self.executor.running if self.executor is not None else ()

    def resize(self, slots: int) -> None:
        """Run so many handlers at once from now on; those that run are not disturbed by fewer."""
        framework = self.plan.framework.model_copy(update={"slots": slots})
        if self.executor is not None:
            self.executor.resize(replace(self.plan.limits, slots=slots))
        self.dispatcher.resize(framework.at_once)

    # Its life.

    def add_effects(self, effects: Mapping[Effect, Callable[[], object]]) -> None:
        """Carry out *effects* of the lifecycle's table with these functions."""
        self._effects.update(effects)

    def happened(self, event: Event) -> None:
        """Go on to the state that follows from *event*, and carry out the effects."""
        before = self.state
        self.state, effects = advance(before, event)
        if self.state is not before:
            self.observer.notify(StateChanged(before, self.state))
        self.progress_at = self.clock.monotonic()
        for effect in effects:
            self._effects[effect]()

    def end(self, exit_code: int, trouble: str) -> None:
        """Stop because of *trouble*; the first exit code that is not 0 stays."""
        if self.exit_code == ExitCode.OK:
            self.exit_code = exit_code
            self.trouble = trouble
        self.happened(Event.FAULT)

    def stop(self, number: signal.Signals) -> None:
        """Stop because of a signal; a second signal cuts the drain short."""
        if self.state is State.DRAINING:
            self.exit_code = self.exit_code or 128 + number
        is_first = not self.gate.is_closed
        _log.info("%s: stopping", number.name)
        self.happened(Event.STOP)
        if is_first and self.running:
            again = "Ctrl-C" if number is signal.SIGINT else number.name
            how = "to stop now: what runs then is given back, and runs again"
            _log.info("%s; %s again %s", self.status.line(), again, how)

    def begin_drain(self, drain: Drain) -> None:
        """Take no more work, and announce the stop, whose time *drain* bounds."""
        if self.exit_code == ExitCode.OK:
            self.trouble = ""
        self.health.stop()
        self.gate.close()
        self.drain = drain
        # systemd counts the time of the stop from here on, whoever ordered it.
        self.deadline.stop()
        self.notifier.stopping(self.status.line())
        self.deadline.start(drain.end)

    def close(self) -> None:
        """Tell the end, and keep nothing of the author's."""
        self.deadline.stop()
        self.status.announce()
        self.log.close()
        counts = counts_text(self.counters.snapshot())
        _log.info("stopped with exit code %d; %s", self.exit_code, counts)
        if self.executor is not None:
            self.executor.close()
        api._twisted_service = None  # noqa: SLF001

    def _halted(self, halt: Halt) -> None:
        self.end(halt.exit_code, halt.reason)

    def _deadline_passed(self) -> None:
        if self.gate.is_closed:
            what = f"gave up waiting for {self.drain.awaited if self.drain else ''}"
            _log.error("%s", what)
            if self.exit_code == ExitCode.OK:
                self.exit_code, self.trouble = ExitCode.HANDLER_FAILED, what
            self.happened(Event.DEADLINE)
        else:
            why = f"not started within {duration_text(self.plan.framework.start_timeout)}"
            what = f"{why} (start_timeout): {self.status.line()}"
            _log.error("%s", what)
            self.end(ExitCode.TEMPORARY, what)

    def _gate_changed(self, _event: GateEvent, reason: Reason | None) -> None:
        if reason is None or GateEntry.CONSUME not in SHUTS[reason]:
            return
        self.trouble = self.gate.why_not_consuming
        if self.trouble:
            self.happened(Event.PAUSE)
        elif self.session.is_connected:
            self.happened(Event.RESUME)
        else:
            self.happened(Event.RESUME_OFFLINE)

    def _pause(self) -> None:
        self.session.pause()
        self.dispatcher.give_back_waiting()

    def _announce_ready(self) -> None:
        self.deadline.stop()
        self.status.announce_ready()

    # The reports of the session.

    def delivered(self, delivery: Delivery) -> None:
        """Let the next free slot take it, if there is room for it in memory."""
        if self.read_ahead.takes(delivery):
            self.dispatcher.put(delivery)

    def voided(self, generation: int) -> None:
        """Forget the deliveries that no slot took yet: the broker will deliver them again."""
        self.dispatcher.voided(generation)

    def connected(self) -> None:
        """There is a connection."""
        _log.info("connected to the broker at %s", self.broker)
        self.trouble = self.gate.why_not_consuming
        if self.publications.is_direct:
            # Messages that handlers publish with `api.twisted_publish` go over this connection.
            api._twisted_service = self.session.service  # noqa: SLF001
        self.happened(Event.CONNECTED)

    def subscribed(self) -> None:
        """Every queue is consumed from."""
        _log.info("consuming from %s", ", ".join(self.session.queues))
        self.trouble = ""
        self.happened(Event.SUBSCRIBED)

    def interrupted(self, reason: str) -> None:
        """One queue is not consumed from."""
        _log.warning("%s; subscribing again", reason)
        self.trouble = reason
        self.happened(Event.INTERRUPTED)

    def lost(self, reason: str, retry_in: float) -> None:
        """There is no connection."""
        self.remarks["blocked"] = ""
        if self.gate.is_closed:
            _log.debug("the connection is closed: %s", reason)
        else:
            attempt = self.session.service.factory.retries + 1
            self.trouble = f"{reason}; attempt {attempt} in {retry_in:.0f} s"
            _log.warning("no connection to the broker at %s: %s", self.broker, self.trouble)
        self.happened(Event.LOST)

    def progressed(self) -> None:
        """A long operation goes on."""
        self.progress_at = self.clock.monotonic()

    def blocked(self, reason: str) -> None:
        """The broker takes nothing from the connection; "" when that is over."""
        if reason:
            why = f"blocked by the broker ({reason}): it takes no message and no acknowledgement"
            _log.warning("%s", why)
        else:
            why = ""
            _log.info("the broker has ended the blocking of the connection")
        self.remarks["blocked"] = why
        self.status.announce()

    def failed(self, fault: Fault | ConfigurationError) -> None:
        """The instance cannot go on."""
        for line in str(fault).splitlines():
            _log.error("%s", line)
        self.end(fault.exit_code, str(fault))
