# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages of handlers are stored once for each run, in every database of an outbox."""

import asyncio
import threading
import time

import pytest
import sqlalchemy as sa

from consumer_framework.core.delivery import Published
from consumer_framework.core.errors import StoreError
from consumer_framework.publishing import sources
from consumer_framework.publishing.sources import forget_old_sources, store_runs
from consumer_framework.publishing.store import OutboxError, OutboxStore
from consumer_framework.publishing.writer import PublishedWriter, RunToStore
from consumer_framework.testing import make_delivery
from tests.unit.outboxes import NOW, message, spooled

from .outbox import on_every_database

pytestmark = on_every_database
PATIENCE = 60


@pytest.fixture
def store(outbox_url):
    store = OutboxStore.connect(outbox_url)
    store.migrate()
    yield store
    store.close()


def ids(store):
    return [row.message.id for row in store.rows(limit=1000)]


def published(*deliveries, messages=1):
    entries = spooled(*(message() for _ in range(messages)))
    return Published(tuple(entries), deliveries or (make_delivery(),))


def stored(store, *runs):
    return store_runs(store, runs, NOW)


def names_of(one):
    return [message.id for message, _ in one.messages]


def test_a_run_stores_its_messages_in_their_order(store):
    one, other = published(messages=3), published(make_delivery(message_id="2"))
    assert stored(store, RunToStore("1", one), RunToStore("2", other)) == 4
    assert ids(store) == names_of(one) + names_of(other)


@pytest.mark.parametrize("again", [make_delivery(redelivered=True), make_delivery(row=5)])
def test_a_delivery_that_comes_again_stores_nothing_more(store, again):
    first = make_delivery(row=again.row)
    one = published(first)
    assert stored(store, RunToStore("1", one)) == 1
    assert stored(store, RunToStore("2", published(again))) == 0
    assert ids(store) == names_of(one)


def test_an_equal_message_that_is_published_anew_stores_its_messages(store):
    one, other = published(), published()
    assert stored(store, RunToStore("1", one)) == 1
    assert stored(store, RunToStore("2", other)) == 1
    assert ids(store) == names_of(one) + names_of(other)


def test_a_redelivery_that_is_equal_to_a_message_of_the_same_process_is_another_message(store):
    # Both were delivered; the connection broke after the first one was acknowledged.
    assert stored(store, RunToStore("one.1", published(make_delivery(message_id="1")))) == 1
    again = make_delivery(message_id="1", redelivered=True)
    assert stored(store, RunToStore("one.2", published(again))) == 1
    assert stored(store, RunToStore("two.1", published(again))) == 0


def test_two_equal_messages_in_one_transaction_store_both_their_messages(store):
    one, other = published(), published()
    assert stored(store, RunToStore("1", one), RunToStore("2", other)) == 2


@pytest.mark.parametrize("message_id", ["1", None])
def test_a_commit_whose_end_is_not_known_is_tried_again_without_harm(store, message_id):
    one = published(make_delivery(message_id=message_id))
    assert stored(store, RunToStore("1", one, is_tried=True)) == 1, "it was not committed"
    assert stored(store, RunToStore("1", one, is_tried=True)) == 0, "it was"
    assert ids(store) == names_of(one)


def test_a_batch_is_left_out_only_if_all_of_its_deliveries_are_known(store):
    first, second = make_delivery(message_id="1"), make_delivery(message_id="2")
    assert stored(store, RunToStore("1", published(first, second))) == 1
    again = [one._replace(redelivered=True) for one in (first, second)]
    assert stored(store, RunToStore("2", published(*again))) == 0
    new = make_delivery(message_id="3")
    assert stored(store, RunToStore("3", published(again[0], new))) == 1


def test_many_sources_are_looked_up_at_once(store):
    many = [make_delivery(message_id=str(n)) for n in range(1200)]
    assert stored(store, RunToStore("1", published(*many))) == 1
    again = published(*(one._replace(redelivered=True) for one in many))
    assert stored(store, RunToStore("2", again)) == 0


