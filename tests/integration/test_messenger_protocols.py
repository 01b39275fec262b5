# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts of STOMP and AMQP 1.0 that the messengers respect, and brokers beside RabbitMQ."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest
import stomp
from fedora_messaging import message as upstream

from consumer_framework.core.errors import ConfigurationError, ExitCode
from consumer_framework.publishing.message import Outgoing, outgoing
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
from consumer_framework.testing.broker import HOST, reserve_port
from consumer_framework.testing.broker.proxy import Proxy

from .instance import queue_table, until
from .messengers import numbered, numbers, prepared, require_proton

if TYPE_CHECKING:
    from collections.abc import Callable

on_stomp = pytest.mark.parametrize("target", ["stomp-3"], indirect=True)
BOTH = ["stomp-3", "proton-3", "proton-4"]


def with_headers(topic: str, headers: dict[str, Any], exchange: str = "amq.topic") -> Outgoing:
    return Outgoing("some-id", topic, b"{}", headers, exchange)


@pytest.mark.parametrize(
    ("name", "url", "options", "named"),
    [
        ("stomp", "http://host", {}, "endpoints"),
        ("stomp", "stomp://:61613", {}, "endpoints"),
        ("stomp", "stomp://user:secret@host:port", {}, "endpoints"),
        ("stomp", "stomp://host", {"destination": "/topic/all"}, "destination"),
        ("proton", "stomp://host", {}, "endpoints"),
        ("proton", "amqp://user:secret@host:port", {}, "endpoints"),
        ("proton", "amqp://host", {"address": "topic://all"}, "address"),
    ],
)
def test_a_wrong_setting_is_told_with_its_path_and_a_cure(name, url, options, named):
    if name == "proton":
        require_proton()
    with pytest.raises(ConfigurationError) as raised:
        find(name)(Endpoints((url,)), **options)
    [problem] = raised.value.problems
    assert named in problem.path
    assert "secret" not in str(raised.value)
    assert "write it as" in str(raised.value)


@pytest.mark.parametrize("target", BOTH, indirect=True)
def test_a_message_that_the_protocol_cannot_carry_is_refused_and_the_others_are_sent(
    target, connect, topic, arrived
):
    cases = {
        "stomp": [
            with_headers(f"{topic}.%2F", {}),
            with_headers(topic, {"destination": "elsewhere"}),
            with_headers(topic, {"text": "\ud83d"}),
            with_headers(topic, {"text": "\0"}),
            with_headers(topic, {}, exchange=""),
        ],
        "proton": [with_headers(topic, {}, exchange="")],
    }[target.name]
    if target.major >= 4:
        cases += [with_headers(topic, {"fraction": 1.5}), with_headers(topic, {"n": 2**70})]
        cases += [replace(with_headers(topic, {}), body=b'"' + b"x" * 17_000_000 + b'"')]
    elif target.name == "proton":
        cases += [with_headers(topic, {}, exchange="a/b")]
    messenger = connect(target.name, target.url)
    batch = [message for case in cases for message in (case, *numbered(topic, 1))]
    results = messenger.send_many(batch)
    assert all(isinstance(result, Reject) for result in results[::2])
    assert all(isinstance(result, Sent) for result in results[1::2])
    assert numbers(arrived()) == [0] * len(cases)


@pytest.mark.parametrize("target", BOTH, indirect=True)
def test_a_message_that_is_sent_with_losses_is_still_valid(target, connect, topic, arrived):
    message = upstream.Message(topic=topic, body={"n": 1}, headers={"flag": True, "number": 5})
    message.severity = upstream.ERROR
    message._headers["fedora_messaging_severity"] = upstream.ERROR
    made = outgoing(message, exchange="amq.topic", now=1.0)
    messenger = connect(target.name, target.url)
    messenger.open()
    assert isinstance(messenger.send_many([made])[0], Sent)
    [(method, properties, body)] = arrived()
    got = upstream.get_message(method.routing_key, properties, body)
    assert got.body == {"n": 1}
    is_kept = refusal(made, messenger.features) is None
    assert got.severity == (upstream.ERROR if is_kept else upstream.INFO)
    if target.name == "stomp":
        assert (got._headers["flag"], got._headers["number"]) == ("true", "5")


