# SPDX-License-Identifier: GPL-2.0-or-later
"""The deliveries that wait in memory: for a slot, for their turn in a lane, or for their time.

A delivery waits in one of three places::

    broker ──▶ Intake ───────────────▶ slot ──▶ handler
    store  ──▶   │  ▲                               │
                 │  └── due again ── Holds ◀── held ┘
                 └ LaneQueues: behind an earlier one with the same key

:class:`Intake` has two queues that share the slots: the deliveries of the broker, and the rows of
the store that are due again. While both have something, they take turns. So a burst of retries
leaves every second turn to new messages, and new messages never keep a retry waiting for long. A
held delivery is the broker's, and goes before the new ones.

:class:`LaneQueues` keeps the deliveries with one ordering key behind each other. The head of a lane
is the only delivery of it that may be in a slot, or held. The others wait, in the order in which
the broker delivered them, until the head has left: settled for good, or given to the store, where
the others follow it.

:class:`Holds` keeps deliveries unacknowledged until they are due again.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING

from .gate import Gate, GateEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from .delivery import Delivery
    from .gate import Reason
    from .limits import TokenBucket
    from .ports import Clock, Future, TimerHandle


class LaneQueues:
    """The lanes with at least one delivery in memory."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Delivery]] = {}
        self._followers = 0

    def __len__(self) -> int:
        """Return the number of deliveries that wait behind others."""
        return self._followers

    def __contains__(self, lane: str) -> bool:
        return lane in self._lanes

    def enter(self, delivery: Delivery) -> bool:
        """Put *delivery* into its lane.

        Returns:
            True if it may go on: it is the head, or the head that comes back after it was held.
        """
        lane = self._lanes.setdefault(delivery.lane, deque())
        if lane and not _is_same(lane[0], delivery):
            lane.append(delivery)
            self._followers += 1
            return False
        lane.appendleft(delivery) if not lane else None
        return True

    def leave(self, delivery: Delivery) -> Delivery | None:
        """Let the head of a lane leave it; return the next head, None if there is none.

        Nothing happens if *delivery* is not the head.
        """
        lane = self._lanes.get(delivery.lane)
        if lane is None or not _is_same(lane[0], delivery):
            return None
        lane.popleft()
        if lane:
            self._followers -= 1
            return lane[0]
        del self._lanes[delivery.lane]
        return None

    def next_followers(self) -> Iterator[Delivery]:
        """Yield the delivery behind the head of each lane that has one."""
        return (lane[1] for lane in self._lanes.values() if len(lane) > 1)

    def has_followers(self, lane: str) -> bool:
        """Tell whether deliveries wait behind the head of *lane*."""
        return len(self._lanes.get(lane, ())) > 1

    def followers(self, lane: str, *, of_store: bool = True) -> list[Delivery]:
        """Remove and return the deliveries behind the head of *lane*.

        Args:
            lane: Its ordering key.
            of_store: Whether rows of the store are among them.
        """
        if lane not in self._lanes:
            return []
        return self._remove(lane, lambda follower: of_store or not follower.row)

    def discard(self, generation: int) -> list[Delivery]:
        """Remove and return the followers that came on a channel that is gone.

        A head leaves when its own settle is void.
        """
        return [
            follower
            for name in self._lanes
            for follower in self._remove(name, lambda d: d.generation == generation)
        ]

    def _remove(self, lane: str, which: Callable[[Delivery], bool]) -> list[Delivery]:
        head, *followers = self._lanes[lane]
        gone = [follower for follower in followers if which(follower)]
        if gone:
            self._lanes[lane] = deque([head, *(d for d in followers if not which(d))])
            self._followers -= len(gone)
        return gone

    def clear(self, spared: Collection[str] = ()) -> list[Delivery]:
        """Remove and return all deliveries behind heads, but for those of *spared* lanes."""
        names = [name for name in self._lanes if name not in spared]
        return [follower for name in names for follower in self.followers(name)]

    def behind_heads(self, which: Callable[[Delivery], bool]) -> set[str]:
        """Return the lanes with a delivery behind the head for which *which* is true."""
        return {name for name, (_, *rest) in self._lanes.items() if any(map(which, rest))}

    def stale(self, moment: float) -> list[str]:
        """Return the lanes with a follower that the broker delivered before *moment*."""
        return [
            name
            for name, (_, *rest) in self._lanes.items()
            if any(follower.arrived_at < moment and not follower.row for follower in rest)
        ]


