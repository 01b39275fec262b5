# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of every message that a test published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import SettledBefore
from consumer_framework.core.disposition import Defer, Quarantine, rule_for
from consumer_framework.core.ports import Observer, Settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedora_messaging.message import Message

    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Observation

    from .fake_queue import FakeQueue, PublishedMessage
    from .fake_store import FakeStore


class Dispositions(Observer):
    """An observer that knows the disposition of each message in *queue*.

    Args:
        queue: Where they were published.
        store: May have made something else of a message than was decided.
    """

    def __init__(self, queue: FakeQueue, store: FakeStore) -> None:
        self._queue = queue
        self._store = store

    def notify(self, event: Observation) -> None:
        """Note a settle, unless the broker took no notice of it."""
        if not isinstance(event, Settled) or event.is_void:
            return
        disposition = event.decision.disposition
        posted = self._queue.of(event.delivery)
        is_unchanged = event.delivery.row and rule_for(disposition).goes_back
        if isinstance(event.outcome, SettledBefore) or is_unchanged:
            posted.disposition = self._row_of(posted)
        else:
            posted.disposition = disposition
            posted.history = event.decision.history

    def where(self, applies: Callable[[PublishedMessage], bool]) -> list[Any]:
        """The messages that something applies to, as the test gave them, in order."""
        return [posted.what for posted in self._queue.posted if applies(posted)]

    def all_of(self, message: Message | bytes) -> list[PublishedMessage]:
        """Each time that *message* was published."""
        if isinstance(message, bytes):
            return [posted for posted in self._queue.posted if posted.what == message]
        # Equal messages may be two.
        return [posted for posted in self._queue.posted if posted.what is message]

    def latest(self, message: Message | bytes) -> PublishedMessage:
        """The last time that *message* was published.

        Raises:
            LookupError: It never was.
        """
        found = self.all_of(message)
        if not found:
            raise LookupError(f"never delivered: {message!r}")
        return found[-1]

    def kept(self, posted: PublishedMessage) -> Disposition | None:
        """What became of a message, where the store may have made something else of it."""
        if posted.is_stored:
            return self._row_of(posted) or posted.disposition
        return posted.disposition

    def _row_of(self, posted: PublishedMessage) -> Disposition | None:
        for delivery, reason in self._store.quarantined:
            if posted.is_of(delivery):
                return Quarantine(reason)
        deferred = self._store.deferred
        return next((Defer(until) for kept, until in deferred if posted.is_of(kept)), None)
