# SPDX-License-Identifier: GPL-2.0-or-later
"""The ports of the core: the things that it needs of the outside world, as Protocols.

Each port has one conformance suite, run against the real adapter and against the fake that
:mod:`consumer_framework.testing` ships.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence
    from concurrent.futures import Future as ThreadFuture

    from .delivery import Delivery, Outcome, Published
    from .gate import Reason
    from .lifecycle import State
    from .ordering import Blocker
    from .recovery import Decision


_Value = TypeVar("_Value")


class Acknowledger(Protocol):
    """Answers the broker for a delivery, on the channel that it came from.

    Every method returns False, and does nothing, when that channel is gone: the settle is void,
    and the broker delivers the message again (AMQP 0-9-1, section 1.8.3.13: "acknowledgements
    must be sent on the channel that the message was delivered on").
    """

    def is_open(self, delivery: Delivery) -> bool:
        """Tell whether the channel of *delivery* is there, so that a settle is not void."""

    def ack(self, delivery: Delivery) -> bool:
        """Let the broker forget the message (``basic.ack``)."""

    def give_back(self, delivery: Delivery) -> bool:
        """Put the message back on its queue without counting it (``basic.nack``, requeue)."""

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back on its queue and have that counted (``basic.reject``, requeue)."""

    def reject(self, delivery: Delivery) -> bool:
        """Drop or dead-letter the message (``basic.reject``, no requeue)."""


class Future(Protocol[_Value]):
    """A result that one coroutine waits for until somebody sets it; asyncio's has this form."""

    def done(self) -> bool:
        """Tell whether it has a result, or was cancelled."""

    def set_result(self, result: _Value, /) -> None:
        """Let the coroutine go on with *result*."""

    def __await__(self) -> Generator[Any, None, _Value]: ...


class TimerHandle(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Do not call."""


class Task(Protocol):
    """A coroutine that runs beside others; asyncio's has this form."""

    def cancel(self) -> object:
        """End it, wherever it waits."""

    def cancelled(self) -> bool:
        """Tell whether it ended because it was cancelled."""

    def exception(self) -> BaseException | None:
        """Return the exception that it raised; None for none."""

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None:
        """Call *callback* with the task once it has ended."""


class Write(Task, Protocol):
    """A write that is under way; a future of asyncio has this form."""

    def __await__(self) -> Generator[Any, None, None]: ...


class Clock(Protocol):
    """The time, and ways to wait, so that tests can make time pass."""

    def monotonic(self) -> float:
        """Return the seconds since some fixed moment; they never go back."""

    def time(self) -> float:
        """Return the seconds since the epoch, as the machine believes."""

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""

    def call_later(self, seconds: float, function: Callable[[], object]) -> TimerHandle:
        """Call *function* in *seconds*."""

    def create_future(self) -> Future[Any]:
        """Make a future for the coroutine that runs."""


class Chance(Protocol):
    """A random source, so that tests can choose the numbers."""

    def __call__(self) -> float:
        """Return a random number from 0 to 1."""


class Decoder(Protocol):
    """Turns the bytes of a delivery into a message for the handler."""

    def __call__(self, delivery: Delivery) -> Any:
        """Return the message; raise any exception if the bytes are none."""


class HandlerRunner(Protocol):
    """Runs the author's handler."""

    async def run(self, delivery: Delivery) -> Outcome:
        """Decode *delivery* and run the handler on it, as soon as a slot is free.

        An exception comes back as an outcome.
        """

    def stop(self) -> None:
        """Take back the runs that no slot has begun with; call it behind the closed gate.

        They wait for a withdrawal.
        """

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        """End the runs that no slot has begun with, as :class:`.Withdrawn`.

        Args:
            which: Tells of a delivery whether its run is to end.

        Returns:
            The number of runs that were ended.
        """

    @property
    def is_quick(self) -> bool:
        """True if runs are so short that the next delivery should be ready for a slot."""


class RecordedStep(NamedTuple):
    """A step of a message that is done.

    Attributes:
        result: Its result, as JSON.
        is_durable: Whether a later process will know of it. If not, it has to be recorded again.
    """

    result: str
    is_durable: bool = True


class Steps(Protocol):
    """Remembers the steps of messages that are done, until the messages are settled for good.

    A step belongs to a message, with its id, topic, headers and body, and not to a delivery: a
    retry, a redelivery, a row of the store and an edited row have the steps of their message. Those
    of a message without an id are found only by the same delivery, or the same row.

    Every method may be called in any thread.

    Attributes:
        has_steps: Whether a handler has asked for steps since the process started. Until then
            :meth:`settled` need not be called.
    """

    has_steps: bool = False

    def steps_of(self, delivery: Delivery) -> Mapping[str, RecordedStep]:
        """Return the steps of the message that are done, by name.

        For a message that was published again, it waits for the store to forget the former steps.

        Raises:
            StoreError: They cannot be read, or former ones cannot be deleted.
        """

    def record_step(self, delivery: Delivery, name: str, result: str) -> ThreadFuture[None]:
        """Begin to record a step; a step that is recorded already stays as it is.

        It has been recorded when the future is done, and survives the loss of power then. If the
        future raises :class:`.StoreError`, only this process knows that the step is done.

        Args:
            delivery: The delivery that its handler has.
            name: The name of the step.
            result: The result, as JSON.
        """

    def settled(self, delivery: Delivery, *, stays: bool) -> None:
        """Take note that the broker does not have *delivery* any more, or a row is done.

        Args:
            delivery: The delivery, whose settle the broker has been told.
            stays: Whether its message has a row now, which keeps the steps for a replay.
        """


class Store(Steps, Protocol):
    """Keeps the messages durably that the broker may forget.

    Every write is idempotent by the message, with its id, topic, headers and body: a process that
    dies between the write and the ack gets the message again, and finds the row. Two messages that
    are equal have two rows; :class:`.EqualMessages` tells them from one that comes again. A write
    has happened when its awaitable is done, and survives the loss of power then.

    The rows of one lane are in the order in which they were first written. A row keeps the lane
    that it was first written with. A deferred row never stays behind a quarantined one of its lane.
    The follower is quarantined, even if the other one comes later: with its history, and with
    :func:`.ordering.behind` for its reason.

    A delivery whose row is gone by now writes nothing: an operator dropped it.

    Every method raises :class:`.StoreError` if the disk does not take the write.

    Attributes:
        keeps: Whether it keeps messages. A store that does not is always empty, and takes no write.
    """

    keeps: bool = True

    async def defer(self, delivery: Delivery, until: float) -> None:
        """Keep *delivery*, history included, to run again at *until* seconds since the epoch.

        Behind a deferred row of its lane, *until* should be the time of that row, so that
        *delivery* is due as soon as that row is done. Behind a quarantined row, *delivery* is
        quarantined instead.
        """

    async def quarantine(self, delivery: Delivery, reason: str) -> None:
        """Keep *delivery*, history included, for an operator, and all rows deferred behind it."""

    async def remove(self, row: int) -> None:
        """Forget a deferred row: its message is done."""

    async def rebase(self, now: float) -> int:
        """Bring forward the deferred rows that were written later than *now*; return their number.

        The machine's clock was set back since. Each row waits for as long as it was deferred, and
        not for as long as the clock jumped.
        """

    def is_open(self, delivery: Delivery) -> bool:
        """Tell whether a row of this message waits, deferred or quarantined."""

    def due(self, now: float, limit: int, out: Collection[int] = ()) -> list[Delivery]:
        """Return at most *limit* deferred messages that are due at *now*, the longest due first.

        Of each lane only the first open row may be among them. Rows in *out* are left out: the
        caller has them already.
        """

    def next_due(self, out: Collection[int] = ()) -> float | None:
        """Return the moment of the next due row, in seconds since the epoch; None for never."""

    def is_blocked(self, lane: str, row: int = 0) -> bool:
        """Tell whether an open row of *lane* stands before *row*; before row 0, any one does.

        A row is open while it is deferred, quarantined or in a replay. The answer is quick if the
        lane has no rows, because each delivery asks; it is never True for lane "".
        """

    def blocked_by(self, lane: str, row: int = 0) -> Blocker | None:
        """Return the first open row of *lane*, None if none stands before *row*."""


class Outbox(Protocol):
    """Keeps the messages that handlers published, until a relay has sent them."""

    def store(self, published: Published) -> Write:
        """Begin to store the messages of one run, all or none.

        They are stored once for each run, however often this is called: again after a failure whose
        end nobody knows, for each delivery of a batch, and, in a later process, for a redelivery
        that ran again because the acknowledgement was lost. A message has been stored when the
        awaitable is done, and survives the loss of power then.

        Raises:
            StoreError: The database does not take them. The next call tries it again.
        """


class FlightRecorder(Protocol):
    """Remembers the messages that were in a handler when the process died, in any way."""

    def crashes_of(self, delivery: Delivery) -> int:
        """Return the number of times that the process died while the handler had this message."""

    def has_hung(self, delivery: Delivery) -> bool:
        """Tell whether the last process ended because the handler did not return in time."""

    def route_of(self, delivery: Delivery) -> str:
        """Return the route that had the message when the last process died; "" for none."""

    def forget(self, delivery: Delivery) -> None:
        """Forget the crashes of a message that is settled."""

    def took_off(self, delivery: Delivery) -> int:
        """Note that the handler begins with *delivery*; return a place for :meth:`landed`."""

    def landed(self, place: int) -> None:
        """Note that the handler with *place* is done."""


class Traces(Protocol):
    """Traces runs of the handler. A begun run is an object of its own."""

    def begin(self, deliveries: Sequence[Delivery]) -> Any:
        """Note that a slot begins with *deliveries*, in the context that the handler will have."""

    def leave(self, begun: Any) -> None:
        """Take the run out of the context that it began in; another context goes on with it."""

    def end(self, begun: Any, error: BaseException | None) -> None:
        """Note that the run has ended, with *error* or None; in any context."""


class Notifier(Protocol):
    """Tells the service manager the state of the instance (sd_notify(3)).

    Attributes:
        watchdog_seconds: Seconds that the service manager waits for a :meth:`watchdog` before it
            restarts the instance; 0 for ever.
    """

    watchdog_seconds: float

    def ready(self, status: str) -> None:
        """Say that the instance consumes from every queue."""

    def status(self, status: str) -> None:
        """Set the line that ``systemctl status`` shows."""

    def reloading(self, status: str) -> None:
        """Say that other settings are about to come into force; :meth:`ready` follows."""

    def stopping(self, status: str) -> None:
        """Say that the instance drains."""

    def extend(self, seconds: float) -> None:
        """Let the start, or the stop, go on for *seconds* from now (``EXTEND_TIMEOUT_USEC=``).

        The unit's own timeouts stay in force where they are longer.
        """

    def restart_reset(self) -> None:
        """Say that the instance works, so that its next restart is soon (``RESTART_RESET=1``)."""

    def watchdog(self) -> None:
        """Say that the instance does its work."""

    def trigger(self, status: str) -> None:
        """Say that the instance is stuck and has to be restarted, with the reason in *status*."""


class Ran(NamedTuple):
    """A slot was done with a delivery; there is one such event for each run.

    Attributes:
        delivery: The delivery that ran, with the history it had before the run.
        outcome: The result of the run.
    """

    delivery: Delivery
    outcome: Outcome


class Settled(NamedTuple):
    """A delivery was settled.

    Attributes:
        delivery: The delivery, with the history it had before its run.
        outcome: The result of its run.
        decision: The disposition, and the history after the run.
        is_void: Whether the channel was gone, so that the broker will deliver the message again.
    """

    delivery: Delivery
    outcome: Outcome
    decision: Decision
    is_void: bool


class StateChanged(NamedTuple):
    """The instance went on to another state of its lifecycle.

    Attributes:
        before: The state that it left.
        after: The state that it is in now.
    """

    before: State
    after: State


class Paused(NamedTuple):
    """The instance paused for a reason, or the reason is gone.

    Attributes:
        reason: The reason.
        text: The reason in words; "" where it is gone.
    """

    reason: Reason
    text: str


Observation: TypeAlias = Ran | Settled | StateChanged | Paused


class Observer(Protocol):
    """Takes note of events: counts them, logs them, shows them. It changes nothing.

    It is called on the event loop, several times for every delivery, and must be quick.
    """

    def notify(self, event: Observation) -> None:
        """Take note of *event*."""


class Observers(Observer):
    """Tells several observers, in the order of the arguments."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def add(self, observer: Observer) -> None:
        """Tell *observer* too, from the next event on."""
        self._observers = (*self._observers, observer)

    def remove(self, observer: Observer) -> None:
        """Tell *observer* no more."""
        self._observers = tuple(each for each in self._observers if each is not observer)

    def notify(self, event: Observation) -> None:
        """Tell each observer."""
        for observer in self._observers:
            observer.notify(event)
