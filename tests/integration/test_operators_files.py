# SPDX-License-Identifier: GPL-2.0-or-later
"""The files for other programs of operators: polkit asks for no password, sos hides secrets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import pytest

from .instance import until
from .private_root import PATIENCE, PrivateRoot, missing, skip_unless_in_ci

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "packaging/polkit/60-consumer-framework.rules"
PLUGIN = ROOT / "packaging/sos/fm_consumer.py"
POLKITD = next(
    filter(os.path.exists, ("/usr/lib/polkit-1/polkitd", "/usr/libexec/polkit-1/polkitd")), None
)
UNITS = "org.freedesktop.systemd1.manage-units"
# An operator, and somebody else.
OPERATOR, STRANGER = 59_001, 59_002

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
  </policy>
</busconfig>
"""


class Polkit:
    """A polkitd with our rules, on a bus of its own.

    Args:
        root: Has the rules and the users.
        place: An empty directory that polkitd's user may read.
    """

    def __init__(self, root: PrivateRoot, place: Path) -> None:
        self._root = root
        self._socket, self._bus = place / "bus", place / "bus.conf"
        self._bus.write_text(BUS.format(socket=self._socket))
        self._environment = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self._socket}"}
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._start("dbus-daemon", "--nofork", "--nopidfile", f"--config-file={self._bus}")
            until(self._socket.exists, "the bus listens")
            self._start(POLKITD, "--no-debug")
            # Root may do everything; nobody may while polkitd does not answer.
            until(lambda: self.allows(0, "start", "any.service"), "polkitd answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._started):
            process.terminate()
            process.wait(PATIENCE)

    def _start(self, *command: object) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = self._root.start(*command, environment=self._environment, **quiet)
        self._started.append(started)

    def allows(self, user: int, verb: str, unit: str, action: str = UNITS) -> bool:
        """Ask polkit as systemd does, for a process of *user*."""
        subject = self._root.start(
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "cat"),
            stdin=subprocess.PIPE,
        )
        try:
            until(lambda: f"\nUid:\t{user}\t" in status_of(subject.pid), "the process has its user")
            details = ("--detail", "verb", verb, "--detail", "unit", unit)
            asked = ("pkcheck", "--action-id", action, "--process", subject.pid, *details)
            return self._root.run(*asked, environment=self._environment).returncode == 0
        finally:
            subject.communicate(timeout=PATIENCE)


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


@pytest.fixture(scope="module")
def polkit(tmp_path_factory):
    skip_unless_in_ci(missing())
    if not (POLKITD and shutil.which("pkcheck") and shutil.which("dbus-daemon")):
        skip_unless_in_ci("polkit is not installed: packaging/system-packages page")
    root = PrivateRoot(tmp_path_factory.mktemp("polkit"), "/etc", "/usr/share/polkit-1")
    passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
    for name, number in (("operator", OPERATOR), ("stranger", STRANGER)):
        passwd += f"{name}:x:{number}:{number}::/:/bin/sh\n"
        group += f"{name}:x:{number}:\n"
    root.write("/etc/passwd", passwd)
    root.write("/etc/group", group + "fm-operators:x:59000:operator\n")
    with root, tempfile.TemporaryDirectory() as public:
        Path(public).chmod(0o755)
        # The directory keeps its owner, polkitd's user.
        root.run("cp", RULES, "/usr/share/polkit-1/rules.d/")
        with Polkit(root, Path(public)) as running:
            yield running


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "reload", "reload-or-restart"])
@pytest.mark.parametrize(
    "unit", ["fm-consumer@builds_2.service", "fm-outbox@web.service", "fm-consumers.target"]
)
def test_an_operator_may_manage_instances_and_relays_without_a_password(polkit, verb, unit):
    assert polkit.allows(OPERATOR, verb, unit)


@pytest.mark.parametrize(
    ("user", "verb", "unit"),
    [
        (STRANGER, "start", "fm-consumer@builds.service"),
        (OPERATOR, "kill", "fm-consumer@builds.service"),
        (OPERATOR, "set-property", "fm-consumer@builds.service"),
        (OPERATOR, "restart", "sshd.service"),
        (OPERATOR, "restart", "fm-consumer@a.b.service"),
        (OPERATOR, "restart", "fm-consumer@.service"),
        (OPERATOR, "restart", "evil-fm-consumer@a.service"),
        (OPERATOR, "restart", "fm-consumer@a.service\nsshd.service"),
    ],
)
def test_nobody_gets_another_right(polkit, user, verb, unit):
    assert not polkit.allows(user, verb, unit)


