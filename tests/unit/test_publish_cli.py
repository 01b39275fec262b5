# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer publish``, without a broker: what it reads, refuses, stores and says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fedora_messaging import config as upstream_config
from fedora_messaging import message as upstream

from consumer_framework.cli import main
from consumer_framework.cli import options as cli_options
from consumer_framework.operate import publishing as host
from consumer_framework.operate.publishing import (
    BadLineError,
    Nowhere,
    Publication,
    Source,
)
from consumer_framework.publishing.direct import SendError
from consumer_framework.publishing.message import OutboxError, outgoing
from consumer_framework.publishing.messengers import Reject, Retry, Scope
from consumer_framework.publishing.store import OutboxStore
from consumer_framework.testing.broker import reserve_port
from tests.unit.outboxes import Scripted

FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")
OUTBOX = """
topic_prefix = "org.example"
publish_exchange = "mine"
[consumer_config.framework.outbox]
database = "sqlite:///{}"
messenger = "dummy"
max_body = 1000
"""


@pytest.fixture(autouse=True)
def _the_process_stays_as_it_is(monkeypatch):
    for name, value in dict(upstream_config.conf).items():
        monkeypatch.setitem(upstream_config.conf, name, value)
    monkeypatch.setattr("consumer_framework.adapters.log.set_up", lambda *_, **__: None)


@pytest.fixture
def conf(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(OUTBOX.format(tmp_path / "outbox.sqlite3"))
    return path


@pytest.fixture
def publish(conf):
    def run(*arguments: object, code: int = 0) -> Any:
        words = ["publish", "--conf", conf, *arguments]
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def rows(tmp_path):
    def read():
        store = OutboxStore.connect(f"sqlite:///{tmp_path}/outbox.sqlite3")
        try:
            return store.rows(limit=10_000)
        except OutboxError:  # it has no tables yet
            return []
        finally:
            store.close()

    return read


def lines_of(*objects: dict[str, Any]) -> str:
    return "".join(json.dumps(one) + "\n" for one in objects)


def numbered(count: int, **values: Any) -> str:
    return lines_of(
        *({"topic": "a.b", "body": {"n": n}, "id": f"id-{n}", **values} for n in range(count))
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(numbered(3))
    return path


# One message


def test_a_message_of_the_command_line_is_stored_with_the_prefix(publish, rows):
    result = publish("--topic", "app.done", "--body", '{"n": 1}')
    [row] = rows()
    assert row.message.topic == "org.example.app.done"
    assert row.message.exchange == "mine"
    assert row.message.body == b'{"n": 1}'
    assert row.message.priority is None
    assert f"message {row.message.id} (org.example.app.done) stored in sqlite" in result.stdout
    assert "no relay sends from there" in result.stdout


def test_every_part_of_a_message_can_be_given(publish, rows, tmp_path):
    (tmp_path / "body.json").write_text('{"from": "a file"}')
    words = ["--topic", "t", "--body", f"@{tmp_path}/body.json", "--severity", "error"]
    words += ["--priority", "7", "--header", "colour=red", "--header", "empty="]
    words += ["--ordering-key", "key", "--exchange", "other", "--no-prefix"]
    publish(*words)
    [row] = rows()
    message = row.message
    assert (message.topic, message.exchange, message.priority) == ("t", "other", 7)
    assert (message.ordering_key, json.loads(message.body)) == ("key", {"from": "a file"})
    assert message.headers["fedora_messaging_severity"] == 40
    assert message.headers["colour"] == "red"
    assert message.headers["empty"] == ""


def test_a_message_without_a_body_has_an_empty_one(publish, rows):
    publish("--topic", "t")
    assert rows()[0].message.body == b"{}"


def test_a_message_has_the_class_that_the_command_line_names(publish, rows):
    body = json.dumps({"subject": "s", "agent": "me", "ci": 1})
    result = publish("--schema", "anitya.project.add", "--topic", "t", "--body", body, code=65)
    assert "the message does not fit its schema" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "name a FILE, or - for standard input, or give --topic"),
        (["--schema", "base.message"], "--topic is missing"),
        (["--topic", "t", "--body", "{"], "is no JSON"),
        (["--topic", "t", "--body", "[]"], "is no object of JSON"),
        (["--topic", "t", "--body", "@/no/such"], "/no/such: No such file"),
        (["--topic", "t", "--header", "colour"], "write it as NAME=TEXT"),
        (["--topic", "t", "--header", "sent-at=now"], "is a header of fedora-messaging"),
        (["--topic", "t", "--skip", "1"], "--skip is for the messages of a FILE"),
        (["--topic", "t", "--new-ids"], "--new-ids is for the messages of a FILE"),
        (["--topic", "t", "--priority", "256"], "0<=x<=255"),
        (["some.jsonl", "--topic", "t"], "--topic is for one message"),
        (["some.jsonl", "--header", "a=b"], "--header is for one message"),
        (["/no/such.jsonl"], "/no/such.jsonl: No such file"),
        (["--topic", "t", "--schema", "anitya.project.ad"], "such as anitya.project.add"),
        (["--topic", "t", "--schema", "?"], "there is no message class ?"),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_cure(publish, rows, words, what):
    result = publish(*words, code=2)
    assert what in " ".join(result.stderr.split())
    assert rows() == []


def test_a_body_file_that_is_no_text_is_refused(publish, tmp_path):
    (tmp_path / "body").write_bytes(b"\xff")
    result = publish("--topic", "t", "--body", f"@{tmp_path}/body", code=2)
    assert "is no UTF-8" in result.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--topic", "t" * 300], "the topic has 312 bytes"),
        (["--topic", "t", "--body", json.dumps({"x": "y" * 2000})], "1000 are allowed"),
        (["--topic", "t", "--ordering-key", "k" * 300], "the ordering key has 300 bytes"),
    ],
)
def test_a_message_that_can_never_be_sent_is_refused(publish, words, what):
    assert what in publish(*words, code=65).stderr


