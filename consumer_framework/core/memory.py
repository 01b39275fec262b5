# SPDX-License-Identifier: GPL-2.0-or-later
"""Remembers runs whose outcome the broker does not know.

When a channel goes while a handler runs, the broker delivers the message again on the next
channel. The run that this process already has, finished or not, answers for that redelivery:
the handler does not run a second time. :class:`Unsettled` knows those runs.

An acknowledgement has no answer (AMQP 0-9-1, section 1.8.3.13), and one that was written to a dead
connection is lost with it. So a message that was settled on a channel that is gone may come back as
well. It is settled again and does not run: :class:`LostAcks` knows those messages.

Remembers the failed attempts of messages that went back to the broker.

Tells a message that is delivered again from another one that is equal to it.

Nothing makes publishers give their messages ids, let alone different ones. A store that took two
equal messages for one would lose the second.

Runs messages that a process died with one by one, so that the culprit is known.

With several slots, all messages that were in handlers are suspects when the process dies. A suspect
runs alone: nothing else begins before it is done. If it kills the process again, no other message
was there, and no innocent one comes closer to its quarantine.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .attempt import NO_HISTORY, History
from .delivery import Failed, Known, Withdrawn, published
from .errors import Drop
from .gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .delivery import Delivery, Outcome
    from .disposition import Answer
    from .ports import Clock, HandlerRunner

    HistoryKey: TypeAlias = tuple[str, str, str, bytes]
    _Key: TypeAlias = tuple[str, str, str, bytes]
    Waiter = asyncio.Future[bool]
    Key: TypeAlias = tuple[str, str, str, int]

# A message whose history is forgotten gets its attempts anew: bounded in sum, not in each.
MEMORY_MESSAGES = 1024


class Histories:
    """What is known of messages that will be delivered again, by queue and message."""

    def __init__(self) -> None:
        self._known: OrderedDict[HistoryKey, History] = OrderedDict()

    def keep(self, delivery: Delivery) -> None:
        """Remember the history of *delivery*, which goes back to the broker."""
        if delivery.history != NO_HISTORY:
            self._known[_history_key(delivery)] = delivery.history
            if len(self._known) > MEMORY_MESSAGES:
                self._known.popitem(last=False)

    def recall(self, delivery: Delivery) -> Delivery:
        """Return *delivery* with what is known of its message, and forget that here."""
        if not (delivery.redelivered and self._known):
            return delivery
        history = self._known.pop(_history_key(delivery), None)
        return delivery if history is None else replace(delivery, history=history)


def _history_key(delivery: Delivery) -> HistoryKey:
    # Bodies may be large. Nothing makes publishers keep their ids unique.
    digest = hashlib.sha256(delivery.body).digest()
    return delivery.queue, delivery.message_id, delivery.routing_key, digest


# Beyond these, two equal messages with one id may be taken for one.
REMEMBERED = 10_000


class Twins:
    """Remembers which delivery each message of a store came with.

    A row answers for one delivery on each channel: two deliveries on one channel are two messages.
    A message without an id is never taken for one that the store has. It may run a second time
    where the process died before the broker was told; it is never lost.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[_Key, tuple[int, int]] = OrderedDict()

    def is_known(self, delivery: Delivery, is_open: Callable[[Delivery], bool]) -> bool:
        """Say whether *delivery* brings a message again that the store has.

        Args:
            delivery: What the broker delivered.
            is_open: Whether the store has an equal message.
        """
        if not delivery.redelivered:
            return is_open(delivery)
        if not delivery.message_id or self._is_taken(delivery) or not is_open(delivery):
            return False
        self._remember(delivery)
        return True

    def is_another(self, delivery: Delivery) -> bool:
        """Say whether *delivery* needs a row of its own beside that of an equal message."""
        if delivery.row or self._latest.get(_twin_key(delivery)) == _came(delivery):
            return False
        is_again = delivery.redelivered and delivery.message_id
        is_another = not is_again or self._is_taken(delivery)
        self._remember(delivery)
        return is_another

    def _is_taken(self, delivery: Delivery) -> bool:
        latest = self._latest.get(_twin_key(delivery), (0, 0))
        return latest[0] >= delivery.generation and latest != _came(delivery)

    def _remember(self, delivery: Delivery) -> None:
        key = _twin_key(delivery)
        self._latest[key] = _came(delivery)
        self._latest.move_to_end(key)
        if len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)


