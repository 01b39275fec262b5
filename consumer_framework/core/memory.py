# SPDX-License-Identifier: GPL-2.0-or-later
"""Memories of messages that may be delivered again, for as long as the process lives.

A redelivery is a bare message: the broker says that it delivered it before, and nothing of how that
ended. Five memories fill the gap, each for one way in which a message comes back:

=====================================  =========================  ================================
the message comes back because         memory                     the redelivery
=====================================  =========================  ================================
it was requeued, or given back         :class:`Histories`         has the attempts it had before
its channel went while its handler     :class:`UnsettledRuns`     is settled with the outcome of
ran, or before its settle                                         that run; no second run
its settle was written to a            :class:`LostAcks`          is settled again; no second run
connection that was dead already
the process died between the commit    the store, with            is acknowledged; no second row
to the store and the ack               :class:`EqualMessages`
the process died between the commit    the outbox, with           runs again; the messages that it
to the outbox and the ack              :func:`source_key`         publishes are stored once
=====================================  =========================  ================================

Nothing makes publishers give their messages ids, let alone different ones. So a memory compares
whole messages, and of two equal messages it takes one delivery on one channel for one message.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .attempt import NO_HISTORY, History
from .delivery import Failed, SettledBefore, published
from .errors import Drop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .delivery import Delivery, Outcome
    from .disposition import Answer
    from .ports import Clock, Future

    # Queue, message id, routing key, digest of the body.
    _MessageKey: TypeAlias = tuple[str, str, str, bytes]
    # The same with a hash of the body, which is quicker, and good for one process.
    _ShortKey: TypeAlias = tuple[str, str, str, int]

# Histories. A message whose history is forgotten begins its attempts anew.
MEMORY_MESSAGES = 1024
# A redelivery comes at once after a closed channel, and at the latest when the broker has missed
# the heartbeats of a dead connection. Long past that, an equal message is more likely one that
# was published again, and it must run.
MEMORY_SECONDS = 3600.0
# Only handlers that were running when their channel went leave a run behind.
MEMORY_RUNS = 1024
# Channels that may be lost before the unsettled messages of the first have come back.
MOST_CHANNELS = 8
# Beyond these, two equal messages with one id may be taken for one.
REMEMBERED = 10_000


class Histories:
    """The failed attempts of messages that went back to the broker."""

    def __init__(self) -> None:
        self._known: OrderedDict[_MessageKey, History] = OrderedDict()

    def keep(self, delivery: Delivery) -> None:
        """Remember the history of *delivery*, which goes back to the broker."""
        if delivery.history != NO_HISTORY:
            self._known[_message_key(delivery)] = delivery.history
            if len(self._known) > MEMORY_MESSAGES:
                self._known.popitem(last=False)

    def recall(self, delivery: Delivery) -> Delivery:
        """Return *delivery* with the history of its message, and forget that here."""
        if not (delivery.redelivered and self._known):
            return delivery
        history = self._known.pop(_message_key(delivery), None)
        return delivery if history is None else delivery._replace(history=history)


@dataclass(eq=False, slots=True)
class HandlerRun:
    """One run of the handler.

    Attributes:
        delivery: The latest delivery that the run answers for.
        history: The history of the message when the run began. A redelivery is decided with it,
            because the run began before the redelivery came.
        outcome: The outcome of the run; None while it goes on.
        ended_at: When its settle was tried, in seconds of the clock; None until then.
    """

    delivery: Delivery
    history: History = NO_HISTORY
    outcome: Outcome | None = None
    ended_at: float | None = None
    _waiters: list[Future[Outcome]] | None = None

    def end(self, outcome: Outcome) -> None:
        """Note the *outcome*, and pass it on to all who wait for it."""
        self.outcome = outcome
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(outcome)

    async def wait(self, clock: Clock) -> Outcome:
        """Wait for the outcome."""
        if self.outcome is not None:
            return self.outcome
        waiter: Future[Outcome] = clock.create_future()
        self._waiters = [*(self._waiters or ()), waiter]
        return await waiter


class UnsettledRuns:
    """The runs that go on, and the ended ones whose settle was void."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runs: dict[HandlerRun, None] = {}

    def begin(self, delivery: Delivery) -> HandlerRun:
        """Note that the handler begins with *delivery*."""
        run = HandlerRun(delivery, delivery.history)
        self._runs[run] = None
        return run

    def claim(self, redelivery: Delivery) -> HandlerRun | None:
        """Find the run that answers for *redelivery*.

        It then answers for no other delivery on that channel: of two equal messages, only one
        has run.
        """
        self._forget_old()
        for run in self._runs:
            if redelivery.redelivers(run.delivery):
                run.delivery = redelivery
                return run
        return None

    def knows(self, redelivery: Delivery) -> bool:
        """Tell whether a run answers for *redelivery*."""
        return any(redelivery.redelivers(run.delivery) for run in self._runs)

    def end(self, run: HandlerRun, *, settled: bool) -> None:
        """Note that *run* has ended; forget it where the broker knows of its settle."""
        if settled:
            self._runs.pop(run, None)
        else:
            run.ended_at = self._clock.monotonic()

    def _forget_old(self) -> None:
        oldest = self._clock.monotonic() - MEMORY_SECONDS
        running = [run for run in self._runs if run.ended_at is None]
        ended = [run for run in self._runs if run.ended_at is not None and run.ended_at > oldest]
        self._runs = dict.fromkeys([*ended[-MEMORY_RUNS:], *running])


