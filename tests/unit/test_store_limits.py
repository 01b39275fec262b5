# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages expire by age and by size, and are exported first."""

import asyncio
import json
from base64 import b64decode

import pytest

from consumer_framework.adapters.store import Expired, Limits, Store
from consumer_framework.adapters.store.properties import pack
from consumer_framework.adapters.store.records import size_of
from consumer_framework.core.attempt import Attempt, History
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

FAILED = History((Attempt(1.5, "ValueError", "no", "Traceback ...", "ValueError in f"),), crashes=1)


# The size of a row that `quarantine` makes here.
ROW = size_of(b"0123456789", pack(make_delivery(message_id="1").properties), "spent", "no")
ROW += size_of("Traceback ...")
# The body of a deferred message of the same size.
AS_MUCH = b"x" * (10 + size_of("spent", "no", "Traceback ...") - size_of("deferred"))


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
def opened(tmp_path, clock):
    """Return a function that opens stores with limits."""
    stores = []

    def open_store(**limits):
        stores.append(Store.open(tmp_path, limits=Limits(**limits), now=clock))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def run(*writes):
    async def in_order():
        return [await write for write in writes]

    return asyncio.run(in_order())


def quarantine(store, *ids, body=b"0123456789"):
    for message_id in ids:
        delivery = make_delivery(message_id=message_id, body=body)._replace(history=FAILED)
        run(store.quarantine(delivery, "spent"))


def kept(store):
    return [row.message_id for row in store.rows(state=None)]


def lines(file):
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


# Age.


def test_messages_that_are_quarantined_for_too_long_expire_into_a_file(opened, clock, tmp_path):
    store = opened(max_age=100.0)
    quarantine(store, "old", body=b'{"a": 1}')
    clock.now = 1050.0
    quarantine(store, "young")
    assert run(store.expire(1099.9)) == [Expired(0, tmp_path / "expired.jsonl")]
    assert not (tmp_path / "expired.jsonl").exists()
    assert run(store.expire(1100.0, tmp_path / "out")) == [Expired(1, tmp_path / "out")]
    assert kept(store) == ["young"]
    (line,) = lines(tmp_path / "out")
    assert (line["id"], line["body"]) == ("old", {"a": 1})
    assert line["quarantine"]["reason"] == "spent"
    assert line["quarantine"]["attempts"] == [
        {"at": 1.5, "error": "ValueError", "message": "no", "traceback": "Traceback ..."}
    ]


def test_messages_that_expire_later_are_appended(opened, clock, tmp_path):
    store = opened(max_age=1.0)
    for number in range(3):
        quarantine(store, str(number))
        clock.now += 10
        run(store.expire(clock.now))
    assert [line["id"] for line in lines(tmp_path / "expired.jsonl")] == ["0", "1", "2"]


def test_half_a_line_from_a_crash_does_not_spoil_the_next_line(opened, clock, tmp_path):
    store = opened(max_age=1.0)
    quarantine(store, "1")
    (tmp_path / "expired.jsonl").write_text('{"half": ')
    run(store.expire(2000.0))
    half, whole, end = (tmp_path / "expired.jsonl").read_text().split("\n")
    assert (half, json.loads(whole)["id"], end) == ('{"half": ', "1", "")


def test_deferred_and_claimed_messages_never_expire(opened):
    store = opened(max_age=1.0)
    run(store.defer(make_delivery(message_id="deferred"), 1.0))
    quarantine(store, "claimed")
    run(store.claim(2))
    assert run(store.expire(1e12))[0].rows == 0
    assert kept(store) == ["deferred", "claimed"]


def test_without_a_limit_nothing_expires(opened):
    store = opened()
    quarantine(store, "1")
    assert run(store.expire(1e12))[0].rows == 0


def test_the_age_of_a_message_begins_again_after_a_failed_replay(opened, clock):
    store = opened(max_age=100.0)
    quarantine(store, "1")
    clock.now = 1090.0
    run(store.claim(1), store.release(1))
    assert run(store.expire(1110.0))[0].rows == 0


def test_more_than_one_portion_expires_and_the_originals_of_edited_messages_too(opened, tmp_path):
    store = opened(max_age=1.0)

    async def burst():
        deliveries = [make_delivery(message_id=str(n), body=b"not json") for n in range(1200)]
        await asyncio.gather(*(store.quarantine(delivery, "") for delivery in deliveries))
        await store.supersede(1, b"edited")

    asyncio.run(burst())
    assert run(store.expire(1e12))[0].rows == 1200
    assert kept(store) == []
    bodies = [b64decode(line["body_base64"]) for line in lines(tmp_path / "expired.jsonl")]
    assert sorted(bodies) == [b"edited", *[b"not json"] * 1200]


