# SPDX-License-Identifier: GPL-2.0-or-later
"""The web applications of the examples, served by real servers, and a relay to a real broker."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest
import sqlalchemy as sa

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.publishing.events import RelayCounters
from consumer_framework.publishing.messengers import Endpoints, find
from consumer_framework.publishing.policy import Policy
from consumer_framework.publishing.relay import Relay, Step
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.testing.broker import reserve_port

from .instance import until
from .outbox import MARIADB, POSTGRESQL, SQLITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "web"
PROGRAMS = Path(sys.executable).parent
APPLICATIONS = ["flask", "starlette", "django", "django_asgi"]
ENDED = "2026-01-31"
# Django's settings for a server that is no SQLite.
OTHER_DATABASE = """
from library.settings import *
import pymysql
pymysql.install_as_MySQLdb()
DATABASES = {{"default": {database}}}
"""


class Server:
    """A web application in a server process of its own."""

    def __init__(self, name: str, url: str, directory: Path, prefix: str) -> None:
        self._name = name
        self._directory = directory
        with reserve_port() as holder:
            self.port: int = holder.getsockname()[1]
        unset = ("STATE_DIRECTORY", "DJANGO_SETTINGS_MODULE")
        self._environment = {k: v for k, v in os.environ.items() if k not in unset}
        getattr(self, f"_configure_{name}")(url, prefix)
        self._process: subprocess.Popen[bytes] | None = None

    def _configure_flask(self, url: str, prefix: str) -> None:
        path = self._directory / "library.toml"
        table = f'[consumer_config.framework.outbox]\ndatabase = "{url}"\n'
        path.write_text(f'topic_prefix = "{prefix}"\n{table}')
        self._environment["FEDORA_MESSAGING_CONF"] = str(path)

    _configure_starlette = _configure_flask

    def _configure_django_asgi(self, url: str, prefix: str) -> None:
        self._configure_django(url, prefix)

    def _configure_django(self, url: str, prefix: str) -> None:
        from .django_project import database  # noqa: PLC0415 -- Django is for this one alone

        settings = OTHER_DATABASE.format(database=database(url))
        settings += f'FM_OUTBOX = {{"topic_prefix": "{prefix}"}}\n'
        (self._directory / "other_settings.py").write_text(settings)
        path = f"{self._directory}{os.pathsep}{EXAMPLES / 'django_library'}"
        self._environment |= {"DJANGO_SETTINGS_MODULE": "other_settings", "PYTHONPATH": path}

    def prepare(self) -> None:
        """Make the tables, as the README says."""
        commands = {
            "flask": ["flask", "--app", "flask_library", "init-db"],
            "django": [sys.executable, "django_library/manage.py", "migrate", "--verbosity=0"],
        }
        commands["django_asgi"] = commands["django"]
        if command := commands.get(self._name):
            self._run(command).wait()

    def start(self) -> None:
        gunicorn = ["gunicorn", "--workers=1", "--threads=4", f"--bind=127.0.0.1:{self.port}"]
        uvicorn = ["uvicorn", f"--port={self.port}"]
        commands = {
            "flask": [*gunicorn, "flask_library:app"],
            "django": [*gunicorn, "library.wsgi"],
            "django_asgi": [*uvicorn, "library.asgi:application"],
            "starlette": [*uvicorn, "starlette_library:app"],
        }
        self._process = self._run(commands[self._name])
        until(self._answers, "the server answers")

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        program = command[0] if os.sep in command[0] else str(PROGRAMS / command[0])
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *command[1:]],
                cwd=EXAMPLES,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return self.post("/nowhere") == (404, None)
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server, and its workers if *number* cannot be handled."""
        if self._process is not None:
            os.killpg(self._process.pid, number)
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Return the status, and the body if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(text) if is_json else None
        finally:
            connection.close()


@pytest.fixture
def prefix() -> str:
    """Return a topic prefix that no other test uses."""
    return f"test.{uuid.uuid4().hex}"


@pytest.fixture
def library(request, outbox_url, tmp_path, prefix) -> Iterator[Server]:
    server = Server(request.param, outbox_url, tmp_path, prefix)
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def store(outbox_url) -> Iterator[OutboxStore]:
    store = OutboxStore.connect(outbox_url)
    yield store
    store.close()


