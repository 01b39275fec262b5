# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of settings alone find messages that may be lost."""

from typing import Any

import pytest

from consumer_framework.core.errors import ExitCode, Problem
from consumer_framework.operate.check.findings import Finding, Level, error, info, report, warning
from consumer_framework.operate.check.queues import binding_findings, flow_findings, queue_findings
from consumer_framework.settings import Framework, Queue, Recovery, Settings

DURABLE = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}}


def findings(
    arguments: Any = None, *, name: str = "one", version: Any = None, **changes: Any
) -> list[Finding]:
    queue = Queue.model_validate({**DURABLE, "arguments": arguments or {}, **changes})
    return list(queue_findings(name, queue, 1800.0, version))


def only(found: list[Finding]) -> Problem:
    (finding,) = found
    assert finding.level is Level.WARNING
    return finding.problem


def test_a_durable_queue_without_arguments_is_inside_the_guarantee():
    assert findings() == []
    assert findings({"x-queue-type": "classic", "x-max-priority": 5}) == []


@pytest.mark.parametrize(
    ("changes", "path", "what"),
    [
        ({"exclusive": True}, "queues.one.exclusive", "sent while the instance is down is lost"),
        ({"auto_delete": True}, "queues.one.auto_delete", "sent while the instance is down"),
        (
            {"durable": False, "auto_delete": True, "exclusive": True},
            "queues.one.exclusive",
            "goes with its consumer",
        ),
    ],
)
def test_a_queue_that_does_not_last_is_warned_of_once(changes, path, what):
    problem = only(findings(**changes))
    assert problem.path == path
    assert what in problem.message
    assert "a queue of another name" in problem.cure


def test_a_queue_that_ends_with_the_broker_is_warned_of():
    problem = only(findings(durable=False, version=(4, 2)))
    assert problem.path == "queues.one.durable"
    assert "lost when the broker restarts" in problem.message


@pytest.mark.parametrize(
    ("version", "passive", "level"),
    [
        ((4, 3), False, Level.ERROR),
        ((4, 3, 1), None, Level.ERROR),
        ((4, 3), True, Level.WARNING),
        (None, False, Level.WARNING),
    ],
)
def test_rabbitmq_4_3_refuses_a_queue_that_is_neither_durable_nor_exclusive(
    version, passive, level
):
    _, refused = findings(durable=False, version=version, passive=passive)
    assert (refused.level, refused.problem.path) == (level, "queues.one.durable")
    assert refused.exit_code == ExitCode.BAD_DECLARATION or level is Level.WARNING
    assert "RabbitMQ 4.3 refuses a queue" in refused.problem.message
    assert "transient_nonexcl_queues" in refused.problem.cure


@pytest.mark.parametrize(("version", "count"), [(None, 1), ((4, 3), 1), ((4, 2, 9), 0), ((3,), 0)])
def test_a_single_active_consumer_of_a_quorum_queue_is_warned_of(version, count):
    more = {"x-single-active-consumer": True, "x-delivery-limit": -1}
    found = findings(QUORUM | more, version=version)
    assert len(found) == count
    for finding in found:
        assert finding.level is Level.WARNING
        assert finding.problem.path == "queues.one.arguments.x-single-active-consumer"
    assert findings(more, version=version) == [], "a classic queue"


def test_a_broker_without_lasting_queues_has_its_own_cure():
    queue = Queue.model_validate(DURABLE | {"exclusive": True})
    (found,) = queue_findings("", queue, 1.0, lasting="ask them")
    assert found.problem.cure == "ask them"


def test_the_queue_that_the_broker_names_is_to_be_replaced():
    problem = only(findings(name="", exclusive=True))
    assert problem.path == 'queues."".exclusive'
    assert problem.cure == "declare a durable [queues.NAME], and bind that"


