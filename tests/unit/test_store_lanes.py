# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of one ordering key beyond the port, whose own tests are in the conformance suite."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from consumer_framework.adapters.store import Limits, Store, lanes, reader
from consumer_framework.adapters.store.properties import pack
from consumer_framework.core.attempt import Attempt, History
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

FAILED = History((Attempt(1.5, "ValueError", "no", "Traceback ...", "ValueError in f"),), crashes=1)


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens stores with limits."""
    stores: list[Store] = []

    def open_store(**limits):
        for store in stores:
            store.close()
        stores.append(Store.open(tmp_path, limits=Limits(**limits), now=lambda: 1000.0))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(opened):
    return opened()


def run(*writes):
    async def in_order():
        return [await write for write in writes]

    return asyncio.run(in_order())


def laned(message_id, lane="key", **more):
    return make_delivery(message_id=message_id, **more)._replace(lane=lane)


def quarantine(store, *ids, lane="key"):
    run(*(store.quarantine(laned(message_id, lane), "poison") for message_id in ids))


def states(store):
    return [row.state for row in store.rows(state=None)]


def test_a_row_has_its_lane_and_the_row_that_it_waits_for(store):
    quarantine(store, "1", "2", "3")
    quarantine(store, "4", lane="")
    assert [(row.lane, row.behind) for row in store.rows()] == [
        ("key", None),
        ("key", 1),
        ("key", 1),
        ("", None),
    ]
    assert store.delivery(2).lane == "key"


def test_followers_are_quarantined_with_their_history_and_grouped_by_their_blocker(store):
    run(store.defer(laned("1"), 1.0), store.defer(laned("2")._replace(history=FAILED), 1.0))
    run(store.defer(laned("3"), 1.0), store.quarantine(laned("1"), "poison"))
    _, second, third = store.rows()
    assert (second.reason, third.reason) == ("behind row 1 of the same key",) * 2
    assert (second.fingerprint, third.fingerprint) == ("ValueError in f", third.reason)
    assert (second.due, second.updated, second.crashes) == (None, 1000.0, 1)
    assert store.delivery(2).history == FAILED


def test_only_the_first_row_of_a_lane_can_be_claimed(store):
    quarantine(store, "1", "2", "3")
    assert run(store.claim(2), store.claim(1), store.claim(2)) == [False, True, False]
    assert run(store.resolve(1), store.claim(3), store.claim(2)) == [True, False, True]


def test_rows_behind_a_deferred_row_cannot_be_claimed(store):
    run(store.defer(laned("1"), 1.0))
    quarantine(store, "2")
    assert run(store.claim(2)) == [False]


def test_a_message_that_came_during_a_failed_replay_is_quarantined_behind_it(store):
    quarantine(store, "1")
    run(store.claim(1), store.defer(laned("2"), 1.0))
    assert states(store) == ["replaying", "deferred"]
    run(store.release(1))
    assert states(store) == ["quarantined", "quarantined"]


def test_a_message_that_came_during_a_successful_replay_is_due(store):
    quarantine(store, "1")
    run(store.claim(1), store.defer(laned("2"), 1.0))
    assert store.due(9.0) == []
    run(store.resolve(1))
    assert [delivery.row for delivery in store.due(9.0)] == [2]


def test_a_message_that_came_during_a_replay_that_died_is_quarantined_behind_it(opened):
    store = opened()
    quarantine(store, "1")
    run(store.claim(1), store.defer(laned("2"), 1.0))
    store = opened()
    assert states(store) == ["quarantined", "quarantined"]
    assert store.row(2).reason == "behind row 1 of the same key"


def test_lanes_are_known_after_the_next_start(opened):
    quarantine(opened(), "1")
    store = opened()
    assert store.is_blocked("key")
    run(store.drop([1]))
    assert not store.is_blocked("key")
    assert not opened().is_blocked("key")


def test_a_lane_may_have_any_name(store):
    odd = "\udcff \x00 '"
    quarantine(store, "1", lane=odd)
    assert store.is_blocked(odd)
    assert not store.is_blocked(odd, 1)
    assert store.blocked_by(odd).row == 1


def test_dropping_the_first_row_leaves_the_others_to_an_operator(store):
    quarantine(store, "1", "2", "3")
    run(store.drop([1]))
    assert states(store) == ["quarantined", "quarantined"]
    assert [row.behind for row in store.rows()] == [None, 2]
    assert run(store.claim(2)) == [True]


def test_a_row_in_the_middle_may_leave(store):
    quarantine(store, "1", "2", "3")
    run(store.drop([2]))
    assert [(row.id, row.behind) for row in store.rows()] == [(1, None), (3, 1)]


def test_an_expired_row_lets_no_follower_run(opened):
    store = opened(max_age=10.0)
    run(store.defer(laned("1"), 1.0), store.defer(laned("2"), 1.0))
    quarantine(store, "1")
    assert run(store.expire(1010.0))[0].rows == 2
    assert store.due(1e12) == []


def test_a_copy_has_the_place_of_its_first_original_after_several_edits_too(store):
    quarantine(store, "1", "2", "3")
    (child,) = run(store.supersede(2, b"1"))
    (grandchild,) = run(store.supersede(child, b"2"))
    assert (store.row(grandchild).behind, store.row(3).behind) == (1, 1)
    assert store.row(child).behind is None
    run(store.drop([1]))
    assert store.row(3).behind == grandchild
    assert run(store.claim(3), store.claim(grandchild)) == [False, True]
    assert store.in_lane_order([3, grandchild]) == [grandchild, 3]


def test_an_edited_copy_is_the_first_row_where_the_former_first_made_room_for_it(opened):
    others = len(pack(laned("1").properties)) + len("poison")
    store = opened(max_bytes=118 + 3 * others)
    for message_id, size in ("1", 100), ("2", 9), ("3", 9):
        run(store.quarantine(laned(message_id, body=b"x" * size), "poison"))
    (child,) = run(store.supersede(2, b"y" * 9))
    assert store.row(1) is None
    assert (store.row(child).behind, store.row(3).behind) == (None, child)


def test_rows_of_a_lane_are_sorted_in_place_and_other_rows_stay(store):
    quarantine(store, "1", "2", lane="a")
    quarantine(store, "3", lane="")
    quarantine(store, "4", "5", lane="b")
    assert store.in_lane_order([5, 3, 2, 99, 4, 1]) == [4, 3, 1, 99, 5, 2]
    assert store.in_lane_order([2, 2, 1]) == [1, 2, 2]
    assert store.in_lane_order([]) == []


def test_operators_see_how_many_lanes_wait_for_them(store):
    quarantine(store, "1", "2", lane="a")
    quarantine(store, "3", lane="b")
    run(store.defer(laned("4", "c"), 1.0))
    quarantine(store, "5", lane="c")
    assert store.stats().blocked_lanes == 2


def test_a_write_that_fails_blocks_no_lane(store, tmp_path):
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        connection.execute("ALTER TABLE attempts RENAME TO gone")
        with pytest.raises(StoreError):
            run(store.quarantine(laned("1")._replace(history=FAILED), "poison"))
        assert not store.is_blocked("key")
        connection.execute("ALTER TABLE gone RENAME TO attempts")
    quarantine(store, "2", lane="another")
    assert not store.is_blocked("key")


def test_a_lane_without_rows_costs_no_read(store):
    run(store.defer(laned("1", ""), 1.0))
    store.close()
    assert not store.is_blocked("key")
    assert not store.is_blocked("")


# Reads and writes use an index.

QUERIES = [
    (reader.DUE, "SEARCH messages USING INDEX messages_by_due (due<?)"),
    (reader.NEXT_DUE, "SCAN messages USING INDEX messages_by_due"),
    (reader.FIRST, "SEARCH messages USING INDEX messages_by_lane (lane=? AND position<?)"),
    (reader.POSITION, "SEARCH messages USING INTEGER PRIMARY KEY (rowid=?)"),
    (reader.BLOCKED_LANES, "SCAN messages USING INDEX messages_blocking"),
    (lanes.IS_USED, "SEARCH messages USING INDEX messages_by_lane (lane=?)"),
    (
        lanes.FIRST_QUARANTINED,
        "SEARCH messages USING INDEX messages_quarantined_by_lane (lane=?)",
    ),
    (
        lanes.QUARANTINE_BEHIND,
        "SEARCH messages USING INDEX messages_deferred_by_lane (lane=? AND position>?)",
    ),
]


def plan(directory, query):
    with closing(sqlite3.connect(directory / "store.sqlite3")) as connection:
        values = dict.fromkeys(("now", "reason", "lane", "position"))
        given = values if ":" in query else (None,) * query.count("?")
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", given)]


@pytest.mark.parametrize(("query", "step"), QUERIES)
def test_the_queries_of_lanes_take_one_step_through_an_index(store, tmp_path, query, step):
    # SQLite 3.46 takes a value from the index itself, without reading the row.
    first, *others = [one.replace("COVERING ", "") for one in plan(tmp_path, query)]
    assert first == step
    # Further steps read the list of rows that was given.
    assert not others or "json_each" in query


def test_the_triggers_never_scan_a_lane(store, tmp_path):
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        scripts = connection.execute(
            "SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'lane_%'"
        ).fetchall()
    assert len(scripts) == 2
    for (script,) in scripts:
        body = script.partition("BEGIN")[2].partition(";")[0]
        for name in ("NEW.lane", "OLD.lane", "NEW.id", "NEW.position"):
            body = body.replace(name, "?")
        steps = [step for step in plan(tmp_path, body) if "SUBQUERY" not in step]
        assert all(step.startswith("SEARCH") for step in steps), steps
        assert steps[0] == "SEARCH messages USING INTEGER PRIMARY KEY (rowid=?)"
        assert all("messages_by_lane (lane=?" in step for step in steps[1:])
