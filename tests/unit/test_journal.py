# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal on a disk that works: commits in groups, quick reads, and the operator's verbs."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from consumer_framework.adapters.store import Journal, Limits, Stats, reader, retention, writer
from consumer_framework.core.attempt import Attempt, History
from consumer_framework.core.errors import JournalError
from consumer_framework.testing import make_delivery


class Time:
    """A clock for rows."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def journal(tmp_path, clock):
    journal = Journal.open(tmp_path, limits=Limits(), now=clock)
    yield journal
    journal.close()


def failed(number, cause="ValueError in app.py:handle", **delivery):
    """A message that failed *number* times."""
    attempts = [
        Attempt(float(n), "ValueError", f"failure {n}", f"Traceback {n}", cause)
        for n in range(number)
    ]
    return replace(make_delivery(**delivery), history=History(tuple(attempts), crashes=2))


def run(*writes):
    async def in_order():
        return [await write for write in writes]

    return asyncio.run(in_order())


def quarantine(journal, *deliveries):
    """Quarantine messages; return the numbers of their rows."""
    run(*(journal.quarantine(delivery, "spent") for delivery in deliveries))
    return [row.id for row in journal.rows()]


# Commits.


def test_a_burst_of_a_thousand_takes_a_handful_of_commits(journal):
    async def burst():
        ids = [str(n) for n in range(1000)]
        await asyncio.gather(
            *(journal.quarantine(make_delivery(message_id=i), "poison") for i in ids)
        )

    asyncio.run(burst())
    assert journal.stats().quarantined == 1000
    assert journal.commits <= 10


def test_what_waits_when_the_journal_is_closed_is_committed(tmp_path):
    journal = Journal.open(tmp_path, limits=Limits())

    async def leave():
        tasks = [
            asyncio.ensure_future(journal.defer(make_delivery(message_id=str(n)), 1.0))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        journal.close()
        await asyncio.gather(*tasks)

    asyncio.run(leave())
    with closing(Journal.read(tmp_path)) as after:
        assert after.stats().deferred == 50


def test_a_closed_journal_takes_no_writes(tmp_path):
    journal = Journal.open(tmp_path, limits=Limits())
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        run(journal.defer(make_delivery(), 1.0))


def test_a_caller_that_is_cancelled_or_gone_harms_nobody_else(journal):
    async def impatient():
        one = asyncio.ensure_future(journal.defer(make_delivery(message_id="1"), 1.0))
        two = asyncio.ensure_future(journal.defer(make_delivery(message_id="2"), 1.0))
        await asyncio.sleep(0)
        one.cancel()
        await two

    async def gone():
        asyncio.ensure_future(journal.defer(make_delivery(message_id="3"), 1.0))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(impatient())
    asyncio.run(gone())
    run(journal.defer(make_delivery(message_id="4"), 1.0))
    assert journal.stats().deferred == 4


def test_one_impossible_write_of_a_group_fails_alone(journal):
    impossible = replace(make_delivery(message_id="2"), queue="\ud800")

    async def group():
        return await asyncio.gather(
            journal.defer(make_delivery(message_id="1"), 1.0),
            journal.defer(impossible, 1.0),
            journal.defer(make_delivery(message_id="3"), 1.0),
            return_exceptions=True,
        )

    first, second, third = asyncio.run(group())
    assert (first, third) == (None, None)
    assert isinstance(second, UnicodeEncodeError)
    assert [delivery.message_id for delivery in journal.due(1.0)] == ["1", "3"]


def test_a_write_that_fails_half_way_leaves_nothing_and_the_next_one_succeeds(journal, tmp_path):
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as connection:
        connection.execute("ALTER TABLE attempts RENAME TO gone")
        with pytest.raises(JournalError, match="no such table"):
            run(journal.quarantine(failed(1, message_id="1"), "spent"))
        connection.execute("ALTER TABLE gone RENAME TO attempts")
    assert quarantine(journal, failed(1, message_id="2")) == [1]


def test_text_that_is_no_unicode_is_kept_readable(journal):
    attempt = Attempt(1.0, "E", "bad name \udcff", "at \udcff", "E \udcff")
    delivery = replace(make_delivery(), history=History((attempt,)))
    run(journal.quarantine(delivery, "reason \udcff"))
    (row,) = journal.rows()
    assert (row.reason, row.message) == ("reason \\udcff", "bad name \\udcff")


def test_names_that_are_no_utf8_come_back_as_the_bytes_that_pika_gave(journal):
    names: dict[str, Any] = {
        "message_id": b"\xff1",
        "routing_key": b"\xfe",
        "exchange": b"\xfd",
    }
    delivery = make_delivery(**names)
    run(journal.defer(delivery, 1.0))
    (back,) = journal.due(1.0)
    assert back.properties.message_id == names["message_id"]
    assert (back.routing_key, back.exchange) == (names["routing_key"], names["exchange"])
    assert journal.is_open(delivery)
    assert journal.rows(state=None)[0].message_id == "\\xff1"


@pytest.mark.parametrize("restart", [False, True])
def test_rows_are_deferred_for_as_long_when_the_clock_is_set_back(
    journal, clock, tmp_path, restart
):
    run(journal.defer(make_delivery(message_id="new"), clock.now + 60))
    clock.now = 500.0
    run(journal.defer(make_delivery(message_id="after"), clock.now + 60))
    clock.now = 510.0
    if restart:
        journal.close()
        journal = Journal.open(tmp_path, limits=Limits(), now=clock)
    else:
        assert run(journal.rebase(clock.now)) == [1]
        assert run(journal.rebase(clock.now)) == [0]
    assert [d.message_id for d in journal.due(569.0)] == ["after"]
    assert [d.message_id for d in journal.due(570.0)] == ["after", "new"]
    journal.close()


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
def test_what_the_event_loop_asks_is_answered_by_an_index(journal, tmp_path, query, values, index):
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]
    # What follows a first step is about the list that was given.
    assert len(plan) == 1 or "json_each" in query, plan
    assert plan[0].startswith("SEARCH")
    assert index in plan[0]


def test_reading_what_became_unreadable_is_a_journal_error(journal, tmp_path):
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as connection:
        connection.execute("DROP TABLE messages")
    with pytest.raises(JournalError, match=r"journal\.sqlite3: no such table"):
        journal.is_open(make_delivery())


# What the operator sees.


def test_a_row_says_what_a_list_shows(journal, clock):
    quarantine(journal, failed(3, message_id="an id", body=b"12345", routing_key="org.example"))
    clock.now = 2000.0
    quarantine(journal, failed(4, message_id="an id", body=b"12345", routing_key="org.example"))
    (row,) = journal.rows()
    assert journal.row(row.id) == row
    assert (row.state, row.queue, row.exchange) == ("quarantined", "queue", "amq.topic")
    assert (row.routing_key, row.message_id, row.size) == ("org.example", "an id", 5)
    assert (row.reason, row.fingerprint) == ("spent", "ValueError in app.py:handle")
    assert (row.attempts, row.error, row.message) == (4, "ValueError", "failure 3")
    assert (row.crashes, row.created, row.updated) == (2, 1000.0, 2000.0)
    assert (row.due, row.parent) == (None, None)


def test_a_message_without_attempts_is_grouped_by_its_reason(journal):
    run(journal.quarantine(make_delivery(), "crashed twice"))
    assert journal.rows()[0].fingerprint == "crashed twice"


def test_a_message_has_its_whole_history(journal):
    delivery = failed(3)
    (number,) = quarantine(journal, delivery)
    shown = journal.delivery(number)
    assert shown is not None
    assert shown.history == delivery.history


def test_rows_are_chosen_by_state_cause_queue_and_topic_oldest_first(journal):
    quarantine(
        journal,
        failed(1, "A", message_id="1", queue="one", routing_key="org.example.build.start"),
        failed(1, "B", message_id="2", queue="one", routing_key="org.example.build.end"),
        failed(1, "A", message_id="3", queue="two", routing_key="org.example.sign"),
    )
    run(journal.defer(make_delivery(message_id="4", queue="one"), 1.0))

    def ids(**choice):
        return "".join(row.message_id for row in journal.rows(**choice))

    assert ids() == "123"
    assert ids(state=None) == "1234"
    assert ids(state="deferred") == "4"
    assert ids(fingerprint="A") == "13"
    assert ids(queue="one") == "12"
    assert ids(topic="org.example.build.*") == "12"
    assert ids(topic="org.example.sign") == "3"
    assert ids(fingerprint="A", queue="one", topic="*") == "1"
    assert ids(limit=2) == "12"


def test_what_is_not_there_is_none(journal):
    assert journal.row(1) is None
    assert journal.delivery(1) is None
    assert journal.rows() == []
    assert journal.groups() == []


def test_groups_count_causes_the_most_frequent_first(journal, clock):
    quarantine(journal, failed(1, "A", message_id="1"), failed(1, "B", message_id="2"))
    clock.now = 2000.0
    quarantine(journal, failed(1, "B", message_id="3"))
    often, once = journal.groups()
    assert (often.fingerprint, often.count, often.first, often.last) == ("B", 2, 1000.0, 2000.0)
    assert often.sample.message_id == "2"
    assert (once.fingerprint, once.count) == ("A", 1)


def test_stats_follow_every_move_of_a_row(journal, clock):
    assert journal.stats() == Stats(0, 0, 0, 0, 0, None, None, 0)
    quarantine(journal, failed(1, message_id="1", body=b"1234"))
    run(journal.defer(make_delivery(message_id="2", body=b"12"), 7.0))
    size = journal.stats().bytes
    assert journal.stats() == Stats(1, 1, 0, 0, size, 1000.0, 7.0, 0)
    run(journal.claim(1))
    assert journal.stats() == Stats(1, 0, 1, 0, size, None, 7.0, 0)
    run(journal.resolve(1), journal.remove(2))
    assert journal.stats() == Stats(0, 0, 0, 0, 0, None, None, 0)


# What the operator does.


def test_a_row_is_claimed_once(journal):
    (number,) = quarantine(journal, failed(1))
    assert run(journal.claim(number), journal.claim(number)) == [True, False]
    assert run(journal.claim(99)) == [False]
    assert journal.is_open(make_delivery())


def test_of_many_who_claim_at_once_one_succeeds(journal):
    (number,) = quarantine(journal, failed(1))

    async def race():
        return await asyncio.gather(*(journal.claim(number) for _ in range(20)))

    assert sorted(asyncio.run(race())) == [False] * 19 + [True]


def test_a_deferred_row_cannot_be_claimed(journal):
    run(journal.defer(make_delivery(), 1.0))
    assert run(journal.claim(1)) == [False]


def test_a_released_row_is_quarantined_again_with_its_new_attempt(journal):
    (number,) = quarantine(journal, failed(2))
    again = Attempt(9.0, "KeyError", "other", "Traceback", "KeyError in app.py:handle")
    assert run(journal.claim(number), journal.release(number, again)) == [True, True]
    row = journal.row(number)
    assert (row.state, row.attempts, row.message) == ("quarantined", 3, "other")
    assert row.fingerprint == "KeyError in app.py:handle"
    assert journal.delivery(number).history.attempts[-1] == again


def test_only_a_claimed_row_is_released_or_resolved(journal):
    (number,) = quarantine(journal, failed(1))
    assert run(journal.release(number), journal.resolve(number)) == [False, False]
    assert journal.row(number).attempts == 1


def test_a_resolved_row_is_gone_with_its_attempts(journal, tmp_path):
    (number,) = quarantine(journal, failed(3))
    assert run(journal.claim(number), journal.resolve(number)) == [True, True]
    assert journal.row(number) is None
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM attempts").fetchone() == (0,)


def test_the_claims_of_a_dead_process_are_released_at_the_next_start(tmp_path):
    journal = Journal.open(tmp_path, limits=Limits())
    (number,) = quarantine(journal, failed(1))
    run(journal.claim(number))
    journal.close()
    journal = Journal.open(tmp_path, limits=Limits())
    assert [row.id for row in journal.rows()] == [number]
    journal.close()


def test_a_replay_that_fails_through_the_pipeline_ends_in_quarantine(journal):
    (number,) = quarantine(journal, failed(1))
    run(journal.claim(number))
    run(journal.quarantine(replace(journal.delivery(number), replayed=True), "again"))
    assert [(row.id, row.state, row.reason) for row in journal.rows()] == [
        (number, "quarantined", "again")
    ]


def test_dropping_says_what_was_dropped_and_leaves_what_a_replay_has(journal):
    one, two, three = quarantine(journal, *(failed(1, message_id=str(n)) for n in range(3)))
    run(journal.claim(two))
    assert run(journal.drop([three, two, one, 99])) == [[three, one]]
    assert [row.id for row in journal.rows(state=None)] == [two]


def test_an_edited_copy_stands_for_its_original(journal):
    (number,) = quarantine(journal, failed(2, message_id="1", body=b"{bad}"))
    (child,) = run(journal.supersede(number, b"{}"))
    assert [row.id for row in journal.rows()] == [child]
    assert journal.row(child).parent == number
    assert journal.row(child).fingerprint == "ValueError in app.py:handle"
    copy = journal.delivery(child)
    assert (copy.body, copy.message_id, copy.history.attempts) == (b"{}", "1", ())
    assert journal.delivery(number).body == b"{bad}"


def test_a_redelivery_of_an_edited_message_is_known_and_keeps_the_edit(journal):
    original = failed(2, body=b"{bad}")
    (number,) = quarantine(journal, original)
    (child,) = run(journal.supersede(number, b"{}"))
    assert journal.is_open(original)
    assert quarantine(journal, original) == [child]
    assert journal.delivery(child).body == b"{}"


def test_an_original_leaves_with_its_copy_however_often_that_was_edited(journal):
    (number,) = quarantine(journal, failed(2))
    (child,) = run(journal.supersede(number, b"1"))
    (grandchild,) = run(journal.supersede(child, b"2"))
    assert journal.stats().superseded == 2
    run(journal.claim(grandchild), journal.resolve(grandchild))
    assert journal.rows(state=None) == []


def test_only_a_quarantined_row_is_edited(journal):
    (number,) = quarantine(journal, failed(2))
    run(journal.claim(number))
    assert run(journal.supersede(number, b"1"), journal.supersede(99, b"1")) == [None, None]


def test_space_goes_back_to_the_disk(journal, tmp_path):
    big = [failed(1, message_id=str(n), body=b"x" * 1_000_000) for n in range(20)]
    numbers = quarantine(journal, *big)
    for number in numbers:
        run(journal.drop([number]))
    journal.close()
    assert (tmp_path / "journal.sqlite3").stat().st_size < 5_000_000
