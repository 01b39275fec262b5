# SPDX-License-Identifier: GPL-2.0-or-later
"""A host for the tests of the page: instances, a broker, Cockpit, ``fm-consumer web``, a browser.

All programs but the browser see a private root (``private_root.py``), with the configuration, the
states and the page in the places where packages have them. A small service manager takes the
place of systemd; everything else is real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from consumer_framework.adapters.store import Store
from consumer_framework.adapters.store.files import DATABASE
from consumer_framework.testing.broker import reserve_port

from .instance import FM_CONSUMER, publish, until
from .private_root import PATIENCE, PrivateRoot

if TYPE_CHECKING:
    from consumer_framework.adapters.store import Row
    from consumer_framework.testing.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "packaging/cockpit"
CONFIGURATION = "/etc/fedora-messaging"
COCKPIT_WS = next(
    filter(os.path.exists, ("/usr/lib/cockpit/cockpit-ws", "/usr/libexec/cockpit-ws")), None
)
WRITER = Path("/lib/systemd/systemd-journal-remote")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# A message without a version fails, and one with an unknown tag, until somebody makes the file
# `mended`. From then on a slow message runs until there is a file `released`.
HANDLERS = """
import pathlib, time

def wait(message):
    end = time.monotonic() + 60
    while message.body.get("slow") and time.monotonic() < end:
        if pathlib.Path("/etc/fedora-messaging/released").exists():
            break
        time.sleep(0.05)

def handle(message):
    if pathlib.Path("/etc/fedora-messaging/mended").exists():
        wait(message)
        return
    version = message.body["version"]
    if message.body.get("tag") == "unknown":
        raise ValueError(f"there is no tag for {version}")
"""

TOML = """
amqp_url = "{url}"
callback = "page_handlers:handle"
[queues.{name}]
durable = true
auto_delete = false
exclusive = false
arguments = {{}}
[[bindings]]
queue = "{name}"
exchange = "amq.topic"
routing_keys = ["org.example.{name}.#"]
[consumer_config.framework.recovery]
immediate = 0
delays = []
"""

# An outbox whose relay does not run.
OUTBOX = """
amqp_url = "{url}"
[consumer_config.framework.outbox]
database = "sqlite:////var/lib/fedora-messaging/outbox.sqlite3"
"""

# Starts and stops instances as systemd does, as far as the page sees.
SYSTEMCTL = f"""#!{sys.executable} -IS
import fnmatch, os, pathlib, signal, socket, subprocess, sys, time
CONFIGURATION, RUN = pathlib.Path("{CONFIGURATION}"), pathlib.Path("/var/lib/page-units")
RUN.mkdir(exist_ok=True)
def pid_of(name):
    try:
        pid = int((RUN / name).read_text())
        return pid if "fm-consumer" in pathlib.Path(f"/proc/{{pid}}/cmdline").read_text() else 0
    except (OSError, ValueError):
        return 0
def wait(condition, name):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"Job for {{name}} failed because a timeout was exceeded.")
        time.sleep(0.05)
def start(name):
    if pid_of(name):
        return
    address = RUN / f"{{name}}.notify"
    address.unlink(missing_ok=True)
    environment = dict(os.environ, PYTHONPATH=str(CONFIGURATION), NOTIFY_SOCKET=str(address))
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(address))
    told.settimeout(60)
    log = open(RUN / f"{{name}}.log", "ab")
    unit = subprocess.Popen(["{FM_CONSUMER}", "run", name], start_new_session=True, stdin=-3,
        stdout=log, stderr=log, env=environment)
    (RUN / name).write_text(str(unit.pid))
    while b"READY=1" not in told.recv(65536):
        pass
def stop(name):
    if pid := pid_of(name):
        os.kill(pid, signal.SIGTERM)
        wait(lambda: not pid_of(name), name)
