# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of `fm-consumer dev`: its copy of the configuration, its messages, its events."""

from __future__ import annotations

import logging
import tomllib
from typing import TYPE_CHECKING

import pika
import pytest
from click.testing import CliRunner
from fedora_messaging.exceptions import ValidationError
from fedora_messaging.message import get_message

from consumer_framework.cli.main import main
from consumer_framework.core.attempt import NO_HISTORY, History, attempt_of
from consumer_framework.core.delivery import Delivery, Failed, Skipped, Succeeded
from consumer_framework.core.disposition import Ack, Hold, Quarantine
from consumer_framework.core.errors import ConfigurationError, DependencyFault
from consumer_framework.core.gate import Reason
from consumer_framework.core.lifecycle import State
from consumer_framework.core.ports import Paused, Settled, StateChanged
from consumer_framework.core.recovery import Decision
from consumer_framework.core.topics import matches
from consumer_framework.kit.development import configuration, events
from consumer_framework.kit.development.changes import Changes, is_watched
from consumer_framework.kit.development.child import Teller
from consumer_framework.kit.development.consumer import Lines, environment_for
from consumer_framework.kit.development.messages import (
    Generated,
    Source,
    described,
    exchange_for,
    plain_topic,
    recorded,
    sources_of,
    topic_for,
)
from consumer_framework.kit.recorded import BadRecordError
from consumer_framework.kit.schema_packages import Schema, installed
from consumer_framework.settings import parse
from consumer_framework.settings.toml_writer import to_toml
from consumer_framework.testing.harness import document_of

if TYPE_CHECKING:
    from pathlib import Path

# The configuration of the project.


def project(directory, *names):
    for name in names:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('callback = "sample:Sample"\n')
    return directory


def test_the_only_configuration_of_a_project_is_found(tmp_path):
    project(tmp_path, "conf/deep/sample.toml", ".hidden/a.toml", "build/b.toml", "pyproject.toml")
    (tmp_path / "other.toml").write_text("[tool]\n")
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    assert configuration.find(tmp_path) == tmp_path / "conf/deep/sample.toml"


def test_a_configuration_that_is_broken_now_is_found_too(tmp_path):
    (tmp_path / "sample.toml").write_text("callback = ")
    assert configuration.find(tmp_path) == tmp_path / "sample.toml"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "go to the project, or name it with --conf"),
        (("a.toml", "b.toml"), r"a\.toml, b\.toml"),
    ],
)
def test_no_configuration_and_more_than_one_are_refused(tmp_path, names, reason):
    with pytest.raises(ConfigurationError, match=reason):
        configuration.find(project(tmp_path, *names))


def test_the_project_is_the_nearest_directory_above_that_looks_like_one(tmp_path):
    file = project(tmp_path, "conf/sample.toml") / "conf/sample.toml"
    assert configuration.root_of(file) == tmp_path / "conf"
    (tmp_path / "pyproject.toml").touch()
    assert configuration.root_of(file) == tmp_path


ORIGINAL = """
amqp_url = "amqps://user:secret@broker.example.org/vhost"
callback = "sample:Sample"
passive_declares = true
topic_prefix = "org.example"
log_config = {version = 1}

[tls]
ca_cert = "/etc/ca.pem"

[monitoring]
port = 8080

[queues.own]
durable = false
auto_delete = true
exclusive = true
passive = true
arguments = {x-queue-type = "quorum"}

[[bindings]]
queue = "own"
exchange = "special"
routing_keys = ["a.#"]

[consumer_config]
key = "value"

[consumer_config.framework]
slots = 2
brokers = ["other.example.org"]

[consumer_config.framework.recovery]
delays = ["1m", "1h"]

[consumer_config.framework.outbox]
endpoints = ["amqps://real.example.org"]
database = "postgresql://real.example.org/outbox"
messenger = "stomp"
window = 5
"""


def copy_of(text, delay=1.0):
    return configuration.private_copy(tomllib.loads(text), "amqp://127.0.0.1:1", delay)


def test_the_copy_leads_to_the_private_broker_alone():
    copy = copy_of(ORIGINAL)
    written = to_toml(copy)
    assert copy["amqp_url"] == "amqp://127.0.0.1:1"
    for other in ("example.org/", "real", "stomp", "tls", "8080", "passive", "other"):
        assert other not in written
    assert tomllib.loads(written) == copy


