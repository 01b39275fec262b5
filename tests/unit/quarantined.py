# SPDX-License-Identifier: GPL-2.0-or-later
"""An operator, and quarantined messages of a stopped instance."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
from click.testing import CliRunner

from consumer_framework.adapters.store import Limits, Store
from consumer_framework.cli import main
from consumer_framework.core.attempt import Attempt, History
from consumer_framework.testing import make_delivery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from click.testing import Result

    from consumer_framework.core.delivery import Delivery

FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")
TOPIC = "org.fedoraproject.prod.bodhi.update.comment"
CAUSE = "ValueError in toddlers/comments.py:process"
OTHER_CAUSE = "KeyError in toddlers/builds.py:process"
HEADERS = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}

HANDLER = """
import os, pathlib
from fedora_messaging.exceptions import Drop, HaltConsumer
here = pathlib.Path(__file__).parent
def handler(message):
    with open(here / "seen", "a") as seen:
        seen.write(f"{message.id} {message.body['n']}\\n")
    if message.body["n"] == "poison" and not (here / "mended").exists():
        raise RuntimeError("still broken")
    if message.body["n"] == "halt":
        raise HaltConsumer(3, "enough", requeue=True)
    if message.body["n"] == "drop":
        raise Drop("unwanted")
"""


def failures(count: int, cause: str = CAUSE, message: str = "no such package") -> History:
    error = cause.partition(" ")[0]
    attempts = (
        Attempt(1000.0 * n, error, message, f"Traceback of {error}\n  number {n}\n", cause)
        for n in range(1, count + 1)
    )
    return History(tuple(attempts))


def a_delivery(number: int = 1, body: Any = None, **more: Any) -> Delivery:
    raw = body if isinstance(body, bytes) else json.dumps(body or {"n": number}).encode()
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding=more.pop("content_encoding", "utf-8"),
        message_id=f"id-{number}",
        headers=HEADERS,
    )
    made = make_delivery(queue="sample", routing_key=more.pop("routing_key", TOPIC), body=raw)
    received = {"received_at": time.time() - 7200, "history": failures(2), **more}
    return made._replace(properties=properties, **received)


@dataclass
class Operator:
    """Runs ``fm-consumer`` on the store in ``directory/state``."""

    directory: Path

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def instance(self) -> list[str]:
        conf = self.directory / "sample.toml"
        return ["--conf", str(conf), "--state-dir", str(self.state)]

    def does(self, verb: str, *words: str, **more: Any) -> Result:
        """Run a command in this process."""
        command = ["quarantine", verb, *self.instance, *words]
        return CliRunner().invoke(main, command, **more, catch_exceptions=False)

    def shows(self, verb: str, *words: str, **more: Any) -> Any:
        """Run a command with --json and return the document."""
        result = self.does(verb, *words, "--json", **more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def runs(self, verb: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own, for it may run the reactor."""
        command = [str(FM_CONSUMER), "quarantine", verb, *self.instance, *words]
        environment = {**os.environ, "PYTHONPATH": str(self.directory), **environment}
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=60
        )

    def keeps(self, *writes: Callable[[Store], Awaitable[Any]]) -> None:
        """Write to the store, as an instance does."""
        self.state.mkdir(exist_ok=True)
        store = Store.open(self.state, limits=Limits())

        async def in_order() -> None:
            for write in writes:
                await write(store)

        asyncio.run(in_order())
        store.close()

    def quarantines(self, *deliveries: Delivery, reason: str = "ValueError: no (2 attempts)"):
        self.keeps(*(lambda j, d=delivery: j.quarantine(d, reason) for delivery in deliveries))

    def rows(self, state: str = "any") -> dict[int, str]:
        return {row["id"]: row["state"] for row in self.shows("list", "--rows", "--state", state)}

    def seen(self) -> list[str]:
        file = self.directory / "seen"
        return file.read_text().splitlines() if file.exists() else []


def make_operator(directory: Path) -> Operator:
    """Make an operator of an instance with a handler of its own, that never ran."""
    module = f"handlers_{directory.name}"
    (directory / f"{module}.py").write_text(HANDLER)
    (directory / "sample.toml").write_text(f'callback = "{module}:handler"\n')
    return Operator(directory)
