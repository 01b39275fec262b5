# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and stops have time limits, and the service manager hears of them."""

from __future__ import annotations

import re
import signal
import time

import pytest

from .instance import FM_CONSUMER, publish, queue_table, until

TEARDOWN = """
    def teardown(self):
        open(os.environ["NOTES"], "a").write('{"event": "teardown"}\\n')
"""

# Takes as long as the message says, and notes its end.
PLAIN = f"""
from consumer_framework import Consumer
class handler(Consumer):
    def handle(self, message):
        note("start", message)
        time.sleep(message.body.get("sleep", 60))
        note("done", message)
{TEARDOWN}"""

COROUTINE = f"""
import asyncio
from consumer_framework import Consumer
class handler(Consumer):
    async def handle(self, message):
        note("start", message)
        await asyncio.sleep(message.body.get("sleep", 60))
        note("done", message)
{TEARDOWN}"""


def limits(**settings):
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in settings.items()]
    return "\n".join(["[consumer_config.framework]", *lines])


def told(instance, pattern):
    """Return the first group of *pattern* in each notification that matches."""
    return [found[1] for text in instance.notifications if (found := re.search(pattern, text))]


@pytest.mark.parametrize("handler", [PLAIN, COROUTINE])
def test_a_drain_asks_for_time_and_counts_down_while_a_handler_is_inside_its_deadline(
    broker, queue_name, start, handler
):
    extra = limits(handler_timeout="50s")
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, [b'{"sleep": 3}', *range(3)])
    instance.noted("start", 1)
    instance.send()
    until(lambda: broker.depth(queue_name) == (3, 0), "the rest is given back first")
    assert not instance.notes("done")
    assert instance.wait() == 0
    assert [note["event"] for note in instance.notes()] == ["start", "done", "teardown"]
    orders = [text.partition("=")[0] for text in instance.notifications]
    assert "EXTEND_TIMEOUT_USEC" in orders[orders.index("STOPPING") :], "after systemd knows of it"
    left = [
        int(n) for n in told(instance, r"STATUS=Stopping: waiting for 1 running, (\d+) s at the")
    ]
    assert len(left) >= 2
    assert left == sorted(left, reverse=True)
    assert 40 < left[0] <= 55


def test_a_plain_handler_that_never_ends_is_left_at_its_deadline_and_counts_as_a_crash(
    broker, queue_name, start
):
    extra = limits(handler_timeout="1s")
    # The limits are the same without a service manager.
    alone = ["env", "-u", "NOTIFY_SOCKET", str(FM_CONSUMER)]
    instance = start(broker.url, queue_table(queue_name), PLAIN, extra=extra, prefix=alone)
    publish_when_bound(broker, queue_name, [1])
    instance.noted("start", 1)
    instance.send()
    assert instance.wait() == 13
    assert "gave up waiting for 1 running" in instance.log
    assert (
        f"message 1 on {queue_name} is left in its handler; the broker will deliver it again, and "
        "this counts as crash 1 of 2\n"
    ) in instance.log
    until(lambda: broker.depth(queue_name) == (1, 0), "the message is back")


def publish_when_bound(broker, queue_name, bodies):
    """Wait for the consumer on the broker, because no notification comes, and publish."""
    until(lambda: consumes(broker, queue_name), "it consumes")
    publish(broker.url, queue_name, bodies)


def consumes(broker, queue_name):
    try:
        return broker.depth(queue_name)[1] == 1
    except Exception:  # noqa: BLE001 -- the queue is not there yet
        return False


