# SPDX-License-Identifier: GPL-2.0-or-later
"""`Forward` publishes a copy of each message, and never the same copy in a circle."""

from __future__ import annotations

import pytest
from fedora_messaging import config as upstream
from fedora_messaging.exceptions import ConfigurationException
from fedora_messaging.message import Message

from consumer_framework.core.disposition import Ack, Quarantine
from consumer_framework.core.errors import ConfigurationError, StoreError
from consumer_framework.kit.forward import PASSED, ForwardConfig, loop_problem
from consumer_framework.testing import Harness

CONSUMER = "consumer_framework.kit.forward:Forward"


def message(topic="org.example.build", *, priority=None, **headers):
    found = Message(topic=topic, body={"n": 1, "name": "kernel"}, headers=headers)
    found._properties.priority = priority
    return found


def forwarding(**config):
    return Harness(CONSUMER, config={"exchange": "copies", **config})


def headers(message):
    return message._headers


def test_a_copy_has_the_id_body_headers_and_priority_of_the_message():
    original = message(priority=5, **{"x-request-id": "r1"})
    with forwarding() as run:
        assert isinstance(run.deliver(original), Ack)
        [copied] = run.published
    assert copied.id == original.id
    assert copied.topic == original.topic
    assert copied.body == original.body
    assert copied.priority == 5
    assert {**headers(copied), PASSED: None} == {**headers(original), PASSED: None}
    assert PASSED not in headers(original)


def test_the_topic_changes_by_the_first_pattern_that_fits():
    topics = {"org.example.#": "mirror.#"}
    with forwarding(topics=topics) as run:
        run.deliver(message("org.example.build.done"))
        run.deliver(message("net.example"))
        assert [sent.topic for sent in run.published] == ["mirror.build.done", "net.example"]


def test_other_topics_and_messages_that_do_not_fit_the_conditions_are_skipped():
    config = {"topics": {"a.#": "b.#"}, "other_topics": "skip", "only": ["body.n=1", "topic~x"]}
    with forwarding(**config) as run:
        for topic in ("a.x", "a.y", "x"):
            assert isinstance(run.deliver(message(topic)), Ack)
        assert [sent.topic for sent in run.published] == ["b.x"]


def test_the_headers_of_the_broker_and_of_its_routing_do_not_go_on():
    given = {"x-death": [{"time": 1}], "x-first-death-queue": "q", "CC": ["other"], "x-own": "1"}
    with forwarding(drop_headers=["sent-at"]) as run:
        run.deliver(message(**given))
        [copied] = run.published
    assert headers(copied)["x-own"] == "1"
    assert not {"x-death", "x-first-death-queue", "CC", "sent-at"} & set(headers(copied))


def test_only_the_headers_of_the_wire_format_go_on_if_the_file_says_so():
    original = message(**{"x-own": "1", "fedora_messaging_rpm_kernel": True})
    with forwarding(headers="wire") as run:
        run.deliver(original)
        [copied] = run.published
    assert {*headers(copied)} == {*headers(original), PASSED} - {"x-own"}


def test_a_copy_that_comes_back_is_not_sent_again_and_others_are_marked_in_turn():
    with forwarding(name="here") as run:
        run.deliver(message())
        [copied] = run.published
        assert headers(copied)[PASSED] == "here"
        assert isinstance(run.deliver(copied), Ack)
        run.deliver(message(**{PASSED: "there"}))
        assert [headers(sent)[PASSED] for sent in run.published] == ["here", "there here"]


def test_a_message_that_has_passed_too_many_forwarders_is_quarantined():
    with forwarding(max_hops=2) as run:
        found = run.deliver(message(**{PASSED: "a b"}))
        assert isinstance(found, Quarantine)
        assert "passed 2 forwarders" in found.reason
        assert not list(run.published)


def test_a_message_that_can_never_be_sent_is_quarantined_with_the_reason():
    with forwarding(topics={"#": f"{'x' * 250}.#"}) as run:
        found = run.deliver(message("org.example"))
        assert isinstance(found, Quarantine)
        assert "topic has 262 bytes" in found.reason


def test_a_message_is_acknowledged_only_once_its_copy_is_stored():
    with forwarding() as run:
        run.outbox.error = StoreError("the disk is full")
        original = message()
        assert not isinstance(run.deliver(original), Ack)
        assert not list(run.published)
        run.outbox.error = None
        run.advance("1h")
        assert run.acked == [original]
        assert [sent.id for sent in run.published] == [original.id]


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("topics", {"topics": {"a.#": "b"}}),
        ("only", {"only": ["name=kernel"]}),
        ("other_topics", {"other_topics": "lose"}),
        ("name", {"name": "a b"}),
    ],
)
def test_a_wrong_key_is_named(key, config):
    with pytest.raises(ConfigurationError, match=key if key in {"other_topics", "name"} else "'"):
        forwarding(**config)


def test_an_instance_whose_copies_come_back_does_not_start():
    with (
        pytest.raises(ConfigurationException, match="come back to the queue"),
        Harness(CONSUMER, config={}),
    ):
        pass


def document(*keys, **changes):
    found = {**upstream.DEFAULTS, "consumer_config": {}, **changes}
    found["bindings"] = [{"exchange": "amq.topic", "queue": "q", "routing_keys": list(keys)}]
    return found


@pytest.mark.parametrize(
    ("keys", "config", "changes", "endpoints"),
    [
        (["a.#"], {}, {}, ()),
        (["a.#", "b.#"], {"topics": {"a.#": "b.#"}}, {}, ()),
        (["#"], {"topics": {"a.#": "b.#"}}, {}, ()),
        (["*.a", "a"], {}, {"topic_prefix": "a."}, ()),
        (["a"], {}, {}, ["amqp://other", "amqp://localhost:5672/%2F"]),
        (["a.#"], {"topics": {"a.#": "a.a.#"}, "other_topics": "skip"}, {}, ()),
    ],
)
def test_a_loop_through_the_own_bindings_is_found(keys, config, changes, endpoints):
    changes = {"amqp_url": "amqp://localhost", **changes}
    found = loop_problem(document(*keys, **changes), ForwardConfig(**config), endpoints)
    assert "come back to the queue" in found


@pytest.mark.parametrize(
    ("keys", "config", "changes", "endpoints"),
    [
        (["a.#"], {"exchange": "copies"}, {}, ()),
        (["a.#"], {"topics": {"#": "b.#"}}, {}, ()),
        (["a.#"], {}, {"topic_prefix": "mirror"}, ()),
        (["a.x", "b.y"], {"topics": {"a.#": "b.#"}, "other_topics": "skip"}, {}, ()),
        (["#"], {"topics": {"a.#": "b.#"}, "other_topics": "skip"}, {}, ()),
        (["#"], {"only": ["topic!~^mirror"], "topics": {"#": "mirror.#"}}, {}, ()),
        (["a"], {}, {}, ["amqp://other"]),
        (["a"], {}, {}, ["amqp://localhost/other"]),
    ],
)
def test_what_is_no_loop_or_may_be_none_is_not_refused(keys, config, changes, endpoints):
    changes = {"amqp_url": "amqp://localhost", **changes}
    assert loop_problem(document(*keys, **changes), ForwardConfig(**config), endpoints) == ""
