# SPDX-License-Identifier: GPL-2.0-or-later
"""`Webhook` posts each message to a URL, and the status of the answer decides."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.message import Message

from consumer_framework.core.disposition import Ack, Hold, Quarantine, Reject
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.kit.webhook import wait_of
from consumer_framework.testing import Harness
from consumer_framework.testing.broker.tls import Authority

CONSUMER = "consumer_framework.kit.webhook:Webhook"


class Server(ThreadingHTTPServer):
    """A web server on loopback that answers as it is told, and keeps the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.silent = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), data))
        status, headers, body = self.server.answer
        if status == 0:
            self.server.silent.wait(30)
            return
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 -- the name is the base class's

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.silent.set()
        running.shutdown()
        thread.join()


def message():
    return Message(topic="org.example.build", body={"build": 17})


def delivered(run, sent=None):
    sent = sent or message()
    run.deliver(sent)
    return run._queue.latest(sent).disposition


def test_the_server_gets_the_message_as_json_with_its_id_and_the_token(server):
    sent = message()
    config = {"url": server.url, "token": "t0ken", "headers": {"X-Own": "1"}}
    with Harness(CONSUMER, config=config) as run:
        assert isinstance(run.deliver(sent), Ack)
    [(path, headers, data)] = server.requests
    assert path == "/hook"
    assert json.loads(data)["body"] == {"build": 17}
    assert json.loads(data)["topic"] == "org.example.build"
    assert headers["Idempotency-Key"] == sent.id
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["X-Own"] == "1"
    assert headers["Content-Type"] == "application/json"


def test_the_signature_is_the_hmac_of_the_posted_bytes(server):
    config = {"url": server.url, "signature_secret": "key", "body": "body"}
    with Harness(CONSUMER, config=config) as run:
        run.deliver(message())
    [(_, headers, data)] = server.requests
    expected = hmac.new(b"key", data, hashlib.sha256).hexdigest()
    assert headers["X-Hub-Signature-256"] == f"sha256={expected}"
    assert json.loads(data) == {"build": 17}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((204, Ack), (400, Quarantine), (404, Quarantine), (409, Ack), (418, Reject)),
        *((429, Hold), (500, Hold), (503, Hold), (401, Hold)),
    ],
)
def test_the_status_decides(server, status, kind):
    server.answer = (status, {}, b"the reason")
    config = {"url": server.url, "statuses": {"409": "done", "418": "drop"}}
    with Harness(CONSUMER, config=config) as run:
        disposition = delivered(run)
        assert isinstance(disposition, kind)
        if kind not in {Ack, Hold}:
            assert f"answered {status}" in str(disposition)
            assert "the reason" in str(disposition)


def test_a_failing_server_is_asked_again_and_the_message_is_not_lost(server):
    server.answer = (500, {}, b"")
    sent = message()
    settings = {"recovery": {"immediate": 0, "delays": ["10s"]}}
    with Harness(CONSUMER, config={"url": server.url}, settings=settings) as run:
        run.deliver(sent)
        server.answer = (200, {}, b"")
        run.advance("1m")
        assert run.acked == [sent]
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.requests}) == 1


def test_a_server_that_asks_for_time_gets_it(server):
    server.answer = (503, {"Retry-After": "120"}, b"")
    settings = {"recovery": {"immediate": 0, "delays": ["1s"]}}
    with Harness(CONSUMER, config={"url": server.url}, settings=settings) as run:
        sent = message()
        run.deliver(sent)
        server.answer = (200, {}, b"")
        run.advance("100s")
        assert run.acked == []
        run.advance("60s")
        assert run.acked == [sent]


@pytest.mark.parametrize(
    ("header", "wait"),
    [(None, None), ("7", 7.0), ("soon", None), ("99999999", 86400.0), (formatdate(0), 0.0)],
)
def test_retry_after_is_a_number_or_a_date(header, wait):
    assert wait_of(header, time.time()) == wait
    assert wait_of(formatdate(1060, usegmt=True), 1000) == 60


def test_a_url_that_is_gone_halts_the_instance_and_keeps_the_message(server):
    server.answer = (410, {}, b"")
    with Harness(CONSUMER, config={"url": server.url}) as run:
        sent = message()
        run.deliver(sent)
        assert run.halted is not None
        assert run.halted.exit_code == 78
        assert run.queued == [sent]


def test_no_redirect_is_followed(server):
    with Server() as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        for status in (301, 302, 303, 307, 308):
            server.answer = (status, {"Location": other.url}, b"")
            with Harness(CONSUMER, config={"url": server.url, "token": "secret"}) as run:
                disposition = delivered(run)
                assert isinstance(disposition, Hold)
                assert "not followed" in str(disposition)
        other.shutdown()
        thread.join()
        assert other.requests == []


def test_a_server_that_is_away_or_silent_is_a_broken_dependency(server):
    server.answer = (0, {}, b"")
    with Server() as gone:
        url = gone.url
    for config in ({"url": url}, {"url": server.url, "timeout": "200ms"}):
        with Harness(CONSUMER, config=config) as run:
            disposition = delivered(run)
            assert isinstance(disposition, Hold)
            assert "does not answer" in str(disposition)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "consumer_config.url"),
        ({"url": "ftp://host/"}, "no URL of a web server"),
        ({"url": "https://"}, "no URL of a web server"),
        ({"url": "https://u:p@host/"}, "credential:NAME"),
        ({"url": "https://host/a b"}, "percent-encode"),
        ({"url": "https://host:x/"}, "consumer_config.url"),
        ({"url": "http://host/", "ca_file": "/x"}, "https"),
        ({"url": "https://host/", "token": ""}, "token is empty"),
        ({"url": "https://host/", "token": "a\nb"}, "printable ASCII"),
        ({"url": "https://host/", "headers": {"a b": "1"}}, "no name of a header"),
        ({"url": "https://host/", "headers": {"a": "1\r\nb: 2"}}, "printable ASCII"),
        ({"url": "https://host/", "statuses": {"6xx": "done"}}, "statuses"),
        ({"url": "https://host/", "statuses": {"500": "ignore"}}, "statuses"),
    ],
)
def test_a_wrong_configuration_is_explained(config, problem):
    with pytest.raises(ConfigurationError, match=problem):
        Harness(CONSUMER, config=config)


@pytest.mark.parametrize("key", ["ca_file", "client_certificate"])
def test_a_certificate_that_cannot_be_read_ends_the_start(key, tmp_path):
    config = {"url": "https://localhost/", key: str(tmp_path / "none.pem")}
    with (
        pytest.raises(ConfigurationException, match=f"{key}: .*none.pem cannot be used"),
        Harness(CONSUMER, config=config),
    ):
        pass


def test_a_server_with_a_certificate_of_a_stranger_gets_nothing(server, tmp_path):
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with Harness(CONSUMER, config={"url": url}) as run:
        disposition = delivered(run)
        assert isinstance(disposition, Hold)
        assert "certificate verify failed" in str(disposition)
    assert server.requests == []
    with Harness(CONSUMER, config={"url": url, "ca_file": str(authority.certificate)}) as run:
        assert isinstance(delivered(run), Ack)
    assert len(server.requests) == 1
