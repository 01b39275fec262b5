# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a delivery, from its outcome alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core import disposition as to
from consumer_framework.core import errors
from consumer_framework.core.delivery import Failed, Succeeded, Undecodable
from consumer_framework.core.recovery import UPSTREAM, Policy, Rule, decide


class LaterRetry(errors.Retry):
    """An author's own signal."""


@pytest.mark.parametrize(
    ("outcome", "disposition"),
    [
        (Succeeded(), to.Ack()),
        (Undecodable("no JSON"), to.Reject("no JSON")),
        (Failed(errors.Retry("busy")), to.Requeue("busy")),
        (Failed(LaterRetry("busy")), to.Requeue("busy")),
        (Failed(errors.Drop("old")), to.Reject("old")),
        (Failed(errors.Halt()), to.Halt(0, requeue=False)),
        (Failed(errors.Halt(5, "enough", requeue=True)), to.Halt(5, requeue=True, reason="enough")),
    ],
)
def test_each_outcome_and_each_signal_has_its_disposition(outcome, disposition):
    assert decide(outcome, UPSTREAM) == disposition


@pytest.mark.parametrize(
    "error", [ValueError("boom"), SystemExit("boom"), KeyboardInterrupt("boom")]
)
def test_any_other_error_requeues_the_message_and_halts_with_upstreams_exit_code(error):
    disposition = decide(Failed(error), UPSTREAM)
    assert disposition == to.Halt(13, True, f"the handler raised {type(error).__name__}: boom")


@pytest.mark.parametrize("exit_code", [-1, 256, 1000])
@pytest.mark.parametrize("requeue", [False, True])
def test_an_exit_code_that_the_kernel_cannot_keep_is_a_failure_and_not_success(exit_code, requeue):
    signal = errors.Halt(exit_code, "enough", requeue=requeue)
    disposition = decide(Failed(signal), UPSTREAM)
    assert isinstance(disposition, to.Halt)
    assert (disposition.exit_code, disposition.requeue) == (13, requeue)
    assert str(exit_code) in disposition.reason


def test_the_first_rule_that_matches_decides():
    policy = Policy(
        rules=(
            Rule((KeyError, IndexError), lambda _: to.Reject("first")),
            Rule((LookupError,), lambda _: to.Requeue("second")),
        ),
        otherwise=lambda error: to.Halt(1, requeue=True, reason=str(error)),
        undecodable=to.Requeue,
    )
    assert decide(Failed(IndexError()), policy) == to.Reject("first")
    assert decide(Failed(LookupError()), policy) == to.Requeue("second")
    assert decide(Failed(ValueError("third")), policy) == to.Halt(1, True, "third")
    assert decide(Undecodable("why"), policy) == to.Requeue("why")


ERRORS = [ValueError, errors.Retry, errors.Drop, errors.Halt, SystemExit, RecursionError]


@given(
    st.one_of(
        st.builds(Succeeded),
        st.builds(Undecodable, st.text()),
        st.builds(lambda kind: Failed(kind()), st.sampled_from(ERRORS)),
    )
)
def test_every_outcome_has_a_disposition_and_only_success_and_halts_acknowledge(outcome):
    disposition = decide(outcome, UPSTREAM)
    assert isinstance(disposition, to.Ack | to.Requeue | to.Reject | to.Halt)
    assert isinstance(disposition, to.Ack) == isinstance(outcome, Succeeded)
