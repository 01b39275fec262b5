# SPDX-License-Identifier: GPL-2.0-or-later
"""The promises of the port Store, kept by the real one and by the fake."""

import asyncio

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.core.attempt import Attempt, History, RouteState
from consumer_framework.core.delivery import RAW_PROPERTIES
from consumer_framework.core.ordering import Blocker
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fake_store import FakeStore

FAILED = History((Attempt(1.5, "ValueError", "no", "Traceback ...", "ValueError in f"),), crashes=1)


@pytest.fixture(params=["real", "fake"])
def store(request, tmp_path):
    if request.param == "fake":
        yield FakeStore()
        return
    real = Store.open(tmp_path, limits=Limits())
    yield real
    real.close()


def run(*writes):
    """Carry out writes, one after the other."""

    async def in_order():
        return [await write for write in writes]

    return asyncio.run(in_order())


def test_an_empty_store_knows_nothing(store):
    assert not store.is_open(make_delivery())
    assert store.due(1e12, 10) == []
    assert store.next_due() is None


def test_a_deferred_message_is_due_when_its_time_has_come_and_not_before(store):
    run(store.defer(make_delivery(), 100.0))
    assert store.next_due() == 100.0
    assert store.due(99.9, 10) == []
    assert len(store.due(100.0, 10)) == 1


def test_a_due_message_comes_back_as_it_was_received_with_its_history(store):
    original = make_delivery(
        message_id="an id",
        body=b"\x00\xff not even text",
        queue="my queue",
        generation=3,
        delivery_tag=17,
        redelivered=True,
        exchange="amq.topic",
        routing_key="org.example",
        headers={"a": [1, {"b": None}]},
    )._replace(
        received_at=12.25,
        history=FAILED,
    )
    run(store.defer(original, 5.0))
    (back,) = store.due(5.0, 10)
    assert back.row > 0
    assert (back.generation, back.delivery_tag) == (0, back.row)
    assert back.properties.message_id == "an id"
    assert back.properties.headers == {"a": [1, {"b": None}]}
    assert (
        back._replace(generation=3, delivery_tag=17, row=0, properties=original.properties)
        == original
    )


def test_a_row_keeps_the_states_of_its_routes_and_the_route_of_each_attempt(store):
    states = (
        RouteState("one", "done"),
        RouteState("two", "later", 7.5, "ValueError: no"),
        RouteState("three", "failed", reason="ü"),
    )
    attempts = (Attempt(1.5, "ValueError", "no", "", "f", route="two"), FAILED.attempts[0])
    history = History(attempts, routes=states)
    run(store.defer(make_delivery()._replace(history=history), 5.0))
    (back,) = store.due(5.0, 10)
    assert back.history == history
    later = History(attempts, routes=states[:1])
    run(store.defer(back._replace(history=later), 6.0))
    assert store.due(6.0, 10)[0].history == later


def test_the_longest_due_message_comes_first_and_no_more_than_the_limit(store):
    run(*(store.defer(make_delivery(message_id=str(due)), due) for due in (3.0, 1.0, 4.0, 2.0)))
    assert [delivery.message_id for delivery in store.due(9.0, 3)] == ["1.0", "2.0", "3.0"]


def test_a_due_message_is_due_until_it_is_removed(store):
    run(store.defer(make_delivery(), 1.0))
    (once,) = store.due(2.0, 10)
    (again,) = store.due(2.0, 10)
    assert once == again
    run(store.remove(once.row))
    assert store.due(2.0, 10) == []
    assert not store.is_open(make_delivery())


def test_removing_a_missing_row_is_no_error(store):
    run(store.remove(12345))


def test_deferred_and_quarantined_messages_are_open_on_every_channel(store):
    deferred = make_delivery(body=b"1")
    quarantined = make_delivery(body=b"2")
    run(store.defer(deferred, 1.0), store.quarantine(quarantined, "poison"))
    for delivery in deferred, quarantined:
        assert store.is_open(delivery._replace(generation=9, delivery_tag=9, redelivered=True))


@pytest.mark.parametrize(
    "other",
    [
        make_delivery(message_id="2"),
        make_delivery(body=b"[]"),
        make_delivery(routing_key="another.topic"),
        make_delivery(queue="another"),
        make_delivery(headers={"a": 1}),
        make_delivery(headers={RAW_PROPERTIES: b"1"}),
    ],
    ids=["id", "body", "topic", "queue", "headers", "raw properties"],
)
def test_messages_that_differ_in_one_property_have_different_rows(store, other):
    run(store.defer(make_delivery(), 1.0))
    assert not store.is_open(other)
    run(store.defer(other, 2.0))
    assert len(store.due(3.0, 10)) == 2


