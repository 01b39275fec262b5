# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a consumer in a test, as an instance would, without a broker and without waiting."""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import pika
from fedora_messaging import config as upstream

from consumer_framework.adapters import codec
from consumer_framework.adapters.executor import Executor
from consumer_framework.core import durations
from consumer_framework.core import settings as core
from consumer_framework.core.delivery import Known
from consumer_framework.core.disposition import (
    Ack,
    Defer,
    GiveBack,
    Halt,
    Hold,
    Quarantine,
    Reject,
    Requeue,
)
from consumer_framework.core.handler import is_coroutine_callable
from consumer_framework.core.recovery import Situation, decide
from consumer_framework.host.batching import check_batch, with_batch
from consumer_framework.host.lane import lane_of
from consumer_framework.host.loader import Target, factory, find, recovery_of
from consumer_framework.host.ordering import source_for
from consumer_framework.host.plan import Plan, fitted
from consumer_framework.host.policy import policy_of
from consumer_framework.host.recorder import LogRecorder
from consumer_framework.host.slots import Slots

from .fake_flight import FakeFlightRecorder
from .fake_journal import FakeJournal
from .fake_queue import FakeQueue
from .virtual_time import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from types import TracebackType

    from fedora_messaging.message import Message

    from consumer_framework.adapters.executor import Limits
    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.handler import Handler

    from .fake_queue import Posted

# Seconds after which a broker delivers again what was given back to it.
ROUND_TRIP = 0.01
# A loop of messages that never takes time would never end; a defect of the framework, then.
_MOST_STEPS = 1_000_000