def _is_same(one: Delivery, other: Delivery) -> bool:
    return (one.generation, one.delivery_tag, one.row) == (
        other.generation,
        other.delivery_tag,
        other.row,
    )


class Holds:
    """A bounded set of deliveries that are held, each until its time.

    A delivery is held for a length of time, even if the machine's clock is set meanwhile.

    Args:
        slots: How many deliveries may be held at once.
        clock: The time.
    """

    def __init__(self, slots: int, clock: Clock) -> None:
        self._slots = slots
        self._clock = clock
        self._heap: list[tuple[float, int, Delivery]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def has_room(self) -> bool:
        """True if one more delivery may be held."""
        return len(self._heap) < self._slots

    def resize(self, slots: int) -> None:
        """Hold at most *slots* deliveries from now on; the surplus leaves when it is due."""
        self._slots = slots

    def put(self, delivery: Delivery, until: float) -> None:
        """Hold *delivery* until *until*, in seconds since the epoch."""
        due_at = self._clock.monotonic() + until - self._clock.time()
        heapq.heappush(self._heap, (due_at, next(self._order), delivery))

    def due(self, now: float) -> list[Delivery]:
        """Remove and return the deliveries due at *now*, in monotonic seconds, earliest first."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            found.append(heapq.heappop(self._heap)[2])
        return found

    def first(self) -> list[Delivery]:
        """Remove and return the delivery that is due next, due or not, in a list of one or none."""
        return [heapq.heappop(self._heap)[2]] if self._heap else []

    def take(self, which: Callable[[Delivery], bool]) -> list[tuple[Delivery, float]]:
        """Remove and return deliveries, each with its due time in seconds since the epoch."""
        taken = [entry for entry in self._heap if which(entry[2])]
        self._heap = [entry for entry in self._heap if not which(entry[2])]
        heapq.heapify(self._heap)
        offset = self._clock.time() - self._clock.monotonic()
        return [(delivery, due_at + offset) for due_at, _, delivery in sorted(taken, key=_time)]

    def next_due(self) -> float | None:
        """Return the time of the next delivery, in monotonic seconds; None for never."""
        return self._heap[0][0] if self._heap else None

    def discard(self, generation: int) -> list[Delivery]:
        """Remove and return the deliveries of a channel that is gone."""
        return [delivery for delivery, _ in self.take(lambda d: d.generation == generation)]

    def clear(self) -> list[Delivery]:
        """Remove and return all deliveries, earliest due first."""
        return [delivery for delivery, _ in self.take(lambda _delivery: True)]


def _time(entry: tuple[float, int, Delivery]) -> tuple[float, int]:
    return entry[:2]


class Intake:
    """The deliveries that wait for a slot.

    The broker bounds their number: it sends no more than ``prefetch_count`` unsettled deliveries
    on a channel. A delivery with a lane waits for those before it in the lane, until they have
    left (:meth:`left`).

    Args:
        clock: The time.
        bucket: Limits how fast deliveries are taken; None for no limit.
        gate: Says whether a slot may begin with a delivery; None for one that is always open.
    """

    def __init__(
        self, clock: Clock, bucket: TokenBucket | None = None, gate: Gate | None = None
    ) -> None:
        self._clock = clock
        self._bucket = bucket
        self._gate = gate or Gate()
        self._gate.listen(self._gate_changed)
        self._ready: deque[Delivery] = deque()
        self._rows: deque[Delivery] = deque()
        self._is_rows_turn = False
        self._lanes = LaneQueues()
        self._takers: deque[Future[None]] = deque()
        # Set while a taker would go on if there were a token.
        self._token_timer: TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._ready) + len(self._rows) + len(self._lanes)

    def put(self, delivery: Delivery) -> None:
        """Append *delivery*, behind a closed gate too: :meth:`clear` returns it then."""
        if not delivery.lane or self._lanes.enter(delivery):
            (self._rows if delivery.row else self._ready).append(delivery)
            # Behind a shut gate the takers keep their order until they are all woken.
            if self._gate.may_begin:
                self._wake()

    def put_first(self, delivery: Delivery) -> None:
        """Put *delivery* before all others of its queue: it has waited its time already."""
        if not delivery.lane or self._lanes.enter(delivery):
            self._go_first(delivery)

    def left(self, delivery: Delivery) -> None:
        """Let the next of its lane go on: *delivery* is settled, and does not come back."""
        if delivery.lane:
            follower = self._lanes.leave(delivery)
            if follower is not None:
                self._go_first(follower)

    def _go_first(self, delivery: Delivery) -> None:
        (self._rows if delivery.row else self._ready).appendleft(delivery)
        if self._gate.may_begin:
            self._wake()

    def oldest(self, limit: int) -> Iterator[Delivery]:
        """Yield the broker's deliveries that wait, the first to run first; *limit* at most."""
        return itertools.islice(itertools.chain(self._ready, self._lanes.next_followers()), limit)

    @property
    def behind(self) -> int:
        """The number of deliveries that wait behind others of their lanes."""
        return len(self._lanes)

    def has_followers(self, lane: str) -> bool:
        """Tell whether deliveries wait in *lane* behind its head."""
        return self._lanes.has_followers(lane)

    def occupy(self, delivery: Delivery) -> None:
        """Make *delivery*, which no slot takes, the head of its lane until it has :meth:`left`."""
        if delivery.lane:
            self._lanes.enter(delivery)

    def has_lane(self, lane: str) -> bool:
        """Tell whether a delivery of *lane* has not left yet."""
        return lane in self._lanes

    def followers(self, lane: str) -> list[Delivery]:
        """Remove and return the deliveries in *lane* behind its head."""
        return self._lanes.followers(lane)

    async def take(self) -> Delivery | None:
        """Wait for the next delivery, and for the rate to allow it, and remove it.

        Returns:
            None once the gate is closed, even if deliveries still wait here.
        """
        has_waited = False
        while not self._gate.is_closed:
            if (self._ready or self._rows) and self._gate.may_begin:
                delay = self._bucket.take(self._clock.monotonic()) if self._bucket else 0.0
                if not delay:
                    return self._next()
                if self._token_timer is None:
                    self._token_timer = self._clock.call_later(delay, self._token_is_due)
            taker = self._clock.create_future()
            # With a rate, a taker that was woken in vain is the next one all the same.
            is_next = has_waited and self._bucket is not None
            (self._takers.appendleft if is_next else self._takers.append)(taker)
            has_waited = True
            await taker
        return None

    def _next(self) -> Delivery:
        """Remove and return the next delivery of the two queues, which are not both empty."""
        is_row = bool(self._rows) and (self._is_rows_turn or not self._ready)
        self._is_rows_turn = not is_row
        delivery = (self._rows if is_row else self._ready).popleft()
        if self._bucket and (self._ready or self._rows):
            # The next taker may have been woken before there was a token.
            self._wake()
        return delivery

    def limit(self, bucket: TokenBucket | None) -> None:
        """Take deliveries as fast as *bucket* allows from now on; None for no limit."""
        self._bucket = bucket
        self._wake_all()

    def discard(self, generation: int) -> list[Delivery]:
        """Remove and return the deliveries of a channel that is gone: they will come again."""
        followers = self._lanes.discard(generation)
        gone = [delivery for delivery in self._ready if delivery.generation == generation]
        self._ready = deque(d for d in self._ready if d.generation != generation)
        for delivery in gone:
            self.left(delivery)
        return gone + followers

    def older_than(self, moment: float) -> list[Delivery]:
        """Remove and return the deliveries that came before *moment*, in monotonic seconds.

        All deliveries behind one in its lane go with it, so that none overtakes. Rows of the store
        stay.
        """
        old = []
        for head in [d for d in self._ready if d.arrived_at < moment]:
            self._ready.remove(head)
            behind = self._lanes.followers(head.lane, of_store=False) if head.lane else []
            old += [head, *behind]
            self.left(head)
        for lane in self._lanes.stale(moment):
            old += self._lanes.followers(lane, of_store=False)
        return old

    def behind_heads(self, which: Callable[[Delivery], bool]) -> set[str]:
        """Return the lanes whose head has begun, with a follower for which *which* is true."""
        ready = {delivery.lane for delivery in [*self._ready, *self._rows]}
        return self._lanes.behind_heads(which) - ready

    def clear(self, spared: Collection[str] = ()) -> list[Delivery]:
        """Remove and return all deliveries, but for the followers in *spared* lanes."""
        ready, followers = [*self._ready, *self._rows], self._lanes.clear(spared)
        self._ready.clear()
        self._rows.clear()
        for delivery in ready:
            self.left(delivery)
        return ready + followers

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is not GateEvent.SUSPEND:
            self._wake_all()

    def _token_is_due(self) -> None:
        self._token_timer = None
        self._wake()

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

    def _wake_all(self) -> None:
        if self._token_timer is not None:
            self._token_timer.cancel()
            self._token_timer = None
        while self._takers:
            self._wake()