def test_a_quarantined_message_is_never_due(store):
    run(store.quarantine(make_delivery(), "poison"))
    assert store.due(1e12, 10) == []
    assert store.next_due() is None


def again(**what):
    return make_delivery(**{"generation": 2, "redelivered": True, **what})


def test_writing_a_message_that_comes_again_leaves_one_row(store):
    run(store.defer(make_delivery(), 1.0), store.defer(again(), 1.0))
    assert len(store.due(1.0, 10)) == 1


def test_writing_one_delivery_twice_leaves_one_row(store):
    nameless = make_delivery(message_id=None)
    run(store.defer(nameless, 1.0), store.defer(nameless, 1.0))
    assert len(store.due(1.0, 10)) == 1


@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("message_id", ["1", "", None])
def test_ten_equal_messages_have_ten_rows(store, message_id, redelivered):
    equal = [
        make_delivery(message_id=message_id, body=b"", redelivered=redelivered, delivery_tag=tag)
        for tag in range(10)
    ]
    for delivery in equal:
        assert not (redelivered and store.is_open(delivery))
        run(store.defer(delivery, 1.0))
    assert len(store.due(1.0, 20)) == 10


def test_a_row_answers_for_one_of_two_equal_messages_that_come_again(store):
    run(store.defer(make_delivery(), 1.0))
    assert store.is_open(again(delivery_tag=1))
    assert not store.is_open(again(delivery_tag=2))
    assert store.is_open(again(delivery_tag=1))


def test_a_message_without_an_id_is_never_taken_for_a_stored_one(store):
    run(store.defer(make_delivery(message_id=None), 1.0))
    nameless = again(message_id=None)
    assert not store.is_open(nameless)
    run(store.defer(nameless, 1.0))
    assert len(store.due(1.0, 10)) == 2


def test_the_broker_s_own_headers_do_not_make_it_another_message(store):
    run(store.defer(make_delivery(headers={"a": 1}), 1.0))
    assert store.is_open(again(headers={"a": 1, "x-delivery-count": 1}))


def test_the_later_of_two_writes_wins(store):
    run(store.defer(make_delivery(), 1.0), store.defer(make_delivery(), 7.0))
    assert store.next_due() == 7.0
    run(store.quarantine(make_delivery(), "poison"))
    assert store.next_due() is None
    run(store.defer(make_delivery()._replace(history=FAILED), 8.0))
    (delivery,) = store.due(8.0, 10)
    assert delivery.history == FAILED


def test_a_message_that_came_from_the_store_goes_back_to_its_row(store):
    run(store.defer(make_delivery(), 1.0))
    (delivery,) = store.due(1.0, 10)
    run(store.defer(delivery._replace(history=FAILED, replayed=True), 2.0))
    assert store.due(1.0, 10) == []
    assert store.due(2.0, 10) == [delivery._replace(history=FAILED)]


def test_the_number_of_a_deleted_row_is_not_used_again(store):
    run(store.defer(make_delivery(), 1.0))
    (first,) = store.due(1.0, 10)
    run(store.remove(first.row), store.defer(make_delivery(message_id="2"), 1.0))
    (second,) = store.due(1.0, 10)
    assert second.row != first.row


@pytest.mark.parametrize("again", ["defer", "quarantine"])
def test_a_message_whose_row_was_dropped_while_it_ran_does_not_come_back(store, again):
    run(store.defer(make_delivery(), 1.0))
    (delivery,) = store.due(1.0, 10)
    later = store.defer(delivery, 5.0) if again == "defer" else store.quarantine(delivery, "x")
    run(store.remove(delivery.row), later)
    assert not store.is_open(make_delivery())
    assert store.next_due() is None


# Lanes.


def laned(message_id, lane="key"):
    return make_delivery(message_id=message_id)._replace(lane=lane)


def due(store, now=9.0):
    return [delivery.message_id for delivery in store.due(now, 10)]


def test_a_due_message_has_its_lane(store):
    run(store.defer(laned("1"), 1.0))
    (delivery,) = store.due(1.0, 10)
    assert delivery.lane == "key"


def test_only_the_first_row_of_a_lane_is_due_until_it_is_gone(store):
    run(
        store.defer(laned("1"), 5.0),
        store.defer(laned("2"), 1.0),
        store.defer(laned("3"), 1.0),
        store.defer(laned("other", "another key"), 2.0),
        store.defer(laned("none", ""), 3.0),
    )
    assert store.next_due() == 2.0
    assert due(store, 4.0) == ["other", "none"]
    assert due(store) == ["other", "none", "1"]
    run(store.remove(store.due(9.0, 10)[-1].row))
    assert store.next_due() == 1.0
    assert due(store) == ["2", "other", "none"]


