# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer scale` and `status` work with a real systemd, the real units and a real broker."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from .service import Service, bodies, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import CompletedProcess

    from consumer_framework.testing.broker import Broker

    from .container import Container

HOUR = 3600


class Group:
    """The workers of one name."""

    def __init__(self, host: Container, first: Service) -> None:
        self.host = host
        self.name = first.name
        self.first = first

    def worker(self, number: int) -> Service:
        return self.first if number == 1 else Service(self.host, f"{self.name}_{number}")

    def workers(self, count: int) -> list[Service]:
        return [self.worker(number) for number in range(1, count + 1)]

    def scale(self, count: int, *options: str, check: bool = True) -> CompletedProcess[str]:
        return self.host.run(
            "fm-consumer", "scale", self.name, str(count), *options, check=check, timeout=300
        )

    def status(self, *options: str) -> CompletedProcess[str]:
        return self.host.run("fm-consumer", "status", self.name, *options, check=False)

    def document(self) -> Any:
        [group] = json.loads(self.status("--json").stdout)["groups"]
        return group

    def links(self) -> dict[str, str]:
        found = self.host.run(
            "find", "/etc/fedora-messaging", "-name", f"{self.name}_*.toml", "-printf", "%f %l\n"
        ).stdout
        return dict(line.split(" ") for line in found.splitlines())

    def handled(self, count: int) -> list[list[str]]:
        return [worker.noted("handled") for worker in self.workers(count)]


@pytest.fixture
def group(make, host) -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make_group(name: str, **options: str) -> Group:
        made.append(Group(host, make(name, **options)))
        return made[-1]

    yield make_group
    for one in made:
        one.scale(1, "--leave-deferred", check=False)
        one.first.systemctl("disable", check=False)


@pytest.fixture
def stream(broker, queue) -> Iterator[Stream]:
    running = Stream(broker, queue)
    yield running
    running.end()


