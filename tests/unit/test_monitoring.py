# SPDX-License-Identifier: GPL-2.0-or-later
"""Severities and thresholds, and the lines that Nagios and Zabbix read."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.adapters.systemd.systemctl import Unit, unit_name
from consumer_framework.cli import main
from consumer_framework.core.errors import Problem
from consumer_framework.core.lifecycle import State
from consumer_framework.core.loss import Loss
from consumer_framework.operate import status
from consumer_framework.operate.monitoring import (
    MEASURES,
    Range,
    Severity,
    ThresholdError,
    judge,
    range_of,
    thresholds,
    worst,
)
from consumer_framework.operate.status import InstanceStatus
from consumer_framework.runtime.control import client
from consumer_framework.runtime.control.schema import (
    Counts,
    OutboxReport,
    ReloadReport,
    StatusReport,
)
from consumer_framework.runtime.reload import remarks_of
from consumer_framework.runtime.state_files import StoredCounts

from .machine import make_host
from .test_docs import DOCS, table

if TYPE_CHECKING:
    from .machine import Host

NOW = 1_000_000.0
CONSUMING = StatusReport(state="consuming", status="consuming 1 queue", lag=40, up=60)
UP = Unit(unit_name("sample"), active="active", sub="running", file_state="enabled")


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    return make_host(short_tmp_path, monkeypatch)


def instance(report: StatusReport | None = CONSUMING, **more: Any) -> InstanceStatus:
    return InstanceStatus("sample", is_configured=True, **{"unit": UP, "report": report, **more})


def severity(one: InstanceStatus, *, warn: tuple[str, ...] = (), crit: tuple[str, ...] = ()) -> str:
    return judge(one, thresholds(warn, crit), NOW).severity.name


# Ranges.


@pytest.mark.parametrize(
    ("text", "quiet", "alerts"),
    [
        ("10", (0, 10), (-1, 10.5)),
        ("10:", (10, math.inf), (9.9, 0)),
        ("~:10", (-math.inf, 10), (11,)),
        ("10:20", (10, 20), (9, 21)),
        ("@10:20", (9, 21), (10, 20)),
        ("~:", (-math.inf, 0, math.inf), ()),
        ("0.5", (0.5,), (0.6,)),
    ],
)
def test_a_range_alerts_as_the_guidelines_of_the_monitoring_plugins_have_it(text, quiet, alerts):
    found = range_of(text)
    assert not any(map(found.alerts, quiet))
    assert all(map(found.alerts, alerts))
    assert str(found) == text


@pytest.mark.parametrize("text", ["", ":", "@", ":5", "x", "20:10", "1:2:3", "nan", "inf", "5m"])
def test_no_range_is_refused_with_the_ways_to_write_one(text):
    with pytest.raises(ThresholdError, match="is no range: write 10"):
        range_of(text)


@given(st.text("0123456789.:~@-ms", max_size=8))
def test_any_text_is_a_range_that_reads_the_same_again_or_is_refused(text):
    try:
        found = range_of(text, "s")
    except ThresholdError:
        return
    assert isinstance(found, Range)
    rounded = range_of(str(found), "s")
    assert str(rounded) == str(found)


def test_a_value_in_seconds_takes_a_length_of_time():
    assert thresholds(("overdue=2h",)).warn["overdue"].high == 7200
    with pytest.raises(ThresholdError, match="is no range"):
        thresholds(("lag=2h",))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("lagg=1", "there is no value 'lagg'; there are lag, lag_time, time_to_loss, rate"),
        ("lag", "is no threshold: write quarantined=10"),
    ],
)
def test_a_threshold_of_no_value_is_refused(item, why):
    with pytest.raises(ThresholdError, match=why):
        thresholds((item,))


# Judgements.


def test_every_state_of_an_instance_has_a_severity():
    found = {
        state.name: severity(instance(StatusReport(state=state.name.lower()))) for state in State
    }
    assert found == {
        "BUILDING": "WARNING",
        "CONNECTING": "WARNING",
        "SUBSCRIBING": "WARNING",
        "CONSUMING": "OK",
        "PAUSED": "CRITICAL",
        "FAILING": "CRITICAL",
        "DRAINING": "WARNING",
        "STOPPED": "WARNING",
    }
    assert severity(instance(StatusReport(state="invented later"))) == "UNKNOWN"


def test_an_instance_that_cannot_start_for_a_reason_is_critical():
    report = StatusReport(state="connecting", trouble="connection refused; attempt 4 in 8 s")
    assert severity(instance(report)) == "CRITICAL"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ({"active": "failed", "result": "exit-code", "exit_status": 78}, "CRITICAL"),
        ({"active": "failed", "result": "watchdog"}, "CRITICAL"),
        ({"active": "inactive"}, "CRITICAL"),
        ({"active": "activating", "sub": "auto-restart"}, "CRITICAL"),
        ({"active": "activating", "sub": "start"}, "WARNING"),
        ({"active": "deactivating", "sub": "stop-sigterm"}, "WARNING"),
    ],
)
def test_a_unit_that_does_not_run_has_the_severity_of_its_state(unit, expected):
    assert severity(instance(None, unit=replace(UP, **unit))) == expected


def test_without_systemd_an_instance_that_does_not_run_is_unknown():
    one = instance(None, unit=None)
    verdict = judge(one, thresholds(), NOW, "no systemctl")
    assert (verdict.severity, verdict.problem) == (
        Severity.UNKNOWN,
        "systemd was not asked: no systemctl",
    )
    closed = replace(one, problem="permission denied; use sudo")
    assert judge(closed, thresholds(), NOW, "no systemctl").problem == closed.problem
    assert severity(one) == "CRITICAL"


def test_an_instance_without_an_answer_is_judged_by_the_reason():
    assert severity(instance(None, problem="permission denied; use sudo")) == "UNKNOWN"
    assert severity(instance(None, problem="its loop is blocked", is_silent=True)) == "CRITICAL"
    assert severity(instance(None, is_silent=True)) == "WARNING"


def test_an_unknown_name_is_unknown():
    one = InstanceStatus("smaple", is_configured=False)
    assert judge(one, thresholds(), NOW).problem == "there is no such instance"


def test_a_refused_reload_is_a_warning():
    problem = Problem("consumer_config.lable", "unknown key", "remove it")
    remarks = tuple(remarks_of(ReloadReport("refused", problems=(problem,))).values())
    assert severity(instance(replace(CONSUMING, remarks=remarks))) == "WARNING"
    assert severity(instance(replace(CONSUMING, remarks=("no store: nothing",)))) == "OK"
    remarks = ("monitoring port 127.0.0.1:8000: cannot listen: Address already in use",)
    assert severity(instance(replace(CONSUMING, remarks=remarks))) == "WARNING"


def test_a_value_beyond_a_threshold_is_named_worst_first():
    one = instance(stored=StoredCounts(3, 12, NOW - 7200))
    verdict = judge(one, thresholds(crit=("quarantined=10",)), NOW)
    assert verdict.severity is Severity.CRITICAL
    assert verdict.problem == "12 quarantined, a deferred message is due since 2h"


def test_one_quarantined_message_is_a_warning_unless_the_operator_allows_it():
    one = instance(stored=StoredCounts(0, 1, None))
    assert severity(one) == "WARNING"
    assert severity(one, warn=("quarantined=~:",)) == "OK"


def test_the_outbox_is_judged_by_its_oldest_and_its_dead_messages():
    outbox = OutboxReport(waiting=3, oldest=400.0, dead=1)
    verdict = judge(instance(replace(CONSUMING, outbox=outbox)), thresholds(), NOW)
    assert verdict.problem == "1 in the outbox can never be sent, the outbox waits since 6m"
    assert severity(instance(replace(CONSUMING, outbox=OutboxReport()))) == "OK"


def test_a_store_that_cannot_be_read_has_no_values():
    verdict = judge(instance(stored=None), thresholds(), NOW)
    assert not {"deferred", "quarantined", "overdue"} & {*verdict.values}


def test_critical_outweighs_warning_which_outweighs_unknown():
    assert worst([]) is Severity.OK
    assert worst(Severity) is Severity.CRITICAL
    assert worst([Severity.UNKNOWN, Severity.WARNING]) is Severity.WARNING
    assert worst([Severity.UNKNOWN, Severity.OK]) is Severity.UNKNOWN


# Nagios.

# Monitoring Plugins, "Performance data".
DATUM = r"'label'=[-\d.]+(s|c)?;[-@~:\d.]*;[-@~:\d.]*;[\d.]*".replace(
    "'label'", "('[^'=]+'|[^ '=]+)"
)
LINE = re.compile(rf"FM-CONSUMER (OK|WARNING|CRITICAL|UNKNOWN): [^|\n]+( \| {DATUM}( {DATUM})*)?\n")


def checked(host: Host, *words: str) -> tuple[int, str]:
    result = host.does("status", "--nagios", *words)
    assert LINE.fullmatch(result.stdout), result.output
    assert ("OK", "WARNING", "CRITICAL", "UNKNOWN")[result.exit_code] in result.stdout
    assert result.stderr == ""
    return result.exit_code, result.stdout


def test_an_instance_that_consumes_is_ok_with_its_values_and_thresholds(host):
    host.configures()
    host.has_unit("sample", MainPID="42", NRestarts="3")
    with host.runs("sample", state="consuming", lag=40, rate=1.5, up=9):
        code, line = checked(host, "sample", "--warn", "lag=100", "--crit", "lag=500:")
        assert checked(host, "sample", "--warn", "lag=39")[0] == 1
        assert checked(host, "sample", "--warn", "lag=39", "--crit", "lag=39")[0] == 2
    assert code == 2, "critical below 500"
    assert line.startswith("FM-CONSUMER CRITICAL: sample: 40 messages wait on the broker | ")
    data = line.partition(" | ")[2].split()
    assert data[:3] == [
        "sample.lag=40;100;500:;0",
        "sample.rate=1.5;;;0",
        "sample.running=1;;;0",
    ]
    assert {"sample.restarts=3c;;;0", "sample.uptime=9s;;;0"} <= {*data}
    assert "sample.overdue=0s;900;;0" in data


def test_several_instances_are_one_line_and_the_worst_decides(host):
    for name in ("sample", "broken", "sleepy"):
        host.configures(name)
    host.has_unit("sample")
    more = {"Result": "exit-code", "ExecMainStatus": "78"}
    host.has_unit("broken", "failed", StatusText="Not started: a | b", **more)
    host.keeps("sample", quarantined=1)
    with host.runs("sample", state="consuming"):
        code, line = checked(host)
        assert checked(host, "sample", "sleepy")[1].startswith(
            "FM-CONSUMER CRITICAL: 2 of 2 instances: sleepy: is stopped; sample: 1 quarantined |"
        )
    assert code == 2
    assert line.startswith(
        "FM-CONSUMER CRITICAL: 2 of 2 instances: "
        "broken: failed (exit code 78): Not started: a / b; sample: 1 quarantined | "
    ), "the disabled instance that nobody named does not count"


def test_instances_that_all_consume_are_named(host):
    for name in ("builds", "composes"):
        host.configures(name)
        host.has_unit(name)
    with (
        host.runs("builds", state="consuming"),
        host.runs("composes", state="consuming", status="consuming | 1 queue"),
    ):
        assert checked(host)[1].startswith("FM-CONSUMER OK: 2 instances: builds, composes | ")
        assert checked(host, "composes")[1].startswith(
            "FM-CONSUMER OK: composes: consuming / 1 queue | "
        )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--warn lagg=1", "there is no value 'lagg'"),
        ("--warn lag=x", "is no range"),
        ("--nonsense", "No such option"),
        ("--json", "not both"),
        ("../etc", "name"),
        ("gone", "gone: there is no such instance"),
        ("", "no instance of"),
    ],
)
def test_a_check_that_cannot_be_made_is_unknown_and_never_a_warning_or_critical(host, words, why):
    code, line = checked(host, *shlex.split(words))
    assert code == 3
    assert why in line


def test_an_instance_that_the_user_of_the_check_may_not_ask_is_unknown(host, monkeypatch):
    def refuse(*_: Any) -> None:
        raise client.ControlError("control: permission denied; use sudo")

    host.configures()
    host.has_unit("sample")
    monkeypatch.setattr(status, "connected", refuse)
    assert checked(host)[0] == 3


def test_a_defect_is_unknown_with_its_traceback_on_standard_error(host, monkeypatch):
    host.configures()
    monkeypatch.setattr(status, "instances_on_host", lambda *_: 1 / 0)
    result = host.does("status", "--nagios")
    assert result.exit_code == 3
    assert LINE.fullmatch(result.stdout)
    assert "a defect of fm-consumer: ZeroDivisionError" in result.stdout
    assert "Traceback" in result.stderr


def test_a_directory_of_configurations_that_cannot_be_read_is_unknown(host):
    host.etc.rmdir()
    host.etc.write_text("no directory")
    assert checked(host)[0] == 3


def test_the_reference_lists_the_values_with_their_thresholds():
    rows = table(DOCS / "reference/status.md", "Values and thresholds")
    listed = {row[0].strip("`"): (row[2].strip("`"), row[3].strip("`")) for row in rows}
    assert listed == {
        name: (one.warn or "none", one.crit or "none") for name, one in MEASURES.items()
    }


# Zabbix.


def zabbix(host: Host, *words: str) -> Any:
    result = host.does("status", "--zabbix", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_zabbix_discovers_each_worker_with_its_group(host):
    host.configures()
    (host.etc / "sample_2.toml").symlink_to("sample.toml")
    host.has_unit("sample")
    assert zabbix(host, "discovery") == [
        {
            "{#INSTANCE}": name,
            "{#GROUP}": "sample",
            "{#UNIT}": f"fm-consumer@{name}.service",
            "{#ENABLED}": enabled,
        }
        for name, enabled in (("sample", "1"), ("sample_2", "0"))
    ]


def test_zabbix_reads_the_values_of_every_discovered_instance_in_one_call(host):
    host.configures()
    host.configures("idle")
    host.has_unit("sample")
    host.keeps("sample", quarantined=2)
    with host.runs("sample", state="consuming", lag=40):
        found = zabbix(host)
        assert zabbix(host, "sample", "--crit", "lag=1")["sample"]["severity"] == 2
    assert {*found} == {one["{#INSTANCE}"] for one in zabbix(host, "discovery")}
    assert found["sample"]["lag"] == 40
    assert found["sample"]["quarantined"] == 2
    assert (found["sample"]["state"], found["sample"]["active"]) == ("consuming", 1)
    assert (found["sample"]["severity"], found["sample"]["problem"]) == (1, "2 quarantined")
    assert (found["idle"]["severity"], found["idle"]["active"]) == (2, 0)
    assert "lag" not in found["idle"], "it is not known"


def test_zabbix_is_refused_an_unknown_name_as_people_are(host):
    assert host.does("status", "--zabbix", "gone").exit_code == 4


@pytest.mark.parametrize("words", [("--warn", "lag=1"), ("--zabbix", "--json")])
def test_options_that_mean_nothing_together_are_refused(host, words):
    assert host.does("status", *words).exit_code == 2


def test_the_values_of_thresholds_are_completed():
    found = main.get_command(click.Context(main), "status")
    assert found is not None
    [option] = [one for one in found.params if "--crit" in one.opts]
    completed = [item.value for item in option.shell_complete(click.Context(found), "outbox_")]
    assert completed == ["outbox_waiting=", "outbox_dead=", "outbox_oldest="]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("stuck", "CRITICAL"),
        ("unhealthy", "CRITICAL"),
        ("retrying", "WARNING"),
        ("slow", "WARNING"),
        ("lagging", "OK"),
        ("idle", "OK"),
        ("consuming", "OK"),
        ("", "OK"),
        ("of a later version", "OK"),
    ],
)
def test_a_condition_that_no_value_shows_counts(condition, expected):
    one = instance(replace(CONSUMING, condition=condition, reason="the index is old"))
    assert severity(one) == expected
    problem = judge(one, thresholds(), NOW).problem
    assert problem == ("" if expected == "OK" else f"{condition}: the index is old")


@pytest.mark.parametrize(("age", "expected"), [(299, "OK"), (301, "WARNING"), (3601, "CRITICAL")])
def test_the_lag_in_time_has_thresholds(age, expected):
    assert severity(instance(replace(CONSUMING, lag_seconds=age))) == expected


def test_the_next_loss_is_named_in_the_last_day_and_critical_in_the_last_hour():
    def found(seconds):
        loss = Loss("the disk is full", seconds, "make room")
        return judge(instance(replace(CONSUMING, loss=loss)), thresholds(), NOW)

    assert found(90000.0).severity.name == "OK"
    assert found(80000.0).problem == "loss in 22h: the disk is full"
    assert found(80000.0).severity.name == "WARNING"
    assert found(0.0).severity.name == "CRITICAL"


def test_zabbix_gets_the_condition_and_the_values_of_health(host):
    host.configures()
    host.has_unit("sample")
    loss = Loss("the disk is full", 60.0, "make room")
    more: dict[str, Any] = {"condition": "slow", "reason": "r", "lag_seconds": 2.5, "loss": loss}
    with host.runs("sample", state="consuming", **more):
        found = zabbix(host)["sample"]
    assert (found["condition"], found["lag_time"], found["time_to_loss"]) == ("slow", 2.5, 60.0)


def test_every_value_that_a_full_report_has_is_shown():
    report = StatusReport(
        state="consuming",
        lag=0,
        lag_seconds=0.0,
        loss=Loss("the queue is full", 5.0),
        counts=Counts(),
        outbox=OutboxReport(waiting=0),
        up=1,
    )
    assert [*judge(instance(report), thresholds(), time.time()).values] == [*MEASURES]
