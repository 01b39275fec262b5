# SPDX-License-Identifier: GPL-2.0-or-later
"""The recovery policy is made from the settings of a file and of a class."""

import pytest
from fedora_messaging.exceptions import ConnectionException, PublishTimeout

from consumer_framework import Recovery
from consumer_framework.core.delivery import Failed
from consumer_framework.core.disposition import Reject
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.recovery import OnExhausted, OnInvalid, Policy, Situation, Then, decide
from consumer_framework.runtime.assembly.plan import DEFAULT_RULES, policy_of
from consumer_framework.testing import make_delivery


def policy(written, own=None):
    made, _ = policy_of(recovery(written), recovery(own or {}), "a.toml", "a:Class")
    return made


def recovery(table):
    return Recovery.model_validate(table)


def rule(then, *exceptions):
    return {"exceptions": list(exceptions), "then": then}


def test_without_settings_the_defaults_decide():
    assert policy({}) == Policy(rules=DEFAULT_RULES)


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        ({"immediate": 0}, "schedule", (10.0, 60.0, 300.0)),
        ({"immediate": 3, "delays": []}, "schedule", (0.0, 0.0, 0.0)),
        ({"delays": ["1s", 2]}, "schedule", (0.0, 1.0, 2.0)),
        ({"ack_timeout": "1h"}, "hold_ceiling", 1800.0),
        ({"on_exhausted": "drop"}, "on_exhausted", OnExhausted.DROP),
        ({"on_exhausted": "reject"}, "on_exhausted", OnExhausted.REJECT),
        ({"on_invalid": "reject"}, "on_invalid", OnInvalid.REJECT),
        ({"crash_attempts": 5}, "crash_attempts", 5),
        ({"breaker": {"probe": ["7s", "1m"]}}, "dependency", 7.0),
    ],
)
def test_each_setting_changes_the_policy(written, field, value):
    assert getattr(policy(written), field) == value


def test_the_file_overrides_the_class_and_its_rules_come_first():
    own = {"immediate": 0, "delays": ["5s"], "rules": [rule("drop", "KeyError")]}
    written = {"delays": ["9s"], "rules": [rule("retry", "json.JSONDecodeError")]}
    made = policy(written, own)
    assert made.schedule == (9.0,)
    assert [r.then for r in made.rules] == [Then.RETRY, Then.DROP, Then.DEPENDENCY]
    assert [r.source.partition(":")[0] for r in made.rules] == ["a.toml", "a", "the default"]


def test_a_broker_that_takes_no_publication_is_no_fault_of_the_message():
    situation = Situation(now=0.0, spread=0.5, may_hold=True)
    for error in (PublishTimeout(), ConnectionException()):
        decision = decide(make_delivery(), Failed(error), policy({}), situation)
        assert decision.dependency_fault
        assert decision.history.attempts == ()
    mine = policy({"rules": [rule("drop", "fedora_messaging.exceptions.PublishTimeout")]})
    dropped = decide(make_delivery(), Failed(PublishTimeout()), mine, situation)
    assert isinstance(dropped.disposition, Reject)


def test_a_class_may_name_the_exceptions_themselves():
    made = policy({}, {"rules": [{"exceptions": [KeyError], "then": "drop"}]})
    assert made.rules[0].exceptions == (KeyError,)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("NoSuchError", "cannot be imported"),
        ("no.such.package.Error", "cannot be imported"),
        ("json.NoSuchError", "cannot be imported"),
        ("", "cannot be imported|is no exception"),
        ("json.loads", "is no exception"),
        ("int", "is no exception"),
    ],
)
def test_a_name_that_is_no_exception_is_refused_with_its_path(name, what):
    with pytest.raises(ConfigurationError, match=what) as raised:
        policy({"rules": [rule("drop", "KeyError"), rule("drop", name)]})
    (problem,) = raised.value.problems
    assert problem.path == "consumer_config.framework.recovery.rules[1].exceptions"


def test_all_names_that_are_no_exceptions_are_reported_at_once():
    with pytest.raises(ConfigurationError) as raised:
        policy({"rules": [rule("drop", "json.dumps", "no.Such")]}, {"rules": [rule("halt", "int")]})
    assert [(p.path, p.message.partition(" ")[0]) for p in raised.value.problems] == [
        ("consumer_config.framework.recovery.rules[0].exceptions", '"json.dumps"'),
        ("consumer_config.framework.recovery.rules[0].exceptions", '"no.Such"'),
        ("recovery.rules[0].exceptions", '"int"'),
    ]


def test_a_module_that_breaks_while_it_is_imported_is_named(tmp_path, monkeypatch):
    module = f"broken_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"cannot be imported \(SystemExit: 3\)"):
        policy({"rules": [rule("drop", f"{module}.Error")]})


def test_a_suggestion_is_made_for_a_misspelt_built_in_exception():
    with pytest.raises(ConfigurationError, match=r'did you mean "ValueError"\?'):
        policy({"rules": [rule("drop", "Valueerror")]})
