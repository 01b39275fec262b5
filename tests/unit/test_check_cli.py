# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer check`` without a broker."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fedora_messaging import config as upstream

from consumer_framework.cli import main
from consumer_framework.core.errors import ExitCode, Fault
from consumer_framework.operate.check import broker

MODULE = """
import pydantic
from consumer_framework import Consumer, Recovery

print("imported")

def function(message): pass

class Typed(Consumer):
    class Config(pydantic.BaseModel):
        name: str
    def __init__(self, config):
        raise AssertionError("a check makes no consumer")
    def handle(self, message): pass

class Numbered(Consumer):
    class Config(pydantic.BaseModel):
        name: int
    def handle(self, message): pass

class Impatient(Consumer):
    recovery = Recovery(ack_timeout="5m", hold_slots=9)
    def handle(self, message): pass
"""
GOOD = """
amqp_url = "amqp://localhost:1/%2F"
callback = "MODULE:function"
[queues.one]
durable = true
auto_delete = false
exclusive = false
arguments = {}
[[bindings]]
queue = "one"
exchange = "amq.topic"
routing_keys = ["#"]
"""


@pytest.fixture(autouse=True)
def _upstreams_configuration_is_put_back():
    conf, loaded = dict(upstream.conf.items()), upstream.conf.loaded
    yield
    upstream.conf.clear()
    dict.update(upstream.conf, conf)
    upstream.conf.loaded = loaded


@pytest.fixture(autouse=True)
def _the_reactor_is_that_of_the_tests(monkeypatch):
    monkeypatch.setattr("consumer_framework.runtime.reactor.install", lambda: None)


