# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer record`` at a real broker: whole lines, and nothing taken from anybody."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest

from consumer_framework.kit import recorded

from .instance import until as until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")


class Recording:
    """A running `fm-consumer record`."""

    def __init__(self, file: Path, *words: object) -> None:
        self.file = file
        self.log = file.with_suffix(".log")
        environment = {key: os.environ[key] for key in os.environ if key != "COLUMNS"}
        with self.log.open("w") as log, file.with_suffix(".out").open("w") as out:
            command = [str(FM_CONSUMER), "record", *map(str, words), str(file)]
            self.process = subprocess.Popen(command, stdout=out, stderr=log, env=environment)

    def until(self, condition: Callable[[], Any]) -> None:
        until_told(condition, f"the command does not record or say it: {self.told()}", 30)

    def told(self) -> str:
        return self.log.read_text()

    def ready(self) -> Recording:
        self.until(lambda: "recording" in self.told() or self.process.poll() is not None)
        assert "recording" in self.told(), self.told()
        return self

    def end(self, number: int | None = signal.SIGINT) -> int:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(30)

    @property
    def numbers(self) -> list[int]:
        found = list(recorded.read(self.file))
        assert all(isinstance(each, recorded.Recorded) for each in found)
        return [json.loads(each.delivery.body)["n"] for each in found]  # type: ignore[union-attr]


@pytest.fixture
def record(tmp_path) -> Iterator[Callable[..., Recording]]:
    started: list[Recording] = []

    def start(*words: object, file: str = "recorded.jsonl") -> Recording:
        started.append(Recording(tmp_path / file, *words))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


@pytest.fixture
def channel(broker) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


@pytest.fixture
def word() -> str:
    """Return a first word of topics that no other test uses."""
    return f"r{uuid.uuid4().hex[:12]}"


def send(channel: Any, topic: str, *numbers: int) -> None:
    for n in numbers:
        properties = pika.BasicProperties(message_id=f"m{n}", headers={})
        channel.basic_publish("amq.topic", topic, json.dumps({"n": n}).encode(), properties)


def filled(channel: Any, name: str, count: int, **options: Any) -> None:
    channel.queue_declare(name, **options)
    for n in range(count):
        properties = pika.BasicProperties(message_id=f"m{n}", headers={})
        channel.basic_publish("", name, json.dumps({"n": n}).encode(), properties)


def rest(channel: Any, name: str) -> list[tuple[int, bool]]:
    """Take all messages out of a queue; return their numbers, and whether each came again."""
    found = []
    while (got := channel.basic_get(name, auto_ack=True))[0] is not None:
        found.append((json.loads(got[2])["n"], got[0].redelivered))
    return found


def test_messages_of_topics_are_appended_until_a_limit_and_others_get_them_too(
    broker, record, channel, queue_name, word
):
    channel.queue_declare(queue_name)
    channel.queue_bind(queue_name, "amq.topic", f"{word}.#")
    for portion in (range(3), range(3, 6)):
        running = record("--url", broker.url, "--topic", f"{word}.#", "--limit", 3).ready()
        send(channel, f"{word}.a", *portion)
        assert running.end(None) == 0
        assert "3 messages recorded in" in running.told()
    send(channel, "elsewhere", 9)
    assert running.numbers == [0, 1, 2, 3, 4, 5]
    assert running.file.stat().st_mode & 0o777 == 0o600
    assert rest(channel, queue_name) == [(n, False) for n in range(6)]


def test_ctrl_c_ends_it_with_whole_lines_and_the_file_can_be_replayed(
    broker, record, channel, word, tmp_path
):
    running = record("--url", broker.url, "--topic", f"{word}.*").ready()
    send(channel, f"{word}.a", *range(20))
    channel.basic_publish("amq.topic", f"{word}.odd", b"\xff")
    running.until(lambda: running.file.read_text().count("\n") == 21)
    assert running.end() == 0
    handler = tmp_path / "handler.py"
    handler.write_text("def handle(message): pass")
    (tmp_path / "any.toml").touch()
    words = ["--conf", tmp_path / "any.toml", "--callback-file", f"{handler}:handle", "--json"]
    done = subprocess.run(
        [FM_CONSUMER, "replay", *words, running.file], capture_output=True, timeout=60, check=False
    )
    assert json.loads(done.stdout.splitlines()[-1])["ended"] == {"succeeded": 20, "invalid": 1}


