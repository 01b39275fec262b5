# SPDX-License-Identifier: GPL-2.0-or-later
"""The check for lost consumers: its questions, answers that no RabbitMQ gives, and its judgement.

tests/integration/test_connection.py has the check against a broker.
"""

from types import SimpleNamespace

import pika.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, error, task

from consumer_framework.adapters.amqp.presence import (
    AGREEING_SAMPLES,
    ANSWER_TIMEOUT,
    AbsenceDetector,
    PresenceCheck,
    QueueSample,
)
from consumer_framework.testing import FakeClock

INTERVAL = 10.0


class Channel:
    """A channel whose answers a test decides."""

    def __init__(self):
        self.asked = []
        self._waiting = []

    def queue_declare(self, queue, *, passive):
        assert passive, "looking changes nothing"
        self.asked.append(queue)
        self._waiting.append(defer.Deferred())
        return self._waiting[-1]

    def answer(self, consumers=1, ready=0):
        counts = SimpleNamespace(consumer_count=consumers, message_count=ready)
        self._waiting.pop(0).callback(SimpleNamespace(method=counts))

    def refuse(self, error):
        self._waiting.pop(0).errback(error)


class Client:
    def __init__(self):
        self.channels = []
        self.is_blocked = False
        self.is_aborted = False
        self.refusal = None
        self.arrived = 0

    def channel(self):
        if self.refusal is not None:
            return defer.fail(self.refusal)
        self.channels.append(Channel())
        return defer.succeed(self.channels[-1])

    def abort(self):
        self.is_aborted = True


class Session:
    """The part of a session that is looked at."""

    def __init__(self):
        self.client = Client()
        self.subscriptions = (subscription("a"), subscription("b"))
        self.is_complete = True
        self.is_paused = False
        self.room = True
        self.takes_turns = True

    def has_room(self, _subscription):
        return self.room

    def is_single_active(self, _subscription):
        return not self.takes_turns


def subscription(queue):
    return SimpleNamespace(queue=queue, consumer_tag=f"tag of {queue}", latest_tag=0)


def closed(code):
    return pika.exceptions.ChannelClosedByBroker(code, "for a test")


@pytest.fixture
def session():
    return Session()


@pytest.fixture
def reactor():
    return task.Clock()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def check(session, reactor, clock):
    made = PresenceCheck(session, reactor, clock.monotonic, INTERVAL)
    yield made
    made.stop()
    assert not reactor.getDelayedCalls()


def lag_of(check):
    return sum(sample.ready for sample in check.samples.values()) if check.samples else None


def look(check, session, **answer):
    check.ask()
    for _ in session.subscriptions:
        session.client.channels[-1].answer(**answer)


def test_every_queue_is_looked_at_on_one_channel(check, session):
    look(check, session)
    look(check, session)
    (channel,) = session.client.channels
    assert channel.asked == ["a", "b", "a", "b"]
    assert check.absent == ""


def test_the_queue_that_lost_its_consumer_is_named_at_the_second_look(check, session):
    look(check, session)
    for expected in ("", 'the broker no longer has the consumer of queue "b"'):
        check.ask()
        session.client.channels[-1].answer(consumers=1)
        session.client.channels[-1].answer(consumers=0)
        assert check.absent == expected


def test_a_queue_that_is_gone_has_no_consumer(check, session):
    look(check, session)
    for _ in range(2):
        check.ask()
        session.client.channels[-1].refuse(closed(404))
        session.client.channels[-1].answer()
    assert 'queue "a"' in check.absent
    assert len(session.client.channels) == 3, "an answer of this kind takes the channel with it"


def test_one_look_at_a_time(check, session):
    check.ask()
    check.ask()
    assert session.client.channels[0].asked == ["a"]


@pytest.mark.parametrize("code", [403, 405])
def test_a_broker_that_does_not_say_is_believed_and_not_asked_again(
    check, session, clock, caplog, code
):
    caplog.set_level("INFO")
    check.ask()
    session.client.channels[-1].refuse(closed(code))
    session.client.channels[-1].answer()
    for _ in range(3):
        clock.advance(1000)
        check.ask()
        assert session.client.channels[-1].asked[-1] == "b"
        session.client.channels[-1].answer()
    assert check.absent == ""
    assert check.confirm_by > clock.monotonic()
    (line,) = caplog.messages
    assert 'does not say whether queue "a" still has its consumer' in line
    session.client = Client()
    check.ask()
    assert session.client.channels[-1].asked == ["b"], "nor on another connection"


