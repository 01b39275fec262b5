# SPDX-License-Identifier: GPL-2.0-or-later
"""The events that the process of a consumer tells its parent, one line of JSON each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Consuming:
    """The consumer consumes from its queues."""


@dataclass(frozen=True, slots=True)
class Paused:
    """The consumer pauses, or goes on.

    Attributes:
        text: The reason; "" if it goes on.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The consumer is done with a message, for now or for good.

    Attributes:
        id: The id of the message.
        topic: Its topic.
        disposition: The kind of its disposition, in lower case: ``ack``, ``hold``, ``quarantine``.
        verb: The disposition in words.
        reason: The reason in words; "" for none.
        attempt: The number of this attempt, from 1.
        seconds: The time since the message arrived, or since its retry was due.
        retry_in: Seconds until the next attempt; None for none.
        traceback: The traceback of the handler's exception; "" for none.
        fingerprint: The same for each failure of the same cause.
        is_void: The connection was gone, so that the broker delivers the message again.
    """

    id: str
    topic: str
    disposition: str
    verb: str
    reason: str = ""
    attempt: int = 1
    seconds: float = 0.0
    retry_in: float | None = None
    traceback: str = ""
    fingerprint: str = ""
    is_void: bool = False


Event: TypeAlias = Consuming | Paused | Settled

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Consuming, Paused, Settled)}


def line_of(event: Event) -> bytes:
    """Write *event* as a line."""
    return json.dumps([type(event).__name__, asdict(event)]).encode() + b"\n"


def read(line: bytes) -> Event:
    """Read an event."""
    name, values = json.loads(line)
    return _KINDS[name](**values)
