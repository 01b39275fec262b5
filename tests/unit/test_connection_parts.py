# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the connection whose time can be made to pass; the rest is tested with a broker."""

from unittest import mock

import pika
import pytest
from fedora_messaging import config
from twisted.internet import error, task
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from consumer_framework.adapters.amqp.connection import (
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    Client,
    Factory,
    Service,
    _ImpatientTransport,
)
from consumer_framework.core.stats import Snapshot


class Transport(StringTransport):
    aborted = 0

    def abortConnection(self):  # noqa: N802 -- Twisted's name
        self.aborted += 1


class Connector:
    def __init__(self):
        self.attempts = 0

    def connect(self):
        self.attempts += 1

    def stopConnecting(self):  # noqa: N802 -- Twisted's name
        raise error.NotConnectingError


class Events:
    def __init__(self):
        self.opened = []
        self.losses = []
        self.refusals = []

    def connection_opened(self, client):
        self.opened.append(client)

    def connection_lost(self, error, retry_in):
        self.losses.append((error, retry_in))

    def handshake_refused(self, error):
        self.refusals.append(error)


@pytest.fixture
def clock():
    return task.Clock()


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def factory(events, clock):
    made = Factory(pika.ConnectionParameters(), events, clock)
    made.noisy = False
    return made


@pytest.fixture
def refused():
    return Failure(error.ConnectionRefusedError())


# A broker that has an alarm.


def frame(method):
    return pika.frame.Method(0, method).marshal()


def test_the_client_knows_whether_the_broker_reads(factory):
    client = factory.buildProtocol(None)
    assert not client.is_blocked
    client.dataReceived(frame(pika.spec.Connection.Blocked("low on memory")))
    assert client.is_blocked
    client.dataReceived(frame(pika.spec.Connection.Unblocked()))
    assert not client.is_blocked


# A transport that is told to close.


def test_a_peer_that_never_answers_is_dropped_after_a_while(clock):
    transport = Transport()
    _ImpatientTransport(transport, clock).loseConnection()
    assert transport.disconnecting, "written data is sent first"
    clock.advance(CLOSE_TIMEOUT - 0.1)
    assert transport.aborted == 0
    clock.advance(0.2)
    assert transport.aborted == 1


def test_everything_else_is_the_transports_own(clock):
    transport = Transport()
    impatient = _ImpatientTransport(transport, clock)
    impatient.write(b"bytes")
    assert transport.value() == b"bytes"
    assert impatient.getPeer() == transport.getPeer()
    with pytest.raises(AttributeError):
        _ = impatient.no_such_thing


# Connecting again.


def test_the_delays_grow_up_to_thirty_seconds_and_one_attempt_follows_each(
    factory, events, clock, refused
):
    connector = Connector()
    for _ in range(12):
        factory.clientConnectionFailed(connector, refused)
        clock.advance(30)
    assert connector.attempts == 12
    delays = [delay for _, delay in events.losses]
    assert all(0 < delay <= 30 for delay in delays)
    for number, delay in enumerate(delays):
        ceiling = min(30, 2**number)
        assert ceiling / 2 <= delay <= ceiling


def test_an_attempt_comes_when_it_was_announced(factory, events, clock, refused):
    connector = Connector()
    factory.clientConnectionFailed(connector, refused)
    ((reported, delay),) = events.losses
    assert reported is refused.value
    clock.advance(delay - 0.01)
    assert connector.attempts == 0
    clock.advance(0.02)
    assert connector.attempts == 1


def test_a_connection_that_was_of_use_makes_the_next_delay_short(factory, events, clock, refused):
    for _ in range(6):
        factory.clientConnectionFailed(Connector(), refused)
        clock.advance(30)
    factory.succeeded()
    factory.clientConnectionLost(Connector(), Failure(error.ConnectionLost()))
    assert events.losses[-1][1] <= 1


def test_clients_of_one_broker_come_back_at_different_times(factory, events, clock, refused):
    with mock.patch("random.random", side_effect=[0.0, 1.0]):
        factory.clientConnectionFailed(Connector(), refused)
        clock.advance(30)
        factory.succeeded()
        factory.clientConnectionFailed(Connector(), refused)
    assert [delay for _, delay in events.losses] == [1.0, 0.5]


def test_a_factory_that_stopped_makes_no_attempt_but_reports_the_loss(
    factory, events, clock, refused
):
    connector = Connector()
    factory.clientConnectionFailed(connector, refused)
    factory.stop()
    clock.advance(60)
    assert connector.attempts == 0
    factory.clientConnectionLost(connector, Failure(error.ConnectionDone()))
    assert connector.attempts == 0
    assert events.losses[-1][1] == 0
    factory.succeeded()
    assert not factory.continueTrying


def test_a_factory_that_never_started_can_be_stopped(factory):
    factory.stop()
    factory.retry()
    assert not factory.continueTrying


# The handshake.


@pytest.fixture
def client(factory, clock):
    made = factory.buildProtocol(None)
    # Twisted's reactor would keep pika's timers.
    made._impl._reactor = clock
    return made


def test_a_peer_that_never_completes_the_handshake_is_dropped(client, events, clock):
    transport = Transport()
    client.makeConnection(transport)
    assert transport.value().startswith(b"AMQP")
    clock.advance(HANDSHAKE_TIMEOUT - 1)
    assert transport.aborted == 0
    clock.advance(2)
    assert transport.aborted == 1
    assert "no answer to the handshake" in str(client.ending)
    assert isinstance(client, Client)


def test_a_handshake_that_the_peer_ends_is_reported_as_refused(factory, client, events, clock):
    transport = Transport()
    client.makeConnection(transport)
    reason = Failure(error.ConnectionLost())
    client.connectionLost(reason)
    (refusal,) = events.refusals
    assert isinstance(refusal, BaseException)
    factory.clientConnectionLost(Connector(), reason)
    assert events.losses[0][0] is refusal, "the loss has the same reason"
    assert events.opened == []
    clock.advance(HANDSHAKE_TIMEOUT + 1)
    assert transport.aborted == 0, "the timer went with the connection"


def test_a_client_that_is_not_connected_can_be_dropped(client):
    client.abort()
    transport = Transport()
    client.makeConnection(transport)
    client.abort()
    assert transport.aborted == 1


# The service.


@pytest.fixture
def service(events, clock):
    with mock.patch.dict(config.conf, {**config.DEFAULTS, "amqp_url": "amqp://u:p@broker:1234/v"}):
        yield Service(
            events,
            clock,
            lambda: Snapshot(received=9, acked=5, rejected=2, requeued=1, failed=3),
            lambda: True,
        )


def test_the_service_connects_with_our_factory_and_nothing_else(service):
    (broker,) = list(service)
    assert broker.name == "broker"
    assert broker.kwargs["factory"] is service.factory
    assert isinstance(service.factory, Factory)
    assert service.factory.confirms is True


def test_the_service_names_the_broker_without_user_and_password(service):
    assert service.host == "broker:1234"


def test_the_monitoring_server_gets_the_counts_in_upstreams_words(service):
    assert service.consuming is True
    service.factory._stats.published = 4
    assert service.stats.as_dict() == {
        "published": 4,
        "consumed": {"received": 9, "processed": 5, "dropped": 2, "rejected": 1, "failed": 3},
    }
