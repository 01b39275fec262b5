# SPDX-License-Identifier: GPL-2.0-or-later
"""Fakes of the ports of :mod:`consumer_framework.core.ports`, for tests without an outside world.

Each keeps the promises of its port: one conformance suite per port runs against the fake and
against the real thing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from consumer_framework.core.attempt import NO_HISTORY, History
from consumer_framework.core.delivery import Delivery
from consumer_framework.core.memory import may_come_again, source_key
from consumer_framework.core.ports import (
    Acknowledger,
    Clock,
    FlightRecorder,
    Notifier,
    Observer,
    Outbox,
    Ran,
    Settled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from consumer_framework.core.delivery import Publication, Published
    from consumer_framework.core.errors import StoreError
    from consumer_framework.core.ports import Observation

# The queue and the message id, or the queue, the routing key and the body.
Key: TypeAlias = tuple[str, str, str, bytes]


class FakeOutbox(Outbox):
    """An :class:`.Outbox` in memory, which outlives the processes of a test.

    Attributes:
        error: The error of every write; None while the database works.
        runs: The runs whose messages are stored, in the order of the commits.

    Args:
        put: Called with the messages of each run that is stored.
    """

    def __init__(self, put: Callable[[Sequence[Publication]], object] = lambda _: None) -> None:
        self.error: StoreError | None = None
        self.runs: list[Published] = []
        self._put = put
        self._sources: set[str] = set()

    def store(self, published: Published) -> asyncio.Task[None]:
        """Begin to store the messages of one run, once."""
        return asyncio.get_running_loop().create_task(self._store(published))

    async def _store(self, published: Published) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if published in self.runs:
            return
        sources = {source_key(one): may_come_again(one) for one in published.deliveries}
        if not all(again and key in self._sources for key, again in sources.items()):
            self._sources |= sources.keys() - {""}
            self.runs.append(published)
            self._put(published.messages)


class FakeFlightRecorder(FlightRecorder):
    """A :class:`.FlightRecorder` in memory, for tests in which no process really dies.

    Args:
        places: Messages that are in a handler at most.
        crashed: The number of processes that died with each message before.

    Attributes:
        in_flight: The deliveries that handlers have, by place.
    """

    def __init__(self, places: int = 1, crashed: Mapping[Key, int] | None = None) -> None:
        self.in_flight: dict[int, Delivery] = {}
        self._places = places
        self._crashed = dict(crashed or {})
        self._routes: dict[Key, str] = {}
        self._last = 0

    def crash(self) -> FakeFlightRecorder:
        """Let the process die; return the recorder of the next one."""
        crashed = dict(self._crashed)
        next_one = FakeFlightRecorder(self._places, crashed)
        next_one._routes = dict(self._routes)
        for delivery in self.in_flight.values():
            key, count = _key(delivery), delivery.history.crashes + 1
            next_one._crashed[key] = max(count, crashed.get(key, 0))
            next_one._routes[key] = delivery.route
        return next_one

    def crashes_of(self, delivery: Delivery) -> int:
        """Return the number of processes that died with this message before."""
        return self._crashed.get(_key(delivery), 0)

    def has_hung(self, delivery: Delivery) -> bool:  # noqa: ARG002 -- as its port
        """Return False: no watchdog looks at it."""
        return False

    def route_of(self, delivery: Delivery) -> str:
        """Return the route that had the message when the last process died; "" for none."""
        return self._routes.get(_key(delivery), "")

    def forget(self, delivery: Delivery) -> None:
        """Forget the crashes of this message."""
        self._crashed.pop(_key(delivery), None)

    def took_off(self, delivery: Delivery) -> int:
        """Note that the handler starts on *delivery*.

        Raises:
            RuntimeError: Every place is taken.
        """
        if len(self.in_flight) >= self._places:
            raise RuntimeError("more messages are in handlers than the flight recorder has places")
        self._last += 1
        self.in_flight[self._last] = delivery
        return self._last

    def landed(self, place: int) -> None:
        """Note that the handler is done.

        Raises:
            ValueError: Nothing took off from *place*.
        """
        if place not in self.in_flight:
            raise ValueError(f"nothing took off from place {place}")
        del self.in_flight[place]


def _key(delivery: Delivery) -> Key:
    return delivery.queue, delivery.message_id, delivery.routing_key, delivery.body


Settle: TypeAlias = Literal["ack", "give_back", "requeue", "reject"]
Notification: TypeAlias = Literal["ready", "reloading", "status", "stopping", "watchdog", "trigger"]


@dataclass(frozen=True, slots=True)
class FakeProperties:
    """The AMQP properties of a delivery, as far as the core reads them.

    Attributes:
        message_id: The publisher's name for the message.
        headers: The message headers table, None where the publisher sent none.
    """

    message_id: str | None = None
    headers: Mapping[str, Any] | None = field(default_factory=dict)


def make_delivery(  # noqa: PLR0913 -- as many as a delivery has, each with a default
    *,
    message_id: str | None = "1",
    body: bytes = b"{}",
    queue: str = "queue",
    generation: int = 1,
    delivery_tag: int = 1,
    redelivered: bool = False,
    exchange: str = "amq.topic",
    routing_key: str = "a.topic",
    headers: Mapping[str, Any] | None = None,
    received_at: float = 0.0,
    history: History = NO_HISTORY,
    row: int = 0,
    lane: str = "",
    replayed: bool = False,
    arrived_at: float = 0.0,
) -> Delivery:
    """Make a delivery.

    Args:
        message_id: The publisher's name for the message, None for a message without one.
        body: The message as it was received.
        queue: The name of the queue that it came from.
        generation: The number of the channel that it came on.
        delivery_tag: The broker's number for it on that channel.
        redelivered: The broker's word that it delivered the message before.
        exchange: Where it was published.
        routing_key: The topic it was published with.
        headers: The message headers table, None for a message without one.
        received_at: When it came, in seconds since the epoch.
        history: Its failed attempts and crashes so far.
        row: The store's number for it where it came from there.
        lane: Its ordering key.
        replayed: Whether an operator had it run again.
        arrived_at: When it came, in monotonic seconds.
    """
    return Delivery(
        queue=queue,
        generation=generation,
        delivery_tag=delivery_tag,
        redelivered=redelivered,
        exchange=exchange,
        routing_key=routing_key,
        properties=FakeProperties(message_id, headers),
        body=body,
        received_at=received_at,
        history=history,
        row=row,
        lane=lane,
        replayed=replayed,
        arrived_at=arrived_at,
    )


class FakeAcknowledger(Acknowledger):
    """An :class:`.Acknowledger` that records the answers to deliveries.

    Generations are open or closed, as on a connection: a settle for a closed one is void.

    Args:
        generations: The number of channels that are open at once, numbered from 1.

    Attributes:
        told: The settled deliveries and their answers, in order, without void ones.
    """

    def __init__(self, generations: int = 1) -> None:
        self.told: list[tuple[Delivery, Settle]] = []
        self._latest = 0
        self._open: set[int] = set()
        for _ in range(generations):
            self.open()

    def open(self) -> int:
        """Open a channel and return its generation."""
        self._latest += 1
        self._open.add(self._latest)
        return self._latest

    def close(self, generation: int) -> None:
        """Close a channel: every later settle for *generation* is void."""
        self._open.discard(generation)

    def is_open(self, delivery: Delivery) -> bool:
        """Tell whether the channel that *delivery* came on is open."""
        return delivery.generation in self._open

    def ack(self, delivery: Delivery) -> bool:
        """Record an ``ack``; False if that is void.

        Raises:
            AssertionError: *delivery* was settled before. A broker closes the channel then
                (AMQP 0-9-1, section 1.8.3.13).
        """
        return self._settle(delivery, "ack")

    def give_back(self, delivery: Delivery) -> bool:
        """Record a ``give_back``; False if that is void; raise as :meth:`ack` does."""
        return self._settle(delivery, "give_back")

    def requeue(self, delivery: Delivery) -> bool:
        """Record a ``requeue``; False if that is void; raise as :meth:`ack` does."""
        return self._settle(delivery, "requeue")

    def reject(self, delivery: Delivery) -> bool:
        """Record a ``reject``; False if that is void; raise as :meth:`ack` does."""
        return self._settle(delivery, "reject")

    def of(self, delivery: Delivery) -> Settle | None:
        """Return the answer to *delivery*, None if it is unsettled."""
        settled = (how for told, how in self.told if _tag(told) == _tag(delivery))
        return next(settled, None)

    def _settle(self, delivery: Delivery, how: Settle) -> bool:
        if not self.is_open(delivery):
            return False
        before = self.of(delivery)
        if before is not None:
            raise AssertionError(f"{before} and then {how} for one delivery: {delivery}")
        self.told.append((delivery, how))
        return True


def _tag(delivery: Delivery) -> tuple[int, int]:
    return delivery.generation, delivery.delivery_tag


class FakeClock(Clock):
    """A :class:`.Clock` that stands still until it is told to go on.

    Args:
        now: Seconds at the start, since some fixed moment and since the epoch alike.
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._time = now
        self._timers: list[_FakeTimer] = []

    def monotonic(self) -> float:
        """Return the seconds since some fixed moment."""
        return self._now

    def time(self) -> float:
        """Return the seconds since the epoch, as the machine believes."""
        return self._time

    async def sleep(self, seconds: float) -> None:
        """Wait until somebody has let *seconds* pass."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = self.create_future()
        timer = self.call_later(seconds, lambda: future.set_result(None))
        try:
            await future
        finally:
            timer.cancel()

    def call_later(self, seconds: float, function: Callable[[], object]) -> _FakeTimer:
        """Call *function* once somebody has let *seconds* pass."""
        timer = _FakeTimer(self._now + seconds, function)
        self._timers.append(timer)
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future of the running event loop."""
        return asyncio.get_running_loop().create_future()

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, and make the calls that are due then.

        Raises:
            ValueError: *seconds* is negative; such a clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"a monotonic clock does not go back ({seconds} s)")
        self._now += seconds
        self._time += seconds
        due = [timer for timer in self._timers if timer.due_at <= self._now]
        self._timers = [timer for timer in self._timers if timer.due_at > self._now]
        for timer in sorted(due, key=lambda timer: timer.due_at):
            timer.function()

    def set_time(self, seconds: float) -> None:
        """Let somebody set the machine's time, forward or back; no time passes by that."""
        self._time = seconds


