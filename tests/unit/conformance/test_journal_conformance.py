# SPDX-License-Identifier: GPL-2.0-or-later
"""What every journal promises: the real one, and the one that tests use."""

import asyncio
from dataclasses import replace

import pytest

from consumer_framework.adapters.store import Journal, Limits
from consumer_framework.core.attempt import Attempt, History
from consumer_framework.core.delivery import RAW_PROPERTIES
from consumer_framework.core.ordering import Blocker
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fake_store import FakeJournal

FAILED = History((Attempt(1.5, "ValueError", "no", "Traceback ...", "ValueError in f"),), crashes=1)


@pytest.fixture(params=["real", "fake"])
def journal(request, tmp_path):
    if request.param == "fake":
        yield FakeJournal()
        return
    real = Journal.open(tmp_path, limits=Limits())
    yield real
    real.close()


def run(*writes):
    """Carry out writes, one after the other."""

    async def in_order():
        return [await write for write in writes]

    return asyncio.run(in_order())


def test_an_empty_journal_knows_nothing(journal):
    assert not journal.is_open(make_delivery())
    assert journal.due(1e12, 10) == []
    assert journal.next_due() is None


def test_a_deferred_message_is_due_when_its_time_has_come_and_not_before(journal):
    run(journal.defer(make_delivery(), 100.0))
    assert journal.next_due() == 100.0
    assert journal.due(99.9, 10) == []
    assert len(journal.due(100.0, 10)) == 1


def test_a_due_message_comes_back_as_it_was_received_with_its_history(journal):
    original = replace(
        make_delivery(
            message_id="an id",
            body=b"\x00\xff not even text",
            queue="my queue",
            generation=3,
            delivery_tag=17,
            redelivered=True,
            exchange="amq.topic",
            routing_key="org.example",
            headers={"a": [1, {"b": None}]},
        ),
        received_at=12.25,
        history=FAILED,
    )
    run(journal.defer(original, 5.0))
    (back,) = journal.due(5.0, 10)
    assert back.row > 0
    assert (back.generation, back.delivery_tag) == (0, back.row)
    assert back.properties.message_id == "an id"
    assert back.properties.headers == {"a": [1, {"b": None}]}
    assert (
        replace(back, generation=3, delivery_tag=17, row=0, properties=original.properties)
        == original
    )


def test_what_is_longest_due_comes_first_and_no_more_than_asked_for(journal):
    run(*(journal.defer(make_delivery(message_id=str(due)), due) for due in (3.0, 1.0, 4.0, 2.0)))
    assert [delivery.message_id for delivery in journal.due(9.0, 3)] == ["1.0", "2.0", "3.0"]


def test_a_due_message_is_due_until_it_is_removed(journal):
    run(journal.defer(make_delivery(), 1.0))
    (once,) = journal.due(2.0, 10)
    (again,) = journal.due(2.0, 10)
    assert once == again
    run(journal.remove(once.row))
    assert journal.due(2.0, 10) == []
    assert not journal.is_open(make_delivery())


def test_removing_what_is_not_there_is_no_error(journal):
    run(journal.remove(12345))


def test_deferred_and_quarantined_messages_are_open_by_whatever_channel_they_come(journal):
    deferred = make_delivery(body=b"1")
    quarantined = make_delivery(body=b"2")
    run(journal.defer(deferred, 1.0), journal.quarantine(quarantined, "poison"))
    for delivery in deferred, quarantined:
        assert journal.is_open(replace(delivery, generation=9, delivery_tag=9, redelivered=True))


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
def test_two_messages_that_share_all_but_one_thing_never_take_each_others_row(journal, other):
    run(journal.defer(make_delivery(), 1.0))
    assert not journal.is_open(other)
    run(journal.defer(other, 2.0))
    assert len(journal.due(3.0, 10)) == 2


def test_a_quarantined_message_is_never_due(journal):
    run(journal.quarantine(make_delivery(), "poison"))
    assert journal.due(1e12, 10) == []
    assert journal.next_due() is None


def again(**what):
    return make_delivery(**{"generation": 2, "redelivered": True, **what})


def test_writing_a_message_that_comes_again_leaves_one_row(journal):
    run(journal.defer(make_delivery(), 1.0), journal.defer(again(), 1.0))
    assert len(journal.due(1.0, 10)) == 1


