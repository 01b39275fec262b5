# SPDX-License-Identifier: GPL-2.0-or-later
"""Channels, with pika's Twisted adapter and a real broker, is a conforming Acknowledger."""

from typing import Any

import pika
import pytest
import pytest_twisted
from pika.adapters.twisted_connection import TwistedProtocolConnection
from twisted.internet import defer, endpoints

from consumer_framework.adapters.amqp import Channels
from consumer_framework.core.delivery import Delivery
from tests.unit.conformance.acknowledger import AcknowledgerSuite, World


def soon(function):
    from twisted.internet import reactor  # noqa: PLC0415 -- as below

    untyped: Any = reactor
    untyped.callLater(0, function)


@defer.inlineCallbacks
def connect(url):
    # A late import, because pytest-twisted chooses the reactor.
    from twisted.internet import reactor  # noqa: PLC0415

    parameters: Any = pika.URLParameters(url)
    endpoint = endpoints.HostnameEndpoint(reactor, parameters.host, parameters.port)
    connection = yield endpoints.connectProtocol(endpoint, TwistedProtocolConnection(parameters))
    yield connection.ready
    return connection


class BrokerWorld(World):
    def __init__(self, url, queue, *, notices):
        self.acknowledger = Channels(soon)
        self._url = url
        self._queue = queue
        self.notices = notices
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            channel.queue_declare(queue)
            for body in (b"a", b"b", b"c"):
                channel.basic_publish("", queue, body)
        self._connection: Any = None
        self._channel: Any = None
        self._generation = 0

    async def begin(self):
        self._connection = await connect(self._url)
        await self._open()

    async def end(self):
        await defer.maybeDeferred(self._connection.close)

    def play(self, scenario):
        # pytest-twisted waits for the Deferred that a test returns.
        return defer.ensureDeferred(scenario)

    async def _open(self):
        self._channel = await self._connection.channel()
        self._generation = self.acknowledger.add(self._channel)

    async def _close(self):
        # The broker hears of an acknowledgement some turns of the event loop later.
        self.acknowledger.flush()
        self._channel.close()
        await self._channel.on_closed

    async def deliver(self, count):
        # One after the other: AMQP allows one basic.get at a time on a channel.
        return [self._delivery(*await self._channel.basic_get(self._queue)) for _ in range(count)]

    def _delivery(self, _channel, method, properties, body):
        return Delivery(
            queue=self._queue,
            generation=self._generation,
            delivery_tag=method.delivery_tag,
            redelivered=method.redelivered,
            exchange=method.exchange,
            routing_key=method.routing_key,
            properties=properties,
            body=body,
        )

    async def cut(self):
        await self._close()
        if self.notices:
            self.acknowledger.remove(self._generation)
        await self._open()

    async def left(self):
        # The broker handles all earlier methods before it closes the channel.
        await self._close()
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            channel = connection.channel()
            bodies = set()
            while (got := channel.basic_get(self._queue, auto_ack=True))[0] is not None:
                bodies.add(got[2])
            return bodies


class TestChannels(AcknowledgerSuite):
    @pytest.fixture(params=[True, False], ids=["noticed", "not-yet-noticed"])
    def world(self, broker, queue_name, request):
        """Make a world; without the notice, pika itself refuses until `remove` is called."""
        made = BrokerWorld(broker.url, queue_name, notices=request.param)
        pytest_twisted.blockon(defer.ensureDeferred(made.begin()))
        yield made
        pytest_twisted.blockon(defer.ensureDeferred(made.end()))
