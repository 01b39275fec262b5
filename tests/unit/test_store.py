# SPDX-License-Identifier: GPL-2.0-or-later
"""The store on a disk that works: group commits, quick reads, and the orders of operators."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from consumer_framework.adapters.store import Limits, Stats, Store, reader, retention, writer
from consumer_framework.core.attempt import Attempt, History, RouteState
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery


class Time:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def store(tmp_path, clock):
    store = Store.open(tmp_path, limits=Limits(), now=clock)
    yield store
    store.close()


def failed(number, cause="ValueError in app.py:handle", **delivery):
    """Return a message that failed *number* times."""
    attempts = [
        Attempt(float(n), "ValueError", f"failure {n}", f"Traceback {n}", cause)
        for n in range(number)
    ]
    return make_delivery(**delivery)._replace(history=History(tuple(attempts), crashes=2))


def run(*writes):
    async def in_order():
        return [await write for write in writes]

    return asyncio.run(in_order())


def quarantine(store, *deliveries):
    """Quarantine messages; return the numbers of their rows."""
    run(*(store.quarantine(delivery, "spent") for delivery in deliveries))
    return [row.id for row in store.rows()]


# Commits.


def test_messages_that_come_during_a_commit_are_committed_together(store):
    arrived = threading.Event()

    async def burst():
        # The disk is busy until all have come.
        store._writer.post(lambda _connection: arrived.wait(timeout=60))
        deliveries = [make_delivery(message_id=str(n)) for n in range(1000)]
        tasks = [asyncio.ensure_future(store.quarantine(d, "poison")) for d in deliveries]
        await asyncio.sleep(0)
        arrived.set()
        await asyncio.gather(*tasks)

    asyncio.run(burst())
    assert store.stats().quarantined == 1000
    assert store.commits <= 3


def test_writes_that_wait_when_the_store_is_closed_are_committed(tmp_path):
    store = Store.open(tmp_path, limits=Limits())

    async def leave():
        tasks = [
            asyncio.ensure_future(store.defer(make_delivery(message_id=str(n)), 1.0))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        store.close()
        await asyncio.gather(*tasks)

    asyncio.run(leave())
    with closing(Store.read(tmp_path)) as after:
        assert after.stats().deferred == 50


def test_a_closed_store_takes_no_writes(tmp_path):
    store = Store.open(tmp_path, limits=Limits())
    store.close()
    with pytest.raises(StoreError, match="closed"):
        run(store.defer(make_delivery(), 1.0))


def test_a_caller_that_is_cancelled_or_gone_does_not_disturb_other_writes(store):
    async def impatient():
        one = asyncio.ensure_future(store.defer(make_delivery(message_id="1"), 1.0))
        two = asyncio.ensure_future(store.defer(make_delivery(message_id="2"), 1.0))
        await asyncio.sleep(0)
        one.cancel()
        await two

    async def gone():
        asyncio.ensure_future(store.defer(make_delivery(message_id="3"), 1.0))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(impatient())
    asyncio.run(gone())
    run(store.defer(make_delivery(message_id="4"), 1.0))
    assert store.stats().deferred == 4


def test_one_impossible_write_of_a_group_fails_alone(store):
    impossible = make_delivery(message_id="2")._replace(queue="\ud800")

    async def group():
        return await asyncio.gather(
            store.defer(make_delivery(message_id="1"), 1.0),
            store.defer(impossible, 1.0),
            store.defer(make_delivery(message_id="3"), 1.0),
            return_exceptions=True,
        )

    first, second, third = asyncio.run(group())
    assert (first, third) == (None, None)
    assert isinstance(second, UnicodeEncodeError)
    assert [delivery.message_id for delivery in store.due(1.0)] == ["1", "3"]


def test_a_write_that_fails_half_way_leaves_nothing_and_the_next_one_succeeds(store, tmp_path):
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        connection.execute("ALTER TABLE attempts RENAME TO gone")
        with pytest.raises(StoreError, match="no such table"):
            run(store.quarantine(failed(1, message_id="1"), "spent"))
        connection.execute("ALTER TABLE gone RENAME TO attempts")
    assert quarantine(store, failed(1, message_id="2")) == [1]


def test_text_that_is_no_unicode_is_stored_in_a_readable_form(store):
    attempt = Attempt(1.0, "E", "bad name \udcff", "at \udcff", "E \udcff")
    delivery = make_delivery()._replace(history=History((attempt,)))
    run(store.quarantine(delivery, "reason \udcff"))
    (row,) = store.rows()
    assert (row.reason, row.message) == ("reason \\udcff", "bad name \\udcff")


def test_names_that_are_no_utf8_come_back_as_the_bytes_that_pika_gave(store):
    names: dict[str, Any] = {
        "message_id": b"\xff1",
        "routing_key": b"\xfe",
        "exchange": b"\xfd",
    }
    delivery = make_delivery(**names)
    run(store.defer(delivery, 1.0))
    (back,) = store.due(1.0)
    assert back.properties.message_id == names["message_id"]
    assert (back.routing_key, back.exchange) == (names["routing_key"], names["exchange"])
    assert store.is_open(delivery)
    assert store.rows(state=None)[0].message_id == "\\xff1"


@pytest.mark.parametrize("restart", [False, True])
def test_rows_are_deferred_for_as_long_when_the_clock_is_set_back(store, clock, tmp_path, restart):
    run(store.defer(make_delivery(message_id="new"), clock.now + 60))
    clock.now = 500.0
    run(store.defer(make_delivery(message_id="after"), clock.now + 60))
    clock.now = 510.0
    if restart:
        store.close()
        store = Store.open(tmp_path, limits=Limits(), now=clock)
    else:
        assert run(store.rebase(clock.now)) == [1]
        assert run(store.rebase(clock.now)) == [0]
    assert [d.message_id for d in store.due(569.0)] == ["after"]
    assert [d.message_id for d in store.due(570.0)] == ["after", "new"]
    store.close()


# Reads.


@pytest.mark.parametrize(
    ("query", "values", "index"),
    [
        (reader.IS_OPEN, ("q", b"k"), "sqlite_autoindex_messages_1 (queue=? AND key=?)"),
        (reader.DUE, (1.0, "[]", 10), "messages_by_due (due<?)"),
        (reader.ATTEMPTS, ("[1]",), "attempts_by_row (row_id=?)"),
        (writer.FIND_KEY, ("q", b"k"), "sqlite_autoindex_messages_1 (queue=? AND key=?)"),
        (retention.OLDEST, (), "messages_by_age (state=?)"),
        (retention.AGED, (1.0, 10), "messages_by_age (state=? AND updated<?)"),
    ],
)
def test_the_queries_of_the_event_loop_use_an_index(store, tmp_path, query, values, index):
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]
    # Further steps read the list that was given.
    assert len(plan) == 1 or "json_each" in query, plan
    assert plan[0].startswith("SEARCH")
    assert index in plan[0]


def test_a_read_that_sqlite_refuses_is_a_store_error(store, tmp_path):
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        connection.execute("DROP TABLE messages")
    with pytest.raises(StoreError, match=r"store\.sqlite3: no such table"):
        store.is_open(make_delivery())


# Lists and counts for operators.


def test_a_row_has_the_values_that_a_list_shows(store, clock):
    quarantine(store, failed(3, message_id="an id", body=b"12345", routing_key="org.example"))
    clock.now = 2000.0
    quarantine(store, failed(4, message_id="an id", body=b"12345", routing_key="org.example"))
    (row,) = store.rows()
    assert store.row(row.id) == row
    assert (row.state, row.queue, row.exchange) == ("quarantined", "queue", "amq.topic")
    assert (row.routing_key, row.message_id, row.size) == ("org.example", "an id", 5)
    assert (row.reason, row.fingerprint) == ("spent", "ValueError in app.py:handle")
    assert (row.attempts, row.error, row.message) == (4, "ValueError", "failure 3")
    assert (row.crashes, row.created, row.updated) == (2, 1000.0, 2000.0)
    assert (row.due, row.parent) == (None, None)


def test_a_message_without_attempts_is_grouped_by_its_reason(store):
    run(store.quarantine(make_delivery(), "crashed twice"))
    assert store.rows()[0].fingerprint == "crashed twice"


def test_a_message_has_its_whole_history(store):
    delivery = failed(3)
    (number,) = quarantine(store, delivery)
    shown = store.delivery(number)
    assert shown is not None
    assert shown.history == delivery.history


def test_rows_are_chosen_by_state_cause_queue_and_topic_oldest_first(store):
    quarantine(
        store,
        failed(1, "A", message_id="1", queue="one", routing_key="org.example.build.start"),
        failed(1, "B", message_id="2", queue="one", routing_key="org.example.build.end"),
        failed(1, "A", message_id="3", queue="two", routing_key="org.example.sign"),
    )
    run(store.defer(make_delivery(message_id="4", queue="one"), 1.0))

    def ids(**choice):
        return "".join(row.message_id for row in store.rows(**choice))

    assert ids() == "123"
    assert ids(state=None) == "1234"
    assert ids(state="deferred") == "4"
    assert ids(fingerprint="A") == "13"
    assert ids(queue="one") == "12"
    assert ids(topic="org.example.build.*") == "12"
    assert ids(topic="org.example.sign") == "3"
    assert ids(fingerprint="A", queue="one", topic="*") == "1"
    assert ids(limit=2) == "12"


def test_missing_rows_are_none(store):
    assert store.row(1) is None
    assert store.delivery(1) is None
    assert store.rows() == []
    assert store.groups() == []


def test_groups_count_causes_the_most_frequent_first(store, clock):
    quarantine(store, failed(1, "A", message_id="1"), failed(1, "B", message_id="2"))
    clock.now = 2000.0
    quarantine(store, failed(1, "B", message_id="3"))
    often, once = store.groups()
    assert (often.fingerprint, often.count, often.first, often.last) == ("B", 2, 1000.0, 2000.0)
    assert often.sample.message_id == "2"
    assert (once.fingerprint, once.count) == ("A", 1)


def test_stats_follow_every_change_of_a_row(store, clock):
    assert store.stats() == Stats(0, 0, 0, 0, 0, None, None, 0)
    quarantine(store, failed(1, message_id="1", body=b"1234"))
    run(store.defer(make_delivery(message_id="2", body=b"12"), 7.0))
    size = store.stats().bytes
    assert store.stats() == Stats(1, 1, 0, 0, size, 1000.0, 7.0, 0)
    run(store.claim(1))
    assert store.stats() == Stats(1, 0, 1, 0, size, None, 7.0, 0)
    run(store.resolve(1), store.remove(2))
    assert store.stats() == Stats(0, 0, 0, 0, 0, None, None, 0)


# Orders of operators.


def test_a_row_is_claimed_once(store):
    (number,) = quarantine(store, failed(1))
    assert run(store.claim(number), store.claim(number)) == [True, False]
    assert run(store.claim(99)) == [False]
    assert store.is_open(make_delivery())


def test_one_of_many_simultaneous_claims_succeeds(store):
    (number,) = quarantine(store, failed(1))

    async def race():
        return await asyncio.gather(*(store.claim(number) for _ in range(20)))

    assert sorted(asyncio.run(race())) == [False] * 19 + [True]


def test_a_deferred_row_cannot_be_claimed(store):
    run(store.defer(make_delivery(), 1.0))
    assert run(store.claim(1)) == [False]


def test_a_released_row_is_quarantined_again_with_its_new_attempt(store):
    (number,) = quarantine(store, failed(2))
    again = Attempt(9.0, "KeyError", "other", "Traceback", "KeyError in app.py:handle")
    assert run(store.claim(number), store.release(number, again)) == [True, True]
    row = store.row(number)
    assert (row.state, row.attempts, row.message) == ("quarantined", 3, "other")
    assert row.fingerprint == "KeyError in app.py:handle"
    assert store.delivery(number).history.attempts[-1] == again


def test_only_a_claimed_row_is_released_or_resolved(store):
    (number,) = quarantine(store, failed(1))
    assert run(store.release(number), store.resolve(number)) == [False, False]
    assert store.row(number).attempts == 1


def test_a_resolved_row_is_gone_with_its_attempts(store, tmp_path):
    (number,) = quarantine(store, failed(3))
    assert run(store.claim(number), store.resolve(number)) == [True, True]
    assert store.row(number) is None
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM attempts").fetchone() == (0,)


def test_the_claims_of_a_dead_process_are_released_at_the_next_start(tmp_path):
    store = Store.open(tmp_path, limits=Limits())
    (number,) = quarantine(store, failed(1))
    run(store.claim(number))
    store.close()
    store = Store.open(tmp_path, limits=Limits())
    assert [row.id for row in store.rows()] == [number]
    store.close()


def test_a_replay_that_fails_through_the_pipeline_ends_in_quarantine(store):
    (number,) = quarantine(store, failed(1))
    run(store.claim(number))
    run(store.quarantine(store.delivery(number)._replace(replayed=True), "again"))
    assert [(row.id, row.state, row.reason) for row in store.rows()] == [
        (number, "quarantined", "again")
    ]


def test_dropping_returns_the_dropped_rows_and_leaves_claimed_ones(store):
    one, two, three = quarantine(store, *(failed(1, message_id=str(n)) for n in range(3)))
    run(store.claim(two))
    assert run(store.drop([three, two, one, 99])) == [[three, one]]
    assert [row.id for row in store.rows(state=None)] == [two]


def test_an_edited_copy_stands_for_its_original(store):
    (number,) = quarantine(store, failed(2, message_id="1", body=b"{bad}"))
    (child,) = run(store.supersede(number, b"{}"))
    assert [row.id for row in store.rows()] == [child]
    assert store.row(child).parent == number
    assert store.row(child).fingerprint == "ValueError in app.py:handle"
    copy = store.delivery(child)
    assert (copy.body, copy.message_id, copy.history.attempts) == (b"{}", "1", ())
    assert store.delivery(number).body == b"{bad}"


def test_an_edited_copy_keeps_the_states_of_its_routes(store):
    states = (RouteState("one", "done"), RouteState("two", "failed", reason="no"))
    delivery = failed(2, body=b"{bad}")
    history = replace(delivery.history, routes=states)
    (number,) = quarantine(store, delivery._replace(history=history))
    (child,) = run(store.supersede(number, b"{}"))
    assert store.delivery(child).history.routes == states


def test_the_cause_of_a_row_is_that_of_the_route_that_failed_for_good(store):
    attempts = tuple(
        Attempt(float(n), "ValueError", "no", "", f"ValueError in {route}", route=route)
        for n, route in enumerate(("failed", "later"))
    )
    states = (RouteState("failed", "failed", reason="no"), RouteState("later", "done"))
    history = History(attempts, routes=states)
    (number,) = quarantine(store, failed(1)._replace(history=history))
    assert store.row(number).fingerprint == "ValueError in failed"


def test_a_redelivery_of_an_edited_message_is_known_and_keeps_the_edit(store):
    original = failed(2, body=b"{bad}")
    (number,) = quarantine(store, original)
    (child,) = run(store.supersede(number, b"{}"))
    assert store.is_open(original)
    assert quarantine(store, original) == [child]
    assert store.delivery(child).body == b"{}"


def test_originals_are_deleted_with_their_copy_after_several_edits_too(store):
    (number,) = quarantine(store, failed(2))
    (child,) = run(store.supersede(number, b"1"))
    (grandchild,) = run(store.supersede(child, b"2"))
    assert store.stats().superseded == 2
    run(store.claim(grandchild), store.resolve(grandchild))
    assert store.rows(state=None) == []


def test_only_a_quarantined_row_is_edited(store):
    (number,) = quarantine(store, failed(2))
    run(store.claim(number))
    assert run(store.supersede(number, b"1"), store.supersede(99, b"1")) == [None, None]


def test_space_goes_back_to_the_disk(store, tmp_path):
    big = [failed(1, message_id=str(n), body=b"x" * 1_000_000) for n in range(20)]
    numbers = quarantine(store, *big)
    for number in numbers:
        run(store.drop([number]))
    store.close()
    assert (tmp_path / "store.sqlite3").stat().st_size < 5_000_000
