# SPDX-License-Identifier: GPL-2.0-or-later
"""After any writes in any order, lanes equal a model of lists in memory."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.core.ordering import Blocker, behind
from consumer_framework.testing import make_delivery

MAX_AGE = 10.0
LANES = ["", "a", "b"]
# Mostly one lane, since rows of one lane affect each other.
lanes = st.sampled_from(["a", "a", "a", "b", ""])
times = st.integers(0, 5).map(float)
picks = st.integers(0, 30)


@dataclass
class Message:
    """An open row of the model; a lane is a list of rows."""

    row: int
    name: str
    lane: str
    state: str
    due: float | None
    updated: float
    reason: str


class Lanes(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.now = 100.0
        self.lanes: dict[str, list[Message]] = {lane: [] for lane in LANES}
        self.latest = 0
        self.generation = 0
        self.store = self.opened()

    def opened(self):
        return Store.open(self.directory, limits=Limits(max_age=MAX_AGE), now=lambda: self.now)

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.directory)

    # The state of the model.

    @property
    def messages(self):
        return sorted((m for lane in self.lanes.values() for m in lane), key=lambda m: m.row)

    def pick(self, number):
        return self.messages[number % len(self.messages)]

    def first(self, message):
        """Return the row that *message* waits for, None for none."""
        first = self.lanes[message.lane][0]
        return None if message.lane == "" or first is message else first

    def write(self, message, state, due, reason):
        message.state, message.due, message.reason = state, due, reason
        message.updated = self.now
        self.settle(message.lane)

    def settle(self, lane):
        """Quarantine the deferred rows behind a quarantined row."""
        found = [m for m in self.lanes[lane] if m.state == "quarantined"]
        if not lane or not found:
            return
        followers = self.lanes[lane][self.lanes[lane].index(found[0]) :]
        for message in followers:
            if message.state == "deferred":
                message.state, message.due = "quarantined", None
                message.reason, message.updated = behind(found[0].row), self.now

    def lose(self, message):
        self.lanes[message.lane].remove(message)

    # Events.

    @rule(lane=lanes, due=times)
    def a_message_is_deferred(self, lane, due):
        message = self.arrive(lane)
        asyncio.run(self.store.defer(self.delivery(message), due))
        self.write(message, "deferred", due, "deferred")

    @rule(lane=lanes)
    def a_message_is_quarantined(self, lane):
        message = self.arrive(lane)
        asyncio.run(self.store.quarantine(self.delivery(message), "poison"))
        self.write(message, "quarantined", None, "poison")

    def arrive(self, lane):
        self.latest += 1
        new = Message(self.latest, str(self.latest), lane, "", None, self.now, "")
        self.lanes[lane].append(new)
        return new

    def delivery(self, message):
        # The generation is new: the message comes again.
        self.generation += 1
        delivery = make_delivery(
            message_id=message.name, redelivered=True, generation=self.generation
        )
        return delivery._replace(lane=message.lane)

    @precondition(lambda self: self.messages)
    @rule(pick=picks, due=times, by_row=st.booleans())
    def a_row_is_deferred_again(self, pick, due, by_row):
        message = self.pick(pick)
        row = message.row if by_row else 0
        asyncio.run(self.store.defer(self.delivery(message)._replace(row=row), due))
        self.write(message, "deferred", due, "deferred")

    @precondition(lambda self: self.messages)
    @rule(pick=picks, lane=lanes)
    def a_row_is_quarantined_whatever_its_lane_is_called_now(self, pick, lane):
        message = self.pick(pick)
        asyncio.run(self.store.quarantine(self.delivery(message)._replace(lane=lane), "poison"))
        self.write(message, "quarantined", None, "poison")

    @precondition(lambda self: self.messages)
    @rule(pick=picks)
    def a_row_is_removed(self, pick):
        message = self.pick(pick)
        asyncio.run(self.store.remove(message.row))
        self.lose(message)

    @rule(chosen=st.sets(st.integers(1, 30), max_size=4))
    def an_operator_drops(self, chosen):
        dropped = asyncio.run(self.store.drop(sorted(chosen)))
        going = [m for m in self.messages if m.row in chosen and m.state != "replaying"]
        assert dropped == [m.row for m in going]
        for message in going:
            self.lose(message)

    @precondition(lambda self: self.messages)
    @rule(pick=picks, first=st.booleans())
    def a_replay_claims(self, pick, first):
        message = self.pick(pick)
        # Mostly claims that succeed, since only these lead to further states.
        message = (self.first(message) or message) if first else message
        claimed = asyncio.run(self.store.claim(message.row))
        assert claimed == (message.state == "quarantined" and self.first(message) is None)
        if claimed:
            message.state, message.updated = "replaying", self.now

    @precondition(lambda self: any(m.state == "replaying" for m in self.messages))
    @rule(pick=picks, succeeds=st.booleans())
    def a_replay_ends(self, pick, succeeds):
        claimed = [m for m in self.messages if m.state == "replaying"]
        message = claimed[pick % len(claimed)]
        if succeeds:
            assert asyncio.run(self.store.resolve(message.row))
            self.lose(message)
        else:
            assert asyncio.run(self.store.release(message.row))
            self.write(message, "quarantined", None, message.reason)

    @precondition(lambda self: self.messages)
    @rule(pick=picks)
    def an_operator_edits(self, pick):
        message = self.pick(pick)
        child = asyncio.run(self.store.supersede(message.row, b'{"edited": 1}'))
        assert (child is not None) == (message.state == "quarantined")
        if child is not None:
            self.latest = message.row = child
            message.updated = self.now

    @rule(after=st.sampled_from([1.0, 4.0, 12.0]))
    def time_passes_and_old_rows_expire(self, after):
        self.now += after
        asyncio.run(self.store.expire(self.now))
        before = self.now - MAX_AGE
        for message in self.messages:
            if message.state == "quarantined" and message.updated <= before:
                self.lose(message)

    @rule()
    def the_process_dies_and_starts_again(self):
        self.store.close()
        self.store = self.opened()
        claimed = [m for m in self.messages if m.state == "replaying"]
        for message in claimed:
            message.state, message.updated = "quarantined", self.now
        for lane in {m.lane for m in claimed}:
            self.settle(lane)

    # Invariants.

    @invariant()
    def rows_are_as_in_the_model(self):
        rows = [row for row in self.store.rows(state=None) if row.state != "superseded"]
        assert [(r.id, r.lane, r.state, r.due, r.reason) for r in rows] == [
            (m.row, m.lane, m.state, m.due, m.reason) for m in self.messages
        ]
        firsts = [self.first(m) for m in self.messages]
        assert [row.behind for row in rows] == [first and first.row for first in firsts]

    @invariant()
    def only_first_rows_are_due(self):
        waiting = [m for m in self.messages if m.state == "deferred" and self.first(m) is None]
        due = sorted((m.due, m.row) for m in waiting if m.due is not None and m.due <= 3.0)
        assert [d.row for d in self.store.due(3.0)] == [row for _, row in due]
        times = [m.due for m in waiting if m.due is not None]
        assert self.store.next_due() == min(times, default=None)

    @invariant()
    def a_lane_is_blocked_by_its_first_row(self):
        for lane in LANES[1:]:
            assert self.store.is_blocked(lane) == bool(self.lanes[lane])
        for message in self.messages:
            first = self.first(message)
            assert self.store.is_blocked(message.lane, message.row) == (first is not None)
            assert self.store.blocked_by(message.lane, message.row) == (
                first and Blocker(first.row, first.state, first.due)
            )

    @invariant()
    def nothing_is_deferred_behind_a_quarantined_row(self):
        for lane in LANES[1:]:
            states = [m.state for m in self.lanes[lane]]
            since = states.index("quarantined") if "quarantined" in states else len(states)
            assert "deferred" not in states[since:]

    @invariant()
    def operators_see_which_lanes_wait_for_them(self):
        heads = [self.lanes[lane][0].state for lane in LANES[1:] if self.lanes[lane]]
        assert self.store.stats().blocked_lanes == heads.count("quarantined")
        order = [m.row for lane in LANES[1:] for m in self.lanes[lane]]
        for lane in LANES[1:]:
            mine = [m.row for m in self.lanes[lane]]
            found = self.store.in_lane_order(reversed(order))
            assert [row for row in found if row in mine] == mine


TestLanes = Lanes.TestCase
TestLanes.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
