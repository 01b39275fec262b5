# SPDX-License-Identifier: GPL-2.0-or-later
"""PDC's flow in a Django project: the view enqueues, the response decides, a relay sends.

The server is a process of its own, and it is killed at the worst moments.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest

from consumer_framework.publishing.store import OutboxStore
from consumer_framework.testing.broker import reserve_port

from .instance import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).resolve().parents[2] / "examples" / "pdc"
# The settings of the example, and a middleware at each side of the commit that kills the server.
KILLED = """
import os, signal
from pdc.settings import *

class Kill:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        if request.headers.get("Kill") == type(self).__name__:
            os.kill(os.getpid(), signal.SIGKILL)
        return response

class AfterCommit(Kill): pass
class BeforeCommit(Kill): pass

FM_OUTBOX = {"max_body": 1000}
MIDDLEWARE = ["killed.AfterCommit", MIDDLEWARE[0], "killed.BeforeCommit", *MIDDLEWARE[1:]]
"""


class Site:
    """The server of the project, with its database."""

    def __init__(self, directory: Path, url: str, exchange: str) -> None:
        self.directory = directory
        self.database = directory / "pdc.sqlite3"
        (directory / "killed.py").write_text(KILLED)
        self._environment = os.environ | {
            "PYTHONPATH": f"{directory}{os.pathsep}{PROJECT}",
            "DJANGO_SETTINGS_MODULE": "killed",
            "PDC_DATABASE": str(self.database),
            "PDC_BROKER": url,
            "PDC_EXCHANGE": exchange,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.manage("migrate", "--verbosity=0").wait()

    def manage(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(PROJECT / "manage.py"), *words]
        return subprocess.Popen(command, env=self._environment, cwd=self.directory)

    def start(self) -> None:
        with reserve_port() as port:
            self.port = port.getsockname()[1]
        self._process = self.manage("runserver", "--noreload", f"127.0.0.1:{self.port}")
        until(self._answers, "the server")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait_for_end(self) -> int:
        assert self._process is not None
        return self._process.wait(30)

    def request(self, method: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        text = None if body is None else json.dumps(body)
        connection.request(method, "/composes", text, headers)
        with connection.getresponse() as response:
            read = response.read()
        connection.close()
        return response.status, json.loads(read) if response.status < 500 else None

    def post(self, compose_id: str, **headers: str) -> int:
        return self.request("POST", {"compose_id": compose_id}, **headers)[0]

    def composes(self) -> list[str]:
        return self.request("GET")[1]["composes"]  # type: ignore[no-any-return]

    def relay_configuration(self) -> str:
        """Return the configuration of a relay, as the how-to writes it."""
        url = f"sqlite:///{self.database}"
        command = [sys.executable, "-m", "consumer_framework.publishing.integrations.pdc"]
        done = subprocess.run(
            [*command, "pdc.settings", url],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


@pytest.fixture
def exchange(broker, queue_name) -> Iterator[str]:
    name = f"pdc.{uuid.uuid4().hex}"
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(name, "topic", durable=True)
        channel.queue_declare(queue_name, durable=True)
        channel.queue_bind(queue_name, name, "#")
        yield name
        channel.exchange_delete(name)


@pytest.fixture
def site(tmp_path, broker, exchange) -> Iterator[Site]:
    made = Site(tmp_path, broker.url, exchange)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def relay(site, tmp_path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return a function that starts `fm-consumer outbox relay`."""
    started = []

    def start() -> subprocess.Popen[bytes]:
        path = tmp_path / "relay.toml"
        # A relay that is killed is followed by the next one after a second.
        path.write_text(site.relay_configuration() + "lease = 1\n")
        command = [sys.executable, "-c", "from consumer_framework.cli import main; main()"]
        words = ["outbox", "relay", "--conf", str(path)]
        state = os.environ | {"STATE_DIRECTORY": str(tmp_path)}
        started.append(subprocess.Popen([*command, *words], env=state))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.fixture
def arrived(broker, queue_name):
    """Return a function that waits for a number of messages: topic and body of each."""

    def take(count: int) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()

            def is_done() -> bool:
                method, _, body = channel.basic_get(queue_name, auto_ack=True)
                if method is not None and body is not None:
                    found.append((method.routing_key, json.loads(body)))
                return len(found) >= count

            until(is_done, f"{count} messages")
        return found

    return take


def waiting(site: Site) -> int:
    store = OutboxStore.connect(f"sqlite:///{site.database}")
    try:
        return store.stats().waiting
    finally:
        store.close()


def of(compose_id: str, comment: str | None = None) -> list[tuple[str, Any]]:
    common = {"compose_id": compose_id, "author": "", "comment": comment}
    created = (".compose", {"action": "create", **common})
    return [created, (".images", {"action": "import", **common})]


def test_the_messages_of_a_request_go_out_with_the_facts_of_the_request(site, relay, arrived):
    relay()
    assert site.post("Fedora-24", **{"PDC-Change-Comment": "the first"}) == 201
    assert arrived(2) == of("Fedora-24", "the first")


def test_a_request_that_fails_sends_nothing(site, relay, arrived):
    assert site.post("Fedora-24") == 201
    assert site.post("Fedora-24") == 409
    assert site.request("POST", {"wrong": 1})[0] == 500
    assert waiting(site) == 2
    relay()
    assert site.post("Fedora-25") == 201
    assert arrived(4) == of("Fedora-24") + of("Fedora-25")


def test_a_message_that_can_never_be_sent_undoes_the_request_whose_transaction_it_is_in(site):
    assert site.post("F" * 2000) == 500
    assert site.composes() == []
    assert waiting(site) == 0


def test_a_server_that_is_killed_between_commit_and_send_has_lost_nothing(site, relay, arrived):
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        site.post("Fedora-24", Kill="AfterCommit")
    assert site.wait_for_end() == -9
    assert waiting(site) == 2
    relay()
    assert arrived(2) == of("Fedora-24")
    until(lambda: waiting(site) == 0, "an empty outbox")
    site.start()
    assert site.composes() == ["Fedora-24"]


def test_a_server_that_is_killed_before_the_commit_has_changed_and_sent_nothing(
    site, relay, arrived
):
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        site.post("Fedora-24", Kill="BeforeCommit")
    assert site.wait_for_end() == -9
    site.start()
    assert site.composes() == []
    assert site.post("Fedora-25") == 201
    relay()
    assert arrived(2) == of("Fedora-25")


def test_a_relay_that_is_killed_is_followed_by_another(site, relay, arrived):
    first = relay()
    assert site.post("Fedora-24") == 201
    assert arrived(2) == of("Fedora-24")
    first.kill()
    first.wait()
    assert site.post("Fedora-25") == 201
    relay()
    assert arrived(2) == of("Fedora-25")
