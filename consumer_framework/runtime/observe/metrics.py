# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts for Prometheus that nothing else of an instance has: dispositions by topic, and pauses.

It is on for every instance, so it must cost next to nothing: plain dictionaries, and no object of
prometheus-client, which :mod:`.exposition` imports for the first reader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.delivery import readable
from consumer_framework.core.disposition import Ack, rule_for
from consumer_framework.core.durations import MOST_NAMES, OTHER
from consumer_framework.core.gate import Reason
from consumer_framework.core.ports import Observer, Paused, Settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.ports import Observation

# The word for a settle that the broker was not told of; the others are those of the dispositions.
VOID = "void"
_ACK = rule_for(Ack()).words.field


class DeliveryMetrics(Observer):
    """The observer that counts settles by topic, and pauses.

    Publishers choose topics, so their number has no bound. The first :data:`.MOST_NAMES` topics are
    told apart; the others count as :data:`.OTHER`.

    Attributes:
        pauses: How often the instance paused, by reason.
    """

    def __init__(self) -> None:
        self.pauses = dict.fromkeys(Reason, 0)
        self._standing: set[Reason] = set()
        self._topics: dict[str, dict[str, int]] = {}
        self._other: dict[str, int] = {}

    def notify(self, event: Observation) -> None:
        """Count a settle, or a pause."""
        if type(event) is Settled:
            delivery, _outcome, decision, is_void = event
            topic = delivery.routing_key
            counts = self._topics.get(topic)
            if counts is None:
                counts = self._counts_of(topic)
            disposition = decision.disposition
            if is_void:
                word = VOID
            else:
                word = _ACK if type(disposition) is Ack else rule_for(disposition).words.field
            counts[word] = counts.get(word, 0) + 1
        elif isinstance(event, Paused):
            self._paused(event)

    def _counts_of(self, topic: str) -> dict[str, int]:
        if len(self._topics) >= MOST_NAMES:
            return self._other
        return self._topics.setdefault(topic, {})

    def _paused(self, event: Paused) -> None:
        # A pause that stands is told again with other words.
        if event.text and event.reason not in self._standing:
            self._standing.add(event.reason)
            self.pauses[event.reason] += 1
        elif not event.text:
            self._standing.discard(event.reason)

    def by_topic(self) -> Iterator[tuple[str, str, int]]:
        """Yield topics, dispositions in words, and the number of settles since the start."""
        for topic, counts in [*self._topics.items(), (OTHER, self._other)]:
            for word, number in counts.items():
                yield readable(topic), word, number