def test_a_broker_that_has_no_channel_left_is_believed(check, session, clock, caplog):
    caplog.set_level("INFO")
    session.client.refusal = pika.exceptions.NoFreeChannels()
    clock.advance(1000)
    check.ask()
    check.ask()
    assert check.confirm_by > clock.monotonic()
    assert len(caplog.messages) == 2, "once for each queue"
    assert "channel_max" in caplog.text


def test_a_broker_that_does_not_answer_is_left(check, session, reactor, caplog):
    check.ask()
    reactor.advance(ANSWER_TIMEOUT)
    assert session.client.is_aborted
    assert "did not answer within 60 s" in caplog.text
    assert check.absent == ""


def test_a_broker_that_has_an_alarm_is_not(check, session, reactor, clock):
    check.ask()
    session.client.is_blocked = True
    reactor.advance(ANSWER_TIMEOUT)
    clock.advance(1000)
    assert not session.client.is_aborted
    check.ask()
    assert session.client.channels[-1].asked == ["a"], "and it is not asked until that is over"
    assert check.confirm_by > clock.monotonic()
    session.client.is_blocked = False
    check.ask()
    assert len(session.client.channels) == 2, "on a channel that waits for no former answer"


def test_consumers_are_unconfirmed_after_a_long_time_without_an_answer(check, session, clock):
    look(check, session)
    clock.advance(ANSWER_TIMEOUT + 3 * INTERVAL)
    assert check.confirm_by == clock.monotonic()
    look(check, session)
    assert check.confirm_by > clock.monotonic()


def test_where_nothing_consumes_nothing_is_asked(check, session, clock):
    clock.advance(1000)
    session.is_complete = False
    check.ask()
    assert not session.client.channels
    assert check.confirm_by > clock.monotonic()
    clock.advance(1000)
    session.client = None
    check.ask()
    assert check.confirm_by > clock.monotonic()


@pytest.mark.parametrize("failure", [error.ConnectionLost(), ConnectionError("a defect")])
def test_a_failed_question_is_no_confirmation(check, session, clock, caplog, failure):
    by = check.confirm_by
    clock.advance(5)
    check.ask()
    session.client.channels[-1].refuse(failure)
    assert check.confirm_by == by
    assert ("looking at the queues failed" in caplog.text) == isinstance(failure, ConnectionError)
    assert not session.client.is_aborted


def test_another_connection_has_other_consumers(check, session):
    look(check, session)
    look(check, session, consumers=0)
    check.ask()
    former, session.client = session.client, Client()
    session.subscriptions = (subscription("a"),)
    session.subscriptions[0].consumer_tag = "another"
    check.ask()
    assert session.client.channels[-1].asked == ["a"], "whatever the former one still owes"
    for _ in range(3):
        session.client.channels[-1].answer(consumers=0)
        check.ask()
    assert check.absent == "", "this one was never counted"
    assert not former.is_aborted


def test_a_consumer_that_ended_while_its_queue_was_looked_at_is_not_missed(check, session):
    look(check, session)
    for _ in range(3):
        check.ask()
        session.subscriptions[0].consumer_tag = ""
        session.client.channels[-1].answer(consumers=0)
        session.client.channels[-1].answer()
        session.subscriptions[0].consumer_tag = "tag of a"
    assert check.absent == ""


def test_a_consumer_among_others_is_missed_where_it_gets_no_deliveries(check, session):
    shared = {"consumers": 2, "ready": 9}
    look(check, session, **shared)
    session.subscriptions[0].latest_tag = 5
    for _ in range(3):
        assert check.absent == ""
        look(check, session, **shared)
    assert 'queue "a"' in check.absent


@pytest.mark.parametrize("why", ["room", "takes_turns"])
def test_a_consumer_that_gets_nothing_for_a_reason_is_not_missed(check, session, why):
    setattr(session, why, False)
    shared = {"consumers": 2, "ready": 9}
    look(check, session, **shared)
    session.subscriptions[0].latest_tag = 5
    for _ in range(5):
        look(check, session, **shared)
    assert check.absent == ""


