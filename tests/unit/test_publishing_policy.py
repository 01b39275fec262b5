# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers for messages that were not sent."""

import pytest

from consumer_framework.publishing.policy import Backoff, OnFailure, Policy, Unroutable
from consumer_framework.settings import OutboxRule, OutboxSettings


def test_without_rules_every_topic_has_the_answers_of_the_outbox():
    policy = Policy.of(OutboxSettings())
    assert policy.on_failure_of("a.b") is OnFailure.SPOOL
    assert policy.unroutable_of("a.b") is Unroutable.ACCEPT


def test_the_first_rule_that_matches_and_has_the_key_decides():
    rules = (
        OutboxRule(topics="a.*", unroutable=Unroutable.DEAD),
        OutboxRule(topics="a.#", on_failure=OnFailure.SKIP, unroutable=Unroutable.RETRY),
    )
    policy = Policy(OnFailure.WAIT, rules=rules)
    assert policy.on_failure_of("a.b") is OnFailure.SKIP
    assert policy.unroutable_of("a.b") is Unroutable.DEAD
    assert policy.unroutable_of("a.b.c") is Unroutable.RETRY
    assert policy.on_failure_of("b.a") is OnFailure.WAIT
    assert policy.unroutable_of("b.a") is Unroutable.ACCEPT


def test_delays_double_up_to_the_longest():
    backoff = Backoff(1.0, 10.0)
    assert [backoff.after(attempt, 0.0) for attempt in range(6)] == [1, 1, 2, 4, 8, 10]
    assert backoff.after(10**6, 0.0) == 10


@pytest.mark.parametrize(("spread", "delay"), [(0.0, 4.0), (0.5, 3.0), (1.0, 2.0)])
def test_jitter_takes_up_to_half_of_a_delay_away(spread, delay):
    assert Backoff(1.0, 10.0).after(3, spread) == delay
