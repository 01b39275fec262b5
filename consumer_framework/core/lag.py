# SPDX-License-Identifier: GPL-2.0-or-later
"""The lag in time: the age of the oldest message that was published and not yet handled.

A broker tells its clients the number of ready messages, and no ages. A queue delivers its oldest
messages first, so the oldest message is among those that this instance has in memory. Its age
follows from the time that the message carries. If no message carries a time, the age is estimated:
at the present rate, the last message of the queue waits for lag / rate (Little's law).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .delivery import Delivery, Properties

# fedora-messaging's header: ISO 8601 with a time zone, by the publisher's clock.
SENT_AT = "sent-at"
# RabbitMQ's header, in milliseconds, by the broker's clock: rabbitmq.com/docs/message-interceptors
RECEIVED_AT = "timestamp_in_ms"


@dataclass(frozen=True, slots=True)
class Lag:
    """The lag of an instance in time.

    Attributes:
        seconds: The age of the oldest message that waits; None where it is not known.
        source: ``"message"``, ``"estimate"``, or "" where the age is not known.
    """

    seconds: float | None = None
    source: str = ""


UNKNOWN = Lag()


def published_at(properties: Properties) -> float | None:
    """Return the time of a message in seconds since the epoch; None if it carries none.

    The broker's own time goes before that of the publisher, whose clock may be wrong.
    """
    headers = properties.headers or {}
    times = (
        _number(headers.get(RECEIVED_AT), 0.001),
        _number(getattr(properties, "timestamp", None)),
        moment_of(headers.get(SENT_AT)),
    )
    return next((moment for moment in times if moment is not None), None)


def _number(value: Any, unit: float = 1.0) -> float | None:
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or UTC).timestamp()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * unit if is_number and value > 0 else None


def moment_of(text: object) -> float | None:
    """Read a ``sent-at`` header, as fedora-messaging writes it.

    Args:
        text: The value of the header, which a publisher may have made up.

    Returns:
        Seconds since the epoch; None if it is no time. A time without a zone is UTC.
    """
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def oldest_by_queue(deliveries: Iterable[Delivery]) -> dict[str, float]:
    """Return the time of the oldest message of each queue, in seconds since the epoch.

    Messages that come from the store, and those that run again, are left out: they have waited for
    their next attempt, and not behind others.
    """
    found: dict[str, float] = {}
    for delivery in deliveries:
        if delivery.row or delivery.history.attempts:
            continue
        moment = published_at(delivery.properties)
        if moment is not None:
            found[delivery.queue] = min(moment, found.get(delivery.queue, moment))
    return found


def lag_of(oldest: float | None, waiting: int | None, rate: float, now: float) -> Lag:
    """Return the lag in time.

    Args:
        oldest: The time of the oldest message that is known, in seconds since the epoch.
        waiting: The number of messages that wait, on the broker and in memory; None if unknown.
        rate: Messages handled in a second.
        now: Seconds since the epoch.
    """
    if oldest is not None:
        # The publisher's clock may be ahead of ours.
        return Lag(max(0.0, now - oldest), "message")
    if waiting == 0:
        return Lag(0.0, "message")
    if waiting is not None and rate > 0:
        return Lag(waiting / rate, "estimate")
    return UNKNOWN
