# SPDX-License-Identifier: GPL-2.0-or-later
"""What keeps an instance going: whatever fails, waits, is cut or cannot be read."""

import asyncio

from fedora_messaging.message import Message

from consumer_framework.core.disposition import Ack
from consumer_framework.core.errors import JournalError
from consumer_framework.host.crew import HAND_OVER
from consumer_framework.testing import Harness


def message(name, key=""):
    return Message(topic="org.example.test", body={"name": name, "key": key})


class Runs:
    """A handler that remembers what it ran, and fails for the names that it is told."""

    def __init__(self, *failing):
        self.names = []
        self.failing = set(failing)

    async def __call__(self, message):
        name = message.body["name"]
        self.names.append(name)
        if name == "busy":
            await asyncio.sleep(100)
        if name in self.failing:
            raise ValueError(name)

    @property
    def handler(self):
        async def handler(message):
            await self(message)

        return handler


def test_strict_ordering_pauses_while_its_journal_cannot_be_read_and_goes_on_by_itself(monkeypatch):
    runs = Runs("bad")
    recovery = {"immediate": 0, "delays": ["10s"], "hold_slots": 0}
    with Harness(runs.handler, settings={"ordering": "strict", "recovery": recovery}) as harness:
        harness.deliver(message("bad"))

        def unreadable(*_):
            raise JournalError("/state/journal.sqlite3: disk I/O error")

        monkeypatch.setattr(harness.journal, "is_blocked", unreadable)
        harness.deliver(message("next"))
        harness.advance("1m")
        assert "disk I/O error" in harness.paused
        assert "next" not in runs.names
        runs.failing.clear()
        monkeypatch.undo()
        harness.advance("1m")
        assert harness.paused == ""
        assert runs.names[-1] == "next"
        assert isinstance(harness.deliver(message("last")), Ack)


def test_a_retry_that_waits_for_a_slot_when_its_connection_is_cut_keeps_its_attempts():
    runs = Runs("bad")
    recovery = {"immediate": 0, "delays": ["10s", "10s", "10s"]}
    with Harness(runs.handler, settings={"recovery": recovery}) as harness:
        bad = message("bad")
        harness.deliver(bad)
        for _ in range(8):
            harness.deliver(message("busy"))
            for _ in range(HAND_OVER + 2):
                harness.deliver(message("good"))
            harness.advance("20s")  # it is due, and waits for the slot
            harness.cut()
            harness.advance("200s")
        assert runs.names.count("bad") == 4
        assert harness.quarantined == [bad]
