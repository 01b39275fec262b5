# SPDX-License-Identifier: GPL-2.0-or-later
"""Every form of handler works, and its exceptions decide the fate of its messages."""

from __future__ import annotations

import signal
import time

import pika
import pytest

from .instance import publish, queue_table, until

FUNCTION = """
def handler(message):
    note("done", message)
"""

COROUTINE = """
async def handler(message):
    note("done", message)
"""

UPSTREAM_CLASS = """
class handler:
    def __init__(self):
        self.greeting = config.conf["consumer_config"]["greeting"]
    def __call__(self, message):
        note("done", message, greeting=self.greeting)
"""

ASYNC_OBJECT = """
class Handler:
    async def __call__(self, message):
        note("done", message)
handler = Handler()
"""

PYDANTIC = """
import pydantic
from consumer_framework import Consumer
class handler(Consumer):
    class Config(pydantic.BaseModel):
        greeting: str
    def handle(self, message):
        note("done", message, greeting=self.config.greeting)
"""

DATACLASS = """
from dataclasses import dataclass
from consumer_framework import Consumer
class handler(Consumer):
    @dataclass
    class Config:
        greeting: str
    def setup(self):
        self.thread = threading.current_thread().name
    def handle(self, message):
        note("done", message, greeting=self.config.greeting, set_up_in=self.thread)
"""

TYPED_DICT = """
from typing import TypedDict
from consumer_framework import Consumer
class handler(Consumer):
    class Config(TypedDict):
        greeting: str
    async def setup(self):
        self.ready = True
    async def handle(self, message):
        note("done", message, greeting=self.config["greeting"], ready=self.ready)
"""

# Like fmn, it takes the loop in __init__ and uses it from the handler's thread.
LOOP = """
import asyncio
class handler:
    def __init__(self):
        self.loop = asyncio.get_event_loop()
        self.prepared = self.loop.create_task(self.prepare())
    async def prepare(self):
        await asyncio.sleep(0)
    async def work(self, message):
        await self.prepared
        note("done", message, same=asyncio.get_running_loop() is self.loop)
    def __call__(self, message):
        asyncio.run_coroutine_threadsafe(self.work(message), self.loop).result()
"""

FORMS = {
    "function": FUNCTION,
    "coroutine": COROUTINE,
    "upstream-class": UPSTREAM_CLASS,
    "async-object": ASYNC_OBJECT,
    "pydantic": PYDANTIC,
    "dataclass": DATACLASS,
    "typed-dict": TYPED_DICT,
    "loop": LOOP,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_handler_handles_each_message_once(broker, queue_name, start, form):
    extra = '[consumer_config]\ngreeting = "hello"\n'
    instance = start(broker.url, queue_table(queue_name), FORMS[form], extra=extra).ready()
    publish(broker.url, queue_name, range(20))
    notes = instance.noted("done", 20)
    assert [note["body"]["n"] for note in notes] == list(range(20))
    assert {note["queue"] for note in notes} == {queue_name}
    assert {note.get("greeting", "hello") for note in notes} == {"hello"}
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    if form == "loop":
        assert all(note["same"] for note in notes)
    if form == "dataclass":
        assert {note["set_up_in"] for note in notes} == {note["thread"] for note in notes}


def test_teardown_runs_after_the_last_message(broker, queue_name, start):
    handler = """
from consumer_framework import Consumer
class handler(Consumer):
    def handle(self, message):
        self.last = message
        time.sleep(0.5)
        note("done", message)
    async def teardown(self):
        note("torn down", self.last)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    time.sleep(0.2)
    assert instance.stop() == 0
    assert [note["event"] for note in instance.notes()] == ["done", "torn down"]


def test_the_connection_outlives_a_plain_handler_that_blocks(broker, queue_name, start):
    handler = """
def handler(message):
    time.sleep(7)
    note("done", message)
"""
    url = f"{broker.url}?heartbeat=2"
    instance = start(url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0
    assert "no connection" not in instance.log
    assert len(instance.notes()) == 1


def test_a_nack_delivers_the_message_again(broker, queue_name, start):
    handler = """
seen = []
def handler(message):
    seen.append(message.id)
    note("run", message)
    if seen.count(message.id) == 1:
        raise Nack("not now")
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("run", 2)
    assert instance.stop() == 0
    assert "message 1 on" in instance.log
    assert "Retry: not now" in instance.log
    assert broker.depth(queue_name) == (0, 0)


@pytest.mark.parametrize("how", ["raise Drop('not for us')", "cf.drop()"])
def test_a_drop_rejects_the_message_to_the_dead_letter_exchange(broker, queue_name, start, how):
    handler = f"""
import consumer_framework
class cf:
    @staticmethod
    def drop():
        raise consumer_framework.Drop("not for us")
def handler(message):
    note("run", message)
    {how}
"""
    dead = f"{queue_name}.dead"
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_declare(dead, durable=True)
    queues = queue_table(queue_name, arguments=arguments)
    instance = start(broker.url, queues, handler).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: broker.depth(dead)[0] == 1, "the message is dead-lettered")
    assert instance.stop() == 0
    assert "is dropped: not for us" in instance.log
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(dead)


