# SPDX-License-Identifier: GPL-2.0-or-later
"""A mistake is reported in one line with file, key and cure, and without a traceback."""

from __future__ import annotations

import os
import subprocess

import pytest

from .instance import FM_CONSUMER

MODULE = """
import dataclasses, typing
import pydantic
from consumer_framework import Consumer

def function(message): pass
number = 5

class NotCallable: pass

class NeedsArguments:
    def __init__(self, config): pass
    def __call__(self, message): pass

class NoHandle(Consumer): pass

class WrongConfig(Consumer):
    Config = dict
    def handle(self, message): pass

class Typed(Consumer):
    class Config(pydantic.BaseModel):
        name: str
        port: int
        colours: list[str] = []
    def handle(self, message): pass
"""

QUEUE = "{durable = true, auto_delete = false, exclusive = false, arguments = {}}"

# Name: (TOML, the text that the lines must have after the file's name).
CASES = {
    "toml-syntax": ("qos = [\n", ["is not TOML: ", "mend the syntax there"]),
    "unknown-key": ('amqp_ulr = "x"', ['amqp_ulr: unknown key; did you mean "amqp_url"?']),
    "unknown-key-in-a-table": (
        "[qos]\nprefetch = 1",
        ["qos.prefetch: unknown key; did you mean", "prefetch_"],
    ),
    "wrong-type": (
        '[qos]\nprefetch_count = "many"',
        ["qos.prefetch_count: must be an integer; it is a string now"],
    ),
    "bad-url": ('amqp_url = "http://localhost"', ["amqp_url: is not an AMQP URL; write"]),
    "bad-port": (
        'amqp_url = "amqp://user:hush@localhost:port/"',
        ["amqp_url: cannot be understood; percent-encode"],
    ),
    "missing-certificate": (
        'amqp_url = "amqps://localhost"\n[tls]\nca_cert = "/no/such.pem"',
        ["tls.ca_cert: /no/such.pem cannot be read: No such file or directory; name a PEM file"],
    ),
    "undeclared-queue": (
        (
            f'[queues]\nmine = {QUEUE}\n[[bindings]]\nqueue = "yours"\nexchange = "amq.topic"\n'
            'routing_keys = ["#"]'
        ),
        ['bindings[0].queue: there is no [queues."yours"]', 'declared ("mine")'],
    ),
    "queue-without-its-keys": (
        "[queues.mine]\ndurable = true",
        ["queues.mine.auto_delete: this key is required", "queues.mine.arguments: this key"],
    ),
    "no-callback": ("", ["callback: there is no callback; set callback ="]),
    "unimportable": (
        'callback = "no_such_module:x"',
        ["callback: 'no_such_module:x' cannot be imported", "there is no module 'no_such_module'"],
    ),
    "no-such-object": ('callback = "handlers:nothing"', ["defines no 'nothing'"]),
    "no-colon": ('callback = "handlers"', ["names no object; write it as module:object"]),
    "not-callable": (
        'callback = "handlers:number"',
        ["cannot be called (its type is int); name a function"],
    ),
    "class-not-callable": (
        'callback = "handlers:NotCallable"',
        ["instances cannot be called; give it a __call__(self, message)"],
    ),
    "class-needs-arguments": (
        'callback = "handlers:NeedsArguments"',
        ["has an __init__ that needs arguments"],
    ),
    "no-handle": ('callback = "handlers:NoHandle"', ["does not implement handle(); add it"]),
    "wrong-config": ('callback = "handlers:WrongConfig"', ["has a Config of the wrong kind"]),
    "config-that-does-not-fit": (
        'callback = "handlers:Typed"\n[consumer_config]\nport = "x"\ncolour = []',
        [
            "consumer_config.name: this key is required; add it",
            "consumer_config.port: must be an integer, unable to parse string",
            'consumer_config.colour: unknown key; did you mean "colours"?',
        ],
    ),
    "framework-key": (
        "[consumer_config.framework]\nslot = 4",
        ["consumer_config.framework.slot: unknown key"],
    ),
    "file-callback-and-rules-at-once": (
        (
            'amqp_ulr = "x"\ncallback = "handlers:Typed"\n[consumer_config]\nname = "n"\n'
            "[[consumer_config.framework.recovery.rules]]\n"
            'exceptions = ["Valueerror", "no.such.Error"]\nthen = "dorp"'
        ),
        [
            'amqp_ulr: unknown key; did you mean "amqp_url"?',
            "consumer_config.port: this key is required",
            'recovery.rules[0].then: must be "retry"',
            'recovery.rules[0].exceptions: "Valueerror" cannot be imported (Attrib',
            'did you mean "ValueError"?',
            'recovery.rules[0].exceptions: "no.such.Error" cannot be imported (ModuleNotFoundErr',
        ],
    ),
    "callback-config-and-rules-at-once": (
        (
            'callback = "handlers:Typed"\n[[consumer_config.framework.recovery.rules]]\n'
            'exceptions = ["json.dumps", "no.such.Error"]\nthen = "drop"'
        ),
        [
            "consumer_config.name: this key is required",
            'recovery.rules[0].exceptions: "json.dumps" is no exception',
            'recovery.rules[0].exceptions: "no.such.Error" cannot be imported (ModuleNotFoundErr',
        ],
    ),
    "reserved-property": (
        '[client_properties]\nproduct = "mine"',
        ["client_properties: ", "reserved"],
    ),
    "bad-log-config": (
        'callback = "handlers:function"\n[log_config]\nversion = 7',
        ["log_config: logging cannot be set up"],
    ),
    "no-queue": ("[queues]", ["queues: there is no queue to consume from; add a [queues.NAME]"]),
}


