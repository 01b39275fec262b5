# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay: order, the fates of messages, pauses, delays and the lease."""

import logging
import threading
import time

import pytest

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.publishing.events import (
    Buried,
    ClaimsLost,
    EndpointDown,
    EndpointUp,
    LeaseChanged,
    Postponed,
    Published,
    RelayCounters,
    RelayLog,
    Skipped,
    StoreDown,
    TopicPaused,
)
from consumer_framework.publishing.messengers import Feature, Reject, Retry, Scope, Sent
from consumer_framework.publishing.messengers.dummy import Capture
from consumer_framework.publishing.policy import Policy, Unroutable
from consumer_framework.publishing.relay import Relay, Step
from consumer_framework.publishing.store import OutboxError, OutboxStore
from consumer_framework.settings import OutboxRule
from consumer_framework.testing.fakes import FakeClock
from tests.unit.outboxes import LEASE, NOW, Setup, message, spooled


@pytest.fixture
def store(tmp_path):
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/outbox.sqlite3")
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def setup(store):
    return Setup(store)


def ids(*messages):
    return [one.id for one in messages]


def test_an_empty_outbox_is_idle_and_the_endpoint_is_open(setup):
    assert setup.relay.step() is Step.IDLE
    assert setup.messenger.is_open
    assert setup.relay.is_sending
    assert setup.events == [LeaseChanged(True), EndpointUp()]


def test_messages_are_sent_in_order_and_their_rows_deleted(setup):
    messages = [message() for _ in range(5)]
    setup.put(*messages)
    assert setup.relay.step() is Step.SENT
    assert setup.sent == ids(*messages)
    assert setup.rows == []
    assert setup.counters.sent == 5
    assert setup.store.stats().counts == {"sent": 5}
    assert setup.events[-1] == Published(messages[-1], routed=True)


def test_the_capture_messenger_shows_what_was_sent(store):
    capture = Capture()
    relay = Relay(
        store, capture, Policy(), clock=FakeClock(NOW), observer=RelayCounters(), window=2
    )
    messages = [message() for _ in range(5)]
    store.put(spooled(*messages))
    while relay.step() is Step.SENT:
        pass
    assert capture.sent == messages
    relay.close()


def test_a_window_is_sent_at_once(store):
    setup = Setup(store, window=3)
    setup.put(*(message() for _ in range(7)))
    setup.steps()
    assert [len(batch) for batch in setup.messenger.batches] == [3, 3, 1]


def test_each_ordering_key_is_once_in_a_wave_and_rows_without_one_are_in_the_first(setup):
    a1, n1, b1, a2, n2, a3, b2 = (message(key) for key in ("a", "", "b", "a", "", "a", "b"))
    setup.put(a1, n1, b1, a2, n2, a3, b2)
    setup.steps()
    assert setup.messenger.batches == [ids(a1, n1, b1, n2), ids(a2, b2), ids(a3)]


def test_a_row_that_fails_blocks_its_key_and_no_other(setup):
    a1, b1, a2, b2 = (message(key) for key in "abab")
    setup.put(a1, b1, a2, b2)
    setup.messenger.answer = lambda one: (
        Retry("no", Scope.MESSAGE) if one == a1 else Sent(routed=True)
    )
    setup.steps()
    assert setup.sent == ids(b1, b2)
    assert [row.message for row in setup.rows] == [a1, a2]
    setup.messenger.answer = lambda _: Sent(routed=True)
    setup.later(0.5)
    assert setup.sent == ids(b1, b2)
    setup.later(0.5)
    assert setup.sent == ids(b1, b2, a1, a2)


def test_a_message_that_fails_alone_is_tried_again_and_again_with_longer_delays(setup):
    one = message()
    setup.put(one)
    setup.messenger.answer = lambda _: Retry("no", Scope.MESSAGE)
    dues = []
    for _ in range(12):
        setup.steps()
        [row] = setup.rows
        dues.append(row.due - setup.clock.time())
        setup.clock.advance(dues[-1])
    assert dues == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert setup.events[-1] == Postponed(one, "no", 12, row.due)
    assert (row.attempts, row.reason) == (12, "no")


