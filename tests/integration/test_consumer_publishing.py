# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that a handler publishes: stored before its message is acknowledged, then sent."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
from contextlib import closing

import pika
import pytest

from .instance import publish, queue_table, until

IMPORTS = """
import asyncio, contextvars, signal, sys
from fedora_messaging import api
from fedora_messaging.message import Message
from consumer_framework import Consumer, BatchConsumer, publishing
from consumer_framework.core.errors import Drop, Halt, Retry, Skip

def answer(message, n=None):
    topic = config.conf["consumer_config"]["answers"]
    body = {"n": message.body["n"] if n is None else n}
    return Message(topic=topic, body=body)
"""

KINDS = {
    "a function with upstream's API": """
def handler(message):
    api.publish(answer(message))
""",
    "a coroutine with upstream's API": """
async def handler(message):
    api.publish(answer(message))
""",
    "a coroutine that awaits upstream's Deferred": """
async def handler(message):
    await api.twisted_publish(answer(message)).asFuture(asyncio.get_running_loop())
""",
    "a function that imported upstream's API by its name": """
from fedora_messaging.api import publish
def handler(message):
    publish(answer(message))
""",
    "a function": """
def handler(message):
    publishing.publish(answer(message))
""",
    "a coroutine": """
async def handler(message):
    await publishing.publish_async(answer(message))
""",
    "a thread of a coroutine": """
async def handler(message):
    await asyncio.to_thread(publishing.publish, answer(message))
""",
    "a thread with the context": """
def handler(message):
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(api.publish, answer(message)))
    thread.start()
    thread.join()
""",
    "a block": """
def handler(message):
    with publishing.default().transaction():
        publishing.publish(answer(message))
    try:
        with publishing.default().transaction():
            publishing.publish(answer(message, 99))
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
""",
    "a batch": """
class handler(BatchConsumer):
    def handle_batch(self, messages):
        for message in messages:
            publishing.publish(answer(message))
""",
}


class Answers:
    """The queue that answers go to."""

    def __init__(self, url, name):
        self.name = name
        self._url = url
        self._got = []
        with self._channel() as channel:
            channel.queue_declare(name, auto_delete=False)
            channel.queue_bind(name, "amq.topic", f"#.{name}".removeprefix("#."))
            channel.queue_bind(name, "amq.topic", f"prefixed.{name}")

    def _channel(self):
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()

        class Closing:
            def __enter__(self):
                return channel

            def __exit__(self, *_):
                connection.close()

        return Closing()

    def messages(self):
        """Return all messages so far, each as its topic, id and body."""
        with self._channel() as channel:
            while (got := channel.basic_get(self.name, auto_ack=True))[0] is not None:
                method, properties, body = got
                self._got.append((method.routing_key, properties.message_id, json.loads(body)))
        return self._got

    def bodies(self):
        return sorted(body["n"] for _, _, body in self.messages())

    def delete(self):
        with self._channel() as channel:
            channel.queue_delete(self.name)


@pytest.fixture
def answers(broker, queue_name):
    answers = Answers(broker.url, f"{queue_name}.answers")
    yield answers
    answers.delete()


@pytest.fixture
def begin(broker, queue_name, answers, start):
    """Start an instance whose handler publishes answers."""

    def begin(handler, framework="", *, after="", **options):
        extra = f'[consumer_config]\nanswers = "{answers.name}"\n'
        extra += f"[consumer_config.framework]\n{framework}\n{after}"
        return start(broker.url, queue_table(queue_name), IMPORTS + handler, extra=extra, **options)

    return begin


def rows(instance):
    """Return the number of messages in the outbox."""
    with closing(sqlite3.connect(instance.state / "outbox.sqlite3")) as connection:
        return connection.execute("SELECT COUNT(*) FROM fm_outbox").fetchone()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_a_handler_publishes_is_sent(broker, queue_name, answers, begin, kind):
    batch = "batch = { size = 10, seconds = 0.2 }" if kind == "a batch" else ""
    instance = begin(KINDS[kind], batch).ready()
    publish(broker.url, queue_name, range(20))
    until(lambda: answers.bodies() == list(range(20)), lambda: f"{answers.bodies()} {instance.log}")
    until(lambda: rows(instance) == 0, "the rows are gone")
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert answers.bodies() == list(range(20))
    assert "Traceback" not in instance.log


