# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of a user who may not look into a directory name it, and print no traceback."""

import os
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from consumer_framework.cli import options
from consumer_framework.cli.explain import explain
from consumer_framework.cli.options import may_exist
from consumer_framework.cli.settings import settings
from consumer_framework.operate.check.files import state_findings

COMMANDS = {settings: ["sample"], explain: ["KeyError", "sample"]}


@contextmanager
def closed(directory):
    """Take the right to look into *directory* from this process, also from root."""
    directory.chmod(0)
    if is_root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(0o700)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "CONFIGURATION_DIRECTORY", tmp_path)
    monkeypatch.setenv("HOME", "/nonexistent")
    (tmp_path / "sample.toml").write_text('callback = "sample:Sample"\n')
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_closed_configuration_directory_is_named(directory, command):
    # The first run imports what the other user may not read.
    CliRunner().invoke(command, COMMANDS[command])
    with closed(directory):
        refused = CliRunner().invoke(command, COMMANDS[command])
    assert refused.exit_code == 78, refused.output
    assert "sample.toml: cannot be read: Permission denied" in refused.output


def test_a_file_in_a_closed_directory_may_exist(directory):
    file = directory / "other.toml"
    assert not may_exist(file)
    with closed(directory):
        assert may_exist(file)


def test_a_closed_state_directory_has_no_traceback(directory):
    state = directory / "sample"
    state.mkdir()
    directory.chmod(0o755)
    with closed(state):
        findings = list(state_findings(state, made=True))
    assert not any("flight" in str(one) for one in findings)
