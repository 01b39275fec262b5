# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger `fedmsg`, against subscribers: pyzmq's, and those of fedmsg 1.1.7 itself."""

from __future__ import annotations

import getpass
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from fedora_messaging import message as upstream

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.publishing.message import Outgoing, outgoing
from consumer_framework.publishing.messengers import (
    Endpoints,
    Feature,
    Reject,
    Retry,
    Scope,
    Sent,
    refusal,
)
from consumer_framework.publishing.messengers.fedmsg import Fedmsg
from consumer_framework.testing.broker.proxy import Proxy

from .fedmsg_bus import RsaAuthority, Subscriber, free_url
from .installed_consumers import install
from .test_messengers import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

YEAR = time.gmtime(0).tm_year


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> RsaAuthority:
    return RsaAuthority(tmp_path_factory.mktemp("fedmsg"))


@pytest.fixture(scope="module")
def files(authority) -> dict[str, str]:
    return asdict(authority.issue("app-host.example.org"))


@pytest.fixture
def make(files) -> Iterator[Callable[..., Fedmsg]]:
    """Return a function that makes a messenger: its URLs, values of Endpoints, options."""
    made: list[Fedmsg] = []

    def new(*urls: str, timeout: float = 10.0, wait: float = 0.5, **options: Any) -> Fedmsg:
        pair = {name: options.pop(name, path) for name, path in files.items()}
        endpoints = Endpoints(urls, timeout=timeout, **pair)
        made.append(Fedmsg(endpoints, post_init_sleep=wait, **options))
        return made[-1]

    yield new
    for messenger in made:
        messenger.close()


def prepared(topic: str = "org.example.app.done", body: Any = None) -> Outgoing:
    message = upstream.Message(topic=topic, body=body or {"n": 1})
    return outgoing(message, exchange="amq.topic", now=1.0)


def numbered(count: int, **values: Any) -> list[Outgoing]:
    return [prepared(body={"n": n, **values}) for n in range(count)]


def numbers(taken: list[tuple[str, dict[str, Any]]]) -> list[int]:
    return [message["msg"]["n"] for _, message in taken]


# fedmsg has no priorities: a message that has one is refused.
KEPT = [kind for kind in KINDS if kind != "priority"]


def test_a_message_with_a_priority_is_refused_as_lossy(make):
    sent = outgoing(KINDS["priority"]("a"), exchange="amq.topic", now=1.0)
    assert "priority" in (refusal(sent, make(free_url()).features) or "")


@pytest.mark.parametrize("kind", KEPT)
def test_a_subscriber_gets_a_message_with_a_signature_that_holds(kind, make, authority):
    message = KINDS[kind]("org.example.é." + kind)
    sent = outgoing(message, exchange="amq.topic", now=1.0)
    url = free_url()
    messenger = make(url)
    assert refusal(sent, messenger.features) is None
    with Subscriber(url, topic="org.example") as subscriber:
        messenger.open()
        assert messenger.send_many([sent]) == [Sent(routed=True)]
        [(topic, got)] = subscriber.take(1)
    assert authority.verify(got) == "app-host.example.org"
    del got["signature"], got["certificate"]
    assert topic == sent.topic
    assert got == {
        "topic": sent.topic,
        "msg": message.body,
        "msg_id": f"{YEAR}-{message.id}",
        "timestamp": 1,
        "i": 1,
        "username": getpass.getuser(),
        "headers": message._headers,
        "crypto": "x509",
    }


def test_a_message_that_is_sent_again_has_the_same_id_and_time(make):
    url = free_url()
    one = prepared()
    with Subscriber(url) as subscriber:
        messenger = make(url, username="app")
        assert messenger.send_many([one, one]) == [Sent(routed=True)] * 2
        (_, first), (_, second) = subscriber.take(2)
    assert first["username"] == "app"
    assert (first.pop("i"), second.pop("i")) == (1, 2)
    assert first.pop("signature") != second.pop("signature")
    assert first == second


