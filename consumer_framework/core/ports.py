# SPDX-License-Identifier: GPL-2.0-or-later
"""What the core asks of the outside world, as Protocols.

Each port has one conformance suite, run against the real adapter and against the fake that
:mod:`consumer_framework.testing` ships.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator

    from .delivery import Delivery, Outcome
    from .gate import Reason
    from .lifecycle import State
    from .ordering import Blocker
    from .recovery import Decision


_Value = TypeVar("_Value")


class Acknowledger(Protocol):
    """Tells the broker what became of a delivery, on the channel that it came from.

    Every method returns False, and does nothing, when that channel is gone: the settle is void,
    and the broker delivers the message again (AMQP 0-9-1, section 1.8.3.13: "acknowledgements
    must be sent on the channel that the message was delivered on").
    """

    def is_open(self, delivery: Delivery) -> bool:
        """Whether a settle of *delivery* would not be void."""
        ...

    def ack(self, delivery: Delivery) -> bool:
        """Let the broker forget the message (``basic.ack``)."""
        ...

    def give_back(self, delivery: Delivery) -> bool:
        """Put the message back on its queue without counting it (``basic.nack``, requeue)."""
        ...

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back on its queue and have that counted (``basic.reject``, requeue)."""
        ...

    def reject(self, delivery: Delivery) -> bool:
        """Drop or dead-letter the message (``basic.reject``, no requeue)."""
        ...


class Future(Protocol[_Value]):
    """A result that one coroutine waits for until somebody sets it; asyncio's has this form."""

    def done(self) -> bool:
        """Whether it has a result, or was cancelled."""
        ...

    def set_result(self, result: _Value, /) -> None:
        """Let the coroutine go on with *result*."""
        ...

    def __await__(self) -> Generator[Any, None, _Value]: ...


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Do not call."""
        ...


class Task(Protocol):
    """A coroutine that runs beside others; asyncio's has this form."""

    def cancel(self) -> object:
        """End it, wherever it waits."""
        ...

    def cancelled(self) -> bool:
        """Whether it ended by being cancelled."""
        ...

    def exception(self) -> BaseException | None:
        """Return what it raised; None for nothing."""
        ...

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None:
        """Call *callback* with the task once it has ended."""
        ...


class Clock(Protocol):
    """The time, and ways to wait, so that tests can make time pass."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def time(self) -> float:
        """Seconds since the epoch, as the machine believes."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""
        ...

    def call_later(self, seconds: float, function: Callable[[], object]) -> Timer:
        """Call *function* in *seconds*."""
        ...

    def create_future(self) -> Future[Any]:
        """Make a future for the coroutine that runs."""
        ...


class Chance(Protocol):
    """Luck, so that tests can decide it."""

    def __call__(self) -> float:
        """A random number from 0 to 1."""
        ...


class Decoder(Protocol):
    """Turns bytes into what handlers take."""

    def __call__(self, delivery: Delivery) -> Any:
        """Return the message. Raises whatever shows that the bytes are none."""
        ...


class HandlerRunner(Protocol):
    """Runs the author's handler."""

    async def run(self, delivery: Delivery) -> Outcome:
        """Decode *delivery* and run the handler on it, as soon as a slot is free.

        Whatever is raised meanwhile comes back as a value.
        """
        ...

    def stop(self) -> None:
        """Let no slot begin with anything any more; what waits for one waits for a withdrawal."""
        ...

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        """End the runs that no slot has begun with, as :class:`.Withdrawn`.

        Args:
            which: Says whether that of a delivery is one to end.

        Returns:
            How many that were.
        """
        ...

    @property
    def is_quick(self) -> bool:
        """Whether runs take so little time that the next delivery should be ready for a slot."""
        ...


class Store(Protocol):
    """Keeps messages durably that the broker is told to forget.

    Every write is idempotent by the message, with its id, topic, headers and body: a process that
    dies between the write and the ack gets the message again, and finds the row. Two messages that
    are equal have two rows; :class:`.EqualMessages` tells them from one that comes again. A write
    has happened when its awaitable is done, and survives the loss of power then.

    The rows of one lane are in the order in which they were first written. A row keeps the lane
    that it was first written with. A deferred one never stays behind a quarantined one: whichever
    of the two comes later, the follower is quarantined, with :func:`.ordering.behind` for its
    reason and with its history.

    A delivery that came from a row which is gone by now writes nothing: an operator dropped it.

    Every method raises :class:`.StoreError` where the disk does not take the write.

    Attributes:
        keeps: Whether it keeps anything. One that does not is always empty, and takes no write.
    """

    keeps: bool = True

    async def defer(self, delivery: Delivery, until: float) -> None:
        """Keep *delivery*, history included, to run again at *until* seconds since the epoch.

        What waits behind a deferred row of its lane wants that one's time, so that it is due as
        soon as that one is done with. Behind a quarantined one, it is quarantined instead.
        """
        ...

    async def quarantine(self, delivery: Delivery, reason: str) -> None:
        """Keep *delivery*, history included, for an operator, and so what is deferred behind it."""
        ...

    async def remove(self, row: int) -> None:
        """Forget a deferred row: its message is done with."""
        ...

    async def rebase(self, now: float) -> int:
        """Bring forward the deferred rows that were written later than *now*; returns how many.

        The machine's clock was set back since. Each waits for as long as it was deferred for, and
        not for as long as the clock jumped.
        """
        ...

    def is_open(self, delivery: Delivery) -> bool:
        """Whether a row of this message waits, deferred or quarantined."""
        ...

    def due(self, now: float, limit: int, out: Collection[int] = ()) -> list[Delivery]:
        """At most *limit* deferred messages whose time has come at *now*, the longest due first.

        Of each lane only its first open row, if that is one of them; none of the rows in *out*,
        which the caller has already.
        """
        ...

    def next_due(self, out: Collection[int] = ()) -> float | None:
        """When :meth:`due` has the next one, in seconds since the epoch; None for never."""
        ...

    def is_blocked(self, lane: str, row: int = 0) -> bool:
        """Whether an open row of *lane* stands before *row*; for row 0 any one does.

        Open is whatever is deferred, quarantined or in a replay. Quick where the lane has no rows,
        for it is asked for every delivery; never True for lane "".
        """
        ...

    def blocked_by(self, lane: str, row: int = 0) -> Blocker | None:
        """The first open row of *lane*, None where none stands before *row*."""
        ...


class FlightRecorder(Protocol):
    """Remembers which messages were in a handler, whatever ends the process."""

    def crashes_of(self, delivery: Delivery) -> int:
        """How often the process died while the handler had this message."""
        ...

    def has_hung(self, delivery: Delivery) -> bool:
        """Whether the last process was restarted because the handler did not return in time."""
        ...

    def forget(self, delivery: Delivery) -> None:
        """The message is settled; its crashes count no longer."""
        ...

    def took_off(self, delivery: Delivery) -> int:
        """The handler starts on *delivery*; returns the place to give to :meth:`landed`."""
        ...

    def landed(self, place: int) -> None:
        """The handler is done."""
        ...


class Notifier(Protocol):
    """Tells the service manager how the instance is (sd_notify(3)).

    Attributes:
        watchdog_seconds: How long it waits for a :meth:`watchdog` before it restarts the instance;
            0 for ever.
    """

    watchdog_seconds: float

    def ready(self, status: str) -> None:
        """The instance consumes from every queue."""
        ...

    def status(self, status: str) -> None:
        """*status* is one line for ``systemctl status``."""
        ...

    def reloading(self, status: str) -> None:
        """Other settings are about to come into force; :meth:`ready` follows."""
        ...

    def stopping(self, status: str) -> None:
        """The instance drains."""
        ...

    def extend(self, seconds: float) -> None:
        """Let the start, or the stop, go on for *seconds* from now (``EXTEND_TIMEOUT_USEC=``).

        Nothing is taken away from what the unit's own timeouts allow.
        """
        ...

    def restart_reset(self) -> None:
        """The instance works: its next restart is to come soon (``RESTART_RESET=1``)."""
        ...

    def watchdog(self) -> None:
        """The instance does its work."""
        ...

    def trigger(self, status: str) -> None:
        """The instance is stuck, and has to be restarted; *status* says why."""
        ...


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
    """Is told what happens: counts it, logs it, shows it. Never changes it.

    It is called for every delivery, on the event loop, and must be quick.
    """

    def notify(self, event: Observation) -> None:
        """Take note of *event*."""
        ...


class Observers(Observer):
    """Tells several observers, in the order of the arguments."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def notify(self, event: Observation) -> None:
        """Tell each observer."""
        for observer in self._observers:
            observer.notify(event)
