# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of the broker, and answers that no RabbitMQ gives; the rest is tested with one."""

from types import SimpleNamespace

import pika.exceptions
import pytest
from twisted.internet import defer, error, task

from consumer_framework.adapters.amqp.presence import ANSWER_TIMEOUT, Confirmation
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
    """What of a session is looked at."""

    def __init__(self):
        self.client = Client()
        self.subscriptions = (subscription("a"), subscription("b"))
        self.is_complete = True
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
def confirmation(session, reactor, clock):
    made = Confirmation(session, reactor, clock.monotonic, INTERVAL)
    yield made
    made.stop()
    assert not reactor.getDelayedCalls()


def look(confirmation, session, **answer):
    confirmation.ask()
    for _ in session.subscriptions:
        session.client.channels[-1].answer(**answer)


def test_every_queue_is_looked_at_on_one_channel(confirmation, session):
    look(confirmation, session)
    look(confirmation, session)
    (channel,) = session.client.channels
    assert channel.asked == ["a", "b", "a", "b"]
    assert confirmation.absent == ""


def test_the_queue_that_lost_its_consumer_is_named_at_the_second_look(confirmation, session):
    look(confirmation, session)
    for expected in ("", 'the broker no longer has the consumer of queue "b"'):
        confirmation.ask()
        session.client.channels[-1].answer(consumers=1)
        session.client.channels[-1].answer(consumers=0)
        assert confirmation.absent == expected


def test_a_queue_that_is_gone_has_no_consumer(confirmation, session):
    look(confirmation, session)
    for _ in range(2):
        confirmation.ask()
        session.client.channels[-1].refuse(closed(404))
        session.client.channels[-1].answer()
    assert 'queue "a"' in confirmation.absent
    assert len(session.client.channels) == 3, "an answer of this kind takes the channel with it"


def test_one_look_at_a_time(confirmation, session):
    confirmation.ask()
    confirmation.ask()
    assert session.client.channels[0].asked == ["a"]


@pytest.mark.parametrize("code", [403, 405])
def test_a_broker_that_does_not_say_is_believed_and_not_asked_again(
    confirmation, session, clock, caplog, code
):
    caplog.set_level("INFO")
    confirmation.ask()
    session.client.channels[-1].refuse(closed(code))
    session.client.channels[-1].answer()
    for _ in range(3):
        clock.advance(1000)
        confirmation.ask()
        assert session.client.channels[-1].asked[-1] == "b"
        session.client.channels[-1].answer()
    assert confirmation.absent == ""
    assert confirmation.confirm_by > clock.monotonic()
    (line,) = caplog.messages
    assert 'does not say whether queue "a" still has its consumer' in line
    session.client = Client()
    confirmation.ask()
    assert session.client.channels[-1].asked == ["b"], "nor on another connection"


def test_a_broker_that_has_no_channel_left_is_believed(confirmation, session, clock, caplog):
    caplog.set_level("INFO")
    session.client.refusal = pika.exceptions.NoFreeChannels()
    clock.advance(1000)
    confirmation.ask()
    confirmation.ask()
    assert confirmation.confirm_by > clock.monotonic()
    assert len(caplog.messages) == 2, "once for each queue"
    assert "channel_max" in caplog.text


def test_a_broker_that_does_not_answer_is_left(confirmation, session, reactor, caplog):
    confirmation.ask()
    reactor.advance(ANSWER_TIMEOUT)
    assert session.client.is_aborted
    assert "did not answer within 60 s" in caplog.text
    assert confirmation.absent == ""


def test_a_broker_that_has_an_alarm_is_not(confirmation, session, reactor, clock):
    confirmation.ask()
    session.client.is_blocked = True
    reactor.advance(ANSWER_TIMEOUT)
    clock.advance(1000)
    assert not session.client.is_aborted
    confirmation.ask()
    assert session.client.channels[-1].asked == ["a"], "and it is not asked until that is over"
    assert confirmation.confirm_by > clock.monotonic()
    session.client.is_blocked = False
    confirmation.ask()
    assert len(session.client.channels) == 2, "on a channel that waits for no former answer"


def test_what_no_answer_confirmed_for_long_is_not_confirmed(confirmation, session, clock):
    look(confirmation, session)
    clock.advance(ANSWER_TIMEOUT + 3 * INTERVAL)
    assert confirmation.confirm_by == clock.monotonic()
    look(confirmation, session)
    assert confirmation.confirm_by > clock.monotonic()


