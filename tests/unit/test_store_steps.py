# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps on the disk: they outlive the process, and are deleted when nobody needs them any more."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store import steps as module
from consumer_framework.adapters.store.files import MIGRATIONS
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

DAY = 86400.0


@pytest.fixture
def open_store(tmp_path):
    stores = []

    def make(now=0.0, **limits):
        stores.append(Store.open(tmp_path, limits=Limits(**limits), now=lambda: now))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def on_disk(directory):
    with closing(sqlite3.connect(directory / "store.sqlite3")) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM steps ORDER BY name")]


def again(**what):
    return make_delivery(generation=2, redelivered=True, **what)


def use(store, delivery, name="a"):
    """Do one step as a handler does it."""
    known = store.steps_of(delivery)
    if name not in known:
        store.record_step(delivery, name, "1").result()
    return name in known


def test_the_next_process_skips_a_step(open_store):
    first = open_store()
    use(first, make_delivery())
    first.close()
    assert use(open_store(), again())


def test_a_message_that_is_published_again_after_a_crash_begins_anew(open_store, tmp_path):
    first = open_store()
    use(first, make_delivery())
    use(first, make_delivery(message_id="stored"), "b")
    asyncio.run(first.quarantine(make_delivery(message_id="stored"), "poison"))
    first.close()
    second = open_store()
    # The broker says that nobody had it.
    assert not use(second, make_delivery())
    assert use(second, make_delivery())
    # Its equal waits in the store.
    assert use(second, make_delivery(message_id="stored"), "b")


def test_steps_of_settled_messages_outlive_the_process_by_a_day(open_store, tmp_path):
    store = open_store()
    for number in "12":
        use(store, make_delivery(message_id=number), number)
    store.settled(make_delivery(message_id="1"), stays=False)
    store.close()
    # The connection was dead already, and the acknowledgement is lost.
    next_process = open_store(now=DAY / 2)
    asyncio.run(next_process.expire(DAY / 2))
    assert use(next_process, again(message_id="1"), "1")
    next_process.close()
    last = open_store(now=DAY)
    asyncio.run(last.expire(DAY))
    assert on_disk(tmp_path) == ["2"]


def test_the_steps_of_a_message_stay_if_an_equal_one_is_settled_meanwhile(
    open_store, tmp_path, monkeypatch
):
    store = open_store()
    first, second = make_delivery(delivery_tag=1), make_delivery(delivery_tag=2)
    for each in first, second:
        store.steps_of(each)
    store.settled(first, stays=False)
    monkeypatch.setattr(module, "GRACE", 0.0)
    store.record_step(second, "slow", "1").result()
    use(store, make_delivery(message_id="another"), "another")
    assert on_disk(tmp_path) == ["another", "slow"]


def test_messages_that_go_to_the_store_keep_no_other_from_its_steps(open_store, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 2)
    store = open_store()
    held = make_delivery(message_id="held")
    use(store, held)
    for number in "123":
        deferred = make_delivery(message_id=number)
        use(store, deferred)
        asyncio.run(store.defer(deferred, 1.0))
        store.settled(deferred, stays=True)
    for row in store.due(1.0):
        assert use(store, row)
    assert use(store, held)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_former_steps_that_the_disk_does_not_delete_are_not_taken_for_those_of_a_new_message(
    open_store, tmp_path, is_restarted
):
    store = open_store()
    use(store, make_delivery(), "done before")
    store.settled(make_delivery(), stays=False)
    published_again = make_delivery(delivery_tag=2)
    database = tmp_path / "store.sqlite3"
    # Reads go on: the file is open.
    database.rename(database.with_suffix(".away"))
    for _ in range(2):
        with pytest.raises(StoreError):
            store.steps_of(published_again)
    database.with_suffix(".away").rename(database)
    if is_restarted:
        store.close()
        store, published_again = open_store(), again()
    assert store.steps_of(published_again) == {}
    assert not use(store, published_again, "new")
    assert set(store.steps_of(published_again)) == {"new"}
    assert on_disk(tmp_path) == ["new"]


def test_a_message_whose_steps_cannot_be_read_at_first_is_as_new_as_before(open_store, tmp_path):
    former = open_store()
    use(former, make_delivery(), "done before")
    former.close()
    store = open_store()
    database = tmp_path / "store.sqlite3"
    database.rename(database.with_suffix(".away"))
    with pytest.raises(StoreError):
        store.steps_of(make_delivery())
    database.with_suffix(".away").rename(database)
    assert store.steps_of(make_delivery()) == {}


def test_the_former_steps_are_deleted_before_the_new_message_is_handled(open_store, tmp_path):
    store = open_store()
    use(store, make_delivery(), "done before")
    store.settled(make_delivery(), stays=False)
    assert store.steps_of(make_delivery(delivery_tag=2)) == {}
    assert on_disk(tmp_path) == []


def test_a_step_that_was_not_recorded_is_forgotten_with_the_row_that_an_operator_drops(
    open_store, tmp_path
):
    store = open_store()
    delivery = make_delivery()
    store.steps_of(delivery)
    database = tmp_path / "store.sqlite3"
    database.rename(database.with_suffix(".away"))
    with pytest.raises(StoreError):
        store.record_step(delivery, "a", "1").result()
    database.with_suffix(".away").rename(database)
    asyncio.run(store.defer(delivery, 1.0))
    store.settled(delivery, stays=True)
    (row,) = store.due(1.0)
    assert "a" in store.steps_of(row)
    asyncio.run(store.drop([row.row]))
    # It is published again.
    assert store.steps_of(make_delivery(delivery_tag=2)) == {}


