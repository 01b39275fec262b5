# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin of pytest in sample projects: its fixtures, and its refusal of unmocked messages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fedora_messaging.api
import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytest_plugins = ["pytester"]
# pytester forgets the modules that a run imports; a reactor is installed once.
__all__ = ["fedora_messaging"]

SAMPLE = """
from fedora_messaging import api
from fedora_messaging.message import Message
from consumer_framework import Consumer, publishing

class Sample(Consumer):
    def handle(self, message):
        if message.body.get("fails"):
            raise ValueError("no")
        api.publish(Message(topic="org.example.seen", body=message.body))

    def teardown(self):
        if "teardown" in self.config:
            raise ValueError("the teardown failed")

def plainly():
    api.publish(Message(topic="org.example.plain"))

def carefully():
    try:
        plainly()
    except BaseException:
        pass

def with_retries():
    for attempt in range(3):
        try:
            return plainly()
        except Exception:
            pass

def late():
    from fedora_messaging.api import publish
    publish(Message(topic="org.example.late"))

def ours():
    publishing.publish(Message(topic="org.example.ours"))

async def ours_async():
    await publishing.publish_async(Message(topic="org.example.async"))

def by_twisted():
    return api.twisted_publish(Message(topic="org.example.twisted"))
"""
TESTS = """
import asyncio, unittest
import pytest
import sample
from fedora_messaging import api, testing
from fedora_messaging.message import Message
from consumer_framework import publishing
from consumer_framework.publishing import Outbox, set_default
from consumer_framework.testing import Ack, Hold

def build(**body):
    return Message(topic="org.example.build", body=body)

def test_consumer(consumer):
    harness = consumer(sample.Sample, settings={"recovery": {"delays": []}})
    message, broken = build(n=1), build(fails=True)
    assert isinstance(harness.deliver(message), Ack)
    harness.deliver(broken)
    assert harness.quarantined == [broken]
    assert [sent.topic for sent in harness.published] == ["org.example.seen"]

def test_two_consumers(consumer):
    one, two = consumer(sample.Sample), consumer(sample.Sample)
    one.deliver(build(n=1))
    two.deliver(build(n=2))
    assert [sent.body["n"] for sent in (*one.published, *two.published)] == [1, 2]

def test_consumer_of_a_name(consumer):
    assert isinstance(consumer("sample:Sample").deliver(build()), Ack)

def test_teardown(consumer):
    consumer(sample.Sample, config={"teardown": True}).deliver(build())

def test_bad_settings(consumer):
    consumer(sample.Sample, settings={"concurency": 3})

def test_plainly():
    sample.plainly()

def test_carefully():
    sample.carefully()

def test_with_retries():
    sample.with_retries()

def test_late():
    sample.late()

def test_ours():
    sample.ours()

def test_ours_async():
    asyncio.run(sample.ours_async())

def test_by_twisted():
    sample.by_twisted()

def test_carefully_and_another_failure():
    sample.carefully()
    assert 1 == 2

@pytest.fixture
def publishes():
    sample.carefully()
    yield

def test_in_a_setup(publishes):
    pass

@pytest.fixture
def publishes_at_its_end():
    yield
    sample.carefully()

def test_in_a_teardown(publishes_at_its_end):
    pass

class TestUnittest(unittest.TestCase):
    def test_plainly(self):
        sample.plainly()

    def test_carefully(self):
        sample.carefully()

    def test_mocked(self):
        with testing.mock_sends(Message):
            sample.plainly()

def test_mocked():
    with testing.mock_sends(Message, Message, Message):
        sample.plainly()
        sample.ours()
        sample.late()

def test_captured(capture_outbox):
    sample.plainly()
    sample.late()
    sample.ours()
    asyncio.run(sample.ours_async())
    sample.by_twisted()
    assert [message.topic.rpartition(".")[2] for message in capture_outbox] == [
        "plain", "late", "ours", "async", "twisted"
    ]

def test_mocked_while_captured(capture_outbox):
    with testing.mock_sends(Message, Message):
        sample.plainly()
        sample.ours()
    assert not capture_outbox

def test_captured_while_mocked():
    from consumer_framework.testing import capture_outbox
    with testing.mock_sends(Message), capture_outbox() as captured:
        sample.plainly()
    assert not captured

def test_invalid_while_captured(capture_outbox):
    with pytest.raises(Exception, match="at most 255 bytes|too long|255"):
        api.publish(Message(topic="a" * 256))
    assert not capture_outbox

def test_own_outbox(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3")
    before = set_default(outbox)
    sample.ours()
    set_default(before)
    outbox.close()

class Sent:
    def wait(self, timeout):
        pass

@pytest.mark.unmocked_publish
def test_allowed(monkeypatch):
    sent = []
    monkeypatch.setattr(api.crochet, "setup", lambda: None)
    monkeypatch.setattr(
        api, "_twisted_publish_wrapper", lambda message, _: sent.append(message) or Sent()
    )
    sample.plainly()
    assert len(sent) == 1
"""
REFUSED = {
    "test_plainly": "org.example.plain",
    "test_carefully": "org.example.plain",
    "test_with_retries": "org.example.plain",
    "test_late": "org.example.late",
    "test_ours": "org.example.ours",
    "test_ours_async": "org.example.async",
    "test_by_twisted": "org.example.twisted",
    "test_carefully_and_another_failure": "org.example.plain",
    "TestUnittest::test_plainly": "org.example.plain",
    "TestUnittest::test_carefully": "org.example.plain",
    "test_in_a_setup": "org.example.plain",
    "test_in_a_teardown": "org.example.plain",
}


