# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of a session with the broker, which keeps a consumer on every queue.

A connection ends at any time, and the factory opens another one. On each, the session subscribes
to every queue, and waits for a queue that another consumer has for itself. It repairs later losses:
a channel that the broker closes, a consumer that the broker cancels. It also cancels all consumers
for a pause and starts them again, and adds and removes bindings after a reload.

This work is done in rounds. A round gives a consumer to each queue that has none, and then changes
the bindings that are due. One connection has one round at a time. Work that appears while a round
runs is done by that round. The end of a round of an earlier connection is void, as a settle is.

A connection is open in all states but ``OFFLINE`` and ``PAUSED_OFFLINE``::

            OPENED               SUBSCRIBED              WORK_DUE
    OFFLINE ─────▶ SUBSCRIBING ────────────▶ CONSUMING ─────────▶ ADJUSTING
                    ▲   │   ▲                 │     ▲  SUBSCRIBED  │ │ │
           WORK_DUE │   │   │                 │     └──────────────┘ │ │
                    │   │   └─────────────────┼──────────────────────┘ │
                    │   │ TAKEN    INTERRUPTED│      INTERRUPTED       │
                    │   ▼ FAILED              ▼                        │
                   INCOMPLETE ◀───────────────┴────────────────────────┘
                                                       TAKEN, FAILED

    state                   PAUSE            RESUME        LOST
    OFFLINE                 PAUSED_OFFLINE   -             OFFLINE (an attempt failed)
    SUBSCRIBING, ADJUSTING  PAUSING          -             OFFLINE
    INCOMPLETE, CONSUMING   PAUSED           -             OFFLINE
    PAUSING                 PAUSING          SUBSCRIBING   PAUSED_OFFLINE
    PAUSED                  PAUSED           SUBSCRIBING   PAUSED_OFFLINE
    PAUSED_OFFLINE          PAUSED_OFFLINE   OFFLINE       PAUSED_OFFLINE

``STOP`` leads from every state to ``STOPPING``, which no event leaves, and in which the connection
may be open or not. In ``PAUSING`` a round still has to end: an answer of the broker is under way,
and cannot be called back. ``CONSUMING`` and ``ADJUSTING`` differ from ``SUBSCRIBING`` in the
instance's belief: it was told that every queue has a consumer. A consumer that gets another
``prefetch_count``, and bindings that change, do not change that; an interruption does.
"""

from __future__ import annotations

from enum import Enum, auto

from consumer_framework.core.lifecycle import IllegalEventError


class SessionState(Enum):
    """A state of a session; the module docstring draws them."""

    OFFLINE = auto()  # no connection; the factory dials
    SUBSCRIBING = auto()  # a round runs
    INCOMPLETE = auto()  # a queue has no consumer; a timer starts the next round
    CONSUMING = auto()  # every queue has a consumer, and the listener knows that
    ADJUSTING = auto()  # as CONSUMING, while a round runs
    PAUSING = auto()  # as PAUSED, once the round that runs has ended
    PAUSED = auto()  # connected, without consumers on purpose; the channels stay open
    PAUSED_OFFLINE = auto()  # no connection, and none would get consumers
    STOPPING = auto()  # no work begins any more, and losses do not matter


class SessionEvent(Enum):
    """An event in the life of a session."""

    OPENED = auto()  # the AMQP handshake is complete
    LOST = auto()  # the connection is gone, or an attempt to connect failed
    WORK_DUE = auto()  # a queue may lack a consumer, or bindings are to change
    SUBSCRIBED = auto()  # a round ended, and every queue has a consumer
    TAKEN = auto()  # a round ended, but another consumer has a queue for itself
    FAILED = auto()  # a round failed
    INTERRUPTED = auto()  # a queue lost its consumer; the connection stands
    PAUSE = auto()
    RESUME = auto()
    STOP = auto()


class SessionEffect(Enum):
    """The session's own action after an event."""

    REPORT_CONNECTED = auto()
    REPORT_SUBSCRIBED = auto()
    START_ROUND = auto()
    RESET_DELAY = auto()  # the connection was of use: the next one may follow soon
    CANCEL_CONSUMERS = auto()
    HANG_UP = auto()


_S, _E, _F = SessionState, SessionEvent, SessionEffect

