# SPDX-License-Identifier: GPL-2.0-or-later
"""rpm installs, upgrades and erases the packages of the framework and of a consumer."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest

from . import packages as rpms
from .conftest import skip_unless_in_ci
from .container import CACHE, Container
from .packages import NAME, Packages
from .service import Service, bodies, publish

CONFIGURATION = f"/etc/fedora-messaging/{NAME}.toml"
STATE = f"/var/lib/private/fedora-messaging/{NAME}"


@pytest.fixture(scope="session")
def packages(acceptance_venv):
    if reason := rpms.why_not():
        skip_unless_in_ci(reason)
    # Not below /tmp, over which a container mounts its own.
    directory = Path(tempfile.mkdtemp(dir=CACHE, prefix="rpms-"))
    directory.chmod(0o755)
    try:
        yield rpms.build(directory, acceptance_venv)
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def fedora(acceptance_root, acceptance_venv, packages: Packages):
    """Boot a container that looks like Fedora to rpm and our packages."""
    read_only = [acceptance_venv, packages.fedora.parent]
    with Container(acceptance_root, read_only=read_only) as booted:
        rpms.install_fedora(booted, packages, acceptance_venv)
        yield booted


class Stream:
    """Publishes messages until it is stopped."""

    def __init__(self, broker, queue):
        self.ids: list[str] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._publish, args=(broker, queue), daemon=True)
        self._thread.start()

    def _publish(self, broker, queue):
        while not self._enough.is_set():
            self.ids += publish(broker, queue, bodies(5))
            self._enough.wait(0.05)

    def end(self) -> list[str]:
        self._enough.set()
        self._thread.join()
        return self.ids


def handled(*services: Service) -> list[str]:
    return [line.split()[0] for one in services for line in one.noted("handled")]


def configure(service: Service, broker, queue: str) -> None:
    """Edit the packaged TOML, as an administrator does."""
    text = service.container.run("cat", CONFIGURATION).stdout
    text = text.replace("amqp://localhost/%2F", broker.url).replace("@QUEUE@", queue)
    service.container.write(CONFIGURATION, text)


def exists(container: Container, path: str) -> bool:
    return container.run("test", "-e", path, check=False).returncode == 0


def test_a_packaged_consumer_is_installed_started_upgraded_and_erased(
    fedora, packages, broker, queue
):
    service = Service(fedora, NAME)
    fedora.run("rpm", "--install", *packages.files(0))
    assert service.systemctl("is-enabled", check=False).stdout.strip() == "disabled"
    assert service.show("ActiveState") == "inactive"
    enabled = fedora.run("systemctl", "is-enabled", "fm-consumers.target")
    assert enabled.stdout.strip() == "enabled", "so that enabling an instance is enough"

    configure(service, broker, queue)
    service.systemctl("enable", "--now")
    assert service.show("Description") == f"Fedora Messaging consumer {NAME} of {NAME}"
    first = publish(broker, queue, bodies(20))
    service.until(lambda: len(handled(service)) == 20, "it consumes")
    assert {line.split()[2] for line in service.noted("handled")} == {"1.0"}

    scaled = fedora.run("fm-consumer", "scale", NAME, "2")
    assert "2 workers" in scaled.stdout
    worker = Service(fedora, f"{NAME}_2")
    before = [one.show("InvocationID") for one in (service, worker)]
    stream = Stream(broker, queue)
    service.until(lambda: len(handled(service, worker)) > 40, "messages come")
    edited = fedora.run("cat", CONFIGURATION).stdout
    fedora.run("rpm", "--upgrade", *packages.files(1))
    for one in (service, worker):
        one.until(
            lambda: any(line.endswith(" 2.0") for line in one.noted("handled")), "the new code runs"
        )
    published = [*first, *stream.end()]
    service.until(lambda: len(set(handled(service, worker))) == len(published), "nothing is lost")
    assert Counter(handled(service, worker)) == Counter(published)
    for one, invocation in zip((service, worker), before, strict=True):
        assert one.show("InvocationID") != invocation
        assert one.show("NRestarts") == "0", "systemd had nothing to mend"
        assert one.journal().count("consuming from") == 2, "restarted once by the transaction"
    assert fedora.run("cat", CONFIGURATION).stdout == edited
    assert "As of version 2.0" in fedora.run("cat", f"{CONFIGURATION}.rpmnew").stdout

    fedora.run("rpm", "--erase", NAME)
    for one in (service, worker):
        assert one.show("ActiveState") == "inactive"
        assert one.show("Result") == "success"
        assert one.systemctl("is-enabled", check=False).stdout.strip() == "disabled"
    assert fedora.run("cat", f"{CONFIGURATION}.rpmsave").stdout == edited
    assert not exists(fedora, CONFIGURATION)
    assert not exists(fedora, f"/etc/fedora-messaging/{NAME}_2.toml"), "the worker's link"
    assert exists(fedora, STATE), "its state stays for who installs it again"
    assert broker.depth(queue) == (0, 0)


def test_an_upgrade_of_either_package_restarts_running_instances_once(
    fedora, packages, broker, queue
):
    service = Service(fedora, NAME)
    fedora.run("rpm", "--install", *packages.files(0))
    configure(service, broker, queue)
    service.systemctl("start")
    for starts, upgraded in enumerate((packages.consumer, packages.framework), start=2):
        before = service.show("InvocationID")
        fedora.run("rpm", "--upgrade", *packages.for_hosts(upgraded[1]))
        service.until(lambda: service.show("InvocationID") != before, "it is restarted")
        service.until(lambda: broker.depth(queue) == (0, 1), "it consumes again")
        assert service.journal().count("consuming from") == starts
        assert service.show("NRestarts") == "0"


def test_without_the_framework_the_unit_is_fedoras_own_again(fedora, packages, broker, queue):
    service = Service(fedora, "plain")
    fedora.run("rpm", "--install", *packages.files(0))
    service.configure(broker.url, queue)
    path = f"/etc/fedora-messaging/{service.name}.toml"
    fedora.run("sed", "-i", 's|^callback = .*|callback = "fedora_messaging.example:printer"|', path)
    service.systemctl("enable", "--now")
    assert service.show("Type").startswith("notify"), "notify-reload where systemd knows it"
    assert "/usr/bin/fm-consumer" in service.show("ExecStart")
    fedora.run("rpm", "--verify", NAME, *rpms.FRAMEWORK)
    completion = "source /usr/share/bash-completion/completions/fm-consumer"
    fedora.run("bash", "-c", f"{completion} && complete -p fm-consumer")

    fedora.run("rpm", "--erase", NAME, *rpms.FRAMEWORK)
    assert service.show("ActiveState") == "inactive", "it cannot be restarted"
    assert service.systemctl("is-enabled", check=False).stdout.strip() == "disabled"
    assert not exists(fedora, "/usr/bin/fm-consumer")
    assert service.show("DropInPaths") == ""
    assert service.show("Type") == "simple"
    assert exists(fedora, path), "what the administrator wrote"

    service.systemctl("start")
    service.until(lambda: broker.depth(queue) == (0, 1), "fedora-messaging consumes")
    assert "/usr/bin/fedora-messaging" in service.show("ExecStart")


def test_a_relay_is_restarted_by_an_upgrade_and_stopped_by_an_erasure(fedora, packages):
    relay = Service(fedora, "web")
    relay.unit = "fm-outbox@web"
    fedora.run("rpm", "--install", *packages.files(0))
    assert relay.systemctl("is-enabled", check=False).stdout.strip() == "disabled"
    fedora.write(
        "/etc/fedora-messaging/web.toml",
        "[consumer_config.framework.outbox]\n"
        'database = "sqlite:////run/fm-outbox/web/outbox.sqlite3"\nmessenger = "dummy"\n',
    )
    relay.systemctl("start")
    before = relay.show("InvocationID")
    fedora.run("rpm", "--upgrade", *packages.for_hosts(packages.framework[1]))
    relay.until(lambda: relay.show("InvocationID") != before, "it is restarted")
    relay.until(lambda: relay.show("ActiveState") == "active", "it sends again")
    assert relay.show("NRestarts") == "0"
    fedora.run("rpm", "--erase", NAME, *rpms.FRAMEWORK)
    assert relay.show("ActiveState") == "inactive"
    assert relay.show("Result") == "success"
