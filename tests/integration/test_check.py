# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer check --broker`` finds the problems of a start, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pika
import pytest

from .instance import FM_CONSUMER, publish, queue_table


@pytest.fixture
def check(tmp_path):
    """Return a function that checks a configuration and returns exit code and report."""

    def check_queues(url: str, queues: str, *options: str, extra: str = "") -> tuple[int, Any]:
        file = tmp_path / "sample.toml"
        (tmp_path / "checked.py").write_text("def handler(message): pass\n")
        file.write_text(f'amqp_url = "{url}"\ncallback = "checked:handler"\n{extra}\n{queues}')
        ended = fm_consumer(tmp_path, "check", "--broker", "--json", *options)
        return ended.returncode, json.loads(ended.stdout)

    return check_queues


def fm_consumer(directory: Any, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FM_CONSUMER, command, "--conf", str(directory / "sample.toml"), *options],
        env={
            **os.environ,
            "PYTHONPATH": str(directory),
            "STATE_DIRECTORY": str(directory / "state"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(report: Any, level: str, path: str | None) -> list[str]:
    found = [f for f in report["findings"] if (f["level"], f["path"]) == (level, path)]
    return [f"{f['message']}; {f['cure']}" for f in found]


@pytest.fixture
def channel(broker):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield connection.channel()


def test_a_queue_that_is_there_is_told_with_its_messages_and_nothing_is_changed(
    broker, queue_name, channel, check
):
    channel.queue_declare(queue_name, durable=True)
    channel.queue_bind(queue_name, "amq.topic", queue_name)
    publish(broker.url, queue_name, [1, 2])
    channel.basic_consume(queue_name, lambda *_: None, consumer_tag="other")
    channel.basic_cancel("other")
    before = broker_state(broker)
    exit_code, report = check(broker.url, queue_table(queue_name), "--strict")
    assert exit_code == 0, report
    path = f"queues.{json.dumps(queue_name)}"
    assert told(report, "info", path) == ["is there, with 2 messages and 0 consumers; None"]
    (connected,) = told(report, "info", "amqp_url")
    assert connected.startswith(f"RabbitMQ {version(broker)} at 127.0.0.1:{broker.port} takes the")
    (unseen,) = told(report, "info", None)
    assert "policies, and the rights to bind and to consume, cannot be seen" in unseen
    assert "`rabbitmqctl list_queues -p / name type arguments policy`" in unseen
    assert "`rabbitmqctl list_policies -p /`" in unseen
    assert broker_state(broker) == before


def version(broker) -> str:
    return str(broker.ctl("version")).strip().splitlines()[-1]


def broker_state(broker) -> tuple[str, str, str]:
    queues = broker.ctl("list_queues", "name", "durable", "arguments", "messages", "policy")
    return queues, broker.ctl("list_bindings"), broker.ctl("list_exchanges")


def test_the_commands_that_show_policies_are_some_that_the_broker_has(broker):
    broker.ctl("list_queues", "-p", "/", "name", "type", "arguments", "policy")
    broker.ctl("list_policies", "-p", "/")


def test_a_queue_that_the_start_would_make_is_not_made(broker, queue_name, check):
    before = broker_state(broker)
    exit_code, report = check(broker.url, queue_table(queue_name))
    assert exit_code == 0
    path = f"queues.{json.dumps(queue_name)}"
    (line,) = told(report, "info", path)
    assert line.startswith("is not there yet; the start makes it, if the account may")
    assert broker_state(broker) == before


def test_a_queue_that_the_broker_names_needs_no_look(broker, check):
    exit_code, report = check(broker.url, "")
    assert exit_code == 0
    assert [f["path"] for f in report["findings"] if f["level"] == "info"] == ["amqp_url", None]


@pytest.fixture
def refused(check, tmp_path):
    """Return a function that compares the refusals of `check` and `run`: exit code and text."""

    def refused_by_both(url: str, queues: str, extra: str = "") -> str:
        exit_code, report = check(url, queues, extra=extra)
        message = next(f["message"] for f in report["findings"] if f["level"] == "error")
        ran = fm_consumer(tmp_path, "run")
        assert ran.returncode == exit_code
        assert message.partition(" authentication failed;")[0] in ran.stderr
        return f"{exit_code}: {message}"

    return refused_by_both


def test_a_missing_queue_that_must_be_there_ends_both(broker, queue_name, refused):
    message = refused(broker.url, queue_table(queue_name), "passive_declares = true")
    assert message.startswith(f'10: the broker refuses the queue "{queue_name}": 404 NOT_FOUND')


def test_a_queue_with_other_properties_ends_both(broker, queue_name, channel, refused):
    channel.queue_declare(queue_name, durable=False)
    message = refused(broker.url, queue_table(queue_name))
    assert message.startswith(f'10: the broker refuses the queue "{queue_name}": 406 PRECONDITION')


def test_a_password_that_is_wrong_ends_both(broker, queue_name, refused):
    url = broker.url.replace("guest:guest", "guest:wrong")
    message = refused(url, queue_table(queue_name))
    assert "14: the broker at 127.0.0.1" in message
    assert "authentication failed" in message


def test_an_account_that_may_not_declare_ends_both_unless_declares_are_passive(
    broker, queue_name, channel, check, refused
):
    channel.queue_declare(queue_name, durable=True)
    broker.add_user("checker", "secret", configure="^$")
    url = broker.url_for("checker", "secret")
    message = refused(url, queue_table(queue_name))
    assert message.startswith(f'10: the broker refuses the queue "{queue_name}": 403 ACCESS_REF')
    exit_code, report = check(url, queue_table(queue_name), extra="passive_declares = true")
    assert exit_code == 0, report


def test_a_missing_exchange_is_found(broker, queue_name, channel, check):
    channel.queue_declare(queue_name, durable=True)
    table = queue_table(queue_name).replace("amq.topic", "no.such.exchange")
    exit_code, report = check(broker.url, table)
    assert exit_code == 10
    (line,) = told(report, "error", "bindings")
    assert f'the binding of queue "{queue_name}" to exchange "no.such.exchange"' in line


def test_a_queue_that_another_connection_has_is_warned_of(broker, queue_name, channel, check):
    channel.queue_declare(queue_name, exclusive=True)
    table = queue_table(queue_name, durable=False, exclusive=True)
    exit_code, report = check(broker.url, table)
    assert exit_code == 0
    (line,) = told(report, "warning", f"queues.{json.dumps(queue_name)}")
    assert line.startswith("another connection has it exclusively")


def test_a_quorum_queue_of_an_old_broker_has_no_limit(broker, queue_name, check):
    if not version(broker).startswith("3."):
        pytest.skip("RabbitMQ 4 has a limit")
    table = queue_table(queue_name, arguments={"x-queue-type": "quorum"})
    _, report = check(broker.url, table, "--strict")
    assert report["warnings"] == 0


def test_a_binding_to_the_default_exchange_ends_check_and_run_alike(
    broker, queue_name, check, tmp_path
):
    exit_code, report = check(broker.url, queue_table(queue_name).replace("amq.topic", ""))
    assert exit_code == 10
    assert told(report, "error", "bindings[0].exchange")
    assert fm_consumer(tmp_path, "run").returncode == 10