def _came(delivery: Delivery) -> tuple[int, int]:
    return delivery.generation, delivery.delivery_tag


def _twin_key(delivery: Delivery) -> _Key:
    digest = hashlib.sha256(delivery.body).digest()
    return delivery.queue, delivery.message_id, delivery.routing_key, digest


# What is left of a long run after each of those that follow it: some hundred forget it.
_FADES = 0.99


class OneByOne:
    """A :class:`.HandlerRunner` that lets a suspect run alone, and others side by side.

    Args:
        runner: Runs the handler.
        now: Seconds of a clock that never goes back.
        gate: Once it is closed, no delivery begins; None for one that is always open.

    Attributes:
        longest: Seconds that the longest of the last runs took, its wait for a slot included.
    """

    def __init__(
        self,
        runner: HandlerRunner,
        now: Callable[[], float] = time.monotonic,
        gate: Gate | None = None,
    ) -> None:
        self._runner = runner
        self._now = now
        self._gate = gate or Gate()
        self.longest = 0.0
        self._running = 0
        # Suspects that run or wait.
        self._suspects = 0
        self._waiting: dict[Waiter, Delivery] = {}

    @property
    def is_quick(self) -> bool:
        """As :attr:`.HandlerRunner.is_quick`."""
        return self._runner.is_quick

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the handler on *delivery*: alone where a process died with it."""
        is_suspect = delivery.history.crashes > 0
        if not is_suspect and not self._suspects:
            self._running += 1
        else:
            self._suspects += is_suspect
            if not await self._may_begin(delivery):
                return Withdrawn()
        began_at = self._now()
        try:
            return await self._runner.run(delivery)
        finally:
            self.longest = max(self._now() - began_at, self.longest * _FADES)
            self._running -= 1
            self._leave(delivery)

    def stop(self) -> None:
        """As :meth:`.HandlerRunner.stop`; call it behind a closed gate."""
        self._runner.stop()

    def withdraw(self, which: Callable[[Delivery], bool] = lambda _delivery: True) -> int:
        """End the runs that no slot has begun with, as :class:`.Withdrawn`."""
        gone = {waiter: one for waiter, one in self._waiting.items() if which(one)}
        for waiter, delivery in gone.items():
            del self._waiting[waiter]
            self._suspects -= delivery.history.crashes > 0
            waiter.set_result(False)
        self._admit()
        return len(gone) + self._runner.withdraw(which)

    async def _may_begin(self, delivery: Delivery) -> bool:
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = delivery
        self._admit()
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiting.pop(waiter, None) is None and not waiter.cancelled():
                # It was let in, or withdrawn, in the same turn.
                was_admitted = waiter.result()
                self._running -= was_admitted
                if not was_admitted:
                    raise
            self._leave(delivery)
            raise

    def _leave(self, delivery: Delivery) -> None:
        self._suspects -= delivery.history.crashes > 0
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        """Let the first suspect begin once nothing runs, or all where none is a suspect."""
        if self._gate.is_closed:
            return
        suspects = [w for w, delivery in self._waiting.items() if delivery.history.crashes]
        if suspects:
            admitted = [] if self._running else suspects[:1]
        else:
            admitted = [] if self._suspects else list(self._waiting)
        for waiter in admitted:
            del self._waiting[waiter]
            self._running += 1
            waiter.set_result(True)


# A redelivery comes at once after a closed channel, and at the latest when the broker has missed
# the heartbeats of a dead connection. Long past that, an equal message is more likely one that
# was published again, and it must run.
MEMORY_SECONDS = 3600.0
# Only handlers that were running when their channel went leave a run behind.
MEMORY_RUNS = 1024
# Channels that may be lost before what was unsettled on the first of them has come back.
MOST_CHANNELS = 8


@dataclass(eq=False, slots=True)
class Run:
    """One run of the handler.

    Attributes:
        delivery: The latest delivery that the run answers for.
        outcome: What the handler did; None while it runs.
        ended_at: When its settle was tried, in seconds of the clock; None until then.
        history: What was known of the message when the run began. A redelivery is decided with
            that, for it cannot know it: the run began before the redelivery came.
    """

    delivery: Delivery
    history: History = NO_HISTORY
    outcome: Outcome | None = None
    ended_at: float | None = None
    _waiter: asyncio.Future[Outcome] | None = None

    def end(self, outcome: Outcome) -> None:
        """Note what the handler did."""
        self.outcome = outcome
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(outcome)

    async def result(self) -> Outcome:
        """Wait for what the handler does."""
        if self.outcome is not None:
            return self.outcome
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._waiter)


class Unsettled:
    """The runs that go on, and the ended ones whose settle was void."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runs: dict[Run, None] = {}

    def begin(self, delivery: Delivery) -> Run:
        """Note that the handler starts on *delivery*."""
        run = Run(delivery, delivery.history)
        self._runs[run] = None
        return run

    def claim(self, redelivery: Delivery) -> Run | None:
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
        """Whether a run answers for *redelivery*."""
        return any(redelivery.redelivers(run.delivery) for run in self._runs)

    def end(self, run: Run, *, settled: bool) -> None:
        """Note that *run* is over; it is remembered unless the broker knows of it."""
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
        key: What it is equal in to others.
        headers: As they were received.
        reason: Why it was rejected; None for one that was not.
    """

    key: Key
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
    """Knows the messages that were settled, in case the broker never hears of it.

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
        self._told: dict[int, deque[_Settled]] = {}
        self._expected: OrderedDict[Key, _Expected] = OrderedDict()

    def resize(self, prefetch_count: int) -> None:
        """Remember more where the broker sends more ahead; what is out already is not less."""
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
        self._unsettled.setdefault(delivery.generation, {})[delivery.delivery_tag] = delivery
        return None

    def told(self, delivery: Delivery, answer: Answer, reason: str) -> None:
        """Note the broker's *answer* to *delivery*; nothing for one that did not arrive."""
        unsettled = self._unsettled.get(delivery.generation)
        if unsettled is None or unsettled.pop(delivery.delivery_tag, None) is None:
            return
        if answer == "ack":
            self._remember(delivery, None)
        elif answer == "reject":
            self._remember(delivery, reason)
        else:
            self._expect(_key(delivery)).unsettled += 1

    def voided(self, generation: int) -> None:
        """Expect what came on a channel that is gone to come back."""
        for settled in self._told.pop(generation, ()):
            self._expect(settled.key).settled.append(settled)
        for delivery in self._unsettled.pop(generation, {}).values():
            self._expect(_key(delivery)).unsettled += 1

    def _expect(self, key: Key) -> _Expected:
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
        key = _key(delivery)
        self._forget(self._clock.monotonic() - MEMORY_SECONDS)
        expected = self._expected.get(key)
        if expected is None:
            return None
        outcome: Outcome | None = None
        if expected.unsettled:
            expected.unsettled -= 1
        elif (settled := _latest_equal(expected.settled, delivery)) is not None:
            expected.settled.remove(settled)
            outcome = Known() if settled.reason is None else Failed(Drop(settled.reason))
            # The next acknowledgement may be lost, too.
            self._remember(delivery, settled.reason)
        if not (expected.unsettled or expected.settled):
            del self._expected[key]
        return outcome

    def _remember(self, delivery: Delivery, reason: str | None) -> None:
        told = self._told.setdefault(delivery.generation, deque())
        told.append(_Settled(_key(delivery), delivery.properties.headers, reason))
        if len(told) > self._most:
            told.popleft()


def _latest_equal(settled: list[_Settled], delivery: Delivery) -> _Settled | None:
    # The broker reads what it is told in order: the latest words are those that are lost.
    headers = delivery.published_headers
    return next((s for s in reversed(settled) if published(s.headers) == headers), None)


def _key(delivery: Delivery) -> Key:
    """Name a message in few bytes; bodies are large."""
    return delivery.queue, delivery.message_id, delivery.routing_key, hash(delivery.body)
