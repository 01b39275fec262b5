# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection: its timers, several addresses, TLS files that change.

tests/integration/test_connection.py and test_tls.py have it with a broker.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import pika
import pytest
from fedora_messaging import config
from twisted.internet import error, task
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from consumer_framework.adapters import certificates
from consumer_framework.adapters.amqp import faults
from consumer_framework.adapters.amqp.connection import (
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    Client,
    Factory,
    Service,
    TlsOptions,
    TolerantChannel,
    _AbortingTransport,
)
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.stats import Snapshot
from consumer_framework.settings import Address, Tls
from consumer_framework.settings.brokers import addresses
from consumer_framework.testing.broker.tls import Authority


class Transport(StringTransport):
    aborted = 0

    def abortConnection(self):  # noqa: N802 -- Twisted's name
        self.aborted += 1


class Connector:
    disconnected = False

    def disconnect(self):
        self.disconnected = True

    def stopConnecting(self):  # noqa: N802 -- Twisted's name
        raise error.NotConnectingError


class Network(task.Clock):
    """A reactor whose names have the addresses that a test gives them."""

    def __init__(self):
        super().__init__()
        self.nameResolver = self
        self.names: dict[str, Any] = {"localhost": ["127.0.0.1"]}
        self.dialed: list[tuple[str, int]] = []
        self.options: list[Any] = []
        self.receivers: list[Any] = []
        self.connector = Connector()

    def resolveHostName(self, receiver, name, port, transportSemantics):  # noqa: N802, N803
        self.receivers.append(receiver)
        addresses = self.names.get(name, [])
        receiver.resolutionBegan(None)
        for address in addresses or []:
            receiver.addressResolved(mock.Mock(host=address))
        if addresses is not None:
            receiver.resolutionComplete()

    def connectTCP(self, host, port, factory, timeout):  # noqa: N802
        self.dialed.append((host, port))
        return self.connector

    def connectSSL(self, host, port, factory, options, timeout):  # noqa: N802
        self.options.append(options)
        return self.connectTCP(host, port, factory, timeout)


class Events:
    def __init__(self):
        self.opened = []
        self.losses = []
        self.refusals = []
        self.broken = 0
        self.blocked = []

    def connection_opened(self, client):
        self.opened.append(client)

    def connection_lost(self, error, retry_in):
        self.losses.append((error, retry_in))

    def connection_blocked(self, reason):
        self.blocked.append(reason)

    def handshake_refused(self, error):
        self.refusals.append(error)

    def handshake_broken(self):
        self.broken += 1


@pytest.fixture
def clock():
    return Network()


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def factory(events, clock):
    return made_factory(events, clock, "amqp://localhost")


def made_factory(events, clock, url, *others, tls: Any = None):
    made = Factory(pika.ConnectionParameters(), events, clock, addresses(url, others), tls)
    made.noisy = False
    made.dialer.running = True
    return made


def fail(factory, kind=error.ConnectionRefusedError):
    factory.clientConnectionFailed(Connector(), Failure(kind()))


@pytest.fixture
def refused():
    return Failure(error.ConnectionRefusedError())


# A broker that has an alarm.


def frame(method):
    return pika.frame.Method(0, method).marshal()


def test_the_client_knows_whether_the_broker_reads(factory, events):
    client = factory.buildProtocol(None)
    assert not client.is_blocked
    client.dataReceived(frame(pika.spec.Connection.Blocked("low on memory")))
    assert client.is_blocked
    client.dataReceived(frame(pika.spec.Connection.Unblocked()))
    assert not client.is_blocked
    assert events.blocked == ["low on memory", ""], "and whoever listens learns both"


# A transport that is told to close.


def test_a_peer_that_never_answers_is_dropped_after_a_while(clock):
    transport = Transport()
    _AbortingTransport(transport, clock).loseConnection()
    assert transport.disconnecting, "written data is sent first"
    clock.advance(CLOSE_TIMEOUT - 0.1)
    assert transport.aborted == 0
    clock.advance(0.2)
    assert transport.aborted == 1