class Stream:
    """Publishes messages until it is stopped."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self._broker, self._queue = broker, queue
        self.ids: list[str] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _publish(self) -> None:
        while not self._enough.is_set():
            self.ids += publish(self._broker, self._queue, bodies(10, sleep=0.01))
            self._enough.wait(0.05)

    def end(self) -> list[str]:
        self._enough.set()
        if self._thread.ident:
            self._thread.join()
        return self.ids


def users(workers: list[Service]) -> set[str]:
    pids = [worker.show("MainPID") for worker in workers]
    said = workers[0].container.run("stat", "-c", "%u", *(f"/proc/{pid}" for pid in pids))
    return set(said.stdout.split())


def test_workers_come_share_the_queue_and_go_and_no_message_is_lost(group, stream, broker, queue):
    few = "[qos]\nprefetch_count = 2"
    builds = group("builds", extra=few)
    said = builds.scale(3).stdout
    assert "start    fm-consumer@builds_3" in said
    assert "builds: 3 workers" in said
    workers = builds.workers(3)
    assert [worker.show("ActiveState") for worker in workers] == ["active"] * 3
    assert [worker.show("UnitFileState") for worker in workers] == ["enabled"] * 3
    assert builds.links() == {"builds_2.toml": "builds.toml", "builds_3.toml": "builds.toml"}
    assert len(users(workers)) == 3, "each has a user of its own"
    assert "0" not in users(workers)
    assert broker.depth(queue)[1] == 3
    stream.start()
    builds.first.until(lambda: all(builds.handled(3)), "each handles some")

    status = builds.status()
    assert status.returncode == 0, status.stdout
    assert status.stdout.startswith("builds: 3 of 3 workers active; ")
    assert status.stdout.count("consuming 1 queue, ") == 3
    assert "\x1b" not in status.stdout

    again = builds.scale(3)
    assert again.stdout == "builds: 3 workers\n", "there is nothing to do"

    builds.scale(1)
    ids = stream.end()
    builds.first.until(lambda: broker.depth(queue) == (0, 1), "the rest is handled")
    builds.first.until(
        lambda: sum(map(len, builds.handled(3))) >= len(ids), "every message is handled"
    )
    assert Counter(one for share in builds.handled(3) for one in share) == Counter(ids)
    assert [worker.show("ActiveState") for worker in workers] == ["active", "inactive", "inactive"]
    assert [worker.show("Result") for worker in workers] == ["success"] * 3
    assert [worker.show("UnitFileState") for worker in workers[1:]] == ["disabled"] * 2
    assert builds.links() == {}
    assert builds.document()["workers"] == 1


def test_a_worker_stays_while_it_has_deferred_messages_and_they_run_when_it_is_back(
    group, broker, queue, host
):
    later = group("later", extra="[consumer_config.framework.recovery]\nhold_slots = 0")
    later.scale(2)
    # All messages go to the second worker.
    later.first.systemctl("stop")
    due = time.time() + 20
    ids = publish(broker, queue, bodies(2, not_before=due) + bodies(1, poison=True))
    second = later.worker(2)
    second.until(lambda: later.document()["totals"]["deferred"] == 2, "they are deferred")
    later.first.systemctl("start")

    refused = later.scale(1, check=False)
    assert refused.returncode == 1
    assert "later_2 stays, for it has 2 deferred messages" in refused.stderr
    assert second.show("ActiveState") == "active"
    assert later.links() == {"later_2.toml": "later.toml"}

    gone = later.scale(1, "--leave-deferred")
    assert "left in /var/lib/fedora-messaging/later_2: 2 deferred messages, to run" in gone.stderr
    assert "left in /var/lib/fedora-messaging/later_2: 1 quarantined message;" in gone.stderr
    assert second.show("ActiveState") == "inactive"
    assert later.links() == {}
    kept = host.run("fm-consumer", "quarantine", "list", "later_2", "--state", "deferred", "--json")
    assert {row["message_id"] for row in json.loads(kept.stdout)} == set(ids[:2])

    later.scale(2)
    second.until(lambda: len(second.noted("handled")) == 2, "what was kept is run")
    assert Counter(second.noted("handled")) == Counter(ids[:2])
    totals = later.document()["totals"]
    assert (totals["deferred"], totals["quarantined"]) == (0, 1)


def test_status_shows_what_failed_and_what_is_left_to_do(group, host):
    sick = group("sick")
    sick.scale(2)
    second = sick.worker(2)
    drop_in = f"/etc/systemd/system/{second.unit}.service.d/zz-broken.conf"
    host.write(drop_in, "[Service]\nEnvironment=PYTHONPATH=/nonexistent\n")
    host.run("systemctl", "daemon-reload")
    assert second.systemctl("restart", check=False).returncode != 0
    host.run("rm", "/etc/fedora-messaging/sick_2.toml")
    status = sick.status()
    assert status.returncode == 3
    assert "sick: 1 of 2 workers active" in status.stdout
    assert "journalctl -u fm-consumer@sick_2" in status.stdout
    assert "without a configuration file" in status.stdout
    everything = host.run("fm-consumer", "status", check=False)
    assert "sick: 1 of 2 workers active" in everything.stdout
    assert "sick_2  failed (exit code 78)" in everything.stdout
    host.run("rm", drop_in)
    host.run("systemctl", "daemon-reload")
    # Scaling repairs everything else.
    sick.scale(2)
    assert sick.status().returncode == 0


def test_status_shows_the_state_of_systemd_if_an_instance_does_not_answer(group):
    quiet = group("quiet")
    quiet.scale(1)
    quiet.first.systemctl("stop")
    document = quiet.document()
    [instance] = document["instances"]
    assert instance["unit"]["active"] == "inactive"
    assert instance["report"] is None
    assert (instance["deferred"], instance["quarantined"]) == (0, 0)
    assert document["active"] == 0