DROPPED = "use a queue without it, of another name (arguments cannot be changed), or let a policy"


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("x-max-length", 100000, "when 100,000 messages wait in the queue, the broker drops the o"),
        ("x-max-length-bytes", 5000, "when 5,000 bytes wait in the queue, the broker drops the o"),
        ("x-max-length", "many", "when so many messages wait"),
        ("x-message-ttl", 3600000, "the broker drops messages that have waited for 1h"),
        ("x-message-ttl", True, "the broker drops messages that have waited for so long"),
        ("x-delivery-limit", 5, "the broker drops a message that came back more than 5 times"),
    ],
)
def test_an_argument_that_loses_messages_is_warned_of(key, value, what):
    problem = only(findings({key: value}))
    assert problem.path == f"queues.one.arguments.{key}"
    assert problem.message.startswith(what)
    assert problem.cure.startswith(DROPPED)


def test_a_queue_that_expires_takes_its_messages_with_it():
    problem = only(findings({"x-expires": 90000}))
    assert "deleted when nobody has consumed for 1m 30s" in problem.message


@pytest.mark.parametrize("overflow", ["reject-publish", "reject-publish-dlx"])
def test_a_full_queue_may_refuse_messages(overflow):
    problem = only(findings({"x-max-length": 5, "x-overflow": overflow}))
    assert problem.message.endswith("the broker refuses what is sent to it")


@pytest.mark.parametrize("key", ["x-max-length", "x-message-ttl"])
def test_a_dead_letter_exchange_gets_the_messages_that_would_be_dropped(key):
    problem = only(findings({key: 5, "x-dead-letter-exchange": "dead"}))
    assert 'moves to the exchange "dead"' in problem.message
    assert "policy" not in problem.cure


QUORUM = {"x-queue-type": "quorum"}


@pytest.mark.parametrize("version", [None, (4,), (4, 0, 1), (4, 3)])
def test_a_quorum_queue_without_a_dead_letter_exchange_drops_often_returned_messages(version):
    problem = only(findings(QUORUM, version=version))
    assert problem.path == "queues.one.arguments.x-queue-type"
    assert "drops a message of a quorum queue that came back 20 times" in problem.message


@pytest.mark.parametrize(
    ("more", "version"),
    [
        ({}, (3, 13, 7)),
        ({"x-delivery-limit": -1}, (4, 0)),
        ({"x-delivery-limit": -1, "x-dead-letter-exchange": "dead"}, (4, 0)),
    ],
)
def test_a_quorum_queue_that_keeps_everything_is_not_warned_of(more, version):
    assert findings(QUORUM | more, version=version) == []


@pytest.mark.parametrize("more", [{}, {"x-delivery-limit": 3}])
def test_a_delivery_limit_is_warned_of_even_with_a_dead_letter_exchange(more):
    problem = only(findings(QUORUM | more | {"x-dead-letter-exchange": "dead"}, version=(4, 0)))
    assert 'moves to the exchange "dead" a message' in problem.message
    assert "each crash and each lost connection" in problem.message


def test_a_broker_that_takes_messages_back_early_is_warned_of():
    problem = only(findings({"x-consumer-timeout": 60000}))
    assert "takes messages back after 1m, sooner than recovery.ack_timeout (30m)" in problem.message
    assert problem.cure == 'set ack_timeout = "1m"'
    assert findings({"x-consumer-timeout": 1800000}) == []


# Prefetched messages.


@pytest.mark.parametrize(
    ("count", "framework", "level", "what"),
    [
        (0, {}, Level.WARNING, "everything that the queue has"),
        (3, {"slots": 4}, Level.WARNING, "slots take 4 messages at once, and the broker sends 3"),
        (50, {"slots": 2, "batch": {"size": 50}}, Level.WARNING, "slots take 100 messages"),
        (1, {}, Level.INFO, "0 of hold_slots = 4 can be used"),
        (4, {}, Level.INFO, "3 of hold_slots = 4 can be used"),
    ],
)
def test_a_prefetch_count_that_does_not_fit_is_reported(count, framework, level, what):
    (finding,) = flow_findings(count, Framework.model_validate(framework))
    assert finding.level is level
    assert finding.problem.path == "qos.prefetch_count"
    assert what in finding.problem.message


@pytest.mark.parametrize("count", [None, 5, 100])
def test_a_prefetch_count_that_fits_is_not_reported(count):
    assert list(flow_findings(count, Framework())) == []


