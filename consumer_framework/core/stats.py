# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts what became of deliveries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .delivery import (
    Crashed,
    Delivery,
    Failed,
    Known,
    Outcome,
    Skipped,
    Succeeded,
    Undecodable,
)
from .disposition import Ack, Defer, Disposition, Halt, Hold, Quarantine, Reject, Requeue
from .errors import Signal


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts at one moment, since the process started.

    Attributes:
        received: Deliveries that a slot took.
        succeeded: Handler runs that returned.
        skipped: Handler runs that had nothing to do.
        failed: Handler runs that raised something else than a signal of the author's.
        undecodable: Deliveries that no handler saw because they were no valid message.
        acked: Deliveries that are done with.
        requeued: Deliveries given back to their queue.
        rejected: Deliveries dropped, or dead-lettered.
        held: Times that a delivery was held.
        deferred: Times that a delivery was deferred.
        quarantined: Deliveries quarantined.
        void: Settles that the broker could not be told of, because the channel was gone.
        running: Deliveries in slots now.
    """

    received: int = 0
    succeeded: int = 0
    skipped: int = 0
    failed: int = 0
    undecodable: int = 0
    acked: int = 0
    requeued: int = 0
    rejected: int = 0
    held: int = 0
    deferred: int = 0
    quarantined: int = 0
    void: int = 0
    running: int = 0


def _outcome_name(outcome: Outcome) -> str | None:
    match outcome:
        case Succeeded():
            return "succeeded"
        case Skipped():
            return "skipped"
        case Undecodable():
            return "undecodable"
        case Failed(error) if not isinstance(error, Signal):
            return "failed"
        case Failed() | Crashed() | Known():
            return None


_DISPOSITIONS: dict[type[Disposition], str] = {
    Ack: "acked",
    Requeue: "requeued",
    Reject: "rejected",
    Hold: "held",
    Defer: "deferred",
    Quarantine: "quarantined",
}


def _disposition_name(disposition: Disposition) -> str:
    if isinstance(disposition, Halt):
        return "requeued" if disposition.requeue else "acked"
    return _DISPOSITIONS[type(disposition)]


class Counters:
    """A :class:`.Recorder` that counts, and knows which deliveries are in slots."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._running: dict[tuple[int, int, int], Delivery] = {}

    def started(self, delivery: Delivery) -> None:
        """Count a delivery that a slot took."""
        self._counts["received"] += 1
        self._running[_place(delivery)] = delivery

    def settled(
        self, delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool
    ) -> None:
        """Count an outcome once, and what the broker was told."""
        ran = self._running.pop(_place(delivery), None)
        name = _outcome_name(outcome)
        if ran and name:
            self._counts[name] += 1
        self._counts["void" if void else _disposition_name(disposition)] += 1

    @property
    def running(self) -> tuple[Delivery, ...]:
        """The deliveries in slots, longest first."""
        return tuple(self._running.values())

    def snapshot(self) -> Snapshot:
        """Return the counts now."""
        return Snapshot(**self._counts, running=len(self._running))


def _place(delivery: Delivery) -> tuple[int, int, int]:
    return delivery.generation, delivery.delivery_tag, delivery.row
