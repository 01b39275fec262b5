# SPDX-License-Identifier: GPL-2.0-or-later
"""After any events in any order: no message is lost, none loops, none stops the others.

The machine publishes messages, chooses the outcome of each run of their handler, lets time pass,
drops connections, kills and restarts the process, breaks the store's disk, and has an operator
replay and drop quarantined messages. All parts between the broker and the handler are the real
ones, in virtual time.
"""

import asyncio
import os

from fedora_messaging.message import Message
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer_framework import Defer, DependencyFault, Drop, Halt, Quarantine, Retry, Skip
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import Harness

RECOVERIES = st.fixed_dictionaries(
    {
        "immediate": st.integers(0, 2),
        "delays": st.sampled_from([[], ["2s"], ["10s", "5m"], ["1s", "1h"]]),
        "hold_slots": st.integers(0, 2),
        "ack_timeout": st.sampled_from(["20s", "30m"]),
        "on_exhausted": st.sampled_from(["quarantine", "quarantine", "drop", "halt", "requeue"]),
        "crash_attempts": st.integers(1, 2),
        "breaker": st.fixed_dictionaries(
            {"consecutive": st.integers(1, 2), "probe": st.just(["5s", "30s"])}
        ),
    }
)
ORDERINGS = st.sampled_from(
    [{}, {"ordering": "key", "ordering_key": "body:key"}, {"ordering": "strict"}]
)
# The outcomes of a run; each gets the current time.
RUNS = {
    "success": lambda _: None,
    "skip": lambda _: Skip(),
    "error": lambda _: ValueError("poison"),
    "retry": lambda _: Retry(),
    "retry soon": lambda _: Retry(after=0),
    "retry late": lambda _: Retry(after="2h"),
    "defer": lambda now: Defer(now + 100),
    "defer to the past": lambda now: Defer(now - 100),
    "quarantine": lambda _: Quarantine("odd"),
    "dependency": lambda _: DependencyFault("the database"),
    "drop": lambda _: Drop("old"),
    "halt": lambda _: Halt(3),
    "halt and requeue": lambda _: Halt(3, requeue=True),
}
DONE = {"success", "skip", "halt"}
# With the settings above, an instance finishes within some hours once all faults are gone.
HOURS = 24


