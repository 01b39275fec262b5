# SPDX-License-Identifier: GPL-2.0-or-later
"""Brokers that are none, or do not answer, as ``fm-consumer check --broker`` says it."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import socket
import ssl
import threading
from typing import Any
from unittest import mock

import pika
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedora_messaging import config as upstream
from pika import exceptions

from consumer_framework.adapters.amqp import inspection
from consumer_framework.adapters.amqp.inspection import BrokerView, QueueView, inspect
from consumer_framework.core.errors import ExitCode, Fault
from consumer_framework.operate.check import broker
from consumer_framework.settings import Settings


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(inspection, "TIMEOUT", 1.0)


@pytest.fixture
def listener():
    """Listens, and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def refusal(url: str) -> str:
    """Return the words about the broker at *url*."""
    settings = Settings.model_validate({"amqp_url": url, "queues": {}, "bindings": []})
    with (
        mock.patch.dict(upstream.conf, {**upstream.DEFAULTS, "amqp_url": url}),
        pytest.raises(Fault) as caught,
    ):
        inspect(settings, settings.brokers[0])
    assert caught.value.exit_code == ExitCode.CONNECTION
    return str(caught.value)


def url_of(listening: socket.socket, scheme: str = "amqp") -> str:
    return f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/"


@contextlib.contextmanager
def serving(listening: socket.socket, answer: Any) -> Any:
    """Lets *answer* have the first connection, in a thread."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join()


def test_a_port_where_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = url_of(closed)
    text = refusal(url)
    assert "cannot be reached: connection refused; an instance would wait for it; check" in text


def test_a_host_that_has_no_address():
    text = refusal("amqp://no-such-host.invalid/")
    assert "the broker at no-such-host.invalid:5672 cannot be reached: " in text
    assert "Errno" not in text


def test_a_broker_that_does_not_answer(listener):
    assert "no answer to the handshake within 1 s" in refusal(url_of(listener))


def test_something_that_is_no_broker(listener):
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(listener, answer):
        text = refusal(url_of(listener))
    assert "does not accept the connection: it does not speak AMQP 0-9-1; check" in text


def test_tls_where_there_is_none(listener):
    with serving(listener, lambda connection: connection.sendall(b"AMQP\x00\x00\x09\x01")):
        assert "does not accept the connection: TLS: " in refusal(url_of(listener, "amqps"))


def test_a_certificate_that_nobody_vouches_for(listener, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))

    def answer(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).close()

    with serving(listener, answer):
        assert "TLS: self-signed certificate" in refusal(url_of(listener, "amqps"))


def self_signed(directory: Any) -> Any:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    path = directory / "self-signed.pem"
    path.write_bytes(
        builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def test_pika_says_nothing_of_its_own(listener, caplog):
    level = logging.getLogger("pika").level
    refusal(url_of(listener))
    assert caplog.records == []
    assert logging.getLogger("pika").level == level


def test_a_connection_that_ends_while_it_is_used(monkeypatch):
    class Ending:
        is_open = False
        _impl = mock.Mock(server_properties={})

        def channel(self):
            raise exceptions.ConnectionClosedByBroker(320, "CONNECTION_FORCED")

    monkeypatch.setattr(pika, "BlockingConnection", lambda *_, **__: Ending())
    queue = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}}
    settings = Settings.model_validate(
        {"amqp_url": "amqp://h/", "queues": {"one": queue}, "bindings": []}
    )
    with pytest.raises(Fault, match="320 CONNECTION_FORCED"):
        inspect(settings, settings.brokers[0])


# Findings.


@pytest.mark.parametrize(
    ("product", "version", "numbers"),
    [
        ("RabbitMQ", "3.10.8", (3, 10, 8)),
        ("RabbitMQ", "4.1.0-rc.1", (4, 1, 0)),
        ("RabbitMQ", "", None),
        ("LavinMQ", "2.0.0", None),
    ],
)
def test_only_rabbitmqs_version_means_something(monkeypatch, product, version, numbers):
    view = BrokerView(
        "host:1", product, version, "a vhost", queues=(QueueView("one", locked=True),)
    )
    monkeypatch.setattr(broker, "inspect", lambda _settings, _address: view)
    settings = Settings.model_validate({"amqp_url": "amqp://h/", "queues": {}, "bindings": []})
    found_version, found = broker.broker_findings(settings)
    assert found_version == numbers
    assert found[0].problem.message == f"{product} {version}".rstrip() + (
        " at host:1 takes the connection"
    )
    assert "-p 'a vhost'" in found[-1].problem.cure


def found_at(monkeypatch, *answers):
    """Return the findings where the brokers answer so, in their order."""
    said = iter(answers)

    def inspect_one(_settings, _address):
        answer = next(said)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(broker, "inspect", inspect_one)
    others = [f"h{number}" for number in range(1, len(answers))]
    config = {"framework": {"brokers": others}}
    settings = Settings.model_validate(
        {"amqp_url": "amqp://h/", "queues": {}, "bindings": [], "consumer_config": config}
    )
    found = broker.broker_findings(settings)[1]
    return [(f.level.name, f.problem.path.rpartition(".")[2], f.problem.message) for f in found]


def view_of(cluster):
    return BrokerView("host:1", "RabbitMQ", "4.1", "/", cluster)


def test_each_broker_is_asked_and_one_that_is_down_is_no_error_while_another_is_there(monkeypatch):
    down = inspection.UnreachableError(ExitCode.CONNECTION, "down")
    refused = Fault(ExitCode.CONNECTION, "refused")
    found = found_at(monkeypatch, down, view_of("a"), refused, view_of("b"))
    assert ("WARNING", "amqp_url", "down") in found
    assert ("ERROR", "brokers", "refused") in found
    assert [path for _, path, text in found if "takes the connection" in text] == ["brokers"] * 2
    assert ("WARNING", "brokers", "the brokers are in 2 clusters: a, b") in found
    found = found_at(monkeypatch, down, down)
    assert [level for level, _, _ in found] == ["ERROR", "ERROR"]


def test_a_balancer_without_a_broker_would_be_waited_for(listener):
    def hang_up(connection):
        connection.recv(8)

    with serving(listener, hang_up):
        said = refusal(url_of(listener))
    assert "a balancer without a broker behind it" in said
    assert "an instance would wait for it" in said


def test_a_broker_that_says_nothing_of_itself_is_one_still():
    assert inspection.text(b"RabbitMQ", "broker") == "RabbitMQ"
    assert inspection.text("4.0", "") == "4.0"
    assert inspection.text(None, "broker") == "broker"
