# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer check`` looks at the outbox: messenger, database, tables, time limit."""

import sys

import pytest

from consumer_framework.adapters import config
from consumer_framework.operate.check.findings import Level
from consumer_framework.operate.check.outbox import outbox_findings, relay_findings
from consumer_framework.publishing.store import OutboxStore


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path}/outbox.sqlite3"


@pytest.fixture
def found(tmp_path):
    """Return a function that returns the findings about an outbox, worst first."""

    def find(outbox, *, top="", ask=True, as_service=False, absent=()):
        path = tmp_path / "web.toml"
        path.write_text(f"{top}\n[consumer_config.framework.outbox]\n{outbox}\n")
        settings = config.load(path)
        rest = {"ask": ask, "as_service": as_service}
        return list(outbox_findings(settings, "web", frozenset(absent), **rest))

    return find


def told(findings, level):
    return [str(finding.problem) for finding in findings if finding.level is level]


def test_a_configuration_without_an_outbox_has_no_findings_about_one(found):
    assert found("") == []


def test_an_outbox_that_is_right_is_told(found, sqlite):
    store = OutboxStore.connect(sqlite)
    store.migrate()
    store.close()
    [line] = told(found(f'database = "{sqlite}"', ask=False), Level.INFO)
    assert line.endswith("outbox.sqlite3 has its tables")


def test_a_file_that_is_not_there_yet_is_no_error_and_is_not_made(found, sqlite, tmp_path):
    [finding] = found(f'database = "{sqlite}"')
    assert finding.level is Level.INFO
    assert not (tmp_path / "outbox.sqlite3").exists()


def test_missing_tables_are_an_error_with_the_command_that_makes_them(found, sqlite, tmp_path):
    (tmp_path / "outbox.sqlite3").touch()
    [finding] = found(f'database = "{sqlite}"')
    assert (finding.level, finding.exit_code) == (Level.ERROR, 75)
    assert finding.problem.cure == "run: fm-consumer outbox migrate web"


def test_a_database_server_is_asked_only_if_the_broker_is(found):
    down = 'database = "postgresql://web@127.0.0.1:1/web"'
    [asked] = found(down)
    assert (asked.level, asked.exit_code) == (Level.ERROR, 75)
    assert "127.0.0.1:1" in str(asked.problem)
    [finding] = found(down, ask=False)
    assert (finding.level, finding.problem.cure) == (Level.INFO, "add --broker")


def test_a_database_that_lets_the_service_in_and_not_this_user_is_a_warning(found, monkeypatch):
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")
    [finding] = found('database = "postgresql:///web"', as_service=True)
    assert finding.level is Level.WARNING
    assert "the service is another user" in finding.problem.cure


@pytest.mark.parametrize(
    ("outbox", "what"),
    [
        ('messenger = "pigeon"', 'there is no messenger "pigeon"'),
        ("options = {wings = 2}", "outbox.options.wings: unknown key"),
        ('endpoints = ["ftp://x"]', "the URL of x is invalid"),
        ('database = "nonsense"', "cannot be understood"),
    ],
)
def test_a_wrong_outbox_is_an_error(found, outbox, what):
    [line] = told(found(outbox), Level.ERROR)
    assert what in line


def test_a_missing_driver_is_an_error_with_the_package(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    [line] = told(found('database = "mariadb://web@h/web"'), Level.ERROR)
    assert "pip install 'consumer-framework[mariadb]'" in line


def test_a_missing_package_of_a_messenger_is_an_error(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "kombu", None)
    monkeypatch.delitem(sys.modules, "consumer_framework.publishing.messengers.kombu", False)
    [line] = told(found('messenger = "kombu"'), Level.ERROR)
    assert "pip install 'consumer-framework[kombu]'" in line


def test_a_credential_that_only_the_service_has_leaves_the_rest_to_be_checked(found):
    path = "consumer_config.framework.outbox.database"
    findings = found('database = "postgresql:///x"\nmessenger = "pigeon"', absent=[path])
    assert len(told(findings, Level.ERROR)) == 1
    assert "takes a credential" in told(findings, Level.INFO)[0]


def test_a_name_that_is_too_long_for_a_relay_is_warned_of():
    levels = [finding.level for finding in relay_findings("x" * 22, as_service=True)]
    assert levels == [Level.INFO, Level.WARNING]
    assert len(list(relay_findings("x" * 21, as_service=True))) == 1
