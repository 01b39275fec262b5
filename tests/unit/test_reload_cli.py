# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer reload`, with a fake instance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import pytest

from consumer_framework.cli import main

from .machine import make_host

if TYPE_CHECKING:
    from .machine import Host

UNCHANGED: dict[str, Any] = {"result": "unchanged", "changes": [], "problems": [], "notes": []}
SLOTS = {"path": "consumer_config.framework.slots", "takes": "reload", "text": "1 -> 4"}
URL = {"path": "amqp_url", "takes": "restart", "text": "changed"}


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    made = make_host(short_tmp_path, monkeypatch)
    # As root: the state is in the directories of the service.
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return made


def says(*answers):
    async def reload(_request):
        for answer in answers:
            yield answer

    return reload


def test_the_changes_and_those_that_need_a_restart_are_printed(host):
    host.configures()
    reload = says(
        {"step": "setting up a new handler"},
        {**UNCHANGED, "result": "reloaded", "changes": [URL, SLOTS], "notes": ["a credential"]},
    )
    with host.runs("sample", reload=reload):
        done = host.does("reload", "sample")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "sample: consumer_config.framework.slots: 1 -> 4",
        "sample: amqp_url: changed: takes a restart",
        "sample: reloaded",
    ]
    assert done.stderr.splitlines() == [
        "sample: setting up a new handler",
        "fm-consumer: sample: a credential",
    ]


def test_a_reload_without_changes_says_so_and_is_no_failure(host):
    host.configures()
    with host.runs("sample", reload=says(UNCHANGED)):
        done = host.does("reload", "sample")
    assert (done.exit_code, done.stdout) == (0, "sample: nothing has changed\n")


REFUSED = {
    **UNCHANGED,
    "result": "refused",
    "problems": [
        {
            "source": "/etc/x.toml",
            "line": 0,
            "path": "qos",
            "message": "is \x1b[31m bad",
            "cure": "mend it",
        },
        {"source": "", "line": 0, "path": "", "message": "is stopping", "cure": ""},
    ],
}


def test_every_problem_is_printed_and_the_exit_code_is_1(host):
    host.configures()
    with host.runs("sample", reload=says(REFUSED)):
        done = host.does("reload", "sample")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "fm-consumer: sample goes on with its old settings:",
        "fm-consumer:   /etc/x.toml: qos: is \\x1b[31m bad; mend it",
        "fm-consumer:   is stopping",
    ]


def test_json_has_all_results_and_nothing_else_is_printed(host):
    host.configures("one")
    host.configures("two")
    host.configures("three")
    step = {"step": "waiting for the reload that is under way"}
    answer = {**UNCHANGED, "result": "reloaded", "changes": [SLOTS]}
    with (
        host.runs("one", reload=says(step, answer)),
        host.runs("two", reload=says(REFUSED)),
    ):
        done = host.does("reload", "one", "two", "three", "--json")
    assert done.exit_code == 1
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "instances": [
            {"instance": "one", **answer},
            {"instance": "two", **REFUSED},
            {"instance": "three", **UNCHANGED, "result": "not running"},
        ]
    }


def test_an_instance_that_does_not_run_is_a_failure_and_the_others_are_reloaded(host):
    host.configures("one")
    host.configures("two")
    with host.runs("two", reload=says(UNCHANGED)):
        done = host.does("reload", "one", "two")
    assert done.exit_code == 1
    assert "one does not run; it reads" in done.stderr
    assert "two: nothing has changed" in done.stdout


def test_an_unknown_instance_is_named_with_the_known_ones(host):
    host.configures("sample")
    done = host.does("reload", "simple")
    assert done.exit_code == 1
    assert "there is no instance 'simple'" in done.stderr
    assert "sample" in done.stderr


def test_an_instance_that_stops_meanwhile_is_a_failure(host):
    async def vanish(_request):
        raise ConnectionResetError
        yield {}

    host.configures("sample")
    with host.runs("sample", reload=vanish):
        done = host.does("reload", "sample")
    assert done.exit_code == 1
    assert "stopped before it was done; it reads the file when it is started again" in done.stderr


def test_an_instance_without_a_final_answer_is_a_failure(host):
    host.configures("sample")
    with host.runs("sample", reload=says({"step": "waiting"})):
        done = host.does("reload", "sample")
    assert done.exit_code == 1
    assert "did not say what came of it" in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["sample", "--conf", "x.toml"], ["one", "two", "--state-dir", "x"]],
    ids=["nobody", "two ways", "one directory for two"],
)
def test_a_command_that_makes_no_sense_is_refused(host, words):
    assert host.does("reload", *words).exit_code == 2


def test_a_name_that_no_instance_can_have_is_refused(host):
    assert host.does("reload", "no/name").exit_code == 78


def test_names_are_completed(host):
    host.configures("sample")
    host.configures("other")
    command = main.get_command(click.Context(main), "reload")
    assert command is not None
    context = click.Context(command)
    (argument,) = [p for p in command.params if isinstance(p, click.Argument)]
    assert [item.value for item in argument.shell_complete(context, "sa")] == ["sample"]


@pytest.mark.parametrize(("user", "is_sent"), [(0, True), (1000, False)])
def test_root_hands_the_file_over_with_the_order(host, monkeypatch, user, is_sent):
    file = host.configures()
    file.write_bytes(b"x = '\xff'\n")
    monkeypatch.setattr("os.geteuid", lambda: user)
    orders = []

    async def reload(request):
        orders.append(request)
        yield UNCHANGED

    with host.runs("sample", "lib" if is_sent else "h/fedora-messaging", reload=reload):
        assert host.does("reload", "sample").exit_code == 0
    sent = {"file": {"path": str(file), "text": "x = '\udcff'\n"}} if is_sent else {}
    assert orders == [sent]


def test_a_file_that_is_missing_or_too_large_is_not_sent(host):
    orders = []

    async def reload(request):
        orders.append(request)
        yield UNCHANGED

    with host.runs("sample", reload=reload):
        host.does("reload", "sample")
        host.configures(text="#" * (300 << 10))
        host.does("reload", "sample")
    assert orders == [{}] * 2