@pytest.fixture
def arrived(broker, queue_name, prefix, store) -> Callable[[], list[tuple[str, Any]]]:
    """Return a function that runs a relay, and returns the topics and bodies that arrived."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue_name, durable=True)
        channel.queue_bind(queue_name, "amq.topic", f"{prefix}.#")

    def relay() -> list[tuple[str, Any]]:
        messenger = find("amqp")(Endpoints((broker.url,)))
        one = Relay(store, messenger, Policy(), clock=SystemClock(), observer=RelayCounters())
        while one.step() is not Step.IDLE:
            pass
        one.close()
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel: Any = connection.channel()
            found = []
            while (got := channel.basic_get(queue_name, auto_ack=True))[0] is not None:
                method, properties, body = got
                assert properties.headers["library_client"] == "127.0.0.1"
                topic = method.routing_key.removeprefix(f"{prefix}.library.book.")
                found.append((topic, json.loads(body)))
            return found

    return relay


def titles(store: OutboxStore) -> list[str]:
    """Return the titles of the books."""
    with store.engine.connect() as connection:
        names = sa.inspect(connection).get_table_names()
        table = next(name for name in names if name in {"book", "library_book"})
        query: Any = (
            sa.select(sa.column("title")).select_from(sa.table(table)).order_by(sa.column("id"))
        )
        return list(connection.scalars(query))


@pytest.mark.parametrize("outbox_url", [SQLITE, POSTGRESQL, MARIADB], indirect=True)
@pytest.mark.parametrize("library", APPLICATIONS, indirect=True)
def test_exactly_the_messages_of_requests_that_succeeded_arrive(library, store, arrived):
    status, book = library.post("/books", title="Dune")
    assert status == 201, library.log
    lent = f"/books/{book['id']}/loans"
    # The transaction is rolled back.
    assert library.post("/books", title="Dune")[0] == 409
    # A response of success, one of failure, and an exception of the view.
    assert library.post(lent, until=ENDED)[0] == 201
    assert library.post("/books/999/loans", until=ENDED)[0] == 404
    assert library.post(lent, until="soon")[0] == 500
    assert library.post("/books", title="Solaris")[0] == 201
    assert titles(store) == ["Dune", "Solaris"]
    assert arrived() == [
        ("added", {"title": "Dune"}),
        ("lent", {"book": book["id"], "until": ENDED}),
        ("added", {"title": "Solaris"}),
    ]
    assert store.rows() == []


@pytest.mark.parametrize("outbox_url", [SQLITE], indirect=True)
@pytest.mark.parametrize("library", APPLICATIONS, indirect=True)
def test_if_a_message_cannot_be_stored_the_response_is_500(library, store, arrived):
    _, book = library.post("/books", title="Dune")
    lent = f"/books/{book['id']}/loans"
    with store.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE fm_outbox RENAME TO away")
    assert library.post(lent, until=ENDED)[0] == 500
    assert library.post("/books", title="Solaris")[0] == 500
    with store.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO fm_outbox")
    assert titles(store) == ["Dune"]
    assert library.post(lent, until=ENDED)[0] == 201
    assert [topic for topic, _ in arrived()] == ["added", "lent"]


@pytest.mark.parametrize("outbox_url", [SQLITE], indirect=True)
@pytest.mark.parametrize("library", APPLICATIONS, indirect=True)
def test_messages_of_a_killed_server_are_sent(library, store, arrived):
    status, book = library.post("/books", title="Dune")
    library.post(f"/books/{book['id']}/loans", until=ENDED)
    library.stop(signal.SIGKILL)
    assert (status, [topic for topic, _ in arrived()]) == (201, ["added", "lent"])


@pytest.mark.parametrize("outbox_url", [SQLITE], indirect=True)
@pytest.mark.parametrize("library", APPLICATIONS, indirect=True)
def test_requests_at_once_keep_their_messages_apart(library, store, arrived):
    def request(number):
        # Every third title is taken already.
        return library.post("/books", title=str(number - number % 3 // 2))[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(request, range(30)))
    assert (statuses.count(201), statuses.count(409)) == (20, 10)
    added = [body["title"] for _, body in arrived()]
    assert sorted(added) == sorted(titles(store))