def test_without_an_outbox_a_message_is_sent_at_once(publish, conf):
    conf.write_text('[consumer_config.framework.outbox]\nmessenger = "dummy"\n')
    result = publish("--topic", "t")
    assert "sent to nobody: the messenger is dummy" in result.stdout
    assert "relay" not in result.output


def test_the_command_line_chooses_between_the_outbox_and_the_broker(publish, rows):
    assert "sent to" in publish("--topic", "t", "--direct").stdout
    assert rows() == []
    assert "stored in" in publish("--topic", "t", "--outbox").stdout
    assert len(rows()) == 1


def test_the_outbox_must_have_a_database_that_the_file_names(publish, conf, monkeypatch):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    conf.write_text("")
    result = publish("--topic", "t", "--outbox", code=78)
    assert f"{conf}: consumer_config.framework.outbox.database: is not set" in result.stderr


def test_a_broker_that_cannot_be_reached_is_named_with_a_cure(publish, conf):
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        conf.write_text(f'amqp_url = "amqp://127.0.0.1:{port}"\n')
        result = publish("--topic", "t", code=14)
    assert f"cannot be reached: 127.0.0.1:{port}:" in result.stderr
    assert "amqp_url in the file of --conf" in result.stderr


def test_an_invalid_configuration_is_refused_by_key(publish, conf):
    conf.write_text("[consumer_config.framework.outbox]\nwindow = 0\n")
    assert "framework.outbox.window" in publish("--topic", "t", code=78).stderr


def test_a_messenger_that_is_not_there_is_told_with_the_file(publish, conf):
    conf.write_text('[consumer_config.framework.outbox]\nmessenger = "smoke"\n')
    result = publish("--topic", "t", "--direct", code=78)
    assert f"{conf}: consumer_config.framework.outbox.messenger: there is no" in result.stderr


def test_an_instance_is_named_by_its_name(conf, monkeypatch, rows):
    monkeypatch.setattr(cli_options, "CONFIGURATION_DIRECTORY", conf.parent)
    runner = CliRunner()
    result = runner.invoke(main, ["publish", "--instance", "mine", "--topic", "t"])
    assert result.exit_code == 0, result.output
    assert len(rows()) == 1
    result = runner.invoke(main, ["publish", "--instance", "other", "--topic", "t"])
    assert result.exit_code == 78
    assert "there is no instance 'other'" in result.stderr


