# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of every message that a test published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import Known
from consumer_framework.core.disposition import Defer, GiveBack, Halt, Quarantine, Requeue
from consumer_framework.core.recovery import Situation, decide
from consumer_framework.runtime.observe.log import LogRecorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedora_messaging.message import Message

    from consumer_framework.core.delivery import Delivery, Outcome
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock
    from consumer_framework.core.recovery import Policy

    from .fake_queue import FakeQueue, Posted
    from .fake_store import FakeStore


class Dispositions:
    """Tells what became of the messages in *queue*.

    Args:
        queue: Where they were published.
        store: May have made something else of a message than was decided.
        policy: By which was decided.
    """

    def __init__(self, queue: FakeQueue, store: FakeStore, policy: Policy) -> None:
        self._queue = queue
        self._store = store
        self._policy = policy

    def note(
        self,
        delivery: Delivery,
        outcome: Outcome,
        disposition: Disposition,
        situation: Situation,
    ) -> None:
        """Note what became of *delivery* in *situation*."""
        posted = self._queue.of(delivery)
        if isinstance(outcome, Known) or (delivery.row and _gives_back(disposition)):
            posted.disposition = self._row_of(posted)
            return
        posted.disposition = disposition
        # Deciding is pure, so it can be asked once more for what it said of the history.
        posted.history = decide(delivery, outcome, self._policy, situation).history

    def where(self, applies: Callable[[Posted], bool]) -> list[Any]:
        """The messages that something applies to, as the test gave them, in order."""
        return [posted.what for posted in self._queue.posted if applies(posted)]

    def all_of(self, message: Message | bytes) -> list[Posted]:
        """Each time that *message* was published."""
        if isinstance(message, bytes):
            return [posted for posted in self._queue.posted if posted.what == message]
        # Equal messages may be two.
        return [posted for posted in self._queue.posted if posted.what is message]

    def latest(self, message: Message | bytes) -> Posted:
        """The last time that *message* was published.

        Raises:
            LookupError: It never was.
        """
        found = self.all_of(message)
        if not found:
            raise LookupError(f"never delivered: {message!r}")
        return found[-1]

    def kept(self, posted: Posted) -> Disposition | None:
        """What became of a message, where the store may have made something else of it."""
        if isinstance(posted.disposition, Defer | Quarantine):
            return self._row_of(posted) or posted.disposition
        return posted.disposition

    def _row_of(self, posted: Posted) -> Disposition | None:
        for delivery, reason in self._store.quarantined:
            if posted.is_of(delivery):
                return Quarantine(reason)
        deferred = self._store.deferred
        return next((Defer(until) for kept, until in deferred if posted.is_of(kept)), None)


class DispositionRecorder(LogRecorder):
    """Logs and counts as an instance does, and notes what became of each message.

    Args:
        clock: Says when.
        dispositions: Is told.
        chance: The throw of the dice by which it was decided.
    """

    def __init__(
        self,
        clock: Clock,
        dispositions: Dispositions,
        chance: Callable[[], float],
    ) -> None:
        super().__init__(clock)
        self._now = clock.time
        self._dispositions = dispositions
        self._chance = chance

    def settled(
        self, delivery: Delivery, outcome: Outcome, disposition: Disposition, *, void: bool
    ) -> None:
        """Note it, unless the broker takes no notice."""
        super().settled(delivery, outcome, disposition, void=void)
        if not void:
            situation = Situation(self._now(), self._chance(), may_hold=True)
            self._dispositions.note(delivery, outcome, disposition, situation)


def _gives_back(disposition: Disposition) -> bool:
    return isinstance(disposition, Requeue | GiveBack) or (
        isinstance(disposition, Halt) and disposition.requeue
    )
