# SPDX-License-Identifier: GPL-2.0-or-later
"""A running instance takes new settings under systemd."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from .service import bodies, install_module, publish

LABELLED = """
import os, pydantic
from consumer_framework import Consumer

class Sample(Consumer):
    class Config(pydantic.BaseModel):
        label: str = "first"

    def handle(self, message):
        # In one piece: there are two slots.
        os.write(1, f"{self.config.label} {message.id}\\n".encode())
"""


@pytest.fixture(scope="module")
def labelled(host):
    """Install a consumer that prints its settings."""
    install_module(host, "labelled", LABELLED)
    return "labelled_consumer:Sample"


@pytest.fixture
def running(make, broker, queue, labelled):
    """Start an instance; also return a function that changes its configuration."""

    def start(name):
        service = make(name, callback=labelled)
        service.systemctl("start")
        return service, lambda extra: service.configure(broker.url, queue, extra, labelled)

    return start


def version(host):
    said = host.run("systemctl", "--version").stdout
    return int(said.split()[1])


def test_reload_changes_the_settings_of_the_running_process(host, running, broker, queue):
    service, configure = running("changing")
    process = service.show("MainPID")
    ids = publish(broker, queue, bodies(50))
    configure('[consumer_config]\nlabel = "second"\n[consumer_config.framework]\nslots = 2\n')
    done = host.run("fm-consumer", "reload", "changing")
    assert "changing: consumer_config.label: new" in done.stdout
    assert "changing: consumer_config.framework.slots: default -> 2" in done.stdout
    assert done.stdout.splitlines()[-1] == "changing: reloaded"
    ids += publish(broker, queue, bodies(50))
    handled = lambda: service.noted("first") + service.noted("second")  # noqa: E731 -- asked again
    service.until(lambda: len(handled()) >= len(ids), "all are handled")
    assert Counter(handled()) == Counter(ids)
    assert set(ids[50:]) <= set(service.noted("second"))
    assert service.show("MainPID") == process
    assert service.show("ActiveState") == "active"
    assert service.show("NRestarts") == "0"


def test_a_file_that_is_wrong_is_refused_and_the_status_says_so(host, running, broker, queue):
    service, configure = running("refusing")
    configure("[qos]\nprefetch_cuont = 5")
    done = host.run("fm-consumer", "reload", "refusing", "--json", check=False)
    assert done.returncode == 1
    (answer,) = json.loads(done.stdout)["instances"]
    assert answer["result"] == "refused"
    (problem,) = answer["problems"]
    assert problem["source"] == "/etc/fedora-messaging/refusing.toml"
    assert problem["path"] == "qos.prefetch_cuont"
    service.until(
        lambda: "reload refused: qos.prefetch_cuont" in service.show("StatusText"),
        "the status says so",
    )
    assert "is refused; the settings stay as they are" in service.journal("-p", "err")
    (number,) = publish(broker, queue, bodies(1))
    service.until(lambda: service.noted("first") == [number], "it goes on")
    configure("")
    assert host.run("fm-consumer", "reload", "refusing").returncode == 0
    service.until(lambda: "refused" not in service.show("StatusText"), "it is mended")


def test_systemctl_reload_waits_until_the_settings_are_in_force(host, running, broker, queue):
    if version(host) < 253:
        pytest.skip("systemd 253 and newer know Type=notify-reload")
    service, configure = running("managed")
    assert service.show("CanReload") == "yes"
    configure('[consumer_config]\nlabel = "second"\n')
    service.systemctl("reload")
    (number,) = publish(broker, queue, bodies(1))
    service.until(lambda: service.noted("second") == [number], "in force as soon as it returned")
    assert service.show("ActiveState") == "active"
    service.container.write("/etc/fedora-messaging/managed.toml", "nonsense")
    service.systemctl("reload")
    assert "reload refused" in service.show("StatusText")
    assert service.show("ActiveState") == "active"


def test_an_old_systemd_runs_the_unit_as_one_that_notifies(host, running):
    service, _ = running("typed")
    newer = version(host) >= 253
    assert service.show("Type") == ("notify-reload" if newer else "notify")
    assert service.show("CanReload") == ("yes" if newer else "no")
