# SPDX-License-Identifier: GPL-2.0-or-later
"""Several routes with one message, and all else that may happen to a message meanwhile."""

import asyncio
import logging
import math
import time
from collections import Counter

import anitya_schema
import pytest
from fedora_messaging import api
from fedora_messaging import exceptions as upstream
from fedora_messaging.message import Message

from consumer_framework import (
    Consumer,
    Defer,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Retry,
    Skip,
    heartbeat,
    on_message,
    on_topic,
)
from consumer_framework.core import disposition as to
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import Harness
from consumer_framework.testing.builders import message_of

LOGGER = "consumer_framework.runtime.observe.log"


def message(n=1, topic="a.b"):
    return Message(topic=topic, body={"n": n})


class Recorder(Consumer):
    """Two plain routes and a coroutine between them; tests say what each call does."""

    def __init__(self, config):
        super().__init__(config)
        self.calls = config["calls"]
        self.plans = config["plans"]

    def _act(self, name, message):
        self.calls.append((name, message.body["n"]))
        plan = self.plans.get(name, [])
        step = plan.pop(0) if plan else None
        if callable(step):
            step = step(self, message)
        if isinstance(step, BaseException):
            raise step

    @on_topic("a.#")
    def one(self, message):
        self._act("one", message)

    @on_topic("*.b")
    async def two(self, message):
        await asyncio.sleep(0)
        self._act("two", message)

    @on_topic("a.b")
    def three(self, message):
        self._act("three", message)


@pytest.fixture
def world():
    opened = []

    def make(consumer=Recorder, settings=None, **plans):
        calls: list[tuple[str, int]] = []
        kept = {name: list(plan) for name, plan in plans.items()}

        def start(own, _config):
            consumer.__init__(own, {"calls": calls, "plans": kept})

        kind = type("Kept", (consumer,), {"__init__": start, "__module__": __name__})
        harness = Harness(kind, settings=settings)
        harness.__enter__()
        opened.append(harness)
        return harness, calls

    yield make
    for harness in opened:
        harness.__exit__(None, None, None)


def names(calls):
    return [name for name, _ in calls]


# Isolation.


def test_all_routes_of_a_message_run_in_their_order_and_then_it_is_acknowledged(world):
    harness, calls = world()
    assert isinstance(harness.deliver(message()), to.Ack)
    assert names(calls) == ["one", "two", "three"]
    assert isinstance(harness.deliver(message(2, "a.c")), to.Ack)
    assert calls[3:] == [("one", 2)]


def test_a_retry_runs_only_the_route_that_failed(world):
    harness, calls = world(two=[ValueError("two")] * 2)
    given = message()
    held = harness.deliver(given)
    assert isinstance(held, to.Hold)
    assert held.reason == "route two: ValueError: two"
    assert names(calls) == ["one", "two", "three", "two"]
    harness.advance("10s")
    assert names(calls)[4:] == ["two"]
    assert harness.acked == [given]
    assert [attempt.route for attempt in harness.attempts(given)] == ["two", "two"]


def test_each_route_has_its_own_attempts_and_its_own_time(world):
    harness, calls = world(one=[ValueError()] * 3, three=[Retry(after="1h"), ValueError()])
    given = message()
    harness.deliver(given)
    assert names(calls) == ["one", "two", "three", "one"]
    harness.advance("10s")
    assert names(calls)[4:] == ["one"]
    harness.advance("2m")
    assert names(calls)[5:] == ["one"]
    harness.advance("57m")
    assert names(calls)[6:] == []
    harness.advance("1m")
    # The schedule goes on as after two failures.
    assert names(calls)[6:] == ["three", "three"]
    assert harness.acked == [given]


def test_a_route_that_is_dropped_and_one_that_is_quarantined_do_not_touch_each_other(world):
    harness, calls = world(one=[Drop("not ours")], three=[Quarantine("look at it")])
    given = message()
    assert harness.deliver(given) == to.Quarantine("route three: look at it")
    assert harness.quarantined == [given]
    assert isinstance(harness.replay(given), to.Reject)
    assert names(calls) == ["one", "two", "three", "three"]