def test_the_lag_is_the_sum_of_ready_messages_of_all_queues(check, session):
    assert lag_of(check) is None
    look(check, session, ready=20)
    assert lag_of(check) == 40
    look(check, session, ready=0)
    assert lag_of(check) == 0


def test_during_a_pause_the_queues_are_counted_and_no_consumer_is_missed(check, session):
    look(check, session, ready=0)
    session.is_complete, session.is_paused = False, True
    for one in session.subscriptions:
        one.consumer_tag = ""
    for _ in range(AGREEING_SAMPLES + 1):
        look(check, session, consumers=0, ready=20)
    assert lag_of(check) == 40
    assert check.samples["a"].ready == 20
    assert check.absent == ""


@pytest.mark.parametrize("what", ["another connection", "a lost consumer"])
def test_the_lag_is_not_known_any_more_where_nothing_is_asked(check, session, what):
    look(check, session, ready=20)
    if what == "a lost consumer":
        session.is_complete = False
    else:
        session.client = Client()
    check.ask()
    assert lag_of(check) is None


def test_an_answer_behind_a_large_message_is_waited_for(check, session, reactor, clock):
    check.ask()
    for _ in range(3):
        session.client.arrived += 100_000
        clock.advance(ANSWER_TIMEOUT)
        reactor.advance(ANSWER_TIMEOUT)
        assert not session.client.is_aborted
        assert check.confirm_by > clock.monotonic(), "and the watchdog waits, too"
    session.client.arrived += 16
    reactor.advance(ANSWER_TIMEOUT)
    assert session.client.is_aborted, "heartbeats alone are no answer"


def test_an_answer_that_messages_always_come_before_has_an_end(check, session, reactor):
    check.ask()
    for _ in range(40):
        session.client.arrived += 100_000
        reactor.advance(ANSWER_TIMEOUT)
    assert session.client.is_aborted


# The judgement.


def absent(*samples, gets_share=True):
    detector = AbsenceDetector(gets_share=gets_share)
    for sample in samples:
        detector.add(sample)
    return detector.is_absent


def test_a_consumer_that_was_counted_and_is_no_longer_is_absent_at_the_second_look():
    assert not absent(QueueSample(1), QueueSample(0))
    assert absent(QueueSample(1), QueueSample(0), QueueSample(0))


def test_two_looks_that_do_not_agree_prove_nothing():
    assert not absent(QueueSample(1), QueueSample(0), QueueSample(1), QueueSample(0))


def test_a_consumer_that_is_back_is_not_absent():
    assert not absent(QueueSample(1), QueueSample(0), QueueSample(0), QueueSample(1))


def test_a_queue_that_never_counted_a_consumer_proves_no_absence():
    stream = QueueSample(0, ready=100)
    assert not absent(*[stream] * 5)
    moving = [QueueSample(0, ready=100, delivered=n) for n in (0, 3, 9, 9, 9, 9)]
    assert not absent(*moving)


def shared(delivered):
    """A look at a queue that others consume from too, in which messages wait."""
    return QueueSample(3, ready=40, delivered=delivered)


def test_a_consumer_that_gets_no_waiting_message_is_absent_though_others_are_counted():
    began, worked = shared(0), shared(7)
    assert not absent(began, worked, worked)
    assert absent(began, worked, worked, worked)


@pytest.mark.parametrize(
    "sample",
    [
        QueueSample(3, ready=0, delivered=7),
        QueueSample(3, ready=40, delivered=7, has_room=False),
    ],
    ids=["nothing waited", "it could take none"],
)
def test_a_consumer_that_is_passed_over_for_a_reason_is_present(sample):
    began, worked = shared(0), shared(7)
    assert not absent(began, worked, sample, worked, sample, worked, sample, sample)


def test_a_consumer_that_never_got_a_delivery_may_wait_for_its_turn():
    idle = shared(5)
    assert not absent(*[idle] * 9)


def test_one_of_a_queue_with_a_single_active_consumer_may_be_passed_over():
    began, worked = shared(0), shared(7)
    assert not absent(began, worked, worked, worked, worked, gets_share=False)
    assert absent(began, QueueSample(0), QueueSample(0), gets_share=False)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=30))
def test_a_consumer_that_gets_something_between_any_two_looks_is_there(looks):
    samples = [
        QueueSample(consumers, ready, delivered, has_room)
        for delivered, (consumers, ready, has_room) in enumerate(looks)
    ]
    assert not absent(*samples)