def test_the_classs_own_hold_slots_count():
    (finding,) = flow_findings(8, Framework(recovery=Recovery(hold_slots=9)))
    assert "7 of hold_slots = 9" in finding.problem.message


# Reports.

PROBLEM = Problem("a.b", "is wrong")


def exit_codes(*found: Finding) -> tuple[int, int]:
    made = report("file", found)
    return made.exit_code(strict=False), made.exit_code(strict=True)


def test_the_exit_code_is_that_of_run():
    assert exit_codes() == (0, 0)
    assert exit_codes(info("", "x")) == (0, 0)
    assert exit_codes(warning("", "x"), info("", "x")) == (0, 1)
    assert exit_codes(warning("", "x"), error(PROBLEM)) == (78, 78)
    assert exit_codes(error(PROBLEM, ExitCode.BAD_DECLARATION), warning("", "x")) == (10, 10)
    assert exit_codes(error(PROBLEM, ExitCode.CONNECTION), error(PROBLEM)) == (78, 78)


def test_the_worst_findings_come_first_and_each_once():
    found = (info("", "i"), warning("", "w"), error(PROBLEM), warning("", "w"))
    made = report("file", found)
    assert [f.level for f in made.findings] == [Level.ERROR, Level.WARNING, Level.INFO]
    assert made.count(Level.WARNING) == 1


def test_a_finding_keeps_its_own_place():
    placed = warning("a", "b").at("first").at("second")
    assert placed.problem.source == "first"


# Bindings.


def bound(
    *keys: str, queue: str = "one", exchange: str = "amq.topic", **more: Any
) -> list[Finding]:
    binding = {"exchange": exchange, "routing_keys": list(keys), "queue": queue}
    document = {"amqp_url": "amqp://", "queues": {"one": DURABLE}, "bindings": [binding], **more}
    return list(binding_findings(Settings.model_validate(document)))


@pytest.mark.parametrize("key", ["#", "*", "org.*.prod.#", "org.#.bodhi", "", "org.foo", "a..b"])
def test_a_key_of_whole_words_is_fine(key):
    assert bound(key) == []


@pytest.mark.parametrize(
    ("key", "odd", "better"),
    [
        ("org.foo*", "foo*", "org.foo.#"),
        ("org.foo#", "foo#", "org.foo.#"),
        ("org.*foo.bar", "*foo", "org.#.foo.bar"),
        ("org.f*o", "f*o", "org.#"),
        ("org.**", "**", "org.#"),
        ("#.bodhi*.#", "bodhi*", "#.bodhi.#.#"),
    ],
)
def test_a_key_that_can_match_no_topic_is_warned_of(key, odd, better):
    problem = only(bound("#", key))
    assert problem.path == "bindings[0].routing_keys[1]"
    assert f'"{odd}" mixes one with other text' in problem.message
    assert problem.cure == f'write "{better}", for one'


def test_a_space_in_a_key_is_warned_of():
    assert "has a space" in only(bound("org.foo ")).message


def test_a_queue_without_a_binding_is_reported():
    assert "no binding of this file" in only(bound("#", queue="other")).message
    assert only(bound("#", queue="other")).path == "queues.one"
    told = bound("#", queue="other", passive_declares=True)
    assert [finding.level for finding in told] == [Level.INFO]
    empty = bound()
    assert [finding.problem.path for finding in empty] == ["bindings[0].routing_keys", "queues.one"]


def test_a_direct_exchange_takes_wildcards_as_they_are():
    own: Any = {"mine": {"type": "direct"}}
    for told in (
        bound("org.#", exchange="amq.direct"),
        bound("a.*", exchange="mine", exchanges=own),
    ):
        assert "stand for themselves" in only(told).message
    assert bound("org.foo", exchange="amq.direct") == []
    assert bound("foo*", exchange="amq.fanout") == [], "it looks at no key"


def test_a_binding_to_the_default_exchange_is_an_error():
    (found,) = bound("one", exchange="")
    assert (found.level, found.exit_code) == (Level.ERROR, ExitCode.BAD_DECLARATION)
    assert found.problem.path == "bindings[0].exchange"