def test_a_message_whose_last_open_route_drops_it_is_dropped(world):
    harness, calls = world(two=[Drop("not ours")])
    assert harness.deliver(message()) == to.Reject("route two: not ours")
    assert names(calls) == ["one", "two", "three"]


def test_a_replay_runs_the_failed_routes_alone_and_fails_with_them(world):
    harness, calls = world(one=[Quarantine("a"), Quarantine("b")], three=[Quarantine("c")])
    given = message()
    harness.deliver(given)
    assert harness.replay(given) == to.Quarantine("route one: b")
    assert names(calls) == ["one", "two", "three", "one", "three"]
    assert isinstance(harness.replay(given), to.Ack)
    assert names(calls)[5:] == ["one"]


def test_a_route_that_fails_for_good_waits_for_the_others(world):
    harness, calls = world(one=[Quarantine("broken")], two=[ValueError()] * 2)
    given = message()
    assert isinstance(harness.deliver(given), to.Hold)
    harness.advance("10s")
    assert harness.quarantined == [given]
    assert names(calls) == ["one", "two", "three", "two", "two"]


@pytest.mark.parametrize("limit", [0, 2])
def test_the_attempts_of_one_route_do_not_spend_those_of_another(world, limit):
    settings = {"recovery": {"immediate": limit, "delays": []}}
    harness, calls = world(settings=settings, one=[ValueError()] * 9, three=[ValueError()] * 9)
    given = message()
    harness.deliver(given)
    assert harness.quarantined == [given]
    assert Counter(names(calls)) == {"one": limit + 1, "two": 1, "three": limit + 1}


def test_skip_is_a_success(world):
    harness, _ = world(one=[Skip("no")], two=[Skip("no")], three=[Skip("no")])
    assert isinstance(harness.deliver(message()), to.Ack)


def test_exceptions_of_fedora_messaging_mean_in_a_route_what_they_mean_elsewhere(world):
    harness, calls = world(
        one=[upstream.Nack()], two=[upstream.Drop()], three=[upstream.HaltConsumer(exit_code=7)]
    )
    assert isinstance(harness.deliver(message()), to.Halt)
    assert harness.halted == to.Halt(7, requeue=True, reason="route three: Halt")
    assert names(calls) == ["one", "two", "three"]
    harness.restart()
    harness.advance("1s")
    assert names(calls)[3:] == ["one"]


# Halt.


def test_a_halt_keeps_the_message_for_the_routes_that_are_not_done(world):
    harness, calls = world(two=[Halt(5, "enough")])
    given = message()
    harness.deliver(given)
    assert harness.halted is not None
    assert (harness.halted.exit_code, harness.halted.requeue) == (5, True)
    assert names(calls) == ["one", "two"]
    harness.restart()
    harness.advance("1s")
    assert names(calls)[2:] == ["three"]
    assert harness.acked == [given]


def test_a_halt_of_the_last_route_ends_the_message(world):
    harness, calls = world(three=[Halt(0, "enough")])
    given = message()
    harness.deliver(given)
    assert harness.acked == [given]
    harness.restart()
    harness.advance("1s")
    assert names(calls) == ["one", "two", "three"]


def test_a_halt_with_requeue_runs_its_route_again(world):
    harness, calls = world(one=[Halt(1, "help", requeue=True)])
    harness.deliver(message())
    harness.restart()
    harness.advance("1s")
    assert names(calls) == ["one", "one", "two", "three"]


# Crashes, lost connections, restarts.


def kill(harness_of, given):
    return lambda _consumer, _message: harness_of[0].kill_next(given)


def test_a_process_that_dies_between_two_routes_does_not_run_the_first_again(world):
    given = message()
    harness_of: list[Harness] = []
    harness, calls = world(one=[kill(harness_of, given)])
    harness_of.append(harness)
    harness.deliver(given)
    harness.advance("1s")
    assert names(calls) == ["one", "two", "three"]
    assert harness.acked == [given]