class _Settled(NamedTuple):
    """A message that was settled.

    Attributes:
        key: Equal for equal messages, headers left out.
        headers: The headers as they were received.
        reason: Why it was rejected; None for one that was not.
    """

    key: _ShortKey
    headers: Mapping[str, Any] | None
    reason: str | None


@dataclass(slots=True)
class _Expected:
    """Equal messages that the broker may deliver again.

    Attributes:
        since: When one of them was last added, in seconds of the clock.
        unsettled: How many were not settled: the first redeliveries are theirs.
        settled: Those that were settled.
    """

    since: float
    unsettled: int = 0
    settled: list[_Settled] = field(default_factory=list)


class LostAcks:
    """The messages that were settled, in case the broker never hears of it.

    An acknowledgement has no answer (AMQP 0-9-1, section 1.8.3.13), and one that was written to a
    dead connection is lost with it. The message comes back, is settled again, and does not run.

    Of each channel it remembers as many messages as the broker may have unacknowledged there, and
    none that has not come back after :data:`MEMORY_SECONDS`. A message without an id is not
    remembered: an equal one may be another message, and it must run.

    Args:
        clock: The time.
        prefetch_count: How many messages the broker sends ahead on a channel; 0 for no limit.
    """

    def __init__(self, clock: Clock, prefetch_count: int = 0) -> None:
        self._clock = clock
        self._most = prefetch_count or MEMORY_RUNS
        self._unsettled: dict[int, dict[int, Delivery]] = {}
        self._answered: dict[int, deque[_Settled]] = {}
        self._expected: OrderedDict[_ShortKey, _Expected] = OrderedDict()

    def resize(self, prefetch_count: int) -> None:
        """Remember more messages where the broker sends more ahead, and never fewer."""
        self._most = max(self._most, prefetch_count or MEMORY_RUNS)

    def arrived(self, delivery: Delivery) -> Outcome | None:
        """Note a delivery of the broker's.

        Returns:
            The outcome to settle it with where its message was settled before; None for one that
            must go on to its handler.
        """
        if not delivery.message_id:
            return None
        if delivery.redelivered and self._expected:
            outcome = self._claim(delivery)
            if outcome is not None:
                return outcome
        unsettled = self._unsettled.get(delivery.generation)
        if unsettled is None:
            unsettled = self._unsettled[delivery.generation] = {}
        unsettled[delivery.delivery_tag] = delivery
        return None

    def answered(self, delivery: Delivery, answer: Answer, reason: str) -> None:
        """Note the *answer* that the broker got for *delivery*, if that arrived here."""
        unsettled = self._unsettled.get(delivery.generation)
        if unsettled is None or unsettled.pop(delivery.delivery_tag, None) is None:
            return
        if answer == "ack":
            self._remember(delivery, None)
        elif answer == "reject":
            self._remember(delivery, reason)
        else:
            self._expect(_short_key(delivery)).unsettled += 1

    def voided(self, generation: int) -> None:
        """Expect the messages of a channel that is gone to come back."""
        for settled in self._answered.pop(generation, ()):
            self._expect(settled.key).settled.append(settled)
        for delivery in self._unsettled.pop(generation, {}).values():
            self._expect(_short_key(delivery)).unsettled += 1

    def _expect(self, key: _ShortKey) -> _Expected:
        now = self._clock.monotonic()
        expected = self._expected.setdefault(key, _Expected(now))
        expected.since = now
        self._expected.move_to_end(key)
        self._forget(now - MEMORY_SECONDS)
        return expected

    def _forget(self, oldest: float) -> None:
        while self._expected:
            key, expected = next(iter(self._expected.items()))
            if expected.since > oldest and len(self._expected) <= MOST_CHANNELS * self._most:
                return
            del self._expected[key]

    def _claim(self, delivery: Delivery) -> Outcome | None:
        key = _short_key(delivery)
        self._forget(self._clock.monotonic() - MEMORY_SECONDS)
        expected = self._expected.get(key)
        if expected is None:
            return None
        outcome: Outcome | None = None
        if expected.unsettled:
            expected.unsettled -= 1
        elif (settled := _latest_equal(expected.settled, delivery)) is not None:
            expected.settled.remove(settled)
            outcome = SettledBefore() if settled.reason is None else Failed(Drop(settled.reason))
            # The next acknowledgement may be lost, too.
            self._remember(delivery, settled.reason)
        if not (expected.unsettled or expected.settled):
            del self._expected[key]
        return outcome

    def _remember(self, delivery: Delivery, reason: str | None) -> None:
        answered = self._answered.get(delivery.generation)
        if answered is None:
            answered = self._answered[delivery.generation] = deque()
        answered.append(_Settled(_short_key(delivery), delivery.properties.headers, reason))
        if len(answered) > self._most:
            answered.popleft()