def fm_consumer(tmp_path, *arguments, **environment):
    (tmp_path / "handlers.py").write_text(MODULE)
    inherited = {key: value for key, value in os.environ.items() if key != "FEDORA_MESSAGING_CONF"}
    return subprocess.run(
        [FM_CONSUMER, *arguments],
        env={**inherited, "PYTHONPATH": str(tmp_path), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_in_the_file_is_one_line_with_file_key_and_cure(tmp_path, case):
    text, expected = CASES[case]
    file = tmp_path / "mine.toml"
    file.write_text(text)
    ended = fm_consumer(tmp_path, "run", "--conf", str(file))
    assert ended.returncode == 78
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    assert lines
    assert all(line.startswith(f"fm-consumer: {file}: ") for line in lines), ended.stderr
    for words in expected:
        assert words in ended.stderr
    assert "hush" not in ended.stderr


def test_a_missing_file_is_named(tmp_path):
    ended = fm_consumer(tmp_path, "run", "--conf", "/no/such/file.toml")
    assert ended.returncode == 78
    assert ended.stderr == (
        "fm-consumer: /no/such/file.toml: there is no such file; create it, or name another one\n"
    )


def test_a_missing_instance_is_named_by_its_file(tmp_path):
    ended = fm_consumer(tmp_path, "run", "no-such-instance")
    assert ended.returncode == 78
    assert "/etc/fedora-messaging/no-such-instance.toml: there is no such file" in ended.stderr


@pytest.mark.parametrize("name", ["has.dot", "x" * 29, "sp ace", "../etc", "üml", ""])
def test_an_invalid_instance_name_says_what_a_valid_one_is(tmp_path, name):
    ended = fm_consumer(tmp_path, "run", name)
    assert ended.returncode == 78
    assert "is no instance name; use 1 to 28 of the characters" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_name_and_a_file_together_are_a_usage_error(tmp_path):
    ended = fm_consumer(tmp_path, "run", "sample", "--conf", "x.toml")
    assert ended.returncode == 2
    assert "give either NAME or --conf" in ended.stderr


def test_the_environment_names_the_file_unless_the_command_line_does(tmp_path):
    (tmp_path / "a.toml").write_text("a = 1")
    named = str(tmp_path / "a.toml")
    ended = fm_consumer(tmp_path, "run", FEDORA_MESSAGING_CONF=named)
    assert f"{named}: a: unknown key" in ended.stderr
    ended = fm_consumer(tmp_path, "run", "no-such-instance", FEDORA_MESSAGING_CONF=named)
    assert "/etc/fedora-messaging/no-such-instance.toml" in ended.stderr


def test_a_module_of_this_directory_is_pointed_out(tmp_path):
    (tmp_path / "here.py").write_text("def handle(message): pass\n")
    (tmp_path / "mine.toml").write_text("")
    ended = fm_consumer(
        tmp_path, "run", "--conf", "mine.toml", "--callback", "here:handle", PYTHONPATH=""
    )
    assert ended.returncode == 78
    assert "use --callback-file here.py:handle" in ended.stderr
    assert "--callback: callback: 'here:handle' cannot be imported" in ended.stderr


def test_an_error_in_a_callback_file_is_located(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\nundefined_name\n")
    (tmp_path / "mine.toml").write_text("")
    ended = fm_consumer(tmp_path, "run", "--conf", "mine.toml", "--callback-file", "bad.py:handle")
    assert ended.returncode == 75
    assert "raised NameError while it was imported" in ended.stderr
    assert "name 'undefined_name' is not defined" in ended.stderr
    assert "bad.py, line 2" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_under_the_journal_the_line_carries_its_priority(tmp_path):
    with (tmp_path / "err").open("w") as err:
        status = os.fstat(err.fileno())
        subprocess.run(
            [FM_CONSUMER, "run", "--conf", "/no/such.toml"],
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            stderr=err,
            timeout=30,
            check=False,
        )
    assert (tmp_path / "err").read_text().startswith("<3>/no/such.toml: ")


def test_help_teaches_and_names_the_exit_codes(tmp_path):
    shown = fm_consumer(tmp_path, "run", "--help")
    assert shown.returncode == 0
    for words in ("systemctl start fm-consumer@NAME", "--callback-file", "Exit codes", "78  "):
        assert words in shown.stdout
    assert fm_consumer(tmp_path, "--version").stdout.startswith("fm-consumer, version ")


def test_instance_names_complete(tmp_path):
    completed = fm_consumer(
        tmp_path,
        _FM_CONSUMER_COMPLETE="bash_complete",
        COMP_WORDS="fm-consumer run ",
        COMP_CWORD="2",
    )
    assert completed.returncode == 0
