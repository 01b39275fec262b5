# SPDX-License-Identifier: GPL-2.0-or-later
"""The container of the acceptance tests has a real systemd."""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from .container import CACHE, CommandFailed, Container

if TYPE_CHECKING:
    from pathlib import Path

NOTIFYING_SCRIPT = """\
#!/usr/bin/python3
import os, signal, socket
address = os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1\\nSTATUS=listening", address)
signal.pause()
"""
TEMPLATE_UNIT = """\
[Service]
Type=notify
DynamicUser=yes
User=fm-%i
StateDirectory=fixture-test/%i
ExecStart=/usr/local/bin/notifying-script
"""
SYSTEMD_OF_SUITE = {"bookworm": 252, "trixie": 257}
# User names have at most 31 characters (systemd.exec(5), useradd(8)), and "fm-" takes three.
LONGEST_INSTANCE_NAME = 31 - len("fm-")


@pytest.fixture(scope="module")
def template(container: Container) -> str:
    """Return a format string that makes a unit name of an instance name."""
    container.write("/usr/local/bin/notifying-script", NOTIFYING_SCRIPT, mode=0o755)
    container.write("/etc/systemd/system/fixture-test@.service", TEMPLATE_UNIT)
    container.run("systemctl", "daemon-reload")
    return "fixture-test@{}.service"


def show(container: Container, unit: str, name: str) -> str:
    return container.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


def test_pid_1_is_the_systemd_of_the_suite(container: Container, acceptance_root: Path):
    suite = acceptance_root.name.partition("-")[0]
    version = int(container.run("systemctl", "--version").stdout.split()[1])
    assert container.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert version == SYSTEMD_OF_SUITE.get(suite, version)
    assert version >= 252


def test_systemd_has_started_all_its_units(container: Container):
    failed = container.run("systemctl", "--failed", "--no-legend").stdout
    assert failed == ""


def test_a_service_is_active_once_it_has_notified(container: Container, template: str):
    unit = template.format("notifies")
    container.run("systemctl", "start", unit)
    assert show(container, unit, "ActiveState") == "active"
    assert show(container, unit, "StatusText") == "listening"


def test_a_service_that_never_notifies_does_not_become_active(container: Container):
    silent = "[Service]\nType=notify\nTimeoutStartSec=200ms\nExecStart=/usr/bin/sleep 60\n"
    container.write("/run/systemd/system/silent.service", silent)
    container.run("systemctl", "daemon-reload")
    with pytest.raises(CommandFailed):
        container.run("systemctl", "start", "silent.service")
    assert show(container, "silent.service", "Result") == "timeout"


def test_each_instance_runs_as_a_user_of_its_own(container: Container, template: str):
    units = [template.format("first"), template.format("second")]
    container.run("systemctl", "start", *units)
    users = {show(container, unit, "UID") for unit in units}
    assert len(users) == 2
    assert "0" not in users


@pytest.mark.parametrize(
    "name", ["a", "with-dash", "With_Underscore", "0", "x" * LONGEST_INSTANCE_NAME]
)
def test_an_instance_name_that_makes_a_user_name_starts(
    container: Container, template: str, name: str
):
    container.run("systemctl", "start", template.format(name))


@pytest.mark.parametrize(
    "name",
    ["with.dot", "with:colon", "with@at", r"with\x20space", "ä", "x" * (LONGEST_INSTANCE_NAME + 1)],
)
def test_an_instance_name_that_makes_no_user_name_fails(
    container: Container, template: str, name: str
):
    with pytest.raises(CommandFailed):
        container.run("systemctl", "start", template.format(name))


def test_the_container_reaches_services_on_the_hosts_loopback(container: Container):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(10)
        port = server.getsockname()[1]
        client = f"import socket; socket.create_connection(('localhost', {port}), 10).send(b'x')"
        caller = threading.Thread(target=container.run, args=("python3", "-c", client))
        caller.start()
        with closing(server.accept()[0]) as connection:
            assert connection.recv(1) == b"x"
        caller.join()


def test_the_product_is_installed_and_cannot_be_written_to(
    container: Container, acceptance_venv: Path
):
    command = container.run("readlink", "--canonicalize-existing", "/usr/bin/fm-consumer").stdout
    assert command.strip() == f"{acceptance_venv}/bin/fm-consumer"
    python = f"{acceptance_venv}/bin/python"
    container.run(python, "-c", "import consumer_framework, fedora_messaging, twisted, pika")
    with pytest.raises(CommandFailed, match="Read-only file system"):
        container.run("touch", f"{acceptance_venv}/touched")


def test_containers_start_pristine_and_can_run_side_by_side(
    container: Container, acceptance_root: Path
):
    container.write("/etc/only-here", "text")
    with Container(acceptance_root) as other:
        assert other.run("systemctl", "is-system-running").stdout == "running\n"
        with pytest.raises(CommandFailed, match="No such file"):
            other.run("cat", "/etc/only-here")
    assert not (acceptance_root / "etc/only-here").exists()
    assert container.run("cat", "/etc/only-here").stdout == "text"


def test_files_written_before_boot_are_there_when_systemd_starts(acceptance_root: Path):
    unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n"
    with Container(acceptance_root, boot=False) as container:
        container.write(
            "/etc/systemd/system/early.service", f"{unit}[Install]\nWantedBy=basic.target"
        )
        container.run("systemctl", "enable", "early.service")
        container.boot()
        assert show(container, "early.service", "ActiveState") == "active"


def test_a_stopped_container_leaves_nothing_behind(acceptance_root: Path):
    with Container(acceptance_root) as container:
        assert container.name in traces_on_the_host()
    container.stop()
    assert container.name not in traces_on_the_host()


def traces_on_the_host() -> str:
    directories = ("/sys/fs/cgroup", "/run/systemd/nspawn", str(CACHE / "run"))
    commands = (("ps", "-eo", "args"), ("find", *directories), ("cat", "/proc/self/mountinfo"))
    # Not checked: other tests' processes and cgroups come and go while find walks.
    return "".join(
        subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for command in commands
    )


def test_a_command_that_runs_too_long_is_killed_in_the_container_too(container: Container):
    with pytest.raises(subprocess.TimeoutExpired):
        container.run("sleep", "4711", timeout=0.5)
    assert "sleep 4711" not in container.run("ps", "-eo", "args").stdout


def test_a_failure_shows_the_output_of_the_command(container: Container):
    with pytest.raises(CommandFailed, match="cannot access '/nowhere'"):
        container.run("ls", "/nowhere")
