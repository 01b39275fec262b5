# SPDX-License-Identifier: GPL-2.0-or-later
"""The unit of a relay on a booted systemd: it sends, reloads, stops, and is sandboxed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pika
import pytest

from .service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.testing.broker import Broker

    from .container import Container

DROP_INS = Path(__file__).parents[2] / "units/examples/fm-outbox@NAME.service.d"
REFERENCE = Path(__file__).parents[2] / "docs/reference/units.md"
DATABASE = "/var/lib/application/outbox.sqlite3"
PUBLISH = """
import sys
from fedora_messaging.message import Message
from consumer_framework.publishing.outbox import Outbox
Outbox("sqlite:///{file}").publish(Message(topic=sys.argv[1], body={{"n": 1}}))
"""


class Relay(Service):
    """One relay of fm-outbox@.service in the container."""

    def __init__(self, container: Container, name: str, broker: Broker, python: Path) -> None:
        super().__init__(container, name)
        self.unit = f"fm-outbox@{name}"
        self._python = python
        parts = broker.url.partition("@")
        self._endpoint = f"amqp://guest:credential:broker@{parts[2]}"
        container.write(f"/etc/fedora-messaging/{name}.broker", "guest\n", mode=0o600)
        url = f"sqlite:///{DATABASE}"
        container.write(f"/etc/fedora-messaging/{name}.database", url, mode=0o600)

    def write(self, more: str = "") -> None:
        self.container.write(
            f"/etc/fedora-messaging/{self.name}.toml",
            '[consumer_config.framework.outbox]\ndatabase = "credential:database"\n'
            f'endpoints = ["{self._endpoint}"]\n{more}\n',
        )

    def drop_in(self, name: str, old: str = "", new: str = "") -> None:
        text = (DROP_INS / name).read_text()
        assert old in text
        place = f"/etc/systemd/system/fm-outbox@{self.name}.service.d/{name}"
        self.container.write(place, text.replace(old, new) if old else text)
        self.container.run("systemctl", "daemon-reload")

    def publish(self, topic: str) -> None:
        code = PUBLISH.format(file=DATABASE)
        self.container.run("runuser", "-u", "apache", "--", str(self._python), "-c", code, topic)

    def status(self) -> dict[str, object]:
        done = self.container.run("fm-consumer", "outbox", "status", self.name, "--json")
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def host(container: Container) -> Container:
    container.run("fm-consumer", "units", "install")
    container.run("useradd", "--system", "--no-create-home", "apache")
    container.run("install", "-d", "-o", "apache", "-m", "0700", "/var/lib/application")
    container.run("mkdir", "-p", "/etc/fedora-messaging")
    return container


@pytest.fixture
def relay(
    host: Container, broker: Broker, acceptance_venv: Path, request: pytest.FixtureRequest
) -> Iterator[Relay]:
    made = Relay(
        host, f"relay{abs(hash(request.node.name)) % 10**6}", broker, acceptance_venv / "bin/python"
    )
    yield made
    made.systemctl("stop", check=False)
    made.systemctl("reset-failed", check=False)


@pytest.fixture
def sending(relay: Relay) -> Relay:
    relay.drop_in("sqlite.conf")
    relay.drop_in("credentials.conf")
    relay.write()
    relay.systemctl("start")
    return relay


def exposure(host: Container, unit: str) -> float:
    scored = host.run("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
    [overall] = [line for line in scored.splitlines() if "Overall exposure" in line]
    return float(overall.split(":")[1].split()[0])


def received(broker: Broker, queue: str) -> list[str]:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        got = connection.channel().basic_get(queue, auto_ack=True)
    return [] if got[0] is None else [got[0].routing_key]


def declare(broker: Broker, queue: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue)
        channel.queue_bind(queue, "amq.topic", f"{queue}.#")


def test_a_relay_sends_what_an_application_stored_and_tells_systemd(sending, host, broker, queue):
    declare(broker, queue)
    assert sending.show("ActiveState") == "active"
    sending.publish(f"{queue}.first")
    sending.until(lambda: received(broker, queue) == [f"{queue}.first"], "the message arrives")
    sending.until(lambda: "0 waiting, 1 sent" in sending.show("StatusText"), "the status tells")
    assert sending.show("StatusText").startswith("sending to ")
    found = sending.status()
    assert (found["waiting"], found["relay"]["state"]) == (0, "sending")
    assert exposure(host, sending.unit) <= 1.1
    assert "FM_INSTANCE=" + sending.name in sending.journal("-o", "export")


def test_a_wrong_file_is_refused_at_a_reload_and_a_right_one_comes_into_force(sending, host):
    sending.write("window = 0")
    sending.systemctl("kill", "--signal=HUP", "--kill-who=main")
    sending.until(lambda: "reload refused" in sending.show("StatusText"), "it is refused")
    assert sending.show("ActiveState") == "active"
    sending.write('messenger = "dummy"')
    said = host.run("fm-consumer", "outbox", "reload", sending.name).stdout
    assert "messenger: changed" in said
    sending.until(lambda: "sending to dummy" in sending.show("StatusText"), "it is in force")


def test_a_relay_that_hangs_is_restarted_and_one_that_is_stopped_ends_well(sending):
    pid = sending.show("MainPID")
    sending.systemctl("kill", "--signal=STOP", "--kill-who=main")
    sending.until(
        lambda: (
            sending.show("MainPID") not in {"0", pid} and sending.show("ActiveState") == "active"
        ),
        "the watchdog restarts it",
        120,
    )
    sending.systemctl("stop")
    assert sending.show("Result") == "success"
    assert "Stopped; since its start" in sending.journal()


def test_a_relay_without_a_database_fails_once_and_says_so(relay, host):
    host.write(f"/etc/fedora-messaging/{relay.name}.toml", "[consumer_config.framework]\n")
    assert relay.systemctl("start", check=False).returncode != 0
    relay.until(lambda: relay.show("ActiveState") == "failed", "it gives up")
    assert relay.show("ExecMainStatus") == "78"
    assert relay.show("NRestarts") == "0"
    assert "outbox.database: is not set" in relay.journal()


@pytest.mark.parametrize("name", sorted(path.name for path in DROP_INS.iterdir()))
def test_a_drop_in_is_exposed_no_more_than_its_documentation_says(relay, host, name):
    row = rf"fm-outbox@NAME\.service\.d/{name}` \|.*\| ([0-9.]+) \|$"
    [documented] = re.findall(row, REFERENCE.read_text(), re.MULTILINE)
    relay.drop_in(name)
    assert exposure(host, relay.unit) <= float(documented)