def test_a_length_of_time_ends_it_without_a_message(broker, record, word):
    words = ("--url", broker.url, "--topic", word, "--for", "300ms", "--json")
    running = record(*words)
    assert running.end(None) == 0
    assert json.loads(running.file.with_suffix(".out").read_text())["recorded"] == 0


def test_the_bindings_of_a_configuration_are_recorded_and_conditions_select(
    broker, record, channel, queue_name, word, tmp_path
):
    conf = tmp_path / "mine.toml"
    table = "durable = true\nauto_delete = false\nexclusive = false\narguments = {}\n"
    conf.write_text(
        f'amqp_url = "{broker.url}"\n[queues."{queue_name}"]\n{table}[[bindings]]\n'
        f'queue = "{queue_name}"\nexchange = "amq.topic"\nrouting_keys = ["{word}.one"]\n'
    )
    running = record("--conf", conf, "--where", "body.n>1", "--limit", 2).ready()
    send(channel, f"{word}.two", 5)
    send(channel, f"{word}.one", *range(4))
    assert running.end(None) == 0
    assert running.numbers == [2, 3]


def test_a_lost_connection_is_made_again(broker, record, channel, proxy, word):
    words = ("--url", proxy.url_for(broker.url), "--topic", word, "--limit", 2)
    running = record(*words).ready()
    send(channel, word, 1)
    running.until(running.file.read_text)
    proxy.cut()
    running.until(lambda: "connected again, to" in running.told())
    send(channel, word, 2)
    assert running.end(None) == 0
    assert running.numbers == [1, 2]


def test_the_messages_that_wait_in_a_queue_are_recorded_and_stay_in_their_order(
    broker, record, channel, queue_name
):
    filled(channel, queue_name, 5)
    running = record("--url", broker.url, "--queue", queue_name)
    assert running.end(None) == 0
    assert running.numbers == [0, 1, 2, 3, 4]
    assert broker.depth(queue_name)[0] == 5
    assert rest(channel, queue_name) == [(n, True) for n in range(5)]


def test_only_as_many_messages_are_lent_as_the_limit_says(broker, record, channel, queue_name):
    filled(channel, queue_name, 5)
    running = record("--url", broker.url, "--queue", queue_name, "--limit", 2)
    assert running.end(None) == 0
    assert running.numbers == [0, 1]
    assert rest(channel, queue_name) == [(0, True), (1, True), (2, False), (3, False), (4, False)]
    again = record("--url", broker.url, "--queue", queue_name, file="empty.jsonl")
    assert again.end(None) == 0
    assert again.numbers == []


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"durable": True, "arguments": {"x-queue-type": "quorum"}}, 10, "is a quorum queue"),
        ({"durable": True, "arguments": {"x-queue-type": "stream"}}, 10, "is a stream"),
        (None, 10, "cannot be read: 404"),
    ],
)
def test_a_queue_that_would_suffer_is_refused_with_a_cure(
    broker, record, channel, queue_name, options, code, words
):
    if options is not None:
        filled(channel, queue_name, 1, **options)
    running = record("--url", broker.url, "--queue", queue_name)
    assert running.end(None) == code
    assert words in running.told()


def test_a_durable_classic_queue_lends_its_messages(broker, record, channel, queue_name):
    filled(channel, queue_name, 1, durable=True, arguments={"x-max-length": 10})
    running = record("--url", broker.url, "--queue", queue_name)
    assert running.end(None) == 0
    assert running.numbers == [0]


def test_a_queue_with_a_consumer_is_refused(broker, record, channel, queue_name):
    filled(channel, queue_name, 1)
    channel.basic_consume(queue_name, lambda *_: None)
    running = record("--url", broker.url, "--queue", queue_name)
    assert running.end(None) == 75
    assert "has consumers, from which its messages would be taken" in running.told()


def test_a_full_disk_ends_it_and_leaves_whole_lines(broker, record, channel, word):
    running = record("--url", broker.url, "--topic", word, "--limit", 50).ready()
    # From here on the file may have 2 kB, as on a disk that is full then.
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
    send(channel, word, *range(40))
    assert running.end(None) == 75
    assert "cannot be written: File too large" in running.told()
    assert running.file.read_bytes()[-1:] in {b"", b"\n"}