class Harness:
    """Delivers messages to a consumer, in virtual time, and tells what became of them.

    Everything between the broker and the handler is what an instance has: decoding, retries,
    holding, deferral, quarantine, the pause for a broken dependency. The broker, the journal's
    disk and the time are fakes::

        with Harness(Sample, config={"packages": ["kernel"]}) as harness:
            assert isinstance(harness.deliver(message), Ack)

    A retry comes when its time has come, which is when the test says so:

    >>> from fedora_messaging.message import Message
    >>> tries = []
    >>> def handler(message):
    ...     tries.append(message.id)
    ...     if len(tries) < 3:
    ...         raise ValueError("not yet")
    >>> with Harness(handler) as harness:
    ...     message = Message(topic="org.example.test", body={"n": 1})
    ...     held = harness.deliver(message)  # once, and once more at once
    ...     print(type(held).__name__, len(tries), held.until - harness.now)
    ...     harness.advance("10s")
    ...     print(harness.acked == [message], len(harness.attempts(message)))
    Hold 2 10.0
    True 2

    Plain handlers run in a thread of their own and are waited for. Coroutines run on a loop
    whose ``asyncio.sleep`` takes virtual time. The test itself must not run in an event loop.

    Args:
        consumer: A subclass of :class:`.Consumer`, a class without constructor arguments, a
            function, a coroutine function, or the ``"module:object"`` of any of them.
        config: ``[consumer_config]``.
        settings: ``[consumer_config.framework]``, as TOML has it.
        chance: What every throw of the dice is, from 0 to 1. The delays between retries are the
            configured ones with 0.5.
        patience: Real seconds to wait for a coroutine that awaits the world outside.

    Attributes:
        journal: What is deferred and quarantined; set its ``error``, and it cannot write.
        halted: What stopped the instance; None while it runs.
        paused: Why the instance consumes nothing, "" while it does.

    Raises:
        ConfigurationError: *config* or *settings* would start no instance.
    """

    def __init__(
        self,
        consumer: Any,
        *,
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        chance: float = 0.5,
        patience: float = 1.0,
    ) -> None:
        self.journal = FakeJournal()
        self.halted: Halt | None = None
        self.paused = ""
        self.chance = chance
        target = _target(consumer)
        self._document = _document(dict(config or {}), dict(settings or {}))
        checked = core.parse(self._document, default_bindings=True)
        make = factory(target, checked.consumer_config)
        written = checked.framework.recovery
        policy, recovery = policy_of(written, recovery_of(target), "settings", target.name)
        check_batch(checked.framework, target.value)
        framework = with_batch(checked.framework, target.value)
        plan = Plan(target.name, make, policy, framework, source_for(framework, target.value))
        self._plan = fitted(plan, checked, recovery)
        self._patience = patience
        self._time: VirtualTime
        self._flight = FakeFlightRecorder(self._plan.framework.at_once)
        self._queue = FakeQueue()
        self._runner: _Runner
        self._slots: Slots
        self._workers: list[asyncio.Task[None]] = []
        self._kills: Counter[str | None] = Counter()
        self._replays: dict[int, asyncio.Task[Disposition]] = {}
        self._pump_call: Any = None
        self._awaited: asyncio.Task[None] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start the instance; what the consumer's own ``setup`` raises is raised here."""
        self._time = VirtualTime(time.time(), self._patience_now)
        with self._stack as stack:
            stack.callback(self._time.close)
            stack.enter_context(_upstream_config(self._document))
            self._start()
            # What follows is undone by __exit__.
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the instance, its ``teardown`` included, whatever waits then."""
        with self._stack:
            self._slots.close()
            self._cancel_everything()
            if kind is None:
                self._await(self._runner.executor.teardown())
            self._runner.executor.close()

    # What a test does.

    def deliver(self, message: Message, *, kills: int = 0) -> Disposition | None:
        """Publish *message* and have it delivered.

        Args:
            message: The message; it need not be valid.
            kills: How often the process is killed while the handler has the message, as by
                SIGKILL, before the handler does anything. A new process follows each.

        Returns:
            What became of it so far. None while it is being handled, and while it waits in the
            queue: for its turn, or because the instance is paused or stopped.
        """
        properties = copy.deepcopy(message._properties)  # noqa: SLF001 -- as publishing does
        body = message._encoded_body  # noqa: SLF001
        return self._deliver(message, message.topic, properties, body, kills)

    def deliver_raw(  # noqa: PLR0913 -- what a broker would deliver, each with a default
        self,
        body: bytes = b"{}",
        *,
        headers: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        content_encoding: str | None = "utf-8",
        routing_key: str = "a.topic",
        kills: int = 0,
    ) -> Disposition | None:
        """Publish what may be no message at all; elsewhere the harness calls it by its *body*.

        Args:
            body: The bytes.
            headers: The headers table; None for none, which fedora-messaging never sends.
            message_id: The message id; None for none.
            content_encoding: Said to be the body's.
            routing_key: The topic.
            kills: As for :meth:`deliver`.

        Returns:
            As :meth:`deliver` does.
        """
        properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
            content_type="application/json",
            content_encoding=content_encoding,
            headers=None if headers is None else dict(headers),
            message_id=message_id,
        )
        return self._deliver(body, routing_key, properties, body, kills)

    def kill_next(self, message: Message, times: int = 1) -> None:
        """Let the process be killed the next *times* that the handler has *message*."""
        self._kills[message.id] = times

    def advance(self, duration: str | float) -> None:
        """Let time pass: *duration* is ``"10s"``, ``"1h 30m"``, or seconds. What is due runs."""
        left = durations.seconds(duration)
        self._settle_down()
        for _ in range(_MOST_STEPS):
            timer = self._time.next_timer()
            if timer is None or timer > left:
                break
            left -= timer
            self._time.step(timer)
            self._settle_down()
        else:
            raise RuntimeError(f"after {_MOST_STEPS} steps there is no end of them")
        self._time.step(left)
        self._settle_down()

    def cut(self) -> None:
        """Drop the connection: what is not settled is delivered again, a moment later."""
        self._slots.voided(self._queue.cut())
        self._settle_down()

    def crash(self) -> None:
        """Kill the process, as by SIGKILL, and start a new one.

        What the old one had not settled is delivered again, a moment later.
        """
        self._flight = self._flight.crash()
        self._slots.close()
        self._cancel_everything()
        self._runner.executor.close()
        self._queue.cut()
        self._start()

    def restart(self) -> None:
        """Stop the process in good order, as by SIGTERM, and start a new one."""
        self._drain()
        self._await(self._runner.executor.teardown())
        self._cancel_everything()
        self._runner.executor.close()
        self._queue.cut()
        self._start()

    # What an operator does.

    def replay(self, message: Message | bytes) -> Disposition | None:
        """Have a quarantined message run again, as by ``fm-consumer quarantine replay``.

        Returns:
            What became of it. None while it is being handled, and where it was not begun with,
            since the instance is stopped, or pauses meanwhile.

        Raises:
            LookupError: It is not quarantined, or it is being replayed already, or an earlier
                message with its key has to be replayed, or dropped, first.
        """
        row, posted = self._claimable(message)
        replay = self._time.loop.create_task(self._slots.replay(row))
        self._replays[row.row] = replay
        self._settle_down()
        if not replay.done() or replay.cancelled():
            return None
        disposition = replay.result()
        return posted.disposition if isinstance(disposition, Defer) else disposition

    def drop(self, message: Message | bytes) -> None:
        """Lose a quarantined message, as by ``fm-consumer quarantine drop``.

        Raises:
            LookupError: It is not quarantined, or it is being replayed.
        """
        row, posted = self._quarantined_row(message)
        self.journal.drop(row.row)
        posted.disposition = Reject("dropped by an operator")
        self._slots.look()
        self._settle_down()

    # What a test asks.

    @property
    def now(self) -> float:
        """Seconds since the epoch: the machine's time at first, the virtual one from then on."""
        return self._time.time()

    @property
    def acked(self) -> list[Any]:
        """The messages that are done with: handled, skipped, or halted on without a requeue."""
        return self._now(lambda p: isinstance(p.disposition, Ack | Halt) and p.told == "ack")

    @property
    def rejected(self) -> list[Any]:
        """The messages that were lost on purpose."""
        return self._now(lambda p: isinstance(p.disposition, Reject))

    @property
    def held(self) -> list[Any]:
        """The messages that wait in memory to be tried again."""
        unsettled = self._queue.unsettled
        return self._now(lambda p: isinstance(p.disposition, Hold) and p in unsettled)

    @property
    def deferred(self) -> list[Any]:
        """The messages that wait in the journal to be tried again."""
        return self._now(lambda p: isinstance(self._kept(p), Defer))

    @property
    def quarantined(self) -> list[Any]:
        """The messages that wait in the journal for an operator.

        Those with the same ordering key that come later do, too.
        """
        return self._now(lambda p: isinstance(self._kept(p), Quarantine))

    @property
    def queued(self) -> list[Any]:
        """The messages that wait in the queue."""
        ready = self._queue.ready
        return self._now(lambda p: p in ready)

    @property
    def unsettled(self) -> list[Any]:
        """The messages that the instance has: held, in the handler, or waiting for either."""
        unsettled = self._queue.unsettled
        return self._now(lambda p: p in unsettled)

    @property
    def requeued(self) -> list[Any]:
        """Those of the :attr:`queued` ones that were delivered before."""
        ready = self._queue.ready
        return self._now(lambda p: p in ready and p.redelivered)

    def attempts(self, message: Message | bytes) -> tuple[Attempt, ...]:
        """The failed attempts at *message*; at its latest delivery, where there were several."""
        return self._posted(message).history.attempts

    def runs(self, message: Message | bytes) -> list[float]:
        """When the handler began with *message*, each time, in seconds since the epoch."""
        return [at for posted in self._all(message) for at in posted.runs]

    # Starting and stopping.

    def _start(self) -> None:
        self.halted, self.paused = None, ""
        self._slots = self._make_slots()
        self._await(self._build())
        self._settle_down()

    def _make_slots(self) -> Slots:
        return Slots(
            self._plan,
            self._queue,
            self.journal,
            self._flight,
            _Recorder(self._time, self._note_settle),
            self._time,
            self._time.reactor,
            halt=self._halt,
            pause=self._pause,
            resume=self._resume,
            chance=lambda: self.chance,
        )

    async def _build(self) -> None:
        handler = self._plan.factory()
        self._runner = _Runner(handler, self._plan.limits, self._flight, self._begin)
        await self._runner.executor.setup()
        lanes = lane_of(self._plan, handler)
        self._workers = []
        self._slots.start(self._runner, lanes, self._workers.append)

    def _drain(self) -> None:
        self._slots.close()
        self._slots.give_back_waiting()
        self._slots.give_back_held()
        finish = self._time.loop.create_task(self._slots.finish())
        self._time.run()
        while not finish.done() and (timer := self._time.next_timer()) is not None:
            self._time.step(timer)
        self._slots.give_back_held()

    def _cancel_everything(self) -> None:
        for running in asyncio.all_tasks(self._time.loop):
            running.cancel()
        for call in self._time.reactor.getDelayedCalls():
            call.cancel()
        self._time.run()

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run the author's ``setup`` or ``teardown``, however long it takes."""
        self._awaited = spawned = self._time.loop.create_task(coroutine)
        self._time.run()
        while not spawned.done():
            self._time.step(self._time.next_timer() or ROUND_TRIP)
        self._awaited = None
        spawned.result()

    def _patience_now(self, has_timer: bool, has_sockets: bool) -> float | None:  # noqa: FBT001
        if self._awaited is not None:
            return 0 if has_timer or self._awaited.done() else self._patience
        if not self._runner.executor.is_busy or self._runner.is_killed:
            return 0
        if not self._runner.is_coroutine:
            return None
        return self._patience if has_sockets or not has_timer else 0

    # The broker's part.

    def _deliver(
        self, what: object, key: str, properties: Any, body: bytes, kills: int
    ) -> Disposition | None:
        self._kills[properties.message_id] = kills
        posted = self._queue.publish(what, key, properties, body)
        self._time.loop.call_soon(self._pump)
        self._settle_down()
        if kills:
            self.advance(2 * kills * ROUND_TRIP)
        return posted.disposition

    def _pump(self) -> None:
        """Deliver what the consumer would be sent now."""
        while self._has_something_to_deliver:
            self._slots.put(self._queue.take(self.now))

    @property
    def _has_something_to_deliver(self) -> bool:
        room = self._plan.prefetch_count or math.inf
        consumes = not self.paused and self.halted is None
        return consumes and bool(self._queue.ready) and len(self._queue.unsettled) < room

    def _settle_down(self) -> None:
        """Let everything happen that takes no time, and see that what follows will."""
        self._time.run()
        for worker in self._workers:
            if worker.done() and not worker.cancelled():
                worker.result()
        if self._runner.is_killed:
            self.crash()
        elif self.halted is not None:
            self._drain()
        elif self._has_something_to_deliver and not self._is_pumping:
            self._pump_call = self._time.reactor.callLater(ROUND_TRIP, self._pump)

    @property
    def _is_pumping(self) -> bool:
        return self._pump_call is not None and self._pump_call.active()

    # What the instance reports.

    def _halt(self, halt: Halt) -> None:
        self.halted = halt
        self._slots.close()

    def _pause(self, reason: str) -> None:
        self.paused = reason
        self._slots.give_back_waiting()

    def _resume(self) -> None:
        self.paused = ""

    def _begin(self, delivery: Delivery) -> bool:
        """Note that a slot begins with *delivery*; returns whether the process dies meanwhile."""
        posted = self._queue.of(delivery)
        posted.runs.append(self.now)
        if not delivery.row:
            posted.disposition = None
        self._kills[delivery.message_id] -= 1
        return self._kills[delivery.message_id] >= 0

    def _note_settle(self, delivery: Delivery, outcome: Outcome, disposition: Disposition) -> None:
        posted = self._queue.of(delivery)
        if isinstance(outcome, Known) or (delivery.row and _gives_back(disposition)):
            posted.disposition = self._row_of(posted)
            return
        posted.disposition = disposition
        # Deciding is pure, so it can be asked once more for what it said of the history.
        situation = Situation(self.now, self.chance, may_hold=True)
        posted.history = decide(delivery, outcome, self._plan.policy, situation).history

    def _kept(self, posted: Posted) -> Disposition | None:
        """What became of a message, where the journal may have made something else of it."""
        if isinstance(posted.disposition, Defer | Quarantine):
            return self._row_of(posted) or posted.disposition
        return posted.disposition

    def _row_of(self, posted: Posted) -> Disposition | None:
        for delivery, reason in self.journal.quarantined:
            if posted.is_of(delivery):
                return Quarantine(reason)
        deferred = self.journal.deferred
        return next((Defer(until) for kept, until in deferred if posted.is_of(kept)), None)

    # Helpers.

    def _quarantined_row(self, message: Message | bytes) -> tuple[Delivery, Posted]:
        posted = self._posted(message)
        rows = [delivery for delivery, _ in self.journal.quarantined if posted.is_of(delivery)]
        if not rows:
            raise LookupError(f"not quarantined: {message!r}")
        replay = self._replays.get(rows[0].row)
        if replay is not None and not replay.done():
            raise LookupError(f"is being replayed: {message!r}")
        return rows[0], posted

    def _claimable(self, message: Message | bytes) -> tuple[Delivery, Posted]:
        row, posted = self._quarantined_row(message)
        if self.journal.is_blocked(row.lane, row.row):
            raise LookupError(f"is behind another one with its key: {message!r}")
        return row, posted

    def _now(self, applies: Callable[[Posted], bool]) -> list[Any]:
        return [posted.what for posted in self._queue.posted if applies(posted)]

    def _all(self, message: Message | bytes) -> list[Posted]:
        if isinstance(message, bytes):
            return [posted for posted in self._queue.posted if posted.what == message]
        # Equal messages may be two.
        return [posted for posted in self._queue.posted if posted.what is message]

    def _posted(self, message: Message | bytes) -> Posted:
        found = self._all(message)
        if not found:
            raise LookupError(f"never delivered: {message!r}")
        return found[-1]