options = [word for word in sys.argv[1:] if word.startswith("-")]
verb, *units = [word for word in sys.argv[1:] if not word.startswith("-")]
names = sorted(path.stem for path in CONFIGURATION.glob("*.toml"))
wanted = [n for n in names if any(fnmatch.fnmatch(f"fm-consumer@{{n}}.service", u) for u in units)]
for name in wanted:
    if verb in ("stop", "restart"):
        stop(name)
    if verb in ("start", "restart"):
        start(name)
    if verb == "show":
        pid = pid_of(name)
        is_used = (RUN / name).exists()
        print(f"Id=fm-consumer@{{name}}.service", "LoadState=loaded",
              f"UnitFileState={{'enabled' if is_used else 'disabled'}}",
              f"ActiveState={{'active' if pid else 'inactive'}}", f"MainPID={{pid}}",
              f"SubState={{'running' if pid else 'dead'}}", sep="\\n", end="\\n\\n")
"""


class World:
    """The host.

    Args:
        place: An empty directory.
        broker: A running node.
        names: The instances that run.
    """

    def __init__(self, place: Path, broker: Broker, *names: str) -> None:
        self.broker = broker
        self._names = names
        self._place = place
        directories = ("/etc", "/var/lib", "/var/log", "/usr/local", "/usr/share/cockpit")
        replaced = (CONFIGURATION, "/var/lib/fedora-messaging", "/usr/share/cockpit/fm-consumers")
        self.root = PrivateRoot(place, *directories, replaced=replaced)
        self.root.write(f"{CONFIGURATION}/page_handlers.py", HANDLERS)
        for name in (*names, "stopped"):
            text = TOML.format(url=broker.url, name=name)
            self.root.write(f"{CONFIGURATION}/{name}.toml", text)
        self.root.write(f"{CONFIGURATION}/web.toml", OUTBOX.format(url=broker.url))
        self.root.write("/usr/local/bin/systemctl", SYSTEMCTL, 0o755)
        self.root.write(
            "/usr/local/bin/fm-consumer", f'#!/bin/sh\nexec {FM_CONSUMER} "$@"\n', 0o755
        )
        self.root.write("/usr/share/cockpit/fm-consumers", PAGE)
        journal = place / "page.journal"
        self.has_journal = write_journal(journal, "the first line", "the second line")
        if self.has_journal:
            machine = Path("/etc/machine-id").read_text().strip()
            self.root.write(f"/var/log/journal/{machine}/page.journal", journal)
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.root.__enter__()
        try:
            starting = [self.root.start("systemctl", "start", _unit(n)) for n in self._names]
            for process in starting:
                assert process.wait(PATIENCE) == 0
            self.cockpit = self._cockpit()
            self.web = self._web()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE)
        self.systemctl("stop", *map(_unit, self._names))
        self.root.__exit__()

    def systemctl(self, verb: str, *units: str) -> None:
        done = self.root.run("systemctl", verb, *units)
        assert done.returncode == 0, done.stderr

    def command(self, *words: str) -> str:
        """Run fm-consumer as an operator does in a shell, and return its output."""
        return self.root.run("fm-consumer", *words).stdout

    def status(self, name: str) -> dict[str, Any]:
        """Return the row of an instance in the status."""
        [group] = json.loads(self.command("status", name, "--json"))["groups"]
        found: dict[str, Any] = group["instances"][0]
        return found

    def rows(self, name: str) -> list[Row]:
        """Return the quarantined messages of an instance."""
        with closing(Store.read(self.root.path(f"/var/lib/fedora-messaging/{name}"))) as store:
            return list(store.rows())

    def publish(self, name: str, *bodies: dict[str, Any]) -> None:
        """Publish messages for an instance."""
        publish(
            self.broker.url, f"org.example.{name}.done", [json.dumps(b).encode() for b in bodies]
        )

    def fail(self, name: str, *bodies: dict[str, Any]) -> list[str]:
        """Publish messages that fail; return the rows that they become."""
        before = {row.id for row in self.rows(name)}
        publish(
            self.broker.url, f"org.example.{name}.done", [json.dumps(b).encode() for b in bodies]
        )

        def new() -> list[str]:
            return [str(row.id) for row in self.rows(name) if row.id not in before]

        until(
            lambda: len(new()) == len(bodies), f"{len(bodies)} messages of {name} are quarantined"
        )
        return new()

    def file(self, name: str) -> Path:
        """Return a file of the configuration."""
        return self.root.path(f"{CONFIGURATION}/{name}")

    def mark(self, name: str, *, there: bool = True) -> None:
        """Make the file ``mended`` or ``released`` of the handlers, or remove it."""
        file = self.file(name)
        file.touch() if there else file.unlink(missing_ok=True)

    def multiply(self, rows: int, instances: int) -> list[str]:
        """Make stopped instances, each with so many copies of the only message of ``builds``."""
        states = self.root.path("/var/lib/fedora-messaging")
        (states / "many_1").mkdir()
        with (
            closing(sqlite3.connect(states / "builds" / DATABASE)) as source,
            closing(sqlite3.connect(states / "many_1" / DATABASE)) as copies,
        ):
            source.backup(copies)
            _multiply(copies, rows)
        made = [f"many_{number}" for number in range(1, instances + 1)]
        text = TOML.format(url=self.broker.url, name="many")
        for name in made:
            self.file(f"{name}.toml").write_text(text)
            if not (states / name).exists():
                (states / name).symlink_to("many_1")
        return made

    def forget(self, names: list[str]) -> None:
        """Remove what `multiply` made."""
        states = self.root.path("/var/lib/fedora-messaging")
        for name in names:
            self.file(f"{name}.toml").unlink()
            if (states / name).is_symlink():
                (states / name).unlink()
        shutil.rmtree(states / "many_1")

    def _cockpit(self) -> str:
        with reserve_port() as holder:
            port = holder.getsockname()[1]
        # Without D-Bus and without a login: the session is that of this user. It has a bus and an
        # agent by name, because it would start some that outlive it.
        others = {"DBUS_SESSION_BUS_ADDRESS": "disabled:", "SSH_AUTH_SOCK": "/nonexistent"}
        self._start(
            *(COCKPIT_WS, "--no-tls", "--address=127.0.0.1", f"--port={port}"),
            "--local-session=/usr/bin/cockpit-bridge",
            environment=others,
        )
        until(lambda: _listens(port), "Cockpit listens")
        return f"http://127.0.0.1:{port}/cockpit/@localhost/fm-consumers/index.html"

    def _web(self) -> str:
        process = self._start(FM_CONSUMER, "web", "--json", stdout=subprocess.PIPE)
        assert process.stdout
        address: str = json.loads(process.stdout.readline())["address"]
        return address

    def _start(self, *command: object, **more: Any) -> subprocess.Popen[bytes]:
        log = (self._place / f"{Path(str(command[0])).name}.log").open("wb")
        with log:
            process = self.root.start(*command, stderr=log, **{"stdout": log, **more})
        self._started.append(process)
        return process


def _multiply(store: sqlite3.Connection, rows: int) -> None:
    columns = [column[1] for column in store.execute("PRAGMA table_info(messages)")]
    names = ", ".join(name for name in columns if name not in {"id", "key"})
    numbers = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    with store:
        [(original,)] = store.execute("SELECT id FROM messages WHERE state = 'quarantined'")
        store.execute(
            f"INSERT INTO messages (key, {names}) {numbers} "  # noqa: S608
            f"SELECT randomblob(16), {names} FROM messages, n WHERE id = ?",
            (rows, original),
        )
        store.execute(
            "INSERT INTO attempts (row_id, at, error, message, traceback, fingerprint) "
            "SELECT m.id, a.at, a.error, a.message, a.traceback, a.fingerprint "
            "FROM messages m, attempts a WHERE a.row_id = ? AND m.id > ?",
            (original, original),
        )


def write_journal(file: Path, *texts: str) -> bool:
    """Write lines of ``builds`` to a file of a journal; return False where no program can."""
    if not WRITER.exists():
        return False
    lines = []
    # `journalctl --follow` begins with the lines of this boot.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    for number, text in enumerate(texts, 1):
        lines += [
            f"__REALTIME_TIMESTAMP={time.time_ns() // 1000 + number}",
            f"__MONOTONIC_TIMESTAMP={time.monotonic_ns() // 1000 + number}",
            f"_BOOT_ID={boot}",
            f"_SYSTEMD_UNIT={_unit('builds')}",
            "PRIORITY=4",
            f"MESSAGE={text}",
            "",
        ]
    entries = "\n".join([*lines, ""]).encode()
    subprocess.run(
        [WRITER, "--output", file, "-"],
        input=entries,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    return True


def _unit(name: str) -> str:
    return f"fm-consumer@{name}.service"


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