def _latest_equal(settled: list[_Settled], delivery: Delivery) -> _Settled | None:
    # The broker reads its answers in order: the latest ones are lost.
    headers = delivery.published_headers
    return next((s for s in reversed(settled) if published(s.headers) == headers), None)


class EqualMessages:
    """Remembers which delivery each message of a store came with.

    A row answers for one delivery on each channel: two deliveries on one channel are two messages.
    A message without an id is never taken for one that the store has. It may run a second time
    where the process died before the broker was told; it is never lost.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[_MessageKey, tuple[int, int]] = OrderedDict()

    def is_known(self, delivery: Delivery, is_open: Callable[[Delivery], bool]) -> bool:
        """Say whether *delivery* brings a message again that the store has.

        Args:
            delivery: A delivery of the broker's.
            is_open: Tells of a delivery whether the store has an equal message.
        """
        if not delivery.redelivered:
            return is_open(delivery)
        if not delivery.message_id or self._is_taken(delivery) or not is_open(delivery):
            return False
        self._remember(delivery)
        return True

    def is_another(self, delivery: Delivery) -> bool:
        """Say whether *delivery* needs a row of its own beside that of an equal message."""
        if delivery.row or self._latest.get(_message_key(delivery)) == _tag(delivery):
            return False
        is_again = delivery.redelivered and delivery.message_id
        is_another = not is_again or self._is_taken(delivery)
        self._remember(delivery)
        return is_another

    def _is_taken(self, delivery: Delivery) -> bool:
        latest = self._latest.get(_message_key(delivery), (0, 0))
        return latest[0] >= delivery.generation and latest != _tag(delivery)

    def _remember(self, delivery: Delivery) -> None:
        key = _message_key(delivery)
        self._latest[key] = _tag(delivery)
        self._latest.move_to_end(key)
        if len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)


def source_key(delivery: Delivery) -> str:
    """Return the key under which an outbox knows the source of published messages.

    Returns:
        32 characters; "" for a message of the broker's without an id, which is never recognised.
    """
    if not (delivery.message_id or delivery.row):
        return ""
    names = [delivery.queue, delivery.message_id, delivery.routing_key, str(delivery.row)]
    if delivery.route:
        names.append(delivery.route)
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass"))
    digest.update(delivery.body)
    # Half of it is enough, and makes the index of the outbox's table half as large.
    return digest.hexdigest()[:32]


def may_come_again(delivery: Delivery) -> bool:
    """Tell whether a former process may have had *delivery*, and have died with it."""
    return delivery.redelivered or bool(delivery.row)


def _message_key(delivery: Delivery) -> _MessageKey:
    # Bodies may be large.
    digest = hashlib.sha256(delivery.body).digest()
    return delivery.queue, delivery.message_id, delivery.routing_key, digest


def _short_key(delivery: Delivery) -> _ShortKey:
    return delivery.queue, delivery.message_id, delivery.routing_key, hash(delivery.body)


def _tag(delivery: Delivery) -> tuple[int, int]:
    return delivery.generation, delivery.delivery_tag