def test_a_process_that_dies_while_a_message_is_held_remembers_the_routes_that_are_done(world):
    harness, calls = world(two=[ValueError()] * 3)
    given = message()
    harness.deliver(given)
    harness.crash()
    harness.advance("1s")
    # In the new process its attempts begin anew.
    assert names(calls) == ["one", "two", "three", "two", "two", "two"]
    assert harness.acked == [given]


@pytest.mark.parametrize("how", ["cut", "restart"])
def test_a_held_message_that_comes_again_runs_its_open_routes_alone(world, how):
    harness, calls = world(two=[ValueError()] * 2)
    given = message()
    assert isinstance(harness.deliver(given), to.Hold)
    getattr(harness, how)()
    harness.advance("1m")
    assert names(calls) == ["one", "two", "three", "two", "two"]
    assert harness.acked == [given]


@pytest.mark.parametrize("how", ["crash", "restart"])
def test_a_deferred_message_keeps_the_states_of_its_routes(world, how):
    later = Defer(4e9, "in the next century")
    harness, calls = world(one=[ValueError()] * 9, three=[later])
    given = message()
    harness.deliver(given)
    harness.advance("1h")
    assert harness.deferred == [given]
    assert Counter(names(calls)) == {"one": 5, "two": 1, "three": 1}
    getattr(harness, how)()
    harness.advance("1h")
    assert Counter(names(calls)) == {"one": 5, "two": 1, "three": 1}
    [(row, until)] = harness.store.deferred
    assert until == later.until
    assert {s.route: s.ending for s in row.history.routes} == {
        "one": "failed",
        "two": "done",
        "three": "later",
    }


def test_a_message_without_an_id_keeps_the_states_of_its_routes_in_its_row(world):
    harness, calls = world(two=[lambda _consumer, _message: Defer(time.time() + 86400)])
    harness.deliver_raw(b'{"n": 1}', headers={}, routing_key="a.b")
    assert harness.deferred == [b'{"n": 1}']
    harness.restart()
    harness.advance("25h")
    assert names(calls) == ["one", "two", "three", "two"]
    assert harness.acked == [b'{"n": 1}']


def test_two_crashes_in_a_route_set_the_message_aside_and_a_replay_runs_the_rest(world):
    given = message()
    harness_of: list[Harness] = []

    def twice(_consumer, _message):
        harness_of[0].kill_next(given, 2)

    harness, calls = world(one=[twice])
    harness_of.append(harness)
    harness.deliver(given)
    harness.advance("1s")
    assert harness.quarantined == [given]
    assert names(calls) == ["one"]
    [(row, reason)] = harness.store.quarantined
    assert reason == "route two: the process died 2 times while it was handled"
    assert [(state.route, state.ending) for state in row.history.routes] == [("two", "failed")]
    assert isinstance(harness.replay(given), to.Ack)
    assert names(calls) == ["one", "two", "three"]


def test_two_equal_messages_both_run_all_their_routes(world):
    harness, calls = world()
    given = message()
    harness.deliver(given)
    harness.deliver(given)
    assert names(calls) == ["one", "two", "three"] * 2


def test_a_stop_between_two_routes_leaves_the_rest_to_the_next_process(world):
    harness_of: list[Harness] = []

    def stop(_consumer, _message):
        instance = harness_of[0]._instance
        instance.time.loop.call_soon_threadsafe(instance._close)

    harness, calls = world(one=[stop])
    harness_of.append(harness)
    given = message()
    harness.deliver(given)
    harness.restart()
    harness.advance("1s")
    assert names(calls) == ["one", "two", "three"]
    assert harness.acked == [given]


def test_a_lost_connection_between_two_routes_changes_nothing(world):
    harness_of: list[Harness] = []

    def cut(_consumer, _message):
        instance = harness_of[0]._instance

        def voided():
            instance._dispatcher.voided(instance.queue.cut())

        instance.time.loop.call_soon_threadsafe(voided)

    harness, calls = world(one=[cut])
    harness_of.append(harness)
    given = message()
    harness.deliver(given)
    harness.advance("1s")
    assert names(calls) == ["one", "two", "three"]
    assert harness.acked == [given]