@pytest.fixture
def directory(monkeypatch):
    """Below no directory that is closed to others, as those of pytest are."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    monkeypatch.syspath_prepend(made)
    monkeypatch.setenv("STATE_DIRECTORY", str(made / "state"))
    (made / f"checked_{made.name}.py").write_text(MODULE)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def check(directory):
    """Check a file with this text; returns the result of the command."""

    def check_text(text: str, *options: str) -> Any:
        file = directory / "sample.toml"
        file.write_text(text.replace("MODULE", f"checked_{directory.name}"))
        return run("--conf", str(file), *options)

    return check_text


def run(*words: str) -> Any:
    return CliRunner().invoke(main, ["check", *words], catch_exceptions=False)


def lines(result: Any, level: str) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith(f"{level}: ")]


def test_check_accepts_a_configuration_that_will_work(check, directory):
    result = check(GOOD, "--strict")
    assert result.exit_code == 0
    file = directory / "sample.toml"
    assert result.stdout.splitlines() == [
        f"info: {file}: the broker was not asked; add --broker",
        f"{file}: nothing is wrong: it can start",
    ]
    assert "imported" in result.stderr, "what a module prints is no part of the report"


def test_all_problems_are_reported_at_once(check):
    result = check(
        GOOD.replace("function", "Typed").replace("durable = true", 'durable = "yes"')
        + '[[consumer_config.framework.recovery.rules]]\nexceptions = ["int"]\nthen = "dorp"\n'
    )
    assert result.exit_code == 78
    told = "\n".join(lines(result, "error"))
    for words in (
        "queues.one.durable: must be a boolean",
        'rules[0].then: must be "retry"',
        'did you mean "drop"?',
        'rules[0].exceptions: "int" is no exception',
        "consumer_config.name: this key is required; add it",
    ):
        assert words in told
    assert result.stdout.splitlines()[-1].endswith("4 errors: it cannot run (exit code 78)")


def test_problems_of_callback_config_and_rules_are_reported_together(check):
    result = check(
        GOOD.replace("function", "Typed")
        + "[log_config]\nversion = 3\n"
        + '[consumer_config.framework]\nordering = "key"\nbatch = {}\n'
        + '[[consumer_config.framework.recovery.rules]]\nexceptions = ["int"]\nthen = "drop"\n'
    )
    told = "\n".join(lines(result, "error"))
    for words in (
        "consumer_config.name: this key is required",
        "recovery.rules[0].exceptions",
        "log_config: logging cannot be set up: Unsupported version: 3",
        'consumer_config.framework.ordering_key: is required with ordering = "key"',
        "consumer_config.framework.batch: Typed takes single messages",
    ):
        assert words in told


def test_a_missing_callback_is_reported_once_and_not_examined(check):
    result = check(
        GOOD.replace("MODULE", "no_such_module")
        + '[consumer_config.framework]\nordering = "key"\nbatch = {}\n'
    )
    (line,) = lines(result, "error")
    assert "'no_such_module:function' cannot be imported" in line


def test_the_recovery_settings_of_the_class_count(check):
    result = check(
        GOOD.replace("function", "Impatient")
        + '[consumer_config.framework]\nhandler_timeout = "10m"\n'
    )
    (line,) = lines(result, "error")
    assert "handler_timeout: 10m is not shorter than recovery.ack_timeout (5m)" in line
    result = check(
        GOOD.replace("function", "Impatient")
        + "[qos]\nprefetch_count = 8\n[consumer_config.framework]\nhandler_timeout = 60\n"
    )
    assert result.exit_code == 0
    assert "7 of hold_slots = 9 can be used" in lines(result, "info")[0]


def test_warnings_are_allowed_unless_strict(check):
    text = GOOD.replace("arguments = {}", "arguments = { x-message-ttl = 60000 }")
    result = check(text)
    assert result.exit_code == 0
    assert "messages that have waited for 1m" in lines(result, "warning")[0]
    assert result.stdout.endswith("1 warning: it can start\n")
    result = check(text, "--strict")
    assert result.exit_code == 1
    assert result.stdout.endswith("1 warning: refused by --strict (exit code 1)\n")


def test_a_password_that_all_users_can_read_is_warned_of_and_never_shown(check):
    result = check(GOOD.replace("amqp://", "amqp://user:hush@"))
    assert "amqp_url: everybody on this machine can read" in lines(result, "warning")[0]
    assert "hush" not in result.output


def test_a_broken_schema_package_is_an_error(check, monkeypatch):
    from fedora_messaging import message  # noqa: PLC0415

    monkeypatch.setattr(message, "_schema_name_to_class", {})
    monkeypatch.setattr("fedora_messaging.message.load_message_classes", lambda: 1 / 0)

    class Broken:
        name, module, dist = "broken.schema", "broken", None

        def load(self):
            raise ImportError("no module broken")

    monkeypatch.setattr(
        "consumer_framework.adapters.codec.registry.entry_points", lambda **_: [Broken()]
    )
    result = check(GOOD)
    assert result.exit_code == 78
    assert 'message schemas: schema "broken.schema": cannot be imported' in result.stdout


def test_json_has_everything(check, directory):
    result = check(GOOD.replace("auto_delete = false", "auto_delete = true"), "--json")
    assert result.exit_code == 0
    file = str(directory / "sample.toml")
    shown = json.loads(result.stdout)
    assert shown["subject"] == file
    assert (shown["exit_code"], shown["errors"], shown["warnings"]) == (0, 0, 1)
    assert shown["findings"][0] == {
        "level": "warning",
        "source": file,
        "line": 6,
        "path": "queues.one.auto_delete",
        "message": "the queue goes with its consumer: what is sent while the instance is down is "
        "lost",
        "cure": "set auto_delete = false and durable = true, with a queue of another name",
    }


@pytest.mark.parametrize("name", ["has.dot", "x" * 29, "../etc"])
def test_a_name_that_no_instance_can_have_is_an_error(name):
    result = run(name)
    assert result.exit_code == 78
    assert "is no instance name; use 1 to 28 of the characters" in result.stdout
    assert json.loads(run(name, "--json").stdout)["errors"] == 1


def stale_unit(directory, monkeypatch):
    """A systemd that knows a unit which hands nothing over."""
    answer = """{"data": [{"LoadState": {"data": "loaded"}}]}"""
    for name, script in {"busctl": f"echo '{answer}'", "systemctl": ":"}.items():
        program = directory / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/bin:/usr/bin")


def test_an_instance_is_looked_at_as_the_service_that_it_is(monkeypatch, directory, check):
    check(GOOD)
    for place in ("options", "check"):
        name = f"consumer_framework.cli.{place}.CONFIGURATION_DIRECTORY"
        monkeypatch.setattr(name, directory)
    stale_unit(directory, monkeypatch)
    monkeypatch.setattr("consumer_framework.operate.units.HIDDEN", ())
    file = directory / "sample.toml"
    assert run("sample").exit_code == 0
    file.chmod(0o600)
    for words in (["sample"], ["--conf", str(file)]):
        result = run(*words)
        assert result.exit_code == 78
        (line,) = lines(result, "error")
        assert line.endswith(f"closed to the service's user fm-sample; chmod o+r {file}")
    # The unit as it is shipped hands the file over.
    monkeypatch.setenv("PATH", "")
    result = run("sample")
    assert result.exit_code == 0
    assert "closed to the service's user fm-sample: systemd gives it" in lines(result, "info")[0]
    file.rename(directory / "has.dot.toml")
    (directory / "has.dot.toml").chmod(0o644)
    result = run("--conf", str(directory / "has.dot.toml"))
    assert result.exit_code == 0
    assert "'has.dot' is no instance name" in lines(result, "warning")[0]


def test_the_state_of_a_service_is_where_systemd_keeps_it(monkeypatch, directory, check):
    check(GOOD)
    for place in ("options", "check"):
        name = f"consumer_framework.cli.{place}.CONFIGURATION_DIRECTORY"
        monkeypatch.setattr(name, directory)
    (directory / "states").write_text("")
    monkeypatch.setattr(
        "consumer_framework.operate.check.all_checks.SYSTEM_STATE", directory / "states"
    )
    monkeypatch.delenv("STATE_DIRECTORY")
    (line,) = lines(run("sample"), "error")
    assert f"error: {directory}/states/sample: cannot be used for state" in line
    assert lines(run("sample", "--state-dir", str(directory / "other")), "error") == []


def test_credentials_that_only_the_service_has_are_named_and_are_no_problem(check, directory):
    text = GOOD.replace("amqp://localhost", "amqps://u:credential:password@localhost")
    text = text.replace("MODULE:function", "MODULE:Typed")
    text += (
        '[tls]\ncertfile = "credential:cert"\nkeyfile = "credential:key"\n'
        '[consumer_config]\nname = "credential:name"\n'
    )
    result = check(text, "--broker")
    assert result.exit_code == 0, result.stdout
    assert lines(result, "warning") == []
    unseen = [line for line in lines(result, "info") if "cannot be checked here" in line]
    assert [line.split(": ")[2] for line in unseen] == [
        "amqp_url",
        "tls.certfile",
        "tls.keyfile",
        "consumer_config.name",
    ]
    assert "the broker was not asked: that takes a credential" in result.stdout


def test_a_credential_that_does_not_fit_is_reported_without_its_text(check, directory, monkeypatch):
    (directory / "credentials").mkdir()
    (directory / "credentials" / "name").write_text("canary\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory / "credentials"))
    text = GOOD.replace("MODULE:function", "MODULE:Numbered")
    result = check(text + '[consumer_config]\nname = "credential:name"\n')
    (line,) = lines(result, "error")
    assert "consumer_config.name: must be an integer" in line.replace("valid ", "")
    result = check(text + '[consumer_config]\nname = "credential:gone"\n')
    (line,) = lines(result, "error")
    assert 'consumer_config.name: the credential "gone" was not given to this service' in line
    assert "canary" not in result.stdout


def test_a_password_that_is_a_credential_may_be_named_for_everybody(check, directory, monkeypatch):
    (directory / "credentials").mkdir()
    (directory / "credentials" / "password").write_text("canary\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory / "credentials"))
    url = "amqp://u:credential:password@localhost"
    assert lines(check(GOOD.replace("amqp://localhost", url)), "warning") == []
    plain = check(GOOD.replace("amqp://localhost", "amqp://u:canary@localhost"))
    assert "everybody on this machine can read the password" in lines(plain, "warning")[0]


def test_a_missing_file_and_a_dangling_link_are_named(directory):
    assert "there is no such file" in run("--conf", str(directory / "none.toml")).stdout
    (directory / "link.toml").symlink_to(directory / "gone.toml")
    result = run("--conf", str(directory / "link.toml"))
    assert f"is a symbolic link to {directory}/gone.toml, which is not there" in result.stdout


def test_a_certificate_that_is_a_link_to_nothing_is_named(check, directory):
    (directory / "ca.pem").symlink_to(directory / "gone.pem")
    text = GOOD.replace("amqp://", "amqps://") + f'[tls]\nca_cert = "{directory}/ca.pem"\n'
    (line,) = lines(check(text), "error")
    assert f"it is a symbolic link to {directory}/gone.pem, which is not there" in line


def test_a_name_and_a_file_together_are_a_usage_error():
    assert run("sample", "--conf", "x.toml").exit_code == 2


def test_a_broker_that_is_not_there_has_the_exit_code_of_connections(check):
    result = check(GOOD, "--broker")
    assert result.exit_code == 14
    (line,) = lines(result, "error")
    assert "the broker at localhost:1 cannot be reached: connection refused; an instance" in line


def test_the_defects_of_the_file_stand_before_those_of_the_broker(check, monkeypatch):
    def refuse(*_):
        raise Fault(ExitCode.CONNECTION, "no")

    monkeypatch.setattr(broker, "inspect", refuse)
    result = check(GOOD.replace("function", "Typed"), "--broker")
    assert result.exit_code == 78
    assert len(lines(result, "error")) == 2


def test_colours_are_for_terminals(check, directory):
    check(GOOD)
    words = ["check", "--conf", str(directory / "sample.toml")]
    result = CliRunner().invoke(main, words, color=True)
    assert "\x1b[" in result.stdout
    assert "\x1b[" not in CliRunner().invoke(main, words).stdout


def test_help_teaches():
    text = run("--help").stdout
    for words in ("fm-consumer check sample --broker", "78  ", "--strict", "Nothing is made"):
        assert words in text


# Logging

LOGGING = """
[log_config]
version = 1
disable_existing_loggers = true
root = {level = "ERROR", handlers = ["file"]}
formatters = {short = {format = "%(message)s"}}
loggers = {new_one = {level = "DEBUG", handlers = ["file"], propagate = false}}
[log_config.handlers.file]
class = "logging.handlers.RotatingFileHandler"
filename = "DIRECTORY/sample.log"
formatter = "short"
"""


def test_logging_is_rehearsed_and_leaves_no_trace(check, directory):
    root, other = logging.getLogger(), logging.getLogger("some.other")
    before = (root.level, list(root.handlers), other.disabled)
    result = check(GOOD + LOGGING.replace("DIRECTORY", str(directory)))
    assert result.exit_code == 0, result.stdout
    assert (root.level, list(root.handlers), other.disabled) == before
    assert logging.getLogger("new_one").handlers == []
    assert logging.getLogger("new_one").propagate
    assert not (directory / "sample.log").exists()


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ('handlers = ["file"]}\nformatters', 'handlers = [["file"]]}\nformatters'),
        ('handlers = ["file"]}\nformatters', 'handlers = "other"}\nformatters'),
        ('class = "logging.handlers.RotatingFileHandler"', ""),
        ('class = "logging.handlers.RotatingFileHandler"', 'class = "no.such.Handler"'),
        ('class = "logging.handlers.RotatingFileHandler"', 'class = "json.JSONDecoder"'),
        ('class = "logging.handlers.RotatingFileHandler"', "class = 5"),
        ('format = "%(message)s"', 'format = ["a"]'),
        ('format = "%(message)s"', 'format = "%(message"'),
        ("DIRECTORY/sample.log", "DIRECTORY/none/sample.log"),
        ("DIRECTORY/sample.log", "DIRECTORY"),
        ('filename = "DIRECTORY/sample.log"', "filename = 5.5"),
        ('filename = "DIRECTORY/sample.log"', ""),
        ('level = "ERROR"', 'level = "LOUD"'),
        ("version = 1", "version = 1\nhandlers = 5"),
    ],
)
def test_logging_that_cannot_be_set_up_is_an_error_for_check_as_for_run(
    check, directory, written, instead
):
    text = LOGGING.replace(written, instead).replace("DIRECTORY", str(directory))
    if "handlers = 5" in text:
        text = text.partition("[log_config.handlers.file]")[0]
    result = check(GOOD + text)
    assert result.exit_code == 78
    (line,) = lines(result, "error")
    assert "log_config: logging cannot be set up: " in line


# Publishing

PUBLISHES = """
from fedora_messaging import api, message
from fedora_messaging.api import publish
from consumer_framework import Consumer