def test_everything_else_is_the_transports_own(clock):
    transport = Transport()
    aborting = _AbortingTransport(transport, clock)
    aborting.write(b"bytes")
    assert transport.value() == b"bytes"
    assert aborting.getPeer() == transport.getPeer()
    with pytest.raises(AttributeError):
        _ = aborting.no_such_thing


# Connecting again.


def test_the_delays_grow_up_to_thirty_seconds_and_one_attempt_follows_each(
    factory, events, clock, refused
):
    for _ in range(12):
        factory.clientConnectionFailed(Connector(), refused)
        clock.advance(30)
    assert clock.dialed == [("127.0.0.1", 5672)] * 12
    delays = [delay for _, delay in events.losses]
    assert all(0 < delay <= 30 for delay in delays)
    for number, delay in enumerate(delays):
        ceiling = min(30, 2**number)
        assert ceiling / 2 <= delay <= ceiling


def test_an_attempt_comes_when_it_was_announced(factory, events, clock, refused):
    factory.clientConnectionFailed(Connector(), refused)
    ((reported, delay),) = events.losses
    assert reported is refused.value
    clock.advance(delay - 0.01)
    assert clock.dialed == []
    clock.advance(0.02)
    assert len(clock.dialed) == 1


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
    factory.clientConnectionLost(connector, Failure(error.ConnectionDone()))
    clock.advance(60)
    assert clock.dialed == []
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


def start_frame(**capabilities):
    properties = {"product": "a broker", "capabilities": capabilities}
    start = pika.spec.Connection.Start(0, 9, properties, mechanisms="PLAIN", locales="en_US")
    return frame(start)


@pytest.mark.parametrize("reason", [error.ConnectionLost(), error.ConnectionDone()])
@pytest.mark.parametrize("sent", [b"", start_frame(authentication_failure_close=True)])
def test_a_handshake_that_the_peer_ends_without_a_word_is_no_refusal(
    factory, client, events, clock, reason, sent
):
    transport = Transport()
    client.makeConnection(transport)
    client.dataReceived(sent)
    client.connectionLost(Failure(reason))
    assert (events.refusals, events.broken) == ([], 1)
    factory.clientConnectionLost(Connector(), Failure(reason))
    assert "ended the connection before the handshake was through" in str(events.losses[0][0])
    assert events.opened == []
    clock.advance(HANDSHAKE_TIMEOUT + 1)
    assert transport.aborted == 0, "the timer went with the connection"


@pytest.mark.parametrize("capabilities", [{}, {"authentication_failure_close": False}])
def test_a_broker_that_hangs_up_to_refuse_a_login_has_refused_it(
    factory, client, events, capabilities
):
    """Any broker but RabbitMQ since 3.2: AMQP 0-9-1 has no other way."""
    client.makeConnection(Transport())
    client.dataReceived(start_frame(**capabilities))
    reason = Failure(error.ConnectionDone())
    client.connectionLost(reason)
    (refusal,) = events.refusals
    factory.clientConnectionLost(Connector(), reason)
    assert events.losses[0][0] is refusal, "the loss has the same reason"
    assert faults.one_line(refusal) == "authentication failed"