ENDINGS = {
    "raise Skip('nothing to do')": True,
    "raise Halt(0, 'done')": True,
    "raise HaltConsumer()": True,
    "raise ValueError": False,
    "raise Drop('old')": False,
    "raise Halt(0, 'later', requeue=True)": False,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_a_message_that_is_done_publishes(broker, queue_name, answers, begin, ending):
    handler = f"""
def handler(message):
    api.publish(answer(message))
    note("ran", message)
    {ending}
"""
    recovery = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n"
    instance = begin(handler, after=recovery).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("ran", 1)
    assert (instance.wait() if "Halt" in ending else instance.stop()) == 0
    # The drain has settled and sent everything.
    assert broker.depth(queue_name) == (int("requeue=True" in ending), 0)
    assert answers.bodies() == ([1] if ENDINGS[ending] else [])
    if ENDINGS[ending]:
        assert rows(instance) == 0
    else:
        assert not (instance.state / "outbox.sqlite3").exists()


def test_a_retry_publishes_the_messages_of_the_run_that_succeeds(
    broker, queue_name, answers, begin
):
    handler = """
runs = 0
def handler(message):
    global runs
    runs += 1
    api.publish(answer(message, runs))
    if runs < 3:
        raise Retry("not yet", after=0.1)
"""
    recovery = "[consumer_config.framework.recovery]\nimmediate = 2\n"
    instance = begin(handler, after=recovery).ready()
    publish(broker.url, queue_name, [1])
    until(answers.bodies, "an answer")
    assert instance.stop() == 0
    assert answers.bodies() == [3]


# The process dies once, at the point that is patched into it.
KILLED = """
from consumer_framework.publishing import writer
killed = os.environ["NOTES"] + ".killed"

def die_once(original):
    def patched(*arguments):
        if not os.path.exists(killed):
            open(killed, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    return patched

{patch}

def handler(message):
    note("ran", message)
    api.publish(answer(message))
"""
POINTS = {
    "before the commit": (
        "writer.PublishedWriter._store = die_once(writer.PublishedWriter._store)",
        0,
    ),
    "between the commit and the acknowledgement": ("writer._answer = die_once(writer._answer)", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_sends_the_message_once(broker, queue_name, answers, begin, point):
    patch, stored = POINTS[point]
    instance = begin(KILLED.format(patch=patch)).ready()
    publish(broker.url, queue_name, [1])
    assert instance.wait() == -signal.SIGKILL
    assert (instance.state / "outbox.sqlite3").exists() == bool(stored)
    instance.start().ready()
    instance.noted("ran", 2)
    until(answers.bodies, "an answer")
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert answers.bodies() == [1], "the second run's message is the first one's"
    assert rows(instance) == 0


def test_messages_that_cannot_be_sent_wait_and_go_out_after_a_restart(
    broker, queue_name, answers, begin
):
    handler = KINDS["a function"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dead = f'[consumer_config.framework.outbox]\nendpoints = ["amqp://127.0.0.1:{port}"]\n'
    instance = begin(handler, after=dead).ready()
    publish(broker.url, queue_name, range(5))
    until(lambda: instance.told("cannot send"), "the status says why", 30)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert rows(instance) == 5
    instance.configuration.write_text(instance.configuration.read_text().replace(dead, ""))
    instance.start().ready()
    until(lambda: answers.bodies() == list(range(5)), lambda: instance.log)
    assert instance.stop() == 0


FULL = """
from sqlalchemy import event, pool

@event.listens_for(pool.Pool, "checkout")
def fill(connection, *_):
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    full = os.path.exists(os.environ["NOTES"] + ".full")
    connection.execute(f"PRAGMA max_page_count = {pages if full else 1 << 30}")

def handler(message):
    note("ran", message)
    # Each is longer than the pages that the one before has left free.
    text = "x" * 10 ** (4 + message.body["n"])
    api.publish(Message(topic=answer(message).topic, body={**message.body, "text": text}))
"""


def test_a_full_disk_pauses_the_instance_and_loses_nothing(broker, queue_name, answers, begin):
    instance = begin(FULL).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: answers.bodies() == [1] and not rows(instance), "the first answer")
    flag = instance.configuration.with_name("notes.full")
    flag.touch()
    publish(broker.url, queue_name, [2, 2])
    instance.noted("ran", 2)
    until(lambda: instance.told("disk is full"), lambda: f"paused\n{instance.log}")
    assert answers.bodies() == [1]
    flag.unlink()
    until(lambda: answers.bodies() == [1, 2, 2], lambda: instance.log)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert rows(instance) == 0


def test_a_stop_with_a_full_disk_gives_the_messages_back(broker, queue_name, answers, begin):
    instance = begin(FULL).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: answers.bodies() == [1] and not rows(instance), "the first answer")
    instance.configuration.with_name("notes.full").touch()
    publish(broker.url, queue_name, [2])
    until(lambda: instance.told("disk is full"), lambda: f"paused\n{instance.log}")
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (1, 0)


def test_a_handler_that_ends_in_the_drain_publishes(broker, queue_name, answers, begin):
    handler = """
def handler(message):
    note("start", message)
    time.sleep(1.5)
    api.publish(answer(message))
"""
    instance = begin(handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    assert instance.stop() == 0
    assert answers.bodies() == [1]
    assert broker.depth(queue_name) == (0, 0)


def test_setup_and_teardown_publish_at_once(answers, begin):
    handler = """
class handler(Consumer):
    def setup(self):
        publishing.publish(Message(topic=config.conf["consumer_config"]["answers"], body={"n": 1}))
    def handle(self, message):
        pass
    def teardown(self):
        api.publish(Message(topic=config.conf["consumer_config"]["answers"], body={"n": 2}))
"""
    instance = begin(handler).ready()
    until(lambda: answers.bodies() == [1], lambda: instance.log)
    assert instance.stop() == 0
    assert answers.bodies() == [1, 2]


def test_a_reload_changes_the_topic_prefix(broker, queue_name, answers, begin):
    instance = begin(KINDS["a function with upstream's API"]).ready()
    publish(broker.url, queue_name, [1])
    until(answers.bodies, "an answer")
    text = instance.configuration.read_text()
    instance.configuration.write_text('topic_prefix = "prefixed"\n' + text)
    instance.send(signal.SIGHUP)
    until(lambda: "reloaded" in instance.log, lambda: instance.log)
    publish(broker.url, queue_name, [2])
    until(lambda: answers.bodies() == [1, 2], lambda: instance.log)
    assert instance.stop() == 0
    topics = [topic for topic, _, _ in answers.messages()]
    assert topics == [answers.name, f"prefixed.{answers.name}"]


def test_slots_publish_at_once_and_lose_nothing(broker, queue_name, answers, begin):
    handler = """
def handler(message):
    time.sleep(0.001 * (message.body["n"] % 3))
    api.publish(answer(message))
"""
    instance = begin(handler, "slots = 8").ready()
    publish(broker.url, queue_name, range(300))
    until(lambda: answers.bodies() == list(range(300)), lambda: instance.log)
    instance.send(signal.SIGKILL)


def test_a_batch_publishes_unless_all_of_it_failed(broker, queue_name, answers, begin):
    handler = """
class handler(BatchConsumer):
    def handle_batch(self, messages):
        numbers = [message.body["n"] for message in messages]
        publishing.publish(answer(messages[0], sum(numbers)))
        note("ran", messages[0])
        for message in messages:
            if message.body["n"] == 1:
                messages.fail(message, Drop("no"))
"""
    instance = begin(handler, "batch = { size = 3, seconds = 1 }").ready()
    publish(broker.url, queue_name, [1, 10, 100])
    until(answers.bodies, lambda: instance.log)
    publish(broker.url, queue_name, [1])
    instance.noted("ran", 2)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert answers.bodies() == [111]


def test_an_instance_that_publishes_nothing_imports_no_database(broker, queue_name, begin):
    handler = """
def handler(message):
    names = [thread.name for thread in threading.enumerate()]
    modules = [name for name in ("sqlalchemy", "alembic") if name in sys.modules]
    note("ran", message, names=names, modules=modules)
"""
    instance = begin(handler).ready()
    publish(broker.url, queue_name, [1])
    [note] = instance.noted("ran", 1)
    assert instance.stop() == 0
    assert note["modules"] == []
    assert not {"relay", "published", "sender"} & set(note["names"])
    assert not (instance.state / "outbox.sqlite3").exists()


DIRECT = {
    "a function": """
def handler(message):
    api.publish(answer(message))
    note("sent", message)
""",
    "a coroutine": """
async def handler(message):
    api.publish(answer(message))
    note("sent", message)
""",
    "a coroutine that awaits": """
async def handler(message):
    await api.twisted_publish(answer(message)).asFuture(asyncio.get_running_loop())
    note("sent", message)
""",
    "ten threads": """
def handler(message):
    def send(n):
        api.publish(answer(message, n))
        note("sent", message)
    threads = [threading.Thread(target=send, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
""",
}


@pytest.mark.parametrize("kind", DIRECT)
def test_direct_publishing_sends_before_the_handler_goes_on(
    broker, queue_name, answers, begin, kind
):
    handler = DIRECT[kind] + "\n    names = [thread.name for thread in threading.enumerate()]"
    handler += (
        '\n    note("ran", message, names=names)\n    raise Drop("it is sent nevertheless")\n'
    )
    instance = begin(handler, 'publishing = "direct"').ready()
    publish(broker.url, queue_name, [1])
    [note] = instance.noted("ran", 1)
    expected = list(range(10)) if kind == "ten threads" else [1]
    assert answers.bodies() == expected
    assert not any("crochet" in name.lower() for name in note["names"])
    assert instance.stop() == 0
    lines = [line for line in instance.log.splitlines() if "consuming from" in line]
    assert len(lines) == 1, "no line is doubled"
    assert not (instance.state / "outbox.sqlite3").exists()


def test_direct_publishing_raises_the_errors_of_upstream(broker, queue_name, answers, begin):
    handler = """
def handler(message):
    errors = []
    for wrong in (lambda: api.publish(answer(message), exchange="missing"),
                  lambda: api.publish(Message(topic="t", body=["no object"])),
                  lambda: api.publish(Message(topic="t" * 300, body={}))):
        try:
            wrong()
        except Exception as error:
            errors.append(f"{type(error).__module__}.{type(error).__name__}")
    api.publish(answer(message))
    note("ran", message, errors=errors)
"""
    instance = begin(handler, 'publishing = "direct"').ready()
    publish(broker.url, queue_name, [1])
    [note] = instance.noted("ran", 1)
    assert note["errors"] == [
        "fedora_messaging.exceptions.PublishForbidden",
        "jsonschema.exceptions.ValidationError",
        "fedora_messaging.exceptions.PublishException",
    ]
    assert answers.bodies() == [1]
    assert instance.stop() == 0


def test_an_instance_without_a_place_for_an_outbox_publishes_directly(
    broker, queue_name, answers, begin
):
    instance = begin(DIRECT["a function"], 'store = "memory"').ready()
    publish(broker.url, queue_name, [1])
    instance.noted("sent", 1)
    assert answers.bodies() == [1]
    assert instance.stop() == 0


@pytest.mark.parametrize(
    ("framework", "cure"),
    [
        ('store = "memory"\npublishing = "outbox"', 'publishing = "direct"'),
        ('outbox = { messenger = "fedora" }', 'use "amqp"'),
        ('outbox = { messenger = "pigeon" }', "use one of"),
    ],
)
def test_settings_that_no_instance_can_publish_with_are_refused(begin, framework, cure):
    instance = begin(KINDS["a function"], framework)
    assert instance.wait() == 78
    assert cure in instance.log
    assert "Traceback" not in instance.log
