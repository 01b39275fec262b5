# SPDX-License-Identifier: GPL-2.0-or-later
"""What the core asks of the outside world, as Protocols.

Each port has one conformance suite, run against the real adapter and against the fake that
:mod:`consumer_framework.testing` ships.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .delivery import Delivery, Outcome
    from .disposition import Disposition


class Acknowledger(Protocol):
    """Tells the broker what became of a delivery, on the channel that it came from.

    Every method returns False, and does nothing, when that channel is gone: the settle is void,
    and the broker delivers the message again (AMQP 0-9-1, section 1.8.3.13: "acknowledgements
    must be sent on the channel that the message was delivered on").
    """

    def ack(self, delivery: Delivery) -> bool:
        """Let the broker forget the message (``basic.ack``)."""
        ...

    def give_back(self, delivery: Delivery) -> bool:
        """Put the message back on its queue without counting it (``basic.nack``, requeue)."""
        ...

    def reject(self, delivery: Delivery) -> bool:
        """Drop or dead-letter the message (``basic.reject``, no requeue)."""
        ...


class Clock(Protocol):
    """Time, so that tests can make it pass."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...


class Decoder(Protocol):
    """Turns bytes into what handlers take."""

    def __call__(self, delivery: Delivery) -> Any:
        """Return the message, or :class:`.Undecodable`. Raises for faults of this host."""
        ...


class HandlerRunner(Protocol):
    """Runs the author's handler."""

    async def run(self, message: Any) -> Outcome:
        """Run the handler on *message*; whatever it raises comes back as a value."""
        ...


class Notifier(Protocol):
    """Tells the service manager how the instance is (sd_notify(3))."""

    def ready(self, status: str) -> None:
        """The instance consumes from every queue."""
        ...

    def status(self, status: str) -> None:
        """*status* is one line for ``systemctl status``."""
        ...

    def stopping(self, status: str) -> None:
        """The instance drains."""
        ...


class Recorder(Protocol):
    """Counts and logs what became of deliveries."""

    def started(self, delivery: Delivery) -> None:
        """A slot took *delivery*."""
        ...

    def settled(
        self, delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool
    ) -> None:
        """*delivery* was settled; *void* if its channel was gone."""
        ...
