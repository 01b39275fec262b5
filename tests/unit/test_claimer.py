# SPDX-License-Identifier: GPL-2.0-or-later
"""The claims of a relay, and those that it makes while it sends."""

import threading

import pytest

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.publishing.claimer import NOTHING, Claimer
from consumer_framework.publishing.claims import SMALL_BODY
from consumer_framework.publishing.messengers import Retry, Scope, Sent
from consumer_framework.publishing.store import OutboxError, OutboxStore
from consumer_framework.testing.fakes import FakeClock
from tests.unit.outboxes import LEASE, NOW, Setup, message, spooled


@pytest.fixture
def store(tmp_path):
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/outbox.sqlite3")
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def clock():
    return FakeClock(NOW)


@pytest.fixture
def claimer(store, clock):
    return Claimer(store, "me", LEASE, clock)


def put(store, count, key=""):
    messages = [message(key) for _ in range(count)]
    store.put(spooled(*messages))
    return messages


def of(claim):
    return [one.message for one in claim.rows]


def free(store):
    """Return the messages that another relay could claim now."""
    return [row.message for row in store.rows() if row.claimed_until is None]


def test_the_claim_made_ahead_has_the_rows_after_the_present_ones(store, claimer):
    messages = put(store, 5)
    assert of(claimer.next(2)) == messages[:2]
    claimer.look_ahead(2)
    ahead = claimer.next(2)
    assert of(ahead) == messages[2:4]
    assert claimer.held == ahead
    assert free(store) == messages[4:]


def test_a_claim_that_found_nothing_ahead_is_made_again(store, claimer):
    put(store, 1)
    claimer.next(5)
    claimer.look_ahead(5)
    assert claimer.next(5) == (claimer.held.token, claimer.held.since, [])
    [late] = put(store, 1)
    assert of(claimer.next(5)) == [late]


def test_rows_with_ordering_keys_are_settled_before_the_next_claim(store, claimer):
    first, second = put(store, 2, key="k")
    assert of(claimer.next(1)) == [first]
    claimer.look_ahead(1)
    assert free(store) == [second]
    store.settle(claimer.held.token, sent=claimer.held.ids)
    assert of(claimer.next(1)) == [second]


def test_a_claim_made_ahead_is_given_back(store, claimer):
    messages = put(store, 3)
    claimer.next(1)
    claimer.look_ahead(2)
    claimer.give_back()
    claimer.give_back()
    assert free(store) == messages[1:]


def test_a_claim_made_ahead_is_of_no_use_if_fewer_rows_are_to_be_sent(store, claimer):
    messages = put(store, 6)
    claimer.next(2)
    claimer.look_ahead(4)
    assert of(claimer.next(1)) == messages[2:3]
    assert free(store) == messages[3:]


def test_a_claim_made_ahead_is_used_although_the_relay_became_a_little_slower(store, claimer):
    messages = put(store, 18)
    claimer.next(2)
    claimer.look_ahead(12)
    assert of(claimer.next(10)) == messages[2:14]


def test_a_claim_made_ahead_long_ago_is_made_again(store, claimer, clock):
    messages = put(store, 3)
    claimer.next(1)
    claimer.look_ahead(1)
    clock.advance(LEASE / 2)
    claim = claimer.next(1)
    assert of(claim) == messages[1:2]
    assert claim.since == (clock.monotonic(), clock.time())


def test_a_claim_made_before_the_machine_was_suspended_is_made_again(store, claimer, clock):
    messages = put(store, 3)
    claimer.next(1)
    claimer.look_ahead(1)
    # The monotonic clock stands still meanwhile.
    clock.set_time(NOW + LEASE / 2)
    claim = claimer.next(1)
    assert of(claim) == messages[1:2]
    assert claim.since.time == NOW + LEASE / 2


def test_a_database_that_fails_ahead_is_asked_again(store, claimer, monkeypatch):
    messages = put(store, 2)
    claimer.next(1)

    def claim(*_):
        raise OutboxError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "claim", claim)
        claimer.look_ahead(1)
        with pytest.raises(OutboxError, match="full"):
            claimer.next(1)
    assert of(claimer.next(1)) == messages[1:]


def test_a_process_that_may_have_no_more_threads_claims_later(store, claimer, monkeypatch):
    messages = put(store, 2)
    claimer.next(1)

    def start(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        claimer.look_ahead(1)
    assert free(store) == messages[1:]
    assert of(claimer.next(1)) == messages[1:]


def test_nothing_is_held_at_first(claimer):
    assert claimer.held == NOTHING
    claimer.give_back()


def run_until(setup, count):
    """Run the relay until it was asked to send *count* messages."""
    stop, right, asked = threading.Event(), setup.messenger.answer, []

    def answer(one):
        asked.append(one)
        if len(asked) == count:
            stop.set()
        return right(one)

    setup.messenger.answer = answer
    setup.relay.run(stop)


def test_a_relay_claims_the_next_rows_while_it_sends(store):
    setup = Setup(store, window=3)
    messages = put(store, 9)
    seen = threading.Event()

    def answer(one):
        if one == messages[0]:
            while any(message in free(store) for message in messages[3:6]):
                assert not seen.wait(0.01)
        return Sent(routed=True)

    setup.messenger.answer = answer
    run_until(setup, 9)
    assert setup.messenger.sent == messages
    assert setup.rows == []


def test_a_relay_that_stops_gives_back_what_it_claimed_ahead(store):
    setup = Setup(store, window=3)
    messages = put(store, 30)
    run_until(setup, 3)
    assert setup.messenger.sent == messages[:3]
    assert free(store) == messages[3:]


def test_a_relay_that_cannot_settle_gives_back_what_it_claimed_ahead(store, monkeypatch):
    setup = Setup(store, window=3)
    messages = put(store, 9)
    settle = store.settle
    fails: list[str] = []

    def fail(token, **rows):
        if rows.get("sent"):
            while not fails and any(message in free(store) for message in messages[3:6]):
                threading.Event().wait(0.01)
            fails.append(token)
            raise OutboxError("the database is away")
        return settle(token, **rows)

    monkeypatch.setattr(store, "settle", fail)
    run_until(setup, 3)
    assert free(store) == messages[3:]


def at_the_next_connection(setup, look):
    """Let the endpoint fail amid the first batch; return the result of *look* when it is back."""
    stop, found = threading.Event(), []

    def fail(_):
        setup.messenger.opening = back
        return Retry("away", Scope.ENDPOINT)

    def back():
        found.append(look())
        stop.set()

    setup.messenger.answer = fail
    setup.relay.run(stop)
    return found[0]


def test_a_relay_whose_endpoint_fails_gives_back_what_it_claimed_ahead(store):
    setup = Setup(store, clock=SystemClock(), window=3)
    messages = put(store, 9)
    assert at_the_next_connection(setup, lambda: free(store)) == messages


def test_messages_that_are_not_to_wait_are_discarded_although_they_were_claimed_ahead(store):
    setup = Setup(store, clock=SystemClock(), window=3)
    store.put(spooled(*(message() for _ in range(9)), on_failure="skip"))
    assert at_the_next_connection(setup, store.rows) == []


def test_large_bodies_are_claimed_with_small_ones_in_order(store, claimer):
    bodies = [b"1", b'"%s"' % (b"x" * SMALL_BODY), b"2", b'"%s"' % (b"y" * SMALL_BODY * 9)]
    store.put(spooled(*(message(body=body) for body in bodies)))
    assert [one.body for one in of(claimer.next(10))] == bodies
