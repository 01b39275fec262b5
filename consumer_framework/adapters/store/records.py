# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries to rows and back, and what the operator sees of a row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from zlib import crc32

from consumer_framework.core.attempt import Attempt, History
from consumer_framework.core.delivery import Delivery
from consumer_framework.core.errors import DamagedRowError
from consumer_framework.core.secrets import redact

from . import properties

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# What was received, and never changes while the row is there.
_RECEIVED = ("queue", "exchange", "routing_key", "message_id", "properties", "body")

State: TypeAlias = Literal["deferred", "quarantined", "replaying", "superseded"]


@dataclass(frozen=True, slots=True)
class Row:
    """One message of the store, as a list shows it.

    Attributes:
        id: Its number; never used again.
        state: ``deferred`` runs when it is due; ``quarantined`` waits for an operator;
            ``replaying`` is claimed by a replay; ``superseded`` is the original of an edited one.
        queue: The queue it came from.
        exchange: Where it was published.
        routing_key: Its topic.
        message_id: The publisher's name for it, "" where there is none.
        size: Bytes of its body.
        due: When it runs again, in seconds since the epoch; None unless it is deferred.
        reason: Why it is here.
        fingerprint: Equal for failures of the same cause; the reason where no attempt was made.
        attempts: How many failed.
        error: The exception class of the latest one, "" for none.
        message: Its first line.
        crashes: How often the process died while the handler had it.
        created: When it came here, in seconds since the epoch.
        updated: When its state was last written.
        parent: The row that it supersedes, None for a message as it was received.
        lane: Its ordering key, "" for none.
        behind: The first open row of its lane, which has to leave before this one runs; None where
            this is the first, is superseded, or has no lane.
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


@dataclass(frozen=True, slots=True)
class Group:
    """The quarantined messages of one cause.

    Attributes:
        fingerprint: The cause.
        count: How many there are.
        first: When the first one came here, in seconds since the epoch.
        last: When the latest one was written.
        sample: The oldest one.
        other_texts: How many texts there are in errors of this cause, besides that of *sample*.
    """

    fingerprint: str
    count: int
    first: float
    last: float
    sample: Row
    other_texts: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """How much there is.

    Attributes:
        deferred: Messages that run when they are due.
        quarantined: Messages that wait for an operator.
        replaying: Messages that a replay has claimed.
        superseded: Originals of messages that were edited.
        bytes: What they take: bodies, properties, reasons and attempts.
        oldest: When the oldest quarantined one was last written, in seconds since the epoch;
            None where there is none.
        next_due: When the next deferred one is due, None where there is none.
        blocked_lanes: Ordering keys whose first message is quarantined, so that those behind it
            wait for an operator too.
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
    """What was given up.

    Attributes:
        rows: How many messages.
        file: Where they were written to before.
    """

    rows: int
    file: Path


def key_of(delivery: Delivery) -> bytes:
    """Tell the message of *delivery* from every other one of its queue.

    The message id alone does not: nothing makes publishers keep theirs unique, and the second of
    two messages must not take the first one's row. So topic, headers and body are part of it.
    """
    digest = hashlib.sha256()
    headers = properties.pack_value(delivery.published_headers)
    for part in (delivery.message_id, delivery.routing_key, headers, delivery.body):
        octets = _octets(part)
        digest.update(len(octets).to_bytes(8, "big"))
        digest.update(octets)
    return digest.digest()


def text(value: str | bytes) -> str:
    """Make *value* text that a database and a terminal take: str(error) need not be."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.encode("utf-8", "backslashreplace").decode()


def _octets(value: str | bytes) -> bytes:
    # pika hands over names that are no UTF-8 as bytes.
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def checksum_of(row: Mapping[str, Any]) -> int:
    """Return the checksum of what was received, from the columns of a row."""
    checksum = 0
    for name in _RECEIVED:
        checksum = crc32(_octets(row[name]), checksum)
    return checksum


def size_of(*values: str | bytes) -> int:
    """Count the bytes of *values*."""
    return sum(len(_octets(value)) for value in values)


def columns_of(delivery: Delivery) -> dict[str, Any]:
    """Return the columns that come from *delivery* alone."""
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


def attempt_columns(attempt: Attempt) -> tuple[float, str, str, str, str]:
    """Return the columns of *attempt*."""
    return (
        attempt.at,
        text(attempt.error),
        redact(text(attempt.message)),
        redact(text(attempt.traceback)),
        text(attempt.fingerprint),
    )


def delivery_of(row: Mapping[str, Any], attempts: Iterable[tuple[Any, ...]]) -> Delivery:
    """Return the message of *row*, as a delivery of the store.

    Its ``delivery_tag`` is the row's number too, so that two of them can be told apart.

    Raises:
        DamagedRowError: The row is not what was written.
    """
    try:
        checksum = checksum_of(row)
        delivery = _delivery_of(row, attempts)
    except Exception as error:
        # Whatever was found in the place of JSON, numbers and dates.
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
        history=History(tuple(Attempt(*columns) for columns in attempts), row["crashes"]),
        row=row["id"],
        lane=row["lane"],
    )
