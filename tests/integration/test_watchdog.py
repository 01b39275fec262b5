# SPDX-License-Identifier: GPL-2.0-or-later
"""A real instance feeds the watchdog while it works, and asks for a restart if stuck."""

from __future__ import annotations

import signal
import uuid

import pika

from .instance import publish, queue_table, until

# Like systemd's WatchdogSec=0.9; an instance sends in a third of that.
WATCHDOG = {"WATCHDOG_USEC": "900000"}
QUICK_DEATH = "[consumer_config.framework.recovery]\ncrash_attempts = 1\n"

HANDLER = """
from consumer_framework import heartbeat

def handler(message):
    note("start", message)
    if message.body["n"] == 1:
        time.sleep(3600)
    while message.body["n"] == 2 and not os.path.exists(os.environ["NOTES"] + ".go"):
        time.sleep(0.1)
        heartbeat()
    note("handled", message)
"""


def go(instance):
    """Let the handler of message 2 end."""
    instance.configuration.with_name("notes.go").touch()


# Ends a consumer like a fault of the broker: the queue forgets it, its channel does not, and nobody
# is notified.
FORGET = """
{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
[gen_server2:call(amqqueue:get_pid(Q), {{basic_cancel, element(1, C), element(2, C), undefined,
<<"test">>}}) || C <- rabbit_amqqueue:consumers(Q), element(2, C) =/= <<"{spared}">>].
"""


def forget_consumers(broker, queue, spared=""):
    broker.ctl("eval", FORGET.format(queue=queue, spared=spared))


def feeds(instance):
    return sum("WATCHDOG=1" in text for text in list(instance.notifications))


def fed(instance, times=4):
    """Wait until the watchdog is fed *times* more times."""
    enough = feeds(instance) + times
    until(lambda: feeds(instance) >= enough, f"{times} more feeds\n{instance.log}")
    assert not instance.told("WATCHDOG=trigger"), instance.log


def triggered(instance, reason):
    until(lambda: instance.told("WATCHDOG=trigger"), f"a trigger\n{instance.log}")
    (first, *_) = [text for text in instance.notifications if "WATCHDOG=trigger" in text]
    assert first.splitlines()[0] == "WATCHDOG=trigger"
    assert first.splitlines()[1].startswith("STATUS=Stuck: ")
    assert reason in first
    assert "stuck, and to be restarted" in instance.log
    # The faulthandler's stack of the thread that runs the event loop.
    assert "most recent call first" in instance.log


def abort(instance):
    """Abort the instance, as systemd does after a trigger."""
    instance.send(signal.SIGABRT)
    assert instance.wait() == -signal.SIGABRT


def test_an_idle_instance_feeds_the_watchdog_for_as_long_as_it_drains(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), HANDLER, environment=WATCHDOG).ready()
    fed(instance)
    publish(broker.url, queue_name, [2])
    instance.noted("start", 1)
    fed(instance)
    instance.send()
    until(lambda: instance.told("STOPPING=1"), "it drains")
    fed(instance)
    go(instance)
    assert instance.wait() == 0


def test_without_a_watchdog_nothing_is_fed_and_a_late_handler_is_only_logged(
    broker, queue_name, start
):
    extra = '[consumer_config.framework]\nhandler_timeout = "500ms"\n'
    instance = start(broker.url, queue_table(queue_name), HANDLER, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: "cannot be interrupted" in instance.log, "it is logged")
    instance.send()
    until(lambda: instance.told("STOPPING=1"), "it is not stuck itself")
    assert not instance.told("WATCHDOG")


def test_a_handler_over_its_time_ends_in_quarantine_and_the_rest_is_handled(
    broker, queue_name, start
):
    extra = f'[consumer_config.framework]\nslots = 2\nhandler_timeout = "1s"\n{QUICK_DEATH}'
    instance = start(
        broker.url, queue_table(queue_name), HANDLER, extra=extra, environment=WATCHDOG
    ).ready()
    publish(broker.url, queue_name, [0, 2, 1, 3])
    triggered(instance, "the handler does not return: message 1 is ")
    assert " in handler\n" in instance.log, "the thread that is stuck is shown"
    assert {note["id"] for note in instance.notes("start")} == {"0", "1", "2"}
    abort(instance)
    go(instance)
    instance.start().ready()
    until(lambda: len(instance.notes("handled")) >= 3, f"the rest\n{instance.log}")
    (row,) = until(instance.store, f"the row\n{instance.log}")
    assert (row.message_id, row.state) == ("1", "quarantined")
    assert row.reason.startswith("the handler did not return within handler_timeout; "), "no death"
    assert {note["id"] for note in instance.notes("handled")} == {"0", "2", "3"}
    fed(instance)
    assert instance.stop() == 0


