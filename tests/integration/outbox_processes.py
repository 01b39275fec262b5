# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of the crash test: a producer and a relay. Each is killed at any moment.

``python -m tests.integration.outbox_processes producer|relay URL LEDGER BEGUN NUMBER``

The process makes the file BEGUN when its work begins. The producer writes a line to the ledger
before it begins a transaction, and one after it ended. The relay's messenger writes a line for
each message. A line is written by one system call.
"""

import os
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from fedora_messaging.message import Message

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.publishing.events import RelayCounters
from consumer_framework.publishing.message import Outgoing
from consumer_framework.publishing.messengers import EVERYTHING, Result, Retry, Sent
from consumer_framework.publishing.outbox import Outbox
from consumer_framework.publishing.policy import Policy
from consumer_framework.publishing.relay import Relay
from consumer_framework.publishing.store import OutboxStore, create_engine

KEYS = 5


class Ledger:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


class LedgerMessenger:
    """Writes each message to the ledger, and now and then fails."""

    features = EVERYTHING

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def open(self) -> None:
        pass

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        results: list[Result] = []
        for one in batch:
            if random.random() < 0.002:  # noqa: S311 -- no secret
                return [*results, *(Retry("cut") for _ in batch[len(results) :])]
            self._ledger.write("sent", one.id, one.ordering_key)
            results.append(Sent(routed=True))
        return results

    def close(self) -> None:
        pass


def produce(url: str, ledger: Ledger, first: int) -> None:
    """Publish in transactions of one to three messages, a tenth of which are rolled back."""
    outbox, engine = Outbox(url), create_engine(url)
    number = first
    while True:
        is_kept = random.random() > 0.1  # noqa: S311 -- no secret
        messages = []
        for _ in range(random.randint(1, 3)):  # noqa: S311
            number += 1
            message = Message(topic="app.done", body={"n": number})
            message.id = f"{number:09}"
            messages.append((message, f"k{number % KEYS}"))
        names = [message.id for message, _ in messages]
        ledger.write("keep" if is_kept else "undo", *names)
        with engine.connect() as connection:
            for message, key in messages:
                outbox.publish(message, key, connection=connection)
            if not is_kept:
                connection.rollback()
                continue
            connection.commit()
        ledger.write("committed", *names)


def relay(url: str, ledger: Ledger) -> None:
    """Send with a lease of one second, so that a killed relay is soon replaced."""
    store, messenger = OutboxStore.connect(url), LedgerMessenger(ledger)
    policy, clock, counters = Policy(), SystemClock(), RelayCounters()
    Relay(
        store, messenger, policy, clock=clock, observer=counters, chance=lambda: 1.0, lease=1.0
    ).run(threading.Event())


if __name__ == "__main__":
    role, url, path, begun, first = sys.argv[1:]
    Path(begun).touch()
    if role == "producer":
        produce(url, Ledger(path), int(first))
    else:
        relay(url, Ledger(path))
