# SPDX-License-Identifier: GPL-2.0-or-later
"""Files, directories and accounts, as a check before the start sees them."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import sqlite3
import tempfile
from collections import namedtuple
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consumer_framework.adapters.certificates import ends_of
from consumer_framework.adapters.systemd.accounts import Account, service_account
from consumer_framework.core.errors import ExitCode
from consumer_framework.operate.check import files
from consumer_framework.operate.check.files import (
    file_findings,
    filesystem_of,
    nearest,
    password_findings,
    state_findings,
    tls_findings,
)
from consumer_framework.operate.check.findings import Level
from consumer_framework.operate.check.start import monitoring_findings
from consumer_framework.settings import Monitoring, Settings

DYNAMIC = Account("fm-sample", None, frozenset())
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def public():
    """A directory that everybody may enter, as those of pytest are not."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def file(directory: Path, mode: int = 0o644, name: str = "sample.toml") -> Path:
    path = directory / name
    path.write_text("")
    path.chmod(mode)
    return path


# Accounts.


@pytest.mark.parametrize(
    ("mode", "account", "readable"),
    [
        (0o644, DYNAMIC, True),
        (0o640, DYNAMIC, False),
        (0o640, Account("fm-sample", None, frozenset({os.getgid()})), True),
        (0o604, Account("fm-sample", None, frozenset({os.getgid()})), False),
        (0o400, Account("owner", os.getuid() or 1, frozenset()), os.getuid() != 0),
        (0o000, Account("root", 0, frozenset()), True),
    ],
)
def test_an_account_may_read_a_file_by_its_owner_and_mode(public, mode, account, readable):
    path = file(public, mode)
    assert account.obstacle(path) == (None if readable else path)


def test_the_owner_reads_by_the_bits_of_the_owner(public):
    path = file(public, 0o044)
    os.chown(path, os.getuid(), os.getgid())
    owner = Account("owner", os.getuid() or None, frozenset())
    assert owner.obstacle(path) == (path if os.getuid() else None)


def test_a_directory_above_may_keep_an_account_out(public):
    closed = public / "closed"
    closed.mkdir(mode=0o700)
    path = file(closed)
    assert DYNAMIC.obstacle(path) == closed
    link = public / "link.toml"
    link.symlink_to(path)
    assert DYNAMIC.obstacle(link) == closed


def test_a_path_that_cannot_be_read_is_no_obstacle(public):
    assert DYNAMIC.obstacle(public / "missing") is None


def systemctl(directory: Path, monkeypatch: Any, said: str) -> None:
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("said", "account"),
    [
        ("LoadState=not-found", Account("fm-x", None, frozenset())),
        ("", Account("fm-x", None, frozenset())),
        (
            "LoadState=loaded\nUser=fm-x\nDynamicUser=yes\nSupplementaryGroups=root 1234 no.such",
            Account("fm-x", None, frozenset({0, 1234})),
        ),
        (
            "LoadState=loaded\nUser=no.such\nDynamicUser=no",
            Account("no.such", None, frozenset()),
        ),
    ],
)
def test_systemd_is_asked_for_the_account_of_the_service(tmp_path, monkeypatch, said, account):
    systemctl(tmp_path, monkeypatch, said)
    assert service_account("fm-consumer@x.service", "fm-x") == account


@pytest.mark.parametrize("user", ["", "root", "0"])
def test_a_fixed_user_has_its_own_groups(tmp_path, monkeypatch, user):
    systemctl(tmp_path, monkeypatch, f"LoadState=loaded\nUser={user}\nDynamicUser=no\nGroup=4321")
    account = service_account("fm-consumer@x.service", "fm-x")
    assert (account.name, account.uid) == ("root", 0)
    assert {pwd.getpwuid(0).pw_gid, 4321} <= account.gids