@pytest.mark.parametrize(("requeue", "left"), [(True, 1), (False, 0)])
def test_a_halt_ends_the_instance_with_its_exit_code(broker, queue_name, start, requeue, left):
    handler = f"""
def handler(message):
    note("run", message)
    raise HaltConsumer(exit_code=42, reason="enough", requeue={requeue})
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    assert instance.wait() == 42
    assert len(instance.notes()) == 1
    assert broker.depth(queue_name) == (left, 0)
    assert "halts the instance with exit code 42: enough" in instance.log


HALTING = """
[consumer_config.framework.recovery]
immediate = 0
delays = []
on_exhausted = "halt"
"""


def test_an_error_can_give_back_unfinished_messages_and_exit_with_13(broker, queue_name, start):
    handler = """
def handler(message):
    note("run", message)
    if message.body["n"] == 2:
        raise ValueError("cannot cope")
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=HALTING).ready()
    publish(broker.url, queue_name, range(10))
    assert instance.wait() == 13
    assert [note["body"]["n"] for note in instance.notes()] == [0, 1, 2]
    assert broker.depth(queue_name) == (8, 0)
    assert "ValueError: cannot cope" in instance.log
    assert "in handler" in instance.log, "the author's traceback is there"
    assert instance.told("STATUS=ValueError: cannot cope")


@pytest.mark.parametrize("statement", ["raise SystemExit(3)", "raise StopIteration"])
@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_no_exception_of_a_handler_ends_the_process_behind_its_back(
    broker, queue_name, start, statement, keyword
):
    handler = f"{keyword} handler(message):\n    {statement}\n"
    instance = start(broker.url, queue_table(queue_name), handler, extra=HALTING).ready()
    publish(broker.url, queue_name, [1])
    assert instance.wait() == 13
    assert broker.depth(queue_name) == (1, 0)


def test_a_failing_setup_ends_the_instance_with_13_and_its_traceback(broker, queue_name, start):
    handler = """
from consumer_framework import Consumer
class handler(Consumer):
    def setup(self):
        raise RuntimeError("no database")
    def handle(self, message):
        pass
"""
    instance = start(broker.url, queue_table(queue_name), handler)
    assert instance.wait() == 13
    assert "RuntimeError: no database" in instance.log
    assert instance.told("STATUS=the handler cannot be set up: RuntimeError: no database")


def test_a_configuration_error_of_the_handler_is_one_of_the_instance(broker, queue_name, start):
    handler = """
from fedora_messaging.exceptions import ConfigurationException
class handler:
    def __init__(self):
        raise ConfigurationException("no [consumer_config] database")
    def __call__(self, message):
        pass
"""
    instance = start(broker.url, queue_table(queue_name), handler)
    assert instance.wait() == 78
    assert "Traceback" not in instance.log


def test_a_handler_can_publish_through_fedora_messaging(broker, queue_name, start):
    handler = """
from fedora_messaging import api
def handler(message):
    note("run", message)
    if message.body["n"] == 1:
        api.publish(api.Message(topic=message.topic, body={"n": 2}))
        note("published", message)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    assert [note["body"]["n"] for note in instance.noted("run", 2)] == [1, 2]
    assert instance.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_handler_finish_and_gives_the_rest_back(
    broker, queue_name, start, number
):
    handler = """
def handler(message):
    note("start", message)
    time.sleep(1.5)
    note("done", message)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, range(5))
    instance.noted("start", 1)
    instance.send(number)
    until(lambda: broker.depth(queue_name) == (4, 0), "the rest is back before the handler ends")
    assert not instance.notes("done")
    assert instance.wait() == 0
    assert len(instance.notes("done")) == 1
    assert broker.depth(queue_name) == (4, 0)
    assert instance.told("STOPPING=1")


def test_a_second_signal_does_not_wait_for_the_handler(broker, queue_name, start):
    handler = """
def handler(message):
    note("start", message)
    time.sleep(60)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    instance.send()
    until(lambda: instance.told("STOPPING=1"), "it is draining")
    assert instance.stop() == 128 + signal.SIGTERM
    assert "message 1 on" in instance.log
    assert "is left in its handler" in instance.log
    assert "Task was destroyed" not in instance.log
    until(lambda: broker.depth(queue_name) == (1, 0), "the message is back")


def test_a_signal_while_the_handler_is_built_stops_the_instance(broker, queue_name, start):
    handler = """
from consumer_framework import Consumer
class handler(Consumer):
    def setup(self):
        open(os.environ["NOTES"], "a").write('{"event": "setup"}\\n')
        time.sleep(1)
    def handle(self, message):
        pass
    def teardown(self):
        open(os.environ["NOTES"], "a").write('{"event": "teardown"}\\n')
"""
    instance = start(broker.url, queue_table(queue_name), handler)
    instance.noted("setup", 1)
    assert instance.stop() == 0
    assert [note["event"] for note in instance.notes()] == ["setup", "teardown"]


def test_somebody_elses_stop_of_the_reactor_drains_first(broker, queue_name, start):
    handler = """
def handler(message):
    from twisted.internet import reactor
    reactor.callFromThread(reactor.stop)
    time.sleep(1)
    note("done", message)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, range(3))
    assert instance.wait() == 0
    assert len(instance.notes("done")) == 1
    assert broker.depth(queue_name) == (2, 0)
