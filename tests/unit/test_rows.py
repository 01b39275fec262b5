# SPDX-License-Identifier: GPL-2.0-or-later
"""A document of ``fm-consumer status --json`` is read, also that of another release."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer_framework.core.loss import Loss
from consumer_framework.operate.hosts import HostAnswer, hosts_in
from consumer_framework.operate.rows import rows_of
from consumer_framework.runtime.control.schema import StatusReport


def only(**more):
    [row] = rows_of({"groups": [{"name": "builds", "instances": [{"name": "builds_2", **more}]}]})
    return row


def test_a_report_of_this_release_gives_the_values_of_a_row():
    report = json.loads(json.dumps(asdict(StatusReport(state="consuming", rate=2.5, lag=3, up=9))))
    row = only(active=True, should_run=True, report=report, deferred=4, quarantined=5)
    assert (row.group, row.name, row.host) == ("builds", "builds_2", "")
    assert (row.rate, row.lag, row.up, row.deferred, row.quarantined) == (2.5, 3, 9.0, 4, 5)
    assert row.condition in {"consuming", report.get("condition")}


def test_the_condition_of_a_newer_release_comes_before_the_state():
    loss = {"subject": "the cap of the queue", "seconds": 60, "cure": "add workers"}
    report = {"state": "consuming", "condition": "lagging", "reason": "9 wait", "loss": loss}
    row = only(active=True, report=report)
    assert (row.condition, row.reason) == ("lagging", "9 wait")
    assert row.loss == Loss("the cap of the queue", 60.0, "add workers")


@pytest.mark.parametrize(
    ("more", "condition", "reason"),
    [
        ({"unit": {"active": "failed", "text": "Not started"}}, "failed", "Not started"),
        ({"unit": {"active": "inactive"}}, "stopped", ""),
        ({}, "stopped", ""),
        ({"active": True, "problem": "it does not answer"}, "silent", "it does not answer"),
        ({"active": True, "report": {"pid": 7}}, "running", ""),
        ({"report": {"state": "paused", "trouble": "no database"}}, "paused", "no database"),
    ],
)
def test_an_instance_without_a_condition_is_known_by_its_unit_and_its_state(
    more, condition, reason
):
    row = only(**more)
    assert (row.condition, row.reason) == (condition, reason)
    assert row.rate is row.lag is row.loss is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KEYS = ("name", "active", "should_run", "unit", "report", "problem", "deferred", "quarantined")
REPORTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("state", "condition", "rate", "lag", "loss", "counts"), ANYTHING)
)
INSTANCES = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(KEYS, ANYTHING), "report": REPORTS | ANYTHING}
)


@settings(max_examples=50, deadline=None)
@given(st.lists(ANYTHING | st.fixed_dictionaries({"instances": st.lists(INSTANCES | ANYTHING)})))
def test_a_document_of_any_form_is_read(groups):
    for row in rows_of({"groups": groups}, "here"):
        assert row.host == "here"
        assert row.condition


def test_a_number_that_no_host_has_is_none():
    row = only(report={"lag": 10**400, "rate": float("inf"), "up": True, "lag_seconds": "1"})
    assert row.lag is row.rate is row.up is row.lag_seconds is None


def test_a_host_without_an_answer_has_no_rows():
    assert HostAnswer("web", problem="no connection").rows == []


def test_lists_of_hosts_are_split_and_repetitions_are_left_out():
    assert hosts_in(["root@a, b", "b,c"]) == ["root@a", "b", "c"]


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b"])
def test_a_name_that_ssh_would_take_for_an_option_is_refused(name):
    with pytest.raises(ValueError, match="no name of a host"):
        hosts_in([f"a,{name}"])
