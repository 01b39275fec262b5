# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer status --host`` shows the instances of other hosts, asked over ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .instance import FM_CONSUMER, publish, queue_table
from .ssh_server import SshServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANDLER = """
def handler(message):
    note("done", message)
"""
# The hosts have their own places for state and for configurations.
THERE = """#!{python}
from pathlib import Path
from consumer_framework.runtime import state_files
from consumer_framework.cli import main, options
state_files.SYSTEM_STATE = Path("{lib}")
options.CONFIGURATION_DIRECTORY = Path("{etc}")
print("Welcome to a host whose login script prints a line.", flush=True)
main(prog_name="fm-consumer")
"""


@pytest.fixture
def server(short_tmp_path: Path) -> Iterator[SshServer]:
    if lacking := SshServer.missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    with SshServer(short_tmp_path) as running:
        yield running


@pytest.fixture
def program(short_tmp_path: Path) -> Path:
    """Return the program of the hosts, which has the instance ``instance``."""
    lib, etc = short_tmp_path / "lib", short_tmp_path / "etc"
    lib.mkdir()
    etc.mkdir()
    (etc / "instance.toml").write_text("")
    file = short_tmp_path / "fm-there"
    file.write_text(THERE.format(python=sys.executable, lib=lib, etc=etc))
    file.chmod(0o755)
    return file


def status(server: SshServer, program: Path, hosts: str, *words: str):
    command = [str(FM_CONSUMER), "status", "--host", hosts, "--ssh", server.command]
    return subprocess.run(
        [*command, "--remote", str(program), *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80"},
        check=False,
    )


def test_the_instances_of_all_hosts_are_in_one_table_and_a_host_that_fails_is_a_line(
    broker, queue_name, start, server, program, short_tmp_path
):
    state = str(short_tmp_path / "lib/instance")
    places = {"STATE_DIRECTORY": state, "RUNTIME_DIRECTORY": state}
    queues = queue_table(queue_name)
    instance = start(broker.url, queues, HANDLER, environment=places).ready()
    publish(broker.url, queue_name, range(3))
    instance.noted("done", 3)

    shown = status(server, program, "one,two,closed,stranger")
    head, one, two, *silent, closed, stranger = shown.stdout.splitlines()
    assert head.split() == ["HOST", "INSTANCE", "STATE", "RATE", "LAG", "WAIT", "QUAR", "REASON"]
    for line, host in ((one, "one"), (two, "two")):
        assert line.split()[:2] == [host, "instance"]
        assert line.split()[2] in {"consuming", "idle"}
    assert [line.split()[0] for line in silent] == ["closed", "stranger"]
    assert closed.startswith("closed: no connection: ssh: connect to host")
    assert closed.endswith("Connection refused")
    assert stranger.startswith("stranger: no connection: ")
    assert "Permission denied" in stranger
    assert shown.returncode == 4

    found = json.loads(status(server, program, "one,closed", "--json", "instance").stdout)
    one, closed = found["hosts"]
    [group] = one["groups"]
    assert (one["host"], one["answers"]) == ("one", True)
    assert group["instances"][0]["report"]["counts"]["acked"] == 3
    assert (closed["answers"], closed["groups"]) == (False, [])
    assert "Connection refused" in closed["problem"]

    words = ["top", "--once", "--host", "one", "--ssh", server.command, "--remote", str(program)]
    top = subprocess.run(
        [str(FM_CONSUMER), *words], capture_output=True, text=True, timeout=60, check=True
    )
    summary, _head, line = top.stdout.splitlines()
    assert summary.startswith("1 instance: 1 ")
    assert line.startswith("one:instance")

    assert instance.stop() == 0
    stopped = status(server, program, "one", "instance")
    assert stopped.returncode == 3
    assert stopped.stdout.splitlines()[1].split()[:3] == ["one", "instance", "stopped"]


def test_a_host_that_hangs_does_not_hold_up_the_command(server, program):
    shown = status(server, program, "hanging", "--timeout", "1s")
    assert shown.returncode == 4
    assert shown.stdout.splitlines()[-1] == "hanging: it did not answer within 1 s"


def test_the_complaint_of_the_program_there_is_the_reason(server, program, tmp_path):
    unknown = status(server, program, "one", "other")
    assert unknown.returncode == 4
    assert "there is no instance 'other'; the instances here are instance" in unknown.stdout
    absent = status(server, tmp_path / "no-such-program", "one")
    assert absent.returncode == 4
    assert "no-such-program is not there" in absent.stdout
    assert "give its path with --remote" in absent.stdout