@pytest.mark.parametrize("target", BOTH, indirect=True)
def test_a_closed_messenger_leaves_neither_files_nor_threads(target, connect, target_proxy, topic):
    def in_use() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208

    messenger = connect(target.name, target.url_at(target_proxy.port), timeout=1.0)

    def use() -> None:
        messenger.send_many(numbered(topic, 2))
        messenger.close()
        target_proxy.cut()
        messenger.send_many(numbered(topic, 1))
        messenger.close()

    use()
    before = in_use()
    for _ in range(5):
        use()
    until(lambda: in_use() <= before, lambda: f"{before} before, {in_use()} after")


@on_stomp
def test_heartbeats_keep_an_idle_connection(target, connect, target_proxy, topic):
    messenger = connect("stomp", target.url_at(target_proxy.port), options={"heartbeat": 0.3})
    assert messenger.send_many(numbered(topic, 1)) == [Sent()]
    time.sleep(1.5)
    assert target_proxy.connections == 1
    assert messenger.send_many(numbered(topic, 1)) == [Sent()]
    assert target_proxy.connections == 1


@on_stomp
def test_a_password_is_not_in_the_log(target, connect, caplog):
    caplog.set_level(logging.DEBUG, "stomp.py")
    messenger = connect("stomp", target.url_at(target.port, "guest", "guest"))
    messenger.open()
    assert any("received frame" in text for text in caplog.messages)
    assert not any("passcode" in text for text in caplog.messages)


@on_stomp
def test_the_end_of_a_tls_connection_is_noticed(target, connect, tls_broker, topic):
    port = int(tls_broker.tls_url_of(target).rpartition(":")[2].partition("/")[0])
    pair = tls_broker.pair
    files = {"certfile": str(pair.certificate), "keyfile": str(pair.key)}
    with Proxy(HOST, port) as proxy:
        messenger = connect(
            "stomp",
            f"stomps://localhost:{proxy.port}",
            ca_cert=str(tls_broker.authority.certificate),
            **files,
        )
        for reset in (True, False):
            assert messenger.send_many(numbered("a", 150)) == [Sent()] * 150
            proxy.cut(reset=reset)
        assert messenger.send_many(numbered("a", 1)) == [Sent()]


class Subscriber(stomp.ConnectionListener):  # type: ignore[misc,unused-ignore]
    """Gets the messages of a topic of ActiveMQ."""

    def __init__(self, port: int, destination: str) -> None:
        self.frames: list[Any] = []
        self.connection = stomp.Connection12([(HOST, port)])
        self.connection.set_listener("test", self)
        self.connection.connect(wait=True)
        self.connection.subscribe(destination, id="1", receipt="subscribed")
        until(lambda: self.subscribed, "ActiveMQ has the subscription")

    subscribed = False

    def on_receipt(self, _frame: Any) -> None:
        self.subscribed = True

    def on_message(self, frame: Any) -> None:
        self.frames.append(frame)


@pytest.fixture
def subscribe(activemq):
    made: list[Subscriber] = []

    def begin(destination: str) -> Subscriber:
        made.append(Subscriber(activemq.port, destination))
        return made[-1]

    yield begin
    for one in made:
        one.connection.disconnect()


def test_activemq_gets_all_headers_as_texts(activemq, subscribe, connect):
    messenger = connect("stomp", activemq.stomp_url)
    messenger.open()
    assert Feature.SEVERITY in messenger.features
    subscriber = subscribe("/topic/a.é")
    message = upstream.Message(topic="a.é", body={"ä": "€"}, severity=upstream.WARNING)
    message.priority = 7
    made = outgoing(message, exchange="amq.topic", now=1.0)
    assert refusal(made, messenger.features) is None
    assert messenger.send_many([made, *numbered("a.é", 120)]) == [Sent()] * 121
    until(lambda: len(subscriber.frames) == 121, "all messages have come")
    first, *others = subscriber.frames
    assert [json.loads(frame.body)["n"] for frame in others] == list(range(120))
    assert json.loads(first.body) == {"ä": "€"}
    expected = {
        "amqp-message-id": message.id,
        "content-type": "application/json",
        "fedora_messaging_schema": "base.message",
        "fedora_messaging_severity": "30",
        "persistent": "true",
        "priority": "7",
        "sent-at": message._headers["sent-at"],
    }
    assert first.headers.items() >= expected.items()