def test_a_first_row_that_is_deferred_again_stays_the_first(store):
    run(store.defer(laned("1"), 1.0), store.defer(laned("2"), 1.0))
    (first,) = store.due(9.0, 10)
    run(store.defer(first, 7.0))
    assert due(store, 6.0) == []
    assert store.next_due() == 7.0
    assert due(store) == ["1"]


def test_rows_without_a_lane_never_wait_for_each_other(store):
    run(*(store.defer(laned(message_id, ""), 1.0) for message_id in "123"))
    run(store.quarantine(laned("0", ""), "poison"))
    assert due(store) == ["1", "2", "3"]
    assert not store.is_blocked("")
    assert store.blocked_by("") is None


def test_a_lane_is_blocked_while_it_has_a_row(store):
    assert not store.is_blocked("key")
    run(store.defer(laned("1"), 1.0), store.quarantine(laned("2"), "poison"))
    assert store.is_blocked("key")
    assert not store.is_blocked("another key")
    (first,) = store.due(1.0, 10)
    run(store.remove(first.row))
    assert store.is_blocked("key")
    run(store.remove(store.blocked_by("key").row))
    assert not store.is_blocked("key")


def test_a_row_is_blocked_by_the_first_row_of_its_lane(store):
    run(*(store.defer(laned(message_id), 3.0) for message_id in "123"))
    first = store.due(9.0, 1)[0].row
    second, third = first + 1, first + 2
    assert not store.is_blocked("key", first)
    assert store.blocked_by("key", first) is None
    assert store.blocked_by("key") == Blocker(first, "deferred", 3.0)
    for row in second, third:
        assert store.is_blocked("key", row)
        assert store.blocked_by("key", row) == Blocker(first, "deferred", 3.0)
    run(store.remove(first))
    assert not store.is_blocked("key", second)
    assert store.blocked_by("key", third) == Blocker(second, "deferred", 3.0)


def test_the_deferred_rows_behind_a_row_are_quarantined_with_it_and_no_others(store):
    run(
        store.defer(laned("before"), 8.0),
        store.defer(laned("1"), 1.0),
        store.defer(laned("2")._replace(history=FAILED), 1.0),
        store.defer(laned("other", "another key"), 1.0),
    )
    first = store.due(9.0, 10)[-1].row
    run(store.quarantine(laned("1"), "poison"))
    assert due(store) == ["other", "before"]
    run(store.remove(first))
    assert store.blocked_by("key") == Blocker(first + 1, "quarantined", None)
    assert due(store) == ["other"]


def test_a_message_deferred_behind_a_quarantined_row_is_quarantined(store):
    run(store.quarantine(laned("1"), "poison"), store.defer(laned("2"), 1.0))
    first = store.blocked_by("key").row
    run(store.remove(first))
    assert due(store) == []
    assert store.blocked_by("key") == Blocker(first + 1, "quarantined", None)
    assert store.is_open(laned("2"))


@pytest.mark.parametrize("follower_first", [False, True])
def test_no_order_of_two_commits_leaves_a_deferred_row_that_never_runs(store, follower_first):
    run(store.defer(laned("1"), 1.0))
    (head,) = store.due(1.0, 10)

    async def at_once():
        writes = [store.quarantine(head, "poison"), store.defer(laned("2"), 1.0)]
        await asyncio.gather(*(reversed(writes) if follower_first else writes))

    asyncio.run(at_once())
    run(store.remove(head.row))
    assert due(store) == []
    assert store.blocked_by("key").state == "quarantined"


def test_a_row_keeps_its_first_lane(store):
    run(store.defer(laned("1", "then"), 1.0), store.defer(laned("1", "now"), 2.0))
    assert [delivery.lane for delivery in store.due(9.0, 10)] == ["then"]
    assert not store.is_blocked("now")


def test_many_simultaneous_writes_keep_the_lanes_exact(store):
    async def burst():
        await asyncio.gather(*(store.defer(laned(str(n), f"key {n % 7}"), 1.0) for n in range(50)))

    asyncio.run(burst())
    assert len(due(store)) == 7
    while store.due(9.0, 1):
        run(store.remove(store.due(9.0, 1)[0].row))
    assert not any(store.is_blocked(f"key {n}") for n in range(7))
