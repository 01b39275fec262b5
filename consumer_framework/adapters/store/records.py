# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries to rows and back, and the values that an operator sees."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from zlib import crc32

from consumer_framework.core.attempt import Attempt, History, RouteState
from consumer_framework.core.delivery import Delivery
from consumer_framework.core.errors import DamagedRowError
from consumer_framework.core.secrets import redact

from . import properties

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# The columns of the message as it was received. They never change.
_RECEIVED = ("queue", "exchange", "routing_key", "message_id", "properties", "body")

State: TypeAlias = Literal["deferred", "quarantined", "replaying", "superseded"]


@dataclass(frozen=True, slots=True)
class Row:
    """One message of the store, as a list shows it.

    Attributes:
        id: Its number; no other row ever gets it.
        state: ``deferred`` runs when it is due; ``quarantined`` waits for an operator;
            ``replaying`` is claimed by a replay; ``superseded`` is the original of an edited copy.
        queue: The queue that it came from.
        exchange: The exchange that it was published to.
        routing_key: Its topic.
        message_id: The publisher's id, "" where there is none.
        size: Bytes of its body.
        due: The time of its next run, in seconds since the epoch; None unless it is deferred.
        reason: The reason for its state, one line.
        fingerprint: Equal for failures of the same cause; the reason where no attempt was made.
        attempts: The number of failed attempts.
        error: The exception class of the latest failure, "" for none.
        message: The first line of that failure's text.
        crashes: The number of times that the process died while the handler had the message.
        created: The time when it was first written, in seconds since the epoch.
        updated: The time when its state was last written.
        parent: The row that it supersedes, None for a message as it was received.
        lane: Its ordering key, "" for none.
        behind: The first open row of its lane, which has to leave before this row runs; None where
            this row is the first, is superseded, or has no lane.
        ordered_by: The last order about it, a replay or an edit, with the operator and the time;
            "" for none.
        position: Its place among the rows of its lane: the number of the row that it was edited
            from first, or its own. 0 from an instance that is older than this field.
    """

    id: int
    state: State
    queue: str
    exchange: str
    routing_key: str
    message_id: str
    size: int
    due: float | None
    reason: str
    fingerprint: str
    attempts: int
    error: str
    message: str
    crashes: int
    created: float
    updated: float
    parent: int | None
    lane: str
    behind: int | None
    ordered_by: str = ""
    position: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """The quarantined messages of one cause.

    Attributes:
        fingerprint: The cause.
        count: The number of messages.
        first: The time when the first one was written, in seconds since the epoch.
        last: The time when the latest one was written.
        sample: The oldest message.
        other_texts: The number of different error texts of this cause, besides that of *sample*.
    """

    fingerprint: str
    count: int
    first: float
    last: float
    sample: Row
    other_texts: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """The number of messages in each state, and their size.

    Attributes:
        deferred: Messages that run when they are due.
        quarantined: Messages that wait for an operator.
        replaying: Messages that a replay has claimed.
        superseded: Originals of messages that were edited.
        bytes: The size of all: bodies, properties, reasons and attempts.
        oldest: The time when the oldest quarantined message was last written, in seconds since the
            epoch; None where there is none.
        next_due: The time when the next deferred message is due, None where there is none.
        blocked_lanes: The number of ordering keys whose first message is quarantined, so that the
            messages behind it wait for an operator too.
    """

    deferred: int
    quarantined: int
    replaying: int
    superseded: int
    bytes: int
    oldest: float | None
    next_due: float | None
    blocked_lanes: int


@dataclass(frozen=True, slots=True)
class Expired:
    """The messages that expired.

    Attributes:
        rows: The number of messages.
        file: The file that they were appended to.
    """

    rows: int
    file: Path


# Bytes of a key. What follows them in the key of a row tells rows of equal messages apart.
KEY_BYTES = 32


def key_of(delivery: Delivery) -> bytes:
    """Return a key that tells the message of *delivery* from every other message of its queue.

    The message id alone is not enough: nothing makes publishers keep their ids unique, and the
    second of two messages must not take the row of the first. So the key covers topic, headers and
    body as well.
    """
    digest = hashlib.sha256()
    headers = properties.pack_value(delivery.published_headers)
    for part in (delivery.message_id, delivery.routing_key, headers, delivery.body):
        octets = _octets(part)
        digest.update(len(octets).to_bytes(8, "big"))
        digest.update(octets)
    return digest.digest()


def in_lane_order(numbers: Sequence[int], members: Iterable[tuple[int, str]]) -> list[int]:
    """Sort the rows of each lane, in the places that the lane has among *numbers*.

    Args:
        numbers: Rows, with or without a lane.
        members: Those that have a lane, with it, in the order of their positions.
    """
    lanes: dict[int, str] = {}
    queues: dict[str, deque[int]] = {}
    for number, lane in members:
        lanes[number] = lane
        queues.setdefault(lane, deque()).append(number)
    return [queues[lanes[n]].popleft() if n in lanes else n for n in numbers]


