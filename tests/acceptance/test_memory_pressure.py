# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory pressure under a real systemd, in the sandbox of the unit."""

from __future__ import annotations

import pytest

FIFO = """[Service]
ExecStartPre=/usr/bin/mkfifo %t/fedora-messaging/%i/pressure
Environment=MEMORY_PRESSURE_WATCH=%t/fedora-messaging/%i/pressure
"""
SLOTS = "[consumer_config.framework]\nslots = 4\n"


def test_the_status_says_that_memory_is_short(make, host):
    service = make("pressed", extra=SLOTS)
    host.run("mkdir", "-p", f"/etc/systemd/system/{service.unit}.service.d")
    host.write(f"/etc/systemd/system/{service.unit}.service.d/pressure.conf", FIFO)
    host.run("systemctl", "daemon-reload")
    service.systemctl("start")
    host.run("sh", "-c", "echo x > /run/fedora-messaging/pressed/pressure")
    service.until(
        lambda: service.show("StatusText").endswith("; memory is short: 2 of 4 slots"), "half"
    )
    service.until(lambda: "memory suffices: 4 of 4 slots" in service.journal(), "the whole again")
    service.until(lambda: "memory" not in service.show("StatusText"), "nothing is short")


def test_the_memory_pressure_file_of_systemd_is_watched(make, host):
    service = make("watching")
    service.systemctl("start")
    pid = service.show("MainPID")
    environment = host.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
    named = [line for line in environment if line.startswith("MEMORY_PRESSURE_WATCH=")]
    if not named or named[0].endswith("=/dev/null"):
        pytest.skip("systemd names nothing here: it is older than 254, or the kernel has no PSI")
    opened = host.run("sh", "-c", f"ls -l /proc/{pid}/fd").stdout
    assert "memory.pressure" in opened
    assert "not watched" not in service.journal()