def known(store):
    with store.reading() as connection:
        return connection.scalar(sa.text("SELECT COUNT(*) FROM fm_outbox_sources"))


def test_sources_that_are_old_are_forgotten(store):
    stored(store, RunToStore("1", published()))
    forget_old_sources(store, NOW + sources.KNOWN_SECONDS - 1)
    assert known(store) == 1
    forget_old_sources(store, NOW + sources.KNOWN_SECONDS)
    assert known(store) == 0


def test_sources_that_are_too_many_are_forgotten_the_oldest_first(store, monkeypatch):
    monkeypatch.setattr(sources, "KNOWN_SOURCES", 3)
    for number in range(6):
        one = published(make_delivery(message_id=str(number)))
        store_runs(store, [RunToStore(str(number), one)], NOW + number)
    forget_old_sources(store, NOW + 6)
    assert known(store) == 3
    again = published(make_delivery(message_id="5", redelivered=True))
    assert stored(store, RunToStore("9", again)) == 0


# The writer.


def play(scenario):
    return asyncio.run(asyncio.wait_for(scenario, PATIENCE))


class Opening:
    """Opens the outbox for a writer; may fail, and may wait."""

    def __init__(self, store):
        self.store = store
        self.error: Exception | None = None
        self.is_free = threading.Event()
        self.is_free.set()

    def __call__(self):
        assert self.is_free.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.store


@pytest.fixture
def opening(store):
    return Opening(store)


@pytest.fixture
def writer(opening):
    writer = PublishedWriter(opening, lambda: NOW)
    yield writer
    writer.close()


def test_the_runs_that_end_during_a_commit_share_the_next_one(store, opening, writer):
    async def scenario():
        opening.is_free.clear()
        runs = [published(make_delivery(message_id=str(n))) for n in range(50)]
        writes = [writer.store(one) for one in runs]
        await asyncio.sleep(0)
        opening.is_free.set()
        await asyncio.gather(*writes)
        assert sorted(ids(store)) == sorted(name for one in runs for name in names_of(one))
        assert writer.commits <= 2

    play(scenario())


