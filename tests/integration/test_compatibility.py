# SPDX-License-Identifier: GPL-2.0-or-later
"""Callbacks and files of ``fedora-messaging consume`` work here unchanged."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import pika
import pytest

from consumer_framework.testing.broker import reserve_port

from .instance import publish, queue_table, until
from .test_handlers import ASYNC_OBJECT, COROUTINE, FUNCTION, UPSTREAM_CLASS

UPSTREAM_COMMAND = [str(Path(sys.executable).with_name("fedora-messaging")), "consume"]


@pytest.mark.parametrize("command", ["fedora-messaging", "fm-consumer"])
@pytest.mark.parametrize("form", [FUNCTION, COROUTINE, UPSTREAM_CLASS, ASYNC_OBJECT])
def test_the_same_file_and_callback_run_under_both_commands(
    broker, queue_name, start, command, form
):
    extra = '[client_properties]\napp = "both"\n[consumer_config]\ngreeting = "hello"\n'
    instance = start(
        broker.url,
        queue_table(queue_name),
        form,
        extra=extra,
        command=UPSTREAM_COMMAND if command == "fedora-messaging" else None,
    )
    until(lambda: depth(broker, queue_name) == (0, 1), f"it consumes\n{instance.log}")
    publish(broker.url, queue_name, range(5))
    assert [note["body"]["n"] for note in instance.noted("done", 5)] == [0, 1, 2, 3, 4]
    assert instance.stop() == 0


def depth(broker, queue):
    try:
        return broker.depth(queue)
    except pika.exceptions.ChannelClosedByBroker:
        return None


def test_upstreams_own_example_runs(broker, queue_name, start):
    instance = start(
        broker.url,
        queue_table(queue_name),
        "",
        options=["--callback", "fedora_messaging.example:printer"],
    ).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: "Subject: message.Message" in instance.log or "Id: 1" in instance.log, "printed")
    assert instance.stop() == 0


def test_the_command_line_stands_before_the_file(broker, queue_name, start):
    other = f"{queue_name}.other"
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().exchange_declare(queue_name, "topic")
    options = ["--queue-name", other, "--exchange", queue_name, "--app-name", "told"]
    options += ["--routing-key", "a.#", "--routing-key", "b"]
    instance = start(broker.url, queue_table(queue_name), FUNCTION, options=options).ready()
    bindings = json.loads(broker.ctl("list_bindings", "--formatter", "json"))
    keys = {b["routing_key"] for b in bindings if b["source_name"] == queue_name}
    assert keys == {"a.#", "b"}
    properties = broker.ctl("list_connections", "client_properties")
    assert '{"app","told"}' in properties
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        body = json.dumps({"n": 1}).encode()
        properties = pika.BasicProperties(message_id="1", content_encoding="utf-8", headers={})
        channel.basic_publish(queue_name, "a.x", body, properties)
        assert instance.noted("done", 1)[0]["queue"] == other
        assert instance.stop() == 0
        channel.exchange_delete(queue_name)


def test_a_callback_file_stands_before_the_files_callback(broker, queue_name, start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from consumer_framework import Consumer\n"
        "class Told(Consumer):\n"
        "    @dataclasses.dataclass\n"
        "    class Config:\n"
        "        word: str = 'said'\n"
        "    def handle(self, message):\n"
        "        print(self.config.word, message.body['n'], flush=True)\n"
    )
    instance = start(
        broker.url, queue_table(queue_name), FUNCTION, options=["--callback-file", f"{script}:Told"]
    ).ready()
    publish(broker.url, queue_name, [5])
    until(lambda: "said 5" in instance.log, "the file's callback ran")
    assert instance.stop() == 0


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)


def test_the_monitoring_server_answers_as_upstreams_does(broker, queue_name, start):
    with reserve_port() as holder:
        port = holder.getsockname()[1]
    extra = f'[monitoring]\nport = {port}\naddress = "127.0.0.1"\n'
    instance = start(broker.url, queue_table(queue_name), FUNCTION, extra=extra).ready()
    publish(broker.url, queue_name, range(3))
    instance.noted("done", 3)
    until(lambda: get(port, "/ready")["consumed"]["processed"] == 3, "all are counted")
    assert get(port, "/live") == {"status": "OK"}
    assert get(port, "/ready") == {
        "consuming": True,
        "published": 0,
        "consumed": {"received": 3, "processed": 3, "dropped": 0, "rejected": 0, "failed": 0},
    }
    # Upstream's command ends if it cannot have the port.
    other = start(broker.url, queue_table(queue_name), FUNCTION, extra=extra).ready()
    assert f"monitoring port 127.0.0.1:{port}: cannot listen: Address already in use" in other.log
    assert "Traceback" not in other.log
    assert other.stop() == 0
    assert instance.stop() == 0


def test_a_log_config_of_the_file_is_used(broker, queue_name, start):
    extra = """
[log_config]
version = 1
disable_existing_loggers = false
[log_config.formatters.mine]
format = "MINE %(message)s"
[log_config.handlers.console]
class = "logging.StreamHandler"
formatter = "mine"
stream = "ext://sys.stdout"
[log_config.root]
level = "INFO"
handlers = ["console"]
"""
    instance = start(broker.url, queue_table(queue_name), FUNCTION, extra=extra).ready()
    assert f"MINE consuming from {queue_name}" in instance.log
    assert instance.stop() == 0


FEDORAS_LOGGING = """
[log_config]
version = 1
disable_existing_loggers = true
root = {level = "ERROR", handlers = ["console"]}
handlers = {console = {class = "logging.StreamHandler"}}
loggers = {fedora_messaging = {level = "INFO", propagate = false, handlers = ["console"]}}
"""
CONFIGURES_LOGGING = """
from consumer_framework import Consumer
config.conf.setup_logging()

class handler(Consumer):
    def setup(self):
        config.conf.setup_logging()

    def handle(self, message):
        raise ValueError("as ever")
"""


@pytest.mark.parametrize("file", ["", FEDORAS_LOGGING])
def test_failures_are_seen_with_fedoras_logging_and_a_callback_that_configures_it(
    broker, queue_name, start, file
):
    extra = "[consumer_config.framework.recovery]\nimmediate = 0\ndelays = []\n" + file
    instance = start(broker.url, queue_table(queue_name), CONFIGURES_LOGGING, extra=extra).ready()
    publish(broker.url, queue_name, [1])
    until(lambda: "ValueError: as ever" in instance.log, instance.log)
    assert "consuming from" in instance.log
    assert instance.stop() == 0
    assert "stopped with exit code 0" in instance.log
