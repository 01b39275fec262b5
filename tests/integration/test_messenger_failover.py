# SPDX-License-Identifier: GPL-2.0-or-later
"""Endpoints that are dead, die amid a batch, say nothing, or are short of memory."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from consumer_framework.publishing.messengers import Feature, Retry, Scope, Sent
from consumer_framework.testing.broker import reserve_port

from .messengers import ON_RABBITMQ_3, WITH_FAILOVER, numbered, numbers, prepared

# RabbitMQ 4 differs in AMQP 1.0 most of all.
ENDPOINTS = [name for name in WITH_FAILOVER if name in ON_RABBITMQ_3 or name == "proton-4"]
ALARMED = [*ENDPOINTS, "fedora-3"]


def sent(results) -> list[bool]:
    return [isinstance(result, Sent) for result in results]


def unsent(batch, results) -> list[Any]:
    return [m for m, result in zip(batch, results, strict=True) if not isinstance(result, Sent)]


@pytest.mark.parametrize("target", ENDPOINTS, indirect=True)
def test_a_connection_that_was_cut_is_made_again(target, target_proxy, connect, topic, arrived):
    messenger = connect(target.name, target.url_at(target_proxy.port))
    messenger.open()
    for reset in (True, False):
        assert sent(messenger.send_many(numbered(topic, 1))) == [True]
        target_proxy.cut(reset=reset)
        assert sent(messenger.send_many(numbered(topic, 2))) == [True] * 2
    assert list(dict.fromkeys(numbers(arrived()))) == [0, 1]


@pytest.mark.parametrize("target", ENDPOINTS, indirect=True)
def test_a_dead_first_endpoint_is_passed_over(target, connect, topic, arrived):
    with reserve_port() as port:
        dead = target.url_at(port.getsockname()[1])
        messenger = connect(target.name, dead, target.url)
        messenger.open()
        assert sent(messenger.send_many(numbered(topic, 2))) == [True] * 2
    assert numbers(arrived()) == [0, 1]


def end_amid_a_batch(proxy) -> threading.Thread:
    def end() -> None:
        time.sleep(0.5)
        proxy.refuse()
        proxy.cut()

    ending = threading.Thread(target=end)
    proxy.limit(100_000)
    ending.start()
    return ending


def large(topic):
    return [prepared(topic, {"n": n, "x": "y" * 2000}) for n in range(100)]


@pytest.mark.parametrize("target", ENDPOINTS, indirect=True)
def test_an_endpoint_that_dies_in_a_batch_loses_nothing(
    target, target_proxy, connect, topic, arrived
):
    messenger = connect(target.name, target.url_at(target_proxy.port), target.url)
    messenger.open()
    ending = end_amid_a_batch(target_proxy)
    results = messenger.send_many(large(topic))
    ending.join()
    assert sent(results) == [True] * 100
    assert set(numbers(arrived())) == set(range(100))
    assert sent(messenger.send_many(numbered(topic, 1))) == [True]


@pytest.mark.parametrize("target", [*ENDPOINTS, "fedora-3"], indirect=True)
def test_the_only_endpoint_dying_in_a_batch_reports_no_message_as_sent_that_is_not(
    target, target_proxy, connect, topic, arrived
):
    messenger = connect(target.name, target.url_at(target_proxy.port), timeout=2.0)
    batch = large(topic)
    ending = end_amid_a_batch(target_proxy)
    results = messenger.send_many(batch)
    ending.join()
    rest = unsent(batch, results)
    assert rest
    got = set(numbers(arrived()))
    assert got >= {n for n, ok in enumerate(sent(results)) if ok}
    target_proxy.limit(None)
    target_proxy.accept()
    # fedora-messaging takes its time to connect again.
    until = time.monotonic() + 60
    while rest and time.monotonic() < until:
        rest = unsent(rest, messenger.send_many(rest))
    assert got | set(numbers(arrived())) == set(range(100))


@pytest.mark.parametrize("target", ENDPOINTS, indirect=True)
@pytest.mark.parametrize("connected", [True, False])
def test_an_endpoint_that_says_nothing_is_left_in_time(
    target, connected, target_proxy, connect, topic, arrived
):
    messenger = connect(target.name, target.url_at(target_proxy.port), target.url, timeout=1.0)
    if connected:
        messenger.open()
    target_proxy.stall()
    results = messenger.send_many(numbered(topic, 2))
    assert sent(results) == [True] * 2
    assert set(numbers(arrived())) == {0, 1}


@pytest.mark.parametrize("target", [*ENDPOINTS, "fedora-3"], indirect=True)
def test_the_only_endpoint_saying_nothing_ends_the_call(target, target_proxy, connect, topic):
    messenger = connect(target.name, target.url_at(target_proxy.port), timeout=1.0)
    assert sent(messenger.send_many(numbered(topic, 1))) == [True]
    target_proxy.stall()
    results = messenger.send_many(numbered(topic, 2))
    assert all(isinstance(r, Retry) and r.scope is Scope.ENDPOINT for r in results)
    target_proxy.resume()
    until = time.monotonic() + 20
    while sent(messenger.send_many(numbered(topic, 1))) != [True]:
        assert time.monotonic() < until


@pytest.fixture
def alarm(target):
    """Return functions that raise and end the memory alarm of the broker."""

    def end() -> None:
        target.broker.ctl("set_vm_memory_high_watermark", "0.4")

    yield lambda: target.broker.ctl("set_vm_memory_high_watermark", "0.0001"), end
    end()


# The messengers that wait for the confirmations of a blocked broker, and so send nothing twice.
PATIENT = {"amqp", "stomp", "proton"}


@pytest.mark.parametrize("target", ALARMED, indirect=True)
def test_a_broker_that_is_short_of_memory_gets_each_message_when_it_has_some(
    target, connect, topic, arrived, alarm
):
    begin, end = alarm
    messenger = connect(target.name, target.url, timeout=5.0)
    messenger.open()
    begin()
    batch = numbered(topic, 20)
    # A connection is blocked with its first message in the alarm.
    batch[:1] = unsent(batch[:1], messenger.send_many(batch[:1]))
    batch = unsent(batch, messenger.send_many(batch))
    assert bool(batch) is ((target.name, target.major) != ("proton", 3))
    end()
    until = time.monotonic() + 30
    while batch and time.monotonic() < until:
        batch = unsent(batch, messenger.send_many(batch))
    got = numbers(arrived())
    assert set(got) == set(range(20))
    if target.name in PATIENT:
        assert len(got) == 20


@pytest.mark.parametrize("target", ["amqp-3", "kombu-3", "stomp-3", "proton-4"], indirect=True)
def test_a_broker_that_is_short_of_memory_is_left_for_the_next(
    target, connect, topic, alarm, tls_broker
):
    begin, _ = alarm
    messenger = connect(target.name, target.url, tls_broker.url_of(target), timeout=1.5)
    messenger.open()
    is_proton_4 = (target.name, target.major) == ("proton", 4)
    if Feature.SEVERITY in messenger.features:
        batch = [prepared(topic, severity=30), *numbered(topic, 2)]
    else:
        batch = numbered(topic, 3)
    begin()
    results = messenger.send_many(batch)
    if is_proton_4 and not isinstance(results[0], Sent):
        # The next is RabbitMQ 3, which would lose the severity.
        assert isinstance(results[0], Retry)
        assert results[0].scope is Scope.MESSAGE
        assert "severity" in results[0].reason
        results = results[1:]
    assert all(sent(results))
