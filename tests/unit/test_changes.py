# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes between two configurations, and whether they need a reload or a restart."""

import copy
from typing import Any

import pytest
from fedora_messaging import config as upstream
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.settings import (
    FRAMEWORK_TAKES,
    TAKES,
    Framework,
    Qos,
    Settings,
    Takes,
    Tls,
    changes,
    in_force,
    parse,
)

QUEUE = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}}
FRAMEWORK = "consumer_config.framework"


def binding(queue="q", key="#", **more):
    return {"queue": queue, "exchange": "amq.topic", "routing_keys": [key], **more}


def settings(framework=None, config=None, **top) -> Settings:
    document: dict[str, Any] = copy.deepcopy(dict(upstream.DEFAULTS))
    document |= {"qos": {}, "monitoring": None, "log_config": None}
    document |= {"queues": {"q": QUEUE}, "bindings": [binding()], "callback": "a:b"}
    document["consumer_config"] = {**(config or {}), "framework": framework or {}}
    return parse({**document, **top})


def found(old, new, **more):
    return {change.path: change.takes for change in changes(old, new, **more)}


def test_every_key_of_the_file_is_in_the_table():
    tables: dict[str, Any] = {"qos": Qos, "tls": Tls}
    keys = set(Settings.model_fields) - set(tables)
    keys |= {f"{name}.{key}" for name, table in tables.items() for key in table.model_fields}
    assert set(TAKES) == keys
    assert set(FRAMEWORK_TAKES) == set(Framework.model_fields)


OTHERS: dict[str, Any] = {
    "amqp_url": "amqp://other",
    "client_properties": {"app": "other"},
    "publish_exchange": "other",
    "topic_prefix": "other",
    "publish_priority": 3,
    "passive_declares": True,
    "exchanges": {"other": {}},
    "qos.prefetch_size": 1,
    "qos.prefetch_count": 7,
    "callback": "c:d",
    "monitoring": {"port": 8000},
    "tls.ca_cert": "/other",
    "tls.certfile": "/other",
    "tls.keyfile": "/other",
    "log_config": {"version": 1},
}


@pytest.mark.parametrize("path", sorted(OTHERS))
def test_a_changed_key_takes_the_action_of_the_table(path):
    table, _, key = path.partition(".")
    new = settings(**{table: {key: OTHERS[path]} if key else OTHERS[path]})
    assert found(settings(), new) == {path: TAKES[path]}
    assert found(new, settings()) == {path: TAKES[path]}
    assert found(new, new) == {}


FRAMEWORK_OTHERS: dict[str, Any] = {
    "slots": 2,
    "read_ahead": 5,
    "handler_timeout": "1m",
    "start_timeout": "1m",
    "rate": "5/s",
    "quarantine_max_age": "1d",
    "store": "memory",
    "profile": "fedora",
    "quarantine_max_bytes": 5,
    "batch": {"size": 3},
    "ordering": "strict",
}


@pytest.mark.parametrize("key", sorted(FRAMEWORK_OTHERS))
def test_a_changed_key_of_the_framework_takes_the_action_of_its_table(key):
    new = settings({key: FRAMEWORK_OTHERS[key]})
    assert found(settings(), new) == {f"{FRAMEWORK}.{key}": FRAMEWORK_TAKES[key]}
    assert found(new, settings()) == {f"{FRAMEWORK}.{key}": FRAMEWORK_TAKES[key]}


def test_inner_tables_name_the_key_that_changed():
    old = settings({"recovery": {"immediate": 3, "breaker": {"consecutive": 4}}})
    new = settings({"recovery": {"immediate": 3, "delays": ["1s"]}, "batch": {"size": 2}})
    assert set(found(old, new)) == {
        f"{FRAMEWORK}.recovery.delays",
        f"{FRAMEWORK}.recovery.breaker",
        f"{FRAMEWORK}.batch",
    }
    assert set(found(settings({"batch": {"size": 3}}), new)) >= {f"{FRAMEWORK}.batch.size"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"slots": 1}),
        ({"handler_timeout": "60s"}, {"handler_timeout": "1m"}),
        ({"recovery": {}}, {"recovery": {"immediate": 1}}),
    ],
)
def test_values_with_the_same_meaning_are_no_change(old, new):
    assert changes(settings(old), settings(new)) == ()


def test_values_are_shown_as_they_are_written():
    (change,) = changes(settings({"handler_timeout": "5m"}), settings({"handler_timeout": "90s"}))
    assert str(change) == f'{FRAMEWORK}.handler_timeout: "5m" -> "90s"'
    (change,) = changes(settings(), settings({"slots": 4}))
    assert change.text == "default -> 4"


def test_values_that_may_be_secret_are_not_shown():
    new = settings(
        config={"password": "hunter2"},
        amqp_url="amqp://user:hunter2@host",
        client_properties={"x": "hunter2"},
        log_config={"version": 1, "token": "hunter2"},
    )
    for old, newer in ((settings(), new), (new, settings())):
        told = changes(old, newer)
        assert {change.path for change in told} == {
            "amqp_url",
            "client_properties",
            "log_config",
            "consumer_config.password",
        }
        assert not any("hunter2" in str(change) for change in told)