def test_a_changed_message_fails_the_check_of_its_signature(make, authority):
    url = free_url()
    with Subscriber(url) as subscriber:
        make(url).send_many([prepared()])
        [(_, got)] = subscriber.take(1)
    authority.verify(got)
    got["msg"]["n"] = 2
    with pytest.raises(Exception, match=r"^$"):  # InvalidSignature has no text
        authority.verify(got)


def test_a_batch_arrives_in_its_order_and_an_empty_one_is_no_fault(make):
    url = free_url()
    messenger = make(url)
    assert messenger.send_many([]) == []
    with Subscriber(url) as subscriber:
        messenger.open()
        assert messenger.send_many(numbered(120)) == [Sent(routed=True)] * 120
        assert numbers(subscriber.take(120)) == list(range(120))
    assert Feature.CONFIRMS not in messenger.features


def test_a_message_without_a_subscriber_is_told_as_not_routed(make):
    url = free_url()
    messenger = make(url)
    messenger.open()
    assert messenger.send_many([prepared()]) == [Sent(routed=False)]
    with Subscriber(url, topic="org.example.app") as subscriber:
        until(lambda: messenger.send_many([prepared()]) == [Sent(routed=True)])
        assert messenger.send_many([prepared("org.other")]) == [Sent(routed=False)]
        assert messenger.send_many([prepared("org.example.application")]) == [Sent(routed=True)]
        assert [topic for topic, _ in subscriber.take(2)][1] == "org.example.application"
    until(lambda: messenger.send_many([prepared()]) == [Sent(routed=False)])


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_port_that_another_process_has_is_passed_over(make):
    first, second = free_url(), free_url()
    holder = make(first)
    holder.open()
    messenger = make(first, second)
    with Subscriber(second) as subscriber:
        assert messenger.send_many(numbered(2)) == [Sent(routed=True)] * 2
        assert numbers(subscriber.take(2)) == [0, 1]
    with pytest.raises(ConnectionError, match=r"cannot be bound: Address already in use"):
        make(first).open()
    assert [r.scope for r in make(first).send_many([prepared()])] == [Scope.ENDPOINT]


def test_closing_hands_over_the_last_messages_and_frees_the_port(make):
    url = free_url()
    messenger = make(url)
    with Subscriber(url) as subscriber:
        messenger.send_many(numbered(50, filling="x" * 10_000))
        messenger.close()
        messenger.close()
        assert numbers(subscriber.take(50)) == list(range(50))
        assert messenger.send_many([prepared()]) == [Sent(routed=True)]
        assert numbers(subscriber.take(1)) == [1]


def test_only_the_slow_subscriber_loses_messages(make, caplog):
    url = free_url()
    messenger = make(url, timeout=1.0)
    filling = "x" * 20_000
    with Subscriber(url, room=1), Subscriber(url) as other:
        messenger.open()
        # More than the buffers of both sides and the 1000 messages of the slow one have room for.
        with caplog.at_level(logging.WARNING):
            for _ in range(15):
                batch = numbered(100, filling=filling)
                assert messenger.send_many(batch) == [Sent(routed=True)] * 100
                assert numbers(other.take(100)) == list(range(100))
    assert [r.message for r in caplog.records].count(
        "A subscriber of fedmsg has taken nothing for 1.0 s, and loses messages now"
    ) == 1


# A relay, to which the messenger connects


def test_a_relay_that_has_subscribed_gets_all_messages_from_the_first(make):
    url = free_url()
    with Subscriber(url, is_relay=True) as relay:
        assert make(url, active=True).send_many(numbered(20)) == [Sent(routed=True)] * 20
        assert numbers(relay.take(20)) == list(range(20))


def test_a_relay_that_is_away_keeps_the_messages_here(make):
    messenger = make(free_url(), active=True, timeout=0.5)
    with pytest.raises(ConnectionError, match="no fedmsg-relay has subscribed"):
        messenger.open()
    results = messenger.send_many([prepared()])
    assert all(isinstance(r, Retry) and r.scope is Scope.ENDPOINT for r in results)


