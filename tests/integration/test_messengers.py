# SPDX-License-Identifier: GPL-2.0-or-later
"""The conformance suite of the messengers, against a real broker."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anitya_schema
import pika
import pytest
from fedora_messaging import message as upstream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer_framework.publishing.message import Outgoing, matches, outgoing
from consumer_framework.publishing.messengers import (
    Endpoints,
    Feature,
    Reject,
    Retry,
    Scope,
    Sent,
    find,
    refusal,
)
from consumer_framework.testing.broker import reserve_port
from consumer_framework.testing.broker.tls import TlsBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MESSENGERS = ["amqp", "fedora", "kombu"]
# These take a list of endpoints; fedora-messaging connects to one.
WITH_FAILOVER = ["amqp", "kombu"]

CHILD = """
import pickle, sys
from consumer_framework.publishing.messengers import find
messenger = find(pickle.load(sys.stdin.buffer))(pickle.load(sys.stdin.buffer))
while True:
    name, arguments = pickle.load(sys.stdin.buffer)
    try:
        answer = getattr(messenger, name)
        answer = answer(*arguments) if callable(answer) else answer
    except Exception as error:
        answer = error
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.flush()
"""


class InProcess:
    """A messenger in a process of its own, for one that runs a reactor."""

    process: Any

    def __init__(self, name, endpoints, environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
        )
        self._tell(name)
        self._tell(endpoints)

    def _tell(self, thing):
        pickle.dump(thing, self.process.stdin)
        self.process.stdin.flush()

    def call(self, name, *arguments):
        self._tell((name, arguments))
        answer = pickle.load(self.process.stdout)  # noqa: S301 -- the child is ours
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def features(self):
        return self.call("features")

    def open(self):
        self.call("open")

    def send_many(self, batch):
        return self.call("send_many", batch)

    def close(self):
        self.call("close")

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def connect(tmp_path) -> Iterator[Callable[..., Any]]:
    """Return a function that makes a messenger: its name, URLs, further values of Endpoints."""
    made: list[Any] = []
    (tmp_path / "config.toml").write_text('amqp_url = "amqp://"\n')

    def make(name: str, *urls: str, timeout: float = 10.0, **values: Any) -> Any:
        endpoints = Endpoints(urls, timeout=timeout, **values)
        environment = {"FEDORA_MESSAGING_CONF": str(tmp_path / "config.toml")}
        if name == "fedora":
            made.append(InProcess(name, endpoints, environment))
        else:
            made.append(find(name)(endpoints))
        return made[-1]

    yield make
    for messenger in made:
        (messenger.end if isinstance(messenger, InProcess) else messenger.close)()


@pytest.fixture
def channel(broker):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield connection.channel()


@pytest.fixture
def topic(channel, queue_name) -> str:
    """Return a topic whose messages, and those below it, arrive in the queue of the test."""
    topic = uuid.uuid4().hex
    channel.queue_declare(queue_name, durable=True)
    channel.queue_bind(queue_name, "amq.topic", f"{topic}.#")
    return topic


@pytest.fixture
def arrived(channel, queue_name):
    """Return a function that takes all messages out of the queue of the test."""

    def take():
        found = []
        while (got := channel.basic_get(queue_name, auto_ack=True))[0] is not None:
            found.append(got)
        return found

    return take


def prepared(topic, body=None, *, exchange="amq.topic", **values) -> Outgoing:
    message = upstream.Message(topic=topic, body=body or {"n": 1}, **values)
    return outgoing(message, exchange=exchange, now=1.0)


def numbered(topic, count) -> list[Outgoing]:
    return [prepared(topic, {"n": n}) for n in range(count)]


def numbers(arrived) -> list[int]:
    return [json.loads(body)["n"] for _, _, body in arrived]


def of_class(topic):
    body = {
        "distro": {"name": "Fedora"},
        "project": None,
        "message": {"agent": "me", "distro": "Fedora"},
    }
    return anitya_schema.DistroDeleted(topic=topic, severity=upstream.WARNING, body=body)


def with_priority(topic):
    message = upstream.Message(topic=topic, body={"ä": "€ \u2028 \ud83d", "deep": [[1.5, None]]})
    message.priority = 7
    return message


KINDS = {
    "base": lambda topic: upstream.Message(topic=topic, body={"n": 1}),
    "error": lambda topic: upstream.Message(topic=topic, body={}, severity=upstream.ERROR),
    "class": of_class,
    "priority": with_priority,
    "headers": lambda topic: upstream.Message(topic=topic, headers={"number": 2**40, "text": "é"}),
}


@pytest.mark.parametrize("name", MESSENGERS)
def test_a_message_arrives_as_it_was_or_is_refused_as_lossy(name, broker, connect, topic, arrived):
    messenger = connect(name, broker.url)
    messenger.open()
    for kind, make in KINDS.items():
        message = make(f"{topic}.é.{kind}")
        sent = outgoing(message, exchange="amq.topic", now=1.0)
        if refusal(sent, messenger.features):
            continue
        [result] = messenger.send_many([sent])
        assert isinstance(result, Sent), kind
        [(method, properties, body)] = arrived()
        assert body == sent.body
        got = upstream.get_message(method.routing_key, properties, body)
        assert type(got) is type(message)
        assert got == message
        assert got.id == message.id
        assert got.severity == message.severity
        assert got.priority == message.priority
        assert got._headers == message._headers
        assert properties.delivery_mode == 2


def wire(got) -> Any:
    method, properties, body = got
    given = {name: value for name, value in vars(properties).items() if value is not None}
    headers = {name: (type(value), value) for name, value in given.pop("headers").items()}
    return method.exchange, method.routing_key, given, headers, body


@pytest.mark.parametrize("name", MESSENGERS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_wire_data_are_those_of_fedora_messaging(
    name, kind, broker, connect, topic, arrived, tmp_path
):
    message = KINDS[kind](topic + ".wire")
    [result] = connect(name, broker.url).send_many(
        [outgoing(message, exchange="amq.topic", now=1.0)]
    )
    assert isinstance(result, Sent)
    program = (
        "import pickle, sys; from fedora_messaging import api, config;"
        "config.conf.load_config(); config.conf['amqp_url'] = sys.argv[1];"
        "api.publish(pickle.load(sys.stdin.buffer))"
    )
    subprocess.run(
        [sys.executable, "-c", program, broker.url],
        input=pickle.dumps(message),
        env=os.environ | {"FEDORA_MESSAGING_CONF": str(tmp_path / "config.toml")},
        check=True,
    )
    ours, theirs = map(wire, arrived())
    assert ours == theirs


@pytest.mark.parametrize("name", MESSENGERS)
def test_a_batch_arrives_in_its_order(name, broker, connect, topic, arrived):
    messenger = connect(name, broker.url)
    results = messenger.send_many(numbered(topic, 120))
    known = True if Feature.ROUTED in messenger.features else None
    assert results == [Sent(known)] * 120
    assert numbers(arrived()) == list(range(120))


@pytest.mark.parametrize("name", MESSENGERS)
def test_a_message_that_no_queue_gets_is_sent_and_told(name, broker, connect, topic):
    messenger = connect(name, broker.url)
    known = Feature.ROUTED in messenger.features
    batch = [prepared(topic), prepared("nobody"), prepared(topic), prepared("nobody")]
    expected = [True, False, True, False] if known else [None] * 4
    assert messenger.send_many(batch) == [Sent(routed) for routed in expected]


@pytest.mark.parametrize("name", WITH_FAILOVER)
def test_a_missing_exchange_stops_only_its_own_messages(name, broker, connect, topic, arrived):
    batch = numbered(topic, 4)
    batch[1:3] = [prepared(f"{topic}.{n}", exchange="missing") for n in (1, 2)]
    messenger = connect(name, broker.url)
    first, second, third, fourth = messenger.send_many(batch)
    assert first == fourth == Sent(routed=True)
    assert second == third
    assert isinstance(second, Retry)
    assert second.scope is Scope.TOPIC
    assert "NOT_FOUND" in second.reason
    assert list(dict.fromkeys(numbers(arrived()))) == [0, 3]
    assert messenger.send_many(numbered(topic, 2)) == [Sent(routed=True)] * 2


@pytest.mark.parametrize("name", MESSENGERS)
def test_an_account_that_may_only_write_needs_no_more(name, broker, connect, topic, arrived):
    account = f"writer-{uuid.uuid4()}"
    url = broker.add_user(account, "secret", write="^amq.topic$")
    messenger = connect(name, url)
    batch = numbered(topic, 3)
    batch[1] = prepared(topic, exchange="amq.fanout")
    first, second, third = messenger.send_many(batch)
    assert isinstance(first, Sent)
    assert isinstance(second, Retry)
    assert second.scope is Scope.TOPIC
    assert isinstance(third, Sent)
    assert list(dict.fromkeys(numbers(arrived()))) == [0, 2]
    broker.ctl("delete_user", account)


@pytest.mark.parametrize("name", MESSENGERS)
def test_a_message_that_a_full_queue_refuses_is_to_be_sent_again(name, broker, connect, channel):
    queue = f"full.{uuid.uuid4()}"
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(queue, exclusive=True, arguments=arguments)
    channel.queue_bind(queue, "amq.topic", queue)
    messenger = connect(name, broker.url)
    assert isinstance(messenger.send_many([prepared(queue)])[0], Sent)
    [result] = messenger.send_many([prepared(queue)])
    assert isinstance(result, Retry)
    assert result.scope is Scope.MESSAGE


@pytest.mark.parametrize("name", MESSENGERS)
def test_a_broker_that_is_away_is_no_exception(name, connect):
    with reserve_port() as port:
        url = f"amqp://someone:secret@127.0.0.1:{port.getsockname()[1]}/%2F"
        messenger = connect(name, url, timeout=2.0)
        if name != "fedora":  # it connects with the first message
            with pytest.raises(ConnectionError, match="refused") as raised:
                messenger.open()
            assert "secret" not in str(raised.value)
        results = messenger.send_many([prepared("a"), prepared("b")])
    assert all(isinstance(r, Retry) and r.scope is Scope.ENDPOINT for r in results)
    assert "secret" not in str(results)


@pytest.mark.parametrize("name", WITH_FAILOVER)
def test_a_connection_that_was_cut_is_made_again(name, broker, proxy, connect, topic, arrived):
    messenger = connect(name, proxy.url_for(broker.url))
    messenger.open()
    for reset in (True, False):
        assert messenger.send_many(numbered(topic, 1)) == [Sent(routed=True)]
        proxy.cut(reset=reset)
        assert messenger.send_many(numbered(topic, 2)) == [Sent(routed=True)] * 2
    assert numbers(arrived()) == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("name", WITH_FAILOVER)
def test_a_dead_first_endpoint_is_passed_over(name, broker, connect, topic, arrived):
    with reserve_port() as port:
        dead = f"amqp://127.0.0.1:{port.getsockname()[1]}/%2F"
        messenger = connect(name, dead, broker.url)
        messenger.open()
        assert messenger.send_many(numbered(topic, 2)) == [Sent(routed=True)] * 2
    assert numbers(arrived()) == [0, 1]


@pytest.mark.parametrize("name", WITH_FAILOVER)
def test_an_endpoint_that_dies_in_a_batch_loses_nothing(
    name, broker, proxy, connect, topic, arrived
):
    messenger = connect(name, proxy.url_for(broker.url), broker.url)
    messenger.open()
    proxy.limit(100_000)
    batch = [prepared(topic, {"n": n, "x": "y" * 2000}) for n in range(100)]

    def end() -> None:
        time.sleep(0.5)
        proxy.refuse()
        proxy.cut()

    ending = threading.Thread(target=end)
    ending.start()
    results = messenger.send_many(batch)
    ending.join()
    assert results == [Sent(routed=True)] * 100
    assert set(numbers(arrived())) == set(range(100))
    assert messenger.send_many(numbered(topic, 1)) == [Sent(routed=True)]


@pytest.mark.parametrize("name", WITH_FAILOVER)
@pytest.mark.parametrize("connected", [True, False])
def test_an_endpoint_that_says_nothing_is_left_in_time(
    name, connected, broker, proxy, connect, topic, arrived
):
    messenger = connect(name, proxy.url_for(broker.url), broker.url, timeout=1.0)
    if connected:
        messenger.open()
    proxy.stall()
    began = time.monotonic()
    results = messenger.send_many(numbered(topic, 2))
    assert time.monotonic() - began < 8
    assert results == [Sent(routed=True)] * 2
    assert set(numbers(arrived())) == {0, 1}


@pytest.mark.parametrize("name", WITH_FAILOVER)
def test_the_only_endpoint_saying_nothing_ends_the_call_in_time(
    name, broker, proxy, connect, topic
):
    messenger = connect(name, proxy.url_for(broker.url), timeout=1.0)
    messenger.open()
    proxy.stall()
    began = time.monotonic()
    results = messenger.send_many(numbered(topic, 2))
    assert time.monotonic() - began < 8
    assert all(isinstance(r, Retry) and r.scope is Scope.ENDPOINT for r in results)
    proxy.resume()
    assert messenger.send_many(numbered(topic, 1)) == [Sent(routed=True)]


@pytest.fixture
def alarm(broker):
    """Return functions that raise and end the memory alarm of the broker."""

    def end() -> None:
        broker.ctl("set_vm_memory_high_watermark", "0.4")

    yield lambda: broker.ctl("set_vm_memory_high_watermark", "0.0001"), end
    end()


def test_a_broker_that_is_short_of_memory_gets_each_message_once(
    broker, connect, topic, arrived, alarm
):
    begin, end = alarm
    messenger = connect("amqp", broker.url, timeout=1.5)
    messenger.open()
    begin()
    batch = numbered(topic, 20)
    for _ in range(3):
        results = messenger.send_many(batch)
        blocked = [r for r in results if not isinstance(r, Sent)]
        assert blocked
        assert all("memory" in r.reason and r.scope is Scope.ENDPOINT for r in blocked)
        batch = [m for m, r in zip(batch, results, strict=True) if not isinstance(r, Sent)]
    end()
    until = time.monotonic() + 20
    while batch and time.monotonic() < until:
        results = messenger.send_many(batch)
        batch = [m for m, r in zip(batch, results, strict=True) if not isinstance(r, Sent)]
    assert sorted(numbers(arrived())) == list(range(20))


def test_a_broker_that_is_short_of_memory_is_left_for_the_next(
    broker, connect, topic, arrived, alarm, tmp_path
):
    begin, _ = alarm
    with TlsBroker(tmp_path) as other:
        messenger = connect("amqp", broker.url, other.url, timeout=1.5)
        messenger.open()
        begin()
        assert messenger.send_many(numbered(topic, 3)) == [Sent(routed=False)] * 3


@pytest.mark.parametrize("name", MESSENGERS)
def test_closing_twice_does_no_harm_and_the_next_batch_connects(name, broker, connect, topic):
    messenger = connect(name, broker.url)
    messenger.close()
    messenger.open()
    messenger.open()
    messenger.close()
    messenger.close()
    assert isinstance(messenger.send_many([prepared(topic)])[0], Sent)
    assert messenger.send_many([]) == []


def test_headers_that_do_not_fit_into_a_frame_are_refused(broker, connect, topic):
    large = prepared(topic, headers={f"fedora_messaging_rpm_{n}": True for n in range(6000)})
    [first, second, third] = connect("amqp", broker.url).send_many(
        [prepared(topic), large, prepared(topic)]
    )
    assert first == third == Sent(routed=True)
    assert isinstance(second, Reject)
    assert "headers" in second.reason


def test_values_that_amqp_has_no_type_for_are_refused(broker, connect, topic):
    wrong = Outgoing(
        "id", topic, b"{}", {"fedora_messaging_severity": 20, "x": {1, 2}}, "amq.topic"
    )
    first, second = connect("amqp", broker.url).send_many([wrong, prepared(topic)])
    assert isinstance(first, Reject)
    assert second == Sent(routed=True)


@pytest.fixture(scope="module")
def tls_broker(broker, tmp_path_factory):
    config = {"max_message_size": "100000"}
    with TlsBroker(tmp_path_factory.mktemp("tls"), config=config) as running:
        yield running


@pytest.mark.parametrize("name", WITH_FAILOVER)
def test_a_message_that_the_broker_finds_too_large_is_refused(name, tls_broker, connect):
    large = prepared("a", {"x": "y" * 200_000})
    first, second, third = connect(name, tls_broker.url).send_many(
        [prepared("a"), large, prepared("a")]
    )
    assert first == third == Sent(routed=False)
    assert isinstance(second, Reject)
    assert "larger" in second.reason


@pytest.mark.parametrize("name", WITH_FAILOVER)
def test_a_certificate_is_the_account(name, tls_broker, connect, tmp_path):
    pair = tls_broker.add_certificate_user(f"{name}.example.org")
    files = {"certfile": str(pair.certificate), "keyfile": str(pair.key)}
    ca = str(tls_broker.authority.certificate)
    messenger = connect(name, tls_broker.tls_url, ca_cert=ca, **files)
    messenger.open()
    users = tls_broker.ctl("list_connections", "user", "auth_mechanism")
    assert f"{name}.example.org\tEXTERNAL" in users
    assert messenger.send_many([prepared("a")]) == [Sent(routed=False)]
    without = connect(name, tls_broker.tls_url, ca_cert=ca, timeout=3.0)
    [result] = without.send_many([prepared("a")])
    assert isinstance(result, Retry)
    distrusting = connect(name, tls_broker.tls_url, timeout=3.0, **files)
    with pytest.raises(ConnectionError, match=r"(?i)certificate"):
        distrusting.open()
    missing = connect(name, tls_broker.tls_url, ca_cert=str(tmp_path / "no"), timeout=3.0)
    assert isinstance(missing.send_many([prepared("a")])[0], Retry)


words = st.lists(st.sampled_from(["a", "b", "*", "#", ""]), min_size=1, max_size=4).map(".".join)
topics = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4).map(".".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=words, names=st.lists(topics, min_size=1, max_size=8, unique=True))
def test_a_pattern_matches_as_the_broker_matches(channel, pattern, names):
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, "amq.topic", pattern)
    for name in names:
        channel.basic_publish("amq.topic", name, name.encode())
    # The methods of a channel are handled in their order.
    got = set()
    while (found := channel.basic_get(queue, auto_ack=True))[0] is not None:
        got.add(found[2].decode())
    with suppress(pika.exceptions.ChannelClosed):
        channel.queue_delete(queue)
    assert got == {name for name in names if matches(pattern, name)}