def test_without_systemd_the_unit_is_taken_as_it_is_shipped(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert service_account("fm-consumer@x.service", "fm-x") == Account("fm-x", None, frozenset())


# The configuration file.


def test_a_file_that_the_service_may_read_is_fine(public, monkeypatch):
    monkeypatch.setattr("consumer_framework.operate.units.HIDDEN", ())
    assert list(file_findings(file(public), DYNAMIC)) == []


def test_a_file_that_the_service_may_not_read_is_an_error_with_the_command(public, monkeypatch):
    monkeypatch.setattr("consumer_framework.operate.units.HIDDEN", ())
    path = file(public, 0o600)
    (finding,) = file_findings(path, DYNAMIC)
    assert (finding.level, finding.exit_code) == (Level.ERROR, ExitCode.CONFIGURATION)
    assert str(finding.problem) == (f"is closed to the service's user fm-sample; chmod o+r {path}")
    public.chmod(0o700)
    (finding,) = file_findings(path, DYNAMIC)
    assert f"by the mode of {public}; chmod o+x {public}" in str(finding.problem)


def test_a_file_that_systemd_hands_over_may_be_closed_to_the_service(public, monkeypatch):
    monkeypatch.setattr("consumer_framework.operate.units.HIDDEN", ())
    path = file(public, 0o600)
    (finding,) = file_findings(path, DYNAMIC, lambda: True)
    assert finding.level is Level.INFO
    assert str(finding.problem) == (
        "is closed to the service's user fm-sample: systemd gives it a copy; "
        "after a change, run 'fm-consumer reload' as root, or restart the instance"
    )
    path.chmod(0o644)
    assert list(file_findings(path, DYNAMIC, lambda: True)) == []


def test_a_file_in_a_directory_that_the_unit_hides_is_warned_of(public, monkeypatch):
    monkeypatch.setattr("consumer_framework.operate.units.HIDDEN", (public,))
    (finding,) = file_findings(file(public), DYNAMIC)
    assert finding.level is Level.WARNING
    assert f"is below {public}, which the unit hides" in finding.problem.message


def test_no_service_reads_a_file_that_is_run_by_hand(public):
    assert list(file_findings(file(public, 0o600), None)) == []
    assert list(file_findings(public / "missing", DYNAMIC)) == []


@pytest.mark.parametrize(
    ("url", "mode", "cure"),
    [
        ("amqp://user:secret@host/", 0o644, "chmod 600 "),
        ("amqp://user:secret@host/", 0o640, None),
        ("amqp://guest:guest@host/", 0o644, None),
        ("amqp://user@host/", 0o644, None),
        ("amqps://", 0o644, None),
    ],
)
def test_a_password_that_all_users_can_read_is_warned_of(public, url, mode, cure):
    found = list(password_findings(url, file(public, mode)))
    assert [f.level for f in found] == ([Level.WARNING] if cure else [])
    assert all(cure in f.problem.cure and "secret" not in str(f.problem) for f in found)


# TLS.


def pem(directory: Path, name: str, *days: float) -> Path:
    """A file of certificates that end so many days from now."""
    path = directory / name
    path.write_bytes(b"".join(certificate(NOW + timedelta(days=each)) for each in days))
    return path


def certificate(end: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "name")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1000))
        .not_valid_after(end)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def tls(account: Account | None = None, url: str = "amqps://host/", **files: Path) -> list[Any]:
    names = {key: str(path) for key, path in files.items()}
    made = Settings.model_validate({"amqp_url": url, "queues": {}, "bindings": [], "tls": names})
    return list(tls_findings(made, account, NOW))


def test_the_ends_of_certificates_are_read_in_their_order(tmp_path):
    path = pem(tmp_path, "two.pem", 5, 3)
    assert [(end - NOW).days for end in ends_of(path)] == [5, 3]
    assert ends_of(tmp_path / "missing") == []
    assert ends_of(file(tmp_path)) == []