def test_a_destination_may_be_given_and_changes_by_activemq_are_refused(
    activemq, subscribe, connect
):
    subscriber = subscribe("/topic/VirtualTopic.pdc.compose")
    options = {"destination": "/topic/VirtualTopic.pdc{topic}"}
    messenger = connect("stomp", activemq.stomp_url, options=options)
    important = replace(prepared(".compose"), priority=10)
    good, *bad = messenger.send_many([prepared(".compose"), prepared(".compose,other"), important])
    assert good == Sent()
    assert all(isinstance(result, Reject) for result in bad)
    until(lambda: len(subscriber.frames) == 1, "the message has come")


@pytest.mark.parametrize("target", ["proton-4"], indirect=True)
def test_an_idle_connection_of_proton_is_made_again(target, connect, topic):
    messenger = connect("proton", target.url, timeout=2.0)
    assert messenger.send_many(numbered(topic, 1)) == [Sent(routed=True)]
    time.sleep(2.5)
    assert messenger.send_many(numbered(topic, 1)) == [Sent(routed=True)]


class Peer:
    """An AMQP 1.0 server that is no RabbitMQ. The topic of a message says its disposition."""

    def __init__(self, product: str, *, relays: bool) -> None:
        from proton.handlers import MessagingHandler  # noqa: PLC0415 -- it may be missing
        from proton.reactor import Container  # noqa: PLC0415

        peer = self
        self.got: list[tuple[str, Any]] = []
        self._holder = reserve_port()
        self.url = f"amqp://{HOST}:{self._holder.getsockname()[1]}"
        self.is_ready = False

        class Server(MessagingHandler):  # type: ignore[misc,unused-ignore]
            def __init__(self) -> None:
                super().__init__(auto_accept=False, auto_settle=True)

            def on_start(self, event: Any) -> None:
                self.acceptor = event.container.listen(peer.url)
                peer.is_ready = True

            def on_connection_opening(self, event: Any) -> None:
                event.connection.properties = {"product": product, "version": "1"}
                if relays:
                    event.connection.offered_capabilities = ["ANONYMOUS-RELAY"]

            def on_link_opening(self, event: Any) -> None:
                event.link.target.copy(event.link.remote_target)

            def on_message(self, event: Any) -> None:
                address = event.message.address or event.link.remote_target.address
                peer.got.append((address, event.message))
                dispose: dict[str, Callable[[Any], None]] = {
                    "accept": self.accept,
                    "reject": self.reject,
                    "release": partial(self.release, delivered=False),
                    "modify": partial(self.release, delivered=True),
                }
                dispose[address.rpartition(".")[2]](event.delivery)

        self._container = Container(Server())
        self._thread = threading.Thread(target=self._container.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.is_ready, "the peer listens")
        return self

    def __exit__(self, *_: object) -> None:
        self._container.stop()
        self._holder.close()


@pytest.mark.parametrize(
    ("product", "address"), [("ActiveMQ", "topic://a.accept"), ("qpid", "a.accept")]
)
@pytest.mark.parametrize("relays", [True, False])
def test_another_broker_gets_everything_and_its_dispositions_are_understood(
    product, address, relays, connect
):
    require_proton()
    with Peer(product, relays=relays) as peer:
        messenger = connect("proton", peer.url, timeout=5.0)
        message = upstream.Message(
            topic="a.accept", body={"ä": 1}, severity=30, headers={"number": 5, "flag": True}
        )
        made = outgoing(message, exchange="amq.topic", now=1.0)
        others = [prepared(f"a.{word}") for word in ("release", "reject", "modify", "accept")]
        messenger.open()
        assert refusal(made, messenger.features) is None
        first, *refused, last = messenger.send_many([made, *others])
        assert first == last == Sent()
        for result in refused:
            assert isinstance(result, Retry)
            assert result.scope is Scope.MESSAGE
        got_address, got = peer.got[0]
        assert got_address == address
        assert json.loads(bytes(got.body)) == {"ä": 1}
        assert (got.id, got.content_type, got.durable) == (message.id, "application/json", True)
        assert dict(got.properties) == message._headers


def test_a_consumer_ends_with_the_cure_if_rabbitmq_does_not_permit_its_queue(next_rabbitmq, start):
    queues = queue_table("transient", durable=False)
    instance = start(next_rabbitmq.url, queues, "def handler(message): pass")
    assert instance.wait() == ExitCode.BAD_DECLARATION
    assert "does not permit its deprecated feature transient_nonexcl_queues: 541" in instance.log
    assert "set durable = true, or exclusive = true, for each of [queues]" in instance.log
