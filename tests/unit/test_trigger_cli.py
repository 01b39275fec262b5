# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer trigger` explains wrong options, and prints a configuration that can be used."""

from __future__ import annotations

import tomllib

import pytest
from click.testing import CliRunner
from fedora_messaging import config as upstream

from consumer_framework import settings
from consumer_framework.cli import main
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.settings.toml_writer import to_toml


@pytest.fixture
def trigger(monkeypatch, short_tmp_path):
    monkeypatch.delenv("FEDORA_MESSAGING_CONF", raising=False)
    monkeypatch.setenv("TMPDIR", str(short_tmp_path))

    def invoke(*options):
        return CliRunner().invoke(main, ["trigger", "--topic", "a.#", *options])

    return invoke


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--queue", "a.b", "--", "true"), 78, "--queue: 'a.b' is no name for a trigger"),
        (("--once", "--count", "2", "--", "true"), 2, "not both"),
        (("--timeout", "soon", "--", "true"), 2, "must be a length of time"),
        (("--timeout", "0s", "--", "true"), 2, "longer than 0"),
        (("--count", "0", "--", "true"), 2, "--count"),
        (("--conf", "/nowhere.toml", "--", "true"), 78, "/nowhere.toml: there is no such file"),
        ((), 2, "COMMAND"),
    ],
)
def test_a_wrong_option_is_explained(trigger, options, code, text):
    result = trigger(*options)
    assert result.exit_code == code
    assert text in result.output
    assert isinstance(result.exception, SystemExit)


def test_the_printed_configuration_is_valid_and_has_the_command(trigger):
    command = ["printf", '%s\x7f"ü\n', "#"]
    result = trigger("--queue", "builds", "--count", "3", "--print-config", "--", *command)
    document = tomllib.loads(result.output)
    parsed = settings.parse({**upstream.DEFAULTS, "qos": {}, "monitoring": None, **document})
    assert parsed.callback == "consumer_framework.kit.command:RunCommand"
    assert document["consumer_config"]["command"] == command
    assert document["consumer_config"]["stop_after"] == 3
    assert document["queues"]["builds"]["durable"] is True
    assert document["bindings"] == [
        {"queue": "builds", "exchange": "amq.topic", "routing_keys": ["a.#"]}
    ]


def test_without_a_name_the_queue_is_the_triggers_own(trigger):
    document = tomllib.loads(trigger("--print-config", "--", "true").output)
    [queue] = document["queues"].values()
    assert queue == {"durable": False, "auto_delete": True, "exclusive": True, "arguments": {}}


def test_the_broker_is_the_one_of_another_configuration_unless_a_url_is_given(trigger, tmp_path):
    file = tmp_path / "other.toml"
    file.write_text('amqp_url = "amqps://other"\ncallback = "x:y"\n[tls]\nca_cert = "/ca.pem"\n')
    options = ("--conf", str(file), "--print-config", "--", "true")
    document = tomllib.loads(trigger(*options).output)
    assert document["amqp_url"] == "amqps://other"
    assert document["tls"] == {"ca_cert": "/ca.pem"}
    assert document["callback"] != "x:y"
    document = tomllib.loads(trigger("--url", "amqp://mine", *options).output)
    assert document["amqp_url"] == "amqp://mine"


def test_toml_that_is_written_reads_as_the_same_document():
    document = {"a": [1, True, 1.5, "x", {"b": []}], "t": {"a b": {"c": {}}}, "l": [{"x": [2]}]}
    assert tomllib.loads(to_toml(document)) == document
    with pytest.raises(ConfigurationError, match="type bytes"):
        to_toml({"a": b"x"})
