# SPDX-License-Identifier: GPL-2.0-or-later
"""No message is lost, a ghost or out of order, whoever dies between publish() and the broker.

``make chaos`` runs the long form.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time

import pytest

from consumer_framework.testing.broker import Broker, reserve_port

from .instance import until
from .outbox import MARIADB, POSTGRESQL, SQLITE
from .publishing_chaos import Bench, Chaos, Clients
from .publishing_points import POINTS

FULL = os.environ.get("CHAOS") == "full"
SECONDS, DISK_FULL, RESTARTS = (120, 10, 3) if FULL else (12, 3, 1)


@pytest.mark.parametrize("own_database", [SQLITE, POSTGRESQL, MARIADB], indirect=True)
def test_nothing_is_lost_a_ghost_or_out_of_order_in_chaos(own_database, tmp_path):
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    seed = int(os.environ.get("CHAOS_SEED", "7"))
    database = own_database
    with Broker(start_timeout=180) as broker, Bench(database.url, broker, tmp_path) as bench:
        # RabbitMQ 3 writes new declarations to the disk with a delay.
        broker.ctl("eval", "mnesia:sync_log().", timeout=180)
        with reserve_port() as dead:
            names = ("web", "script", "consumer", "relay one", "relay two")
            bench.start(*names, dead=dead.getsockname()[1])
            chaos = Chaos(bench.programs, broker, database.disk, database.server)
            with Clients(bench.begun("web")) as clients:
                chaos.run(seed, SECONDS, DISK_FULL, RESTARTS)
            ledger = bench.ledger(chaos, clients.told)
    steps = "\n".join(
        f"  {name}: {'; '.join(map(str, steps))}" for name, steps in chaos.steps.items()
    )
    sys.stdout.write(
        f"\nThe seed {seed} made this plan of kills; CHAOS_SEED={seed} makes it again:\n{steps}\n"
        f"{dict(clients.answers)} are the answers of the web application.\n{ledger}"
    )
    assert not ledger.wrong, str(ledger)
    assert ledger.arrived > 100
    assert all(program.kills.total() for program in bench.programs.values())


@pytest.mark.parametrize(
    ("role", "point"), [(role, point) for role, points in POINTS.items() for point in points]
)
@pytest.mark.parametrize(
    "outbox_url", [SQLITE, POSTGRESQL, MARIADB] if FULL else [SQLITE], indirect=True
)
def test_a_kill_at_a_boundary_loses_nothing(outbox_url, broker, role, point, tmp_path):
    with Bench(outbox_url, broker, tmp_path) as bench:
        bench.start("web", "script", "relay")
        killed = bench.programs[role]
        with Clients(bench.begun("web")) as clients:
            killed.kill(0.1, (point, 3, signal.SIGKILL))
            killed.kill(10)
            until(lambda: clients.answers[201] > 20, "the application works")
            time.sleep(0.2)
        assert killed.kills == {"at a random moment": 1, point: 1}
        ledger = bench.ledger(Chaos(bench.programs, broker), clients.told)
    assert not ledger.wrong, str(ledger)
    assert ledger.arrived > 20
