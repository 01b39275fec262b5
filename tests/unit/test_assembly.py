# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way from a configuration to a plan."""

import subprocess
import sys

import pytest
from fedora_messaging import config as upstream

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.runtime.assembly.configuration import RunOptions, load
from consumer_framework.runtime.assembly.plan import make_plan
from consumer_framework.testing import Harness

CALLBACK = "json:dumps"


@pytest.fixture(autouse=True)
def _upstreams_configuration_is_put_back():
    conf, loaded = dict(upstream.conf.items()), upstream.conf.loaded
    yield
    upstream.conf.clear()
    dict.update(upstream.conf, conf)
    upstream.conf.loaded = loaded


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "cli.check",
        "cli.quarantine",
        "operate.check.findings",
        "operate.explain",
        "operate.offline",
        "operate.status",
        "runtime.assembly.configuration",
        "runtime.control.client",
        "runtime.state_files",
    ],
)
def test_commands_and_their_modules_import_no_reactor(module):
    code = f"""
import sys
import consumer_framework.{module}
print("twisted.internet.reactor" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 4, "ordering": "key", "ordering_key": "topic"},
        {"recovery": {"hold_slots": 3, "delays": ["1s", "2s"]}},
        {"ordering": "strict"},
    ],
)
def test_a_test_has_the_plan_that_a_daemon_would_have(settings, tmp_path):
    file = tmp_path / "sample.toml"
    file.write_text(f"[consumer_config.framework]\n{_toml(settings)}")
    options = RunOptions(file, CALLBACK, state_directory=tmp_path)
    daemon = make_plan(options, load(options))
    harness = Harness(CALLBACK, settings=settings)._instance.plan
    assert (daemon.name, daemon.framework, daemon.prefetch_count, daemon.limits) == (
        harness.name,
        harness.framework,
        harness.prefetch_count,
        harness.limits,
    )
    assert daemon.policy == harness.policy


def _toml(table, path="consumer_config.framework"):
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    text = "\n".join(f"{key} = {_value(value)}" for key, value in values.items())
    for key, value in table.items():
        if isinstance(value, dict):
            text += f"\n[{path}.{key}]\n{_toml(value, f'{path}.{key}')}"
    return text


def _value(value):
    return f'"{value}"' if isinstance(value, str) else str(value).replace("'", '"')


def test_the_harness_reports_every_problem_at_once_as_an_instance_does():
    settings = {
        "ordering": "key",
        "recovery": {"rules": [{"exceptions": ["int"], "then": "retry"}]},
    }
    with pytest.raises(ConfigurationError) as caught:
        Harness(CALLBACK, settings=settings)
    assert [problem.path for problem in caught.value.problems] == [
        "consumer_config.framework.recovery.rules[0].exceptions",
        "consumer_config.framework.ordering_key",
    ]