Target = tuple[SessionState, tuple[SessionEffect, ...]]
TABLE: dict[SessionState, dict[SessionEvent, Target]] = {
    _S.OFFLINE: {
        _E.OPENED: (_S.SUBSCRIBING, (_F.REPORT_CONNECTED, _F.START_ROUND)),
        _E.LOST: (_S.OFFLINE, ()),
        _E.WORK_DUE: (_S.OFFLINE, ()),
        _E.PAUSE: (_S.PAUSED_OFFLINE, ()),
        _E.STOP: (_S.STOPPING, ()),
    },
    _S.SUBSCRIBING: {
        _E.LOST: (_S.OFFLINE, ()),
        _E.WORK_DUE: (_S.SUBSCRIBING, ()),
        _E.SUBSCRIBED: (_S.CONSUMING, (_F.RESET_DELAY, _F.REPORT_SUBSCRIBED)),
        _E.TAKEN: (_S.INCOMPLETE, (_F.RESET_DELAY,)),
        _E.FAILED: (_S.INCOMPLETE, ()),
        _E.INTERRUPTED: (_S.SUBSCRIBING, ()),
        _E.PAUSE: (_S.PAUSING, (_F.CANCEL_CONSUMERS,)),
        _E.STOP: (_S.STOPPING, ()),
    },
    _S.INCOMPLETE: {
        _E.LOST: (_S.OFFLINE, ()),
        _E.WORK_DUE: (_S.SUBSCRIBING, (_F.START_ROUND,)),
        _E.FAILED: (_S.INCOMPLETE, ()),  # the listener raised, as in CONSUMING
        _E.INTERRUPTED: (_S.INCOMPLETE, ()),
        _E.PAUSE: (_S.PAUSED, (_F.CANCEL_CONSUMERS,)),
        _E.STOP: (_S.STOPPING, ()),
    },
    _S.CONSUMING: {
        _E.LOST: (_S.OFFLINE, ()),
        _E.WORK_DUE: (_S.ADJUSTING, (_F.START_ROUND,)),
        _E.FAILED: (_S.INCOMPLETE, ()),  # the listener raised when it was told of the end
        _E.INTERRUPTED: (_S.INCOMPLETE, ()),
        _E.PAUSE: (_S.PAUSED, (_F.CANCEL_CONSUMERS,)),
        _E.STOP: (_S.STOPPING, ()),
    },
    _S.ADJUSTING: {
        _E.LOST: (_S.OFFLINE, ()),
        _E.WORK_DUE: (_S.ADJUSTING, ()),
        _E.SUBSCRIBED: (_S.CONSUMING, ()),
        _E.TAKEN: (_S.INCOMPLETE, ()),
        _E.FAILED: (_S.INCOMPLETE, ()),
        _E.INTERRUPTED: (_S.SUBSCRIBING, ()),
        _E.PAUSE: (_S.PAUSING, (_F.CANCEL_CONSUMERS,)),
        _E.STOP: (_S.STOPPING, ()),
    },
    # The round may have got a consumer after the others were canceled: cancel it at the end.
    _S.PAUSING: {
        _E.LOST: (_S.PAUSED_OFFLINE, ()),
        _E.WORK_DUE: (_S.PAUSING, ()),
        _E.SUBSCRIBED: (_S.PAUSED, (_F.CANCEL_CONSUMERS,)),
        _E.TAKEN: (_S.PAUSED, (_F.CANCEL_CONSUMERS,)),
        _E.FAILED: (_S.PAUSED, (_F.CANCEL_CONSUMERS,)),
        _E.INTERRUPTED: (_S.PAUSING, ()),
        _E.PAUSE: (_S.PAUSING, ()),
        _E.RESUME: (_S.SUBSCRIBING, ()),
        _E.STOP: (_S.STOPPING, ()),
    },
    _S.PAUSED: {
        _E.LOST: (_S.PAUSED_OFFLINE, ()),
        _E.WORK_DUE: (_S.PAUSED, ()),
        _E.FAILED: (_S.PAUSED, ()),  # the listener raised, as in CONSUMING
        _E.INTERRUPTED: (_S.PAUSED, ()),
        _E.PAUSE: (_S.PAUSED, ()),
        _E.RESUME: (_S.SUBSCRIBING, (_F.START_ROUND,)),
        _E.STOP: (_S.STOPPING, ()),
    },
    _S.PAUSED_OFFLINE: {
        _E.OPENED: (_S.PAUSED, (_F.REPORT_CONNECTED,)),
        _E.LOST: (_S.PAUSED_OFFLINE, ()),
        _E.WORK_DUE: (_S.PAUSED_OFFLINE, ()),
        _E.PAUSE: (_S.PAUSED_OFFLINE, ()),
        _E.RESUME: (_S.OFFLINE, ()),
        _E.STOP: (_S.STOPPING, ()),
    },
    # A handshake that was under way may still succeed. Nothing else matters any more.
    _S.STOPPING: {
        **dict.fromkeys(SessionEvent, (_S.STOPPING, ())),
        _E.OPENED: (_S.STOPPING, (_F.HANG_UP,)),
    },
}


def advance(state: SessionState, event: SessionEvent) -> Target:
    """Return the state after *event* happened in *state*, and the effects, in their order.

    Raises:
        IllegalEventError: The table has no row for it.
    """
    try:
        return TABLE[state][event]
    except KeyError:
        raise IllegalEventError(f"{event.name} cannot happen to a session {state.name}") from None