@pytest.mark.parametrize("answer", [b"AMQP\x00\x01\x00\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_peer_with_another_protocol_is_one(client, events, answer):
    client.makeConnection(Transport())
    client.dataReceived(answer)
    client.connectionLost(Failure(error.ConnectionDone()))
    (refusal,) = events.refusals
    assert faults.one_line(refusal) == "it does not speak AMQP 0-9-1"


def test_a_refusal_with_a_reason_is_one(factory, client, events):
    client.makeConnection(Transport())
    client.dataReceived(start_frame(authentication_failure_close=True))
    client.dataReceived(frame(pika.spec.Connection.Close(403, "ACCESS_REFUSED", 0, 0)))
    client.connectionLost(Failure(error.ConnectionDone()))
    (refusal,) = events.refusals
    assert faults.reply_code(refusal) == 403


# Several addresses.


def test_the_addresses_of_all_hosts_are_dialed_in_their_order_before_there_is_a_delay(
    events, clock
):
    clock.names = {"one": ["fd00::1", "10.0.0.1", "fd00::1"], "two": ["10.0.0.2"], "fd00::9": []}
    factory = made_factory(events, clock, "amqp://one", "two:1", "gone", "amqp://[fd00::9]:2")
    factory.dialer.dial()
    assert factory.dialer.text == "one:5672 (fd00::1)"
    for _ in range(2):
        fail(factory)
        clock.advance(0)
    assert factory.dialer.text == "two:1"
    fail(factory)
    clock.advance(0)
    clock.advance(0)
    assert factory.dialer.text == "[fd00::9]:2"
    assert "no address" in str(events.losses[-1][0])
    assert clock.dialed == [("fd00::1", 5672), ("10.0.0.1", 5672), ("10.0.0.2", 1)]
    assert [delay > 0 for _, delay in events.losses] == [False, False, False, False, True]
    clock.advance(1)
    assert clock.dialed[-1] == ("fd00::1", 5672), "and then the first one again"


def test_a_connection_that_was_of_use_is_followed_by_one_to_the_first_host(events, clock):
    clock.names = {"one": ["10.0.0.1"], "two": ["10.0.0.2"], "three": ["10.0.0.3"]}
    factory = made_factory(events, clock, "amqp://one", "two", "three")
    factory.dialer.dial()
    fail(factory)
    clock.advance(0)
    factory.succeeded()
    factory.clientConnectionLost(Connector(), Failure(error.ConnectionLost()))
    clock.advance(1)
    assert [host for host, _ in clock.dialed] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]


def test_a_lookup_without_an_answer_has_an_end(factory, events, clock):
    clock.names = {"localhost": None}
    factory.dialer.dial()
    clock.advance(31)
    assert "no answer in 30 s" in str(events.losses[-1][0])
    clock.receivers[-1].resolutionComplete()
    assert clock.dialed == [], "an answer after that is none"


def test_a_stop_ends_the_lookup_and_the_connection(factory, events, clock):
    clock.names = {"localhost": None}
    factory.dialer.startService()
    factory.dialer.stopService()
    assert events.losses == []
    clock.names = {"localhost": ["127.0.0.1"]}
    factory.dialer.startService()
    factory.dialer.stopService()
    assert clock.connector.disconnected


def test_each_host_has_tls_options_of_its_own(events, clock):
    clock.names = {"one": ["10.0.0.1"], "two": ["10.0.0.2"]}
    tls = mock.Mock(for_host=lambda name: f"options for {name}")
    factory = made_factory(events, clock, "amqps://one", "two", tls=tls)
    factory.dialer.dial()
    fail(factory)
    clock.advance(0)
    assert clock.options == ["options for one", "options for two"]
    assert [port for _, port in clock.dialed] == [5671, 5671]


def test_tls_files_that_cannot_be_used_are_an_attempt_that_failed(events, clock):
    """They may be in the middle of being replaced."""
    tls = mock.Mock()
    tls.for_host.side_effect = [ValueError("half a file"), "options"]
    factory = made_factory(events, clock, "amqps://localhost", tls=tls)
    factory.dialer.dial()
    assert "the files of [tls] cannot be used: half a file" in str(events.losses[0][0])
    clock.advance(1)
    assert clock.options == ["options"]


# Calls that were canceled.


def test_a_canceled_call_that_is_answered_later_disturbs_no_close(client):
    client.makeConnection(Transport())
    client._impl._set_connection_state(client._impl.CONNECTION_OPEN)
    opening = client.channel()
    opening.addErrback(lambda _failure: None)
    number = next(iter(client._impl._channels))
    opening.cancel()
    inner = client._impl._channels[number]
    inner._set_state(inner.OPEN)
    (call,) = client._calls
    call.callback(inner)
    client._on_connection_closed(client._impl, ConnectionError())
    channel = TolerantChannel(inner)
    closed: list[Any] = []
    channel.on_closed.addCallback(closed.append)
    channel._closed = None
    canceled: Any = channel._wrap_channel_method("queue_declare")(queue="x")
    canceled.addErrback(lambda _failure: None)
    canceled.cancel()
    canceled.callback(None)
    channel._on_channel_closed(inner, ConnectionError("gone"))
    assert [str(one) for one in closed] == ["gone"]


def test_a_transport_that_is_gone_is_not_dropped(client, clock):
    transport = Transport()
    client.makeConnection(transport)
    client.transport.loseConnection()
    client.transport.loseConnection()
    client.connectionLost(Failure(error.ConnectionDone()))
    client.abort()
    clock.advance(CLOSE_TIMEOUT + 1)
    assert transport.aborted == 0


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
            [Address("broker", 1234)],
            lambda: Snapshot(received=9, acked=5, rejected=2, requeued=1, failed=3),
            lambda: True,
        )