def test_a_relay_that_is_away_or_says_nothing_is_left_for_the_next(make):
    silent, living = free_url(), free_url()
    with Proxy("127.0.0.1", int(silent.rpartition(":")[2])) as proxy:
        proxy.stall()
        stalled = f"tcp://127.0.0.1:{proxy.port}"
        messenger = make(silent, stalled, living, active=True, timeout=0.5)
        with Subscriber(living, is_relay=True) as relay:
            assert messenger.send_many(numbered(3)) == [Sent(routed=True)] * 3
            assert numbers(relay.take(3)) == [0, 1, 2]


def test_a_relay_that_ends_is_noticed_and_comes_back(make):
    url = free_url()
    messenger = make(url, active=True, timeout=0.5)
    with Subscriber(url, is_relay=True) as relay:
        assert messenger.send_many(numbered(1)) == [Sent(routed=True)]
        assert numbers(relay.take(1)) == [0]
    until(lambda: isinstance(messenger.send_many([prepared()])[0], Retry))
    with Subscriber(url, is_relay=True) as relay:
        until(lambda: messenger.send_many(numbered(1)) == [Sent(routed=True)])
        assert numbers(relay.take(1)) == [0]


def test_a_relay_that_stops_taking_messages_is_left_for_the_next(make):
    first, second = free_url(), free_url()
    messenger = make(first, second, active=True, timeout=1.0)
    with Subscriber(first, is_relay=True, room=1), Subscriber(second, is_relay=True) as next_one:
        messenger.open()
        for _ in range(15):
            results = messenger.send_many(numbered(100, filling="x" * 20_000))
            assert results == [Sent(routed=True)] * 100
        assert next_one.take(1)


# Faults of the configuration


@pytest.mark.parametrize(
    "url", ["amqp://host:5672", "tcp://host", "tcp://:3000", "tcp://host:port", "ipc://", "host"]
)
def test_a_url_of_another_kind_is_refused_with_its_cure(url, make):
    with pytest.raises(ConfigurationError, match="tcp://HOST:PORT"):
        make(url)


def test_a_host_by_name_is_bound_on_all_addresses_and_a_path_as_it_is(make, tmp_path):
    port = free_url().rpartition(":")[2]
    for bound, reached in [
        (f"tcp://localhost:{port}", f"tcp://127.0.0.1:{port}"),
        (f"tcp://[::1]:{port}", f"tcp://127.0.0.1:{port}"),
        (f"ipc://{tmp_path}/bus", f"ipc://{tmp_path}/bus"),
    ]:
        messenger = make(bound)
        with Subscriber(reached) as subscriber:
            routed = [Sent(routed=not bound.startswith("tcp://["))]
            assert messenger.send_many([prepared()]) == routed
            assert len(subscriber.take(1, 2.0 if routed[0].routed else 0.0)) == routed[0].routed
        messenger.close()


def test_a_key_that_cannot_sign_is_refused_when_the_messenger_is_made(
    make, authority, files, tmp_path
):
    other = authority.issue("other.example.org")
    curve = tmp_path / "curve.key"
    form, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = ed25519.Ed25519PrivateKey.generate()
    curve.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
    torn = tmp_path / "torn.crt"
    torn.write_text("-----BEGIN CERTIFICATE-----\n")
    url = free_url()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"certfile": None}, "certfile is not set"),
        ({"keyfile": None}, "keyfile is not set"),
        ({"keyfile": str(tmp_path / "none")}, "No such file"),
        ({"keyfile": other.keyfile}, "is not the key of"),
        ({"keyfile": str(curve)}, "another key"),
        ({"certfile": str(torn)}, "of no use"),
        ({"keyfile": files["certfile"]}, "of no use"),
    ]
    for changes, told in cases:
        with pytest.raises(ConfigurationError, match=told):
            make(url, **changes)


def test_without_signatures_no_certificate_is_needed(make):
    url = free_url()
    with Subscriber(url) as subscriber:
        messenger = make(url, sign_messages=False, certfile=None, keyfile=None)
        assert messenger.send_many([prepared()]) == [Sent(routed=True)]
        [(_, got)] = subscriber.take(1)
    assert not {"crypto", "signature", "certificate"} & got.keys()