class Instance(RuleBasedStateMachine):
    """A broker, an instance on it, and all events that may happen to both."""

    @initialize(
        recovery=RECOVERIES,
        ordering=ORDERINGS,
        slots=st.integers(1, 3),
        chance=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def start(self, recovery, ordering, slots, chance):
        self.recovery = recovery
        self.ordering = ordering.get("ordering", "none")
        self.slots = slots
        self.lanes: dict[str, str] = {}
        self.running: list[str] = []
        self.wrong: list[str] = []
        self.dropped: set[str] = set()
        self.plans: dict[str, tuple[list[str], float]] = {}
        self.did: dict[str, list[str]] = {}
        self.published: list[Message | bytes] = []
        self.began: dict[str, float] = {}
        self.breaks = 0
        # A run that never ends must cost little.
        framework = {"recovery": recovery, "slots": slots, **ordering}
        self.harness = Harness(
            self.handle, settings=framework, chance=chance, patience=0
        ).__enter__()

    async def handle(self, message):
        self.see_that_it_may_begin(message)
        self.running.append(message.id)
        try:
            await self.run(message)
        finally:
            self.running.remove(message.id)

    def see_that_it_may_begin(self, message):
        if len(self.running) >= self.slots:
            self.wrong.append(f"{message.id} begins, and every slot is taken")
        if message.id in self.running:
            self.wrong.append(f"{message.id} runs twice at once")
        for earlier in self.before(message.id):
            if earlier in self.running:
                self.wrong.append(f"{message.id} overlaps with {earlier}")
            if earlier not in self.done():
                self.wrong.append(f"{message.id} overtakes {earlier}")

    def before(self, name):
        """Return the messages that message *name* must not overtake."""
        lane = self.lanes[name]
        names = list(self.lanes)
        earlier = names[: names.index(name)]
        return [other for other in earlier if lane and self.lanes[other] == lane]

    def done(self):
        return {_name(message) for message in [*self.harness.acked, *self.harness.rejected]}

    async def run(self, message):
        plan, lasts = self.plans[message.id]
        self.began.setdefault(message.id, self.harness.now)
        how = plan.pop(0) if len(plan) > 1 else plan[0]
        await asyncio.sleep(lasts)
        self.did.setdefault(message.id, []).append(how)
        error = RUNS[how](self.harness.now)
        if error is not None:
            raise error

    # Events.

    @rule(
        plan=st.lists(st.sampled_from(sorted(RUNS)), min_size=1, max_size=4),
        lasts=st.sampled_from([0.0, 0.0, 3.0]),
        kills=st.sampled_from([0, 0, 0, 1, 2, 3]),
        key=st.sampled_from(["one", "one", "two", None]),
    )
    def publish(self, plan, lasts, kills, key):
        message = Message(topic="a.topic", body={"n": len(self.published), "key": key})
        by_key = key or "" if self.ordering == "key" else ""
        self.lanes[message.id] = "all" if self.ordering == "strict" else by_key
        self.plans[message.id] = (plan, lasts)
        self.published.append(message)
        self.breaks += kills
        self.harness.deliver(message, kills=kills)

    @rule(message_id=st.sampled_from(["one", "two", None]), headers=st.sampled_from([None, {}]))
    def publish_garbage(self, message_id, headers):
        body = b"no json %d" % len(self.published)
        self.published.append(body)
        self.lanes[_name(body)] = "all" if self.ordering == "strict" else ""
        self.harness.deliver_raw(body, message_id=message_id, headers=headers)

    @rule(seconds=st.sampled_from([0.5, 2, 15, 70, 400, 8000]))
    def let_time_pass(self, seconds):
        self.harness.advance(seconds)

    @rule()
    def drop_the_connection(self):
        self.breaks += 1
        self.harness.cut()

    @rule()
    def kill_the_process(self):
        self.breaks += 1
        self.harness.crash()

    @rule()
    def restart_in_good_order(self):
        self.breaks += 1
        self.harness.restart()

    @rule()
    def fill_the_disk(self):
        self.harness.store.error = StoreError("no space left on device")

    @precondition(lambda self: self.harness.store.error)
    @rule()
    def make_room_on_the_disk(self):
        self.harness.store.error = None

    @precondition(lambda self: self.harness.quarantined)
    @rule(data=st.data())
    def an_operator_replays_one(self, data):
        self.breaks += 1
        self.replay(data.draw(st.sampled_from(self.harness.quarantined)))

    def replay(self, message):
        try:
            self.harness.replay(message)
        except LookupError as error:
            if "is being replayed" not in str(error) and not self.is_behind(message):
                raise

    def is_behind(self, message):
        return not self.done().issuperset(self.before(_name(message)))

    @precondition(lambda self: self.harness.quarantined)
    @rule(data=st.data())
    def an_operator_drops_one(self, data):
        message = data.draw(st.sampled_from(self.harness.quarantined))
        try:
            self.harness.drop(message)
        except LookupError as error:
            if "is being replayed" not in str(error):
                raise
        else:
            self.dropped.add(_name(message))

    # Invariants.

    @invariant()
    def nothing_ran_that_had_to_wait(self):
        assert self.wrong == []

    @invariant()
    def every_message_is_in_exactly_one_place(self):
        harness = self.harness
        places = [harness.acked, harness.rejected, harness.deferred, harness.quarantined]
        places += [harness.queued, harness.unsettled]
        everything = [_name(message) for place in places for message in place]
        assert sorted(everything) == sorted(map(_name, self.published))

    @invariant()
    def what_was_acknowledged_was_handled(self):
        for message in self.harness.acked:
            assert DONE & set(self.did[message.id]), message.id

    @invariant()
    def what_the_store_has_is_in_the_store(self):
        deferred = [delivery.body for delivery, _ in self.harness.store.deferred]
        quarantined = [delivery.body for delivery, _ in self.harness.store.quarantined]
        assert {_body(m) for m in self.harness.deferred} <= set(deferred)
        assert {_body(m) for m in self.harness.quarantined} <= set(quarantined)

    @invariant()
    def only_an_order_loses_a_message(self):
        for message in self.harness.rejected:
            if _name(message) not in self.dropped:
                assert self.recovery["on_exhausted"] == "drop" or "drop" in self.did[message.id]

    @invariant()
    def no_message_is_a_hot_loop(self):
        for message_id, began in self.began.items():
            runs = len(self.did.get(message_id, []))
            # A process that dies may forget attempts, which then begin anew.
            at_once = (1 + self.recovery["immediate"]) * (1 + self.breaks) + self.soon(message_id)
            assert runs <= at_once + self.harness.now - began, message_id

    def soon(self, message_id):
        """Return the number of retries that the handler itself wanted at once."""
        return self.did.get(message_id, []).count("retry soon")

    def teardown(self):
        if not hasattr(self, "harness"):
            return
        try:
            self.everything_ends_once_all_is_well()
        finally:
            self.harness.__exit__(None, None, None)

    def everything_ends_once_all_is_well(self):
        """Let poison messages fail on, and all others succeed."""
        self.harness.store.error = None
        poison_ends = self.recovery["on_exhausted"] not in ("halt", "requeue")
        for message in self.published:
            if not isinstance(message, bytes):
                self.harness.kill_next(message, 0)
        for plan, _ in self.plans.values():
            plan[:] = ["error" if plan[-1] == "error" and poison_ends else "success"]
        self.advance_until(self.nothing_is_left)
        self.every_message_is_in_exactly_one_place()
        assert self.nothing_is_left()
        self.followers_of_a_quarantined_message_are_quarantined_behind_it()
        self.everything_can_be_replayed_in_its_order()
        self.nothing_ran_that_had_to_wait()

    def advance_until(self, condition):
        for _ in range(HOURS):
            if self.harness.halted is not None:
                self.harness.restart()
            if condition():
                return
            self.harness.advance("1h")

    def nothing_is_left(self):
        """Tell whether all messages have ended, or wait in strict order behind quarantine."""
        if self.ordering == "strict" and self.harness.quarantined:
            return not self.harness.deferred
        return self.ended() == len(self.published)

    def followers_of_a_quarantined_message_are_quarantined_behind_it(self):
        done = self.done()
        for message in self.harness.quarantined:
            behind = {n for n in self.lanes if _name(message) in self.before(n)} - self.dropped
            assert behind.isdisjoint(done)

    def everything_can_be_replayed_in_its_order(self):
        for plan, _ in self.plans.values():
            plan[:] = ["success"]
        # The rows that are being replayed meanwhile.
        self.harness.advance(10)
        while quarantined := self.harness.quarantined:
            first = quarantined[0]
            self.advance_until(lambda: self.harness.halted is None)
            if isinstance(first, bytes):
                self.harness.drop(first)
            else:
                self.replay(first)
            # Long enough for all messages that waited behind it.
            self.harness.advance(100)
            assert _name(first) in self.done()
        self.advance_until(lambda: self.ended() == len(self.published))
        assert self.ended() == len(self.published)

    def ended(self):
        harness = self.harness
        return len(harness.acked) + len(harness.rejected) + len(harness.quarantined)


def _name(message):
    return message.decode() if isinstance(message, bytes) else message.id


def _body(message):
    return message if isinstance(message, bytes) else message._encoded_body


TestInstance = Instance.TestCase
# A failure is found quickly and shrunk slowly: with CI=true its steps are shown unshrunk.
SHRINKING = [] if os.environ.get("CI") == "true" else [Phase.shrink]
TestInstance.settings = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *SHRINKING],
)
