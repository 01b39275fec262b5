# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer publish`` with a real broker, on a terminal, interrupted and killed."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pika
import pytest
from fedora_messaging import message as upstream

from consumer_framework.publishing.message import OutboxError
from consumer_framework.publishing.store import OutboxStore

ROOT = Path(__file__).resolve().parents[2]
FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")


@pytest.fixture
def arrived(broker, queue_name):
    """Return a function that takes the messages out of a queue bound to ``there.#``."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue_name, durable=True)
        channel.queue_bind(queue_name, "amq.topic", "there.#")

        def take() -> list[Any]:
            found: list[Any] = []
            while True:
                got: tuple[Any, Any, Any] = channel.basic_get(queue_name, auto_ack=True)
                if got[0] is None:
                    return found
                found.append(upstream.get_message(got[0].routing_key, got[1], got[2]))

        yield take


@pytest.fixture
def conf(broker, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'amqp_url = "{broker.url}"\n')
    return path


def run(*words, code=0, **options):
    done = subprocess.run(
        [FM_CONSUMER, "publish", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    assert done.returncode == code, done.stderr
    return done


def write(path, count, body=None):
    with path.open("w") as stream:
        for n in range(count):
            message = {"topic": "there.done", "id": f"id-{n}", "body": body or {"n": n}}
            stream.write(json.dumps(message) + "\n")
    return path


def test_the_first_message_of_a_new_user_arrives(conf, arrived):
    done = run("--topic", "there.x", "--body", '{"n": 1}', "--conf", conf)
    [message] = arrived()
    assert (message.topic, message.body, message.severity) == ("there.x", {"n": 1}, 20)
    assert f"message {message.id} (there.x) sent to exchange amq.topic at 127.0.0.1" in done.stdout
    assert "nobody gets" not in done.stdout


def test_a_message_that_nobody_listens_to_is_told(conf, arrived):
    done = run("--topic", "nowhere", "--conf", conf)
    assert "no queue is bound for its topic: nobody gets it" in done.stdout
    assert arrived() == []


def test_a_recorded_file_arrives_as_it_was_recorded(conf, arrived, tmp_path):
    sent = [upstream.Message(topic="there.y", body={"n": n}) for n in range(250)]
    sent.append(upstream.Message(topic="nowhere", body={}))
    (tmp_path / "some.jsonl").write_text(upstream.dumps(sent))
    done = run(tmp_path / "some.jsonl", "--conf", conf)
    found = arrived()
    assert [message.id for message in found] == [message.id for message in sent[:-1]]
    assert [message._headers for message in found] == [m._headers for m in sent[:-1]]
    assert "251 messages sent to" in done.stdout
    assert "no queue is bound for the topics of 1 message" in done.stdout


def test_json_counts_the_messages_without_a_queue(conf):
    found = json.loads(run("--topic", "nowhere", "--conf", conf, "--json").stdout)
    assert (found["done"], found["unroutable"], found["has_relay"]) == ("sent", 1, None)


def test_a_forbidden_or_missing_exchange_is_told_at_once(conf):
    done = run("--topic", "there.x", "--exchange", "missing", "--conf", conf, code=75)
    assert "no exchange 'missing'" in done.stderr


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_broker_that_goes_away_is_connected_to_again_or_ends_it_with_the_line_to_go_on_with(
    broker, proxy, tmp_path, arrived, comes_back
):
    conf = tmp_path / "proxied.toml"
    conf.write_text(f'amqp_url = "{proxy.url_for(broker.url)}"\n')
    with subprocess.Popen(
        [FM_CONSUMER, "publish", "-", "--conf", conf, "--timeout", "1"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        lines = write(tmp_path / "some.jsonl", 20).read_text().splitlines(keepends=True)
        process.stdin.write("".join(lines[:10]))
        process.stdin.flush()
        seen: list[Any] = []
        while len(seen) < 10:
            seen += arrived()
        if not comes_back:
            proxy.refuse()
        proxy.cut()
        process.stdin.write("".join(lines[10:]))
        _, errors = process.communicate(timeout=60)
    if comes_back:
        assert process.returncode == 0, errors
        assert {message.id for message in arrived()} == {f"id-{n}" for n in range(10, 20)}
        return
    assert process.returncode == 75
    assert "10 messages sent, up to line 10 of standard input; some behind it perhaps too" in errors
    assert "go on with --skip 10" in errors


def wait_for(condition, timeout=30.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def on_terminal(*words, see=None):
    """Run the command on a terminal; return the exit code and everything that it wrote."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [FM_CONSUMER, "publish", *words], stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    written = b""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:
            break
        written += data
        if see is not None and see(written.decode(errors="replace")):
            process.send_signal(signal.SIGINT)
            see = None
    os.close(leader)
    return process.wait(timeout=30), written.decode()


