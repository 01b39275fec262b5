# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection and its channels survive cuts, restarts and refusals."""

from __future__ import annotations

import json
import time

import pika
import pytest

from consumer_framework.testing.broker import Broker
from consumer_framework.testing.broker.proxy import Proxy

from .instance import publish, queue_table, until

QUICK = """
def handler(message):
    note("done", message)
"""

SLOW = """
def handler(message):
    note("start", message)
    time.sleep(%s)
    note("done", message)
"""


def amqp_consumers(broker, queue):
    """Return the consumers in the broker's own list."""
    listed = json.loads(broker.ctl("list_consumers", "--formatter", "json"))
    return [consumer for consumer in listed if consumer["queue_name"] == queue]


def overlaps(notes):
    """Return True if a run started before the former one was done."""
    running = 0
    worst = 0
    for note in notes:
        running += {"start": 1, "done": -1}[note["event"]]
        worst = max(worst, running)
    return worst > 1


def test_three_cuts_during_a_handler_leave_one_consumer_and_no_second_run(
    broker, queue_name, proxy, start
):
    """fedora-messaging doubles the consumer at the first cut."""
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), SLOW % 8).ready()
    publish(broker.url, queue_name, [0])
    instance.noted("start", 1)
    for times in range(2, 5):
        proxy.cut()
        until(
            lambda: instance.log.count("consuming from") == times,
            "it is back",
            10,
        )
    assert len(instance.notes("done")) == 0, "all three cuts came while the handler ran"
    publish(broker.url, queue_name, [1])
    instance.noted("done", 2, 30)
    until(lambda: broker.depth(queue_name) == (0, 1), "one consumer, nothing waits")
    assert len(amqp_consumers(broker, queue_name)) == 1
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0), "and nothing was left unacknowledged"
    assert not overlaps(instance.notes())
    assert [note["body"]["n"] for note in instance.notes("start")] == [0, 1]


def test_a_message_whose_handler_ended_while_disconnected_is_not_run_again(
    broker, queue_name, proxy, start
):
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), SLOW % 0.7).ready()
    publish(broker.url, queue_name, range(4))
    instance.noted("start", 1)
    proxy.refuse()
    proxy.cut()
    instance.noted("done", 1)
    time.sleep(0.5)
    assert len(instance.notes("start")) == 1, "nothing of the dead channel is started"
    proxy.accept()
    instance.noted("done", 4)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)
    assert [note["body"]["n"] for note in instance.notes("start")] == [0, 1, 2, 3]


@pytest.mark.parametrize("ordering", ["", 'ordering = "key"\nordering_key = "topic"\n'])
def test_a_message_acknowledged_on_a_dead_connection_is_not_run_again(
    broker, queue_name, proxy, start, ordering
):
    settings = f"[consumer_config.framework]\n{ordering}"
    url, table = proxy.url_for(broker.url), queue_table(queue_name)
    instance = start(url, table, SLOW % 0.2, extra=settings).ready()
    publish(broker.url, queue_name, range(8))
    instance.noted("start", 2)
    proxy.stall()
    instance.noted("done", 6)
    proxy.cut()
    proxy.resume()
    publish(broker.url, queue_name, [8])
    instance.noted("done", 9)
    until(lambda: broker.depth(queue_name) == (0, 1), "everything is acknowledged")
    assert instance.stop() == 0
    assert [note["body"]["n"] for note in instance.notes("start")] == list(range(9))
    assert not overlaps(instance.notes())
    assert instance.store() == [], "nothing was set aside"


def test_a_restart_of_the_broker_is_survived(queue_name, start):
    with Broker() as own:
        instance = start(own.url, queue_table(queue_name), QUICK).ready()
        publish(own.url, queue_name, [1])
        instance.noted("done", 1)
        own.restart()
        until(lambda: own.depth(queue_name)[1] == 1, "it consumes again", 60)
        publish(own.url, queue_name, [2])
        instance.noted("done", 2)
        assert instance.stop() == 0
    assert "no connection to the broker" in instance.log