@dataclass(eq=False, slots=True)
class _FakeTimer:
    due_at: float
    function: Callable[[], object]

    def cancel(self) -> None:
        self.function = lambda: None


class FakeNotifier(Notifier):
    """A :class:`.Notifier` that records its calls, in the place of a service manager.

    Attributes:
        calls: The methods that were called, each with its status, in order; "" for a ``watchdog``.
        watchdog_seconds: Seconds that the service manager waits for a ``watchdog``; 0 for ever.
        extensions: The seconds that were asked for, in order.
        restart_resets: The number of times that the instance said that it works.
    """

    def __init__(self, watchdog_seconds: float = 0.0) -> None:
        self.calls: list[tuple[Notification, str]] = []
        self.extensions: list[float] = []
        self.restart_resets = 0
        self.watchdog_seconds = watchdog_seconds

    def ready(self, status: str) -> None:
        """Record that the instance consumes from every queue."""
        self.calls.append(("ready", status))

    def status(self, status: str) -> None:
        """Record *status*."""
        self.calls.append(("status", status))

    def reloading(self, status: str) -> None:
        """Record that other settings are about to come into force."""
        self.calls.append(("reloading", status))

    def stopping(self, status: str) -> None:
        """Record that the instance drains."""
        self.calls.append(("stopping", status))

    def extend(self, seconds: float) -> None:
        """Record the seconds that were asked for."""
        self.extensions.append(seconds)

    def restart_reset(self) -> None:
        """Record that the instance works."""
        self.restart_resets += 1

    def watchdog(self) -> None:
        """Record that the instance does its work."""
        self.calls.append(("watchdog", ""))

    def trigger(self, status: str) -> None:
        """Record that the instance is stuck."""
        self.calls.append(("trigger", status))

    @property
    def is_ready(self) -> bool:
        """True if the instance ever said that it is ready."""
        return any(kind == "ready" for kind, _ in self.calls)

    @property
    def is_reloading(self) -> bool:
        """True if a reload began that is not over."""
        kinds = [kind for kind, _ in self.calls if kind in {"ready", "reloading"}]
        return kinds[-1:] == ["reloading"]

    @property
    def is_stopping(self) -> bool:
        """True if the instance said that it stops."""
        return any(kind == "stopping" for kind, _ in self.calls)

    @property
    def feeds(self) -> int:
        """The number of times that the instance said that it does its work."""
        return sum(kind == "watchdog" for kind, _ in self.calls)

    @property
    def is_triggered(self) -> bool:
        """True if the instance said that it is stuck."""
        return any(kind == "trigger" for kind, _ in self.calls)

    @property
    def status_line(self) -> str:
        """The latest status, ``""`` before the first one."""
        statuses = [status for kind, status in self.calls if kind != "watchdog"]
        return statuses[-1] if statuses else ""


class FakeObserver(Observer):
    """An :class:`.Observer` that keeps everything.

    Attributes:
        runs: The deliveries that slots were done with, in order.
        settled: The settles, in order.
        others: All other events, in order.
    """

    def __init__(self) -> None:
        self.runs: list[Delivery] = []
        self.settled: list[Settled] = []
        self.others: list[Observation] = []

    def notify(self, event: Observation) -> None:
        """Keep *event*."""
        if isinstance(event, Ran):
            self.runs.append(event.delivery)
        elif isinstance(event, Settled):
            self.settled.append(event)
        else:
            self.others.append(event)
