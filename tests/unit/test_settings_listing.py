# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of an instance, as an operator sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consumer_framework.adapters import config
from consumer_framework.settings import FRAMEWORK_TAKES, TAKES, settings_of

if TYPE_CHECKING:
    from consumer_framework.settings import Setting

FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")
FILE = """
amqp_url = "amqps://user:broker-pass@broker.example.org/%2F"
callback = "example:handler"

[consumer_config]
label = "builds"
api_token = "author-token"

[consumer_config.database]
password = "author-pass"
url = "postgresql://web:url-pass@db/web"

[consumer_config.other]
url = "postgresql://web:odd@pass@db/web?user=web&sslpassword=query-pass"
dsn = "host=db password = 'dsn pass' user=web"

[consumer_config.framework]
handler_timeout = "3m"
slots = 1
brokers = ["other.example.org"]

[consumer_config.framework.recovery]
delays = ["1s", "2m"]

[consumer_config.framework.outbox]
database = "postgresql://web:outbox-pass@db/web"
"""
SECRETS = (
    "broker-pass",
    "author-token",
    "author-pass",
    "url-pass",
    "outbox-pass",
    "odd",
    "pass@",
    "query-pass",
    "dsn pass",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sample.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def listed(file) -> dict[str, Setting]:
    return {one.path: one for one in settings_of(config.load(file))}


def test_every_declared_setting_is_listed_once(listed):
    framework = {f"consumer_config.framework.{key}" for key in FRAMEWORK_TAKES}
    authors = {f"consumer_config.{key}" for key in ("label", "api_token", "database", "other")}
    assert {*listed} == (TAKES.keys() - {"consumer_config"}) | framework | authors


def test_a_setting_has_its_value_its_default_and_the_effort_of_a_change(listed):
    timeout = listed["consumer_config.framework.handler_timeout"]
    assert (timeout.value, timeout.is_default, timeout.takes) == ("3m", False, "reload")
    recovery = listed["consumer_config.framework.recovery"]
    assert json.loads(recovery.value)["delays"] == ["1s", "2m"]
    assert json.loads(recovery.default)["delays"] == ["10s", "1m", "5m"]
    assert listed["callback"].takes == "restart"


def test_a_value_that_is_written_and_equals_the_default_is_the_default(listed):
    slots = listed["consumer_config.framework.slots"]
    assert (slots.value, slots.default, slots.is_default) == ("1", "1", True)


def test_no_secret_is_listed(listed):
    text = repr(listed)
    assert [secret for secret in SECRETS if secret in text] == []
    assert listed["consumer_config.label"].value == "builds"
    database = json.loads(listed["consumer_config.database"].value)
    assert database == {"password": "<hidden>", "url": "postgresql://web:<hidden>@db/web"}
    other = json.loads(listed["consumer_config.other"].value)
    assert other["dsn"] == "host=db password = <hidden> user=web"


def shows(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(FM_CONSUMER), "settings", "--conf", str(file), *words]
    environment = {**os.environ, "XDG_STATE_HOME": str(file.parent), "STATE_DIRECTORY": ""}
    state = ["--state-dir", str(file.parent / "state")]
    return subprocess.run(
        [*command, *state],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


def test_the_settings_of_a_stopped_instance_are_those_of_its_file(file):
    done = shows(file, "--changed")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "consumer_config.framework.handler_timeout = 3m" in lines
    assert not any("consumer_config.framework.slots" in line for line in lines)
    assert f"sample does not run; these are the settings of {file}" in done.stderr
    document = json.loads(shows(file, "--json").stdout)
    assert (document["instance"], document["in_force"]) == ("sample", False)
    assert "consumer_config.framework.slots" in {one["path"] for one in document["settings"]}


def test_settings_of_an_instance_without_a_file_name_the_cure(tmp_path):
    done = shows(tmp_path / "missing.toml")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