def test_where_nothing_consumes_nothing_is_asked(confirmation, session, clock):
    clock.advance(1000)
    session.is_complete = False
    confirmation.ask()
    assert not session.client.channels
    assert confirmation.confirm_by > clock.monotonic()
    clock.advance(1000)
    session.client = None
    confirmation.ask()
    assert confirmation.confirm_by > clock.monotonic()


@pytest.mark.parametrize("failure", [error.ConnectionLost(), ConnectionError("a defect")])
def test_what_goes_wrong_is_no_confirmation(confirmation, session, clock, caplog, failure):
    by = confirmation.confirm_by
    clock.advance(5)
    confirmation.ask()
    session.client.channels[-1].refuse(failure)
    assert confirmation.confirm_by == by
    assert ("looking at the queues failed" in caplog.text) == isinstance(failure, ConnectionError)
    assert not session.client.is_aborted


def test_another_connection_has_other_consumers(confirmation, session):
    look(confirmation, session)
    look(confirmation, session, consumers=0)
    confirmation.ask()
    former, session.client = session.client, Client()
    session.subscriptions = (subscription("a"),)
    session.subscriptions[0].consumer_tag = "another"
    confirmation.ask()
    assert session.client.channels[-1].asked == ["a"], "whatever the former one still owes"
    for _ in range(3):
        session.client.channels[-1].answer(consumers=0)
        confirmation.ask()
    assert confirmation.absent == "", "this one was never counted"
    assert not former.is_aborted


def test_a_consumer_that_ended_while_its_queue_was_looked_at_is_not_missed(confirmation, session):
    look(confirmation, session)
    for _ in range(3):
        confirmation.ask()
        session.subscriptions[0].consumer_tag = ""
        session.client.channels[-1].answer(consumers=0)
        session.client.channels[-1].answer()
        session.subscriptions[0].consumer_tag = "tag of a"
    assert confirmation.absent == ""


def test_a_consumer_that_others_hide_is_missed_by_what_it_does_not_get(confirmation, session):
    shared = {"consumers": 2, "ready": 9}
    look(confirmation, session, **shared)
    session.subscriptions[0].latest_tag = 5
    for _ in range(3):
        assert confirmation.absent == ""
        look(confirmation, session, **shared)
    assert 'queue "a"' in confirmation.absent


@pytest.mark.parametrize("why", ["room", "takes_turns"])
def test_a_consumer_that_gets_nothing_for_a_reason_is_not_missed(confirmation, session, why):
    setattr(session, why, False)
    shared = {"consumers": 2, "ready": 9}
    look(confirmation, session, **shared)
    session.subscriptions[0].latest_tag = 5
    for _ in range(5):
        look(confirmation, session, **shared)
    assert confirmation.absent == ""


def test_the_lag_is_what_was_ready_in_all_queues(confirmation, session):
    assert confirmation.lag is None
    look(confirmation, session, ready=20)
    assert confirmation.lag == 40
    look(confirmation, session, ready=0)
    assert confirmation.lag == 0


@pytest.mark.parametrize("what", ["another connection", "a pause"])
def test_the_lag_is_not_known_any_more_where_nothing_is_asked(confirmation, session, what):
    look(confirmation, session, ready=20)
    if what == "a pause":
        session.is_complete = False
    else:
        session.client = Client()
    confirmation.ask()
    assert confirmation.lag is None


def test_an_answer_behind_a_large_message_is_waited_for(confirmation, session, reactor, clock):
    confirmation.ask()
    for _ in range(3):
        session.client.arrived += 100_000
        clock.advance(ANSWER_TIMEOUT)
        reactor.advance(ANSWER_TIMEOUT)
        assert not session.client.is_aborted
        assert confirmation.confirm_by > clock.monotonic(), "and the watchdog waits, too"
    session.client.arrived += 16
    reactor.advance(ANSWER_TIMEOUT)
    assert session.client.is_aborted, "heartbeats alone are no answer"


def test_an_answer_that_messages_always_come_before_has_an_end(confirmation, session, reactor):
    confirmation.ask()
    for _ in range(40):
        session.client.arrived += 100_000
        reactor.advance(ANSWER_TIMEOUT)
    assert session.client.is_aborted