def test_a_rejected_message_is_dead_and_does_not_block_its_key(setup):
    bad, good = message("k"), message("k")
    setup.put(bad, good)
    setup.messenger.answer = lambda one: Reject("too odd") if one == bad else Sent(routed=True)
    setup.steps()
    assert setup.sent == ids(good)
    [row] = setup.store.rows("dead")
    assert (row.message, row.reason) == (bad, "too odd")
    assert Buried(bad, "too odd") in setup.events


def test_a_message_that_the_messenger_would_change_is_dead(setup):
    setup.messenger.features = frozenset(Feature) - {Feature.SEVERITY}
    debug = message(headers={"fedora_messaging_severity": 10})
    setup.put(debug, message())
    setup.steps()
    assert len(setup.sent) == 1
    assert "severity is not INFO" in setup.store.rows("dead")[0].reason


def test_a_message_that_the_messenger_would_change_is_sent_if_that_is_allowed(store):
    setup = Setup(store, lossy=True)
    setup.messenger.features = frozenset()
    setup.put(message(headers={"fedora_messaging_severity": 10}))
    setup.steps()
    assert len(setup.sent) == 1


def test_an_unroutable_message_counts_as_sent(setup):
    setup.put(message())
    setup.messenger.answer = lambda _: Sent(routed=False)
    setup.steps()
    assert setup.rows == []
    assert (setup.counters.sent, setup.counters.unroutable) == (1, 1)
    assert setup.store.stats().counts == {"sent": 1, "unroutable": 1}


def test_an_unroutable_message_is_dead_or_tried_again_where_a_rule_says_so(store):
    rules = (
        OutboxRule(topics="dead.#", unroutable=Unroutable.DEAD),
        OutboxRule(topics="retry.#", unroutable=Unroutable.RETRY),
    )
    setup = Setup(store, Policy(rules=rules))
    setup.put(message(topic="dead.x"), message(topic="retry.x"), message(topic="x"))
    setup.messenger.answer = lambda _: Sent(routed=False)
    setup.steps()
    assert [(row.message.topic, row.state) for row in setup.rows] == [
        ("dead.x", "dead"),
        ("retry.x", "waiting"),
    ]
    assert setup.counters.sent == 1


def test_a_forbidden_topic_is_paused_and_the_others_are_sent(setup):
    forbidden = [message(topic="no"), message("k", topic="no")]
    behind, other = message("k"), message()
    setup.put(*forbidden, behind, other)
    setup.messenger.answer = lambda one: (
        Retry("403", Scope.TOPIC) if one.topic == "no" else Sent(routed=True)
    )
    setup.steps()
    assert setup.sent == ids(other)
    assert setup.relay.paused == {("amq.topic", "no"): NOW + 10}
    assert setup.events.count(TopicPaused("amq.topic", "no", "403", NOW + 10)) == 1
    tried = len(setup.messenger.batches)
    setup.put(message(topic="no"))
    setup.steps()
    assert len(setup.messenger.batches) == tried
    assert [row.attempts for row in setup.rows] == [1, 1, 0, 0]
    setup.later(10)
    assert setup.relay.paused == {("amq.topic", "no"): NOW + 30}
    setup.messenger.answer = lambda _: Sent(routed=True)
    setup.later(20)
    assert setup.rows == []
    assert setup.relay.paused == {}


def test_a_message_behind_one_of_its_key_whose_topic_is_paused_waits_for_it(setup):
    setup.put(message(topic="no"))
    setup.messenger.answer = lambda one: (
        Retry("403", Scope.TOPIC) if one.topic == "no" else Sent(routed=True)
    )
    setup.steps()
    setup.put(message("k", topic="no"), message("k"), other := message())
    setup.steps()
    assert setup.sent == ids(other)