def test_a_certificate_that_has_ended_stops_the_messages_until_it_is_replaced(
    make, authority, tmp_path
):
    ended = authority.issue("ended.example.org", days=-1)
    pair = {name: tmp_path / name for name in ("certfile", "keyfile")}
    for name, path in pair.items():
        path.write_bytes(Path(getattr(ended, name)).read_bytes())
    url = free_url()
    with Subscriber(url) as subscriber:
        paths: dict[str, Any] = {name: str(path) for name, path in pair.items()}
        messenger = make(url, wait=0.2, **paths)
        [result] = messenger.send_many([prepared()])
        assert isinstance(result, Retry)
        assert "the certificate is valid from" in result.reason
        pair["keyfile"].write_text("torn")
        assert "of no use" in messenger.send_many([prepared()])[0].reason
        renewed = authority.issue("renewed.example.org")
        for name, path in pair.items():
            path.write_bytes(Path(getattr(renewed, name)).read_bytes())
        until(lambda: messenger.send_many([prepared()]) == [Sent(routed=True)])
        [(_, got)] = subscriber.take(1)
    assert authority.verify(got) == "renewed.example.org"


def test_a_body_that_is_no_json_is_refused_alone(make):
    url = free_url()
    torn = Outgoing("id", "a", b"{", {}, "amq.topic")
    with Subscriber(url) as subscriber:
        first, second = make(url).send_many([torn, prepared()])
        assert isinstance(first, Reject)
        assert second == Sent(routed=True)
        assert numbers(subscriber.take(1)) == [1]


# Forbids netlink sockets to this process, as RestrictAddressFamilies= of systemd does (seccomp(2)).
FORBIDDEN = """
import ctypes, errno, platform, struct, sys
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 16)]
code += [(0x06, 0, 0, 0x50000 | errno.EAFNOSUPPORT), (0x06, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
import socket
try:
    socket.socket(socket.AF_NETLINK)
except OSError:
    from consumer_framework.publishing.messengers import Endpoints
    from consumer_framework.publishing.messengers.fedmsg import Fedmsg
    for url in sys.argv[1:]:
        Fedmsg(Endpoints((url,)), sign_messages=False, post_init_sleep=0.0).open()
        print("bound", flush=True)
"""


def test_a_port_is_bound_without_looking_for_network_interfaces():
    urls = [free_url(), free_url().replace("127.0.0.1", "*")]
    command = [sys.executable, "-c", FORBIDDEN, *urls]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "bound\nbound\n"


FORGOTTEN = """
import gc, sys
from consumer_framework.publishing.messengers import Endpoints
from consumer_framework.publishing.messengers.fedmsg import Fedmsg
for _ in range(20):
    messenger = Fedmsg(Endpoints((sys.argv[1],)), sign_messages=False, post_init_sleep=0.0)
    messenger.open()
    del messenger
    gc.collect()
"""


def test_a_messenger_that_nobody_closes_blocks_no_garbage_collection():
    command = [sys.executable, "-c", FORGOTTEN, free_url()]
    subprocess.run(command, check=True, timeout=60)


# fedmsg itself


@pytest.fixture(scope="module")
def python():
    """Return the Python of an environment with fedmsg."""
    # Newer versions of pyOpenSSL have no revocation lists, and fedmsg then checks nothing.
    made = install("fedmsg", ("fedmsg==1.1.7", "pyopenssl<24.3"))
    if isinstance(made, str):
        pytest.skip(f"fedmsg cannot be installed: {made}")
    return made


TAIL = """
import json, warnings, fedmsg.config, fedmsg.core
conf = fedmsg.config.conf.copy()
conf.update(name=None, mute=True)
warnings.simplefilter("ignore")
for _, _, topic, message in fedmsg.core.FedMsgContext(**conf).tail_messages():
    print(json.dumps([topic, message]), flush=True)
"""
# A bridge to AMQP that uses the headers.
BRIDGE = """
import json, sys, fedmsg.config, fedmsg.crypto, pika, zmq
checks = fedmsg.config.conf.copy()
channel = pika.BlockingConnection(pika.URLParameters(sys.argv[2])).channel()
channel.confirm_delivery()
socket = zmq.Context.instance().socket(zmq.SUB)
socket.connect(sys.argv[1])
socket.setsockopt(zmq.SUBSCRIBE, b"")
while True:
    topic, text = socket.recv_multipart()
    got = json.loads(text)
    if fedmsg.crypto.validate(got, **checks):
        values = {"content_type": "application/json", "content_encoding": "utf-8"}
        values |= {"message_id": got["msg_id"], "headers": got["headers"], "delivery_mode": 2}
        body = json.dumps(got["msg"]).encode()
        channel.basic_publish("amq.topic", topic.decode(), body, pika.BasicProperties(**values))
"""