def test_messages_that_cannot_be_exported_stay(opened, tmp_path):
    store = opened(max_age=1.0, max_bytes=10)
    quarantine(store, "1")
    (tmp_path / "expired.jsonl").mkdir()
    with pytest.raises(StoreError, match=r"expired\.jsonl: is a directory"):
        run(store.expire(1e12))
    with pytest.raises(StoreError, match=r"expired\.jsonl: is a directory"):
        quarantine(store, "2")
    assert kept(store) == ["1"]
    (tmp_path / "expired.jsonl").rmdir()
    quarantine(store, "2")
    assert kept(store) == ["2"]


# Size.


def test_the_oldest_quarantined_messages_make_room(opened, tmp_path):
    store = opened(max_bytes=3 * ROW)
    quarantine(store, "1", "2", "3", "4", "5")
    assert kept(store) == ["3", "4", "5"]
    assert [line["id"] for line in lines(tmp_path / "expired.jsonl")] == ["1", "2"]
    assert store.stats().bytes == 3 * ROW


def test_a_deferred_message_expires_quarantined_ones_to_make_room(opened):
    store = opened(max_bytes=3 * ROW)
    quarantine(store, "1", "2", "3")
    run(store.defer(make_delivery(message_id="deferred", body=AS_MUCH + b"x"), 1.0))
    assert kept(store) == ["3", "deferred"]


def test_a_store_full_of_deferred_messages_takes_no_more_and_loses_none(opened):
    store = opened(max_bytes=3 * ROW)
    for number in range(3):
        run(store.defer(make_delivery(message_id=str(number), body=AS_MUCH), 1.0))
    full = rf"full \({3 * ROW} bytes of {3 * ROW}\) of messages that are def"
    with pytest.raises(StoreError, match=full):
        quarantine(store, "3")
    assert kept(store) == ["0", "1", "2"]
    run(store.remove(1))
    quarantine(store, "3")
    assert kept(store) == ["1", "2", "3"]


def test_a_message_that_has_a_row_already_needs_no_room(opened):
    store = opened(max_bytes=10)
    quarantine(store, "1")
    quarantine(store, "1")
    run(store.defer(make_delivery(message_id="1", body=b"0123456789"), 1.0))
    assert kept(store) == ["1"]


def test_a_message_larger_than_the_limit_is_kept_alone(opened):
    store = opened(max_bytes=5)
    quarantine(store, "1")
    quarantine(store, "2")
    assert kept(store) == ["2"]


def test_an_edit_never_expires_its_own_original(opened):
    store = opened(max_bytes=2 * ROW + ROW // 2)
    quarantine(store, "1", "2")
    (child,) = run(store.supersede(2, b"x" * 10))
    assert [(row.id, row.state) for row in store.rows(state=None)] == [
        (2, "superseded"),
        (child, "quarantined"),
    ]


def test_a_burst_into_a_full_store_takes_a_handful_of_commits(opened, tmp_path):
    store = opened(max_bytes=100_000)

    async def burst():
        deliveries = [make_delivery(message_id=str(n), body=b"x" * 1000) for n in range(1000)]
        await asyncio.gather(*(store.quarantine(delivery, "") for delivery in deliveries))

    asyncio.run(burst())
    assert store.commits <= 10
    expired = {line["id"] for line in lines(tmp_path / "expired.jsonl")}
    assert expired | set(kept(store)) == {str(n) for n in range(1000)}


def test_an_edit_without_room_leaves_its_original_unchanged(opened):
    store = opened(max_bytes=2 * ROW)
    run(store.defer(make_delivery(message_id="1", body=AS_MUCH), 1.0))
    quarantine(store, "2")
    with pytest.raises(StoreError, match="full"):
        run(store.supersede(2, b"x" * 20))
    assert [row.id for row in store.rows()] == [2]
    assert run(store.claim(2)) == [True]


def long_winded(message_id, size):
    history = History((Attempt(1.5, "ValueError", "no", "T" * size, "ValueError in f"),))
    return make_delivery(message_id=message_id, body=b"x")._replace(history=history)


def test_properties_reason_and_attempts_count_towards_the_limit(opened):
    store = opened(max_bytes=10_000)
    for number in range(20):
        run(store.quarantine(long_winded(str(number), 3000), "spent"))
    assert kept(store) == ["17", "18", "19"]


def test_a_row_that_grows_expires_other_rows_and_never_itself(opened):
    store = opened(max_bytes=10_000)
    for number in range(3):
        run(store.quarantine(long_winded(str(number), 3000), "spent"))
    run(store.quarantine(long_winded("0", 8000), "spent"))
    assert kept(store) == ["0"]
    run(store.quarantine(long_winded("0", 20_000), "spent"))
    assert kept(store) == ["0"]


def test_a_failed_replay_counts_its_traceback(opened):
    store = opened(max_bytes=10_000)
    quarantine(store, "1")
    run(store.claim(1), store.release(1, Attempt(2.0, "ValueError", "no", "T" * 500, "f")))
    assert store.stats().bytes == ROW + 502
    run(store.drop([1]))
    assert store.stats().bytes == 0