class _Killed(BaseException):
    """The process is dead: nothing that it does counts any more."""


class _Runner:
    """Runs the handler, or lets the process die while the handler has the message.

    Args:
        begin: Called with each delivery that a slot begins with; returns whether that kills.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        flight: FakeFlightRecorder,
        begin: Callable[[Delivery], bool],
    ) -> None:
        self.executor = Executor(handler, self._decode, flight, limits)
        self.is_coroutine = is_coroutine_callable(handler.call_batch or handler.call)
        self.is_killed = False
        self._flight = flight
        self._begin = begin

    async def run(self, delivery: Delivery) -> Outcome:
        try:
            return await self.executor.run(delivery)
        except _Killed:
            self.is_killed = True
            never: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            return await never

    def stop(self) -> None:
        self.executor.stop()

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        return self.executor.withdraw(which)

    @property
    def is_quick(self) -> bool:
        return self.executor.is_quick

    def _decode(self, delivery: Delivery) -> Message:
        if self.is_killed:
            raise _Killed
        kills = self._begin(delivery)
        message = codec.decode(delivery)
        if kills:
            self._flight.took_off(delivery)
            self.is_killed = True
            raise _Killed
        return message


class _Recorder(LogRecorder):
    """Logs and counts as an instance does, and tells the harness."""

    def __init__(
        self,
        clock: VirtualTime,
        settled: Callable[[Delivery, Outcome, Disposition], None],
    ) -> None:
        super().__init__(clock)
        self._settled = settled

    def settled(
        self, delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool
    ) -> None:
        super().settled(delivery, outcome, disposition, void=void)
        if not void:
            self._settled(delivery, outcome, disposition)


def _gives_back(disposition: Disposition) -> bool:
    return isinstance(disposition, Requeue | GiveBack) or (
        isinstance(disposition, Halt) and disposition.requeue
    )


def _target(consumer: Any) -> Target:
    if isinstance(consumer, str):
        return find(consumer, "the test")
    name = getattr(consumer, "__qualname__", type(consumer).__qualname__)
    return Target(f"{consumer.__module__}:{name}", "the test", consumer)


def _document(config: dict[str, Any], framework: dict[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = copy.deepcopy(dict(upstream.DEFAULTS))
    return {
        **defaults,
        # As in a file that does not say: the prefetch count follows from the framework's settings.
        "qos": {},
        "log_config": None,
        "monitoring": None,
        "consumer_config": {**config, "framework": framework} if framework else config,
    }


@contextmanager
def _upstream_config(document: dict[str, Any]) -> Iterator[None]:
    """Callbacks read ``fedora_messaging.config.conf`` by themselves."""
    conf = upstream.conf
    before, loaded = dict(conf.items()), conf.loaded
    conf.loaded = True
    try:
        conf.update({**document, "monitoring": {}})
        yield
    finally:
        conf.clear()
        conf.update(before)
        conf.loaded = loaded
