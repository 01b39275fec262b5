# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and stops may take longer than the unit allows, and systemd restarts failed ones."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consumer_framework.testing.broker.proxy import Proxy

from .service import Service, bodies, publish

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW_RESTARTS = (
    Path(__file__).parents[2] / "units/examples/fm-consumer@NAME.service.d/slow-restarts.conf"
)


@pytest.fixture
def proxy(broker) -> Iterator[Proxy]:
    """Return a proxy to the broker that the test may cut."""
    with Proxy("127.0.0.1", broker.port) as running:
        yield running


def has_drop_in(service: Service, text: str) -> None:
    """Tell systemd of a drop-in of one instance."""
    directory = f"/etc/systemd/system/{service.unit}.service.d"
    service.container.run("mkdir", "-p", directory)
    service.container.write(f"{directory}/test.conf", text)
    service.container.run("systemctl", "daemon-reload")


def framework(**settings: str) -> str:
    lines = [f'{key} = "{value}"' for key, value in settings.items()]
    return "\n".join(["[consumer_config.framework]", *lines])


def seconds_to_restart(service: Service) -> str:
    return service.show("RestartUSecNext") or service.show("RestartUSec")


def systemd_version(service: Service) -> int:
    return int(service.container.run("systemctl", "--version").stdout.split()[1])


def test_a_handler_within_its_deadline_finishes_however_short_the_units_timeout(
    make, broker, queue
):
    service = make("slow")
    has_drop_in(service, "[Service]\nTimeoutStopSec=3\n")
    service.systemctl("start")
    ids = publish(broker, queue, bodies(2, sleep=8))
    service.until(lambda: service.noted("start"), "the slow handler runs")
    service.systemctl("stop", "--no-block")
    service.until(
        lambda: service.show("StatusText").startswith("Stopping: waiting for 1 running, "),
        "the status counts down",
    )
    service.until(lambda: service.show("ActiveState") == "inactive", "it stopped")
    assert service.noted("handled") == ids[:1]
    assert service.show("Result") == "success"
    assert broker.depth(queue) == (1, 0), "the other one went back"


def test_a_second_signal_cuts_the_stop_short(make, broker, queue):
    service = make("hasty")
    service.systemctl("start")
    (message,) = publish(broker, queue, bodies(1, sleep=60))
    service.until(lambda: service.noted("start"), "the slow handler runs")
    service.systemctl("stop", "--no-block")
    service.until(lambda: "Stopping" in service.show("StatusText"), "it is stopping")
    service.systemctl("kill", "--signal=TERM")
    service.until(lambda: service.show("ActiveState") == "failed", "it ended")
    assert service.show("ExecMainStatus") == "143"
    service.until(lambda: broker.depth(queue) == (1, 0), "the message is back")
    assert f"message {message} on " in service.journal("-p", "warning")
    assert "this does not count as a crash" in service.journal("-p", "warning")


def test_a_handler_over_its_deadline_cuts_the_stop_short(make, broker, queue):
    service = make("stuck", extra=framework(handler_timeout="2s"))
    has_drop_in(service, "[Service]\nTimeoutStopSec=3\n")
    service.systemctl("start")
    publish(broker, queue, bodies(1, sleep=60))
    service.until(lambda: service.noted("start"), "the handler runs")
    service.systemctl("stop")
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("exit-code", "13")
    assert "gave up waiting for 1 running" in service.journal("-p", "err")
    assert "this counts as crash 1 of 2" in service.journal("-p", "warning")
    service.until(lambda: broker.depth(queue) == (1, 0), "the message is back")


def test_a_broker_that_comes_later_than_the_units_timeout_is_waited_for(make, broker, queue, proxy):
    proxy.refuse()
    service = make("early")
    service.configure(proxy.url_for(broker.url), queue)
    # Enough for Python on a busy machine to send its first notification to systemd.
    has_drop_in(service, "[Service]\nTimeoutStartSec=8\n")
    service.systemctl("start", "--no-block")
    time.sleep(9)
    waits = rf"Waiting for the broker at 127.0.0.1:{proxy.port}: connection refused; "
    waits += r"attempt \d in \d+ s; gives up in 4 min"
    service.until(lambda: re.fullmatch(waits, service.show("StatusText")), "the status says so")
    assert service.show("ActiveState") == "activating"
    proxy.accept()
    service.until(lambda: service.show("ActiveState") == "active", "it started", 60)
    assert service.show("NRestarts") == "0"
    assert broker.depth(queue) == (0, 1)


def test_a_broker_that_never_comes_ends_the_start_with_75_and_it_is_tried_again(
    make, broker, queue, proxy
):
    proxy.refuse()
    service = make("never", extra=framework(start_timeout="1s"))
    service.configure(proxy.url_for(broker.url), queue, framework(start_timeout="1s"))
    assert service.systemctl("start", check=False).returncode != 0
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("exit-code", "75")
    assert "not started within 1s (start_timeout): Waiting for" in service.journal("-p", "err")
    service.until(lambda: int(service.show("NRestarts")) >= 2, "it is tried again")
    if systemd_version(service) >= 254:
        service.until(lambda: seconds_to_restart(service) not in ("1s", ""), "the delay grows", 60)
    else:
        assert seconds_to_restart(service) == "1s"
        has_drop_in(service, SLOW_RESTARTS.read_text())
        assert seconds_to_restart(service) == "30s"


def test_a_configuration_that_can_never_work_is_left_alone(make, host):
    service = make("never-works", extra="[qos]\nprefetch_cuont = 5")
    service.systemctl("start", check=False)
    assert service.show("ExecMainStatus") == "78"
    # With a restart this would be another state.
    assert (service.show("ActiveState"), service.show("SubState")) == ("failed", "failed")


def test_good_messages_are_told_to_a_systemd_that_resets_the_delay(make, broker, queue):
    service = make("good")
    service.systemctl("start")
    service.systemctl("kill", "--signal=KILL")
    service.until(lambda: service.show("NRestarts") == "1", "it is started again")
    publish(broker, queue, bodies(120))
    service.until(lambda: len(service.noted("handled")) == 120, "all are handled")
    if systemd_version(service) >= 258:
        service.until(lambda: service.show("NRestarts") == "0", "the next delay is a short one")
    else:
        service.until(lambda: "120 handled" in service.show("StatusText"), "the status says so")
        assert service.show("ActiveState") == "active", "what it does not know, it ignores"
