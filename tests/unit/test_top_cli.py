# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer top`` without a terminal: one look as text, and refusals with a cure."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from consumer_framework.cli import top as command
from consumer_framework.cli.top_sources import OtherHosts, ThisHost
from consumer_framework.operate.details import Cause
from consumer_framework.operate.hosts import HostsError, Way
from consumer_framework.runtime.control.client import ControlError

from .machine import make_host


@pytest.fixture
def host(short_tmp_path, monkeypatch):
    return make_host(short_tmp_path, monkeypatch)


def test_a_look_is_a_line_for_each_instance_and_their_sums(host):
    host.configures("builds")
    host.configures("koji")
    host.has_unit("koji", "failed", Result="exit-code", ExecMainStatus="78")
    host.keeps("koji", quarantined=3)
    with host.runs("builds", state="consuming", rate=2.5, lag=12_345):
        shown = host.does("top", "--once")
    assert shown.exit_code == 0
    summary, head, koji, builds = shown.stdout.splitlines()
    assert summary == "2 instances: 1 failed, 1 consuming | 2.5/s, lag 12.3k, 3 quarantined"
    assert head.split() == ["INSTANCE", "STATE", "RATE", "LAG", "AGE", "QUAR", "LOSS", "REASON"]
    assert koji.split()[:2] == ["koji", "failed"]
    assert builds.split()[:4] == ["builds", "consuming", "2.5/s", "12.3k"]


def test_without_a_terminal_the_screen_is_refused_with_the_cure(host):
    refused = host.does("top")
    assert refused.exit_code == 2
    assert "use 'fm-consumer top --once'" in refused.stderr


def test_without_textual_the_screen_is_refused_with_the_command_that_installs_it(host, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr(
        command, "sys", type("Sys", (), {"stdin": Terminal(), "stdout": Terminal()})
    )
    monkeypatch.setattr(command, "find_spec", lambda _name: None)
    monkeypatch.setenv("TERM", "xterm")
    refused = host.does("top")
    assert refused.exit_code == 2
    assert "pip install 'consumer-framework[top]'" in refused.stderr
    monkeypatch.setenv("TERM", "dumb")
    assert "top draws in a terminal, and there is none" in host.does("top").stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--state-dir", "/x"), "--state-dir needs the NAME of one instance"),
        (("a", "--state-dir", "/x", "--host", "b"), "--state-dir needs the NAME of one instance"),
        (("--interval", "soon"), "Invalid value for '--interval'"),
        (("--host", "-oProxyCommand=x"), "is no name of a host"),
        (("a.b",), "is no instance name"),
        (("nobody",), "there is no instance 'nobody'"),
    ],
)
def test_a_wrong_command_line_is_refused(host, words, complaint):
    refused = host.does("top", "--once", *words)
    assert refused.exit_code in {2, 4, 78}
    assert complaint in refused.stderr


# The sources.


def script(directory, text):
    """Return the way to hosts that are this script."""
    file = directory / "there"
    file.write_text(f"#!{sys.executable}\nimport sys, time\nhost, command = sys.argv[1:]\n{text}")
    file.chmod(0o755)
    return Way([str(file)], timeout=30)


ANSWERS = {
    "in-flight": {"messages": [{"age": 2.0, "topic": "a.b", "message_id": "m"}]},
    "metrics": [],
    "quarantine list": [{"count": 3, "sample": {"error": "KeyError", "message": "'x'"}}],
}


def test_the_details_of_an_instance_of_another_host_come_from_its_commands(tmp_path):
    way = script(
        tmp_path,
        f"""
answers = {ANSWERS!r}
import json
print(json.dumps(next(answers[name] for name in answers if name in command)))
""",
    )
    source = OtherHosts(["web"], (), way)
    [found] = [r for r in source.rows() if r.host == "web"]
    details = source.details(found)
    assert details.problem == ""
    assert details.in_flight is not None
    assert [one.topic for one in details.in_flight] == ["a.b"]
    assert details.handlers == ()
    assert details.causes == (Cause(3, None, "", "KeyError: 'x'"),)


def test_what_a_host_refuses_is_the_problem_of_the_details(tmp_path):
    way = script(tmp_path, "sys.exit(\"fm-consumer: No such command 'in-flight'.\")")
    source = OtherHosts(["web"], (), way)
    [found] = source.rows()
    assert (found.condition, found.reason) == ("no answer", "No such command 'in-flight'.")
    assert source.details(found).problem == "No such command 'in-flight'."
    with pytest.raises(HostsError, match="No such command"):
        source.order(found, "pause")


def test_a_host_without_an_instance_is_a_row_that_nobody_need_look_at(tmp_path):
    way = script(tmp_path, "print('{\"groups\": []}')")
    [found] = OtherHosts(["web"], (), way).rows()
    assert (found.condition, found.should_run) == ("no instance", False)


def test_an_order_names_its_origin(tmp_path):
    way = script(tmp_path, "print(command)")
    source = OtherHosts(["web"], (), way)
    [found] = [r for r in source.rows() if r.host == "web"]
    assert source.order(found, "pause") == "fm-consumer pause '' --reason 'with fm-consumer top'"
    assert source.order(found, "resume") == "fm-consumer resume ''"


def test_the_end_of_the_screen_ends_the_connections_that_wait(tmp_path):
    way = script(tmp_path, "open(host, 'w').close()\ntime.sleep(60)")
    marker = tmp_path / "begun"
    source = OtherHosts([str(marker)], (), way)
    problems = []

    def look():
        problems.append(source.rows()[0].reason)

    looking = threading.Thread(target=look)
    looking.start()
    end = time.monotonic() + 20
    while not marker.exists():
        assert time.monotonic() < end, "the script did not begin"
        time.sleep(0.02)
    source.close()
    looking.join(20)
    assert not looking.is_alive()
    assert problems == ["exit code -9"]


def test_an_instance_that_does_not_run_has_the_causes_of_its_store(host):
    host.configures("builds")
    host.keeps("builds", quarantined=2)
    source = ThisHost(("builds",), None)
    [found] = source.rows()
    details = source.details(found)
    assert details.problem == ""
    assert details.in_flight is details.handlers is None
    assert details.causes is not None
    assert [(cause.count, cause.error) for cause in details.causes] == [(2, "poison")]
    with pytest.raises(ControlError, match="builds does not run"):
        source.order(found, "pause")


def test_an_instance_without_a_store_has_no_causes(host):
    host.configures("builds")
    source = ThisHost((), None)
    [found] = source.rows()
    assert source.details(found).causes == ()