@dataclass
class Run:
    """One run of pytest in a project.

    Attributes:
        code: The exit code.
        output: All that it wrote.
        outcomes: By test: ``passed``, ``failure``, ``error`` or ``skipped``, and its text.
    """

    code: int
    output: str
    outcomes: dict[str, tuple[str, str]]

    def passed(self, name: str) -> bool:
        return self.outcomes[name][0] == "passed"


def run(
    directory: Path,
    files: Mapping[str, str],
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> Run:
    for name, source in files.items():
        (directory / name).write_text(source)
    report = directory / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *options,
    ]
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = {}
    for case in ET.parse(report).iter("testcase") if report.exists() else ():  # noqa: S314
        scope = (case.get("classname") or "").partition(".")[2]
        name = f"{scope}::{case.get('name')}" if scope else str(case.get("name"))
        kinds = [(child.tag, f"{child.get('message')}\n{child.text}") for child in case]
        outcomes[name] = next((kind for kind in kinds if kind[0] != "system-out"), ("passed", ""))
    return Run(done.returncode, done.stdout + done.stderr, outcomes)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample project, run in two processes of pytest-xdist."""
    directory = tmp_path_factory.mktemp("sample")
    return run(directory, {"sample.py": SAMPLE, "test_sample.py": TESTS}, "-n2", "--strict-markers")


def test_a_consumer_runs_in_its_fixture(sample):
    assert sample.passed("test_consumer"), sample.output
    assert sample.passed("test_two_consumers")
    assert sample.passed("test_consumer_of_a_name")


def test_an_error_of_a_teardown_is_an_error_of_the_test(sample):
    kind, text = sample.outcomes["test_teardown"]
    assert kind == "error"
    assert "ValueError: the teardown failed" in text


def test_settings_that_would_start_no_instance_fail_the_test(sample):
    kind, text = sample.outcomes["test_bad_settings"]
    assert kind == "failure"
    assert "consumer_config.framework.concurency: unknown key" in text


@pytest.mark.parametrize("name", list(REFUSED))
def test_an_unmocked_message_fails_the_test_with_its_cure(sample, name):
    kind, text = sample.outcomes[name]
    assert kind in {"failure", "error"}
    assert f"topic '{REFUSED[name]}', by " in text
    assert re.search(r"at \S*sample\.py:\d+, in \w+", text)
    for cure in ("`consumer`", "`capture_outbox`", "mock_sends", "@pytest.mark.unmocked_publish"):
        assert cure in text


def test_another_failure_of_the_test_is_not_hidden(sample):
    assert "assert 1 == 2" in sample.outcomes["test_carefully_and_another_failure"][1]


@pytest.mark.parametrize(
    "name",
    [
        "test_mocked",
        "test_captured",
        "test_mocked_while_captured",
        "test_captured_while_mocked",
        "test_invalid_while_captured",
        "test_own_outbox",
        "test_allowed",
        "TestUnittest::test_mocked",
    ],
)
def test_messages_that_something_records_pass(sample, name):
    assert sample.passed(name), sample.outcomes[name][1]


# A project that has nothing to do with this package, but for its environment.
STRANGER = """
import sys