def test_each_changed_binding_is_shown():
    old = settings(bindings=[binding(key="a"), binding(key="b")])
    new = settings(bindings=[binding(key="b"), binding(key="c")])
    told = [str(change) for change in changes(old, new)]
    assert told == [
        'bindings: "q" to "amq.topic" with "c": new',
        'bindings: "q" to "amq.topic" with "a": gone',
    ]


def test_bindings_that_are_only_written_in_another_way_are_the_same():
    one = {**binding(), "routing_keys": ["a", "b", "a"]}
    assert (
        changes(settings(bindings=[one]), settings(bindings=[binding(key="b"), binding(key="a")]))
        == ()
    )


def test_a_file_of_tls_with_other_contents_is_a_change():
    same = settings(tls={"ca_cert": "/ca", "certfile": "/c", "keyfile": "/k"})
    assert found(same, same, files={"certfile"}) == {"tls.certfile": Takes.RECONNECT}


def test_the_callback_and_the_authors_settings_wait_for_a_restart():
    new = settings({"slots": 2}, {"a": 1}, callback="c:d")
    assert found(settings(), new) == {
        "callback": Takes.RESTART,
        "consumer_config.a": Takes.RESTART,
        f"{FRAMEWORK}.slots": Takes.RELOAD,
    }
    assert in_force(settings(config={"b": 2}), new, changes(settings(), new)) == settings(
        {"slots": 2}, {"b": 2}
    )


def test_keys_that_wait_for_a_restart_are_not_applied():
    new = settings({"slots": 2, "rate": "5/s"})
    path = f"{FRAMEWORK}.slots"
    told = changes(settings(), new, waiting={path})
    assert {c.path for c in told if c.takes is Takes.RESTART} == {path}
    assert in_force(settings(), new, told) == settings({"rate": "5/s"})


# The settings in force after a reload.


def test_changes_that_need_no_restart_are_in_force():
    new = settings({"slots": 2}, {"a": 1}, bindings=[binding(key="x")], qos={"prefetch_count": 3})
    assert in_force(settings(), new, changes(settings(), new)) == new


def test_changes_that_need_a_restart_are_not_in_force():
    new = settings({"ordering": "key", "ordering_key": "topic"}, passive_declares=True)
    old = settings({"start_timeout": "7m"}, amqp_url="amqp://old", qos={"prefetch_size": 1})
    assert in_force(old, new, changes(old, new)) == old


def test_a_queue_that_comes_or_goes_waits_with_its_bindings():
    old = settings(queues={"a": QUEUE, "b": QUEUE}, bindings=[binding("a"), binding("b")])
    new = settings(
        queues={"b": QUEUE, "c": QUEUE}, bindings=[binding("b", "new"), binding("c", "c")]
    )
    then = in_force(old, new, changes(old, new))
    assert then.queues == old.queues
    assert [(one.queue, one.routing_keys) for one in then.bindings] == [
        ("b", ["new"]),
        ("a", ["#"]),
    ]


def test_a_changed_queue_keeps_its_properties():
    old, new = settings(), settings(queues={"q": {**QUEUE, "durable": False}})
    assert found(old, new) == {"queues.q": Takes.RESTART}
    assert in_force(old, new, changes(old, new)) == old


FRAMEWORKS = st.fixed_dictionaries(
    {},
    optional={
        "slots": st.integers(1, 4),
        "rate": st.sampled_from(["1/s", "2/s"]),
        "start_timeout": st.sampled_from(["1m", "60s", "5m"]),
        "ordering": st.sampled_from(["none", "strict"]),
        "recovery": st.fixed_dictionaries({}, optional={"immediate": st.integers(0, 2)}),
    },
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "amqp_url": st.sampled_from(["amqp://a", "amqp://b"]),
        "qos": st.fixed_dictionaries(
            {}, optional={"prefetch_count": st.integers(0, 2), "prefetch_size": st.integers(0, 1)}
        ),
        "callback": st.sampled_from(["a:b", "c:d"]),
        "config": st.fixed_dictionaries({}, optional={"x": st.integers(0, 1)}),
        "bindings": st.lists(st.builds(binding, key=st.sampled_from("abc")), max_size=3),
    },
)


@given(FRAMEWORKS, FILES, FRAMEWORKS, FILES)
def test_only_waiting_changes_differ_from_the_settings_in_force(one, first, other, second):
    old, new = settings(one, **first), settings(other, **second)
    told = changes(old, new)
    then = in_force(old, new, told)
    waiting = {change.path for change in told if change.takes is Takes.RESTART}
    assert {change.path for change in changes(then, new)} >= waiting - {"consumer_config.x"}
    assert {change.path for change in changes(then, new)} <= waiting
    assert not any(change.takes is Takes.RESTART for change in changes(old, then))
    assert changes(old, old) == ()
