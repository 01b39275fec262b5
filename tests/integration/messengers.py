# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of messengers: each messenger, and each broker that it sends to."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pika
import pytest
from fedora_messaging import message as upstream

from consumer_framework.publishing.message import Outgoing, outgoing
from consumer_framework.publishing.messengers import Endpoints, find
from consumer_framework.testing.broker import HOST, Broker, reserve_port
from consumer_framework.testing.broker.place import port_of
from consumer_framework.testing.broker.proxy import Proxy
from consumer_framework.testing.broker.tls import Pair, TlsBroker

from .other_brokers import ActiveMQ, ManyProtocols, NextRabbitMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Messengers, and the major version of the RabbitMQ that each test sends to.
TARGETS = [f"{name}-{n}" for n in (3, 4) for name in ("amqp", "fedora", "kombu", "stomp", "proton")]
# Without those that differ from others in their library only.
MOST = [name for name in TARGETS if name not in {"fedora-4", "kombu-4"}]
# These take a list of endpoints; fedora-messaging connects to one.
WITH_FAILOVER = [name for name in MOST if not name.startswith("fedora")]
ON_RABBITMQ_3 = [name for name in TARGETS if name.endswith("3")]
SCHEMES = {"stomp": "stomp", "proton": "amqp"}
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

    def __init__(self, name: str, endpoints: Endpoints, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
        )
        self._tell(name)
        self._tell(endpoints)

    def _tell(self, thing: Any) -> None:
        pickle.dump(thing, self.process.stdin)
        self.process.stdin.flush()

    def call(self, name: str, *arguments: Any) -> Any:
        self._tell((name, arguments))
        answer = pickle.load(self.process.stdout)  # noqa: S301 -- the child is ours
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def features(self) -> Any:
        return self.call("features")

    def open(self) -> None:
        self.call("open")

    def send_many(self, batch: list[Outgoing]) -> Any:
        return self.call("send_many", batch)

    def close(self) -> None:
        self.call("close")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Target:
    """A messenger and a broker.

    Attributes:
        name: The name of the messenger.
    """

    name: str
    broker: Broker

    @property
    def port(self) -> int:
        if self.name == "stomp":
            assert isinstance(self.broker, ManyProtocols)
            return self.broker.stomp_port
        return self.broker.port

    @property
    def major(self) -> int:
        """The major version of the broker; another one than usual on a newer Debian."""
        with pika.BlockingConnection(pika.URLParameters(self.broker.url)) as connection:
            properties: Any = connection._impl.server_properties
        return int(properties["version"].partition(".")[0])

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int, user: str = "guest", password: str = "guest") -> str:  # noqa: S107
        scheme = SCHEMES.get(self.name, "amqp")
        path = "" if self.name == "proton" else "/%2F"
        return f"{scheme}://{user}:{password}@{HOST}:{port}{path}"


class TlsManyProtocols(TlsBroker):
    """A RabbitMQ whose clients have certificates, in all protocols.

    Attributes:
        pair: The certificate of an account that may write to amq.topic only.
    """

    pair: Pair

    def __init__(self, directory: Path) -> None:
        self._plain, self._encrypted = reserve_port(), reserve_port()
        config = {
            "max_message_size": "100000",
            "stomp.listeners.tcp.1": f"{HOST}:{port_of(self._plain)}",
            "stomp.listeners.ssl.1": f"{HOST}:{port_of(self._encrypted)}",
            "stomp.ssl_cert_login": "true",
        }
        plugins = ["rabbitmq_stomp", "rabbitmq_amqp1_0"]
        super().__init__(directory, config=config, plugins=plugins)

    def start(self) -> None:
        super().start()
        self.pair = self.add_certificate_user("writer.example.org")
        self.ctl("set_permissions", "writer.example.org", "", "^amq.topic$", "")

    def url_of(self, target: Target) -> str:
        return target.url_at(port_of(self._plain) if target.name == "stomp" else self.port)

    def tls_url_of(self, target: Target) -> str:
        scheme = {"stomp": "stomps"}.get(target.name, "amqps")
        port = port_of(self._encrypted) if target.name == "stomp" else self.tls_port
        return f"{scheme}://localhost:{port}" + ("" if target.name == "proton" else "/%2F")

    def close(self) -> None:
        super().close()
        self._plain.close()
        self._encrypted.close()


def _require(lacking: str | None) -> None:
    if lacking:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)


