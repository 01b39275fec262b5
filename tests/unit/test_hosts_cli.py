# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer status --host``, with a program in the place of ssh."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from .machine import make_host


@pytest.fixture
def host(short_tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return make_host(short_tmp_path, monkeypatch)


@pytest.fixture
def ssh(host):
    """Let the hosts answer: a document and an exit code by name; others have no connection."""

    def answers(**documents):
        file = host.directory / "ssh"
        text = f"""#!{sys.executable} -IS
import json, sys
host, command = sys.argv[1:]
answers = json.loads({json.dumps(documents)!r})
if host not in answers:
    sys.stderr.write("ssh: connect to host " + host + " port 22: No route to host\\n")
    sys.exit(255)
print(answers[host] if isinstance(answers[host], str) else json.dumps(answers[host]))
"""
        file.write_text(text)
        file.chmod(0o755)
        return shlex.quote(str(file))

    return answers


def document(*instances):
    return {"groups": [{"name": one["name"], "instances": [one]} for one in instances]}


def instance(name, *, active=True, **report):
    answer = {"state": "consuming", "rate": 2.0, "lag": 40, "held": 1, **report}
    return {
        "name": name,
        "active": active,
        "should_run": True,
        "deferred": 3,
        "quarantined": 0,
        "report": answer if active else None,
        "unit": {"active": "active" if active else "failed", "text": "" if active else "no file"},
    }


def test_each_instance_is_a_line_with_its_numbers(host, ssh):
    loss = {"subject": "the queue is full", "seconds": 7200, "cure": "add workers"}
    paused = instance("koji", condition="paused", reason="by hand", loss=loss)
    way = ssh(web=document(instance("builds"), paused), empty=document())
    shown = host.does("status", "--host", "web,empty", "--ssh", way)
    assert shown.exit_code == 0, shown.output
    _, builds, koji, empty = [line.split() for line in shown.stdout.splitlines()]
    assert builds == ["web", "builds", "consuming", "2/s", "40", "4", "0"]
    assert koji[:4] == ["web", "koji", "paused", "2/s"]
    assert " ".join(koji[7:]) == "by hand; loss in 2h: the queue is full"
    assert empty[0] == "empty"
    assert "no instance is configured, and none runs" in " ".join(empty)


@pytest.mark.parametrize(
    ("hosts", "exit_code"), [("web", 3), ("web,gone", 4), ("web,old", 4), ("well", 0)]
)
def test_the_exit_code_tells_of_stopped_instances_and_of_hosts_that_do_not_answer(
    host, ssh, hosts, exit_code
):
    down = document(instance("builds", active=False))
    way = ssh(web=down, old="{}", well=document(instance("builds")))
    shown = host.does("status", "--host", hosts, "--ssh", way)
    assert shown.exit_code == exit_code
    if "gone" in hosts:
        reason = "ssh: connect to host gone port 22: No route to host"
        assert shown.stdout.splitlines()[-1] == f"gone: no connection: {reason}"
    if "old" in hosts:
        assert "old: the answer is not understood" in shown.stdout
    if exit_code == 3:
        assert "failed" in shown.stdout
        assert "no file" in shown.stdout


def test_json_has_the_document_of_each_host(host, ssh):
    way = ssh(web=document(instance("builds")))
    shown = host.does("status", "--json", "--host", "web", "--host", "gone", "--ssh", way)
    web, gone = json.loads(shown.stdout)["hosts"]
    assert (web["host"], web["answers"]) == ("web", True)
    assert web["groups"][0]["instances"][0]["report"]["lag"] == 40
    assert (gone["host"], gone["answers"], gone["groups"]) == ("gone", False, [])
    assert "No route to host" in gone["problem"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--nagios",), "--host goes with NAME and --json alone"),
        (("x", "--state-dir", "/x"), "--host goes with NAME and --json alone"),
        (("--ssh", "'"), "--ssh is no command line"),
        (("--ssh", "/no/such/ssh"), "'/no/such/ssh' cannot be run: No such file or directory"),
        (("a.b",), "is no instance name"),
    ],
)
def test_a_wrong_command_line_is_refused(host, words, complaint):
    refused = host.does("status", "--host", "web", *words)
    assert refused.exit_code != 0
    assert complaint in refused.output


@pytest.mark.parametrize("command", [("status",), ("top", "--once")], ids=["status", "top"])
@pytest.mark.parametrize("option", ["--ssh", "--remote", "--timeout"])
def test_an_option_of_other_hosts_is_refused_without_one(host, command, option):
    refused = host.does(*command, option, "5s")
    assert refused.exit_code == 2
    assert f"{option} needs --host" in refused.stderr
