# SPDX-License-Identifier: GPL-2.0-or-later
"""An instance stops cleanly at awkward moments."""

from __future__ import annotations

import signal
import time

import pika
import pytest

from .instance import publish, queue_table, until

SLOW = """
from consumer_framework import Consumer
class handler(Consumer):
    def handle(self, message):
        note("start", message)
        time.sleep(4)
        note("done", message)
    def teardown(self):
        open(os.environ["NOTES"], "a").write('{"event": "teardown"}\\n')
"""


def test_a_stop_while_it_connects_again_waits_for_the_handler_and_tears_down(
    broker, queue_name, proxy, start
):
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), SLOW).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    proxy.stall()
    proxy.cut()
    time.sleep(2)
    assert instance.stop() == 0
    assert [note["event"] for note in instance.notes()] == ["start", "done", "teardown"]
    assert "Traceback" not in instance.log


def test_a_queue_changed_during_a_reconnect_ends_it_without_a_traceback(
    broker, queue_name, proxy, start
):
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), SLOW).ready()
    proxy.refuse()
    proxy.cut()
    until(lambda: "no connection" in instance.log, "the loss is noticed")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_delete(queue_name)
        channel.queue_declare(queue_name, durable=False)
    proxy.accept()
    assert instance.wait(40) == 10
    assert "Traceback" not in instance.log


def test_the_first_signal_does_not_cut_short_a_drain_that_began_by_itself(
    broker, queue_name, start
):
    instance = start(broker.url, queue_table(queue_name), SLOW).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(queue_name)
    until(lambda: instance.told("STOPPING=1"), "it stops by itself")
    assert instance.stop() == 12
    assert [note["event"] for note in instance.notes()] == ["start", "done", "teardown"]


@pytest.mark.parametrize(
    "trick",
    ["asyncio.current_task().cancel()", "[t.cancel() for t in asyncio.all_tasks()]"],
)
def test_a_handler_that_cancels_tasks_leaves_no_zombie(broker, queue_name, start, trick):
    handler = f"""
import asyncio
async def handler(message):
    {trick}
    await asyncio.sleep(1)
"""
    extra = """
[consumer_config.framework.recovery]
immediate = 0
delays = []
on_exhausted = "halt"
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    assert instance.wait() in (11, 13)
    assert broker.depth(queue_name) == (1, 0)


def test_a_handler_that_cancels_itself_fails_like_any_other_and_the_instance_goes_on(
    broker, queue_name, start
):
    handler = """
import asyncio
async def handler(message):
    note("run", message)
    if message.body["n"] == 1:
        asyncio.current_task().cancel()
        await asyncio.sleep(1)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1, 2])
    instance.noted("run", 3)
    assert instance.stop() == 0
    assert sorted(note["body"]["n"] for note in instance.notes("run")) == [1, 1, 2]
    assert broker.depth(queue_name) == (1, 0)


@pytest.mark.parametrize("method", ["setup", "teardown"])
def test_a_cancellation_out_of_the_authors_code_is_its_failure(broker, queue_name, start, method):
    handler = f"""
import asyncio
from consumer_framework import Consumer
class handler(Consumer):
    async def {method}(self):
        raise asyncio.CancelledError
    def handle(self, message):
        pass
"""
    instance = start(broker.url, queue_table(queue_name), handler)
    if method == "teardown":
        instance.ready()
        instance.send()
    assert instance.wait() == 13


BACKGROUND = {
    "a thread that a handler starts": """
    threading.Thread(target=work, name="mine").start()
""",
    "a pool of threads": """
    pool.submit(work)
""",
    "a thread of asyncio": """
    import asyncio
    asyncio.run_coroutine_threadsafe(asyncio.to_thread(work), loop)
""",
    "a child process": """
    multiprocessing.get_context("fork").Process(target=work, name="mine").start()
""",
}


@pytest.mark.parametrize("how", BACKGROUND)
def test_a_stop_waits_for_background_work_of_the_callback_and_for_atexit(
    broker, queue_name, start, how
):
    handler = f"""
import asyncio, atexit, multiprocessing
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
loop = asyncio.get_event_loop_policy().get_event_loop()

def write(event):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps({{"event": event}}) + "\\n")

def work():
    time.sleep(2)
    write("worked")

atexit.register(write, "at exit")

def handler(message):
    {BACKGROUND[how]}
    raise HaltConsumer(exit_code=7)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    assert instance.wait() == 7
    assert [note["event"] for note in instance.notes()][-2:] == ["worked", "at exit"]
    assert "waiting for " in instance.log


def test_a_pool_whose_threads_are_idle_is_not_waited_for(broker, queue_name, start):
    handler = """