def test_messages_to_wait_for_are_stored_and_not_waited_for(publish, conf, rows):
    with conf.open("a") as stream:
        stream.write('on_failure = "wait"\nrules = [{ topics = "#.s", on_failure = "skip" }]\n')
    began = time.monotonic()
    publish("--topic", "t")
    publish("--topic", "s")
    assert time.monotonic() - began < 25, "publish() would wait for 30 seconds each"
    assert [row.on_failure for row in rows()] == ["spool", "skip"]


def test_it_says_if_a_relay_sends_from_the_outbox(publish, tmp_path):
    publish("--topic", "t")
    store = OutboxStore.connect(f"sqlite:///{tmp_path}/outbox.sqlite3")
    assert store.leased_until() == 0
    assert store.lease("me", 100.0, time.time())
    assert "a relay sends from there" in publish("--topic", "t").stdout
    assert json.loads(publish("--topic", "t", "--json").stdout)["has_relay"] is True
    store.close()


# A file


def test_the_messages_of_a_file_are_stored_as_they_were_recorded(publish, rows, file):
    result = publish(file)
    assert [row.message.id for row in rows()] == ["id-0", "id-1", "id-2"]
    assert {row.message.topic for row in rows()} == {"a.b"}, "recorded topics have their prefix"
    assert "3 messages stored in" in result.stdout
    assert "3 messages kept the id and the time of the file" in result.stderr


def test_a_file_can_be_published_as_new_messages_with_the_prefix(publish, rows, file):
    result = publish(file, "--new-ids", "--prefix", "--ordering-key", "k")
    assert not {row.message.id for row in rows()} & {"id-0", "id-1", "id-2"}
    assert {row.message.topic for row in rows()} == {"org.example.a.b"}
    assert {row.message.ordering_key for row in rows()} == {"k"}
    assert "kept the id" not in result.stderr


def test_lines_can_be_skipped_and_empty_ones_count_as_lines(publish, rows, file):
    file.write_text("\n" + numbered(3) + "\n \n" + numbered(1).rstrip("\n"))
    publish(file, "--skip", 2)
    assert [row.message.id for row in rows()] == ["id-1", "id-2", "id-0"]


def test_a_file_with_bad_lines_publishes_nothing_and_names_each(publish, rows, file):
    file.write_text(
        numbered(1) + "{\n" + lines_of({"topic": "a"}, {"topic": "t" * 300, "body": {}})
    )
    result = publish(file, code=65)
    for number, what in ((2, "is no JSON"), (3, 'has no "body"'), (4, "has 300 bytes")):
        [line] = [one for one in result.stderr.splitlines() if f"{file}:{number}: " in one]
        assert what in line
        assert "; " in line, "the cure"
    assert f"nothing was published: 3 lines of {file} cannot be" in result.stderr
    assert rows() == []


def test_only_some_of_many_bad_lines_are_shown(publish, file):
    file.write_text("{\n" * 50)
    result = publish(file, code=65)
    assert result.stderr.count(f"{file}:") == 20
    assert "more lines are invalid, and not shown" in result.stderr
    assert "50 lines" in result.stderr


def test_bad_lines_can_be_left_out(publish, rows, file):
    file.write_text(numbered(1) + "{\n" + numbered(2))
    result = publish(file, "--keep-going", code=1)
    assert len(rows()) == 3
    assert f"{file}:2: is no JSON" in result.stderr
    assert "1 line left out" in result.stderr


def test_a_line_that_tells_a_terminal_what_to_do_is_shown_harmless(publish, file):
    file.write_text(lines_of({"topic": "a", "body": {}, "id": "\x1b[2J" * 200}))
    assert "\x1b" not in publish(file, code=65).stderr