def test_writing_one_delivery_twice_leaves_one_row(journal):
    nameless = make_delivery(message_id=None)
    run(journal.defer(nameless, 1.0), journal.defer(nameless, 1.0))
    assert len(journal.due(1.0, 10)) == 1


@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("message_id", ["1", "", None])
def test_ten_equal_messages_have_ten_rows(journal, message_id, redelivered):
    equal = [
        make_delivery(message_id=message_id, body=b"", redelivered=redelivered, delivery_tag=tag)
        for tag in range(10)
    ]
    for delivery in equal:
        assert not (redelivered and journal.is_open(delivery))
        run(journal.defer(delivery, 1.0))
    assert len(journal.due(1.0, 20)) == 10


def test_a_row_answers_for_one_of_two_equal_messages_that_come_again(journal):
    run(journal.defer(make_delivery(), 1.0))
    assert journal.is_open(again(delivery_tag=1))
    assert not journal.is_open(again(delivery_tag=2))
    assert journal.is_open(again(delivery_tag=1))


def test_a_message_without_an_id_is_never_taken_for_one_that_is_there(journal):
    run(journal.defer(make_delivery(message_id=None), 1.0))
    nameless = again(message_id=None)
    assert not journal.is_open(nameless)
    run(journal.defer(nameless, 1.0))
    assert len(journal.due(1.0, 10)) == 2


def test_the_broker_s_own_headers_do_not_make_it_another_message(journal):
    run(journal.defer(make_delivery(headers={"a": 1}), 1.0))
    assert journal.is_open(again(headers={"a": 1, "x-delivery-count": 1}))


def test_the_later_of_two_writes_wins(journal):
    run(journal.defer(make_delivery(), 1.0), journal.defer(make_delivery(), 7.0))
    assert journal.next_due() == 7.0
    run(journal.quarantine(make_delivery(), "poison"))
    assert journal.next_due() is None
    run(journal.defer(replace(make_delivery(), history=FAILED), 8.0))
    (delivery,) = journal.due(8.0, 10)
    assert delivery.history == FAILED


def test_a_message_that_came_from_the_journal_goes_back_to_its_row(journal):
    run(journal.defer(make_delivery(), 1.0))
    (delivery,) = journal.due(1.0, 10)
    run(journal.defer(replace(delivery, history=FAILED, replayed=True), 2.0))
    assert journal.due(1.0, 10) == []
    assert journal.due(2.0, 10) == [replace(delivery, history=FAILED)]


def test_the_number_of_a_row_that_is_gone_is_not_used_again(journal):
    run(journal.defer(make_delivery(), 1.0))
    (first,) = journal.due(1.0, 10)
    run(journal.remove(first.row), journal.defer(make_delivery(message_id="2"), 1.0))
    (second,) = journal.due(1.0, 10)
    assert second.row != first.row


@pytest.mark.parametrize("again", ["defer", "quarantine"])
def test_a_message_whose_row_was_dropped_while_it_ran_does_not_come_back(journal, again):
    run(journal.defer(make_delivery(), 1.0))
    (delivery,) = journal.due(1.0, 10)
    later = journal.defer(delivery, 5.0) if again == "defer" else journal.quarantine(delivery, "x")
    run(journal.remove(delivery.row), later)
    assert not journal.is_open(make_delivery())
    assert journal.next_due() is None


# Lanes.


def laned(message_id, lane="key"):
    return replace(make_delivery(message_id=message_id), lane=lane)


def due(journal, now=9.0):
    return [delivery.message_id for delivery in journal.due(now, 10)]


def test_a_due_message_has_its_lane(journal):
    run(journal.defer(laned("1"), 1.0))
    (delivery,) = journal.due(1.0, 10)
    assert delivery.lane == "key"


def test_of_a_lane_only_the_first_row_is_due_and_the_next_when_that_is_gone(journal):
    run(
        journal.defer(laned("1"), 5.0),
        journal.defer(laned("2"), 1.0),
        journal.defer(laned("3"), 1.0),
        journal.defer(laned("other", "another key"), 2.0),
        journal.defer(laned("none", ""), 3.0),
    )
    assert journal.next_due() == 2.0
    assert due(journal, 4.0) == ["other", "none"]
    assert due(journal) == ["other", "none", "1"]
    run(journal.remove(journal.due(9.0, 10)[-1].row))
    assert journal.next_due() == 1.0
    assert due(journal) == ["2", "other", "none"]