def test_a_coroutine_is_cancelled_at_its_deadline_and_the_drain_goes_on(broker, queue_name, start):
    extra = limits(handler_timeout="1s")
    instance = start(broker.url, queue_table(queue_name), COROUTINE, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    assert instance.stop() == 0
    assert len(instance.notes("teardown")) == 1
    assert "HandlerTimeoutError: cancelled after 1s" in instance.log
    assert broker.depth(queue_name) == (1, 0)


@pytest.mark.parametrize(("handler", "end"), [(PLAIN, "left"), (COROUTINE, "cancelled")])
def test_a_second_signal_is_no_crash_of_a_message_within_its_deadline(
    broker, queue_name, start, handler, end
):
    extra = "[consumer_config.framework.recovery]\ncrash_attempts = 1"
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("start", 1)
    instance.send()
    until(lambda: instance.told("STOPPING=1"), "it is draining")
    assert instance.stop() == 128 + signal.SIGTERM
    assert (
        f"message 1 on {queue_name} is {end} in its handler; the broker will deliver it again, "
        "and this does not count as a crash\n"
    ) in instance.log
    instance.start()
    instance.noted("start", 2)


def test_a_second_signal_is_a_crash_of_a_message_over_its_deadline(broker, queue_name, start):
    extra = limits(handler_timeout="1s")
    extra += "\n[consumer_config.framework.recovery]\ncrash_attempts = 1"
    instance = start(broker.url, queue_table(queue_name), PLAIN, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: "has had message 1 for more than 1s" in instance.log, "it is over its deadline")
    instance.send()
    until(lambda: instance.told("STOPPING=1"), "it is draining")
    assert instance.stop() == 128 + signal.SIGTERM
    assert "and this counts as crash 1 of 1: it will be quarantined\n" in instance.log
    instance.start()
    until(lambda: "is quarantined: " in instance.log, "it is quarantined before it runs")
    assert len(instance.notes("start")) == 1


def test_a_teardown_has_as_long_as_a_handler(broker, queue_name, start):
    handler = """
from consumer_framework import Consumer
class handler(Consumer):
    def handle(self, message):
        pass
    def teardown(self):
        time.sleep(60)
"""
    extra = limits(handler_timeout="1s")
    instance = start(broker.url, queue_table(queue_name), handler, extra=extra).ready()
    assert instance.stop() == 13
    assert told(instance, r"STATUS=Stopping: waiting for (the handler's teardown), \d s at the")
    assert instance.notifications[-1] == "STATUS=gave up waiting for the handler's teardown"


def test_a_broker_that_stays_away_ends_the_start_with_a_code_of_its_own(
    broker, queue_name, proxy, start
):
    proxy.refuse()
    extra = limits(start_timeout="3s")
    url = proxy.url_for(broker.url)
    began = time.monotonic()
    instance = start(url, queue_table(queue_name), PLAIN, extra=extra)
    assert instance.wait() == 75
    assert time.monotonic() - began >= 3
    assert instance.told("EXTEND_TIMEOUT_USEC=15000000")
    assert not instance.told("READY=1")
    address = f"127.0.0.1:{proxy.port}"
    waits = rf"STATUS=Waiting for the broker at {address}: connection refused; attempt (\d+) in "
    assert told(instance, waits)[0] == "2"
    assert told(instance, rf"{waits}\d s; gives up in [0-3] s")
    late = f"not started within 3s (start_timeout): Waiting for the broker at {address}: connection"
    assert late in instance.log
    assert len(instance.notes("teardown")) == 1


def test_after_the_start_a_broker_that_is_away_is_waited_for_without_an_end(
    broker, queue_name, proxy, start
):
    extra = limits(start_timeout="5s")
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), PLAIN, extra=extra).ready()
    proxy.refuse()
    proxy.cut()
    time.sleep(6)
    assert told(instance, r"(STATUS=Waiting for the broker)")
    assert not told(instance, r"Waiting.*(gives up)")
    proxy.accept()
    until(lambda: instance.log.count("consuming from") == 2, "it is back")
    assert instance.stop() == 0


DEPENDENT = """
from consumer_framework import Consumer, DependencyFault
class handler(Consumer):
    def setup(self):
        open(os.environ["NOTES"], "a").write('{"event": "setup"}\\n')
        if not os.path.exists(os.environ["NOTES"] + ".database"):
            raise DependencyFault("the database is gone")
    def handle(self, message):
        note("done", message)
"""


def test_a_dependency_that_the_setup_needs_is_waited_for(broker, queue_name, start, tmp_path):
    instance = start(broker.url, queue_table(queue_name), DEPENDENT)
    instance.noted("setup", 2)
    assert told(instance, r"STATUS=(Starting: the database is gone; attempt 2 in [01] s; gives up)")
    (tmp_path / "instance_0/notes.database").touch()
    instance.ready()
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0
    assert "Traceback" not in instance.log


def test_a_dependency_that_never_comes_ends_the_start(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), DEPENDENT, extra=limits(start_timeout=2))
    assert instance.wait() == 75
    assert "not started within 2s (start_timeout): Starting: the database is gone" in instance.log


def test_a_signal_while_a_dependency_is_waited_for_stops_at_once(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), DEPENDENT)
    instance.noted("setup", 2)
    assert instance.stop() == 0


def test_a_setup_that_never_ends_is_left_when_the_start_has_had_its_time(broker, queue_name, start):
    handler = """
from consumer_framework import Consumer
class handler(Consumer):
    def setup(self):
        time.sleep(60)
    def handle(self, message):
        pass
"""
    instance = start(broker.url, queue_table(queue_name), handler, extra=limits(start_timeout=1))
    assert instance.wait() == 75
    assert "gave up waiting for the handler's setup" in instance.log


def test_the_status_has_the_numbers_of_now_and_good_messages_reset_the_restarts(
    broker, queue_name, start
):
    handler = """
from consumer_framework import Quarantine, Retry
def handler(message):
    n = message.body["n"]
    if n == 0:
        raise Quarantine("bad")
    if n == 1:
        raise Retry("busy", after="5m")
"""
    other = f"{queue_name}.other"
    queues = queue_table(queue_name) + queue_table(other, durable=False, auto_delete=True)
    # The watchdog asks the broker for the lag.
    environment = {"WATCHDOG_USEC": "3000000"}
    instance = start(broker.url, queues, handler, environment=environment).ready()
    publish(broker.url, queue_name, range(102))
    line = r"STATUS=(consuming 2 queues, .*, 100 handled, 1 held, 1 quarantined, lag 0, up \d+ s)"
    until(lambda: told(instance, line), "the status says so")
    until(lambda: instance.told("RESTART_RESET=1"), "it works")
    assert instance.stop() == 0
    instance.start().ready()
    until(
        lambda: told(instance, r"(, 0 handled, 1 held, 1 quarantined, )"),
        "what is in the store is counted, and what the former process did is not",
    )
    assert not instance.told("RESTART_RESET=1")
    assert instance.stop() == 0