def test_an_endpoint_that_is_away_is_tried_with_longer_delays_and_no_row_changes(setup):
    setup.put(message())
    before = setup.rows
    setup.messenger.refuses = ConnectionRefusedError("nobody there")
    waits = []
    for _ in range(7):
        assert setup.relay.step() is Step.WAITING
        assert setup.relay.step() is Step.WAITING
        waits.append(setup.relay.endpoint_until - setup.clock.time())
        setup.clock.advance(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert setup.rows == before
    assert setup.events[-1] == EndpointDown("nobody there", setup.clock.time())
    assert setup.counters.endpoint_failures == 7
    setup.messenger.refuses = None
    setup.steps()
    assert setup.rows == []


def test_a_batch_whose_endpoint_fails_is_given_back_as_it_was(setup):
    first, rest = message(), [message() for _ in range(3)]
    setup.put(first, *rest)
    before = setup.rows[1:]
    setup.messenger.answer = lambda one: Sent(routed=True) if one == first else Retry("cut")
    setup.relay.step()
    assert setup.rows == before
    assert not setup.messenger.is_open
    setup.messenger.answer = lambda _: Sent(routed=True)
    setup.later(1)
    assert setup.sent == ids(first, *rest)


def test_later_waves_are_not_sent_after_the_endpoint_failed(setup):
    messages = [message("k"), message("k")]
    setup.put(*messages, message())
    setup.messenger.answer = lambda _: Retry("cut")
    setup.relay.step()
    assert len(setup.messenger.batches) == 1
    assert all(row.attempts == 0 and row.claimed_until is None for row in setup.rows)


def test_a_row_that_breaks_its_endpoint_lets_the_others_pass(setup):
    before, poison, after = [message() for _ in range(3)], message("k"), message()
    setup.put(*before, poison, message("k"), after)
    broken = []

    def answer(one):
        if one == poison:
            broken.append(one)
        return Retry("the connection was closed") if broken else Sent(routed=True)

    setup.messenger.answer = answer
    for _ in range(10):
        broken.clear()
        setup.later(1)
    assert set(ids(*before, after)) <= set(setup.sent)
    assert [row.message.ordering_key for row in setup.rows] == ["k", "k"]
    assert setup.rows[0].attempts > 0


@pytest.mark.parametrize("defect", ["raises", "too few"])
def test_a_defect_of_a_messenger_loses_nothing_and_does_not_end_the_relay(setup, defect, caplog):
    setup.put(message(), message())

    def send_many(batch):
        if defect == "raises":
            raise ZeroDivisionError("oops")
        return []

    right, setup.messenger.send_many = setup.messenger.send_many, send_many
    setup.relay.step()
    assert len(setup.rows) == 2
    assert "the messenger failed" in setup.counters.last_error
    setup.messenger.send_many = right
    setup.later(1)
    assert setup.rows == []


def test_a_defect_in_open_is_a_failure_of_the_endpoint(setup):
    setup.messenger.refuses = ZeroDivisionError("oops")
    assert setup.relay.step() is Step.WAITING
    setup.messenger.refuses = None
    setup.clock.advance(1)
    assert setup.relay.step() is Step.IDLE


@pytest.mark.parametrize(
    "result", [Retry("no", Scope.MESSAGE), Retry("no", Scope.TOPIC), Retry("no")]
)
def test_a_message_to_skip_is_discarded_after_one_attempt_and_counted(setup, result):
    skipped, kept = message(), message()
    setup.put(skipped, on_failure="skip")
    setup.put(kept)
    setup.messenger.answer = lambda _: result
    setup.relay.step()
    assert [row.message for row in setup.rows] == [kept]
    assert setup.counters.skipped == 1
    assert setup.store.stats().counts["skipped"] == 1
    assert Skipped(1, "no", skipped) in setup.events


def test_messages_to_skip_are_discarded_while_no_endpoint_answers(setup):
    setup.messenger.refuses = ConnectionRefusedError("nobody there")
    setup.put(message(), message(), on_failure="skip")
    setup.put(message())
    setup.relay.step()
    assert len(setup.rows) == 1
    setup.put(message(), on_failure="skip")
    setup.relay.step()
    assert len(setup.rows) == 1
    assert setup.counters.skipped == 3


def test_a_second_relay_waits_in_reserve_and_takes_over_after_the_lease(store):
    first, second = Setup(store, owner="one"), Setup(store, owner="two")
    first.put(message())
    assert first.relay.step() is Step.SENT
    first.put(message())
    assert second.relay.step() is Step.STANDBY
    assert not second.relay.is_sending
    second.clock.advance(LEASE)
    assert second.relay.step() is Step.SENT
    first.clock.advance(LEASE)
    assert first.relay.step() is Step.STANDBY
    assert first.events[-1] == LeaseChanged(False)


def test_a_relay_that_ends_hands_over_at_once(store):
    first, second = Setup(store), Setup(store)
    first.steps()
    first.relay.close()
    assert not first.messenger.is_open
    second.put(message())
    assert second.relay.step() is Step.SENT


def test_a_relay_that_is_ended_amid_a_batch_gives_back_its_claim(store):
    first, second = Setup(store), Setup(store)
    one = message()
    first.put(one)

    def end(_):
        raise SystemExit

    first.messenger.answer = end
    with pytest.raises(SystemExit):
        first.relay.step()
    first.relay.close()
    second.steps()
    assert second.sent == [one.id]


def test_a_relay_keeps_its_lease_as_long_as_it_works(store):
    setup, other = Setup(store), Setup(store)
    for _ in range(10):
        setup.later(LEASE / 2)
        other.clock.advance(LEASE / 2)
        assert other.relay.step() is Step.STANDBY


def test_relays_without_a_lease_share_the_work(store):
    first, second = Setup(store, leased=False, window=2), Setup(store, leased=False, window=2)
    first.put(*(message() for _ in range(4)))
    assert first.relay.step() is Step.SENT
    assert second.relay.step() is Step.SENT
    assert first.rows == []


def test_a_relay_that_was_stopped_longer_than_its_claim_deletes_nothing_of_others(store):
    setup, other = Setup(store), Setup(store)
    one = message()
    setup.put(one)

    def answer(_):
        # The machine sleeps, and another relay claims the row.
        setup.clock.advance(LEASE + 1)
        assert store.claim("other", 1, LEASE, NOW + LEASE + 1)
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.relay.step()
    assert [row.message for row in other.rows] == [one]
    assert setup.events[-1] == ClaimsLost(1)


def test_a_relay_that_was_stopped_between_claim_and_batch_sends_nothing(setup, monkeypatch):
    one = message()
    setup.put(one)
    right = setup.store.claim

    def claim(*arguments):
        claimed = right(*arguments)
        # The process is stopped here, and goes on later.
        setup.clock.advance(LEASE + 1)
        return claimed

    monkeypatch.setattr(setup.store, "claim", claim)
    setup.relay.step()
    assert setup.sent == []
    monkeypatch.setattr(setup.store, "claim", right)
    setup.steps()
    assert setup.sent == [one.id]


def test_waves_that_come_too_late_for_their_claim_are_given_back(setup):
    messages = [message("k") for _ in range(3)]
    setup.put(*messages)

    def answer(_):
        setup.clock.advance(LEASE * 0.6)
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.relay.step()
    assert setup.sent == ids(messages[0])
    setup.steps()
    assert setup.sent == ids(*messages)


def test_a_relay_on_a_machine_that_was_suspended_gives_back_the_rest_of_its_batch(store):
    setup, other = Setup(store), Setup(store)
    messages = [message("k") for _ in range(3)]
    setup.put(*messages)

    def answer(_):
        # The monotonic clock stands still while the machine sleeps.
        setup.clock.set_time(NOW + LEASE + 1)
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.relay.step()
    assert setup.sent == ids(messages[0])
    other.clock.set_time(NOW + LEASE + 1)
    other.steps()
    assert other.sent == ids(*messages[1:])
    assert setup.relay.step() is Step.STANDBY


def test_a_message_that_was_published_twice_is_sent_twice_also_after_a_relay_died(store):
    first, second = Setup(store), Setup(store)
    one, other = message(), message()
    first.put(one, one, other)

    def die(_):
        raise SystemExit

    first.messenger.answer = die
    with pytest.raises(SystemExit):
        first.relay.step()
    second.clock.advance(LEASE + 1)
    second.steps()
    assert second.sent == ids(one, one, other)
    assert second.rows == []


def test_a_relay_whose_clock_is_set_back_renews_its_lease(store):
    setup, other = Setup(store), Setup(store)
    setup.clock.set_time(NOW + 86400)
    setup.steps()
    setup.clock.set_time(NOW)
    for _ in range(10):
        setup.later(LEASE / 2)
        other.clock.advance(LEASE / 2)
        assert other.relay.step() is Step.STANDBY
    other.clock.advance(LEASE)
    other.put(message())
    assert other.relay.step() is Step.SENT


def test_rows_and_lease_of_a_dead_relay_whose_clock_was_ahead_are_taken_over(store):
    one = message()
    store.put(spooled(one))
    store.lease("dead", LEASE, NOW + 86400)
    store.claim("dead.1", 10, LEASE, NOW + 86400)
    setup = Setup(store)
    setup.steps()
    assert setup.sent == [one.id]


def test_a_pause_does_not_outlast_a_clock_that_is_set_back(setup):
    setup.clock.set_time(NOW + 86400)
    setup.put(message())
    setup.messenger.answer = lambda _: Retry("403", Scope.TOPIC)
    setup.steps()
    assert setup.relay.paused
    setup.clock.set_time(NOW)
    setup.messenger.answer = lambda _: Sent(routed=True)
    setup.later(1)
    assert setup.rows == []


@pytest.mark.parametrize("ends", [False, True])
def test_a_batch_that_was_sent_is_settled_when_the_database_is_back(setup, monkeypatch, ends):
    messages = [message("k") for _ in range(3)]
    setup.put(*messages)
    right, faults = setup.store.settle, [OutboxError("away")] * 3

    def settle(*arguments, **options):
        if faults:
            raise faults.pop()
        return right(*arguments, **options)

    monkeypatch.setattr(setup.store, "settle", settle)
    for _ in range(3):
        with pytest.raises(OutboxError):
            setup.relay.step()
    if ends:
        setup.relay.close()
    else:
        setup.steps()
    assert setup.rows == []
    assert setup.sent == ids(*messages)
    assert setup.counters.sent == 3


def test_a_commit_that_seemed_to_fail_is_not_counted_twice(setup, monkeypatch):
    setup.put(message())
    right, faults = setup.store.settle, [OutboxError("cut")]

    def settle(*arguments, **options):
        settled = right(*arguments, **options)
        if faults:
            raise faults.pop()
        return settled

    monkeypatch.setattr(setup.store, "settle", settle)
    with pytest.raises(OutboxError):
        setup.relay.step()
    setup.steps()
    assert setup.store.stats().counts == {"sent": 1}
    assert len(setup.sent) == 1


def test_rows_that_a_wrong_clock_made_late_are_sent(setup):
    setup.put(message())
    setup.messenger.answer = lambda _: Retry("no", Scope.MESSAGE)
    setup.clock.set_time(NOW + 86400)
    setup.steps()
    setup.clock.set_time(NOW)
    setup.messenger.answer = lambda _: Sent(routed=True)
    setup.steps()
    assert setup.rows == []


def test_the_relay_runs_until_it_is_told_to_stop_and_wakes_for_new_rows(store):
    setup = Setup(store, clock=SystemClock())
    stop = threading.Event()
    thread = threading.Thread(target=setup.relay.run, args=(stop,), daemon=True)
    thread.start()
    for _ in range(3):
        setup.put(message())
        deadline = time.monotonic() + 20
        while setup.rows and time.monotonic() < deadline:
            time.sleep(0.01)
        assert setup.rows == []
    stop.set()
    setup.relay.wake()
    thread.join(10)
    assert not thread.is_alive()
    assert not setup.messenger.is_open


def test_a_database_that_fails_does_not_end_the_relay(store, monkeypatch):
    setup = Setup(store)
    setup.put(message())
    right, calls = store.claim, []

    def claim(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OutboxError("the disk is full")
        return right(*arguments)

    monkeypatch.setattr(store, "claim", claim)
    stop = threading.Event()

    def answer(_):
        stop.set()
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.relay._chance = lambda: 1.0
    setup.relay.run(stop)
    assert StoreDown("the disk is full") in setup.events
    assert setup.rows == []


class Lines(Setup):
    """A setup whose events are lines of the log."""

    def __init__(self, store, caplog):
        super().__init__(store)
        self._log = RelayLog()
        self._caplog = caplog

    def notify(self, event):
        self._log.notify(event)

    def lines(self):
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def lines(store, caplog):
    caplog.set_level(logging.INFO)
    return Lines(store, caplog)


def test_an_unroutable_topic_is_told_once(lines):
    lines.messenger.answer = lambda _: Sent(routed=False)
    lines.put(message(topic="a"), message(topic="a"), message(topic="b"))
    lines.steps()
    told = [line for line in lines.lines() if "No queue is bound" in line]
    assert len(told) == 2


def test_an_endpoint_that_stays_away_is_told_once_and_so_is_its_return(lines):
    lines.messenger.refuses = ConnectionRefusedError("nobody there")
    for _ in range(3):
        lines.later(30)
    lines.messenger.refuses = None
    lines.later(30)
    told = [line for line in lines.lines() if "relay" not in line]
    assert [line.partition(":")[0] for line in told] == ["Cannot send", "Sending again"]


def test_a_message_that_fails_for_ever_is_told(lines):
    lines.messenger.answer = lambda _: Retry("no\nway", Scope.MESSAGE)
    lines.put(message(id="stuck"))
    for _ in range(101):
        lines.later(300)
    told = [line for line in lines.lines() if "stuck" in line]
    assert told == [
        f"Message stuck (app.done) failed {times} times: no\\nway" for times in (10, 100)
    ]


def test_dead_and_skipped_messages_and_pauses_are_told(lines):
    answers = {
        "dead": Reject("odd"),
        "skip": Retry("no", Scope.MESSAGE),
        "no": Retry("403", Scope.TOPIC),
    }
    lines.messenger.answer = lambda one: answers[one.topic]
    lines.put(message(id="d", topic="dead"), message(topic="no"))
    lines.put(message(topic="skip"), on_failure="skip")
    lines.steps()
    told = "\n".join(lines.lines())
    assert "Message d (dead) can never be sent, and is kept for an operator: odd" in told
    assert "Nothing is sent to exchange amq.topic with topic no for" in told
    assert "Discarded 1 messages that are not to wait: no" in told


def test_a_claim_has_as_many_rows_as_are_sent_in_a_second(store):
    setup = Setup(store, window=10)
    setup.messenger.keeps_window = True

    def answer(_):
        setup.clock.advance(1 / 64)
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.put(*(message() for _ in range(10 + 64 + 64)))
    setup.steps()
    assert [len(batch) for batch in setup.messenger.batches] == [10, 64, 64]


def test_a_claim_has_a_thousand_rows_at_most_and_one_after_a_failure(store):
    setup = Setup(store)
    setup.messenger.keeps_window = True
    setup.put(*(message() for _ in range(100 + 800 + 1000 + 300)))
    setup.steps()
    assert [len(batch) for batch in setup.messenger.batches] == [100, 800, 1000, 300]
    setup.put(message(), message())
    setup.messenger.answer = lambda _: Retry("away")
    setup.steps()
    setup.messenger.answer = lambda _: Sent(routed=True)
    setup.later(60)
    assert [len(batch) for batch in setup.messenger.batches[4:]] == [2, 1, 1]


def test_relays_without_a_lease_claim_a_window_at_a_time(store):
    setup = Setup(store, leased=False, window=3)
    setup.messenger.keeps_window = True
    setup.put(*(message() for _ in range(7)))
    setup.steps()
    assert [len(batch) for batch in setup.messenger.batches] == [3, 3, 1]


def test_a_relay_that_is_to_stop_gives_the_rest_of_its_claim_back(setup):
    stop = threading.Event()
    first, *rest = (message("key") for _ in range(3))
    setup.put(first, *rest)

    def answer(_):
        stop.set()
        return Sent(routed=True)

    setup.messenger.answer = answer
    setup.relay.run(stop)
    assert setup.sent == [first.id]
    assert [row.message for row in setup.rows] == rest
    assert {row.claimed_until for row in setup.rows} == {None}