def test_a_first_row_that_is_deferred_again_stays_the_first(journal):
    run(journal.defer(laned("1"), 1.0), journal.defer(laned("2"), 1.0))
    (first,) = journal.due(9.0, 10)
    run(journal.defer(first, 7.0))
    assert due(journal, 6.0) == []
    assert journal.next_due() == 7.0
    assert due(journal) == ["1"]


def test_rows_without_a_lane_never_wait_for_each_other(journal):
    run(*(journal.defer(laned(message_id, ""), 1.0) for message_id in "123"))
    run(journal.quarantine(laned("0", ""), "poison"))
    assert due(journal) == ["1", "2", "3"]
    assert not journal.is_blocked("")
    assert journal.blocked_by("") is None


def test_a_lane_is_blocked_while_it_has_a_row(journal):
    assert not journal.is_blocked("key")
    run(journal.defer(laned("1"), 1.0), journal.quarantine(laned("2"), "poison"))
    assert journal.is_blocked("key")
    assert not journal.is_blocked("another key")
    (first,) = journal.due(1.0, 10)
    run(journal.remove(first.row))
    assert journal.is_blocked("key")
    run(journal.remove(journal.blocked_by("key").row))
    assert not journal.is_blocked("key")


def test_a_row_is_blocked_by_the_first_one_of_its_lane(journal):
    run(*(journal.defer(laned(message_id), 3.0) for message_id in "123"))
    first = journal.due(9.0, 1)[0].row
    second, third = first + 1, first + 2
    assert not journal.is_blocked("key", first)
    assert journal.blocked_by("key", first) is None
    assert journal.blocked_by("key") == Blocker(first, "deferred", 3.0)
    for row in second, third:
        assert journal.is_blocked("key", row)
        assert journal.blocked_by("key", row) == Blocker(first, "deferred", 3.0)
    run(journal.remove(first))
    assert not journal.is_blocked("key", second)
    assert journal.blocked_by("key", third) == Blocker(second, "deferred", 3.0)


def test_what_is_deferred_behind_a_row_is_quarantined_with_it_and_nothing_else_is(journal):
    run(
        journal.defer(laned("before"), 8.0),
        journal.defer(laned("1"), 1.0),
        journal.defer(replace(laned("2"), history=FAILED), 1.0),
        journal.defer(laned("other", "another key"), 1.0),
    )
    first = journal.due(9.0, 10)[-1].row
    run(journal.quarantine(laned("1"), "poison"))
    assert due(journal) == ["other", "before"]
    run(journal.remove(first))
    assert journal.blocked_by("key") == Blocker(first + 1, "quarantined", None)
    assert due(journal) == ["other"]


def test_what_is_deferred_behind_a_quarantined_row_is_quarantined(journal):
    run(journal.quarantine(laned("1"), "poison"), journal.defer(laned("2"), 1.0))
    first = journal.blocked_by("key").row
    run(journal.remove(first))
    assert due(journal) == []
    assert journal.blocked_by("key") == Blocker(first + 1, "quarantined", None)
    assert journal.is_open(laned("2"))


@pytest.mark.parametrize("follower_first", [False, True])
def test_no_order_of_two_commits_leaves_a_deferred_row_that_never_runs(journal, follower_first):
    run(journal.defer(laned("1"), 1.0))
    (head,) = journal.due(1.0, 10)

    async def at_once():
        writes = [journal.quarantine(head, "poison"), journal.defer(laned("2"), 1.0)]
        await asyncio.gather(*(reversed(writes) if follower_first else writes))

    asyncio.run(at_once())
    run(journal.remove(head.row))
    assert due(journal) == []
    assert journal.blocked_by("key").state == "quarantined"


def test_a_row_keeps_the_lane_that_it_came_with(journal):
    run(journal.defer(laned("1", "then"), 1.0), journal.defer(laned("1", "now"), 2.0))
    assert [delivery.lane for delivery in journal.due(9.0, 10)] == ["then"]
    assert not journal.is_blocked("now")


def test_many_writes_at_once_keep_the_lanes_exact(journal):
    async def burst():
        await asyncio.gather(
            *(journal.defer(laned(str(n), f"key {n % 7}"), 1.0) for n in range(50))
        )

    asyncio.run(burst())
    assert len(due(journal)) == 7
    while journal.due(9.0, 1):
        run(journal.remove(journal.due(9.0, 1)[0].row))
    assert not any(journal.is_blocked(f"key {n}") for n in range(7))
