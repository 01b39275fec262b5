# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: FBT003 -- the table at the end has columns of True and False
"""The dispositions of a delivery, and the one table of how each is settled.

:mod:`.recovery` chooses a disposition, which is a plain value. :data:`SETTLE_RULES` says everything
else about it: the durable effect, the answer to the broker, and the words for logs, counters and
commands. The order is always the same: the durable effect first, then the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from logging import DEBUG, INFO, WARNING
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .delivery import Delivery
    from .ports import Store

    # Writes to the store; the last argument is the disposition.
    Write: TypeAlias = Callable[[Store, Delivery, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ack:
    """Done with: the broker may forget the message."""

    reason: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Back to its queue, counted by the broker, to be delivered again."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Back to its queue as if it had never been delivered; a row of the store stays there."""

    reason: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """Lost on purpose, or dead-lettered where the queue has a dead-letter exchange."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """Kept unacknowledged in memory, and run again at *until* (seconds since the epoch)."""

    until: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Defer:
    """Committed to the store, acknowledged, and run again at *until*."""

    until: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Committed to the store with its failures, acknowledged, kept for an operator."""

    reason: str


@dataclass(frozen=True, slots=True)
class Halt:
    """The instance stops after this delivery.

    Attributes:
        exit_code: The exit code of the process.
        requeue: True gives the delivery back, False acknowledges it.
        reason: Why, for the log.
    """

    exit_code: int
    requeue: bool
    reason: str = ""


Disposition: TypeAlias = Ack | Requeue | GiveBack | Reject | Hold | Defer | Quarantine | Halt


# The answer that the broker gets for a delivery. With "hold" it gets none yet: the delivery stays
# unacknowledged, in memory.
Answer: TypeAlias = Literal["ack", "reject", "requeue", "give_back", "hold"]
# The deliveries behind the settled one in its lane: the next one goes on; they wait, as it will run
# before them; they go back to the queue behind it.
LaneEffect: TypeAlias = Literal["advance", "wait", "go_back"]
# The rest of a message's life, for the log: there is more to come; a success; a bad end, which has
# a line each time.
Ending: TypeAlias = Literal["open", "good", "bad"]


class Words(NamedTuple):
    """The words for one disposition.

    Attributes:
        verb: In log lines.
        field: As ``FM_DISPOSITION``, and in JSON.
        counter: The counter of :class:`.Snapshot`.
        in_replay: As the result of an operator's replay.
        explained: In ``fm-consumer explain``.
    """

    verb: str
    field: str
    counter: str
    in_replay: str
    explained: str


class SettleRule(NamedTuple):
    """The rule by which one disposition is settled.

    Attributes:
        write: The durable effect for a delivery of the broker's; None for none.
        answer: The answer to the broker after it.
        write_row: The durable effect for a delivery that is a row of the store; None leaves the
            row as it is. No broker waits for an answer then.
        publishes: Whether the messages that the handler published are stored in the outbox, as the
            first of the durable effects. If not, they are discarded.
        is_final: Whether this instance's handler will not see the message again.
        lane: The effect on the deliveries behind it in its lane.
        ending: The end of the message's life, for the log.
        level: The level of a log line about the decision alone.
        words: The words for it.
    """

    write: Write | None
    answer: Answer
    write_row: Write | None
    publishes: bool
    is_final: bool
    lane: LaneEffect
    ending: Ending
    level: int
    words: Words

    @property
    def goes_back(self) -> bool:
        """True if the broker has the message again."""
        return self.answer in {"requeue", "give_back"}


async def _defer(store: Store, delivery: Delivery, to: Defer) -> None:
    await store.defer(delivery, to.until)


async def _quarantine(store: Store, delivery: Delivery, to: Quarantine | Requeue) -> None:
    await store.quarantine(delivery, to.reason)


async def _remove(store: Store, delivery: Delivery, _to: Disposition) -> None:
    await store.remove(delivery.row)


# fmt: off
SETTLE_RULES: dict[type[Disposition], SettleRule] = {
    #                      write        answer       write_row    publ.  final  lane       ending
    Ack:        SettleRule(None,        "ack",       _remove,     True,  True,  "advance", "good",
        DEBUG, Words("acknowledged", "ack", "acked", "succeeded", "acknowledged")),
    Reject:     SettleRule(None,        "reject",    _remove,     False, True,  "advance", "bad",
        INFO, Words("dropped", "reject", "rejected", "reject",
                    "dropped, or dead-lettered where the queue has an exchange for that")),
    # A row has no queue to go back to: an operator decides.
    Requeue:    SettleRule(None,        "requeue",   _quarantine, False, False, "go_back", "open",
        INFO, Words("requeued", "requeue", "requeued", "requeue", "back to its queue")),
    GiveBack:   SettleRule(None,        "give_back", None,        False, False, "go_back", "open",
        DEBUG, Words("given back", "give-back", "given_back", "skipped", "back to its queue")),
    Hold:       SettleRule(None,        "hold",      None,        False, False, "wait",    "open",
        INFO, Words("held", "hold", "held", "hold", "held")),
    Defer:      SettleRule(_defer,      "ack",       _defer,      False, False, "advance", "open",
        INFO, Words("deferred", "defer", "deferred", "defer", "deferred")),
    Quarantine: SettleRule(_quarantine, "ack",       _quarantine, False, True,  "advance", "bad",
        WARNING, Words("quarantined", "quarantine", "quarantined", "failed", "quarantined")),
    Halt:       SettleRule(None,        "ack",       _remove,     True,  True,  "advance", "bad",
        WARNING, Words("halted", "halt", "acked", "halt", "acknowledged")),
}
# A Halt that gives its delivery back. The next one of its lane goes on, for nothing begins.
_HALT_AND_GIVE_BACK =  SettleRule(None, "give_back", None,        False, False, "advance", "bad",
        WARNING, Words("halted", "halt", "requeued", "halt", "back to its queue"))
# fmt: on


def rule_for(disposition: Disposition) -> SettleRule:
    """Return the rule by which *disposition* is settled."""
    if isinstance(disposition, Halt) and disposition.requeue:
        return _HALT_AND_GIVE_BACK
    return SETTLE_RULES[type(disposition)]
