# SPDX-License-Identifier: GPL-2.0-or-later
"""No command prints, logs or keeps a secret of an instance."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .instance import FM_CONSUMER, Instance, publish, queue_table, until

TOKEN = "canary-t0ken"  # noqa: S105 -- to be looked for
PASSWORD = "canary/p@ss:w0rd"  # noqa: S105
LONG = "-----BEGIN canary-----\ncanary-l1ne-1\ncanary-l1ne-2\n"
# A part of every secret, in every form.
CANARY = "canary"

HANDLER = """
import dataclasses, logging
from consumer_framework import Consumer, Recovery

class handler(Consumer):
    recovery = Recovery(immediate=0, delays=())

    @dataclasses.dataclass
    class Config:
        token: str
        long: str
        nested: dict

    def setup(self):
        logging.getLogger("author").warning("made with %s", self.config)
        assert self.config.nested["list"][0] == self.config.token

    def handle(self, message):
        note("started", message)
        if message.body["n"] > 2:
            raise KeyError(f"no such token: {self.config!r} {message.body}")
        logging.getLogger("author").info("authorised by " + self.config.long)
"""
EXTRA = """
[consumer_config]
token = "credential:token"
long = "credential:long"
nested = {list = ["credential:token"]}

[log_config]
version = 1
disable_existing_loggers = false
root = {level = "DEBUG", handlers = ["console"]}
handlers = {console = {class = "logging.StreamHandler"}}
"""


@pytest.fixture
def credentials(tmp_path) -> Path:
    """Make a directory of credentials as systemd does."""
    directory: Path = tmp_path / "credentials"
    directory.mkdir()
    for name, text in (("token", TOKEN), ("password", PASSWORD), ("long", LONG)):
        (directory / name).write_text(f"{text}\n")
    return directory


@pytest.fixture
def instance(broker, queue_name, start, credentials) -> Instance:
    name = f"user-{queue_name[-12:]}"
    broker.add_user(name, PASSWORD, configure=".*", write=".*", read=".*")
    made: Instance = start(
        f"amqp://{name}:credential:password@localhost:{broker.port}/%2F",
        EXTRA + queue_table(queue_name),
        HANDLER,
        environment={"CREDENTIALS_DIRECTORY": str(credentials)},
    )
    return made


@pytest.fixture
def command(credentials, tmp_path):
    """Return a function that runs a command and returns its exit code and output."""

    def run(instance: Instance, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [FM_CONSUMER, *words],
            env={
                **os.environ,
                "PYTHONPATH": str(instance.configuration.parent),
                "CREDENTIALS_DIRECTORY": str(credentials),
                "STATE_DIRECTORY": str(instance.state),
                "RUNTIME_DIRECTORY": str(instance.configuration.parent),
                "NOTES": str(tmp_path / "notes"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def kept(directory: Path) -> bytes:
    """Return the contents of all files below *directory*."""
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_no_command_prints_or_keeps_a_secret(broker, queue_name, instance, command, tmp_path):
    instance.ready()
    publish(broker.url, queue_name, [1, 2, 3, 4])
    instance.noted("started", 4)
    until(lambda: len(instance.store()) == 2, "two are quarantined")
    process = Path(f"/proc/{instance.process_id}")
    assert CANARY.encode() not in (process / "cmdline").read_bytes()
    assert CANARY.encode() not in (process / "environ").read_bytes()

    conf = ("--conf", str(instance.configuration))
    here = (*conf, "--state-dir", str(instance.state))
    first, second = (str(row.id) for row in instance.store())
    export = tmp_path / "export.jsonl"
    said: dict[Any, tuple[int, str]] = {}
    for words in (
        ("status", "instance", "--state-dir", str(instance.state), "--json"),
        ("quarantine", "list", *here),
        ("quarantine", "list", "--json", *here),
        ("quarantine", "show", *here, first),
        ("quarantine", "show", "--json", *here, first),
        ("quarantine", "replay", *here, first),
        ("quarantine", "export", *here, "-o", str(export)),
        ("check", *conf, "--broker"),
        ("check", *conf, "--json"),
        ("explain", "KeyError", *conf, "--json"),
    ):
        said[words] = command(instance, *words)
    assert instance.stop() == 0
    for words in (
        ("quarantine", "replay", *here, second),
        ("quarantine", "replay", "--json", *here, second),
        ("quarantine", "drop", *here, first),
    ):
        said[words] = command(instance, *words)
    for words, (_, printed) in said.items():
        assert CANARY not in printed, words
        assert printed or words[:2] == ("quarantine", "export"), words
    # Each command did its work: it had a secret to hide.
    shown = said["quarantine", "show", *here, first][1]
    assert "no such token: " in shown
    assert "<credential:token>" in shown
    odd = [(words, told) for words, told in said.items() if told[0] not in {0, 1, 3}]
    assert odd == [], "3: there is no systemd unit"
    assert "made with " in instance.log
    assert "pika" in instance.log, "down to the last level"
    assert CANARY not in instance.log
    assert CANARY not in "".join(instance.notifications)
    assert CANARY.encode() not in kept(instance.state)
    assert CANARY not in export.read_text()


@pytest.mark.parametrize(
    ("written", "instead", "words"),
    [
        ('token = "credential:token"', 'tokn = "credential:token"', "consumer_config.tokn"),
        ("token: str", "token: int", "consumer_config.token: must be a"),
        (
            "    def setup(self):",
            "    def __init__(self, given):\n        raise ValueError(given)\n    def setup(self):",
            "ValueError",
        ),
        ("amqp://", "http://", "amqp_url"),
    ],
)
def test_no_error_shows_a_secret(command, tmp_path, written, instead, words):
    (tmp_path / "broken").mkdir()
    url = "amqp://user:credential:password@localhost:1/%2F"
    instance = Instance(tmp_path / "broken", url, EXTRA + queue_table("queue"), HANDLER)
    for file in (instance.configuration, *instance.configuration.parent.glob("handlers_*.py")):
        file.write_text(file.read_text().replace(written, instead))
    conf = ("--conf", str(instance.configuration))
    exit_code, printed = command(instance, "run", *conf, "--state-dir", str(instance.state))
    assert exit_code in {78, 13}
    assert words in printed
    _, checked = command(instance, "check", "--json", *conf)
    assert checked
    assert CANARY not in printed + checked
