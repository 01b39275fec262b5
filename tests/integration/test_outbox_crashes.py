# SPDX-License-Identifier: GPL-2.0-or-later
"""Producers and relays are killed again and again: no message is lost, a ghost, or out of order."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from consumer_framework.publishing.store import OutboxStore

from .instance import until
from .outbox import on_every_database

ROOT = Path(__file__).parents[2]
# Kills of each of the two processes.
KILLS = 40 if os.environ.get("CHAOS") == "full" else 4


class Killed:
    """A process that is killed at a random moment of its work, and started again."""

    def __init__(self, role: str, url: str, ledger: Path) -> None:
        self._arguments = [role, url, str(ledger)]
        self._begun = ledger.with_name(f"{role}.begun")
        self._kill_at: float | None = None
        self.kills = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._begun.unlink(missing_ok=True)
        self._kill_at = None
        # Numbers of a later process are higher, so that they tell the order.
        first = str((self.kills + 1) * 1_000_000)
        module = "tests.integration.outbox_processes"
        command = [sys.executable, "-m", module, *self._arguments, str(self._begun), first]
        return subprocess.Popen(command, cwd=ROOT)

    def look(self) -> None:
        assert self.process.poll() is None, "it ended by itself"
        if self._kill_at is None:
            if self._begun.exists():
                self._kill_at = time.monotonic() + random.uniform(0.1, 1.0)  # noqa: S311
        elif time.monotonic() > self._kill_at:
            self.kill()
            self.kills += 1
            self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@on_every_database
def test_kills_lose_nothing_send_nothing_unasked_and_keep_the_order_of_each_key(
    outbox_url, tmp_path
):
    store = OutboxStore.connect(outbox_url)
    store.migrate()
    ledger = tmp_path / "ledger"
    producer, relay = (Killed(role, outbox_url, ledger) for role in ("producer", "relay"))
    try:
        while min(producer.kills, relay.kills) < KILLS:
            producer.look()
            relay.look()
            time.sleep(0.01)
        producer.kill()
        until(lambda: not store.rows(limit=1), "the relay sends the rest", 120)
    finally:
        producer.kill()
        relay.kill()
        store.close()
    asked: set[str] = set()
    undone: set[str] = set()
    committed: set[str] = set()
    sent: list[tuple[str, str]] = []
    for line in ledger.read_text().splitlines():
        word, *names = line.split()
        match word:
            case "keep":
                asked.update(names)
            case "undo":
                undone.update(names)
            case "committed":
                committed.update(names)
            case "sent":
                sent.append((names[0], names[1]))
    ids = {one for one, _ in sent}
    print(  # noqa: T201 -- duplicates are allowed, and counted
        f"{len(committed)} committed, {len(undone)} rolled back, {len(sent) - len(ids)} sent twice,"
        f" {producer.kills + relay.kills} kills"
    )
    assert committed
    assert committed - ids == set()
    assert ids - asked == set()
    first: dict[str, list[str]] = {}
    for one, key in dict.fromkeys(sent):
        first.setdefault(key, []).append(one)
    for of_key in first.values():
        assert of_key == sorted(of_key)
