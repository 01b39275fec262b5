# SPDX-License-Identifier: GPL-2.0-or-later
"""PDC's settings for STOMP and AMQP 1.0: messages arrive at the addresses that PDC made of them."""

from __future__ import annotations

import json
import queue
import uuid
from typing import TYPE_CHECKING, Any

import pika
import pytest
import stomp
from fedora_messaging import message as upstream

from consumer_framework.publishing.integrations.pdc import PdcMessenger, messenger
from consumer_framework.testing.broker import HOST, reserve_port
from consumer_framework.testing.broker.proxy import Proxy

from .instance import until
from .messengers import require_proton

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def prefix() -> str:
    """Return the text before the topics, which no other test uses."""
    return f"pdc-{uuid.uuid4().hex}"


@pytest.fixture
def queue_of(many_protocols, prefix) -> Iterator[Callable[[int], list[Any]]]:
    """Return a function that waits for messages in a queue that is bound to all of the topics."""
    with pika.BlockingConnection(pika.URLParameters(many_protocols.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(prefix, exclusive=True)
        channel.queue_bind(prefix, "amq.topic", f"{prefix}.#")

        def take(count: int) -> list[Any]:
            found: list[Any] = []

            def is_done() -> bool:
                while (got := channel.basic_get(prefix, auto_ack=True))[0] is not None:
                    found.append(got)
                return len(found) >= count

            until(is_done, f"{count} messages")
            return found

        yield take


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[..., PdcMessenger]]:
    made: list[PdcMessenger] = []
    outbox = f"sqlite:///{tmp_path / 'outbox.sqlite3'}"

    def new(bus: dict[str, Any], **options: Any) -> PdcMessenger:
        made.append(messenger(bus, **{"outbox": outbox, "timeout": 5.0, **options}))
        return made[-1]

    yield new
    for one in made:
        one.close()


def stomp_bus(prefix: str, *ports: int) -> dict[str, Any]:
    """Return the settings of PDC's documentation, for brokers of the test."""
    pairs = [(HOST, port) for port in ports]
    files = {"CERT_FILE": "", "KEY_FILE": ""}
    return {"MLP": "stomp", "HOST_AND_PORTS": pairs, "TOPIC": prefix, **files}


def proton_bus(prefix: str, port: int) -> dict[str, Any]:
    # In RabbitMQ 3 an address is /exchange/EXCHANGE/KEY.
    url = f"amqp://guest:guest@{HOST}:{port}//exchange/amq.topic/{prefix}"
    return {"MLP": "proton", "URL": url, "CERT_FILE": "", "KEY_FILE": ""}


PAIRS = [(".compose", {"action": "create", "n": 1}), (".images", {"ü": "€", "n": 2})]


@pytest.mark.parametrize("options", [{}, {"direct": True}])
@pytest.mark.parametrize("name", ["stomp", "proton"])
def test_messages_arrive_at_the_address_of_prefix_and_topic(
    name, options, many_protocols, prefix, make, queue_of
):
    if name == "proton":
        require_proton()
        bus = proton_bus(prefix, many_protocols.port)
    else:
        bus = {**stomp_bus(prefix, many_protocols.stomp_port), "USER": "guest", "PASSWORD": "guest"}
    make(bus, **options).send_messages(PAIRS)
    got = queue_of(2)
    assert [(m.routing_key, json.loads(body)) for m, _, body in got] == [
        (f"{prefix}.compose", PAIRS[0][1]),
        (f"{prefix}.images", PAIRS[1][1]),
    ]
    for method, properties, body in got:
        assert type(upstream.get_message(method.routing_key, properties, body)) is upstream.Message


def test_a_stomp_connection_that_drops_is_made_again_and_the_next_endpoint_is_tried(
    many_protocols, prefix, make, queue_of
):
    with (
        Proxy(HOST, many_protocols.stomp_port) as proxy,
        reserve_port() as dead,
    ):
        bus = stomp_bus(prefix, dead.getsockname()[1], proxy.port, many_protocols.stomp_port)
        bus |= {"USER": "guest", "PASSWORD": "guest"}
        for options in ({}, {"direct": True}):
            sender = make(bus, **options)
            sender.send_messages(PAIRS[:1])
            queue_of(1)
            proxy.cut()
            sender.send_messages(PAIRS[1:])
            assert [m.routing_key for m, _, _ in queue_of(1)] == [f"{prefix}.images"]
            sender.close()


def test_kombu_with_the_ssl_options_of_pdc_checks_the_broker_and_is_known_by_its_certificate(
    tls_broker, make, caplog
):
    pair = tls_broker.add_certificate_user("pdc.example.org")
    files = {"ca_certs": str(tls_broker.authority.certificate), "cert_reqs": 2}
    files |= {"keyfile": str(pair.key), "certfile": str(pair.certificate)}
    bus: dict[str, Any] = {
        "MLP": "kombu",
        "URL": f"amqp://guest:guest@localhost:{tls_broker.tls_port}//",
        "EXCHANGE": {"name": "amq.topic", "type": "topic", "durable": True},
        "OPTIONS": {"login_method": "EXTERNAL", "ssl": files},
    }
    make(bus, direct=True).send_messages(PAIRS)
    users = tls_broker.ctl("list_connections", "user", "auth_mechanism")
    assert "pdc.example.org\tEXTERNAL" in users
    assert not caplog.records
    # A name of the same address that is not in the broker's certificate.
    bus["URL"] = f"amqp://127.1:{tls_broker.tls_port}//"
    make(bus, direct=True).send_messages(PAIRS)
    assert "certificate" in caplog.text
    assert caplog.text.count("is lost") == 2


class Listener(stomp.ConnectionListener):
    """Keeps the messages of a subscription."""

    def __init__(self) -> None:
        self.got: queue.Queue[Any] = queue.Queue()

    def on_message(self, frame: Any) -> None:
        self.got.put(frame)


def test_a_subscriber_of_activemq_gets_the_topic_as_pdc_sent_it(activemq, prefix, make):
    connection = stomp.Connection12([(HOST, activemq.port)])
    listener = Listener()
    connection.set_listener("test", listener)
    connection.connect(wait=True)
    connection.subscribe(f"/topic/{prefix}.compose", id="1", headers={"receipt": "subscribed"})
    try:
        bus = make(stomp_bus(prefix, activemq.port))
        frame = None
        # The subscription has no answer that a listener waits for; so the first may be early.
        for _ in range(20):
            bus.send_messages(PAIRS[:1])
            try:
                frame = listener.got.get(timeout=1)
                break
            except queue.Empty:
                continue
        assert frame is not None
        assert frame.headers["destination"] == f"/topic/{prefix}.compose"
        assert json.loads(frame.body) == PAIRS[0][1]
    finally:
        connection.disconnect()