@pytest.fixture
def outbox(conf, tmp_path):
    url = f"sqlite:///{tmp_path}/outbox.sqlite3"
    with conf.open("a") as stream:
        stream.write(f'[consumer_config.framework.outbox]\ndatabase = "{url}"\n')
    store = OutboxStore.connect(url)
    yield store
    store.close()


def count(store):
    try:
        return store.stats().waiting
    except OutboxError:
        return 0


def test_a_terminal_shows_the_progress_and_ctrl_c_can_be_continued(conf, outbox, tmp_path):
    file = write(tmp_path / "large.jsonl", 12_000)
    pattern = re.compile(
        r"([\d,]+) messages, [\d,]+/s, [\d.]+ [KM]iB of [\d.]+ [KM]iB, \d+ \w+ left"
    )
    code, written = on_terminal(file, "--conf", conf, see=pattern.search)
    assert code == 130
    assert "lines validated" in written
    [skip] = re.findall(r"go on with --skip (\d+)", written)
    assert count(outbox) == int(skip)
    assert 0 < int(skip) < 12_000
    assert f"{int(skip):,} messages stored, up to line {int(skip):,} of {file}" in written
    run(file, "--skip", skip, "--conf", conf)
    assert count(outbox) == 12_000


def test_a_process_that_is_killed_leaves_whole_batches(conf, outbox, tmp_path):
    file = write(tmp_path / "large.jsonl", 12_000)
    process = subprocess.Popen(
        [FM_CONSUMER, "publish", file, "--conf", conf, "--keep-going"], stdout=subprocess.DEVNULL
    )
    wait_for(lambda: count(outbox) >= 500)
    process.kill()
    process.wait()
    stored = count(outbox)
    assert stored % 500 == 0
    assert 0 < stored < 12_000
    last = outbox.rows(limit=1, after_row=stored - 1)
    assert [row.message.id for row in last] == [f"id-{stored - 1}"]


PEAK = """
import resource, sys
from consumer_framework.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def test_memory_does_not_grow_with_the_file(conf, tmp_path):
    def peak(number):
        file = write(tmp_path / f"{number}.jsonl", number, {"text": "x" * 4000})
        words = [sys.executable, "-c", PEAK, "publish", str(file), "--conf", str(conf)]
        done = subprocess.run(
            [*words, "--dry-run"], capture_output=True, text=True, check=True, timeout=60
        )
        assert f"{number:,} messages are valid" in done.stdout
        return int(done.stderr.split()[-1])

    small, large = peak(1000), peak(10_000)
    assert large - small < 20_000, "KiB; the larger file has 40 MB"


def scripts_of(page):
    """Return the Python programs of a how-to."""
    text = (ROOT / "docs" / "howto" / page).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_script(text, conf):
    environment = os.environ | {"FEDORA_MESSAGING_CONF": str(conf)}
    words = [sys.executable, "-c", text]
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True, timeout=60
    )


def test_the_scripts_of_the_how_to_store_and_send(conf, outbox):
    stores, sends = scripts_of("publish-from-scripts.md")
    run_script(stores, conf)
    assert [row.message.ordering_key for row in outbox.rows()] == ["builds", "builds"]
    assert run_script(sends, conf).stdout == "1001 sent, 1001 without a queue\n"
    assert count(outbox) == 2


def test_the_call_that_replaces_api_publish_stores_its_message(conf, outbox):
    before, after, *_ = scripts_of("move-from-api-publish.md")
    assert "api.publish" in before
    run_script(after, conf)
    assert [row.message.topic for row in outbox.rows()] == ["app.build.done"]