def test_the_service_connects_with_our_factory_and_nothing_else(service):
    (broker,) = list(service)
    assert broker.name == "broker"
    assert broker is service.factory.dialer
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


# TLS files that are read again.


@pytest.fixture
def tls():
    """The table of fedora-messaging's configuration."""
    before = dict(config.conf.items())
    config.conf.update({"amqp_url": "amqps://localhost", "tls": dict.fromkeys(Tls.model_fields)})
    yield config.conf["tls"]
    config.conf.clear()
    config.conf.update(before)


@pytest.fixture
def pair(tls, tmp_path):
    authority = Authority(tmp_path)
    issued = authority.issue("client")
    tls["ca_cert"] = str(authority.certificate)
    tls["certfile"], tls["keyfile"] = str(issued.certificate), str(issued.key)
    return issued


@pytest.fixture
def parameters():
    return pika.URLParameters("amqps://localhost")


def test_other_files_are_for_the_next_connection(tls, pair, parameters):
    options = TlsOptions(parameters)
    use = options.prepare()
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)
    use()
    assert isinstance(parameters.credentials, pika.credentials.ExternalCredentials)
    tls["certfile"] = tls["keyfile"] = None
    options.for_host("localhost")
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)


def test_a_ca_file_that_was_replaced_is_used_at_the_next_connection(tls, pair, parameters):
    options = TlsOptions(parameters)
    first = options.for_host("one")
    assert options.for_host("one") is not first
    Path(tls["ca_cert"]).write_text("half a file")
    with pytest.raises(Exception, match=r"certificate|PEM"):
        options.for_host("never connected to")


def test_files_that_are_being_replaced_leave_those_of_before_in_use(tls, pair, parameters, caplog):
    options = TlsOptions(parameters)
    before = options.for_host("one")
    pair.key.write_text("half a key")
    assert options.for_host("one") is before
    assert "the files of [tls] cannot be used; those of before still are" in caplog.text


@pytest.mark.parametrize("text", ["no key", None], ids=["no PEM", "gone"])
def test_files_that_cannot_be_used_are_refused_and_nothing_changes(tls, pair, parameters, text):
    if text is None:
        pair.key.unlink()
    else:
        pair.key.write_text(text)
    options = TlsOptions(parameters)
    with pytest.raises(ConfigurationError) as refused:
        options.prepare()
    assert refused.value.problems[0].path == "tls"
    assert not isinstance(parameters.credentials, pika.credentials.ExternalCredentials)


def test_a_file_is_another_one_by_its_contents(tls, pair):
    def look():
        return certificates.digests(Tls(certfile=tls["certfile"], keyfile=tls["keyfile"]))

    before = look()
    assert look() == before
    assert before["ca_cert"] == ""
    pair.certificate.write_text("another")
    after = look()
    assert after["certfile"] != before["certfile"]
    assert after["keyfile"] == before["keyfile"]
    pair.certificate.unlink()
    assert look()["certfile"] == ""