@pytest.fixture(scope="session")
def many_protocols() -> Iterator[ManyProtocols]:
    """Start a RabbitMQ that speaks STOMP and AMQP 1.0 too."""
    _require(Broker.missing())
    with ManyProtocols() as running:
        yield running


@pytest.fixture(scope="session")
def next_rabbitmq() -> Iterator[NextRabbitMQ]:
    """Start a RabbitMQ of the next major version, which speaks STOMP and AMQP 1.0 too.

    As RabbitMQ 4.3, it permits no queue that is neither durable nor exclusive.
    """
    _require(NextRabbitMQ.missing())
    denied = {"deprecated_features.permit.transient_nonexcl_queues": "false"}
    with NextRabbitMQ(**denied) as running:
        yield running


@pytest.fixture(scope="session")
def activemq() -> Iterator[ActiveMQ]:
    """Start an ActiveMQ that speaks STOMP."""
    _require(ActiveMQ.missing())
    with ActiveMQ() as running:
        yield running


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsManyProtocols]:
    _require(Broker.missing())
    with TlsManyProtocols(tmp_path_factory.mktemp("tls")) as running:
        yield running


def require_proton() -> None:
    if find_spec("proton") is None:
        _require("python-qpid-proton is missing, or was not built: pip install '.[proton]'")


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Target:
    """Return the messenger and the broker that the parameter names, such as ``stomp-4``."""
    name, _, version = getattr(request, "param", "amqp-3").partition("-")
    if name == "proton":
        require_proton()
    usual = "many_protocols" if name in SCHEMES else "broker"
    return Target(name, request.getfixturevalue("next_rabbitmq" if version == "4" else usual))


@pytest.fixture
def connect(tmp_path: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that makes a messenger: its name, URLs, further values of Endpoints."""
    made: list[Any] = []
    (tmp_path / "config.toml").write_text('amqp_url = "amqp://"\n')

    def make(name: str, *urls: str, timeout: float = 10.0, **values: Any) -> Any:
        options = values.pop("options", {})
        endpoints = Endpoints(urls, timeout=timeout, **values)
        environment = {"FEDORA_MESSAGING_CONF": str(tmp_path / "config.toml")}
        if name == "fedora":
            made.append(InProcess(name, endpoints, environment))
        else:
            made.append(find(name)(endpoints, **options))
        return made[-1]

    yield make
    for messenger in made:
        (messenger.end if isinstance(messenger, InProcess) else messenger.close)()


@pytest.fixture
def target_proxy(target: Target) -> Iterator[Proxy]:
    """Return a proxy to the broker of the test."""
    with Proxy(HOST, target.port) as running:
        yield running


@pytest.fixture
def channel(target: Target) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(target.broker.url)) as connection:
        yield connection.channel()


@pytest.fixture
def writer(target: Target) -> tuple[str, str]:
    """Return user and password of an account that may write to amq.topic only."""
    account = ("writer", "secret")
    if target.broker not in _with_writer:
        target.broker.add_user(*account, write="^amq.topic$")
        _with_writer.add(target.broker)
    return account


_with_writer: set[Broker] = set()


@pytest.fixture
def topic_queue(channel: Any) -> Iterator[str]:
    name = f"test.{uuid.uuid4()}"
    channel.queue_declare(name, durable=True)
    yield name
    channel.queue_delete(name)


@pytest.fixture
def topic(channel: Any, topic_queue: str) -> str:
    """Return a topic whose messages, and those below it, arrive in the queue of the test."""
    topic = uuid.uuid4().hex
    channel.queue_bind(topic_queue, "amq.topic", f"{topic}.#")
    return topic


@pytest.fixture
def arrived(channel: Any, topic_queue: str) -> Callable[[], list[Any]]:
    """Return a function that takes all messages out of the queue of the test."""

    def take() -> list[Any]:
        found = []
        while (got := channel.basic_get(topic_queue, auto_ack=True))[0] is not None:
            found.append(got)
        return found

    return take


def prepared(
    topic: str, body: Any = None, *, exchange: str = "amq.topic", **values: Any
) -> Outgoing:
    message = upstream.Message(topic=topic, body=body or {"n": 1}, **values)
    return outgoing(message, exchange=exchange, now=1.0)


def numbered(topic: str, count: int) -> list[Outgoing]:
    return [prepared(topic, {"n": n}) for n in range(count)]


def numbers(arrived: Any) -> list[int]:
    return [json.loads(body)["n"] for _, _, body in arrived]
