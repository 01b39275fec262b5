# SPDX-License-Identifier: GPL-2.0-or-later
"""A session on connections whose answers a test decides; tests/integration has it with a broker."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pika.exceptions as pika_errors
import pytest
from twisted.internet import defer, task

from consumer_framework.adapters.amqp import Channels, Session
from consumer_framework.adapters.amqp.session import (
    REFUSAL_TOLERANCE,
    RESUBSCRIBE_DELAY,
    SUBSCRIBE_TIMEOUT,
)
from consumer_framework.adapters.amqp.session_state import SessionState
from consumer_framework.core.errors import ExitCode
from consumer_framework.core.lifecycle import IllegalEventError
from consumer_framework.core.stats import Snapshot
from consumer_framework.settings import Address, Queue
from consumer_framework.settings.changes import BoundKey


class Listener:
    def __init__(self):
        self.events: list[Any] = []
        self.faults: list[Any] = []
        self.deliveries: list[Any] = []

    def connected(self):
        self.events.append("connected")

    def subscribed(self):
        self.events.append("subscribed")

    def interrupted(self, reason):
        self.events.append("interrupted")

    def progressed(self):
        pass

    def lost(self, reason, retry_in):
        self.events.append("lost")

    def blocked(self, reason):
        self.events.append("blocked")

    def voided(self, generation):
        self.events.append(f"voided {generation}")

    def delivered(self, delivery):
        self.deliveries.append(delivery)

    def failed(self, fault):
        self.faults.append(fault)


class Channel:
    """A channel on which consumers are confirmed when a test says so."""

    is_open = True

    def __init__(self, number, *, is_quick):
        self.channel_number = number
        self.on_closed: Any = defer.Deferred()
        self.told: list[Any] = []
        self.unanswered: list[Any] = []
        self._is_quick = is_quick
        self._cancelled: set[str] = set()
        # pika's own channel.
        self._channel = self

    def add_on_cancel_callback(self, callback):
        self.cancel_by_broker = lambda: callback(None)

    def basic_qos(self, **counts):
        return defer.succeed(None)

    def _wrap_channel_method(self, name):
        return self._consume

    def _consume(self, queue, on_message_callback):
        self.told.append("consume")
        self.unanswered.append(defer.Deferred())
        answer = self.unanswered[-1]
        if self._is_quick:
            self.confirm()
        return answer

    def confirm(self):
        tag = SimpleNamespace(consumer_tag=f"tag {len(self.told)}")
        self.unanswered.pop(0).callback(SimpleNamespace(method=tag))

    def refuse(self, code, text):
        self.unanswered.pop(0).errback(pika_errors.ChannelClosedByBroker(code, text))

    def basic_cancel(self, tag):
        self.told.append("cancel")
        return defer.succeed(None)

    def basic_nack(self, tag, *, multiple=False, requeue=True):
        self.told.append(("nack", tag))

    def close(self):
        self.told.append("close")


class Client:
    """A connection whose broker does as it is told, or confirms consumers when a test says so."""

    def __init__(self, *, is_quick=True):
        self.frames = SimpleNamespace(receivers={})
        self.channels: list[Channel] = []
        self.bound: list[Any] = []
        self.arrived = 0
        self.is_aborted = self.is_closed = False
        self._is_quick = is_quick

    def declare_queue(self, queue):
        return defer.succeed(queue["queue"])

    def bind_queues(self, bindings):
        self.bound += bindings
        return defer.succeed(None)

    def _allocate_channel(self):
        self.channels.append(Channel(len(self.channels) + 1, is_quick=self._is_quick))
        return defer.succeed(self.channels[-1])

    def close(self):
        self.is_closed = True

    def abort(self):
        self.is_aborted = True

    def deliver(self, tag, channel=1):
        properties: Any = None
        self.frames.receivers[channel](tag, False, "exchange", "key", properties, b"body")


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def clock():
    return task.Clock()


@pytest.fixture
def settings():
    made: Any = mock.Mock(
        brokers=[Address("broker", 5672)],
        queues={"q": Queue(durable=True, auto_delete=False, exclusive=False, arguments={})},
        passive_declares=False,
        bindings_of=lambda name: [],
    )
    return made


@pytest.fixture
def session(settings, listener, clock):
    channels = Channels(lambda flush: None)
    return Session(settings, 1, channels, listener, clock, Snapshot)


def opened(session, **how):
    client: Any = Client(**how)
    session.connection_opened(client)
    return client


def lose(session):
    """End the connection as pika does: the channels on it first."""
    for channel in session.client.channels if session.is_connected else ():
        if not channel.on_closed.called:
            channel.on_closed.callback(pika_errors.StreamLostError())
    session.connection_lost(ConnectionError(), 1)


# The first connection.


def test_a_refusal_ends_it_at_once(session, listener):
    session.handshake_refused(pika_errors.ProbableAuthenticationError())
    assert [fault.exit_code for fault in listener.faults] == [ExitCode.CONNECTION]


def test_any_number_of_broken_handshakes_without_a_refusal_is_no_fault(session, listener):
    for _ in range(100):
        session.handshake_broken()
    assert listener.faults == []


def test_a_broker_that_accepted_us_before_may_refuse_for_a_while(session, listener, clock):
    opened(session)
    lose(session)
    clock.advance(1)
    session.handshake_refused(pika_errors.ProbableAuthenticationError())
    clock.advance(REFUSAL_TOLERANCE - 1)
    session.handshake_refused(pika_errors.ProbableAuthenticationError())
    assert listener.faults == []
    clock.advance(1)
    session.handshake_refused(pika_errors.ProbableAuthenticationError())
    assert [fault.exit_code for fault in listener.faults] == [ExitCode.CONNECTION]


# Rounds.


def test_every_connection_is_subscribed_on_and_announced_once(session, listener):
    for _ in range(2):
        client = opened(session)
        assert session.is_complete
        client.deliver(1)
        lose(session)
        assert not session.is_complete
    once = ["connected", "subscribed", "lost"]
    assert [event for event in listener.events if not event.startswith("voided")] == once * 2
    assert [delivery.generation for delivery in listener.deliveries] == [1, 2]


def test_the_end_of_a_round_of_a_former_connection_is_void(session, listener):
    former = opened(session, is_quick=False)
    lose(session)
    opened(session, is_quick=False)
    former.channels[0].confirm()
    assert session.state is SessionState.SUBSCRIBING
    assert "subscribed" not in listener.events


def test_a_broker_that_confirms_no_consumer_is_left(session, clock, caplog):
    client = opened(session, is_quick=False)
    clock.advance(SUBSCRIBE_TIMEOUT)
    assert client.is_aborted
    assert session.state is SessionState.INCOMPLETE
    assert "did not answer within 60 s" in caplog.text


def test_a_lost_consumer_is_replaced_after_a_while_and_announced(session, listener, clock):
    client = opened(session)
    (channel,) = client.channels
    channel.on_closed.callback(pika_errors.ChannelClosedByBroker(406, "PRECONDITION_FAILED"))
    assert session.state is SessionState.INCOMPLETE
    clock.advance(RESUBSCRIBE_DELAY)
    assert len(client.channels) == 2
    expected = ["connected", "subscribed", "voided 1", "interrupted", "subscribed"]
    assert listener.events == expected


def test_a_consumer_that_the_broker_canceled_is_replaced_if_its_queue_is_there(
    session, listener, clock
):
    client = opened(session)
    client.channels[0].cancel_by_broker()
    assert client.channels[0].told[-2:] == [("nack", 0), "close"]
    with mock.patch.object(client, "declare_queue", wraps=client.declare_queue) as declared:
        clock.advance(RESUBSCRIBE_DELAY)
    assert [call.args[0]["passive"] for call in declared.call_args_list] == [True, False]
    assert session.is_complete


def test_a_queue_in_exclusive_use_is_tried_again_with_growing_delays(session, listener, clock):
    client = opened(session, is_quick=False)
    in_use = (403, "ACCESS_REFUSED - queue 'q' in exclusive use")
    for delay in (1, 2, 4):
        client.channels[-1].refuse(*in_use)
        assert session.state is SessionState.INCOMPLETE
        clock.advance(delay - 0.1)
        assert session.state is SessionState.INCOMPLETE
        clock.advance(0.2)
        assert session.state is SessionState.SUBSCRIBING
    client.channels[-1].confirm()
    assert listener.events == ["connected", *["interrupted"] * 3, "subscribed"]


def test_a_timer_of_a_former_connection_starts_no_round(session, clock):
    client = opened(session)
    client.channels[0].on_closed.callback(pika_errors.ChannelClosedByBroker(406, "x"))
    lose(session)
    client = opened(session, is_quick=False)
    client.channels[0].refuse(403, "in exclusive use")
    clock.advance(RESUBSCRIBE_DELAY - 0.1)
    assert session.state is SessionState.INCOMPLETE


def test_bindings_change_on_a_consuming_session_without_an_event(session, listener, settings):
    client = opened(session)
    session.apply(settings, [BoundKey("q", "amq.topic", "key")], [])
    assert [binding["routing_key"] for binding in client.bound] == ["key"]
    assert session.state is SessionState.CONSUMING
    assert listener.events == ["connected", "subscribed"]


# Pausing.


def test_a_pause_in_a_round_cancels_the_consumer_that_comes_later(session, listener):
    client = opened(session, is_quick=False)
    session.pause()
    assert session.state is SessionState.PAUSING
    (channel,) = client.channels
    channel.confirm()
    assert session.state is SessionState.PAUSED
    assert channel.told == ["consume", "cancel"]
    client.deliver(1)
    assert channel.told[-1] == ("nack", 1), "it came too late"
    session.resume()
    channel.confirm()
    client.deliver(2)
    assert len(client.channels) == 1, "the channel is the same"
    assert [delivery.delivery_tag for delivery in listener.deliveries] == [2]
    assert listener.events == ["connected", "subscribed"]


def test_a_pause_that_ends_before_the_subscription_does_not_disturb_it(session, listener):
    client = opened(session, is_quick=False)
    session.pause()
    session.resume()
    (channel,) = client.channels
    channel.confirm()
    assert channel.told == ["consume"]
    assert listener.events == ["connected", "subscribed"]


def test_the_deliveries_of_a_consumer_that_pauses_came_in_between_are_taken(session, listener):
    client = opened(session, is_quick=False)
    (channel,) = client.channels
    channel.confirm()
    session.pause()
    session.resume()
    session.pause()
    session.resume()
    channel.confirm()
    client.deliver(1)
    assert [delivery.delivery_tag for delivery in listener.deliveries] == [1]


def test_a_pause_outlives_connections(session, listener):
    session.pause()
    client = opened(session)
    assert session.state is SessionState.PAUSED
    lose(session)
    session.resume()
    assert not client.channels
    opened(session)
    assert session.is_complete


def test_a_session_that_was_not_paused_cannot_be_resumed(session):
    with pytest.raises(IllegalEventError):
        session.resume()


# Stopping.


@pytest.mark.parametrize("before", ["offline", "subscribing", "consuming", "paused"])
def test_a_stopped_session_stays_stopped(session, listener, clock, before):
    if before != "offline":
        client = opened(session, is_quick=before != "subscribing")
    if before == "paused":
        session.pause()
    listener.events.clear()
    stopping = defer.ensureDeferred(session.cancel())
    assert stopping.called
    assert session.state is SessionState.STOPPING
    if before == "consuming":
        assert client.channels[0].told == ["consume", "cancel"]
    if before == "subscribing":
        assert client.channels[0].told == ["consume", "close"]
    session.pause()
    session.resume()
    session.connection_blocked("no memory")
    session.handshake_refused(pika_errors.ProbableAuthenticationError())
    lose(session)
    assert session.state is SessionState.STOPPING
    assert [event for event in listener.events if not event.startswith("voided")] == ["lost"]
    assert listener.faults == []


def test_a_connection_that_comes_after_the_stop_is_closed(session, listener):
    session.abort()
    client = opened(session)
    assert client.is_closed
    assert not client.channels
    assert listener.events == []