# Publishing and steps.


def publishes(topic):
    return lambda _consumer, _message: api.publish(Message(topic=topic, body={}))


def test_each_route_publishes_its_messages_when_it_is_done(world):
    harness, _ = world(one=[publishes("one")], two=[ValueError()], three=[publishes("three")])
    given = message()
    harness.deliver(given)
    assert [each.topic for each in harness.published] == ["one", "three"]
    assert [each.topic for each in harness.published_by(given)] == ["one", "three"]
    harness.advance("1m")
    assert len(harness.published) == 2


def test_a_route_that_fails_publishes_nothing(world):
    def publish_and_fail(_consumer, _message):
        api.publish(Message(topic="two", body={}))
        return ValueError("after it")

    harness, _ = world(three=[publish_and_fail, publishes("again")])
    harness.deliver(message())
    assert [each.topic for each in harness.published] == ["again"]


def test_a_process_that_dies_after_a_route_has_published_publishes_once(world):
    given = message()
    harness_of: list[Harness] = []

    def publish_and_die(_consumer, _message):
        api.publish(Message(topic="one", body={}))
        harness_of[0].kill_next(given)

    harness, calls = world(one=[publish_and_die], two=[publishes("two")])
    harness_of.append(harness)
    harness.deliver(given)
    harness.advance("1s")
    assert [each.topic for each in harness.published] == ["one", "two"]
    assert names(calls) == ["one", "two", "three"]


def test_a_route_is_done_only_once_its_messages_are_stored(world):
    harness, calls = world(one=[publishes("one")])
    harness.outbox.error = StoreError("the database is away")
    given = message()
    assert harness.deliver(given) is None
    assert harness.paused == "the database is away"
    harness.advance("1m")
    assert names(calls) == ["one"]
    harness.outbox.error = None
    harness.advance("5s")
    assert harness.paused == ""
    assert names(calls) == ["one", "two", "three"]
    assert harness.acked == [given]


def test_a_stop_does_not_wait_for_an_outbox_that_takes_nothing(world):
    harness, calls = world(one=[publishes("one")])
    harness.outbox.error = StoreError("the database is away")
    given = message()
    harness.deliver(given)
    harness.restart()
    harness.outbox.error = None
    harness.advance("1s")
    assert harness.acked == [given]
    assert names(calls) == ["one", "one", "two", "three"]


def test_a_store_that_takes_no_step_keeps_no_route_from_running(world, caplog):
    harness, calls = world(two=[ValueError()])
    harness.store.error = StoreError("disk full")
    given = message()
    with caplog.at_level(logging.WARNING):
        harness.deliver(given)
    assert "route one is done, and cannot be recorded: disk full" in caplog.text
    assert names(calls) == ["one", "two", "three", "two"]
    assert harness.acked == [given]


def test_steps_that_cannot_be_read_keep_no_route_from_running(world, caplog, monkeypatch):
    harness, calls = world()

    def fails(_delivery):
        raise StoreError("disk away")

    monkeypatch.setattr(harness.store, "steps_of", fails)
    given = message()
    harness.deliver(given)
    assert harness.acked == [given]
    assert "the routes that are done cannot be read: disk away" in caplog.text
    assert names(calls) == ["one", "two", "three"]


def test_a_pause_takes_back_the_messages_that_wait_behind_one_with_several_routes(world):
    """The message before them waits for its outbox; they go back to their queue."""
    harness, calls = world(one=[publishes("x")])
    harness.outbox.error = StoreError("the database is away")
    given = [message(1), message(2, "a.c"), message(3, "a.c")]
    for each in given:
        harness._queue.publish(each, each.topic, each._properties, each._encoded_body)
    harness.advance("1s")
    assert calls == [("one", 1)]
    assert harness.queued == given[1:]
    harness.outbox.error = None
    harness.advance("10s")
    assert harness.acked == given
    assert [n for _, n in calls] == [1, 1, 1, 2, 3]