@pytest.fixture
def fedmsg_program(python, authority, tmp_path):
    """Return a function that runs a script of fedmsg, whose subscribers check all signatures."""
    running = []
    url = free_url()
    config = {
        "endpoints": {"app.host": [url]},
        "validate_signatures": True,
        "ca_cert_location": str(authority.certificate),
        "crl_location": str(authority.revocations),
        "routing_policy": {"org.example.guarded": ["app-host.example.org"]},
        "routing_nitpicky": False,
        "post_init_sleep": 0.0,
    }
    (tmp_path / "fedmsg.py").write_text(f"config = {config!r}\n")

    def run(script, *arguments):
        running.append(
            subprocess.Popen(
                [str(python), "-c", script, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"FEDMSG_CONFIG": str(tmp_path / "fedmsg.py")},
            )
        )
        return running[-1]

    yield url, run
    for process in running:
        process.kill()
        process.communicate()


def test_fedmsg_takes_the_messages_and_refuses_those_of_others(fedmsg_program, make, authority):
    url, run = fedmsg_program
    other = asdict(authority.issue("other.example.org"))
    tail = run(TAIL)
    messenger = make(url)
    messenger.open()
    until(lambda: messenger.send_many([prepared("org.example.begin")]) == [Sent(routed=True)])
    batch = [prepared("org.example.guarded", {"n": n, "text": "é \ud83d"}) for n in range(3)]
    messenger.send_many(batch)
    messenger.close()
    # The routing policy of fedmsg allows this topic to the first certificate only.
    stranger = make(url, **other)
    stranger.open()
    until(lambda: stranger.send_many([prepared("org.example.guarded")]) == [Sent(routed=True)])
    stranger.send_many([prepared("org.example.end")])
    got: list[tuple[str, Any]] = []
    while not got or got[-1][0] != "org.example.end":
        got.append(json.loads(tail.stdout.readline()))
    got = [one for one in got if one[0] != "org.example.begin"]
    assert [topic for topic, _ in got] == ["org.example.guarded"] * 3 + ["org.example.end"]
    assert [m["msg"] for _, m in got[:3]] == [json.loads(one.body) for one in batch]
    assert [m["msg_id"] for _, m in got[:3]] == [f"{YEAR}-{one.id}" for one in batch]


@pytest.fixture
def channel(broker):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield connection.channel()


def test_a_message_arrives_as_it_was_behind_a_bridge_to_amqp(
    fedmsg_program, make, broker, channel, queue_name
):
    url, run = fedmsg_program
    topic = uuid.uuid4().hex
    channel.queue_declare(queue_name, durable=True)
    channel.queue_bind(queue_name, "amq.topic", f"{topic}.#")
    run(BRIDGE, url, broker.url)
    messenger = make(url)
    messenger.open()
    until(lambda: messenger.send_many([prepared("begin")]) == [Sent(routed=True)])
    messages = [KINDS[kind](f"{topic}.é.{kind}") for kind in KEPT]
    sent = [outgoing(one, exchange="amq.topic", now=1.0) for one in messages]
    assert messenger.send_many(sent) == [Sent(routed=True)] * len(sent)
    for message in messages:
        until(lambda: channel.queue_declare(queue_name, passive=True).method.message_count > 0)
        method, properties, body = channel.basic_get(queue_name, auto_ack=True)
        arrived = upstream.get_message(method.routing_key, properties, body)
        assert arrived.id == f"{YEAR}-{message.id}"
        arrived.id = message.id
        assert type(arrived) is type(message)
        assert arrived == message
        assert arrived.severity == message.severity
        assert arrived._headers == message._headers
