# SPDX-License-Identifier: GPL-2.0-or-later
"""Ready-made consumers work on a real broker, by their configuration alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import uuid
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pika
import pytest

from .instance import FM_CONSUMER, Instance, publish, queue_table, until

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = "consumer_framework.kit.command:RunCommand"


@pytest.fixture
def start_kit(tmp_path, broker, queue_name):
    """Return a function that starts an instance with a ready-made consumer."""
    started: list[Instance] = []

    def start(callback, config, extra="", environment=None):
        directory = tmp_path / f"kit_{len(started)}"
        directory.mkdir()
        table = f"[consumer_config]\n{config}\n{extra}"
        options = ["--callback", callback]
        instance = Instance(
            directory,
            broker.url,
            queue_table(queue_name),
            "",
            extra=table,
            options=options,
            environment=environment,
        )
        started.append(instance)
        return instance.start().ready()

    yield start
    for instance in started:
        instance.end()


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


# Commands.


def test_a_command_runs_for_each_message_and_a_failed_one_runs_again(
    start_kit, broker, queue_name, tmp_path
):
    out = tmp_path / "out"
    shell = f'[ -e {tmp_path}/mended ] || exit 1; echo "$FM_ID" >> {out}'
    recovery = '[consumer_config.framework.recovery]\nimmediate = 1\ndelays = ["100ms"]\n'
    instance = start_kit(COMMAND, f"shell = {json.dumps(shell)}\n", recovery)
    publish(broker.url, queue_name, [1])
    until(lambda: [r.state for r in instance.store()] == ["quarantined"], lambda: instance.log)
    assert "exit code 1" in instance.log
    (tmp_path / "mended").touch()
    publish(broker.url, queue_name, [2, 3])
    until(lambda: lines(out) == ["2", "3"], lambda: instance.log)
    assert instance.stop() == 0
    assert broker.depth(queue_name) == (0, 0)


@pytest.mark.parametrize(("on_stop", "left"), [("wait", 0), ("terminate", 1)])
def test_a_stop_waits_for_the_command_or_terminates_it(
    start_kit, broker, queue_name, tmp_path, on_stop, left
):
    shell = f"touch {tmp_path}/began; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    instance = start_kit(COMMAND, f'shell = "{shell}"\non_stop = "{on_stop}"\n')
    publish(broker.url, queue_name, [1])
    until((tmp_path / "began").exists, lambda: instance.log)
    instance.send(signal.SIGTERM)
    until(lambda: instance.told("STOPPING=1"), lambda: instance.log)
    if on_stop == "wait":
        (tmp_path / "go").touch()
    assert instance.wait() == 0, instance.log
    assert broker.depth(queue_name) == (left, 0)
    assert instance.store() == []


# Webhooks.


class _Hook(BaseHTTPRequestHandler):
    posted: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self):
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # The first attempt at each message meets a proxy without a server.
        first = not any(one == data["id"] for one, _ in self.posted)
        self.posted.append((data["id"], self.headers["Authorization"]))
        self.send_response(502 if first else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_webhook_gets_each_message_and_the_credential_stays_secret(
    start_kit, broker, queue_name, tmp_path
):
    (tmp_path / "token").write_text("s3cret-Token-of-the-Hook\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hook) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        config = f'url = "http://127.0.0.1:{server.server_port}/"\ntoken = "credential:token"\n'
        probe = '[consumer_config.framework.recovery.breaker]\nprobe = ["100ms"]\n'
        environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
        instance = start_kit(
            "consumer_framework.kit.webhook:Webhook", config, probe, environment=environment
        )
        publish(broker.url, queue_name, [1, 2])
        until(lambda: len(_Hook.posted) == 4, lambda: instance.log)
        assert instance.stop() == 0
        server.shutdown()
        thread.join()
    assert sorted(_Hook.posted) == [
        (one, "Bearer s3cret-Token-of-the-Hook") for one in ("1", "1", "2", "2")
    ]
    assert "s3cret" not in instance.log
    assert broker.depth(queue_name) == (0, 0)


# Files.


def is_done(broker, queue_name) -> bool:
    """Return True if the queue has no message, also none that is not acknowledged."""
    return f"{queue_name}\t0" in broker.ctl("list_queues", "name", "messages").splitlines()


def test_each_message_has_a_line_although_the_instance_is_killed(
    start_kit, broker, queue_name, tmp_path
):
    file = tmp_path / "messages.jsonl"
    config = f'path = "{file}"\nmax_bytes = 4000\n'
    batch = '[consumer_config.framework.batch]\nsize = 5\nseconds = "50ms"\n'
    consumer = "consumer_framework.kit.json_lines:AppendJsonLines"
    instance = start_kit(consumer, config, batch)
    publish(broker.url, queue_name, range(100))
    until(lambda: len(list(tmp_path.glob("messages.jsonl.*"))) > 2, lambda: instance.log)
    instance.stop(signal.SIGKILL)
    with file.open("a") as stream:
        stream.write('{"body": ')
    instance.start().ready()

    def found() -> set[int]:
        written = [line for each in tmp_path.glob("messages.jsonl*") for line in lines(each)]
        return {json.loads(line)["body"]["n"] for line in written if line.endswith("}")}

    until(lambda: found() == set(range(100)), lambda: instance.log)
    # Some were written before the kill, come again, and go back to the queue at a stop.
    until(lambda: is_done(broker, queue_name), lambda: instance.log)
    assert instance.stop() == 0
    assert all(line.endswith("}") for line in lines(file))
    assert broker.depth(queue_name) == (0, 0)


# Copies.


def test_each_message_has_a_copy_with_its_id_although_the_instance_is_killed(
    start_kit, broker, queue_name
):
    consumer = "consumer_framework.kit.forward:Forward"
    topics = f'[consumer_config.topics]\n"{queue_name}" = "copies.{queue_name}"\n'
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        copies = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(copies, "amq.topic", f"copies.{queue_name}")
        instance = start_kit(consumer, 'other_topics = "skip"\n', topics)
        publish(broker.url, queue_name, range(60))
        until(lambda: channel.queue_declare(copies, passive=True).method.message_count > 5, "5")
        instance.stop(signal.SIGKILL)
        instance.start().ready()
        found = {}

        def take() -> bool:
            method, properties, body = channel.basic_get(copies, auto_ack=True)
            if method is not None and properties is not None and body is not None:
                found[properties.message_id] = json.loads(body)["n"], properties.headers
            return len(found) == 60

        until(take, lambda: instance.log)
        until(lambda: is_done(broker, queue_name), lambda: instance.log)
        assert instance.stop() == 0
    assert {(one, str(n)) for one, (n, _) in found.items()} == {(str(n),) * 2 for n in range(60)}
    assert all(headers["fm-forwarded-by"] for _, headers in found.values())
    assert broker.depth(queue_name) == (0, 0)
    assert instance.store() == []


def test_copies_that_come_back_are_seen_at_the_start(broker, queue_name, tmp_path):
    file = tmp_path / "forward.toml"
    table = "[consumer_config]\nexchange = 'amq.topic'\n"
    callback = "callback = 'consumer_framework.kit.forward:Forward'\n"
    file.write_text(f"amqp_url = '{broker.url}'\n{callback}{queue_table(queue_name)}{table}")
    command = [str(FM_CONSUMER), "run", "--conf", str(file), "--state-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stderr
    assert "come back to the queue by its routing key" in done.stderr


# The one-line form.


@contextmanager
def trigger(broker, *options: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(FM_CONSUMER), "trigger", "--url", broker.url, *options]
    environment = {**os.environ, "XDG_STATE_HOME": str(log.parent), "TMPDIR": str(log.parent)}
    environment.pop("FEDORA_MESSAGING_CONF", None)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def publish_once_bound(broker, topic: str, bodies: list[int], log: Path) -> None:
    """Publish as soon as a queue is bound for *topic*: the trigger's own one has no known name."""

    def is_routed() -> bool:
        with suppress(pika.exceptions.UnroutableError):
            publish(broker.url, topic, bodies[:1])
            return True
        return False

    until(is_routed, log.read_text)
    publish(broker.url, topic, bodies[1:])


