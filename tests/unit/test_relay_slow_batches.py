# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay whose messenger takes longer than its lease: nobody else sends its rows unnoticed."""

import threading
import time

import pytest

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.publishing.events import ClaimsLost, LeaseChanged, StoreDown
from consumer_framework.publishing.extending import PATIENCE
from consumer_framework.publishing.messengers import Retry, Scope, Sent
from consumer_framework.publishing.relay import Step
from consumer_framework.publishing.store import OutboxError, OutboxStore
from tests.unit.outboxes import LEASE, NOW, Setup, message


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/outbox.sqlite3"


@pytest.fixture
def store(url):
    store = OutboxStore.connect(url)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def other_store(url):
    store = OutboxStore.connect(url)
    yield store
    store.close()


def real_time(store, lease):
    return Setup(store, lease=lease, clock=SystemClock())


class Running:
    """Relays that run, each in a thread of its own, until the block ends."""

    def __init__(self, *setups):
        self.stop = threading.Event()
        runs = [setup.relay.run for setup in setups]
        self.threads = [threading.Thread(target=run, args=(self.stop,)) for run in runs]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def until(is_true):
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_batch_that_takes_several_leases_is_sent_by_one_relay_only(store, other_store):
    slow, reserve = (real_time(one, 1.5) for one in (store, other_store))
    one = message()
    slow.put(one)
    is_sending, may_end = threading.Event(), threading.Event()

    def answer(_):
        is_sending.set()
        may_end.wait(60)
        return Sent(routed=True)

    slow.messenger.answer = answer
    with Running(slow):
        is_sending.wait(60)
        with Running(reserve):
            end = time.monotonic() + 4.5
            until(lambda: time.monotonic() > end)
            may_end.set()
            until(lambda: not slow.rows)
    assert slow.sent == [one.id]
    assert reserve.sent == []
    assert slow.counters.claims_lost == 0


def test_a_connection_that_takes_several_leases_to_open_keeps_the_lease(store, other_store):
    slow, reserve = (real_time(one, 1.5) for one in (store, other_store))
    one = message()
    slow.put(one)
    opening, may_open = threading.Event(), threading.Event()

    def open_slowly():
        opening.set()
        may_open.wait(60)

    slow.messenger.opening = open_slowly
    with Running(slow):
        opening.wait(60)
        with Running(reserve):
            end = time.monotonic() + 4.5
            until(lambda: time.monotonic() > end)
            may_open.set()
            until(lambda: slow.sent)
    assert reserve.messenger.opened == 0


def test_a_messenger_that_hangs_loses_the_lease_and_the_message_sent_twice_is_reported(
    store, other_store
):
    hung, reserve = (real_time(one, 0.3) for one in (store, other_store))
    one, released = message(), threading.Event()
    hung.put(one)

    def answer(_):
        released.wait(60)
        return Sent(routed=True)

    hung.messenger.answer = answer
    with Running(hung):
        until(lambda: hung.messenger.batches)
        with Running(reserve):
            until(lambda: reserve.sent)
            released.set()
            until(lambda: ClaimsLost(1) in hung.events)
    assert hung.sent == reserve.sent == [one.id]


def test_a_relay_that_lost_its_lease_while_it_connected_sends_nothing(store, other_store):
    setup = Setup(store)
    setup.put(message())

    def open_late():
        setup.clock.advance(LEASE + 1)
        assert other_store.lease("other", LEASE, setup.clock.time())

    setup.messenger.opening = open_late
    assert setup.relay.step() is Step.STANDBY
    assert setup.sent == []
    assert setup.events[-1] == LeaseChanged(False)


def test_the_rest_of_a_batch_is_given_back_if_the_claim_could_not_be_extended(store):
    setup = Setup(store)
    first, second = message("k"), message("k")
    setup.put(first, second)

    def answer(_):
        setup.clock.advance(LEASE * 0.6)
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.relay.step()
    assert setup.sent == [first.id]
    [row] = setup.rows
    assert (row.message, row.attempts, row.claimed_until) == (second, 0, None)


def test_a_claim_and_a_lease_are_extended_together(store):
    store.put([(message(), "spool")])
    assert store.lease("me", LEASE, NOW)
    [claimed] = store.claim("me.1", 10, LEASE, NOW)
    assert store.extend("me", LEASE, NOW + 20, "me.1", [claimed.row])
    assert store.rows()[0].claimed_until == NOW + 20 + LEASE
    assert not store.lease("other", LEASE, NOW + LEASE + 1)
    assert store.extend(None, LEASE, NOW + 20, "me.1", [claimed.row])


def test_a_claim_that_another_relay_has_is_not_extended(store):
    store.put([(message(), "spool")])
    assert store.lease("me", LEASE, NOW)
    [claimed] = store.claim("me.1", 10, LEASE, NOW)
    later = NOW + LEASE + 1
    assert store.lease("other", LEASE, later)
    assert not store.extend("me", LEASE, later, "me.1", [claimed.row])
    store.claim("other.1", 10, LEASE, later + LEASE)
    assert not store.extend(None, LEASE, later, "me.1", [claimed.row])
    assert store.rows()[0].claimed_until == later + 2 * LEASE


def test_a_database_that_is_away_while_a_batch_is_sent_does_not_end_the_relay(store, monkeypatch):
    setup = real_time(store, 0.3)
    setup.put(message())
    tried, right = threading.Event(), store.extend

    def extend(*arguments):
        tried.set()
        raise OutboxError("the database is away")

    def answer(_):
        tried.wait(60)
        monkeypatch.setattr(store, "extend", right)
        return Sent(routed=True)

    monkeypatch.setattr(store, "extend", extend)
    setup.messenger.answer = answer
    with Running(setup):
        until(lambda: not setup.rows)
    assert len(setup.sent) == 1


def test_a_waker_that_fails_is_a_failure_of_the_database(store, monkeypatch):
    setup = real_time(store, LEASE)

    class Broken:
        def wait(self, timeout):
            raise RuntimeError("server closed the connection\nunexpectedly")

        def close(self):
            raise RuntimeError("closed already")

    right = store.waker
    wakers = iter([Broken()])
    monkeypatch.setattr(store, "waker", lambda: next(wakers, None) or right())
    with Running(setup):
        until(lambda: setup.counters.store_failures)
        setup.put(message())
        until(lambda: not setup.rows)
    [reason] = [event.reason for event in setup.events if isinstance(event, StoreDown)]
    assert reason.endswith("outbox.sqlite3: server closed the connection unexpectedly")


def test_a_relay_whose_messenger_does_not_return_is_stuck(store):
    setup = Setup(store)
    setup.put(message())
    seen = []

    def answer(_):
        for _ in range(2):
            seen.append(setup.relay.is_stuck)
            setup.clock.advance(PATIENCE * LEASE + 1)
        seen.append(setup.relay.is_stuck)
        return Retry("no", Scope.MESSAGE)

    setup.messenger.answer = answer
    setup.relay.step()
    assert seen == [False, True, True]
    setup.relay.step()
    assert not setup.relay.is_stuck
