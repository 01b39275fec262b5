# SPDX-License-Identifier: GPL-2.0-or-later
"""A reload knows which credentials, and which copy of the file, it cannot read again."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from consumer_framework.adapters import config
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.runtime import reload
from consumer_framework.runtime.assembly import access
from consumer_framework.runtime.control.routes import Call, read_call
from consumer_framework.runtime.control.schema import (
    FileText,
    ProtocolError,
    Reload,
)
from consumer_framework.runtime.reload import CredentialSnapshot, file_given


@dataclass
class Host:
    """A configuration file, and a credentials directory."""

    file: Path
    directory: Path

    def write(self, text: str, *, at: int = 0, copy: str | None = None) -> None:
        self.file.write_text(text)
        os.utime(self.file, (at, at))
        (self.directory / "fm-consumer.toml").write_text(text if copy is None else copy)
        os.utime(self.directory / "fm-consumer.toml", (100, 100))

    def give(self, name: str, text: str, at: int) -> None:
        (self.directory / name).write_text(text)
        os.utime(self.directory / name, (at, at))


@pytest.fixture
def host(tmp_path, monkeypatch) -> Host:
    made = Host(tmp_path / "sample.toml", tmp_path / "credentials")
    made.directory.mkdir()
    monkeypatch.setattr(access, "CONFIGURATION_DIRECTORY", tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(made.directory))
    return made


@pytest.fixture
def closed(host, monkeypatch) -> Any:
    """As for a user who may not read the file; root, who may run this, may read every file."""
    read, may = Path.read_bytes, os.access

    def read_bytes(path: Path) -> bytes:
        if path == host.file:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "access", lambda path, mode: path != host.file and may(path, mode))
    return host


def test_the_copy_is_read_where_the_file_may_not_be(closed):
    closed.write("topic_prefix = 'file'", copy="topic_prefix = 'copy'")
    way = access.from_inside(closed.file, "sample")
    assert config.read(closed.file, way) == {"topic_prefix": "copy"}


def test_the_file_itself_is_read_where_it_may_be(host):
    host.write("topic_prefix = 'file'", copy="topic_prefix = 'copy'")
    way = access.from_inside(host.file, "sample")
    assert config.read(host.file, way) == {"topic_prefix": "file"}


@pytest.mark.parametrize("name", ["other.toml", "sub/sample.toml"])
def test_the_copy_stands_for_the_instances_own_file_alone(closed, name):
    closed.write("")
    path = closed.file.parent / name
    assert access.from_inside(path, "sample").handed_over is None
    assert access.from_inside(None, "sample").handed_over is None


def test_the_problem_of_a_file_that_is_not_loaded_shows_the_loadcredential_line(closed):
    closed.write("")
    (closed.directory / "fm-consumer.toml").unlink()
    with pytest.raises(ConfigurationError) as caught:
        config.load(closed.file, access=access.from_inside(closed.file, "sample"))
    assert f"LoadCredential=fm-consumer.toml:{closed.file}" in str(caught.value)


def test_a_reload_of_a_readable_file_without_credentials_has_nothing_to_say(host):
    host.write("", at=50)
    before = CredentialSnapshot.take(host.file, "sample")
    before.refuse_stale_copy()
    host.write("", at=200)
    CredentialSnapshot.take(host.file, "sample").refuse_stale_copy()
    assert before.notes_of_unchanged(CredentialSnapshot.take(host.file, "sample")) == ()
    nothing = CredentialSnapshot.take(None, "sample")
    assert nothing.notes_of_unchanged(nothing) == ()


def test_a_closed_file_that_was_changed_since_the_start_is_refused(closed):
    closed.write("", at=50)
    CredentialSnapshot.take(closed.file, "sample").refuse_stale_copy()
    os.utime(closed.file, (200, 200))
    with pytest.raises(ConfigurationError, match="cannot be read again: only root may") as caught:
        CredentialSnapshot.take(closed.file, "sample").refuse_stale_copy()
    assert "run 'fm-consumer reload' as root" in str(caught.value)
    # systemd 260 makes a new copy for a reload.
    os.utime(closed.directory / "fm-consumer.toml", (300, 300))
    CredentialSnapshot.take(closed.file, "sample").refuse_stale_copy()
    closed.file.unlink()
    with pytest.raises(ConfigurationError):
        CredentialSnapshot.take(closed.file, "sample").refuse_stale_copy()


def request_of(file, text):
    return Reload(FileText(str(file), text))


def test_a_closed_file_comes_with_roots_order_to_reload(closed):
    closed.write("topic_prefix = 'file'", at=200, copy="topic_prefix = 'copy'")
    given = file_given(request_of(closed.file, "topic_prefix = 'root'"), closed.file)
    way = replace(access.from_inside(closed.file, "sample"), given=given)
    assert config.examine(closed.file, access=way).settings.topic_prefix == "root"


@pytest.mark.parametrize(
    "request_",
    [
        Reload(),
        Reload(FileText("/etc/other.toml", "")),
    ],
)
def test_an_order_without_the_file_or_with_another_one_brings_nothing(closed, request_):
    closed.write("")
    assert file_given(request_, closed.file) is None
    assert file_given(request_of(closed.file, ""), None) is None


def test_a_request_with_an_invalid_file_is_refused():
    with pytest.raises(ProtocolError, match="POST /v1/reload: file"):
        read_call(Call("POST", "/v1/reload", b'{"file": "x"}'))


def test_a_file_that_the_instance_may_read_is_read_by_itself(host):
    host.write("")
    assert file_given(request_of(host.file, "topic_prefix = 'root'"), host.file) is None


def test_credentials_that_systemd_did_not_make_anew_are_named(host):
    host.write('topic_prefix = "credential:b"\n[tls]\nca_cert = "credential:a"\n', at=50)
    host.give("a", "A", 100)
    host.give("fm-consumer.sample.b", "B", 100)
    before = CredentialSnapshot.take(host.file, "sample")
    (line,) = before.notes_of_unchanged(CredentialSnapshot.take(host.file, "sample"))
    assert line.startswith("these credentials are as they were: a, b; if not, restart the instance")
    host.give("a", "A2", 200)
    (line,) = before.notes_of_unchanged(CredentialSnapshot.take(host.file, "sample"))
    assert line.startswith("these credentials are as they were: b; ")


def test_missing_credentials_and_files_are_left_to_other_checks(host):
    host.write('topic_prefix = "credential:gone"')
    before = CredentialSnapshot.take(host.file, "sample")
    assert before.notes_of_unchanged(CredentialSnapshot.take(host.file, "sample")) == ()
    host.file.write_text("not TOML")
    assert before.notes_of_unchanged(CredentialSnapshot.take(host.file, "sample")) == ()


# The view of an administrator.


def test_an_administrator_with_a_directory_uses_it(host):
    host.give("token", "T", 100)
    host.write('topic_prefix = "credential:token"')
    assert access.load_outside(host.file).topic_prefix == "T"


def test_an_administrator_without_one_looks_at_the_unit_as_it_is_shipped(host, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.setenv("PATH", "")
    handed = access.settings_of("sample")
    assert handed.files == {"fm-consumer.toml": str(host.file)}
    assert handed.imports == ("fm-consumer.sample.*",)
    assert access.hands_file_over("sample")
    host.write('topic_prefix = "credential:token"')
    with pytest.raises(ConfigurationError, match="is given to this service by nothing"):
        access.load_outside(host.file)


def test_credentials_of_the_service_do_not_prevent_others_from_reading_the_file(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = tmp_path / "mine.toml"
    path.write_text(
        'amqp_url = "credential:url"\n[tls]\nkeyfile = "credential:key"\n'
        "[consumer_config.framework]\nslots = 3\n"
    )
    settings = access.load_outside(path)
    assert settings.framework.slots == 3
    path.write_text('[consumer_config.framework]\nslots = "credential:slots"\n')
    with pytest.raises(ConfigurationError, match="cannot be checked here"):
        access.load_outside(path)


def test_a_path_that_cannot_be_read_counts_as_changed_late(tmp_path):
    assert reload._changed_at(tmp_path / "none") > 1 << 62