def test_all_deliveries_of_a_batch_wait_for_one_write(store, opening, writer):
    async def scenario():
        one = published(make_delivery(message_id="1"), make_delivery(message_id="2"))
        first, second = (writer.store(one) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        await writer.store(one)
        assert ids(store) == names_of(one)

    play(scenario())


def test_a_write_that_failed_is_tried_anew_and_does_not_store_twice(store, opening, writer):
    async def scenario():
        one = published()
        opening.error = OutboxError("no space left on device")
        for _ in range(2):
            with pytest.raises(StoreError, match="no space left"):
                await writer.store(one)
        opening.error = None
        await writer.store(one)
        await writer.store(one)
        assert ids(store) == names_of(one)

    play(scenario())


def test_a_defect_of_the_writer_is_an_answer(opening, writer):
    async def scenario():
        opening.error = ZeroDivisionError("a defect")
        with pytest.raises(StoreError, match="ZeroDivisionError"):
            await writer.store(published())

    play(scenario())


def test_a_run_that_the_database_refuses_keeps_no_other_from_being_stored(store, opening, writer):
    async def scenario():
        opening.is_free.clear()
        refused = Published(((message(topic=None), "spool"),), (make_delivery(message_id="9"),))
        good = published(make_delivery(message_id="1"))
        writes = [writer.store(one) for one in (refused, good)]
        await asyncio.sleep(0)
        opening.is_free.set()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert isinstance(results[0], StoreError)
        assert results[1] is None
        assert ids(store) == names_of(good)

    play(scenario())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_run_whose_fault_looks_like_one_of_the_database_keeps_no_other_from_being_stored(
    store, opening, writer, monkeypatch, place
):
    refused = message()

    def store_all(store, runs, now):
        if any(one is refused for run in runs for one, _ in run.published.messages):
            # As MariaDB answers a packet that is too large.
            raise OutboxError("the server has gone away")
        return store_runs(store, runs, now)

    async def scenario():
        opening.is_free.clear()
        good = [published(make_delivery(message_id=str(n))) for n in range(2)]
        runs = [*good]
        bad = Published(((refused, "spool"),), (make_delivery(message_id="9"),))
        runs.insert(place, bad)
        writes = [writer.store(one) for one in runs]
        await asyncio.sleep(0)
        opening.is_free.set()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [isinstance(one, StoreError) for one in results] == [r is bad for r in runs]
        assert sorted(ids(store)) == sorted(name for one in good for name in names_of(one))

    monkeypatch.setattr(sources, "store_runs", store_all)
    play(scenario())


@pytest.mark.parametrize("message_id", ["1", ""])
def test_a_run_whose_commit_seemed_to_fail_is_stored_once(
    store, opening, writer, monkeypatch, message_id
):
    def store_all(store, runs, now):
        store_runs(store, runs, now)
        raise OutboxError("no answer to the commit")

    async def scenario():
        one = published(make_delivery(message_id=message_id))
        with monkeypatch.context() as context:
            context.setattr(sources, "store_runs", store_all)
            for _ in range(2):
                with pytest.raises(StoreError, match="no answer"):
                    await writer.store(one)
        await writer.store(one)
        assert ids(store) == names_of(one)

    play(scenario())


def test_a_group_whose_commit_seemed_to_fail_is_stored_once(store, opening, writer, monkeypatch):
    ends = iter([OutboxError("no answer to the commit")])

    def store_all(store, runs, now):
        count = store_runs(store, runs, now)
        if (error := next(ends, None)) is not None:
            raise error
        return count

    async def scenario():
        opening.is_free.clear()
        runs = [published(make_delivery(message_id=name)) for name in ("1", "2", "")]
        writes = [writer.store(one) for one in runs]
        await asyncio.sleep(0)
        opening.is_free.set()
        await asyncio.gather(*writes)
        assert sorted(ids(store)) == sorted(name for one in runs for name in names_of(one))

    monkeypatch.setattr(sources, "store_runs", store_all)
    play(scenario())


def test_a_writer_goes_on_if_the_word_of_a_commit_is_not_heard(store, opening, caplog):
    def stored(_count):
        raise RuntimeError("can't start new thread")

    async def scenario():
        writer = PublishedWriter(opening, lambda: NOW, stored)
        runs = [published(make_delivery(message_id=str(n))) for n in range(2)]
        for one in runs:
            await writer.store(one)
        writer.close()
        assert sorted(ids(store)) == sorted(name for one in runs for name in names_of(one))

    play(scenario())
    assert "can't start new thread" in caplog.text


def test_a_writer_whose_thread_cannot_start_tries_it_anew(store, opening, writer, monkeypatch):
    async def scenario():
        one = published()
        with monkeypatch.context() as context:
            context.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(StoreError):
                await writer.store(one)
        await writer.store(one)
        assert ids(store) == names_of(one)

    def no_thread(_thread):
        raise RuntimeError("can't start new thread")

    play(scenario())


def test_a_writer_knows_the_runs_of_its_own_process(store, opening, writer):
    async def scenario():
        one, other = published(), published(make_delivery(redelivered=True))
        await writer.store(one)
        await writer.store(other)
        assert ids(store) == names_of(one) + names_of(other)

    play(scenario())


def test_a_closed_writer_has_stored_what_it_had_and_takes_no_more(store, opening):
    async def scenario():
        def slowly():
            time.sleep(0.2)
            return opening()

        writer = PublishedWriter(slowly, lambda: NOW)
        one = published()
        write = writer.store(one)
        await asyncio.sleep(0)
        writer.close()
        assert ids(store) == names_of(one)
        await write
        assert ids(store) == names_of(one)
        with pytest.raises(StoreError, match="closed"):
            await writer.store(published())

    play(scenario())
