# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer units install` puts working units on a host: the main one and its companions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .service import Service, bodies, install_module, publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .container import Container

UNITS = Path(__file__).parents[2] / "units"
EXAMPLES = UNITS / "examples"
SYSTEM = "/etc/systemd/system"
# Fedora's package fedora-messaging owns it.
FEDORAS = """[Unit]
Description=Fedora Messaging consumer
Documentation=http://fedora-messaging.readthedocs.io/

[Service]
Type=simple
ExecStart=/usr/bin/fedora-messaging --conf /etc/fedora-messaging/%i.toml consume
Restart=on-failure
RestartSec=60

[Install]
WantedBy=multi-user.target
"""
# Settings that are new in systemd 253, 254 and 260.
NEWER = (
    "RestartSteps",
    "RestartMaxDelaySec",
    "ImportCredential",
    "RefreshOnReload",
    "notify-reload",
)


@pytest.fixture(scope="module")
def host(container: Container) -> Container:
    container.run("fm-consumer", "units", "install")
    install_module(container)
    return container


def test_installed_with_one_command_it_runs(make, host, broker, queue, acceptance_venv):
    assert host.run("fm-consumer", "units", "diff").stdout == ""
    service = make("installed")
    service.systemctl("start")
    assert f"{acceptance_venv}/bin/fm-consumer" in service.show("ExecStart")
    ids = publish(broker, queue, bodies(3))
    service.until(lambda: service.noted("handled") == ids, "it handles")


def test_over_the_unit_of_fedoras_package_it_is_a_drop_in(make, host, broker, queue):
    packaged = "/usr/lib/systemd/system/fm-consumer@.service"
    host.write(packaged, FEDORAS)
    try:
        said = host.run("fm-consumer", "units", "install").stdout
        assert "10-consumer-framework.conf" in said
        service = make("fedoras")
        service.systemctl("start")
        assert service.show("FragmentPath").endswith("/lib/systemd/system/fm-consumer@.service")
        assert service.show("ExecStart").count("argv[]") == 1
        assert service.show("RestartUSec") == "1s"
        assert service.show("NotifyAccess") == "main"
        assert broker.depth(queue) == (0, 1)
        assert host.run("fm-consumer", "units", "diff").stdout == ""
        assert complaints(host, "fm-consumer@fedoras.service") == []
        service.systemctl("stop")
    finally:
        host.run("rm", packaged)
        host.run("fm-consumer", "units", "install")


def test_a_unit_edited_by_hand_is_shown_and_kept(host):
    unit = f"{SYSTEM}/fm-consumer@.service"
    host.run("sh", "-c", f"echo '# mine' >>{unit}")
    different = host.run("fm-consumer", "units", "diff", check=False)
    assert different.returncode == 1
    assert "-# mine" in different.stdout
    for verb in ("install", "uninstall"):
        assert host.run("fm-consumer", "units", verb, check=False).returncode == 1
        assert "# mine" in host.run("cat", unit).stdout
    host.run("fm-consumer", "units", "install", "--force")
    assert host.run("fm-consumer", "units", "diff").stdout == ""


def test_systemd_forgets_uninstalled_units(host):
    try:
        said = host.run("fm-consumer", "units", "uninstall").stdout
        assert "systemd has read its units again" in said
        load = host.run("systemctl", "show", "-P", "LoadState", "fm-consumers.target").stdout
        assert load == "not-found\n"
    finally:
        host.run("fm-consumer", "units", "install")


def complaints(host: Container, *units: str) -> list[str]:
    """Return the complaints of systemd-analyze verify, without those of an older systemd."""
    verified = host.run("systemd-analyze", "verify", *units, check=False)
    about_ours = [
        line
        for line in verified.stderr.splitlines()
        if "fm-consumer" in line or "fm-outbox" in line
    ]
    found = [line for line in about_ours if not any(name in line for name in NEWER)]
    return found or ([] if verified.returncode == 0 else [verified.stderr])


def test_systemd_finds_nothing_wrong_with_any_unit_or_drop_in(host):
    files = [path for path in EXAMPLES.rglob("*") if path.is_file()]
    paths = [str(path.relative_to(EXAMPLES)).replace("@NAME", "@verified") for path in files]
    for path, file in zip(paths, files, strict=True):
        host.write(f"{SYSTEM}/{path}", file.read_text())
    host.write("/usr/local/libexec/fm-consumer-report-failure", "#!/bin/sh\n", mode=0o755)
    host.run("systemctl", "daemon-reload")
    units = (
        "fm-consumer@verified.service",
        "fm-consumer-failed@verified.service",
        "fm-outbox@verified.service",
        "fm-consumers.target",
        "fm-consumer-metrics.service",
        "fm-consumer-metrics.timer",
        "fm-consumer-retention.service",
        "fm-consumer-retention.timer",
    )
    try:
        assert complaints(host, *units) == []
    finally:
        host.run("rm", "-rf", *(f"{SYSTEM}/{path}" for path in paths))
        host.run("systemctl", "daemon-reload")


