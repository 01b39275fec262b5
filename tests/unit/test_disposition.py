# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of how dispositions are settled."""

from typing import get_args

import pytest

from consumer_framework.core import disposition as to
from consumer_framework.core.disposition import SETTLE_RULES, Disposition, rule_for
from consumer_framework.core.stats import Snapshot

EXAMPLES = [
    to.Ack(),
    to.Requeue("no"),
    to.GiveBack(),
    to.Reject("no"),
    to.Hold(5.0),
    to.Defer(5.0),
    to.Quarantine("no"),
    to.Halt(13, requeue=False),
    to.Halt(13, requeue=True),
]


def test_every_disposition_has_a_rule():
    assert set(SETTLE_RULES) == set(get_args(Disposition)) == {type(one) for one in EXAMPLES}


@pytest.mark.parametrize("disposition", EXAMPLES, ids=repr)
def test_every_counter_is_one_of_the_snapshot(disposition):
    assert rule_for(disposition).words.counter in Snapshot.__dataclass_fields__


@pytest.mark.parametrize("disposition", EXAMPLES, ids=repr)
def test_a_message_is_acknowledged_only_if_it_is_done_or_written_first(disposition):
    rule = rule_for(disposition)
    if rule.answer in {"ack", "reject"}:
        assert rule.is_final or rule.write is not None


@pytest.mark.parametrize("disposition", EXAMPLES, ids=repr)
def test_a_message_that_goes_back_is_not_final_and_not_written(disposition):
    rule = rule_for(disposition)
    assert rule.goes_back == (rule.answer in {"requeue", "give_back"})
    if rule.goes_back:
        assert not rule.is_final
        assert rule.write is None


@pytest.mark.parametrize("disposition", EXAMPLES, ids=repr)
def test_no_row_is_forgotten_that_must_run_again(disposition):
    rule = rule_for(disposition)
    if not rule.is_final and not isinstance(disposition, to.Requeue):
        assert rule.write_row in {None, rule.write}
