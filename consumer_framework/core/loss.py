# SPDX-License-Identifier: GPL-2.0-or-later
"""The forecast of the next loss: of messages, or of the connection.

Each function in :data:`FORECASTS` looks at one cause, and yields the losses that will come if
nothing changes: facts go in; the seconds until then, the words for it and the cure come out. The
nearest one is the *time to loss* of an instance. Times are in seconds, and sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .text import LONGEST, duration_text, plural, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A growth that is slower takes months, and is more likely chance.
_LEAST_GROWTH = 1e-6


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss that will come if nothing changes.

    Attributes:
        subject: The loss in words, such as ``queue "builds" reaches 1.0 GiB and drops its oldest
            messages``.
        seconds: The time until then; 0 if it has begun.
        cure: The remedy, in words for an operator.
    """

    subject: str
    seconds: float
    cure: str = ""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits of a queue; None for no limit, or one that is not known.

    Attributes:
        messages: Ready messages, at most.
        bytes: Bytes in the bodies of ready messages, at most.
        message_ttl: The age at which a message expires.
        expires: The time without a consumer after which the broker deletes the queue.
        refuses: Whether a full queue refuses new messages, in place of dropping its oldest ones.
        is_dead_lettered: Whether messages that are dropped or expire go to another exchange.
        is_renewed: Whether a passive declaration counts as a use of the queue, after which the time
            without a consumer begins anew. RabbitMQ has it so for classic queues, and not for
            quorum queues.
    """

    messages: int | None = None
    bytes: int | None = None
    message_ttl: float | None = None
    expires: float | None = None
    refuses: bool = False
    is_dead_lettered: bool = False
    is_renewed: bool = True


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """The facts about one queue.

    Attributes:
        name: Its name.
        limits: Its limits.
        ready: The number of ready messages; None if unknown.
        growth: The growth of that number in a second; None if unknown.
        body_size: The mean size of a message's body; None if unknown.
        age: The age of its oldest message; None if unknown.
        aging: The growth of that age in a second: 1 while nothing is consumed; None if unknown.
        unused: The time since this instance had a consumer on it; None while it has one, or while
            it renews the queue.
    """

    name: str
    limits: QueueLimits
    ready: int | None = None
    growth: float | None = None
    body_size: float | None = None
    age: float | None = None
    aging: float | None = None
    unused: float | None = None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The facts about the store of an instance, and the disk that it is on.

    Attributes:
        directory: The state directory; "" for a store in memory.
        used: The size of all messages in the store.
        growth: The growth of that size in a second; None if unknown.
        limit: ``quarantine_max_bytes``.
        quarantined: The number of quarantined messages.
        oldest: The age of the oldest quarantined message; None for none.
        max_age: ``quarantine_max_age``.
        disk_free: The free bytes of the disk; None if unknown.
        disk_growth: The growth of the free bytes in a second; None if unknown.
    """

    directory: str = ""
    used: int = 0
    growth: float | None = None
    limit: int | None = None
    quarantined: int = 0
    oldest: float | None = None
    max_age: float | None = None
    disk_free: int | None = None
    disk_growth: float | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of the connection.

    Attributes:
        path: Its file.
        left: The time until its end; negative after it.
    """

    path: str
    left: float


NO_STORE = StoreFacts()


@dataclass(frozen=True, slots=True)
class LossFacts:
    """The facts about an instance from which its losses follow."""

    queues: tuple[QueueFacts, ...] = ()
    store: StoreFacts = NO_STORE
    certificates: tuple[Certificate, ...] = ()


def next_loss(facts: LossFacts) -> Loss | None:
    """Return the nearest loss; None if there is none in sight, which is ten years."""
    losses = [loss for forecast in FORECASTS for loss in forecast(facts) if loss.seconds < LONGEST]
    nearest = min(losses, key=lambda loss: loss.seconds, default=None)
    return replace(nearest, seconds=round(nearest.seconds, 1)) if nearest else None


def _until(limit: float | None, value: float | None, growth: float | None) -> float | None:
    """Return the time until a growing *value* reaches *limit*; None if it never does."""
    if limit is None or value is None:
        return None
    if value >= limit:
        return 0.0
    return (limit - value) / growth if growth is not None and growth > _LEAST_GROWTH else None


_HANDLE_FASTER = (
    "handle its messages faster: more slots, or more workers by `fm-consumer scale`; "
    "`fm-consumer quarantine list` shows messages that fail"
)


def _full_queues(facts: LossFacts) -> Iterator[Loss]:
    for queue in facts.queues:
        limits, at = queue.limits, []
        # A queue with a limit of 0 keeps nothing by intent.
        by_count = _until(limits.messages or None, queue.ready, queue.growth)
        if by_count is not None and limits.messages is not None:
            at.append((by_count, plural(limits.messages, "message")))
        if queue.body_size and queue.ready is not None and limits.bytes is not None:
            growth = None if queue.growth is None else queue.growth * queue.body_size
            by_size = _until(limits.bytes or None, queue.ready * queue.body_size, growth)
            if by_size is not None:
                at.append((by_size, size(limits.bytes)))
        for seconds, limit in at:
            subject = f'queue "{queue.name}" reaches {limit} and {_overflow(limits)}'
            yield Loss(subject, seconds, _HANDLE_FASTER)


def _overflow(limits: QueueLimits) -> str:
    if limits.refuses:
        return "refuses new messages"
    verb = "dead-letters" if limits.is_dead_lettered else "drops"
    return f"{verb} its oldest messages"


def _old_messages(facts: LossFacts) -> Iterator[Loss]:
    for queue in facts.queues:
        ttl = queue.limits.message_ttl
        seconds = _until(ttl or None, queue.age, queue.aging)
        if ttl is not None and seconds is not None:
            fate = "are dead-lettered" if queue.limits.is_dead_lettered else "expire"
            subject = f'messages of queue "{queue.name}" {fate} at an age of {duration_text(ttl)}'
            yield Loss(subject, seconds, _HANDLE_FASTER)


def _unused_queues(facts: LossFacts) -> Iterator[Loss]:
    for queue in facts.queues:
        expires = queue.limits.expires
        if expires is not None and queue.unused is not None:
            after = duration_text(expires)
            subject = f'the broker deletes queue "{queue.name}" after {after} without a consumer'
            yield Loss(subject, max(0.0, expires - queue.unused), "let the instance consume again")


def _full_store(facts: LossFacts) -> Iterator[Loss]:
    store = facts.store
    seconds = _until(store.limit, store.used, store.growth)
    if store.limit is not None and seconds is not None:
        subject = f"the store reaches {size(store.limit)}, and its oldest messages expire"
        cure = "replay or drop messages in the quarantine, or raise quarantine_max_bytes"
        yield Loss(subject, seconds, cure)


def _old_quarantine(facts: LossFacts) -> Iterator[Loss]:
    store = facts.store
    if store.quarantined and store.oldest is not None and store.max_age is not None:
        seconds = max(0.0, store.max_age - store.oldest)
        subject = "the oldest quarantined message expires"
        yield Loss(subject, seconds, "replay or drop it, or raise quarantine_max_age")


def _full_disk(facts: LossFacts) -> Iterator[Loss]:
    store = facts.store
    if store.disk_free is None:
        return
    shrinks = None if store.disk_growth is None else -store.disk_growth
    seconds = _until(0.0, -store.disk_free, shrinks)
    if seconds is not None:
        subject = f"the disk of {store.directory} is full, and the instance pauses"
        yield Loss(subject, seconds, "make room on that disk")


def _old_certificates(facts: LossFacts) -> Iterator[Loss]:
    for certificate in facts.certificates:
        subject = f"the certificate in {certificate.path} ends, and the broker refuses connections"
        cure = "renew it, and then `fm-consumer reload`"
        yield Loss(subject, max(0.0, certificate.left), cure)


FORECASTS: tuple[Callable[[LossFacts], Iterator[Loss]], ...] = (
    _full_queues,
    _old_messages,
    _unused_queues,
    _full_store,
    _old_quarantine,
    _full_disk,
    _old_certificates,
)