def test_the_target_starts_the_enabled_ones_and_stops_them_all(make, host, queue):
    enabled, other, by_hand = make("enabled"), make("other"), make("by-hand")
    for service in (enabled, other):
        service.systemctl("enable")
    host.run("systemctl", "start", "fm-consumers.target")
    for service in (enabled, other):
        service.until(lambda: service.show("ActiveState") == "active", "the target started it")
    assert by_hand.show("ActiveState") == "inactive"
    by_hand.systemctl("start")
    before = [service.show("MainPID") for service in (enabled, other, by_hand)]
    host.run("systemctl", "restart", "fm-consumers.target")
    for service, pid in zip((enabled, other, by_hand), before, strict=True):
        service.until(
            lambda: service.show("ActiveState") == "active" and service.show("MainPID") != pid,
            "the target restarted it",
        )
    host.run("systemctl", "stop", "fm-consumers.target")
    for service in (enabled, other, by_hand):
        service.until(lambda: service.show("ActiveState") == "inactive", "the target stopped it")
        assert service.show("Result") == "success"
    for service in (enabled, other):
        service.systemctl("disable")


def test_the_timer_expires_old_messages_of_a_stopped_instance(make, host, broker, queue):
    retention = '[consumer_config.framework]\nquarantine_max_age = "1ms"'
    service = make("aged", extra=retention)
    service.systemctl("start")
    publish(broker, queue, bodies(2, poison=True))
    service.until(lambda: "2 quarantined" in service.show("StatusText"), "they are quarantined")
    host.run("systemctl", "start", "fm-consumer-retention.service")
    log = host.run("journalctl", "-u", "fm-consumer-retention", "-o", "cat").stdout
    assert "aged: runs, and looks itself every hour" in log
    service.systemctl("stop")
    host.run("systemctl", "start", "fm-consumer-retention.service")
    log = host.run("journalctl", "-u", "fm-consumer-retention", "-o", "cat").stdout
    state = "/var/lib/fedora-messaging/aged"
    assert f"aged: 2 messages expired to {state}/expired.jsonl" in log
    owners = host.run("sh", "-c", f"stat -L -c %u {state} {state}/*").stdout.split()
    assert len(set(owners)) == 1, "everything is the instance's still"
    service.systemctl("start")
    publish(broker, queue, bodies(1, poison=True))
    service.until(lambda: "1 quarantined" in service.show("StatusText"), "it works as before")
    service.systemctl("stop")
    host.run("systemctl", "start", "fm-consumer-retention.service")
    lines = host.run("cat", f"{state}/expired.jsonl").stdout.splitlines()
    assert [json.loads(line)["body"]["n"] for line in lines] == [0, 1, 0]


def test_the_metrics_of_all_instances_are_written_for_node_exporter(make, host, broker, queue):
    running, failed = make("measured"), make("broken", extra="callback = 1")
    running.systemctl("start")
    failed.systemctl("start", check=False)
    publish(broker, queue, bodies(2, poison=True))
    running.until(lambda: "2 quarantined" in running.show("StatusText"), "they are quarantined")
    start = ("systemctl", "start", "fm-consumer-metrics.service")
    directory = "/var/lib/prometheus/node-exporter"
    host.run(*start)
    assert host.run("ls", directory, check=False).returncode != 0, "nobody reads it"
    host.run("mkdir", "-p", directory)
    try:
        host.run(*start)
        text = host.run("cat", f"{directory}/fm_consumers.prom").stdout
        assert 'fm_consumer_ready{fm_instance="measured"} 1.0\n' in text
        quarantined = 'fm_consumer_store_messages{fm_instance="measured",state="quarantined"} 2.0\n'
        assert quarantined in text
        assert 'fm_consumer_watchdog_seconds{fm_instance="measured"} 30.0\n' in text
        assert 'process_resident_memory_bytes{fm_instance="measured"} ' in text
        assert 'fm_consumer_up{fm_instance="broken"} 0.0\n' in text
        mode = host.run("stat", "-c", "%a", f"{directory}/fm_consumers.prom").stdout
        assert mode == "644\n"
        running.systemctl("stop")
        host.run(*start)
        text = host.run("cat", f"{directory}/fm_consumers.prom").stdout
        assert 'fm_instance="measured"' not in text, "it is stopped and disabled"
    finally:
        host.run("rm", "-rf", "/var/lib/prometheus")


