# SPDX-License-Identifier: GPL-2.0-or-later
"""The conformance suite of the messengers, against real brokers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import uuid
from dataclasses import replace
from typing import Any

import anitya_schema
import pytest
from fedora_messaging import message as upstream

from consumer_framework.publishing.message import Outgoing, outgoing
from consumer_framework.publishing.messengers import (
    EVERYTHING,
    Feature,
    Reject,
    Retry,
    Scope,
    Sent,
    refusal,
)
from consumer_framework.testing.broker import reserve_port

from .messengers import MOST, ON_RABBITMQ_3, TARGETS, WITH_FAILOVER, numbered, numbers, prepared


def of_class(topic):
    body = {
        "distro": {"name": "Fedora"},
        "project": None,
        "message": {"agent": "me", "distro": "Fedora"},
    }
    return anitya_schema.DistroDeleted(topic=topic, severity=upstream.WARNING, body=body)


def with_priority(topic):
    message = upstream.Message(topic=topic, body={})
    message.priority = 4  # the default of AMQP 1.0, so that it is left out there
    return message


KINDS = {
    "base": lambda topic: upstream.Message(topic=topic, body={"n": 1}),
    "error": lambda topic: upstream.Message(topic=topic, body={}, severity=upstream.ERROR),
    "class": of_class,
    "unicode": lambda topic: upstream.Message(topic=topic, body={"ä": "€ \u2028 \ud83d"}),
    "deep": lambda topic: upstream.Message(topic=topic, body={"a": [[1.5, None, {"": True}]]}),
    "large": lambda topic: upstream.Message(topic=topic, body={"x": "y" * 2_000_000}),
    "priority": with_priority,
    "numbers": lambda topic: upstream.Message(topic=topic, headers={"number": 2**40, "no": False}),
    "texts": lambda topic: upstream.Message(topic=topic, headers={"text": "é: \\ €\n", "": ""}),
    "topic": lambda topic: upstream.Message(topic=f"{topic}.a/b c.#*?&+", body={"n": 1}),
}


def published_upstream(broker, messages, tmp_path) -> None:
    program = (
        "import pickle, sys; from fedora_messaging import api, config;"
        "config.conf.load_config(); config.conf['amqp_url'] = sys.argv[1];"
        "[api.publish(message) for message in pickle.load(sys.stdin.buffer)]"
    )
    (tmp_path / "config.toml").write_text('amqp_url = "amqp://"\n')
    subprocess.run(
        [sys.executable, "-c", program, broker.url],
        input=pickle.dumps(messages),
        env=os.environ | {"FEDORA_MESSAGING_CONF": str(tmp_path / "config.toml")},
        check=True,
    )


def wire(got) -> Any:
    method, properties, body = got
    given = {name: value for name, value in vars(properties).items() if value is not None}
    headers = {name: (type(value), value) for name, value in given.pop("headers").items()}
    return method.exchange, method.routing_key, given, headers, body


def kept(headers: Any, features: frozenset[Feature]) -> Any:
    """Return the headers that arrive with a messenger of these features."""
    if Feature.HEADERS in features:
        return headers
    if Feature.TEXT_HEADERS not in features:
        return {}
    return {name: value for name, value in headers.items() if isinstance(value, str)}


@pytest.mark.parametrize("target", TARGETS, indirect=True)
def test_a_message_arrives_as_fedora_messaging_sends_it_or_is_refused_as_lossy(
    target, connect, topic, arrived, tmp_path
):
    messages = [make(f"{topic}.é.{kind}") for kind, make in KINDS.items()]
    published_upstream(target.broker, messages, tmp_path)
    theirs = {got[1].message_id: got for got in arrived()}
    messenger = connect(target.name, target.url)
    messenger.open()
    features = messenger.features
    made = [outgoing(message, exchange="amq.topic", now=1.0) for message in messages]
    batch = [message for message in made if not refusal(message, features)]
    results = messenger.send_many(batch)
    assert all(isinstance(result, Sent) for result in results)
    ours = {got[1].message_id: got for got in arrived()}
    assert list(ours) == [message.id for message in batch]
    for identity, got in ours.items():
        assert_same(got, theirs[identity], features)
    if features >= EVERYTHING - {Feature.ROUTED} and target.name != "proton":
        assert list(map(wire, ours.values())) == list(map(wire, theirs.values()))


def assert_same(ours, theirs, features) -> None:
    """Compare two messages as a consumer gets them."""
    (ours_is, properties, body), (theirs_is, their_properties, their_body) = ours, theirs
    assert ours_is.routing_key == theirs_is.routing_key
    assert body == their_body
    for name in ("content_type", "content_encoding", "delivery_mode", "message_id"):
        assert getattr(properties, name) == getattr(their_properties, name), name
    expected = kept(their_properties.headers, features)
    assert {n: v for n, v in properties.headers.items() if n in expected} == expected
    got = upstream.get_message(ours_is.routing_key, properties, body)
    sent = upstream.get_message(theirs_is.routing_key, their_properties, their_body)
    assert type(got) is type(sent)
    for name in ("topic", "body", "id", "severity", "priority", "usernames", "packages"):
        assert getattr(got, name) == getattr(sent, name), name


@pytest.mark.parametrize("target", MOST, indirect=True)
def test_a_batch_arrives_in_its_order(target, connect, topic, arrived):
    messenger = connect(target.name, target.url)
    messenger.open()
    results = messenger.send_many(numbered(topic, 250))
    known = True if Feature.ROUTED in messenger.features else None
    assert results == [Sent(known)] * 250
    assert numbers(arrived()) == list(range(250))


@pytest.mark.parametrize("target", MOST, indirect=True)
def test_a_message_that_no_queue_gets_is_sent_and_told(target, connect, topic):
    messenger = connect(target.name, target.url)
    messenger.open()
    known = Feature.ROUTED in messenger.features
    batch = [prepared(topic), prepared("nobody"), prepared(topic), prepared("nobody")]
    expected = [True, False, True, False] if known else [None] * 4
    assert messenger.send_many(batch) == [Sent(routed) for routed in expected]


@pytest.mark.parametrize("target", MOST, indirect=True)
def test_one_message_id_with_two_topics_has_two_fates(target, connect, topic):
    messenger = connect(target.name, target.url)
    messenger.open()
    there, nowhere = (replace(prepared(one), id="same") for one in (topic, "nobody.é"))
    known = Feature.ROUTED in messenger.features
    expected = [True, False, False, True] if known else [None] * 4
    sent = messenger.send_many([there, nowhere, nowhere, there])
    assert sent == [Sent(routed) for routed in expected]


@pytest.mark.parametrize("target", WITH_FAILOVER, indirect=True)
def test_a_missing_exchange_stops_only_its_own_messages(target, connect, topic, arrived):
    batch = numbered(topic, 4)
    batch[1:3] = [prepared(f"{topic}.{n}", exchange="missing") for n in (1, 2)]
    messenger = connect(target.name, target.url)
    first, second, third, fourth = messenger.send_many(batch)
    assert isinstance(first, Sent)
    assert first == fourth
    assert second == third
    assert isinstance(second, Retry)
    assert second.scope is Scope.TOPIC
    assert "no exchange 'missing'" in second.reason
    assert list(dict.fromkeys(numbers(arrived()))) == [0, 3]
    assert messenger.send_many(numbered(topic, 2)) == [first] * 2


@pytest.mark.parametrize("target", MOST, indirect=True)
def test_an_account_that_may_only_write_needs_no_more(target, writer, connect, topic, arrived):
    messenger = connect(target.name, target.url_at(target.port, *writer))
    batch = numbered(topic, 3)
    batch[1] = prepared(topic, exchange="amq.fanout")
    first, second, third = messenger.send_many(batch)
    assert isinstance(first, Sent)
    assert isinstance(second, Retry)
    assert second.scope is Scope.TOPIC
    assert "refused" in second.reason
    assert isinstance(third, Sent)
    assert list(dict.fromkeys(numbers(arrived()))) == [0, 2]


@pytest.mark.parametrize("target", MOST, indirect=True)
def test_a_message_that_a_full_queue_refuses_is_to_be_sent_again(target, connect, topic, channel):
    queue = f"full.{uuid.uuid4()}"
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(queue, exclusive=True, arguments=arguments)
    channel.queue_bind(queue, "amq.topic", queue)
    messenger = connect(target.name, target.url, timeout=2.0)
    assert isinstance(messenger.send_many([prepared(queue)])[0], Sent)
    refused, taken, again = messenger.send_many([prepared(queue), prepared(topic), prepared(queue)])
    for result in (refused, again):
        assert isinstance(result, Retry)
        assert result.scope is Scope.MESSAGE
    assert isinstance(taken, Sent)


@pytest.mark.parametrize("target", ON_RABBITMQ_3, indirect=True)
def test_a_broker_that_is_away_is_no_exception(target, connect):
    with reserve_port() as port:
        url = target.url_at(port.getsockname()[1], password="secret")  # noqa: S106
        messenger = connect(target.name, url, timeout=2.0)
        if target.name != "fedora":  # it connects with the first message
            with pytest.raises(ConnectionError, match="refused") as raised:
                messenger.open()
            assert "secret" not in str(raised.value)
        results = messenger.send_many([prepared("a"), prepared("b")])
    assert all(isinstance(r, Retry) and r.scope is Scope.ENDPOINT for r in results)
    assert "secret" not in str(results)


@pytest.mark.parametrize("target", WITH_FAILOVER, indirect=True)
def test_an_account_that_is_refused_is_no_exception(target, connect):
    url = target.url_at(target.port, password="mistaken")  # noqa: S106
    messenger = connect(target.name, url, timeout=8.0)
    with pytest.raises(ConnectionError, match=r"(?i)refused|authentication failed") as raised:
        messenger.open()
    assert "mistaken" not in str(raised.value)


@pytest.mark.parametrize("target", ON_RABBITMQ_3, indirect=True)
def test_closing_twice_does_no_harm_and_the_next_batch_connects(target, connect, topic):
    messenger = connect(target.name, target.url)
    messenger.close()
    messenger.open()
    messenger.open()
    messenger.close()
    messenger.close()
    assert isinstance(messenger.send_many([prepared(topic)])[0], Sent)
    assert messenger.send_many([]) == []


def test_headers_that_do_not_fit_into_a_frame_are_refused(connect, target, topic):
    headers = {f"fedora_messaging_rpm_{n}": True for n in range(6000)}
    large = Outgoing("id", topic, b"{}", headers, "amq.topic")
    [first, second, third] = connect("amqp", target.url).send_many(
        [prepared(topic), large, prepared(topic)]
    )
    assert first == third == Sent(routed=True)
    assert isinstance(second, Reject)
    assert "headers" in second.reason


@pytest.mark.parametrize("target", ["amqp-3", "proton-4"], indirect=True)
def test_values_that_amqp_has_no_type_for_are_refused(target, connect, topic):
    wrong = Outgoing(
        "id", topic, b"{}", {"fedora_messaging_severity": 20, "x": {1, 2}}, "amq.topic"
    )
    messenger = connect(target.name, target.url)
    messenger.open()
    first, second = messenger.send_many([wrong, prepared(topic)])
    assert isinstance(first, Reject)
    assert second == Sent(routed=True)


@pytest.mark.parametrize("target", ON_RABBITMQ_3, indirect=True)
def test_a_message_that_the_broker_finds_too_large_is_refused(target, connect, tls_broker):
    if target.name == "fedora":
        pytest.skip("fedora-messaging repeats it until its time is over")
    messenger = connect(target.name, tls_broker.url_of(target), timeout=2.0)
    large = prepared("a", {"x": "y" * 200_000})
    first, second, third = messenger.send_many([prepared("a"), large, prepared("a")])
    assert isinstance(first, Sent)
    assert first == third
    assert isinstance(second, Reject)
    assert "larger" in second.reason


@pytest.mark.parametrize("target", ON_RABBITMQ_3, indirect=True)
def test_a_certificate_is_the_account(target, connect, tls_broker, tmp_path):
    if target.name == "fedora":
        pytest.skip("its certificates are those of the configuration of fedora-messaging")
    files = {"certfile": str(tls_broker.pair.certificate), "keyfile": str(tls_broker.pair.key)}
    ca, url = str(tls_broker.authority.certificate), tls_broker.tls_url_of(target)
    messenger = connect(target.name, url, ca_cert=ca, **files)
    first, second = messenger.send_many([prepared("a"), prepared("a", exchange="amq.fanout")])
    assert isinstance(first, Sent)
    assert isinstance(second, Retry)
    assert "refused for user 'writer.example.org'" in second.reason
    without = connect(target.name, url, ca_cert=ca, timeout=1.5)
    [result] = without.send_many([prepared("a")])
    assert isinstance(result, Retry)
    distrusting = connect(target.name, url, timeout=1.5, **files)
    with pytest.raises(ConnectionError, match=r"(?i)certificate"):
        distrusting.open()
    missing = connect(target.name, url, ca_cert=str(tmp_path / "no"), timeout=1.5)
    assert isinstance(missing.send_many([prepared("a")])[0], Retry)
