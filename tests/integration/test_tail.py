# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer tail`` at a real broker: it shows everything, and takes nothing from anybody."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest
from anitya_schema import ProjectCreated

from consumer_framework.testing.broker.tls import TlsBroker

from .instance import until as until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedora_messaging import message as upstream

FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")
_OF_TERMINALS = ("COLUMNS", "NO_COLOR")


def until(condition: Callable[[], Any]) -> None:
    until_told(condition, "the command does not say or show it", 30)


# As Fedora's public broker has it: queues named by a UUID or by the broker, and nothing else.
PUBLIC = r"^(\w{8}(-\w{4}){3}-\w{12}|amq\.gen.*)$"


class Tail:
    """A running `fm-consumer tail`."""

    def __init__(self, *words: object, **options: Any) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        environment = {key: os.environ[key] for key in os.environ if key not in _OF_TERMINALS}
        self.process = subprocess.Popen(
            [FM_CONSUMER, "tail", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **options.pop("env", {})},
            **options,
        )
        pipes = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [
            threading.Thread(target=self._read, args=each) for each in pipes if each[0]
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            lines.append(line)  # noqa: PERF402 -- while others read the list

    def ready(self) -> Tail:
        until(lambda: self.told("watching") or self.process.poll() is not None)
        assert self.told("watching"), self.err
        return self

    def told(self, words: str) -> bool:
        return any(words in line for line in self.err)

    def shows(self, count: int) -> list[str]:
        until(lambda: len(self.out) >= count)
        return list(self.out)

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        code = self.process.wait(30)
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        return code


@pytest.fixture
def tail() -> Iterator[Callable[..., Tail]]:
    started: list[Tail] = []

    def start(*words: object, **options: Any) -> Tail:
        started.append(Tail(*words, **options))
        return started[-1]

    yield start
    for each in started:
        each.end(signal.SIGKILL)


@pytest.fixture
def word() -> str:
    """Return a first word of topics that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def publish(broker) -> Iterator[Callable[..., None]]:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()

        def send(topic: str, body: Any, **properties: Any) -> None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            made = pika.BasicProperties(message_id=str(uuid.uuid4()), **properties)
            channel.basic_publish("amq.topic", topic, raw, made)

        yield send


def headers(message: upstream.Message) -> dict[str, Any]:
    return dict(message._headers)


PROJECT = ProjectCreated(
    topic="anitya.project.add",
    body={
        "distro": None,
        "message": {"agent": "somebody", "project": "zlib"},
        "project": {
            "backend": "GitHub", "created_on": 1.0, "ecosystem": "x", "homepage": "h", "id": 1,
            "name": "zlib", "regex": None, "updated_on": 1.0, "version": "1", "versions": [],
            "version_url": None, "stable_versions": [],
        },
    },
)  # fmt: skip


def test_a_message_takes_a_line_with_time_topic_and_the_summary_of_its_class(
    broker, tail, publish, word
):
    running = tail("--url", broker.url, "--topic", f"{word}.#").ready()
    publish(f"{word}.add", PROJECT.body, headers=headers(PROJECT))
    publish("elsewhere", {})
    publish(f"{word}.plain", {"n": 1})
    first, second = running.shows(2)
    assert first[2] == first[5] == ":"
    assert first[8:].strip() == f"{word}.add  {PROJECT.summary}"
    assert second[8:].strip() == f'{word}.plain  {{"n": 1}}'
    assert running.end() == 0
    assert len(running.out) == 2
    assert running.told("2 messages shown in")


def test_other_consumers_get_every_message_all_the_same(broker, tail, publish, queue_name, word):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue_name)
        channel.queue_bind(queue_name, "amq.topic", f"{word}.#")
        running = tail("--url", broker.url, "--topic", f"{word}.#", "--json").ready()
        for number in range(20):
            publish(f"{word}.x", {"n": number})
        own = json.loads(running.shows(20)[0])["queue"]
        assert broker.depth(queue_name)[0] == 20
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="405"):
        broker.depth(own)
    assert running.end() == 0
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
        broker.depth(own)


def test_conditions_select_and_count_ends_it(broker, tail, publish, word):
    running = tail(
        *("--url", broker.url, "--topic", f"{word}.*", "--where", "body.build.name=kernel"),
        *("--where", "body.build.id>10", "--count", 2, "--json"),
    ).ready()
    for name, number in [("kernel", 5), ("bash", 11), ("kernel", 11), ("kernel", 12)]:
        publish(f"{word}.x", {"build": {"name": name, "id": number}})
    assert running.finish() == 0
    assert [json.loads(line)["body"]["build"]["id"] for line in running.out] == [11, 12]
    assert running.told("2 messages shown of 4 in")


def test_the_lines_of_json_can_be_published_again(broker, tail, publish, word, tmp_path):
    running = tail("--url", broker.url, "--topic", f"{word}.#", "--json", "--count", 2).ready()
    publish(f"{word}.add", PROJECT.body, headers=headers(PROJECT))
    publish(f"{word}.plain", {"text": "a\u2028b\x1b[31m"}, headers={"x": "y"}, priority=3)
    assert running.finish() == 0
    file = tmp_path / "recorded.jsonl"
    file.write_text("".join(running.out))
    again = tail("--url", broker.url, "--topic", f"{word}.#", "--json", "--count", 2).ready()
    (tmp_path / "conf.toml").write_text(f'amqp_url = "{broker.url}"\n')
    command = [FM_CONSUMER, "publish", file, "--conf", tmp_path / "conf.toml"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert again.finish() == 0
    known = [json.loads(line) for line in (*running.out, *again.out)]
    for first, second in zip(known[:2], known[2:], strict=True):
        assert {**first, "queue": 0, "headers": 0} == {**second, "queue": 0, "headers": 0}
        assert first["headers"].items() <= second["headers"].items()


def test_a_message_that_cannot_be_decoded_is_shown_as_such_and_does_nothing_to_the_terminal(
    broker, tail, publish, word
):
    words = ("--url", broker.url, "--topic", f"{word}.#", "--full", "--count", 4)
    running = tail(*words).ready()
    publish(f"{word}.\x1b[2J", b"\xff\x1b]0;owned\x07")
    publish(f"{word}.list", b"[]")
    publish(f"{word}.bad", {}, headers=headers(PROJECT))
    publish(f"{word}.large", {"x": "\x1b[31m" + "y" * 300_000})
    assert running.finish() == 0
    shown = "".join(running.out)
    assert shown.replace("\n", "").isprintable()
    assert shown.count("INVALID: ") == 3
    assert f"{word}.\\x1b[2J" in shown
    assert "its body is [], not an object" in shown
    assert "is a required property" in shown
    assert running.told("4 messages shown in")
    assert running.told("3 of them invalid")


def test_properties_that_no_library_can_decode_do_not_end_it(broker, tail, publish, word):
    running = tail("--url", broker.url, "--topic", f"{word}.#").ready()
    publish(f"{word}.late", {}, timestamp=2**62)
    publish(f"{word}.x", {"n": 1})
    assert len(running.shows(2)) == 2
    assert not running.told("lost")
    assert running.end() == 0


def test_a_lost_connection_is_told_and_made_again(broker, tail, publish, proxy, word):
    running = tail("--url", proxy.url_for(broker.url), "--topic", f"{word}.#").ready()
    publish(f"{word}.x", {"n": 1})
    running.shows(1)
    proxy.cut()
    until(lambda: running.told("the connection is lost"))
    until(lambda: running.told("connected again, to"))
    publish(f"{word}.x", {"n": 2})
    running.shows(2)
    assert running.end(signal.SIGTERM) == 0
    assert running.told("2 messages shown in")


def test_a_queue_that_an_administrator_deletes_is_made_again(broker, tail, publish, word):
    running = tail("--url", broker.url, "--topic", f"{word}.#", "--json").ready()
    publish(f"{word}.x", {})
    broker.ctl("delete_queue", json.loads(running.shows(1)[0])["queue"])
    until(lambda: running.told("the broker deleted the queue"))
    until(lambda: running.told("connected again"))
    publish(f"{word}.x", {})
    running.shows(2)
    assert running.end() == 0


def test_the_bindings_of_a_configuration_are_watched_and_its_queue_is_left_alone(
    broker, tail, publish, queue_name, word, tmp_path
):
    conf = tmp_path / "mine.toml"
    table = "durable = true\nauto_delete = false\nexclusive = false\narguments = {}\n"
    binding = f'[[bindings]]\nqueue = "{queue_name}"\nexchange = "amq.topic"\n'
    conf.write_text(
        f'amqp_url = "{broker.url}"\ncallback = "a:b"\n[queues."{queue_name}"]\n{table}'
        f'{binding}routing_keys = ["{word}.one"]\n'
    )
    running = tail("--conf", conf).ready()
    publish(f"{word}.two", {})
    publish(f"{word}.one", {})
    assert f"{word}.one" in running.shows(1)[0]
    assert running.end() == 0
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
        broker.depth(queue_name)


def test_nobody_reading_any_more_ends_it(broker, tail, publish, word):
    read, write = os.pipe()
    running = tail("--url", broker.url, "--topic", f"{word}.#", stdout=write).ready()
    os.close(write)
    os.close(read)
    publish(f"{word}.x", {})
    assert running.finish() == 0
    assert running.told("shown")
    assert not running.told("Traceback")


def test_a_terminal_gets_colours_and_lines_of_its_width(broker, tail, publish, word):
    ours, theirs = pty.openpty()
    words = ("--url", broker.url, "--topic", f"{word}.#", "--count", 2)
    running = tail(*words, stdout=theirs, env={"COLUMNS": "60"}).ready()
    os.close(theirs)
    publish(f"{word}.x", {"text": "long " * 60_000}, headers={"fedora_messaging_severity": 40})
    publish(f"{word}.x", b"nothing")
    assert running.finish() == 0
    got = b""
    try:
        while part := os.read(ours, 65536):
            got += part
    except OSError:
        pass
    os.close(ours)
    first, second = got.decode().splitlines()[:2]
    assert "\x1b[31m" in first
    assert "\x1b[31mINVALID: " in second
    plain = first
    for code in ("\x1b[31m", "\x1b[0m", "\x1b[1m", "\x1b[2m"):
        plain = plain.replace(code, "")
    assert len(plain) == 60
    assert plain.endswith("…")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--exchange", "missing"], 10, 'exchange "missing": 404'),
        (["--topic", "x" * 300], 78, "bindings"),
    ],
)
def test_what_the_broker_does_not_have_is_told_with_a_cure(broker, tail, words, code, told):
    running = tail("--url", broker.url, *words)
    assert running.finish() == code
    assert running.told(told), running.err


def test_a_wrong_password_is_told_without_showing_it(broker, tail):
    running = tail("--url", broker.url_for("guest", "very-wrong"))
    assert running.finish() == 14
    assert running.told("does not accept the connection")
    assert not running.told("very-wrong")


# Fedora's public broker


VHOST = "/public_pubsub"


@pytest.fixture(scope="module")
def public(broker, tmp_path_factory) -> Iterator[TlsBroker]:
    """Start a broker with the users and rights of Fedora's; the other fixture checks programs."""
    may = [("fedora", PUBLIC, ".*"), ("reader", "^$", ".*"), ("guest", ".*", ".*")]
    directory = tmp_path_factory.mktemp("public")
    definitions = {
        "vhosts": [{"name": VHOST}, {"name": "/"}],
        "users": [
            {"name": "guest", "password": "guest", "tags": ["administrator"]},
            *({"name": name, "password_hash": "", "tags": []} for name in ("fedora", "reader")),
        ],
        "permissions": [
            {"vhost": VHOST, "user": user, "configure": own, "write": own, "read": read}
            for user, own, read in may
        ],
    }
    (directory / "definitions.json").write_text(json.dumps(definitions))
    config = {"load_definitions": str(directory / "definitions.json")}
    with TlsBroker(directory, config=config) as node:
        yield node


@pytest.fixture
def as_fedora(public, tmp_path, tail) -> Callable[..., Tail]:
    """Return a function that starts the command with the certificate of a user."""

    def start(user: str, *words: object) -> Tail:
        pair = public.authority.issue(user)
        files = tmp_path / "fedora-messaging"
        files.mkdir()
        shutil.copy(public.authority.certificate, files / "cacert.pem")
        shutil.copy(pair.certificate, files / "fedora-cert.pem")
        shutil.copy(pair.key, files / "fedora-key.pem")
        url = f"amqps://{user}:@localhost:{public.tls_port}/%2Fpublic_pubsub"
        environment = {"XDG_CONFIG_HOME": str(tmp_path)}
        running: Tail = tail("--fedora", "--url", url, *words, env=environment)
        return running

    return start


def test_fedoras_broker_is_watched_with_the_rights_that_it_gives_to_everybody(public, as_fedora):
    running = as_fedora("fedora", "--topic", "org.fedoraproject.#", "--count", 1).ready()
    parameters = pika.URLParameters(public.url.replace("%2F", "%2Fpublic_pubsub"))
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.basic_publish("amq.topic", "org.fedoraproject.prod.copr.build.end", b"{}")
    assert running.finish() == 0
    assert "org.fedoraproject.prod.copr.build.end" in running.out[0]


def test_a_user_who_may_configure_nothing_is_told_the_rights_that_it_takes(as_fedora):
    running = as_fedora("reader")
    assert running.finish() == 10
    assert running.told("does not let this user declare a queue: 403")
    assert running.told("amq.gen-")