def test_a_handler_that_beats_may_take_longer_than_its_time(broker, queue_name, start):
    handler = """
from consumer_framework import heartbeat

def handler(message):
    for _ in range(12):
        time.sleep(0.25)
        heartbeat()
    note("handled", message)
"""
    extra = '[consumer_config.framework]\nhandler_timeout = "2s"\n'
    instance = start(
        broker.url, queue_table(queue_name), handler, extra=extra, environment=WATCHDOG
    ).ready()
    publish(broker.url, queue_name, [1])
    instance.noted("handled", 1)
    assert not instance.told("WATCHDOG=trigger")
    assert "cannot be interrupted" not in instance.log
    assert instance.stop() == 0


def test_an_instance_without_a_broker_is_fed_for_it_tries(broker, queue_name, start, proxy):
    url = proxy.url_for(broker.url)
    instance = start(url, queue_table(queue_name), HANDLER, environment=WATCHDOG).ready()
    proxy.refuse()
    proxy.cut()
    until(lambda: instance.told("STATUS=Waiting for the broker"), "the loss is noticed")
    fed(instance)
    proxy.accept()
    publish(broker.url, queue_name, [3])
    instance.noted("handled", 1)
    fed(instance)
    assert instance.stop() == 0


def test_a_consumer_that_the_broker_forgot_is_missed(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), HANDLER, environment=WATCHDOG).ready()
    fed(instance)
    forget_consumers(broker, queue_name)
    publish(broker.url, queue_name, [3])
    triggered(instance, f'the broker no longer has the consumer of queue "{queue_name}"')
    assert not instance.notes(), "nothing is delivered any more"
    abort(instance)
    instance.start().ready()
    instance.noted("handled", 1)
    assert instance.stop() == 0


def test_a_forgotten_consumer_is_missed_though_others_share_its_queue(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), HANDLER, environment=WATCHDOG).ready()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue_name, print, consumer_tag="other")
        fed(instance)
        publish(broker.url, queue_name, range(10, 14))
        instance.noted("handled", 3)
        fed(instance)
        forget_consumers(broker, queue_name, spared="other")
        assert broker.consumers(queue_name) == 1
        publish(broker.url, queue_name, range(14, 18))
        triggered(instance, "the broker no longer has the consumer")


KINDS = [
    {},
    {"x-queue-type": "quorum"},
    {"x-queue-type": "stream"},
    {"x-single-active-consumer": True},
    {"x-queue-type": "quorum", "x-single-active-consumer": True},
]


def test_consumers_of_any_kind_of_queue_are_healthy_those_that_share_it_too(broker, start):
    names = [f"test.{uuid.uuid4()}" for _ in KINDS]
    queues = "".join(
        queue_table(name, arguments=kind) for name, kind in zip(names, KINDS, strict=True)
    )
    instances = [start(broker.url, queues, HANDLER, environment=WATCHDOG) for _ in range(2)]
    for instance in instances:
        instance.ready()
    for name in names:
        publish(broker.url, name, range(10, 20))
    until(
        lambda: len({(n["queue"], n["id"]) for i in instances for n in i.notes("handled")}) == 50,
        f"all are handled\n{instances[0].log}\n{instances[1].log}",
    )
    for instance in instances:
        fed(instance)
        assert instance.stop() == 0
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        for name in names:
            connection.channel().queue_delete(name)


def test_a_standby_consumer_is_not_judged_as_forgotten(broker, queue_name, start):
    arguments = {"x-single-active-consumer": True}
    extra = "[qos]\nprefetch_count = 1\n"
    queue = queue_table(queue_name, arguments=arguments)
    active = start(broker.url, queue, HANDLER, extra=extra, environment=WATCHDOG).ready()
    waiting = start(broker.url, queue, HANDLER, environment=WATCHDOG).ready()
    publish(broker.url, queue_name, [0, 1, 2, 3])
    active.noted("start", 2)
    fed(waiting, 8)
    fed(active)


def test_an_exclusive_queue_that_the_broker_names_is_looked_at_too(broker, start):
    instance = start(
        broker.url,
        queue_table("", keys=["some.topic"], exclusive=True, durable=False),
        HANDLER,
        environment=WATCHDOG,
    ).ready()
    fed(instance)
    actual = instance.log.partition("consuming from ")[2].split()[0]
    forget_consumers(broker, actual)
    triggered(instance, f'the consumer of queue "{actual}"')


def test_a_paused_instance_is_fed_though_it_consumes_nothing(broker, queue_name, start):
    handler = """
from consumer_framework import DependencyFault

def handler(message):
    raise DependencyFault("the database is down")
"""
    extra = "[consumer_config.framework.recovery]\nbreaker = {consecutive = 1}\n"
    instance = start(
        broker.url, queue_table(queue_name), handler, extra=extra, environment=WATCHDOG
    ).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: instance.told("STATUS=Paused:"), f"it pauses\n{instance.log}")
    until(lambda: broker.consumers(queue_name) == 0, "it consumes nothing")
    fed(instance)