def announce():
    (lambda: api.publish(message.Message()))()

class Direct:
    def __init__(self): api.publish(message.Message())
    def __call__(self, message): pass

class Helped:
    def __init__(self): self.tell()
    def tell(self): announce()
    def __call__(self, message): pass

class Imported:
    def __init__(self): self.publish = publish(message.Message())
    def __call__(self, message): pass

class Late:
    def __init__(self):
        import fedora_messaging.api
        fedora_messaging.api.publish(message.Message())
    def __call__(self, message): pass

class Innocent:
    def __init__(self): self.publish = self.__call__
    def __call__(self, message): publish(message)

class Ready(Consumer):
    def setup(self): api.publish(message.Message())
    def handle(self, message): pass
"""


@pytest.mark.parametrize("name", ["Direct", "Helped", "Imported", "Late", "Innocent", "Ready"])
def test_a_class_that_publishes_before_there_is_an_outbox_is_warned_of(check, directory, name):
    (directory / f"checked_{directory.name}.py").write_text(PUBLISHES)
    warned = lines(check(GOOD.replace("function", name)), "warning")
    assert len(warned) == (name not in {"Innocent", "Ready"})
    assert all("calls fedora_messaging.api.publish" in line for line in warned)


def test_a_start_that_is_refused_tells_the_service_manager_why(directory, monkeypatch):
    file = directory / "sample.toml"
    file.write_text('amqp_url = "http://x"\ncallbak = 1\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(directory / "notify"))
        result = CliRunner().invoke(main, ["run", "--conf", str(file)])
        said = manager.recv(10_000).decode()
    assert result.exit_code == 78
    assert said.startswith(f"STATUS=Not started: {file}: ")
    assert "more: see the log)" in said


def test_the_file_of_a_relay_needs_no_callback(check, tmp_path):
    outbox = (
        "[consumer_config.framework.outbox]\n"
        f'database = "sqlite:///{tmp_path}/outbox.sqlite3"\nlease = "1s"\n'
    )
    result = check(outbox)
    assert result.exit_code == 0, result.output
    assert any("this is the configuration of a relay" in line for line in lines(result, "info"))
    result = check(f'{outbox}timeout = "2s"\n')
    assert result.exit_code == 78
    assert "outbox.timeout: 2s is not shorter than lease (1s)" in result.output