def test_a_dry_run_publishes_nothing(publish, rows, file):
    assert "3 messages are valid; nothing was published" in publish(file, "--dry-run").stdout
    assert "is valid" in publish("--topic", "t", "--dry-run", "--direct").stdout
    assert rows() == []


def test_messages_of_classes_that_are_not_installed_are_published_and_told(publish, rows, file):
    file.write_text(numbered(2, headers={"fedora_messaging_schema": "gone"}))
    result = publish(file)
    assert "the class gone of 2 messages is not installed here" in result.stderr
    assert rows()[0].message.headers["fedora_messaging_schema"] == "gone"


def test_json_has_the_result_for_programs(publish, file):
    found = json.loads(publish(file, "--json").stdout)
    expected = {"done": "stored", "messages": 3, "line": 3, "left_out": 0, "may_repeat": False}
    assert expected.items() <= found.items()
    file.write_text("{\n")
    found = json.loads(publish(file, "--json", code=65).stdout)
    assert found["messages"] == 0
    assert [bad["line"] for bad in found["bad_lines"]] == [1]


def test_a_database_that_takes_nothing_is_told_with_the_place_to_go_on(publish, conf, file):
    conf.write_text(OUTBOX.format("/no/such/directory/outbox.sqlite3"))
    result = publish(file, "--skip", 1, code=75)
    assert "unable to open database file" in result.stderr
    assert f"0 messages stored, up to line 1 of {file}; go on with --skip 1" in result.stderr
    assert "unable to open" in publish("--topic", "t", code=75).stderr


@pytest.mark.parametrize(
    ("fate", "code"),
    [(Reject("its headers are too large"), 65), (Retry("403, refused", Scope.TOPIC), 75)],
)
def test_a_message_that_can_never_be_sent_is_bad_data(publish, file, monkeypatch, fate, code):
    messenger = Scripted(lambda _: fate)
    monkeypatch.setattr("consumer_framework.publishing.direct.configured", lambda *_: messenger)
    assert fate.reason in publish("--topic", "t", "--direct", code=code).stderr
    assert "0 messages sent" in publish(file, "--direct", code=code).stderr


