# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that need a real RabbitMQ node."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from consumer_framework.testing.broker import Broker
from consumer_framework.testing.broker.proxy import Proxy

from .instance import Instance
from .messengers import (  # noqa: F401 -- fixtures
    activemq,
    arrived,
    channel,
    connect,
    many_protocols,
    next_rabbitmq,
    target,
    target_proxy,
    tls_broker,
    topic,
    topic_queue,
    writer,
)
from .outbox import OwnDatabase, small_disk
from .outside_services import MariaDB, PostgreSQL
from .real_consumers import world  # noqa: F401 -- a fixture


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The hook gets the items of the whole session, not only those below this file.
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """Start a node for all tests of the session; a test that stops it starts it again."""
    if lacking := Broker.missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    with Broker() as running:
        yield running


@pytest.fixture
def queue_name(broker: Broker) -> Iterator[str]:
    """Return a name that no other test uses; delete its queue afterwards."""
    name = f"test.{uuid.uuid4()}"
    yield name
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(name)


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    """Return a proxy to the node that the test may cut."""
    with Proxy("127.0.0.1", broker.port) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Return a function that starts `fm-consumer run`, each time in a new directory."""
    started: list[Instance] = []

    def start_instance(url: str, queues: str, handler: str, **options: Any) -> Instance:
        directory = tmp_path / f"instance_{len(started)}"
        directory.mkdir()
        instance = Instance(directory, url, queues, handler, **options)
        started.append(instance)
        return instance.start()

    yield start_instance
    for instance in started:
        instance.end()


def _require(lacking: str | None) -> None:
    if lacking:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)


def _postgresql(disk: Path | None = None) -> PostgreSQL:
    programs = PostgreSQL.programs()
    _require(None if programs else "PostgreSQL is not installed: apt-get install postgresql")
    assert programs
    return PostgreSQL(programs, disk)


def _mariadb(disk: Path | None = None) -> MariaDB:
    lacking = not (MariaDB.program("mariadbd") and MariaDB.program("mariadb-install-db"))
    _require("MariaDB is not installed: apt-get install mariadb-server" if lacking else None)
    return MariaDB(disk)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Start a PostgreSQL server for all tests of the session."""
    with _postgresql() as running:
        yield running


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Start a MariaDB server for all tests of the session."""
    with _mariadb() as running:
        yield running


@pytest.fixture
def own_database(request: pytest.FixtureRequest) -> Iterator[OwnDatabase]:
    """Make a database on a disk of its own; the parameter of the test names its kind."""
    with small_disk(request.param) as (place, disk):
        match request.param:
            case "postgresql":
                with _postgresql(place) as postgresql:
                    postgresql.query("postgres", "CREATE DATABASE own")
                    yield OwnDatabase(postgresql.url("own"), postgresql, disk)
            case "mariadb":
                with _mariadb(place) as mariadb:
                    mariadb.query("CREATE DATABASE own")
                    yield OwnDatabase(mariadb.url("own"), mariadb, disk)
            case _:
                yield OwnDatabase(f"sqlite:///{place}/own.sqlite3", None, disk)


@pytest.fixture
def outbox_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database; the parameter of the test names its kind."""
    name = f"outbox_{uuid.uuid4().hex}"
    match request.param:
        case "postgresql":
            postgresql: PostgreSQL = request.getfixturevalue("postgresql")
            postgresql.query("postgres", f"CREATE DATABASE {name}")
            return postgresql.url(name)
        case "mariadb":
            mariadb: MariaDB = request.getfixturevalue("mariadb")
            mariadb.query(f"CREATE DATABASE {name}")
            return mariadb.url(name)
    return f"sqlite:///{tmp_path / 'outbox.sqlite3'}"


@pytest.fixture
def database_server(request: pytest.FixtureRequest, outbox_url: str) -> PostgreSQL | MariaDB:
    """Return the server of ``outbox_url``, for a test that restarts it."""
    server: PostgreSQL | MariaDB = request.getfixturevalue(outbox_url.partition(":")[0])
    return server
