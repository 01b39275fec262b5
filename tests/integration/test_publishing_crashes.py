# SPDX-License-Identifier: GPL-2.0-or-later
"""No message is lost, a ghost or out of order, whoever dies between publish() and the broker.

``make chaos`` runs the long form.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pika
import pytest

from consumer_framework.publishing.store import OutboxStore
from consumer_framework.testing.broker import Broker, reserve_port

from .instance import until
from .outbox import MARIADB, POSTGRESQL, SQLITE
from .outside_services import MariaDB, PostgreSQL
from .publishing_chaos import Chaos, Clients, Disk, Ledger, Program, Truth, arrivals, drain
from .publishing_points import POINTS
from .publishing_programs import Orders, make_tables, plain_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = os.environ.get("CHAOS") == "full"
SECONDS, DISK_FULL, RESTARTS = (120, 10, 3) if FULL else (12, 3, 1)
# MiB: a database that was just made, and room for some messages.
SIZES = {SQLITE: 64, POSTGRESQL: 400, MARIADB: 400}


@pytest.fixture
def small_disk(request) -> Iterator[Path | None]:
    """Mount a small file system; return None if this user may not."""
    # A server's own user may not enter the directories of pytest.
    disk = Path(tempfile.mkdtemp(prefix="disk-"))
    options = f"size={SIZES[request.param]}m,mode=0755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)]
    if os.geteuid() == 0 and not subprocess.run(mount, check=False).returncode:
        yield disk
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    else:
        yield None
    disk.rmdir()


@pytest.fixture
def server(request, small_disk) -> Iterator[PostgreSQL | MariaDB | None]:
    """Start a server of its own, whose data are on the small disk."""
    match request.param:
        case "sqlite":
            yield None
        case "postgresql":
            programs = PostgreSQL.programs()
            if programs is None:
                pytest.skip("PostgreSQL is not installed")
            with PostgreSQL(programs, small_disk) as running:
                running.query("postgres", "CREATE DATABASE ledger")
                yield running
        case "mariadb":
            if not MariaDB.program("mariadbd"):
                pytest.skip("MariaDB is not installed")
            with MariaDB(small_disk) as running:
                running.query("CREATE DATABASE ledger")
                yield running


class Setup:
    """The database, the queue and the programs of one test."""

    def __init__(self, url: str, broker: Broker, directory: Path) -> None:
        self.url, self.broker, self._directory = url, broker, directory
        self.store = OutboxStore.connect(url)
        self.store.migrate()
        engine = plain_engine(url)
        make_tables(engine)
        engine.dispose()
        self.topic = f"ledger.{uuid.uuid4()}"
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(self.topic, durable=True)
            channel.queue_bind(self.topic, "amq.topic", f"{self.topic}.#")
        self.programs: dict[str, Program] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs.values():
            program.end()
        self.store.close()

    def notes(self, role: str) -> Path:
        return self._directory / f"{role}.notes"

    def start(self, *names: str, dead: int | None = None) -> None:
        """Start programs; the first endpoint of each is on the port *dead*."""
        first = () if dead is None else (f"amqp://127.0.0.1:{dead}/%2F",)
        endpoints = (*first, self.broker.url)
        for name in names:
            role = name.partition(" ")[0]
            orders = Orders(self.url, "", str(self.notes(role)), self.topic, endpoints)
            self.programs[name] = Program(role, name, orders, self._directory)

    def ledger(self, chaos: Chaos, told: list[str]) -> Ledger:
        """Wait until everything is sent, and account for it."""
        drain(self.store, self.programs, 180)
        arrived = arrivals(self.broker, self.topic)
        truth = Truth.read(self.url, self.notes("script"), told)
        return Ledger(truth, arrived, chaos, self.notes("relay"))


@pytest.mark.parametrize(
    ("small_disk", "server"),
    [(name, name) for name in (SQLITE, POSTGRESQL, MARIADB)],
    indirect=True,
    ids=[SQLITE, POSTGRESQL, MARIADB],
)
def test_nothing_is_lost_a_ghost_or_out_of_order_in_chaos(small_disk, server, tmp_path):
    seed = int(os.environ.get("CHAOS_SEED", "7"))
    url = server.url("ledger") if server else f"sqlite:///{small_disk or tmp_path}/app.sqlite3"
    disk = Disk(small_disk) if small_disk else None
    with Broker(start_timeout=180) as broker, Setup(url, broker, tmp_path) as setup:
        # RabbitMQ 3 writes new declarations to the disk with a delay.
        broker.ctl("eval", "mnesia:sync_log().", timeout=180)
        with reserve_port() as dead:
            setup.start("web", "script", "relay one", "relay two", dead=dead.getsockname()[1])
            chaos = Chaos(setup.programs, broker, disk, server)
            with Clients(setup.programs["web"]) as clients:
                chaos.run(seed, SECONDS, DISK_FULL, RESTARTS)
            ledger = setup.ledger(chaos, clients.told)
    steps = "\n".join(
        f"  {name}: {'; '.join(map(str, steps))}" for name, steps in chaos.steps.items()
    )
    sys.stdout.write(
        f"\nThe seed {seed} made this plan of kills; CHAOS_SEED={seed} makes it again:\n{steps}\n"
        f"{dict(clients.answers)} are the answers of the web application.\n{ledger}"
    )
    assert not ledger.wrong, str(ledger)
    assert ledger.arrived > 100
    assert all(program.kills.total() > 2 for program in setup.programs.values())


@pytest.mark.parametrize(
    ("role", "point"), [(role, point) for role, points in POINTS.items() for point in points]
)
@pytest.mark.parametrize(
    "outbox_url", [SQLITE, POSTGRESQL, MARIADB] if FULL else [SQLITE], indirect=True
)
def test_a_kill_at_a_boundary_loses_nothing(outbox_url, broker, role, point, tmp_path):
    with Setup(outbox_url, broker, tmp_path) as setup:
        setup.start("web", "script", "relay")
        killed = setup.programs[role]
        with Clients(setup.programs["web"]) as clients:
            killed.kill(0.1, (point, 3))
            killed.kill(10)
            until(lambda: clients.answers[201] > 20, "the application works")
            time.sleep(0.2)
        assert killed.kills == {"at a random moment": 1, point: 1}
        ledger = setup.ledger(Chaos(setup.programs, broker), clients.told)
    assert not ledger.wrong, str(ledger)
    assert ledger.arrived > 20
