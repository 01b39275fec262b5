# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal of a real systemd shows a message's life, with fields."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from .service import HEADERS, publish

if TYPE_CHECKING:
    from .service import Service

DIARY = """
import logging
from collections import Counter
from consumer_framework import Consumer

class Diary(Consumer):
    def setup(self):
        self.log = logging.getLogger("diary")
        self.runs = Counter()

    def handle(self, message):
        self.runs[message.id] += 1
        self.log.info("reading %s", "." * message.body.get("length", 1), extra={"PAGE": 7})
        if self.runs[message.id] <= message.body.get("failures", 0):
            raise KeyError("name")
"""
RECOVERY = '[consumer_config.framework.recovery]\nimmediate = 1\ndelays = ["1s"]\n'


@pytest.fixture
def diary(make, host) -> Service:
    """Start an instance whose consumer logs, and fails as often as each message asks."""
    host.write("/usr/local/lib/consumers/diary.py", DIARY)
    service: Service = make("diary", extra=RECOVERY)
    path = "/etc/fedora-messaging/diary.toml"
    written = host.run("cat", path).stdout
    host.write(path, written.replace("acceptance_consumer:Sample", "diary:Diary"))
    service.systemctl("start")
    return service


def entries(service: Service, *matches: str) -> list[dict[str, Any]]:
    service.container.run("journalctl", "--sync")
    options = ("-o", "json", "--all", "-q")
    lines = service.container.run("journalctl", *options, *matches).stdout.splitlines()
    return [json.loads(line) for line in lines]


def life(service: Service, message_id: str) -> list[dict[str, Any]]:
    return entries(service, f"FM_MESSAGE_ID={message_id}")


def send(broker, queue, **body: int) -> str:
    (message_id,) = publish(broker, queue, [("t", json.dumps(body).encode(), HEADERS)])
    return message_id


def test_one_journalctl_tells_the_life_of_a_message_that_succeeds_in_the_end(diary, broker, queue):
    message_id = send(broker, queue, failures=2)
    diary.until(lambda: len(life(diary, message_id)) >= 6, "the third attempt")
    told = life(diary, message_id)
    texts = [entry["MESSAGE"] for entry in told]
    about = f"message {message_id} on {queue}.t"
    assert texts[0] == "reading ."
    assert texts[1].startswith(f"{about} failed at attempt 1; it is held until")
    assert "\nTraceback (most recent call last):\n" in texts[1]
    assert texts[1].endswith("KeyError: 'name'")
    assert texts[3].startswith(f"{about} failed at attempt 2; it is held until")
    assert "\n" not in texts[3]
    assert texts[5] == f"{about} succeeded at attempt 3"
    assert len(told) == 6
    assert [entry["PRIORITY"] for entry in told] == ["6", "3", "6", "6", "6", "6"]
    assert [entry["FM_ATTEMPT"] for entry in told] == ["1", "1", "2", "2", "3", "3"]
    assert [told[n]["FM_DISPOSITION"] for n in (1, 3, 5)] == ["hold", "hold", "ack"]
    assert {entry["FM_TOPIC"] for entry in told} == {f"{queue}.t"}
    assert {entry["FM_QUEUE"] for entry in told} == {queue}
    # The unit sets the field too (LogExtraFields=), and the entry has it once.
    assert {str(entry["FM_INSTANCE"]) for entry in told} == {"diary"}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in told} == {"fm-consumer@diary"}
    assert {entry["_SYSTEMD_UNIT"] for entry in told} == {f"{diary.unit}.service"}
    assert told[0]["LOGGER"] == "diary"
    assert told[0]["PAGE"] == "7"
    assert told[0]["CODE_FILE"] == "/usr/local/lib/consumers/diary.py"
    assert told[1]["FM_FINGERPRINT"] == "KeyError in consumers/diary.py:handle"


def test_the_journal_follows_a_message_through_quarantine_replay_and_drop(
    diary, broker, queue, host
):
    replayed, dropped = send(broker, queue, failures=3), send(broker, queue, failures=3)
    diary.until(lambda: "2 quarantined" in diary.show("StatusText"), "they are quarantined")
    listed = json.loads(
        host.run("fm-consumer", "quarantine", "list", "diary", "--rows", "--json").stdout
    )
    rows = {row["message_id"]: str(row["id"]) for row in listed}
    host.run("fm-consumer", "quarantine", "replay", "diary", rows[replayed])
    host.run("fm-consumer", "quarantine", "drop", "diary", rows[dropped], "--yes")
    diary.until(lambda: "dropped by" in life(diary, dropped)[-1]["MESSAGE"], "the drop")
    ends = [entry["MESSAGE"] for entry in life(diary, replayed) if "FM_DISPOSITION" in entry]
    assert "it is quarantined: KeyError: 'name' (3 attempts)" in ends[-2]
    assert ends[-1].endswith("succeeded at attempt 4, in a replay")
    last = life(diary, dropped)[-1]
    assert last["MESSAGE"].startswith(f"message {dropped} on {queue}.t is dropped by root (uid 0, ")
    assert (last["FM_OPERATOR_UID"], last["FM_OPERATOR_LOGIN"]) == ("0", "root")
    assert last["FM_DISPOSITION"] == "reject"


def test_an_entry_too_large_for_a_datagram_is_whole(diary, broker, queue):
    message_id = send(broker, queue, length=300_000)
    diary.until(lambda: life(diary, message_id), "the long line")
    (entry,) = life(diary, message_id)
    assert entry["MESSAGE"] == "reading " + "." * 300_000
    assert entry["FM_QUEUE"] == queue
    assert entry["_TRANSPORT"] == "journal"


def test_a_journal_that_starts_again_goes_on_with_the_fields(diary, broker, queue, host):
    host.run("systemctl", "restart", "systemd-journald")
    message_id = send(broker, queue, failures=0)
    diary.until(lambda: life(diary, message_id), "a line after the restart")
    assert diary.show("ActiveState") == "active"