def text(value: str | bytes) -> str:
    """Return *value* as text that a database and a terminal take; not every str(error) is."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.encode("utf-8", "backslashreplace").decode()


def _octets(value: str | bytes) -> bytes:
    # pika returns names that are no UTF-8 as bytes.
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def checksum_of(row: Mapping[str, Any]) -> int:
    """Return the checksum of a message as it was received, from the columns of its row."""
    checksum = 0
    for name in _RECEIVED:
        checksum = crc32(_octets(row[name]), checksum)
    return checksum


def size_of(*values: str | bytes) -> int:
    """Count the bytes of *values*."""
    return sum(len(_octets(value)) for value in values)


@dataclass(frozen=True, slots=True)
class Entry:
    """A delivery as the writer puts it into the store.

    Attributes:
        row: The row that the delivery came from, 0 where the broker delivered it.
        columns: The columns of its row, but for the number; ``now`` stands for the time.
        attempts: The columns of its failed attempts.
    """

    row: int
    columns: dict[str, Any]
    attempts: list[tuple[float, str, str, str, str, str]]

    @classmethod
    def of(
        cls, delivery: Delivery, state: State, reason: str, now: float, due: float | None = None
    ) -> Self:
        """Make the entry of *delivery*.

        Call it on the thread of the event loop, since the handler's message shares the properties.

        Args:
            delivery: The delivery, with its history.
            state: The state that its row gets.
            reason: The reason for that, one line.
            now: Seconds since the epoch.
            due: The time of its next run, in seconds since the epoch; None unless it is deferred.
        """
        attempts = [attempt_columns(attempt) for attempt in delivery.history.attempts]
        reason = redact(text(reason))
        columns = _columns_of(delivery)
        texts = (part for attempt in attempts for part in attempt[2:4])
        columns |= {
            "state": state,
            "due": due,
            "reason": reason,
            "fingerprint": _cause(delivery.history) or reason,
            "now": now,
            "kept": size_of(delivery.body, columns["properties"], reason, *texts),
            "routes": _packed(delivery.history.routes),
        }
        return cls(delivery.row, columns, attempts)


def _columns_of(delivery: Delivery) -> dict[str, Any]:
    columns = {
        "queue": delivery.queue,
        "key": key_of(delivery),
        "message_id": text(delivery.message_id),
        "exchange": delivery.exchange,
        "routing_key": delivery.routing_key,
        "redelivered": delivery.redelivered,
        "received_at": delivery.received_at,
        "properties": properties.pack(delivery.properties),
        "body": delivery.body,
        "crashes": delivery.history.crashes,
        "lane": text(delivery.lane),
    }
    return columns | {"checksum": checksum_of(columns)}


def _cause(history: History) -> str:
    """Return the fingerprint of the latest attempt, of a route that has failed for good if any."""
    failed = {state.route for state in history.routes if state.ending == "failed"}
    attempts = [a for a in history.attempts if not failed or a.route in failed]
    return text(attempts[-1].fingerprint) if attempts else ""


def _packed(routes: tuple[RouteState, ...]) -> str:
    states = [[*state[:3], redact(text(state.reason))] for state in routes]
    return json.dumps(states) if states else ""


def attempt_columns(attempt: Attempt) -> tuple[float, str, str, str, str, str]:
    """Return the columns of *attempt*."""
    return (
        attempt.at,
        text(attempt.error),
        redact(text(attempt.message)),
        redact(text(attempt.traceback)),
        text(attempt.fingerprint),
        attempt.route,
    )


def delivery_of(row: Mapping[str, Any], attempts: Iterable[tuple[Any, ...]]) -> Delivery:
    """Return the message of *row* as a delivery.

    Its ``delivery_tag`` is the number of the row, so that no two deliveries of the store are equal.

    Raises:
        DamagedRowError: The row differs from the row that was written.
    """
    try:
        checksum = checksum_of(row)
        delivery = _delivery_of(row, attempts)
    except Exception as error:
        # Anything may stand in the place of JSON, numbers and dates.
        reason = f"it cannot be read ({type(error).__name__}: {error})"
        raise DamagedRowError(row["id"], reason) from error
    if row["checksum"] not in {None, checksum}:
        raise DamagedRowError(row["id"], "its message is not what was received")
    return delivery


def _delivery_of(row: Mapping[str, Any], attempts: Iterable[tuple[Any, ...]]) -> Delivery:
    return Delivery(
        queue=row["queue"],
        generation=0,
        delivery_tag=row["id"],
        redelivered=bool(row["redelivered"]),
        exchange=row["exchange"],
        routing_key=row["routing_key"],
        properties=properties.unpack(row["properties"]),
        body=row["body"],
        received_at=row["received_at"],
        history=History(
            tuple(Attempt(*columns) for columns in attempts),
            row["crashes"],
            tuple(RouteState(*state) for state in json.loads(row["routes"] or "[]")),
        ),
        row=row["id"],
        lane=row["lane"],
    )