def test_a_route_whose_record_failed_is_recorded_by_a_later_run_of_the_message(world):
    harness, calls = world(two=[ValueError()] * 9)
    harness.store.error = StoreError("disk full")
    given = message()
    assert isinstance(harness.deliver(given), to.Hold)
    harness.store.error = None
    harness.advance("10s")
    harness.crash()
    harness.advance("1s")
    assert Counter(names(calls)) == {"one": 1, "two": 5, "three": 1}


class Stepping(Recorder):
    @on_topic("a.b")
    def one(self, message):
        with self.once("step") as step:
            step.run(self._act, "one", message)
        self._act("end", message)

    async def two(self, message):
        async with self.once("step") as step:
            await step.run(self._act, "two", message)


def test_steps_of_two_routes_with_one_name_are_two_steps(world):
    harness, calls = world(Stepping, end=[ValueError()])
    given = message()
    harness.deliver(given)
    assert names(calls) == ["one", "end", "two", "three", "end"]
    assert harness.acked == [given]


def test_routes_are_isolated_without_a_store_as_well(world):
    harness, calls = world(settings={"store": "memory"}, two=[ValueError()] * 2)
    given = message()
    assert isinstance(harness.deliver(given), to.Hold)
    harness.advance("10s")
    assert names(calls) == ["one", "two", "three", "two", "two"]
    assert harness.acked == [given]


# Order, time, dependencies.


@pytest.mark.parametrize("publishing", [False, True])
def test_with_one_slot_no_message_begins_between_the_routes_of_another(world, publishing):
    plan = [publishes("x")] * 4 if publishing else []
    harness, calls = world(one=plan, two=plan)
    given = [message(n, "a.b" if n % 2 else "a.c") for n in range(6)]
    for each in given:
        harness._queue.publish(each, each.topic, each._properties, each._encoded_body)
    harness.advance("1s")
    assert harness.acked == given
    assert [n for _, n in calls] == sorted(n for _, n in calls)


class Keyed(Recorder):
    def ordering_key(self, message):
        return "key"


@pytest.mark.parametrize("ordering", ["key", "strict"])
def test_messages_with_one_key_wait_for_a_route_that_is_tried_again(world, ordering):
    settings = {"ordering": ordering, **({"slots": 3} if ordering == "key" else {})}
    harness, calls = world(Keyed, settings, two=[ValueError()] * 2)
    first, second = message(1), message(2)
    harness.deliver(first)
    harness.deliver(second)
    assert {n for _, n in calls} == {1}
    harness.advance("1m")
    assert harness.acked == [first, second]
    assert [n for _, n in calls] == [1] * 5 + [2] * 3


def test_a_broken_dependency_of_one_route_pauses_the_instance_and_spares_the_others(world):
    settings = {"recovery": {"breaker": {"consecutive": 1}}}
    harness, calls = world(settings=settings, one=[DependencyFault("database")] * 3)
    given = message()
    harness.deliver(given)
    assert "database" in harness.paused
    assert names(calls) == ["one", "two", "three"]
    harness.advance("1h")
    assert harness.paused == ""
    assert harness.acked == [given]
    assert Counter(names(calls)) == {"one": 4, "two": 1, "three": 1}
    assert harness.attempts(given) == ()


class Slow(Consumer):
    calls: Counter[str]

    def setup(self):
        type(self).calls = Counter()

    @on_topic("#")
    async def hangs(self, message):
        self.calls["hangs"] += 1
        await asyncio.sleep(math.inf if self.calls["hangs"] == 1 else 0)

    @on_topic("#")
    async def beats(self, message):
        self.calls["beats"] += 1
        for _ in range(4):
            await asyncio.sleep(8)
            heartbeat()