def test_a_later_step_deletes_those_of_messages_that_were_settled_a_while_ago(
    open_store, tmp_path, monkeypatch
):
    store = open_store()
    for number in "12":
        use(store, make_delivery(message_id=number), number)
        store.settled(make_delivery(message_id=number), stays=False)
    use(store, make_delivery(message_id="3"), "3")
    assert on_disk(tmp_path) == ["1", "2", "3"]
    # The acknowledgement of the first was lost: it came again in time.
    assert store.steps_of(again(message_id="1"))
    monkeypatch.setattr(module, "GRACE", 0.0)
    use(store, make_delivery(message_id="4"), "4")
    assert on_disk(tmp_path) == ["1", "3", "4"]


def test_the_settled_messages_that_are_remembered_are_bounded(open_store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 2)
    store = open_store()
    for number in "1234":
        use(store, make_delivery(message_id=number), number)
        store.settled(make_delivery(message_id=number), stays=False)
    use(store, make_delivery(message_id="5"), "5")
    assert on_disk(tmp_path) == ["3", "4", "5"]


def test_the_messages_that_are_not_settled_are_bounded_too(open_store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 2)
    store = open_store()
    for number in "123":
        use(store, make_delivery(message_id=number), number)
    for number in "123":
        store.settled(make_delivery(message_id=number), stays=False)
    store.close()
    asyncio.run(open_store(now=DAY).expire(DAY))
    # It was forgotten that the first one has a step, which expires with age.
    assert on_disk(tmp_path) == ["1"]


def test_a_settle_of_a_message_without_steps_changes_nothing(open_store, tmp_path):
    store = open_store()
    use(store, make_delivery())
    store.settled(make_delivery(message_id="another"), stays=False)
    store.close()
    assert on_disk(tmp_path) == ["a"]


def test_steps_of_messages_that_never_came_again_expire_but_for_those_of_rows(open_store, tmp_path):
    early = open_store(now=0.0)
    for name in "lost", "kept":
        use(early, make_delivery(message_id=name), name)
    asyncio.run(early.quarantine(make_delivery(message_id="kept"), "poison"))
    early.close()
    late = open_store(now=31 * DAY)
    use(late, make_delivery(message_id="new"), "new")
    asyncio.run(late.expire(31 * DAY))
    assert on_disk(tmp_path) == ["kept", "new"]


def test_an_expired_row_takes_its_steps_with_it(open_store, tmp_path):
    store = open_store(max_age=DAY)
    use(store, make_delivery())
    asyncio.run(store.quarantine(make_delivery(), "poison"))
    expired = asyncio.run(store.expire(2 * DAY))
    assert (expired.rows, on_disk(tmp_path)) == (1, [])


@pytest.mark.parametrize("end", ["drop", "resolve"])
def test_an_edited_row_has_the_steps_of_its_original(open_store, tmp_path, end):
    async def edit(store):
        await store.quarantine(make_delivery(), "poison")
        copy = await store.supersede(store.rows()[0].id, b'{"edited": true}')
        again = await store.supersede(copy, b'{"edited": "twice"}')
        await store.claim(again)
        assert use(store, store.delivery(again)._replace(replayed=True))
        assert on_disk(tmp_path) == ["a"]
        if end == "resolve":
            await store.resolve(again)
        else:
            await store.release(again)
            await store.drop([again])

    store = open_store()
    use(store, make_delivery())
    asyncio.run(edit(store))
    assert on_disk(tmp_path) == []


def test_a_step_that_the_disk_does_not_take_is_known_to_this_process_alone(open_store, tmp_path):
    store = open_store()
    delivery = make_delivery()
    store.steps_of(delivery)
    database = tmp_path / "store.sqlite3"
    database.rename(database.with_suffix(".away"))
    with pytest.raises(StoreError):
        store.record_step(delivery, "a", "1").result()
    database.with_suffix(".away").rename(database)
    assert store.steps_of(again())["a"].is_durable is False
    store.record_step(delivery, "a", "1").result()
    assert store.steps_of(again())["a"].is_durable


def test_a_failed_record_is_forgotten_with_the_settle_of_its_message(open_store, tmp_path):
    store = open_store()
    delivery = make_delivery()
    store.steps_of(delivery)
    database = tmp_path / "store.sqlite3"
    database.rename(database.with_suffix(".away"))
    with pytest.raises(StoreError):
        store.record_step(delivery, "a", "1").result()
    database.with_suffix(".away").rename(database)
    store.settled(delivery, stays=False)
    assert store.steps_of(make_delivery(delivery_tag=2)) == {}


def test_a_closed_store_takes_no_step(open_store):
    store = open_store()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.record_step(make_delivery(), "a", "1").result()


def test_many_records_at_once_share_their_commits(open_store):
    store = open_store()
    written = [store.record_step(make_delivery(message_id=str(n)), "a", "1") for n in range(500)]
    for future in written:
        future.result()
    assert store.commits < 100


def test_a_store_of_the_version_before_gets_the_table_and_keeps_its_rows(tmp_path):
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        for script in MIGRATIONS[:3]:
            connection.executescript(script)
        connection.executescript("PRAGMA application_id = 0x464D4A4C; PRAGMA user_version = 3;")
    with closing(Store.open(tmp_path, limits=Limits())) as store:
        assert not use(store, make_delivery())
        assert use(store, again())


def test_the_version_before_refuses_a_store_with_steps(tmp_path, monkeypatch):
    Store.open(tmp_path, limits=Limits()).close()
    monkeypatch.setattr("consumer_framework.adapters.store.files.MIGRATIONS", MIGRATIONS[:3])
    newer = rf"written by a newer version \(schema {len(MIGRATIONS)}, .* up to 3\)"
    with pytest.raises(StoreError, match=newer):
        Store.open(tmp_path, limits=Limits())