@pytest.mark.parametrize(
    ("days", "level", "what"),
    [
        ([365], None, ""),
        ([31], None, ""),
        ([365, -3], None, ""),
        ([12, 3], Level.WARNING, "ends on 2026-12-04, in 12 days"),
        ([-3], Level.ERROR, "ended on 2026-11-19"),
        ([0], Level.ERROR, "ended on 2026-11-22"),
    ],
)
def test_a_bundle_ends_with_its_last_certificate(tmp_path, days, level, what):
    found = tls(ca_cert=pem(tmp_path, "ca.pem", *days))
    assert [f.level for f in found] == ([level] if level else [])
    assert all(what in f.problem.message and f.problem.path == "tls.ca_cert" for f in found)
    assert all(f.exit_code == ExitCode.CONNECTION for f in found if f.level is Level.ERROR)


def test_a_clients_certificate_ends_with_the_first_of_its_chain(tmp_path):
    (finding,) = tls(certfile=pem(tmp_path, "c.pem", 365, 5), keyfile=file(tmp_path))
    assert finding.problem.path == "tls.certfile"
    assert finding.level is Level.WARNING


@pytest.mark.parametrize(("there", "missing"), [("certfile", "keyfile"), ("keyfile", "certfile")])
def test_half_a_pair_is_warned_of(tmp_path, there, missing):
    files: dict[str, Any] = {there: pem(tmp_path, "c.pem", 365)}
    (finding,) = tls(**files)
    assert finding.problem.path == f"tls.{there}"
    assert f"no effect without {missing}" in finding.problem.message


def test_tls_files_without_tls_are_reported(tmp_path):
    (finding,) = tls(url="amqp://host/", ca_cert=pem(tmp_path, "ca.pem", -3))
    assert finding.level is Level.INFO
    assert tls(url="amqp://host/") == []


def test_a_key_that_the_service_may_not_read_is_an_error(public, monkeypatch):
    monkeypatch.setattr("consumer_framework.operate.units.HIDDEN", ())
    key = file(public, 0o600, "key.pem")
    (finding,) = tls(DYNAMIC, certfile=pem(public, "c.pem", 365), keyfile=key)
    assert finding.problem.path == "tls.keyfile"
    assert finding.problem.message.startswith(f"{key} is closed to the service's user fm-sample")
    assert f"LoadCredential=key.pem:{key} with systemctl edit" in finding.problem.cure


def test_a_key_that_is_a_credential_may_be_closed_to_the_service(public, monkeypatch):
    monkeypatch.setattr("consumer_framework.operate.units.HIDDEN", ())
    files = {"certfile": pem(public, "c.pem", 365), "keyfile": file(public, 0o600, "key.pem")}
    names = {key: str(path) for key, path in files.items()}
    made = Settings.model_validate(
        {"amqp_url": "amqps://host/", "queues": {}, "bindings": [], "tls": names}
    )
    assert list(tls_findings(made, DYNAMIC, NOW, {"tls.keyfile"})) == []


# The state directory.

MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /srv rw - tmpfs tmpfs rw
23 21 0:21 / /with\040space rw master:2 - nfs4 host:/x rw
24 22 0:22 / /srv rw - xfs /dev/sdb rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "ext4"), ("/var/x", "ext4"), ("/srv/none/such", "xfs"), ("/with space", "ext4")],
)
def test_the_filesystem_is_that_of_the_nearest_mount(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert filesystem_of(Path(path), mounts) == kind


def test_an_escaped_mount_point_is_understood(tmp_path):
    mounts = tmp_path / "mountinfo"
    spaced = tmp_path / "with space"
    spaced.mkdir()
    escaped = str(spaced).replace(" ", r"\040")
    mounts.write_text(f"{MOUNTS}\n25 21 0:23 / {escaped} rw - cifs //host/x rw")
    assert filesystem_of(spaced / "deep", mounts) == "cifs"


def test_an_unknown_filesystem_has_no_name(tmp_path):
    assert filesystem_of(tmp_path, tmp_path / "missing") == ""
    (tmp_path / "mountinfo").write_text("")
    assert filesystem_of(tmp_path, tmp_path / "mountinfo") == ""
    assert filesystem_of(tmp_path) != ""
    assert nearest(tmp_path / "a" / "b") == tmp_path


def on(kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "filesystem_of", lambda _path: kind)


@pytest.mark.parametrize(
    ("kind", "level", "what"),
    [
        ("ext4", None, ""),
        ("", None, ""),
        ("tmpfs", Level.WARNING, "is in memory (tmpfs)"),
        ("nfs4", Level.WARNING, "is on another machine (nfs4)"),
        ("overlay", Level.INFO, "is lost with the container"),
    ],
)
def test_a_filesystem_that_loses_data_is_warned_of(tmp_path, monkeypatch, kind, level, what):
    on(kind, monkeypatch)
    found = list(state_findings(tmp_path / "state", made=False))
    assert [f.level for f in found] == ([level] if level else [])
    assert all(what in f.problem.message for f in found)
    assert all(f.problem.source == str(tmp_path / "state") for f in found)


def test_a_state_directory_that_is_a_file_is_an_error(tmp_path):
    (finding,) = state_findings(file(tmp_path) / "state", made=False)
    assert (finding.level, finding.exit_code) == (Level.ERROR, 78)
    assert "sample.toml is no directory" in finding.problem.message


@pytest.mark.parametrize(("made", "errors"), [(False, 1), (True, 0)])
def test_a_state_directory_that_cannot_be_written_is_an_error_unless_systemd_makes_it(
    tmp_path, monkeypatch, made, errors
):
    on("ext4", monkeypatch)
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = list(state_findings(tmp_path, made=made))
    assert len(found) == errors
    assert all("Permission denied" in f.problem.message for f in found)


def test_a_disk_that_is_nearly_full_is_warned_of(tmp_path, monkeypatch):
    on("ext4", monkeypatch)
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 -- as shutil's own
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 30, 1 << 30, 5 << 20))
    (finding,) = state_findings(tmp_path, made=False)
    assert "has 5 MiB left" in finding.problem.message


# Logging.


def test_a_read_only_filesystem_is_called_so(tmp_path, monkeypatch):
    class Mounted:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda path: Mounted)
    for made in (True, False):
        first = next(iter(state_findings(tmp_path, made=made)))
        assert first.level is Level.ERROR
        assert "Read-only file system" in first.problem.message


def other_database(directory):
    with closing(sqlite3.connect(directory / "store.sqlite3")) as database:
        database.execute("CREATE TABLE other (id)")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda d: (d / "flight").mkdir(), "is a directory, and must be a file; move it away"),
        (lambda d: (d / "store.sqlite3").write_text("none" * 1000), "file is not a database"),
        (other_database, "a database, but no store; move the file away"),
    ],
    ids=["flight", "garbage", "other"],
)
def test_state_that_a_start_cannot_use_is_an_error(tmp_path, make, what):
    assert list(state_findings(tmp_path, made=True)) == []
    make(tmp_path)
    (finding,) = state_findings(tmp_path, made=True)
    assert finding.level is Level.ERROR
    assert what in str(finding.problem)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 -- it is the case
def test_a_monitoring_port_that_another_process_has_is_a_warning(tmp_path, address):
    with socket.create_server((address, 0)) as busy:
        port = busy.getsockname()[1]
        monitoring = Monitoring(address=address, port=port)
        (finding,) = monitoring_findings(monitoring, tmp_path)
        assert finding.level is Level.WARNING
        assert finding.problem.path == "monitoring.port"
        assert "Address already in use" in finding.problem.message
    assert list(monitoring_findings(monitoring, tmp_path)) == []
    assert list(monitoring_findings(None, tmp_path)) == []


def test_a_worker_without_a_port_of_its_own_is_a_warning(tmp_path):
    monitoring = Monitoring(address="127.0.0.1", port=65535)
    (finding,) = monitoring_findings(monitoring, tmp_path, worker=2)
    assert "65536" in finding.problem.message


def test_a_monitoring_port_without_an_address_is_told_to_be_the_hosts_own(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    (finding,) = monitoring_findings(Monitoring(port=port), tmp_path)
    assert finding.level is Level.INFO
    assert finding.problem.path == "monitoring.address"
    assert "every address of the host" in finding.problem.cure
