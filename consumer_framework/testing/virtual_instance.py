# SPDX-License-Identifier: GPL-2.0-or-later
"""An instance between a fake broker and a fake store, whose time passes when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn

from consumer_framework.adapters import codec
from consumer_framework.adapters.executor import Executor
from consumer_framework.author.handler import is_coroutine_callable
from consumer_framework.core.gate import Gate, GateEvent
from consumer_framework.core.ports import Observers
from consumer_framework.runtime.dispatcher import Dispatcher, Ports
from consumer_framework.runtime.lanes import lane_finder
from consumer_framework.runtime.observe.log import DeliveryLog

from .fake_queue import DispositionObserver, FakeQueue
from .fakes import FakeFlightRecorder, FakeOutbox
from .virtual_time import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fedora_messaging.message import Message

    from consumer_framework.adapters.executor import Limits
    from consumer_framework.author.handler import Handler
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition, Halt
    from consumer_framework.core.gate import Reason
    from consumer_framework.core.ports import Observer, Steps
    from consumer_framework.runtime.assembly.plan import Plan

    from .fake_queue import MessageRecord
    from .fake_store import FakeStore


class Killed(BaseException):
    """The process is dead: nothing in it counts any more."""


class KillableRunner:
    """Runs the handler, or lets the process die while the handler has the message.

    Args:
        handler: The handler of the consumer.
        limits: The limits of its executor.
        flight: Has the deliveries that the handler had when the process died.
        begin: Called with each delivery that a slot begins with; True kills the process.
        gate: The gate of the instance.
        steps: Remembers the steps that the handler has done.

    Attributes:
        executor: Runs the handler.
        is_coroutine: Whether the handler is one.
        takes_batches: Whether it gets several messages at once.
        is_dying: Whether the handler was killed in the middle; its threads may not have ended yet.
        is_killed: Whether the process is dead.
    """

    def __init__(  # noqa: PLR0913 -- only the virtual instance makes one
        self,
        handler: Handler,
        limits: Limits,
        flight: FakeFlightRecorder,
        begin: Callable[[Delivery], bool],
        gate: Gate,
        *,
        steps: Steps,
    ) -> None:
        self.executor = Executor(handler, self._decode, self, limits, gate, steps=steps)
        self.is_coroutine = is_coroutine_callable(handler.call_batch or handler.call)
        self.takes_batches = handler.call_batch is not None
        self.is_dying = self.is_killed = False
        self._flight = flight
        self._begin = begin

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the handler; never return if that kills the process."""
        with contextlib.suppress(Killed):
            outcome = await self.executor.run(delivery)
            if not self.is_dying:
                return outcome
        self.is_killed = True
        never: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        return await never

    def stop(self) -> None:
        """As :meth:`.Executor.stop`."""
        self.executor.stop()

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        """As :meth:`.Executor.withdraw`."""
        return self.executor.withdraw(which)

    @property
    def is_quick(self) -> bool:
        """As :attr:`.Executor.is_quick`."""
        return self.executor.is_quick

    def took_off(self, delivery: Delivery) -> int:
        """As a flight recorder's; a dead process begins with nothing."""
        if self.is_killed or self.is_dying:
            raise Killed
        return self._flight.took_off(delivery)

    def landed(self, place: int) -> None:
        """As a flight recorder's; in a dead process nothing ends."""
        if not self.is_dying:
            self._flight.landed(place)

    def crashes_of(self, delivery: Delivery) -> int:
        """As a flight recorder's."""
        return self._flight.crashes_of(delivery)

    def has_hung(self, delivery: Delivery) -> bool:
        """As a flight recorder's."""
        return self._flight.has_hung(delivery)

    def route_of(self, delivery: Delivery) -> str:
        """As a flight recorder's."""
        return self._flight.route_of(delivery)

    def forget(self, delivery: Delivery) -> None:
        """As a flight recorder's."""
        self._flight.forget(delivery)

    def _decode(self, delivery: Delivery) -> Message:
        if self._begin(delivery):
            self.is_killed = True
            raise Killed
        return codec.decode(delivery)


# Seconds after which a broker delivers a returned message again.
ROUND_TRIP = 0.01
# A loop that takes no time would never end; it is a defect of the framework.
_MOST_STEPS = 1_000_000