PUBLISHING = """
import asyncio
from fedora_messaging import api, message as messages

async def handler(message):
    note("start", message)
    while not os.path.exists(os.environ["GATE"]):
        await asyncio.sleep(0.01)
    try:
        # Over the connection of the instance.
        sent = api.twisted_publish(messages.Message(topic="elsewhere"), exchange="amq.topic")
        await asyncio.wait_for(sent.asFuture(asyncio.get_running_loop()), 2)
    except Exception as error:
        note(type(error).__name__, message)
    note("done", message)
"""


def test_an_alarm_of_the_broker_is_said_and_a_late_publish_disturbs_no_stop(
    queue_name, start, tmp_path
):
    gate = tmp_path / "gate"
    with Broker() as own:
        environment = {"GATE": str(gate)}
        table = queue_table(queue_name)
        direct = '[consumer_config.framework]\npublishing = "direct"\n'
        instance = start(own.url, table, PUBLISHING, extra=direct, environment=environment)
        instance.ready()
        publish(own.url, queue_name, [0])
        instance.noted("start", 1)
        own.ctl("set_vm_memory_high_watermark", "0.0001")
        gate.touch()
        instance.noted("TimeoutError", 1)
        until(lambda: "blocked by the broker (low on memory)" in instance.notifications[-1], "said")
        own.ctl("set_vm_memory_high_watermark", "0.6")
        until(lambda: "blocked" not in instance.notifications[-1], "it is over")
        publish(own.url, queue_name, [1])
        instance.noted("done", 2)
        assert instance.stop() == 0
    assert len(instance.notes("TimeoutError")) == 1
    assert "AlreadyCalledError" not in instance.log
    assert "CRITICAL" not in instance.log


def test_a_broker_that_is_down_is_waited_for(broker, queue_name, proxy, start):
    proxy.refuse()
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), QUICK)
    until(lambda: instance.told("STATUS=Waiting for the broker"), "the status says so")
    assert not instance.told("READY=1")
    proxy.accept()
    instance.ready()
    assert instance.stop() == 0


def test_a_network_that_died_silently_is_noticed_by_heartbeats(broker, queue_name, proxy, start):
    url = f"{proxy.url_for(broker.url)}?heartbeat=2"
    instance = start(url, queue_table(queue_name), QUICK).ready()
    proxy.stall()
    until(lambda: "sent no heartbeat" in instance.log, "the loss is noticed", 30)
    proxy.resume()
    proxy.cut()
    until(lambda: instance.log.count("consuming from") == 2, "it is back", 60)
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0


def test_a_stop_while_disconnected_does_not_wait_for_the_broker(broker, queue_name, proxy, start):
    instance = start(proxy.url_for(broker.url), queue_table(queue_name), QUICK).ready()
    proxy.refuse()
    proxy.cut()
    until(lambda: "no connection" in instance.log, "it is disconnected")
    assert instance.stop() == 0


def test_a_wrong_password_ends_in_14_and_is_not_shown(broker, queue_name, start):
    url = broker.url.replace("guest:guest", "guest:s3cret-and-wrong")
    instance = start(url, queue_table(queue_name), QUICK)
    assert instance.wait() == 14
    assert "does not accept the connection: 403 ACCESS_REFUSED - Login was refused" in instance.log
    assert "s3cret" not in instance.log
    assert "Traceback" not in instance.log