def test_the_timer_can_be_enabled(host):
    host.run("systemctl", "enable", "--now", "fm-consumer-retention.timer")
    listed = host.run("systemctl", "list-timers", "--no-legend").stdout
    assert "fm-consumer-retention.service" in listed
    host.run("systemctl", "disable", "--now", "fm-consumer-retention.timer")


@pytest.fixture
def reports(host) -> Iterator[Reports]:
    made = Reports(host)
    yield made
    made.remove()


class Reports:
    """The example that reports failures."""

    def __init__(self, host: Container) -> None:
        self.host = host
        self.paths = [
            f"{SYSTEM}/fm-consumer-failed@.service",
            f"{SYSTEM}/fm-consumer@.service.d/report-failures.conf",
            "/usr/local/libexec/fm-consumer-report-failure",
            f"{SYSTEM}/fm-consumer-failed@.service.d/command.conf",
        ]
        files = [
            EXAMPLES / "fm-consumer-failed@.service",
            EXAMPLES / "fm-consumer@NAME.service.d/report-failures.conf",
            EXAMPLES / "fm-consumer-report-failure",
        ]
        for path, file, mode in zip(self.paths, files, (0o644, 0o644, 0o755), strict=False):
            host.write(path, file.read_text(), mode=mode)
        host.run("systemctl", "daemon-reload")

    def send_to(self, command: str) -> None:
        text = f"[Service]\nEnvironment='REPORT_COMMAND={command}'\n"
        self.host.write(self.paths[-1], text)
        self.host.run("systemctl", "daemon-reload")

    def of(self, name: str) -> list[str]:
        self.host.run("journalctl", "--sync")
        unit = f"fm-consumer-failed@{name}"
        log = self.host.run("journalctl", "-u", unit, "-p", "crit", "-o", "cat", "-q").stdout
        return [line for line in log.splitlines() if " failed: " in line]

    def runs(self, name: str) -> int:
        self.host.run("journalctl", "--sync")
        unit = f"fm-consumer-failed@{name}"
        log = self.host.run("journalctl", "-u", unit, "-o", "cat", "-q").stdout
        return log.count("Finished") + log.count("Failed to start")

    def remove(self) -> None:
        self.host.run("rm", "-rf", *self.paths)
        self.host.run("systemctl", "daemon-reload")


def fail_to_start(service: Service) -> None:
    assert service.systemctl("start", check=False).returncode != 0
    service.systemctl("reset-failed")


def test_a_failure_is_reported_once_for_each_cause(make, reports):
    service = make("reported", extra="[qos]\nprefetch_cuont = 5")
    for times in (1, 2, 3):
        fail_to_start(service)
        service.until(lambda: reports.runs("reported") >= times, "it was looked at")
    assert reports.of("reported") == ["fm-consumer@reported.service failed: exited, status 78"]
    service.configure("amqp://localhost", "q", extra="[qos]\nprefetch_count = -1")
    fail_to_start(service)
    service.until(lambda: len(reports.of("reported")) == 2, "another cause is reported")
    log = service.container.run(
        "journalctl", "-u", "fm-consumer-failed@reported", "-o", "cat"
    ).stdout
    assert "qos.prefetch_cuont: unknown key" in log
    assert "See: journalctl _SYSTEMD_INVOCATION_ID=" in log


CRASHING = """
import os
os._exit(3)
"""


def test_failures_that_are_restarted_are_reported_once_too(make, host, reports):
    install_module(host, "crashing", CRASHING)
    service = make("looping", callback="crashing_consumer:nothing")
    service.systemctl("start", "--no-block")
    service.until(lambda: int(service.show("NRestarts")) >= 3, "it is restarted", 60)
    service.until(lambda: reports.runs("looping") >= 2, "each failure is looked at")
    service.systemctl("stop")
    assert reports.of("looping") == ["fm-consumer@looping.service failed: exited, status 3"]


def test_a_report_that_could_not_be_sent_is_sent_with_the_next_failure(make, host, reports):
    service = make("mailed", extra="[qos]\nprefetch_cuont = 5")
    reports.send_to("exit 1")
    fail_to_start(service)
    service.until(lambda: reports.runs("mailed") == 1, "it was looked at")
    reports.send_to("cat >/var/lib/fm-consumer-failed/mailed/mail")
    fail_to_start(service)
    mail = "/var/lib/fm-consumer-failed/mailed/mail"
    service.until(lambda: host.run("test", "-s", mail, check=False).returncode == 0, "it is sent")
    assert "fm-consumer@mailed.service failed: exited, status 78" in host.run("cat", mail).stdout


def test_a_service_that_ends_well_is_not_reported(make, reports):
    service = make("fine")
    service.systemctl("start")
    service.systemctl("stop")
    assert (reports.runs("fine"), reports.of("fine")) == (0, [])
