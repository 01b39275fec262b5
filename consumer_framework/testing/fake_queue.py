# SPDX-License-Identifier: GPL-2.0-or-later
"""A queue on a broker with its channel, and the record of every message that a test published."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from consumer_framework.core.attempt import NO_HISTORY, History
from consumer_framework.core.delivery import Delivery, SettledBefore
from consumer_framework.core.disposition import Defer, Quarantine, rule_for
from consumer_framework.core.ports import Acknowledger, Observer, Settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedora_messaging.message import Message

    from consumer_framework.core.delivery import Properties
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock, Observation

    from .fake_store import FakeStore

    _Tag: TypeAlias = tuple[int, int]
    _Parts: TypeAlias = tuple[str, str, bytes]

FinalAnswer: TypeAlias = Literal["", "ack", "reject"]


@dataclass(eq=False, slots=True)
class MessageRecord:
    """A message that a test published, with all that happened to it.

    Attributes:
        number: Its place in the queue.
        given: The message as the test gave it.
        delivery: Its first delivery.
        redelivered: Whether it was delivered before.
        answer: The last answer to the broker, "" while the broker has it.
        disposition: Its disposition; None while a handler has it, or the queue.
        history: Its failed attempts so far.
        runs: The moments when a handler began with it, in seconds since the epoch.
    """

    number: int
    given: object
    delivery: Delivery
    redelivered: bool = False
    answer: FinalAnswer = ""
    disposition: Disposition | None = None
    history: History = NO_HISTORY
    runs: list[float] = field(default_factory=list)

    @property
    def is_stored(self) -> bool:
        """True if the store has the message."""
        return self.disposition is not None and rule_for(self.disposition).write is not None

    def is_of(self, delivery: Delivery) -> bool:
        """Tell whether *delivery* is one of this message, as far as its bytes tell."""
        return _parts(self.delivery) == _parts(delivery)


def _parts(delivery: Delivery) -> _Parts:
    return delivery.message_id, delivery.routing_key, delivery.body


class FakeQueue(Acknowledger):
    """An :class:`.Acknowledger` with the queue that it acknowledges to.

    Attributes:
        generation: The number of the channel that is open.
        record: Everything that was ever published, in order.
    """

    def __init__(self) -> None:
        self.generation = 1
        self.records: list[MessageRecord] = []
        self._ready: deque[MessageRecord] = deque()
        self._unsettled: dict[_Tag, MessageRecord] = {}
        self._delivered: dict[_Tag, MessageRecord] = {}
        self._equal: dict[_Parts, list[MessageRecord]] = {}
        self._tag = 0
        self._published = 0

    def publish(
        self, given: object, routing_key: str, properties: Properties, body: bytes
    ) -> MessageRecord:
        """Append a message to the queue; the test knows it as *given*."""
        delivery = Delivery(
            queue="queue",
            generation=0,
            delivery_tag=0,
            redelivered=False,
            exchange="amq.topic",
            routing_key=routing_key,
            properties=properties,
            body=body,
        )
        record = MessageRecord(self._published, given, delivery)
        self._published += 1
        self.records.append(record)
        self._equal.setdefault(_parts(delivery), []).append(record)
        self._ready.append(record)
        return record

    def withdraw(self, record: MessageRecord) -> None:
        """Take a message out of the queue, as if nobody had published it."""
        if record in self._ready:
            self._ready.remove(record)

    def forget(self, is_over: Callable[[MessageRecord], bool]) -> None:
        """Forget the messages that are over, so that a long run does not keep them all."""
        self.records = [record for record in self.records if not is_over(record)]
        tags = self._delivered.items()
        self._delivered = {tag: record for tag, record in tags if not is_over(record)}
        self._equal = {}
        for record in self.records:
            self._equal.setdefault(_parts(record.delivery), []).append(record)

    def where(self, applies: Callable[[MessageRecord], bool]) -> list[Any]:
        """Return the messages for whose records *applies* is true, as given, in order."""
        return [record.given for record in self.records if applies(record)]

    def all_of(self, message: Message | bytes) -> list[MessageRecord]:
        """Return the records of *message*, one for each time that it was published."""
        if isinstance(message, bytes):
            return [record for record in self.records if record.given == message]
        # Equal messages may be two.
        return [record for record in self.records if record.given is message]

    def latest(self, message: Message | bytes) -> MessageRecord:
        """Return the record of the last time that *message* was published.

        Raises:
            LookupError: It never was.
        """
        found = self.all_of(message)
        if not found:
            raise LookupError(f"never delivered: {message!r}")
        return found[-1]

    @property
    def ready(self) -> list[MessageRecord]:
        """The messages that wait to be delivered."""
        return list(self._ready)

    @property
    def unsettled(self) -> list[MessageRecord]:
        """The messages that are delivered, and neither acknowledged nor given back."""
        return list(self._unsettled.values())

    @property
    def is_empty(self) -> bool:
        """True if every message is settled."""
        return not (self._ready or self._unsettled)

    def take(self, clock: Clock) -> Delivery:
        """Deliver the first message that waits, now by *clock*."""
        record = self._ready.popleft()
        self._tag += 1
        tag = (self.generation, self._tag)
        self._unsettled[tag] = self._delivered[tag] = record
        record.disposition = None
        return record.delivery._replace(
            generation=self.generation,
            delivery_tag=self._tag,
            redelivered=record.redelivered,
            received_at=clock.time(),
            arrived_at=clock.monotonic(),
        )

    def of(self, delivery: Delivery) -> MessageRecord:
        """Return the message of a delivery, or of a row of the store.

        Of equal messages, a row belongs to the first one that the store has.
        """
        if not delivery.row:
            return self._delivered[delivery.generation, delivery.delivery_tag]
        equal = self._equal[_parts(delivery)]
        return next((record for record in equal if record.is_stored), equal[0])

    def cut(self) -> int:
        """Close the channel and open another; return the number of the closed one."""
        for record in self._unsettled.values():
            self._put_back(record)
        self._unsettled.clear()
        self.generation += 1
        self._tag = 0
        return self.generation - 1

    def is_open(self, delivery: Delivery) -> bool:
        """Tell whether the channel of *delivery* is open."""
        return delivery.generation == self.generation

    def ack(self, delivery: Delivery) -> bool:
        """Forget the message.

        Raises:
            AssertionError: *delivery* was settled before. A broker closes the channel then
                (AMQP 0-9-1, section 1.8.3.13).
        """
        return self._end(delivery, "ack")

    def reject(self, delivery: Delivery) -> bool:
        """Drop the message; raise as :meth:`ack` does."""
        return self._end(delivery, "reject")

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back, counted; raise as :meth:`ack` does."""
        return self.give_back(delivery)

    def give_back(self, delivery: Delivery) -> bool:
        """Put the message back; raise as :meth:`ack` does."""
        record = self._settle(delivery)
        if record is not None:
            self._put_back(record)
        return record is not None

    def _end(self, delivery: Delivery, answer: FinalAnswer) -> bool:
        record = self._settle(delivery)
        if record is not None:
            record.answer = answer
        return record is not None

    def _settle(self, delivery: Delivery) -> MessageRecord | None:
        if not self.is_open(delivery):
            return None
        tag = (delivery.generation, delivery.delivery_tag)
        if tag not in self._unsettled:
            raise AssertionError(f"settled twice: {delivery}")
        return self._unsettled.pop(tag)

    def _put_back(self, record: MessageRecord) -> None:
        record.redelivered = True
        # To its original position (RabbitMQ, "Consumer Acknowledgements and Publisher Confirms").
        bisect.insort(self._ready, record, key=lambda other: other.number)