import asyncio, atexit
atexit.register(lambda: print("ended in good order", flush=True))
async def handler(message):
    await asyncio.to_thread(note, "done", message)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0
    assert "ended in good order" in instance.log
    assert "the process ends although" not in instance.log


def test_a_second_signal_ends_the_wait_for_a_thread_with_the_same_exit_code(
    broker, queue_name, start
):
    handler = """
def handler(message):
    threading.Thread(target=time.sleep, args=[600], name="mine").start()
    raise HaltConsumer(exit_code=7)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: "waiting for thread mine" in instance.log, "it is waited for")
    instance.send()
    until(lambda: "SIGTERM: stopped already" in instance.log, "the first one is noticed")
    instance.send(signal.SIGINT)
    assert instance.wait() == 7
    assert "the process ends although these run: thread mine" in instance.log


KEPT_OPEN = {
    "a class": """
class handler:
    def __init__(self):
        self.file = open(os.environ["NOTES"], "a")
    def __call__(self, message):
        self.file.write(json.dumps({"event": "done", "n": message.body["n"]}) + "\\n")
""",
    "a coroutine class": """
class handler:
    def __init__(self):
        self.file = open(os.environ["NOTES"], "a")
        self.me = self
    async def __call__(self, message):
        self.file.write(json.dumps({"event": "done", "n": message.body["n"]}) + "\\n")
""",
    "a Consumer": """
from consumer_framework import Consumer
class handler(Consumer):
    def setup(self):
        self.file = open(os.environ["NOTES"], "a")
    def handle(self, message):
        self.file.write(json.dumps({"event": "done", "n": message.body["n"]}) + "\\n")
""",
    "a module": """
file = open(os.environ["NOTES"], "a")
def handler(message):
    file.write(json.dumps({"event": "done", "n": message.body["n"]}) + "\\n")
""",
}


@pytest.mark.parametrize("form", KEPT_OPEN)
def test_a_file_that_the_callback_left_open_is_written_at_a_clean_stop(
    broker, queue_name, start, form
):
    instance = start(broker.url, queue_table(queue_name), KEPT_OPEN[form]).ready()
    publish(broker.url, queue_name, range(50))
    until(lambda: broker.depth(queue_name) == (0, 1), "all are taken")
    assert instance.stop() == 0
    # Messages that had not started went back.
    given_back, _ = broker.depth(queue_name)
    assert given_back < 50
    assert [note["n"] for note in instance.notes("done")] == list(range(50 - given_back))


def test_a_second_signal_ends_a_process_whose_event_loop_is_blocked(broker, queue_name, start):
    handler = """
async def handler(message):
    note("start", message)
    time.sleep(60)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    instance.send()
    time.sleep(0.5)
    assert instance.stop() == 128 + signal.SIGTERM


@pytest.mark.parametrize(("number", "again"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM")])
def test_a_stop_names_the_thing_it_waits_for_and_the_way_to_stop_now(
    broker, queue_name, start, number, again
):
    handler = """
def handler(message):
    note("start", message)
    time.sleep(60)
"""
    instance = start(broker.url, queue_table(queue_name), handler).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    instance.send(getattr(signal, number))
    until(lambda: f"{again} again to stop now" in instance.log, instance.log)
    assert "Stopping: waiting for 1 running" in instance.log
    instance.send(getattr(signal, number))
    instance.wait()


def test_the_framework_logs_although_a_log_config_disables_existing_loggers(
    broker, queue_name, start
):
    extra = """
passive_declares = true
[log_config]
version = 1
disable_existing_loggers = true
[log_config.handlers.console]
class = "logging.StreamHandler"
stream = "ext://sys.stdout"
[log_config.root]
level = "WARNING"
handlers = ["console"]
"""
    instance = start(broker.url, queue_table(queue_name), SLOW, extra=extra)
    assert instance.wait() == 10
    assert f'the queue "{queue_name}": 404 NOT_FOUND' in instance.log


def test_a_channel_close_that_takes_long_leaves_no_zombie(broker, queue_name, proxy, start):
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), SLOW).ready()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_delete(queue_name)
        until(lambda: "canceled the consumer" in instance.log, "the cancel is noticed")
        proxy.stall()
        channel.queue_declare(queue_name, durable=True)
        time.sleep(2)
    proxy.resume()
    until(lambda: broker.depth(queue_name)[1] == 1, "it is subscribed again")
    assert instance.stop() == 0
