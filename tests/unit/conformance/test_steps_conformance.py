# SPDX-License-Identifier: GPL-2.0-or-later
"""The promises of the port Steps, kept by the store, by the store in memory and by the fake."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.memory import NoStore
from consumer_framework.core.ports import RecordedStep
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fake_store import FakeStore

ALL = ["real", "memory", "fake"]


@pytest.fixture(params=ALL)
def store(request, tmp_path):
    if request.param == "fake":
        yield FakeStore()
        return
    real = NoStore() if request.param == "memory" else Store.open(tmp_path, limits=Limits())
    yield real
    real.close()


keeps_rows = pytest.mark.parametrize("store", ["real", "fake"], indirect=True)


def record(store, delivery, name, result="null"):
    store.record_step(delivery, name, result).result()


def names(store, delivery):
    return list(store.steps_of(delivery))


def row_of(store, delivery, until=1.0):
    """Defer *delivery*; return it as it comes back from the store."""
    asyncio.run(store.defer(delivery, until))
    return next(d for d in store.due(9.0, 10) if d.body == delivery.body)


def test_a_message_has_no_steps_at_first(store):
    assert store.steps_of(make_delivery()) == {}


def test_a_recorded_step_has_its_result_and_stays_as_it_was_first_recorded(store):
    record(store, make_delivery(), "a", '{"bug": 17}')
    record(store, make_delivery(), "a", '"another"')
    record(store, make_delivery(), "b")
    expected = {"a": RecordedStep('{"bug": 17}'), "b": RecordedStep("null")}
    assert store.steps_of(make_delivery()) == expected


@pytest.mark.parametrize(
    "again",
    [
        make_delivery(generation=7, delivery_tag=3, redelivered=True),
        make_delivery(queue="another"),
        make_delivery(headers={"x-delivery-count": 3}),
    ],
    ids=["redelivery", "another queue", "the broker's own header"],
)
def test_a_message_that_comes_again_has_its_steps(store, again):
    record(store, make_delivery(), "a")
    assert names(store, again) == ["a"]


@pytest.mark.parametrize(
    "other",
    [
        make_delivery(message_id="2"),
        make_delivery(body=b"[]"),
        make_delivery(routing_key="another.topic"),
        make_delivery(headers={"a": 1}),
    ],
    ids=["id", "body", "topic", "headers"],
)
def test_another_message_has_not(store, other):
    record(store, make_delivery(), "a")
    assert names(store, other) == []


def test_a_message_without_an_id_has_the_steps_of_its_own_delivery(store):
    nameless = make_delivery(message_id=None)
    record(store, nameless, "a")
    assert names(store, nameless) == ["a"]
    assert names(store, nameless._replace(delivery_tag=2)) == []
    assert names(store, nameless._replace(generation=2, redelivered=True)) == []


def test_steps_end_with_the_settle_of_a_message_that_is_published_again(store):
    record(store, make_delivery(), "a")
    assert names(store, make_delivery()) == ["a"]
    store.settled(make_delivery(), stays=False)
    again = make_delivery(delivery_tag=2)
    assert names(store, again) == []
    record(store, again, "b", "1")
    assert store.steps_of(again) == {"b": RecordedStep("1")}
    record(store, again, "a", "2")
    assert store.steps_of(again)["a"] == RecordedStep("2")


@keeps_rows
def test_the_steps_of_a_message_that_stays_in_the_store_stay(store):
    record(store, make_delivery(), "a")
    asyncio.run(store.quarantine(make_delivery(), "poison"))
    store.settled(make_delivery(), stays=True)
    assert names(store, make_delivery()) == ["a"]


@keeps_rows
def test_a_row_has_the_steps_of_its_message_and_takes_them_with_it(store):
    record(store, make_delivery(), "a")
    row = row_of(store, make_delivery())
    assert names(store, row) == ["a"]
    record(store, row, "b")
    assert sorted(names(store, make_delivery())) == ["a", "b"]
    store.settled(row, stays=False)
    asyncio.run(store.remove(row.row))
    assert names(store, make_delivery(redelivered=True)) == []


@keeps_rows
def test_the_rows_of_two_equal_messages_have_the_steps_until_both_are_gone(store):
    record(store, make_delivery(), "a")
    asyncio.run(store.defer(make_delivery(), 1.0))
    asyncio.run(store.defer(make_delivery(delivery_tag=2), 1.0))
    first, second = store.due(9.0, 10)
    asyncio.run(store.remove(first.row))
    assert names(store, second) == ["a"]
    asyncio.run(store.remove(second.row))
    assert names(store, make_delivery(redelivered=True)) == []


@keeps_rows
def test_a_row_without_an_id_has_its_own_steps(store):
    first = row_of(store, make_delivery(message_id=None, body=b"1"))
    second = row_of(store, make_delivery(message_id=None, body=b"2"))
    record(store, first, "a")
    assert (names(store, first), names(store, second)) == (["a"], [])


@keeps_rows
def test_a_row_that_an_operator_dropped_while_it_ran_can_record_its_steps(store):
    row = row_of(store, make_delivery())
    asyncio.run(store.remove(row.row))
    record(store, row, "a")
    assert names(store, row) == ["a"]


def test_many_threads_may_record_and_read_at_once(store):
    def use(number):
        delivery = make_delivery(message_id=str(number % 5))
        record(store, delivery, str(number), str(number))
        return store.steps_of(delivery)[str(number)].result

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(200))) == [str(number) for number in range(200)]
    assert [len(names(store, make_delivery(message_id=str(n)))) for n in range(5)] == [40] * 5


def test_a_coroutine_may_wait_for_a_record(store):
    async def use():
        await asyncio.wrap_future(store.record_step(make_delivery(), "a", "1"))
        return store.steps_of(make_delivery())

    assert asyncio.run(use()) == {"a": RecordedStep("1")}


def test_a_store_is_asked_about_settles_only_once_a_handler_has_steps(store):
    assert not store.has_steps
    store.steps_of(make_delivery())
    assert store.has_steps