def test_a_balancer_without_a_broker_is_waited_for(broker, queue_name, start):
    """The balancer accepts connections, and ends each at once."""
    with Proxy("127.0.0.1", broker.port) as balancer:
        balancer.hang_up()
        instance = start(balancer.url_for(broker.url), queue_table(queue_name), QUICK)
        until(lambda: instance.log.count("a balancer without a broker behind it") > 1, "it says so")
        assert instance.told("STATUS=Waiting for the broker at 127.0.0.1")
        assert "check user" not in instance.log
        balancer.forward()
        instance.ready()
        balancer.hang_up()
        balancer.cut()
        until(lambda: "no connection to the broker" in instance.log, "it is lost")
        balancer.forward()
        until(lambda: instance.log.count("consuming from") == 2, "it consumes again")
        assert instance.stop() == 0


def test_another_broker_of_the_list_is_used_where_the_first_ones_fail(broker, queue_name, start):
    with Proxy("127.0.0.1", broker.port) as one, Proxy("127.0.0.1", broker.port) as other:
        one.refuse()
        brokers = f'["127.0.0.1:{one.port}", "localhost:{other.port}"]'
        extra = f"[consumer_config.framework]\nbrokers = {brokers}\n"
        url = one.url_for(broker.url)
        instance = start(url, queue_table(queue_name), QUICK, extra=extra).ready(10)
        assert f"connected to the broker at localhost:{other.port}" in instance.log
        one.accept()
        other.refuse()
        other.cut()
        until(lambda: f"connected to the broker at 127.0.0.1:{one.port}" in instance.log, "back")
        publish(broker.url, queue_name, [1])
        instance.noted("done", 1)
        assert instance.stop() == 0


def test_a_setting_that_the_broker_never_takes_ends_in_14(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), QUICK, extra="[qos]\nprefetch_size = 1\n")
    assert instance.wait() == 14
    assert "540 NOT_IMPLEMENTED" in instance.log


def test_a_queue_missing_for_a_passive_declare_ends_in_10(broker, queue_name, start):
    queues = queue_table(queue_name)
    instance = start(broker.url, queues, QUICK, extra="passive_declares = true\n")
    assert instance.wait() == 10
    assert f'the queue "{queue_name}": 404 NOT_FOUND' in instance.log
    assert "set passive_declares = false" in instance.log
    assert not instance.told("READY=1")


def test_an_exchange_missing_for_a_binding_ends_in_10(broker, queue_name, start):
    queues = queue_table(queue_name).replace("amq.topic", "no.such")
    instance = start(broker.url, queues, QUICK)
    assert instance.wait() == 10
    assert f'the binding of queue "{queue_name}" to exchange "no.such"' in instance.log


def test_a_queue_with_other_properties_ends_in_10(broker, queue_name, start):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_declare(queue_name, durable=False)
    instance = start(broker.url, queue_table(queue_name), QUICK)
    assert instance.wait() == 10
    assert "406 PRECONDITION_FAILED" in instance.log


@pytest.fixture(scope="module")
def limited(broker):
    """Add users with few rights to the broker, as on Fedora's."""
    broker.add_user("reader", "reader", read=".*", write=".*")
    broker.add_user("no-reader", "no-reader", configure=".*", write=".*")
    return broker


def url_of(broker, user):
    return broker.url.replace("guest:guest", f"{user}:{user}")