def test_the_copy_keeps_the_rest():
    copy = copy_of(ORIGINAL)
    framework = copy["consumer_config"]["framework"]
    assert copy["consumer_config"]["key"] == "value"
    assert copy["topic_prefix"] == "org.example"
    assert framework["slots"] == 2
    assert framework["outbox"] == {"window": 5}
    assert copy["bindings"] == [{"queue": "own", "exchange": "special", "routing_keys": ["a.#"]}]


def test_queues_of_the_copy_outlive_a_restart_of_the_consumer():
    assert copy_of(ORIGINAL)["queues"] == {
        "own": {
            "durable": True,
            "auto_delete": False,
            "exclusive": False,
            "arguments": {"x-queue-type": "quorum"},
        }
    }


def test_delays_are_short_unless_the_author_wants_the_configured_ones():
    recovery = copy_of(ORIGINAL, 0.5)["consumer_config"]["framework"]["recovery"]
    assert recovery == {"delays": [0.5, 0.5], "breaker": {"probe": [0.5]}}
    recovery = copy_of(ORIGINAL, None)["consumer_config"]["framework"]["recovery"]
    assert recovery == {"delays": ["1m", "1h"]}


@pytest.mark.parametrize(
    "text",
    [
        'callback = "a:b"',
        'callback = "a:b"\n[[bindings]]\nexchange = "amq.topic"\nrouting_keys = ["a"]',
    ],
)
def test_a_configuration_without_a_queue_gets_one_with_a_name(text):
    copy = copy_of(text)
    assert list(copy["queues"]) == [binding["queue"] for binding in copy["bindings"]] == ["dev"]
    settings = parse({**document_of({}, {}), **{k: copy[k] for k in ("queues", "bindings")}})
    assert settings.bindings_of("dev")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("queues = 5", "queues: is no table"),
        ("queues.x = 5", "queues.x: "),
        ("bindings = 5", "bindings: is no list of tables"),
        ("bindings = [5]", "bindings: "),
        ("consumer_config = 5", "consumer_config: "),
        ("consumer_config.framework.recovery = 5", "consumer_config.framework.recovery: "),
        ("consumer_config.framework.outbox = 5", "consumer_config.framework.outbox: "),
        ("consumer_config.framework.recovery.breaker = 5", "framework.recovery.breaker: "),
    ],
)
def test_a_key_that_is_no_table_is_named(text, path):
    with pytest.raises(ConfigurationError, match=path):
        copy_of(text)


# Messages.


def schema(name, topic="", *, package="sample-messages", **more):
    return Schema(name, package, "1", "sample:Sample", topic, logging.INFO, **more)


BODHI = [
    schema("bodhi.update.edit.v1", package="bodhi-messages"),
    schema("bodhi.update.edit.v2", package="bodhi-messages"),
    schema("bodhi.update.eject.v1", package="bodhi-messages", is_deprecated=True),
    schema("bodhi.update.comment.v1", package="bodhi-messages", fault="broken"),
]


def topics(*keys, schemas=BODHI, pattern="#"):
    binding = {"exchange": "amq.topic", "routing_keys": list(keys)}
    return [(s.topic, s.schema) for s in sources_of([binding, {}], schemas, pattern)]


def test_a_topic_gets_the_newest_schema_that_it_has():
    prefix = "org.fedoraproject"
    assert topics(f"{prefix}.*.bodhi.update.edit", f"{prefix}.stg.bodhi.#") == [
        (f"{prefix}.dev.bodhi.update.edit", "bodhi.update.edit.v2"),
        (f"{prefix}.stg.bodhi.update.edit", "bodhi.update.edit.v2"),
    ]


def test_a_topic_without_a_schema_gets_plain_messages():
    assert topics("a.*.b.#", "#") == [("a.dev.b.dev", ""), ("dev", "")]


def test_only_topics_of_the_pattern_are_sent():
    assert topics("a.b", "c.d", pattern="c.#") == [("c.d", "")]
    assert topics("a.#", pattern="a.b.c") == [("a.b.c", "")]
    assert topics("#", schemas=[schema("x.v1", "x")], pattern="y") == [("y", "")]


@pytest.mark.parametrize("key", ["#", "a", "a.*", "*.b.#.c", "#.a"])
def test_the_topic_of_a_message_matches_its_pattern(key):
    assert matches(key, plain_topic(key))
    found = topic_for(key, "a.b")
    assert found is None or matches(key, found)


def test_a_topic_that_cannot_fit_is_not_made_to():
    assert topic_for("a.*", "b.c.d") is None
    assert topic_for("x.*.prod.b.c", "b.c") == "x.dev.prod.b.c"


