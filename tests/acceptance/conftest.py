# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the acceptance tests: a booted systemd with the product installed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pika
import pytest

from consumer_framework.testing.broker import Broker

from .container import Container, RootUnavailable, build_root, product_venv, why_not
from .service import Service, install_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPO = Path(__file__).parents[2]

# Set it to trixie or sid to run the same tests on a newer systemd.
SUITE = os.environ.get("ACCEPTANCE_SUITE", "bookworm")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    directory = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(directory):
            item.add_marker("acceptance")


def skip_unless_in_ci(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must be able to run the acceptance tests, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def acceptance_root() -> Path:
    """Build the Debian root that containers boot from."""
    if reason := why_not():
        skip_unless_in_ci(reason)
    try:
        return build_root(SUITE)
    except RootUnavailable as unavailable:
        skip_unless_in_ci(str(unavailable))


@pytest.fixture(scope="session")
def acceptance_venv(acceptance_root: Path, request: pytest.FixtureRequest) -> Path:
    """Build a virtualenv with the product, at the same path on the host and in containers."""
    return product_venv(request.config.rootpath, suite=SUITE)


@pytest.fixture(scope="module")
def container(acceptance_root: Path, acceptance_venv: Path) -> Iterator[Container]:
    """Boot a systemd with /usr/bin/fm-consumer, shared by a module's tests.

    A module shares it because a host also has many instances and one systemd. Tests use different
    names for their instances.
    """
    with Container(acceptance_root, read_only=[acceptance_venv]) as booted:
        booted.link_product(acceptance_venv)
        yield booted


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    if lacking := Broker.missing():
        skip_unless_in_ci(lacking)
    with Broker() as running:
        yield running


@pytest.fixture(scope="module")
def host(container: Container) -> Container:
    """Install the units as a packager would, and a consumer's module, in the container."""
    for unit in (REPO / "units").glob("fm-consumer*.*"):
        container.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
    install_module(container)
    return container


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    name = f"acceptance-{uuid.uuid4()}"
    yield name
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(name)


@pytest.fixture
def make(host: Container, broker: Broker, queue: str) -> Iterator[Callable[..., Service]]:
    """Return a function that makes configured instances; stop them at the end."""
    services: list[Service] = []

    def make_service(name: str, **options: str) -> Service:
        service = Service(host, name)
        service.configure(broker.url, **{"queue": queue, **options})
        services.append(service)
        return service

    yield make_service
    for service in services:
        service.systemctl("stop", check=False)
        service.systemctl("reset-failed", check=False)
