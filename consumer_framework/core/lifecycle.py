# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of an instance: states x events -> (state, effects), as a table.

The instance reports events and carries out the effects; only this table knows which state and
which effects follow. A drawing is in :mod:`consumer_framework.core`. An event without a row in the
current state is a defect and raises.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

from .errors import FrameworkError


class State(Enum):
    """A phase in the life of an instance."""

    BUILDING = auto()  # the handler is constructed and set up
    CONNECTING = auto()  # no usable connection; tried again with growing delay
    SUBSCRIBING = auto()  # connected; not yet consuming from every queue
    CONSUMING = auto()  # basic.consume-ok for every queue
    PAUSED = auto()  # consumes nothing on purpose, until the thing that it needs works again
    FAILING = auto()  # drains because it cannot go on
    DRAINING = auto()  # was told to stop; takes nothing more, running handlers finish
    STOPPED = auto()


class Event(Enum):
    """An occurrence in the life of an instance."""

    BUILT = auto()
    CONNECTED = auto()
    SUBSCRIBED = auto()
    INTERRUPTED = auto()  # one queue's channel or consumer is gone, the connection is not
    LOST = auto()  # the connection is gone, or an attempt to connect failed
    PAUSE = auto()  # a dependency or the store is broken
    RESUME = auto()  # it works again; the connection stands
    RESUME_OFFLINE = auto()  # it works again; there is no connection
    STOP = auto()  # SIGTERM or SIGINT
    FAULT = auto()  # something that ends the instance with an exit code
    DEADLINE = auto()  # the drain has had its time
    DRAINED = auto()


class Effect(Enum):
    """An action of the instance that follows from an event."""

    CONNECT = auto()
    ANNOUNCE_READY = auto()
    ANNOUNCE_STATUS = auto()
    PAUSE = auto()
    RESUME = auto()
    DRAIN = auto()
    CUT_SHORT = auto()  # stop without waiting for running handlers
    EXIT = auto()


class IllegalEventError(FrameworkError):
    """An event came that the current state has no row for."""


# Seconds that the second signal to stop leaves for an orderly end, before the process exits.
CUT_SHORT_GRACE = 5.0

Transition: TypeAlias = tuple[State, tuple[Effect, ...]]

_STOPPING: Transition = (State.DRAINING, (Effect.DRAIN,))
_PAUSED: Transition = (State.PAUSED, (Effect.PAUSE, Effect.ANNOUNCE_STATUS))
_STILL_PAUSED: Transition = (State.PAUSED, (Effect.ANNOUNCE_STATUS,))
_FAILING: Transition = (State.FAILING, (Effect.DRAIN,))
_LOST: Transition = (State.CONNECTING, (Effect.ANNOUNCE_STATUS,))
_CUT_SHORT: Transition = (State.STOPPED, (Effect.CUT_SHORT, Effect.EXIT))