def test_each_route_has_its_own_time_limit():
    with Harness(Slow, settings={"handler_timeout": "10s"}) as harness:
        given = message()
        harness.deliver(given)
        harness.advance("2m")
        assert harness.acked == [given]
        [attempt] = harness.attempts(given)
        assert attempt.route == "hangs"
        assert attempt.error.endswith("HandlerTimeoutError")
        assert Slow.calls == {"hangs": 2, "beats": 1}


def test_a_coroutine_route_waits_for_virtual_time_between_plain_ones(world):
    class Sleeping(Recorder):
        async def two(self, message):
            await asyncio.sleep(300)
            self._act("two", message)

    harness, calls = world(Sleeping)
    given = message()
    assert harness.deliver(given) is None
    harness.advance("4m")
    assert names(calls) == ["one"]
    harness.advance("1m")
    assert names(calls) == ["one", "two", "three"]
    assert harness.acked == [given]


# Messages that no route takes, or that are none.


def test_a_message_without_a_route_is_dropped_and_logged_once_for_each_topic(world, caplog):
    harness, calls = world()
    with caplog.at_level(logging.INFO, LOGGER):
        given = [message(n, f"x.{n % 2}") for n in range(6)]
        for each in given:
            assert isinstance(harness.deliver(each), to.Reject)
    assert harness.rejected == given
    assert calls == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "on x.0 is dropped: no route of the consumer takes it" in lines[0]


def test_a_message_without_a_route_goes_to_handle_where_there_is_one(world):
    class WithRest(Recorder):
        def handle(self, message):
            self._act("rest", message)

    harness, calls = world(WithRest, rest=[ValueError()])
    given = message(1, "x")
    assert isinstance(harness.deliver(given), to.Ack)
    assert names(calls) == ["rest", "rest"]
    assert [attempt.route for attempt in harness.attempts(given)] == [""]


def test_bytes_that_are_no_message_are_quarantined_once_whatever_routes_take_them(world):
    harness, calls = world()
    assert isinstance(harness.deliver_raw(b"no json", routing_key="a.b"), to.Quarantine)
    assert calls == []


class ByClass(Consumer):
    seen: list[str]

    def setup(self):
        type(self).seen = []

    @on_message(anitya_schema.ProjectVersionUpdatedV2)
    def updated(self, message):
        self.seen.append("updated")

    @on_topic("plain")
    def plain(self, message):
        self.seen.append("plain")


def test_a_message_goes_to_the_route_of_its_class():
    with Harness(ByClass) as harness:
        harness.deliver(message_of(anitya_schema.ProjectVersionUpdatedV2))
        assert ByClass.seen == ["updated"]


def test_a_message_whose_class_is_not_installed_is_not_lost():
    with Harness(ByClass) as harness:
        headers = {"fedora_messaging_schema": "not.installed"}
        found = harness.deliver_raw(b"{}", headers=headers, routing_key="x")
        assert isinstance(found, to.Quarantine)
        assert "'not.installed' is not installed" in found.reason
        assert isinstance(harness.deliver_raw(b"{}", headers=headers, routing_key="plain"), to.Ack)
        assert ByClass.seen == ["plain"]
        assert isinstance(harness.deliver_raw(b"{}", headers={}, routing_key="x"), to.Reject)
        odd = {"fedora_messaging_schema": ["a", "list"]}
        undecodable = harness.deliver_raw(b"{}", headers=odd, routing_key="plain")
        assert isinstance(undecodable, to.Quarantine)
        # Its class cannot be known.
        raw = {"x-undecodable-properties": b"?"}
        assert isinstance(harness.deliver_raw(headers=raw, routing_key="x"), to.Quarantine)


def test_a_line_of_the_log_names_the_route_that_failed(world, caplog):
    harness, _ = world(two=[ValueError("no")], three=[Retry("not yet")])
    with caplog.at_level(logging.INFO, LOGGER):
        harness.deliver(message())
    failures = [record for record in caplog.records if "failed" in record.getMessage()]
    assert "on a.b in route two failed at attempt 1; it is held" in failures[0].getMessage()
    routes = {getattr(record, "FM_ROUTE", "") for record in caplog.records}
    assert {"two", "three"} <= routes