class DispositionObserver(Observer):
    """An observer that notes the disposition of each message on its record.

    Args:
        queue: The queue that the messages were published to.
        store: The store, which may quarantine a message that was to be deferred.
    """

    def __init__(self, queue: FakeQueue, store: FakeStore) -> None:
        self._queue = queue
        self._store = store

    def notify(self, event: Observation) -> None:
        """Note a settle, unless it was void."""
        if not isinstance(event, Settled) or event.is_void:
            return
        disposition = event.decision.disposition
        record = self._queue.of(event.delivery)
        is_unchanged = event.delivery.row and rule_for(disposition).goes_back
        if isinstance(event.outcome, SettledBefore) or is_unchanged:
            record.disposition = self._row_of(record)
        else:
            record.disposition = disposition
            record.history = event.decision.history

    def current(self, record: MessageRecord) -> Disposition | None:
        """Return the disposition of a message as its row in the store has it now."""
        if record.is_stored:
            return self._row_of(record) or record.disposition
        return record.disposition

    def _row_of(self, record: MessageRecord) -> Disposition | None:
        for delivery, reason in self._store.quarantined:
            if record.is_of(delivery):
                return Quarantine(reason)
        deferred = self._store.deferred
        return next((Defer(until) for row, until in deferred if record.is_of(row)), None)