class VirtualInstance:
    """Runs the dispatcher of an instance between a fake queue, a fake store, and virtual time.

    Args:
        plan: The plan of the instance.
        store: The store, which outlives the processes of the instance.
        chance: Returns the next random number, from 0 to 1.
        patience: Real seconds to wait for a coroutine that awaits the world outside; None for as
            long as it takes, while time passes as in that world.
        outbox: The outbox, which outlives them, too.

    Attributes:
        queue: The queue, which outlives the processes, too.
        dispositions: Notes the disposition of each message.
        time: The time, once the instance is opened.
        kills: By message id, how often the process still dies with the message.
        halted: The disposition that stopped the instance; None while it runs.
        plan: The plan, until the instance is started.
        observers: Told of everything, before the dispositions are noted, once it is started.
    """

    def __init__(
        self,
        plan: Plan,
        store: FakeStore,
        chance: Callable[[], float],
        patience: float | None,
        outbox: FakeOutbox | None = None,
    ) -> None:
        self.queue = FakeQueue()
        self.dispositions = DispositionObserver(self.queue, store)
        self.time: VirtualTime
        self.kills: Counter[str | None] = Counter()
        self.halted: Halt | None = None
        self._gate = Gate()
        self.plan = plan
        self.observers: tuple[Observer, ...] = ()
        self._store = store
        self._outbox = outbox or FakeOutbox()
        self._chance = chance
        self._patience = patience
        self._flight = FakeFlightRecorder(plan.framework.at_once)
        self._runner: KillableRunner
        self._is_built = False
        self._dispatcher: Dispatcher
        self._workers: list[asyncio.Task[None]] = []
        self._pump_call: Any = None
        self._awaited: asyncio.Task[None] | None = None

    @property
    def paused(self) -> str:
        """The reasons for which the instance consumes nothing; "" while it consumes."""
        return self._gate.why_not_consuming

    # Starting and stopping.

    def open(self) -> None:
        """Let time begin, at the machine's."""
        keeps_pace = self._patience is None
        self.time = VirtualTime(time.time(), self._patience_now, keeps_pace=keeps_pace)
        self.time.ignored = (Killed,)

    def start(self) -> None:
        """Start a process; an exception of the consumer's own ``setup`` is raised here."""
        self.halted = None
        self._store.begin_process()
        self._gate = Gate()
        self._gate.listen(self._gate_changed)
        self._dispatcher = self._make_dispatcher()
        self._await(self._build())
        self.settle_down()

    def stop(self, *, teardown: bool) -> None:
        """Stop the process without a drain, with or without the consumer's *teardown*."""
        self._close()
        self._cancel_everything()
        if teardown:
            self._await(self._runner.executor.teardown())
        self._runner.executor.close()

    def crash(self) -> None:
        """Kill the process, as by SIGKILL, and start a new one."""
        self._flight = self._flight.crash()
        self._close()
        self._cancel_everything()
        self._runner.executor.close()
        self.queue.cut()
        self.start()

    @property
    def in_flight(self) -> tuple[Delivery, ...]:
        """The deliveries that handlers have."""
        return tuple(self._flight.in_flight.values())

    @property
    def takes_batches(self) -> bool:
        """True if the handler gets several messages at once."""
        return self._runner.takes_batches

    @property
    def is_dying(self) -> bool:
        """True from :meth:`die` to the start of the next process."""
        return self._runner.is_dying

    def is_alive(self, delivery: Delivery) -> bool:
        """Tell whether the present process has *delivery*, and not one that died."""
        return not delivery.generation or self.queue.is_open(delivery)

    def die(self) -> NoReturn:
        """Kill the process from within its handler: nothing that the handler does now counts.

        A new process is started as soon as the handler has ended.

        Raises:
            Killed: Always.
        """
        self._runner.is_dying = True
        raise Killed

    def restart(self) -> None:
        """Stop the process in good order, as by SIGTERM, and start a new one."""
        self._drain()
        self._await(self._runner.executor.teardown())
        self._cancel_everything()
        self._runner.executor.close()
        self.queue.cut()
        self.start()

    # While it runs.

    def deliver(self, record: MessageRecord, kills: int) -> None:
        """Deliver the message of *record*; the process dies with it *kills* times."""
        self.kills[record.delivery.message_id] = kills
        self.time.loop.call_soon(self._pump)
        self.settle_down()
        if kills:
            self.advance(2 * kills * ROUND_TRIP)

    def offer(self) -> None:
        """Deliver the messages that wait in the queue."""
        self.time.loop.call_soon(self._pump)
        self.settle_down()

    def step(self) -> bool:
        """Let time pass until something is due, and let it happen; False if nothing ever is."""
        timer = self.time.next_timer()
        if timer is not None:
            self.time.step(timer)
            self.settle_down()
        return timer is not None

    @property
    def is_busy(self) -> bool:
        """True while the handler has a message."""
        return self._runner.executor.is_busy

    def replay(self, row: Delivery) -> asyncio.Task[Disposition]:
        """Begin to run a row of the store again; it runs as the instance settles down."""
        return self.time.loop.create_task(self._dispatcher.replay(row))

    def pause(self, text: str) -> None:
        """Pause as on an operator's order."""
        self._dispatcher.pause(text)
        self.settle_down()

    def resume(self) -> None:
        """End that pause."""
        self._dispatcher.resume()
        self.settle_down()

    def look(self) -> None:
        """Let the dispatcher look at the store, because somebody changed it."""
        self._dispatcher.store_changed()
        self.settle_down()

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass; due messages run."""
        left = seconds
        self.settle_down()
        for _ in range(_MOST_STEPS):
            timer = self.time.next_timer()
            if timer is None or timer > left:
                break
            left -= timer
            self.time.step(timer)
            self.settle_down()
        else:
            raise RuntimeError(f"after {_MOST_STEPS} steps there is no end of them")
        self.time.step(left)
        self.settle_down()

    def cut(self) -> None:
        """Drop the connection."""
        self._dispatcher.voided(self.queue.cut())
        self.settle_down()

    def settle_down(self) -> None:
        """Let everything happen that takes no time, and plan the next deliveries."""
        self.time.run()
        for worker in self._workers:
            if worker.done() and not worker.cancelled():
                worker.result()
        if self._runner.is_killed:
            self.crash()
        elif self.halted is not None:
            self._drain()
        elif self._has_something_to_deliver and not self._is_pumping:
            self._pump_call = self.time.reactor.callLater(ROUND_TRIP, self._pump)

    # The process.

    def _make_dispatcher(self) -> Dispatcher:
        self._log = DeliveryLog(self.time)
        observer = Observers(self._log, *self.observers, self.dispositions)
        ports = Ports(
            self.queue,
            self._store,
            self._flight,
            observer,
            self.time,
            self._chance,
            outbox=self._outbox,
        )
        return Dispatcher(self.plan, ports, self.time.reactor, self._gate, self._halt)

    async def _build(self) -> None:
        handler = self.plan.factory()
        self._runner = KillableRunner(
            handler, self.plan.limits, self._flight, self._begin, self._gate, steps=self._store
        )
        await self._runner.executor.setup()
        lanes = lane_finder(self.plan, handler)
        if lanes is not None:
            # Time is virtual, threads are not.
            lanes.needs_message = False
        self._workers = []
        self._dispatcher.start(self._runner, lanes, self._workers.append)
        self._is_built = True

    def _close(self) -> None:
        if not self._gate.is_closed:
            self._gate.close()

    def _drain(self) -> None:
        self._close()
        finish = self.time.loop.create_task(self._finish())
        self.time.run()
        while not finish.done() and (timer := self.time.next_timer()) is not None:
            self.time.step(timer)

    async def _finish(self) -> None:
        self._dispatcher.give_back_waiting()
        self._dispatcher.give_back_held()
        await self._dispatcher.finish()
        await self._dispatcher.give_back_rest()

    def _cancel_everything(self) -> None:
        self._log.detach()
        for running in asyncio.all_tasks(self.time.loop):
            running.cancel()
        for call in self.time.reactor.getDelayedCalls():
            call.cancel()
        self.time.run()

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run the author's ``setup`` or ``teardown``, however long it takes."""
        self._awaited = spawned = self.time.loop.create_task(coroutine)
        self.time.run()
        while not spawned.done():
            self.time.step(self.time.next_timer() or ROUND_TRIP)
        self._awaited = None
        spawned.result()

    def _patience_now(self, has_timer: bool, is_outside: bool) -> float | None:  # noqa: FBT001
        if self._awaited is not None or not self._is_built:
            is_over = self._awaited is not None and self._awaited.done()
            waits_outside = not has_timer or (is_outside and self._patience is None)
            return self._patience if waits_outside and not is_over else 0
        if not self._runner.executor.is_busy or self._runner.is_killed:
            return 0
        if not self._runner.is_coroutine and self._runner.executor.waits_for_threads:
            return None
        return self._patience if is_outside or not has_timer else 0

    # The broker's part.

    def _pump(self) -> None:
        while self._has_something_to_deliver:
            self._dispatcher.put(self.queue.take(self.time))

    @property
    def _has_something_to_deliver(self) -> bool:
        room = self.plan.prefetch_count or math.inf
        return (
            self._gate.may_consume and bool(self.queue.ready) and len(self.queue.unsettled) < room
        )

    @property
    def _is_pumping(self) -> bool:
        return self._pump_call is not None and self._pump_call.active()

    # The reports of the dispatcher.

    def _halt(self, halt: Halt) -> None:
        self.halted = halt
        self._close()

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is GateEvent.SUSPEND:
            self._dispatcher.give_back_waiting()

    def _begin(self, delivery: Delivery) -> bool:
        """Note that a slot begins with *delivery*; return True if the process dies of it."""
        record = self.queue.of(delivery)
        record.runs.append(self.time.time())
        if not delivery.row:
            record.disposition = None
        self.kills[delivery.message_id] -= 1
        return self.kills[delivery.message_id] >= 0