def test_the_names_of_classes_and_instances_are_completed(monkeypatch, conf):
    monkeypatch.setattr(cli_options, "CONFIGURATION_DIRECTORY", conf.parent)

    def completed(*words: str) -> str:
        environment = {"_FM_CONSUMER_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words))}
        environment["COMP_WORDS"] = " ".join(["fm-consumer", *words])
        return CliRunner().invoke(main, [], env=environment, prog_name="fm-consumer").output

    assert "plain,anitya.project.add" in completed("publish", "--schema", "anitya.project")
    assert "plain,mine" in completed("publish", "--instance", "m")


# The parts


class Noting(Nowhere):
    """A destination that does what a test says."""

    def __init__(self, fault=None):
        self.batches = []
        self.fault = fault

    def put(self, batch):
        if self.fault is not None:
            self.fault(batch)
        self.batches.append([message.id for message in batch])


def publication(destination, **options):
    return Publication(lambda m: outgoing(m, exchange="x", now=0.0), destination, **options)


def test_a_large_file_is_stored_in_batches(file):
    file.write_text(numbered(1200))
    told = []
    run = publication(Noting())
    run.tell = lambda: told.append((run.position.line, run.position.messages))
    run.run(Source(file))
    assert [len(batch) for batch in run.destination.batches] == [500, 500, 200]
    assert told == [(500, 500), (1000, 1000), (1200, 1200)]


def test_large_messages_are_stored_in_small_batches(file):
    file.write_text(numbered(5, body={"x": "y" * (3 << 20)}))
    run = publication(Noting())
    run.run(Source(file))
    assert [len(batch) for batch in run.destination.batches] == [2, 2, 1]


def test_a_broker_that_stops_in_a_batch_gives_the_line_to_go_on_with(file):
    file.write_text(numbered(700))

    def fault(batch):
        if batch[0].id == "id-500":
            raise SendError("away", [batch[40], batch[41]])

    run = publication(Noting(fault))
    with pytest.raises(SendError):
        run.run(Source(file))
    assert run.position == host.Position(line=540, messages=698, may_repeat=True)


def test_a_database_that_stops_has_none_of_its_batch(file):
    file.write_text(numbered(700))

    def fault(batch):
        if batch[0].id == "id-500":
            raise OutboxError("full")

    run = publication(Noting(fault))
    with pytest.raises(OutboxError):
        run.run(Source(file))
    assert run.position == host.Position(line=500, messages=500)


def test_a_line_that_does_not_end_is_refused_and_those_before_it_are_stored(file, monkeypatch):
    monkeypatch.setattr(host, "LONGEST_LINE", 1 << 20)
    with file.open("a") as stream:
        stream.write("x" * (2 << 20))
    run = publication(Noting())
    with pytest.raises(BadLineError, match=r"more than 1\.0 MiB"):
        run.run(Source(file))
    assert run.position.line == 3
    assert run.destination.batches == [["id-0", "id-1", "id-2"]]


def test_a_source_that_cannot_be_read_any_more_keeps_the_messages_before(file):
    class Failing(Source):
        def lines(self):
            yield from super().lines()
            raise OSError(5, "Input/output error")

    run = publication(Noting())
    with pytest.raises(OSError, match="Input/output"):
        run.run(Failing(file))
    assert (run.position.line, run.position.messages) == (3, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_batch_on_its_way(file, number):
    file.write_text(numbered(1200))
    before = signal.getsignal(number)

    def fault(batch):
        if batch[0].id == "id-0":
            os.kill(os.getpid(), number)

    run = publication(Noting(fault))
    with pytest.raises(KeyboardInterrupt):
        run.run(Source(file))
    assert run.position == host.Position(line=500, messages=500)
    assert run.interrupted_by == number
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait_and_says_that_the_batch_has_no_clear_end(file):
    def fault(_batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    run = publication(Noting(fault))
    with pytest.raises(KeyboardInterrupt):
        run.run(Source(file))
    assert run.position == host.Position(line=0, messages=0, may_repeat=True)


def test_a_publication_in_a_thread_leaves_the_signals_alone(file):
    run = publication(Noting())
    thread = threading.Thread(target=run.run, args=[Source(file)])
    thread.start()
    thread.join()
    assert run.position.messages == 3


# Pipes


def piped(conf: Path, *words: str) -> Any:
    return subprocess.Popen(
        [FM_CONSUMER, "publish", "--conf", conf, "-", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition, timeout=30.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_messages_of_a_pipe_are_stored_before_it_ends_and_ctrl_c_says_how_to_go_on(conf, rows):
    with piped(conf) as process:
        process.stdin.write(numbered(2).encode() + b'{"topic": "half')
        process.stdin.flush()
        wait_for(lambda: len(rows()) == 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    expected = "2 messages stored, up to line 2 of standard input; go on with --skip 2"
    assert expected in errors.decode()


def test_a_bad_line_of_a_pipe_ends_it_behind_the_messages_before(conf, rows):
    with piped(conf) as process:
        _, errors = process.communicate((numbered(2) + "{\n" + numbered(1)).encode(), timeout=30)
    assert process.returncode == 65
    assert "standard input:3: is no JSON" in errors.decode()
    assert "go on with --skip 2" in errors.decode()
    assert len(rows()) == 2


def test_a_file_on_standard_input_is_validated_first(conf, rows, file):
    file.write_text(numbered(2) + "{\n")
    with file.open() as stream:
        done = subprocess.run(
            [FM_CONSUMER, "publish", "--conf", conf, "-"],
            stdin=stream,
            capture_output=True,
            check=False,
            timeout=30,
        )
    assert done.returncode == 65
    assert b"nothing was published" in done.stderr
    assert len(rows()) == 0


def test_the_exports_of_fedora_messaging_are_read(publish, rows, file):
    messages = [upstream.Message(topic="a", body={"text": "\u2028\x85"}) for _ in range(2)]
    file.write_text(upstream.dumps(messages), encoding="utf-8")
    publish(file)
    assert [row.message.id for row in rows()] == [message.id for message in messages]