def test_a_trigger_on_a_named_queue_stops_after_a_count_and_leaves_the_rest(broker, tmp_path):
    log, name = tmp_path / "log", f"q{uuid.uuid4().hex[:8]}"
    options = ("--topic", name, "--queue", name, "--count", "2", "--state-dir", str(tmp_path))
    with trigger(broker, *options, "--", "sh", "-c", "cat; echo", log=log) as process:
        publish_once_bound(broker, name, [1, 2, 3], log)
        assert process.wait(60) == 0, log.read_text()
    found = [json.loads(line)["id"] for line in lines(log) if line.startswith("{")]
    assert found == ["1", "2"]
    until(lambda: broker.depth(name) == (1, 0), lambda: str(broker.depth(name)))
    assert not list(tmp_path.glob("fm-trigger-*"))


def test_a_trigger_on_its_own_queue_ends_its_command_at_ctrl_c(broker, tmp_path):
    log, topic = tmp_path / "log", f"t{uuid.uuid4().hex[:8]}"
    command = ("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with trigger(broker, "--topic", f"{topic}.#", "--", *command, log=log) as process:
        publish_once_bound(broker, f"{topic}.a", [1], log)
        until(lambda: lines(tmp_path / "pid"), log.read_text)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    [pid] = lines(tmp_path / "pid")
    assert not Path(f"/proc/{pid}").exists()
    assert log.read_text() == ""
    assert not list(tmp_path.glob("fm-trigger-*"))


def test_a_trigger_tells_where_failed_messages_are(broker, tmp_path):
    log, topic = tmp_path / "log", f"t{uuid.uuid4().hex[:8]}"
    options = ("--topic", topic, "--", "sh", "-c", "exit 3")
    with trigger(broker, *options, log=log) as process:
        publish_once_bound(broker, topic, [1], log)
        until(lambda: "exit code 3" in log.read_text(), log.read_text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def test_the_printed_configuration_is_the_one_of_a_service(broker, queue_name, tmp_path):
    command = [str(FM_CONSUMER), "trigger", "--topic", queue_name, "--queue", "printed"]
    more = ["--url", broker.url, "--print-config", "--", "touch", f'{tmp_path}/done \u007f"ü']
    text = subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
    file = tmp_path / "printed.toml"
    file.write_text(text)
    environment = {**os.environ, "STATE_DIRECTORY": str(tmp_path / "state")}
    run = [str(FM_CONSUMER), "run", "--conf", str(file)]
    with subprocess.Popen(run, env=environment) as process:
        publish_once_bound(broker, queue_name, [1], file)
        until((tmp_path / 'done \u007f"ü').exists, text)
        process.terminate()