def test_each_kind_of_message_comes_in_turn_and_one_that_cannot_be_made_is_told():
    names = [found.name for found in installed() if found.name.startswith("bodhi.update.comment")]
    sources = [Source("x", "a", ""), Source("x", "b", names[0]), Source("x", "c", "no.such")]
    supply = Generated(sources)
    found = [each for each, _ in zip(iter(supply), range(6), strict=False)]
    assert [message.topic for message in found[:3]] == ["a", "b", "c"]
    assert len({message.id for message in found}) == 6
    for each in found:
        get_message(each.topic, each.properties, each.body).validate()
    assert supply.take_faults() == []


def test_a_schema_that_has_no_valid_message_is_left_out(monkeypatch):
    def refuse(*_, **__):
        raise ValidationError("nothing fits")

    monkeypatch.setattr("consumer_framework.kit.development.messages.message_of", refuse)
    supply = Generated([Source("x", "a", "any"), Source("x", "b", "")])
    found = [message.topic for message, _ in zip(iter(supply), range(2), strict=False)]
    assert found == ["b", "b"]
    [fault] = supply.take_faults()
    assert "no message of any can be made" in fault
    assert list(Generated([])) == []


def test_lines_about_the_messages_name_the_package_that_a_topic_needs():
    keys = ["org.fedoraproject.prod.nuancier.#", *(f"t{n}" for n in range(6))]
    binding = {"exchange": "amq.topic", "routing_keys": keys}
    _, lines = described([binding], "#")
    assert "sends t0 (no schema)" in lines
    assert "and 2 more; --topic PATTERN chooses some" in lines
    assert described([binding], "none")[1][0] == "no binding takes a topic that matches none"


def test_recorded_messages_get_new_ids_and_the_exchange_of_their_binding(tmp_path):
    file = tmp_path / "recorded.jsonl"
    file.write_text('{"topic": "a.b", "body": {}, "id": "old"}\n\n{"topic": "c", "body": {}}\n')
    bindings = [
        {"exchange": "first", "routing_keys": ["x"]},
        {"exchange": "second", "routing_keys": ["a.#"]},
    ]
    found = recorded(file, bindings)
    assert [(each.exchange, each.topic) for each in found] == [("second", "a.b"), ("first", "c")]
    assert "old" not in {each.id for each in found}
    assert exchange_for("a", []) == "amq.topic"


def test_a_line_that_is_no_message_is_named(tmp_path):
    file = tmp_path / "recorded.jsonl"
    file.write_text('{"topic": "a", "body": {}}\n7\n')
    with pytest.raises(BadRecordError, match=r"recorded\.jsonl:2: is no JSON object; write an"):
        recorded(file, [])


# Changes.


