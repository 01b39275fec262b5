# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness in tests that are coroutines, and in tests of unittest."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from fedora_messaging.message import Message

from consumer_framework import Consumer, publishing
from consumer_framework.testing import Ack, Harness, Hold, message_of

HEAD = """
import asyncio, socket
import pytest
from fedora_messaging import api
from fedora_messaging.message import Message
from consumer_framework import Consumer
from consumer_framework.testing import Ack, message_of

MESSAGE = message_of(Message, topic="org.example.build")

class Publishes(Consumer):
    async def handle(self, message):
        sent = api.twisted_publish(Message(topic="org.example.seen"))
        await sent.asFuture(asyncio.get_running_loop())
"""
ASYNCIO = """
@pytest.mark.asyncio
async def test_it(consumer):
    harness = consumer(Publishes)
    assert isinstance(harness.deliver(MESSAGE), Ack)
    assert harness.published[0].topic == "org.example.seen"

@pytest.mark.asyncio
async def test_that_is_refused():
    with pytest.raises(BaseException, match="nothing records"):
        api.publish(MESSAGE)
"""
TWISTED = """
import pytest_twisted
from twisted.internet import endpoints, protocol, reactor, threads
from twisted.protocols.basic import LineReceiver

class Asks(Consumer):
    def handle(self, message):
        with socket.create_connection(("127.0.0.1", self.config["port"]), 30) as connection:
            connection.sendall(b"hello\\r\\n")
            answer = connection.makefile().readline().strip()
        api.publish(Message(topic="org.example.answer", body={"answer": answer}))

class Upper(LineReceiver):
    def lineReceived(self, line):
        self.sendLine(line.upper())
        self.transport.loseConnection()

@pytest_twisted.ensureDeferred
async def test_it(consumer, capture_outbox):
    await api.twisted_publish(Message(topic="org.example.captured"))
    assert capture_outbox[0].topic == "org.example.captured"
    harness = consumer(Publishes)
    assert isinstance(harness.deliver(MESSAGE), Ack)

@pytest_twisted.ensureDeferred
async def test_with_a_server(consumer):
    factory = protocol.Factory.forProtocol(Upper)
    port = await endpoints.serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
    harness = consumer(Asks, config={"port": port.getHost().port})
    assert isinstance(await threads.deferToThread(harness.deliver, MESSAGE), Ack)
    assert harness.published[0].body == {"answer": "HELLO"}
    await port.stopListening()
"""
UNITTEST = """
import unittest
from fedora_messaging import api
from fedora_messaging.message import Message
from consumer_framework import Consumer
from consumer_framework.testing import Ack, Harness, no_unmocked_publish

class Sample(Consumer):
    def handle(self, message):
        api.publish(Message(topic="org.example.seen"))

class SampleTest(unittest.TestCase):
    def setUp(self):
        self.enterContext(no_unmocked_publish())

    def test_harness(self):
        harness = self.enterContext(Harness(Sample))
        self.assertIsInstance(harness.deliver(Message(topic="org.example.build")), Ack)

    def test_raises(self):
        api.publish(Message(topic="org.example.plain"))

    def test_catches(self):
        try:
            api.publish(Message(topic="org.example.caught"))
        except BaseException:
            pass

class AsyncTest(unittest.IsolatedAsyncioTestCase):
    async def test_harness(self):
        harness = self.enterContext(Harness(Sample))
        self.assertIsInstance(harness.deliver(Message(topic="org.example.build")), Ack)

class LastTest(unittest.TestCase):
    def test_the_functions_are_put_back(self):
        self.assertFalse(hasattr(api.publish, "__wrapped__"))
"""


class Asks(Consumer):
    """Asks a server that runs on the event loop of the test."""

    async def setup(self):
        self.thread = threading.get_ident()

    async def handle(self, message):
        assert threading.get_ident() == self.thread
        reader, writer = await asyncio.open_connection("127.0.0.1", self.config["port"])
        writer.write(b"hello\n")
        answer = (await reader.readline()).decode()
        writer.close()
        await asyncio.sleep(60)
        await publishing.publish_async(Message(topic="org.example.answer", body={"answer": answer}))


async def serve(reader, writer):
    writer.write((await reader.readline()).upper())
    writer.close()


async def deliver_beside_a_server():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    message = message_of(Message)
    with Harness(Asks, config={"port": port}, patience=30) as harness:
        assert await asyncio.to_thread(harness.deliver, message) is None
        harness.advance("60s")
        assert harness.acked == [message]
        assert harness.published[0].body == {"answer": "HELLO\n"}
    server.close()


def test_a_handler_may_use_the_event_loop_of_a_coroutine_test():
    asyncio.run(deliver_beside_a_server())


async def count_to(number):
    return [n async for n in _numbers(number)]


async def _numbers(number):
    for n in range(number):
        await asyncio.sleep(0)
        yield n


async def use_everything():
    failures: list[Message] = []

    def handler(message):
        if len(failures) < 2:
            failures.append(message)
            raise ValueError("not yet")

    with Harness(handler) as harness:
        message = message_of(Message)
        assert isinstance(harness.deliver(message), Hold)
        harness.crash()
        harness.cut()
        harness.restart()
        harness.advance("1h")
        assert harness.acked == [message]
    assert await count_to(2) == [0, 1]


def test_all_of_the_harness_works_in_a_coroutine():
    asyncio.run(use_everything())


def test_a_harness_of_a_plain_test_can_be_used_in_a_coroutine():
    async def inner(harness):
        assert isinstance(harness.deliver(message_of(Message)), Ack)

    with Harness(lambda _message: None) as harness:
        assert isinstance(harness.deliver(message_of(Message)), Ack)
        asyncio.run(inner(harness))
        assert isinstance(harness.deliver(message_of(Message)), Ack)
        assert len(harness.acked) == 3


def test_an_interrupt_ends_a_test_whose_handler_never_ends():
    never = threading.Event()

    class Waits(Consumer):
        def handle(self, _message):
            os.kill(os.getpid(), signal.SIGINT)
            never.wait()

    async def interrupted():
        with Harness(Waits) as harness:
            with pytest.raises(KeyboardInterrupt):
                harness.deliver(message_of(Message))
            never.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(interrupted())
    finally:
        loop.close()
        signal.signal(signal.SIGINT, before)


# One outcome fails on purpose: the test catches the refusal.
@pytest.mark.parametrize(
    ("tests", "options", "outcome"),
    [
        (ASYNCIO, ["-p", "no:twisted"], "1 failed, 1 passed"),
        (TWISTED, ["-p", "no:asyncio", "--reactor=asyncio"], "2 passed"),
        (TWISTED, ["-p", "no:asyncio"], "2 passed"),
    ],
    ids=["pytest-asyncio", "pytest-twisted with asyncio", "pytest-twisted"],
)
def test_coroutine_tests_use_the_fixtures(tmp_path, tests, options, outcome):
    (tmp_path / "test_loops.py").write_text(HEAD + tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{outcome} in" in done.stdout, done.stdout + done.stderr


def test_unittest_uses_the_context_managers(tmp_path):
    (tmp_path / "test_unittest.py").write_text(UNITTEST)
    command = [sys.executable, "-m", "unittest", "-v", "test_unittest"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    failed = set(re.findall(r"^ERROR: (\w+)", done.stderr, re.MULTILINE))
    assert failed == {"test_raises", "test_catches"}, done.stderr
    assert "Ran 5 tests" in done.stderr
    assert "topic 'org.example.plain', by fedora_messaging.api.publish" in done.stderr
    assert "topic 'org.example.caught', by fedora_messaging.api.publish" in done.stderr