def test_passive_declares_need_no_right_to_configure(limited, queue_name, start):
    with pika.BlockingConnection(pika.URLParameters(limited.url)) as connection:
        connection.channel().queue_declare(queue_name, durable=True)
    instance = start(
        url_of(limited, "reader"), queue_table(queue_name), QUICK, extra="passive_declares = true\n"
    ).ready()
    publish(limited.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0


def test_a_declare_that_is_forbidden_ends_in_10(limited, queue_name, start):
    instance = start(url_of(limited, "reader"), queue_table(queue_name), QUICK)
    assert instance.wait() == 10
    assert f'the queue "{queue_name}": 403 ACCESS_REFUSED' in instance.log
    assert "set passive_declares = true" in instance.log


def test_consuming_that_is_forbidden_ends_in_15(limited, queue_name, start):
    queues = queue_table(queue_name).partition("[[bindings]]")[0]
    instance = start(url_of(limited, "no-reader"), queues, QUICK, extra="bindings = []\n")
    assert instance.wait() == 15
    assert f'consume from the queue "{queue_name}": 403 ACCESS_REFUSED' in instance.log
    assert "Traceback" not in instance.log


@pytest.mark.parametrize(("loss", "code"), [("queue", 10), ("right", 15)])
def test_a_queue_or_a_right_lost_during_a_reconnect_ends_the_process(
    broker, queue_name, proxy, start, loss, code
):
    """fedora-messaging stays up and consumes nothing."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_declare(queue_name, durable=True)
        connection.channel().queue_bind(queue_name, "amq.topic", queue_name)
    user = f"user-{code}"
    broker.add_user(user, user, read=".*", write=".*")
    queues = queue_table(queue_name).partition("[[bindings]]")[0]
    extra = "passive_declares = true\nbindings = []\n"
    instance = start(proxy.url_for(url_of(broker, user)), queues, QUICK, extra=extra).ready()
    proxy.refuse()
    proxy.cut()
    until(lambda: "no connection" in instance.log, "the loss is noticed")
    if loss == "queue":
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            connection.channel().queue_delete(queue_name)
    else:
        broker.ctl("set_permissions", user, "", ".*", "")
    proxy.accept()
    assert instance.wait(40) == code
    assert f'the queue "{queue_name}"' in instance.log


def test_a_queue_deleted_under_the_consumer_ends_in_12(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), QUICK).ready()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(queue_name)
    assert instance.wait() == 12
    assert f'the queue "{queue_name}" was deleted' in instance.log


def test_a_queue_deleted_and_made_again_is_subscribed_to_again(broker, queue_name, start):
    instance = start(broker.url, queue_table(queue_name), SLOW % 1.5).ready()
    publish(broker.url, queue_name, [0])
    instance.noted("start", 1)
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_delete(queue_name)
        channel.queue_declare(queue_name, durable=True)
    until(lambda: broker.depth(queue_name)[1] == 1, "it is subscribed again")
    publish(broker.url, queue_name, [1])
    instance.noted("done", 2)
    assert instance.stop() == 0
    assert not overlaps(instance.notes())


def test_an_acknowledgement_timeout_subscribes_again_once(queue_name, start):
    """RabbitMQ checks its Delivery Acknowledgement Timeout once per channel tick."""
    with Broker(config={"consumer_timeout": "2000"}) as own:
        if tuple(map(int, own.ctl("version").strip().split(".")[:2])) >= (4, 3):
            pytest.skip("RabbitMQ 4.3 and newer have no such timeout for classic queues")
        own.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
        instance = start(own.url, queue_table(queue_name), SLOW % 7).ready()
        publish(own.url, queue_name, [0])
        instance.noted("done", 1, 40)
        publish(own.url, queue_name, [1])
        instance.noted("start", 2, 40)
        assert len(amqp_consumers(own, queue_name)) == 1
        instance.noted("done", 2, 40)
        # The run may have ended without a channel to settle on.
        until(lambda: instance.told(", 2 handled"), "both are settled", 20)
        assert instance.stop() == 0
        assert own.depth(queue_name) == (0, 0)
    assert "406 PRECONDITION_FAILED" in instance.log
    assert [note["body"]["n"] for note in instance.notes("start")] == [0, 1]
    assert not overlaps(instance.notes())


def test_several_queues_share_the_one_slot(broker, queue_name, start):
    other = f"{queue_name}.other"
    queues = queue_table(queue_name, keys=["first"]) + queue_table(other, keys=["second.#"])
    instance = start(broker.url, queues, SLOW % 0.1).ready()
    publish(broker.url, "first", range(3))
    publish(broker.url, "second.x", range(3))
    notes = instance.noted("done", 6)
    assert {note["queue"] for note in notes} == {queue_name, other}
    assert not overlaps(instance.notes())
    assert instance.told("STATUS=consuming 2 queues, ")
    assert instance.stop() == 0
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(other)


def test_one_of_several_queues_can_be_deleted_and_made_again(broker, queue_name, start):
    other = f"{queue_name}.other"
    queues = queue_table(queue_name) + queue_table(other)
    instance = start(broker.url, queues, QUICK).ready()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        for name in (queue_name, other):
            channel.queue_delete(name)
            channel.queue_declare(name, durable=True)
        for name in (queue_name, other):
            until(lambda: broker.depth(name)[1] == 1, "both are subscribed again")
            publish(broker.url, name, [1])
        instance.noted("done", 2)
        assert instance.stop() == 0
        channel.queue_delete(other)


def test_a_server_named_queue_gets_a_new_name_and_its_bindings_on_each_connection(
    broker, queue_name, proxy, start
):
    binding = f'[[bindings]]\nexchange = "amq.topic"\nrouting_keys = ["{queue_name}"]\n'
    instance = start(proxy.url_for(broker.url), binding, QUICK).ready()
    publish(broker.url, queue_name, [1])
    first = instance.noted("done", 1)[0]["queue"]
    assert first.startswith("amq.gen-")
    proxy.cut()
    until(lambda: instance.log.count("consuming from") == 2, "it is back")
    publish(broker.url, queue_name, [2])
    second = instance.noted("done", 2)[1]["queue"]
    assert second.startswith("amq.gen-")
    assert second != first
    assert instance.stop() == 0


def test_an_exclusive_queue_is_waited_for_after_a_cut(broker, queue_name, proxy, start):
    """The broker may not have noticed that the old connection, which owns the queue, is dead."""
    queues = queue_table(queue_name, exclusive=True)
    instance = start(f"{proxy.url_for(broker.url)}?heartbeat=2", queues, QUICK).ready()
    proxy.stall()
    until(lambda: "no heartbeat" in instance.log, "the instance notices first", 30)
    proxy.resume()
    proxy.cut()
    until(lambda: instance.log.count("consuming from") == 2, "it is back", 60)
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0


def test_an_exclusive_queue_of_somebody_else_is_waited_for(broker, queue_name, start):
    queues = queue_table(queue_name, exclusive=True) + queue_table(f"{queue_name}.other")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_declare(queue_name, exclusive=True)
        instance = start(broker.url, queues, QUICK)
        until(lambda: instance.told(f'STATUS=waiting for the queue "{queue_name}"'), "it says so")
        assert "405 RESOURCE_LOCKED" in instance.log
        publish(broker.url, f"{queue_name}.other", [1])
        instance.noted("done", 1)
        assert not instance.told("READY=1")
    instance.ready()
    assert instance.stop() == 0


def test_another_exclusive_consumer_is_waited_for(broker, queue_name, start):
    """The wait also works later: the other one may come between two of our consumers."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue_name, durable=True)
        channel.basic_consume(queue_name, lambda *_: None, exclusive=True)
        instance = start(broker.url, queue_table(queue_name), QUICK)
        until(lambda: instance.told(f'STATUS=waiting for the queue "{queue_name}"'), "it says so")
        assert "in exclusive use; attempt 2 in 1 s" in instance.log
    instance.ready()
    publish(broker.url, queue_name, [1])
    instance.noted("done", 1)
    assert instance.stop() == 0


def test_a_message_on_a_slow_link_is_not_cut_off(broker, queue_name, proxy, start):
    """One frame of the message takes longer than the broker may stay silent."""
    url = f"{proxy.url_for(broker.url)}?heartbeat=2"
    instance = start(url, queue_table(queue_name), QUICK).ready()
    proxy.limit(15_000)
    publish(broker.url, queue_name, [b'{"n": "%s"}' % (b"x" * 150_000)])
    instance.noted("done", 1)
    assert instance.stop() == 0
    assert "no connection" not in instance.log