TABLE: dict[tuple[State, Event], Transition] = {
    (State.BUILDING, Event.BUILT): (State.CONNECTING, (Effect.CONNECT, Effect.ANNOUNCE_STATUS)),
    (State.BUILDING, Event.STOP): _STOPPING,
    (State.BUILDING, Event.FAULT): _FAILING,
    (State.CONNECTING, Event.CONNECTED): (State.SUBSCRIBING, (Effect.ANNOUNCE_STATUS,)),
    (State.CONNECTING, Event.LOST): _LOST,
    (State.CONNECTING, Event.PAUSE): _PAUSED,
    (State.CONNECTING, Event.STOP): _STOPPING,
    (State.CONNECTING, Event.FAULT): _FAILING,
    (State.SUBSCRIBING, Event.SUBSCRIBED): (State.CONSUMING, (Effect.ANNOUNCE_READY,)),
    (State.SUBSCRIBING, Event.INTERRUPTED): (State.SUBSCRIBING, ()),
    (State.SUBSCRIBING, Event.LOST): _LOST,
    (State.SUBSCRIBING, Event.PAUSE): _PAUSED,
    (State.SUBSCRIBING, Event.STOP): _STOPPING,
    (State.SUBSCRIBING, Event.FAULT): _FAILING,
    (State.CONSUMING, Event.INTERRUPTED): (State.SUBSCRIBING, (Effect.ANNOUNCE_STATUS,)),
    (State.CONSUMING, Event.LOST): _LOST,
    (State.CONSUMING, Event.PAUSE): _PAUSED,
    (State.CONSUMING, Event.STOP): _STOPPING,
    (State.CONSUMING, Event.FAULT): _FAILING,
    (State.PAUSED, Event.PAUSE): _STILL_PAUSED,
    (State.PAUSED, Event.CONNECTED): _STILL_PAUSED,
    (State.PAUSED, Event.SUBSCRIBED): (State.PAUSED, (Effect.PAUSE,)),
    (State.PAUSED, Event.INTERRUPTED): _STILL_PAUSED,
    (State.PAUSED, Event.LOST): _STILL_PAUSED,
    (State.PAUSED, Event.RESUME): (State.SUBSCRIBING, (Effect.RESUME, Effect.ANNOUNCE_STATUS)),
    (State.PAUSED, Event.RESUME_OFFLINE): (
        State.CONNECTING,
        (Effect.RESUME, Effect.ANNOUNCE_STATUS),
    ),
    (State.PAUSED, Event.STOP): _STOPPING,
    (State.PAUSED, Event.FAULT): _FAILING,
    # Events of the broker no longer matter. The first order to stop finds the drain under way. The
    # second one ends the wait, and no drain waits for longer than handlers may take.
    (State.DRAINING, Event.BUILT): (State.DRAINING, ()),
    (State.DRAINING, Event.CONNECTED): (State.DRAINING, ()),
    (State.DRAINING, Event.SUBSCRIBED): (State.DRAINING, ()),
    (State.DRAINING, Event.INTERRUPTED): (State.DRAINING, ()),
    (State.DRAINING, Event.LOST): (State.DRAINING, ()),
    (State.DRAINING, Event.PAUSE): (State.DRAINING, ()),
    (State.DRAINING, Event.RESUME): (State.DRAINING, ()),
    (State.DRAINING, Event.RESUME_OFFLINE): (State.DRAINING, ()),
    (State.DRAINING, Event.FAULT): (State.DRAINING, ()),
    (State.FAILING, Event.BUILT): (State.FAILING, ()),
    (State.FAILING, Event.CONNECTED): (State.FAILING, ()),
    (State.FAILING, Event.SUBSCRIBED): (State.FAILING, ()),
    (State.FAILING, Event.INTERRUPTED): (State.FAILING, ()),
    (State.FAILING, Event.LOST): (State.FAILING, ()),
    (State.FAILING, Event.PAUSE): (State.FAILING, ()),
    (State.FAILING, Event.RESUME): (State.FAILING, ()),
    (State.FAILING, Event.RESUME_OFFLINE): (State.FAILING, ()),
    (State.FAILING, Event.FAULT): (State.FAILING, ()),
    (State.FAILING, Event.STOP): (State.DRAINING, ()),
    (State.FAILING, Event.DEADLINE): _CUT_SHORT,
    (State.FAILING, Event.DRAINED): (State.STOPPED, (Effect.EXIT,)),
    (State.DRAINING, Event.STOP): _CUT_SHORT,
    (State.DRAINING, Event.DEADLINE): _CUT_SHORT,
    (State.DRAINING, Event.DRAINED): (State.STOPPED, (Effect.EXIT,)),
    # The connection closes, and signals may come, while the process ends.
    (State.STOPPED, Event.LOST): (State.STOPPED, ()),
    (State.STOPPED, Event.FAULT): (State.STOPPED, ()),
    (State.STOPPED, Event.PAUSE): (State.STOPPED, ()),
    (State.STOPPED, Event.RESUME): (State.STOPPED, ()),
    (State.STOPPED, Event.RESUME_OFFLINE): (State.STOPPED, ()),
    (State.STOPPED, Event.STOP): (State.STOPPED, ()),
    (State.STOPPED, Event.DRAINED): (State.STOPPED, ()),
}


def advance(state: State, event: Event) -> Transition:
    """Return the state that follows when *event* happens in *state*, and the effects in order.

    Raises:
        IllegalEventError: The table has no row for it.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalEventError(f"{event.name} cannot happen to an instance {state.name}") from None