def test_python_files_of_the_project_and_named_files_are_watched(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env/pyvenv.cfg").touch()
    toml, data = tmp_path / "sample.toml", tmp_path / "data"

    def watched(name):
        return is_watched(tmp_path / name, tmp_path, [toml, data])

    assert watched("sample.toml")
    assert watched("data/deep/any.txt")
    assert watched("src/sample/__init__.py")
    for other in (".venv/a.py", "env/lib/a.py", "build/a.py", "out.json", "../a.py", "b.toml"):
        assert not watched(other)


def test_changes_that_come_together_are_one(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / ".git").mkdir()
    toml = tmp_path / "sample.toml"
    with Changes(tmp_path, [toml]) as changes:
        found: set[Path] = set()
        # Nothing tells that the watch has begun.
        while not found:
            (tmp_path / "pkg/a.py").write_text("1")
            toml.write_text("2")
            (tmp_path / ".git/b.py").write_text("3")
            found = wait_for(changes)
        while len(found) < 2:
            found |= wait_for(changes)
    assert found == {tmp_path / "pkg/a.py", toml}


def wait_for(changes):
    import select  # noqa: PLC0415 -- here alone

    ready, _, _ = select.select([changes.descriptor], [], [], 2)
    return changes.take() if ready else set()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "watchfiles", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'consumer-framework\[watch\]'"):
        Changes(tmp_path, [])


# Events.


@pytest.mark.parametrize(
    "event",
    [events.Consuming(), events.Paused("why"), events.Settled("1", "t", "ack", "acknowledged")],
)
def test_an_event_is_read_as_it_was_written(event):
    assert events.read(events.line_of(event)) == event


@pytest.fixture
def told():
    return []


def settled(outcome, disposition, history=NO_HISTORY):
    properties = pika.BasicProperties(message_id="1")
    found = Delivery("q", 1, 1, False, "x", "t", properties, b"", 90.0, history)
    return Settled(found, outcome, Decision(disposition, history), is_void=False)


def failed(error):
    try:
        raise error
    except type(error) as caught:
        return Failed(caught)


def test_the_parent_is_told_the_fate_of_a_message_and_the_time_that_it_took(told):
    teller = Teller(told.append, lambda: 100.0)
    teller.notify(settled(Succeeded(), Ack()))
    teller.notify(settled(Skipped("old"), Ack()))
    teller.notify(settled(failed(ValueError("x")), Hold(130.0)))
    first, skipped, again = told
    assert (first.disposition, first.verb, first.seconds) == ("ack", "acknowledged", 10.0)
    assert (skipped.verb, skipped.reason) == ("skipped", "old")
    assert (again.retry_in, again.reason) == (30.0, "ValueError: x")
    assert "ValueError" in again.traceback
    assert again.fingerprint


def test_a_retry_takes_the_time_since_it_was_due(told):
    now = [100.0]
    teller = Teller(told.append, lambda: now[0])
    teller.notify(settled(failed(ValueError("x")), Hold(130.0)))
    now[0] = 131.0
    history = History((attempt_of(ValueError("x"), 100.0),))
    teller.notify(settled(failed(DependencyFault("db")), Quarantine("enough"), history=history))
    assert (told[1].seconds, told[1].attempt, told[1].reason) == (1.0, 2, "enough")
    assert told[1].traceback == ""


def test_the_parent_is_told_of_the_start_and_of_pauses_and_of_nothing_else(told):
    teller = Teller(told.append)
    teller.notify(StateChanged(State.CONNECTING, State.SUBSCRIBING))
    teller.notify(StateChanged(State.SUBSCRIBING, State.CONSUMING))
    teller.notify(Paused(Reason.DEPENDENCY, "the database is away"))
    assert told == [events.Consuming(), events.Paused("the database is away")]


# The process.


def test_output_is_cut_into_lines():
    found: list[bytes] = []
    lines = Lines(found.append)
    for part in (b"a", b"b\nc\n", b"\nd", b""):
        lines.feed(part)
    assert found == [b"ab", b"c", b"", b"d"]


def test_the_consumer_finds_its_project_and_nothing_of_a_service_around(tmp_path):
    (tmp_path / "src").mkdir()
    outer = {"NOTIFY_SOCKET": "/run/x", "FEDORA_MESSAGING_CONF": "/x", "HOME": "/h"}
    found = environment_for(tmp_path, {**outer, "PYTHONPATH": "/own"})
    assert found["PYTHONPATH"] == f"{tmp_path}/src:{tmp_path}:/own"
    assert found["HOME"] == "/h"
    assert not {"NOTIFY_SOCKET", "FEDORA_MESSAGING_CONF"} & set(found)


# The command line.


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ([], 2, "there is no terminal: say --once N or --rate N"),
        (["--once", "1", "--rate", "1"], 2, "give either --once or --rate"),
        (["--once", "1", "--retry-delay", "soon"], 2, "must be a length of time"),
        (["--once", "1", "--timeout", "0s"], 2, "must be longer than 0"),
        (["--once", "1"], 78, "no configuration file of a consumer"),
        (["--once", "1", "--conf", "missing.toml"], 2, "does not exist"),
    ],
)
def test_a_command_line_that_cannot_work_says_why(tmp_path, monkeypatch, options, code, text):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["dev", *options])
    assert result.exit_code == code
    assert text in result.output


@pytest.mark.parametrize(
    ("files", "options", "text"),
    [
        ({"a.toml": "callback = "}, [], "a.toml: is not TOML"),
        (
            {"a.toml": 'callback = "a:b"', "m.jsonl": "7"},
            ["--messages", "m.jsonl", "--retry-delay", "configured"],
            "--messages: m.jsonl:1: ",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_the_broker_starts(
    tmp_path, monkeypatch, files, options, text
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "consumer_framework.kit.development.session.Broker.missing", staticmethod(lambda: None)
    )
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    result = CliRunner().invoke(main, ["dev", "--once", "1", *options])
    assert result.exit_code == 78
    assert text in result.output


def test_a_missing_broker_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path, "a.toml"))
    monkeypatch.setattr(
        "consumer_framework.kit.development.session.Broker.missing",
        staticmethod(lambda: "the RabbitMQ server is not installed; apt install rabbitmq-server"),
    )
    result = CliRunner().invoke(main, ["dev", "--once", "1"])
    assert result.exit_code == 78
    assert "apt install rabbitmq-server" in result.output
