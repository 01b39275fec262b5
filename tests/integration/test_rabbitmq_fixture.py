# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixture ``rabbitmq`` of the pytest plugin, in a sample project and by itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fedora_messaging.message import Message

from consumer_framework.testing import message_of
from consumer_framework.testing.broker import BrokerError
from consumer_framework.testing.broker.exchange import OwnExchange

pytest_plugins = ["pytester"]

DOCS = Path(__file__).resolve().parents[2] / "docs"

SAMPLE = """
from fedora_messaging import api
from fedora_messaging.exceptions import HaltConsumer
from fedora_messaging.message import Message
from consumer_framework import Consumer, Quarantine

class Sample(Consumer):
    def handle(self, message):
        if message.body["n"] < 0:
            raise Quarantine("negative")
        if message.body["n"] > self.config["most"]:
            raise HaltConsumer(3)
        api.publish(Message(topic="org.example.seen", body=message.body))
"""
TESTS = """
import own_sample as sample
from fedora_messaging.message import Message

def build(n):
    return Message(topic="org.example.build", body={"n": n})

def test_messages_pass_through_a_real_broker(rabbitmq):
    seen = rabbitmq.subscribe("org.example.seen")
    config = {"most": 10}
    with rabbitmq.run(sample.Sample, topics=["org.example.build"], config=config) as running:
        for n in (1, 2, -1):
            rabbitmq.publish(build(n))
        counts = running.wait_settled(3).counts
        assert (counts.acked, counts.quarantined) == (2, 1)
        assert [seen.get().body["n"], seen.get().body["n"]] == [1, 2]
    assert seen.empty()

def test_another_test_sees_nothing_of_it(rabbitmq):
    everything = rabbitmq.subscribe()
    config = {"most": 3}
    with rabbitmq.run("own_sample:Sample", topics=["org.example.build"], config=config) as running:
        rabbitmq.publish(build(4))
        assert running.wait_end() == 3
    assert everything.get() == build(4)
    assert everything.empty()
"""


@pytest.fixture
def exchange(broker):
    with OwnExchange(broker) as exchange:
        yield exchange


@pytest.fixture
def sample(tmp_path, monkeypatch):
    (tmp_path / "sample_of_rabbitmq.py").write_text(SAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    return "sample_of_rabbitmq:Sample"


def test_the_fixture_runs_consumers_against_a_broker_of_the_session(tmp_path, broker):
    (tmp_path / "own_sample.py").write_text(SAMPLE)
    (tmp_path / "test_own.py").write_text(TESTS)
    page = (DOCS / "howto/test-a-consumer.md").read_text()
    for name in ("sample.py", "test_broker.py"):
        [source] = re.findall(f"Write `{name}`:\n\n```python\n(.*?)```", page, re.DOTALL)
        (tmp_path / name).write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped"), ("true", "errors")])
def test_without_the_program_a_test_is_skipped_and_fails_in_ci(pytester, monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", str(pytester.path))
    pytester.makepyfile("def test_it(rabbitmq): pass")
    others = [part for name in ("twisted", "asyncio", "xdist") for part in ("-p", f"no:{name}")]
    done = pytester.runpytest_inprocess("-rs", "-p", "consumer_framework.pytest_plugin", *others)
    done.assert_outcomes(**{outcome: 1})
    done.stdout.fnmatch_lines("*rabbitmq-server*")


def test_a_message_that_no_queue_takes_is_an_error(exchange):
    with pytest.raises(BrokerError, match=r"no queue takes the topic 'a\.b': run a consumer"):
        exchange.publish(Message(topic="a.b"))


def test_a_missing_message_is_an_error(exchange):
    with pytest.raises(BrokerError, match="no message came in 0 seconds"):
        exchange.subscribe().get(timeout=0)


def test_a_consumer_that_cannot_start_shows_its_log(exchange):
    consumer = exchange.run("no_such_module:Sample")
    with (
        pytest.raises(BrokerError, match=r"ended with exit code 78; (.|\n)*no_such_module"),
        consumer,
    ):
        pytest.fail("it runs")


def test_an_end_that_nobody_asked_for_is_an_error(exchange, sample):
    with exchange.run(sample, config={"most": 3}) as running:
        exchange.publish(message_of(Message, topic="a.b", n=9))
        with pytest.raises(BrokerError, match="ended with exit code 3; the end of its log"):
            running.wait_settled(2)


def test_a_consumer_survives_a_restart_of_the_broker_and_can_be_killed(exchange, sample):
    seen = exchange.subscribe("org.example.seen")
    with exchange.run(sample, topics=["a.b"], config={"most": 3}) as running:
        exchange.broker.restart()
        exchange.publish(message_of(Message, topic="a.b", n=1))
        assert seen.get(timeout=60).body == {"n": 1}
        assert running.pid
        running.kill()
        with pytest.raises(BrokerError, match="ended with exit code -9"):
            running.wait_settled(2)
