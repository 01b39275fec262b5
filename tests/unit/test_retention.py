# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer quarantine expire` on the stores of stopped instances."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.files import is_locked_elsewhere
from consumer_framework.operate import offline
from consumer_framework.runtime.control import client
from consumer_framework.testing import make_delivery

from .machine import TOML, make_host

if TYPE_CHECKING:
    from pathlib import Path

    from .machine import Host

DAY = 86400.0
A_WEEK = TOML + '\n[consumer_config.framework]\nquarantine_max_age = "7d"\n'


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    made = make_host(short_tmp_path, monkeypatch)
    # The directories of services, as for root.
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return made


def quarantine(directory: Path, *ages: float) -> None:
    """Store one message for each of *ages*: quarantined so many seconds ago."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, age in enumerate(ages):
        then = time.time() - age
        with closing(Store.open(directory, limits=Limits(), now=partial(float, then))) as store:
            delivery = make_delivery(queue="sample", body=b'{"n": %d}' % number)
            asyncio.run(store.quarantine(delivery, "poison"))


def left(directory: Path) -> int:
    with closing(Store.read(directory)) as store:
        return store.stats().quarantined


def test_messages_older_than_the_configured_age_are_exported_and_deleted(host):
    host.configures("builds", A_WEEK)
    host.configures("updates")
    builds, updates = host.directory / "lib/builds", host.directory / "lib/updates"
    quarantine(builds, 8 * DAY, 6 * DAY)
    quarantine(updates, 8 * DAY)
    result = host.does("quarantine", "expire")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"builds: 1 message expired to {builds}/expired.jsonl\n"
    assert (left(builds), left(updates)) == (1, 1)
    [line] = (builds / "expired.jsonl").read_text().splitlines()
    assert json.loads(line)["body"] == {"n": 0}
    assert host.does("quarantine", "expire").stdout == "nothing is too old\n"


def test_a_running_instance_is_left_alone(host):
    host.configures("builds", A_WEEK)
    quarantine(host.directory / "lib/builds", 8 * DAY)
    with host.runs("builds"):
        result = host.does("quarantine", "expire", "builds")
    assert result.exit_code == 0
    assert "builds: runs, and looks itself every hour" in result.stdout
    assert left(host.directory / "lib/builds") == 1


def test_an_instance_whose_messages_cannot_be_read_does_not_stop_the_others(host):
    host.configures("broken", TOML + "\n[consumer_config.framework]\nquarantine_max_age = -1\n")
    host.configures("no-table", TOML + "\n[consumer_config]\nframework = 1\n")
    host.configures("nothing")
    host.configures("no.instance")
    host.configures("sample", A_WEEK)
    quarantine(host.directory / "lib/sample", 8 * DAY)
    result = host.does("quarantine", "expire")
    assert result.exit_code == 1
    assert "sample: 1 message expired" in result.stdout
    assert (
        f"broken: {host.etc}/broken.toml: consumer_config.framework: is not valid" in result.stderr
    )
    assert "'fm-consumer check broken' says where" in result.stderr
    assert "no-table.toml: consumer_config.framework: is not valid" in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_a_store_in_use_is_a_problem_of_one_line(host):
    host.configures("sample", A_WEEK)
    directory = host.directory / "lib/sample"
    quarantine(directory, 8 * DAY)
    with closing(Store.open(directory, instance="other", limits=Limits())):
        result = host.does("quarantine", "expire", "--json")
    assert result.exit_code == 1
    [told] = json.loads(result.stdout)
    assert (told["instance"], told["expired"], told["file"]) == ("sample", 0, None)
    assert f"in use by process {os.getpid()}" in told["problem"]


def test_files_and_directories_elsewhere_can_be_named(host, short_tmp_path):
    file = host.configures("sample", A_WEEK)
    state = short_tmp_path / "elsewhere"
    quarantine(state, 8 * DAY)
    result = host.does("quarantine", "expire", "--conf", str(file), "--state-dir", str(state))
    assert result.stdout == f"sample: 1 message expired to {state}/expired.jsonl\n"
    assert host.does("quarantine", "expire", "a", "b", "--state-dir", str(state)).exit_code == 2
    assert host.does("quarantine", "expire", "a", "--conf", str(file)).exit_code == 2


def test_a_store_that_cannot_be_reached_is_a_problem(host):
    host.configures("sample", A_WEEK)
    loop = host.directory / "lib/sample"
    loop.symlink_to("sample")
    result = host.does("quarantine", "expire")
    assert result.exit_code == 1
    assert "sample: " in result.stderr
    assert "Traceback" not in result.output


def test_an_instance_may_start_while_much_expires(host, monkeypatch):
    file = host.configures("sample", A_WEEK)
    directory = host.directory / "lib/sample"
    quarantine(directory, 8 * DAY, 9 * DAY, 10 * DAY)
    monkeypatch.setattr(offline, "AT_ONCE", 1)
    starts = []

    def sleep(_seconds):
        # The instance opens its store in between, and closes it.
        Store.open(directory, limits=Limits()).close()
        starts.append(left(directory))

    done = offline.expire("sample", file, directory, time.time(), sleep)
    assert (done.rows, done.is_running) == (3, False)
    assert starts == [2, 1, 0]


HOLDER = """
import sys
from pathlib import Path
from consumer_framework.adapters.store.files import Lock
lock = Lock(Path(sys.argv[1]), "sample")
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(directory: Path):
    """Lock the store in another process, until the returned function is called."""
    directory.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        yield holder.stdin.close


def test_an_order_waits_for_the_process_that_has_the_store(host):
    directory = host.directory / "lib/sample"
    told: list[str] = []
    with held(directory) as let_go:

        def tell(line: str) -> None:
            told.append(line)
            let_go()

        with client.reached(directory, "sample", tell) as running:
            assert running is None
            assert not is_locked_elsewhere(directory)
    assert told == [f"waiting for another process that uses {directory}"]


def test_an_order_does_not_wait_for_ever(host):
    directory = host.directory / "lib/sample"
    with held(directory), client.reached(directory, "sample", patience=0.0) as running:
        assert running is None
        assert is_locked_elsewhere(directory)
