# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer metrics``: one text of the pages of all processes of a host."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from consumer_framework.operate import metrics as operate_metrics
from consumer_framework.publishing.report import RelayReport
from consumer_framework.runtime.control import schema
from consumer_framework.runtime.control.routes import Page, this_process
from consumer_framework.runtime.control.threaded import ControlThread
from consumer_framework.runtime.observe.pages import RelayPages

from .machine import make_host

if TYPE_CHECKING:
    from .machine import Host


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    monkeypatch.setattr(operate_metrics, "SYSTEM_RELAY_RUNTIME", short_tmp_path / "fm-outbox")
    return make_host(short_tmp_path, monkeypatch)


def page(name, up=1, more=""):
    text = (
        "# HELP fm_consumer_up 1 while the instance answers.\n"
        "# TYPE fm_consumer_up gauge\n"
        f'fm_consumer_up{{fm_instance="{name}"}} {up}\n'
        "# HELP process_open_fds Open files.\n# TYPE process_open_fds gauge\nprocess_open_fds 9\n"
        f"{more}"
    )
    return {"/metrics": lambda _accept: Page(text.encode())}


def samples(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parsed(text)
        for sample in family.samples
    }


def labelled(name, **labels):
    return name, tuple(sorted(labels.items()))


def test_the_pages_of_all_instances_become_one_text(host):
    for name in ("builds", "sample"):
        host.configures(name)
        host.has_unit(name)
    with host.runs("builds", pages=page("builds")), host.runs("sample", pages=page("sample")):
        result = host.does("metrics")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("# TYPE process_open_fds gauge\n") == 1
    found = samples(result.stdout)
    for name in ("builds", "sample"):
        assert found[labelled("fm_consumer_up", fm_instance=name)] == 1
        assert found[labelled("process_open_fds", fm_instance=name)] == 9


def test_an_instance_with_garbage_for_metrics_takes_none_from_the_others(host):
    for name in ("builds", "sample"):
        host.configures(name)
        host.has_unit(name)
    garbage = {"/metrics": lambda _accept: Page(b"a 1\nfm_consumer_up{ \xff")}
    with host.runs("builds", pages=page("builds")), host.runs("sample", pages=garbage):
        result = host.does("metrics")
    assert result.exit_code == 1
    assert "sample: its metrics are not understood" in result.stderr
    assert samples(result.stdout)[labelled("fm_consumer_up", fm_instance="builds")] == 1
    assert labelled("a", fm_instance="sample") not in samples(result.stdout)


def test_an_instance_that_should_run_and_does_not_has_metrics(host):
    host.configures("builds")
    host.has_unit("builds", active="failed")
    host.keeps("builds", deferred=2, quarantined=3)
    host.configures("unused")
    result = host.does("metrics")
    found = samples(result.stdout)
    assert found == {
        labelled("fm_consumer_up", fm_instance="builds"): 0,
        labelled("fm_consumer_store_messages", fm_instance="builds", state="deferred"): 2,
        labelled("fm_consumer_store_messages", fm_instance="builds", state="quarantined"): 3,
    }
    assert (
        samples(host.does("metrics", "unused").stdout)[
            labelled("fm_consumer_up", fm_instance="unused")
        ]
        == 0
    )


def test_an_older_instance_without_the_page_is_told_and_does_not_hide_the_others(host):
    for name in ("builds", "older"):
        host.configures(name)
        host.has_unit(name)
    with host.runs("builds", pages=page("builds")), host.runs("older"):
        result = host.does("metrics")
    assert result.exit_code == 1
    assert "older/control: the instance says: there is no /metrics" in result.stderr
    assert labelled("fm_consumer_up", fm_instance="builds") in samples(result.stdout)


def test_two_authors_with_one_name_for_two_things_are_told(host):
    for name in ("builds", "sample"):
        host.configures(name)
        host.has_unit(name)
    gauge, counter = (f"# TYPE own {kind}\nown{{}} 1\n" for kind in ("gauge", "untyped"))
    with (
        host.runs("builds", pages=page("builds", more=gauge)),
        host.runs("sample", pages=page("sample", more=counter)),
    ):
        result = host.does("metrics")
    assert result.exit_code == 1
    assert "sample: own is of the type unknown here" in result.stderr
    assert labelled("own", fm_instance="builds") in samples(result.stdout)


def test_json_has_every_sample(host):
    host.configures("sample")
    host.has_unit("sample")
    with host.runs("sample", pages=page("sample")):
        found = json.loads(host.does("metrics", "sample", "--json").stdout)
    assert {"name": "fm_consumer_up", "labels": {"fm_instance": "sample"}, "value": 1.0} in found


def test_a_relay_has_its_metrics_beside_those_of_instances(host):
    directory = host.directory / "fm-outbox/web"
    directory.mkdir(parents=True)
    report = RelayReport("sending", waiting=4)
    control = ControlThread(
        directory / "control",
        {schema.Ping: lambda _request: [this_process("web")]},
        RelayPages("web", lambda: report, lambda: False).by_path,
    )
    with closing(control):
        result = host.does("metrics")
    assert result.exit_code == 0, result.stderr
    found = samples(result.stdout)
    assert found[labelled("fm_outbox_messages", fm_relay="web", state="waiting")] == 4


def test_the_textfile_is_replaced_as_a_whole_and_readable_for_all(host):
    host.configures("sample")
    host.has_unit("sample")
    directory = host.directory / "textfiles"
    directory.mkdir()
    file = directory / "fm_consumers.prom"
    file.write_text("of the last run\n")
    with host.runs("sample", pages=page("sample")):
        result = host.does("metrics", "--textfile", str(directory))
    assert (result.exit_code, result.stdout) == (0, "")
    assert samples(file.read_text())[labelled("fm_consumer_up", fm_instance="sample")] == 1
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(directory.iterdir()) == [file]


def test_a_textfile_that_cannot_be_written_leaves_the_former_one(host):
    directory = host.directory / "textfiles"
    (directory / "fm_consumers.prom/in_the_way").mkdir(parents=True)
    result = host.does("metrics", "--textfile", str(directory))
    assert result.exit_code == 1
    assert "fm_consumers.prom: cannot be written" in result.stderr
    assert [each.name for each in directory.iterdir()] == ["fm_consumers.prom"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("gone",), 4, "there is no instance 'gone'"),
        (("--textfile", "/nowhere"), 2, "does not exist"),
        (("--json", "--textfile", "/"), 2, "not both"),
        (("--state-dir", "/"), 2, "--state-dir needs the NAME"),
    ],
)
def test_a_wrong_call_is_refused_with_the_reason(host, words, code, said):
    result = host.does("metrics", *words)
    assert result.exit_code == code
    assert said in result.stderr
