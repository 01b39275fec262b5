# SPDX-License-Identifier: GPL-2.0-or-later
"""No message is lost, a ghost or out of order, whoever dies between publish() and the broker.

``make chaos`` runs the long form.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pika
import pytest

from consumer_framework.publishing.store import OutboxStore
from consumer_framework.testing.broker import Broker, reserve_port

from .outbox import MARIADB, POSTGRESQL, SQLITE
from .outside_services import MariaDB, PostgreSQL
from .publishing_chaos import Chaos, Clients, Disk, Ledger, Program, Truth, arrivals, drain
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


@pytest.mark.parametrize(
    ("small_disk", "server"),
    [(name, name) for name in (SQLITE, POSTGRESQL, MARIADB)],
    indirect=True,
    ids=[SQLITE, POSTGRESQL, MARIADB],
)
def test_nothing_is_lost_a_ghost_or_out_of_order_in_chaos(small_disk, server, tmp_path):
    seed = int(os.environ.get("CHAOS_SEED", "7"))
    url = server.url("ledger") if server else f"sqlite:///{small_disk or tmp_path}/app.sqlite3"
    engine = plain_engine(url)
    store = OutboxStore.connect(url)
    store.migrate()
    make_tables(engine)
    engine.dispose()
    topic = f"ledger.{uuid.uuid4()}"
    notes = {role: tmp_path / f"{role}.notes" for role in ("web", "script", "relay")}
    with Broker() as broker, reserve_port() as dead, ExitStack() as stack:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(topic, durable=True)
            channel.queue_bind(topic, "amq.topic", f"{topic}.#")
        endpoints = (f"amqp://127.0.0.1:{dead.getsockname()[1]}/%2F", broker.url)
        programs = {}
        for name in ("web", "script", "relay one", "relay two"):
            role = name.partition(" ")[0]
            orders = Orders(url, "", str(notes[role]), topic, endpoints)
            programs[name] = Program(role, name, orders, tmp_path)
            stack.callback(programs[name].end)
        chaos = Chaos(programs, broker, Disk(small_disk) if small_disk else None, server)
        clients = Clients(programs["web"])
        with clients:
            chaos.run(seed, SECONDS, DISK_FULL, RESTARTS)
        drain(store, programs, 120)
        arrived = arrivals(broker, topic)
    store.close()
    ledger = Ledger(Truth.read(url, notes["script"], clients.told), arrived, chaos, notes["relay"])
    steps = "\n".join(
        f"  {name}: {'; '.join(map(str, steps))}" for name, steps in chaos.steps.items()
    )
    sys.stdout.write(
        f"\nThe seed {seed} made this plan of kills; CHAOS_SEED={seed} makes it again:\n{steps}\n"
        f"{dict(clients.answers)} are the answers of the web application.\n{ledger}"
    )
    assert not ledger.wrong, str(ledger)
    assert len(arrived) > 100
    assert all(program.kills.total() > 2 for program in programs.values())
