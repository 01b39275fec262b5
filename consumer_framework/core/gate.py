# SPDX-License-Identifier: GPL-2.0-or-later
"""The gate of an instance: whether it takes work, and the reasons why it does not.

Work comes in by three entries::

    broker ── CONSUME ──▶ waiting deliveries ── BEGIN ──▶ slots ──▶ handler
    store  ── RECALL ───▶

The gate is ``OPEN``, ``SUSPENDED`` for as long as a reason stands, or ``CLOSED`` for good. Each
reason shuts the entries that it has to, and no others: an open breaker lets a probe begin, and a
store that cannot be written lets its own rows come back, because rows that leave make room.
``CLOSED`` shuts everything. Work that is in a slot finishes in every state.

The instance owns one gate. Nobody else remembers whether work may be taken: each part that takes
work reads the gate, and listens to it where it has to act at once. A listener reads the gate as it
is now, because a listener before it may have changed the gate again.

The table below has every legal event. Reasons may come and go after the end, where they change
nothing but the text that people read.
"""

from __future__ import annotations

from enum import Enum, Flag, auto
from typing import TYPE_CHECKING, TypeAlias

from .errors import FrameworkError

if TYPE_CHECKING:
    from collections.abc import Callable


class GateState(Enum):
    """The states of a gate."""

    OPEN = auto()
    SUSPENDED = auto()
    CLOSED = auto()


class GateEvent(Enum):
    """A change of the gate."""

    SUSPEND = auto()  # a reason stands, or its text is another one
    RESUME = auto()  # a reason is gone
    CLOSE = auto()  # the instance stops


class GateEntry(Flag):
    """The steps by which work comes in."""

    CONSUME = auto()  # the broker sends deliveries
    RECALL = auto()  # deferred rows of the store come back to memory
    BEGIN = auto()  # a slot begins with a delivery that waits in memory


class Reason(Enum):
    """The reasons for a suspension."""

    DEPENDENCY = auto()  # the breaker is open
    STORE = auto()  # a commit failed, and is tried again
    ORDER = auto()  # with strict order, a message in the store goes before all others
    RECONNECTION = auto()  # nothing may run on two connections at once
    OPERATOR = auto()  # an operator ordered it; only replays of operators run


SHUTS: dict[Reason, GateEntry] = {
    Reason.DEPENDENCY: GateEntry.CONSUME | GateEntry.RECALL,
    Reason.STORE: GateEntry.CONSUME,
    Reason.ORDER: GateEntry.CONSUME,
    Reason.RECONNECTION: GateEntry.BEGIN,
    Reason.OPERATOR: GateEntry.CONSUME | GateEntry.RECALL,
}

# RESUME is the last reason's end: the gate stays suspended while another one stands.
TABLE: dict[tuple[GateState, GateEvent], GateState] = {
    (GateState.OPEN, GateEvent.SUSPEND): GateState.SUSPENDED,
    (GateState.OPEN, GateEvent.CLOSE): GateState.CLOSED,
    (GateState.SUSPENDED, GateEvent.SUSPEND): GateState.SUSPENDED,
    (GateState.SUSPENDED, GateEvent.RESUME): GateState.OPEN,
    (GateState.SUSPENDED, GateEvent.CLOSE): GateState.CLOSED,
    (GateState.CLOSED, GateEvent.SUSPEND): GateState.CLOSED,
    (GateState.CLOSED, GateEvent.RESUME): GateState.CLOSED,
}

if TYPE_CHECKING:
    Listener: TypeAlias = Callable[[GateEvent, Reason | None], object]


class IllegalGateEventError(FrameworkError):
    """The gate was told something that cannot happen to it."""


class Gate:
    """The gate of one instance.

    Attributes:
        reasons: The reasons that stand, each with a text for people; "" for no text.
        is_closed: Whether no work will be taken any more.
        may_consume: Whether the broker may send deliveries.
        may_recall: Whether deferred rows may come back to memory.
        may_begin: Whether a slot may begin with a delivery.
    """

    def __init__(self) -> None:
        self._state = GateState.OPEN
        self._listeners: list[Listener] = []
        self.reasons: dict[Reason, str] = {}
        # Attributes, for each delivery reads them.
        self.is_closed = False
        self.may_consume = self.may_recall = self.may_begin = True

    @property
    def state(self) -> GateState:
        """The state of the gate."""
        return self._state

    @property
    def why_not_consuming(self) -> str:
        """The texts of the reasons for which nothing is consumed; "" where there is none."""
        return "; ".join(
            t for reason, t in self.reasons.items() if GateEntry.CONSUME in SHUTS[reason]
        )

    def listen(self, listener: Listener) -> None:
        """Call *listener* after each event, with the event and its reason; None for a close."""
        self._listeners.append(listener)

    def suspend(self, reason: Reason, text: str = "") -> None:
        """Shut the entries of *reason*, or give other words for a reason that stands."""
        self._advance(GateEvent.SUSPEND)
        self.reasons[reason] = text
        self._tell(GateEvent.SUSPEND, reason)

    def resume(self, reason: Reason) -> None:
        """Open the entries of *reason*, but for those that another reason shuts.

        Raises:
            IllegalGateEventError: *reason* does not stand.
        """
        if reason not in self.reasons:
            raise IllegalGateEventError(f"nothing is suspended for {reason.name}")
        if len(self.reasons) == 1:
            self._advance(GateEvent.RESUME)
        del self.reasons[reason]
        self._tell(GateEvent.RESUME, reason)

    def close(self) -> None:
        """Shut every entry for good.

        Raises:
            IllegalGateEventError: The gate is closed already.
        """
        self._advance(GateEvent.CLOSE)
        self._tell(GateEvent.CLOSE, None)

    def _advance(self, event: GateEvent) -> None:
        try:
            self._state = TABLE[self._state, event]
        except KeyError:
            what = f"{event.name} cannot happen to a gate that is {self._state.name}"
            raise IllegalGateEventError(what) from None

    def _tell(self, event: GateEvent, reason: Reason | None) -> None:
        self.is_closed = self._state is GateState.CLOSED
        shut = GateEntry(0) if not self.is_closed else ~GateEntry(0)
        for each in self.reasons:
            shut |= SHUTS[each]
        self.may_consume = GateEntry.CONSUME not in shut
        self.may_recall = GateEntry.RECALL not in shut
        self.may_begin = GateEntry.BEGIN not in shut
        for listener in self._listeners:
            listener(event, reason)