def test_an_operator_may_not_enable_a_unit(polkit):
    unit = "fm-consumer@builds.service"
    assert not polkit.allows(OPERATOR, "start", unit, "org.freedesktop.systemd1.manage-unit-files")


SECRETS = ("hunter2", "p%40ss", "open-sesame", "d41d8cd9", "tiger", "wolf", "fox-17", "scheduled")
CONFIGURATION = """
amqp_url = "amqps://user:hunter2@broker.example/%2F"
callback = "sample:Handler"
[tls]
keyfile = "/etc/pki/sample.key"
[consumer_config]
api = "open-sesame"
hosts = ["d41d8cd9"]
limit = 5
[consumer_config.login]
password = 1234567
[[consumer_config.servers]]
how = "tiger"
[consumer_config.framework]
retry_delay = "5s"
[consumer_config.framework.outbox]
url = "postgresql://me:p%40ss@database/outbox?password=wolf"
[log_config.handlers.mail]
credentials = ["me", "fox-17"]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """Let sos collect the facts about an instance."""
    skip_unless_in_ci(missing())
    if not (sos := shutil.which("sos")):
        skip_unless_in_ci("sos is not installed: packaging/system-packages page")
    place = tmp_path_factory.mktemp("sos")
    module = "import sos.report.plugins as p; print(p.__path__[0])"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", module], capture_output=True, text=True, check=True
    )
    plugins = done.stdout.strip()
    replaced = ("/etc/fedora-messaging", "/var/lib/fedora-messaging")
    root = PrivateRoot(place, "/etc", "/usr/local", "/var/lib", plugins, replaced=replaced)
    root.write(f"{plugins}/fm_consumer.py", PLUGIN)
    root.write("/etc/fedora-messaging/sample.toml", CONFIGURATION)
    root.write("/etc/fedora-messaging/broken.toml", 'amqp_url = "amqp://a:scheduled@b"\n]')
    command = Path(sys.executable).with_name("fm-consumer")
    root.write("/usr/local/bin/fm-consumer", f'#!/bin/sh\nexec {command} "$@"\n', 0o755)
    with root:
        only = ("--batch", "--build", "--only-plugins", "fm_consumer", "--tmp-dir", place)
        done = root.run(sos, "report", *only, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[Path] = list(place.glob("sosreport-*"))
    return found[0]


def test_sos_collects_the_state_of_instances(bundle):
    [status] = bundle.glob("sos_commands/fm_consumer/fm-consumer_status*")
    assert '"sample"' in status.read_text()
    assert list(bundle.glob("sos_commands/fm_consumer/fm-consumer_quarantine_list_sample*"))
    assert list(bundle.glob("sos_commands/fm_consumer/journalctl*"))


def test_sos_collects_the_configuration_without_secrets(bundle):
    [file] = bundle.glob("sos_strings/fm_consumer/sample.json")
    configuration = json.loads(file.read_text())
    assert configuration["amqp_url"] == "amqps://<hidden>@broker.example/%2F"
    assert configuration["tls"] == {"keyfile": "/etc/pki/sample.key"}
    assert configuration["consumer_config"]["framework"]["retry_delay"] == "5s"
    assert configuration["consumer_config"]["login"] == {"password": "<hidden>"}
    assert configuration["consumer_config"]["limit"] == 5
    [broken] = bundle.glob("sos_strings/fm_consumer/broken.json")
    assert "no TOML" in broken.read_text()


def test_no_secret_is_anywhere_in_the_bundle_of_sos(bundle):
    texts = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert texts
    leaks = [(s, p) for s in (*SECRETS, "1234567") for p, t in texts.items() if s.encode() in t]
    assert leaks == []


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 0), (78, 1)])
def test_performance_co_pilot_gets_metrics_though_an_instance_does_not_answer(tmp_path, code, told):
    program = tmp_path / "fm-consumer"
    program.write_text(f'#!/bin/sh\necho "$1 are here"\nexit {code}\n')
    program.chmod(0o755)
    done = subprocess.run(
        [ROOT / "packaging/monitoring/pcp-fm-consumer.sh"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (told, "metrics are here\n")
