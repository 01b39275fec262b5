# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of one instance, and what it says of itself."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.amqp import Channels, Session
from consumer_framework.core.errors import StoreError
from consumer_framework.core.gate import Gate
from consumer_framework.core.lifecycle import State
from consumer_framework.core.limits import count_of, limit_of
from consumer_framework.core.ports import Observers
from consumer_framework.core.stats import Counters, Progress
from consumer_framework.runtime.control.schema import Counts, StatusReport
from consumer_framework.runtime.observe.log import DeliveryLog
from consumer_framework.runtime.observe.status import Facts, status_line

from .deadline import Deadline
from .dispatcher import Dispatcher
from .memory_relief import MemoryRelief
from .read_ahead import ReadAhead

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.adapters.amqp import Listener
    from consumer_framework.adapters.executor import Executor
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Halt
    from consumer_framework.core.ports import Clock, Notifier
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.settings import Settings

    from .state_files import StateFiles


class Instance:
    """What the runner, and those who work for it, run.

    Args:
        settings: The whole configuration.
        plan: The handler to be made, and how its failures are answered.
        files: The store and the flight recorder.
        notifier: Told when the instance is ready, what it does, and that it stops.
        clock: For the memory of redeliveries.
        reactor: Twisted's asyncio reactor.
        listener: Told of everything that happens on the connection.
        halt: Called when a delivery halts the instance.
        late: Called when what the instance waits for has had its time.

    Attributes:
        gate: Says whether work is taken.
        counters: Counts runs and settles.
        log: Logs settles.
        session: The connection and its subscriptions.
        dispatcher: The deliveries, from their arrival to their settle.
        executor: Runs the handler; None until that is set up.
        state: Where the instance is in its life; the runner changes it.
        news_at: When something last happened to it, in seconds of *clock*'s monotonic time.
        trouble: Why it does not consume, or why it stopped; "" for no reason.
        deadline: Bounds the start and the drain.
        awaited: Says what the drain waits for.
        was_ready: Whether it ever consumed from every queue.
        is_built: Set once the handler is set up, or will not be any more.
        is_reloading: Whether the service manager waits for the end of a reload.
        remarks: What else the status says, by what it is about; "" for nothing.
        memory_relief: Lowers slots and prefetch while memory is short.
        read_ahead: Bounds the bytes that wait in memory.
        lag: How many messages the broker had ready in its queues, None where it was not asked.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- it is put together here, and nowhere else
        self,
        settings: Settings,
        plan: Plan,
        files: StateFiles,
        notifier: Notifier,
        clock: Clock,
        reactor: Any,
        listener: Listener,
        halt: Callable[[Halt], None],
        late: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.files = files
        self.notifier = notifier
        self.clock = clock
        self.reactor = reactor
        self.gate = Gate()
        self.state = State.BUILDING
        self.news_at = clock.monotonic()
        self.trouble = ""
        self.executor: Executor | None = None
        self.counters = Counters()
        self.log = DeliveryLog(clock, reactor.callLater)
        self.deadline = Deadline(clock.monotonic, notifier, self.say_status, late)
        self.awaited: Callable[[], str] = str
        self.memory_relief = MemoryRelief(self)
        self.lag: int | None = None
        self.was_ready = False
        self.is_built = asyncio.Event()
        self.is_reloading = False
        self.remarks: dict[str, str] = {}
        if not files.store.keeps:
            self.remarks["store"] = "no store: nothing is deferred or quarantined"
        self._progress = Progress(clock.monotonic())
        self._has_proven_itself = False
        self._last_kept = (0, 0)
        channels = Channels(lambda flush: asyncio.get_running_loop().call_soon(flush))
        self.session = Session(
            settings,
            plan.prefetch_count,
            channels,
            listener,
            reactor,
            snapshot=self.counters.snapshot,
        )
        self.read_ahead = ReadAhead(self, channels)
        self.dispatcher = Dispatcher(
            plan,
            channels,
            files.store,
            files.flight,
            Observers(self.counters, self.log),
            clock,
            reactor,
            self.gate,
            halt=halt,
        )
        self.dispatcher.limit_of = self._delivery_limit
        self.session.take_always(self.dispatcher.is_near_limit)

    def _delivery_limit(self, delivery: Delivery) -> int | None:
        queue = self.settings.queues.get(delivery.queue)
        client = self.session.client
        return limit_of(
            queue.arguments if queue is not None else {},
            client.broker_version if client is not None else None,
            is_quorum=count_of(delivery) is not None,
        )

    @property
    def broker(self) -> str:
        """``HOST:PORT``."""
        return self.session.service.host

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

    def status(self) -> str:
        """The line that ``systemctl status`` shows."""
        counts, now = self.counters.snapshot(), self.clock.monotonic()
        deferred, quarantined = self._kept()
        self._progress.look(counts.acked, now)
        facts = Facts(
            broker=self.broker,
            queues=len(self.session.queues),
            counts=counts,
            rate=self._progress.rate(now),
            held=self.dispatcher.held,
            deferred=deferred,
            due=self._due(),
            quarantined=quarantined,
            lag=self.lag,
            up=self._progress.up(now),
            trouble=self.trouble,
            awaited=self.awaited(),
            left=self.deadline.left,
            strain=self.memory_relief.strain,
        )
        return "; ".join([status_line(self.state, facts), *filter(None, self.remarks.values())])

    def announce_ready(self) -> None:
        """Tell the service manager that it consumes; in a reload that comes at its end."""
        self.was_ready = True
        if self.is_reloading:
            self.say_status()
        else:
            self.notifier.ready(self.status())

    def _kept(self) -> tuple[int, int]:
        """How many messages are deferred, and how many wait for an operator."""
        # At the end the store is closed; one that cannot be read is what others tell of.
        if self.state is not State.STOPPED:
            with suppress(StoreError):
                stats = self.files.store.stats()
                self._last_kept = stats.deferred, stats.quarantined + stats.replaying
        return self._last_kept

    def _due(self) -> int:
        """How many deferred messages are due, where those are many; 0 otherwise."""
        if self.state is not State.STOPPED and self.dispatcher.is_behind:
            with suppress(StoreError):
                return self.files.store.count_due(self.clock.time())
        return 0

    def say_status(self) -> None:
        """Tell the service manager, if there is news."""
        self.notifier.status(self.status())
        if not self._has_proven_itself and self._progress.is_proven(self.clock.monotonic()):
            self._has_proven_itself = True
            self.notifier.restart_reset()

    def report(self) -> StatusReport:
        """Report the state of the instance, without the numbers of its store."""
        now = self.clock.monotonic()
        return StatusReport(
            pid=os.getpid(),
            state=self.state.name.lower(),
            status=self.status(),
            trouble=self.trouble,
            remarks=tuple(filter(None, self.remarks.values())),
            broker=self.broker,
            queues=tuple(self.session.queues),
            held=self.dispatcher.held,
            lag=self.lag,
            rate=round(self._progress.rate(now), 3),
            up=round(self._progress.up(now)),
            counts=Counts(**asdict(self.counters.snapshot()), running=len(self.running)),
        )