def test_nothing_heavy_is_imported():
    heavy = {"fedora_messaging", "pydantic", "sqlalchemy", "jsonschema"}
    assert not heavy & set(sys.modules)

def test_its_publishing_fails_in_its_own_way():
    from fedora_messaging import api
    failures = []
    api.twisted_publish(api.Message()).addErrback(failures.append)
    assert "You must first initialize" in str(failures[0].value)
"""


def test_a_project_that_does_not_use_the_package_is_left_alone(tmp_path):
    done = run(tmp_path, {"test_it.py": STRANGER}, "-p", "no:twisted", "-p", "no:hypothesispytest")
    assert done.code == 0, done.output


ONE = """
from fedora_messaging import api

def test_it():
    try:
        api.twisted_publish(api.Message()).addErrback(lambda _: None)
    except BaseException:
        pass
"""
FIXTURES = """
def test_it(consumer, capture_outbox):
    assert not capture_outbox
"""
LOADED_BY_CONFTEST = 'pytest_plugins = ["consumer_framework.pytest_plugin"]'
NO_OTHERS = [
    part
    for name in ("twisted", "asyncio", "xdist", "hypothesispytest")
    for part in ("-p", f"no:{name}")
]


@pytest.mark.parametrize(
    ("options", "setting", "outcome"),
    [
        ([], "", {"failed": 1}),
        ([], "fail", {"failed": 1}),
        ([], "allow", {"passed": 1}),
        (["-p", "no:consumer_framework"], "", {"passed": 1}),
    ],
)
def test_the_guard_obeys_its_setting(pytester, options, setting, outcome):
    pytester.makepyfile(ONE)
    if setting:
        pytester.makeini(f"[pytest]\nconsumer_framework_unmocked_publish = {setting}\n")
    done = pytester.runpytest_inprocess(
        *NO_OTHERS, "-p", "consumer_framework.pytest_plugin", *options
    )
    done.assert_outcomes(**outcome)


def test_a_wrong_setting_is_an_error_of_usage(pytester):
    pytester.makeini("[pytest]\nconsumer_framework_unmocked_publish = alow\n")
    done = pytester.runpytest_inprocess(*NO_OTHERS, "-p", "consumer_framework.pytest_plugin")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(
        "*consumer_framework_unmocked_publish = alow: it is 'fail' or 'allow'"
    )


@pytest.mark.parametrize(
    "autoload", [True, False], ids=["by its entry point", "by a conftest only"]
)
def test_a_conftest_may_load_the_plugin_as_well(pytester, monkeypatch, autoload):
    if not autoload:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(LOADED_BY_CONFTEST)
    pytester.makepyfile(FIXTURES)
    pytester.runpytest_inprocess(*NO_OTHERS).assert_outcomes(passed=1)


def test_the_plugin_can_be_turned_off(pytester):
    pytester.makepyfile(FIXTURES)
    done = pytester.runpytest_inprocess(*NO_OTHERS, "-p", "no:consumer_framework")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines("*fixture 'consumer' not found*")
