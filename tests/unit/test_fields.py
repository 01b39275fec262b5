# SPDX-License-Identifier: GPL-2.0-or-later
"""The fields of a message in the journal."""

from typing import get_args

import pytest

from consumer_framework.core.attempt import History, attempt_of
from consumer_framework.core.disposition import (
    SETTLE_RULES,
    Ack,
    Disposition,
    GiveBack,
    Quarantine,
)
from consumer_framework.core.log_fields import (
    fields,
    fields_of,
    fields_of_all,
    run_number,
)
from consumer_framework.testing import make_delivery

DELIVERY = make_delivery(message_id="m-1", queue="q", routing_key="org.example.t")
FAILED = attempt_of(ValueError("no"), 0.0)


def test_a_delivery_has_its_message_topic_queue_and_the_number_of_its_run():
    assert fields_of(DELIVERY) == {
        "FM_MESSAGE_ID": "m-1",
        "FM_TOPIC": "org.example.t",
        "FM_QUEUE": "q",
        "FM_ATTEMPT": "1",
    }


def test_failed_runs_and_those_in_which_the_process_died_count():
    delivery = DELIVERY._replace(history=History((FAILED, FAILED), crashes=1))
    assert run_number(delivery) == 4
    assert fields_of(delivery)["FM_ATTEMPT"] == "4"


def test_the_disposition_and_its_cause_have_fields_once_they_are_known():
    found = fields_of(DELIVERY, Quarantine("x"), "ValueError in a.py:f")
    assert found["FM_DISPOSITION"] == "quarantine"
    assert found["FM_FINGERPRINT"] == "ValueError in a.py:f"
    assert fields_of(DELIVERY, GiveBack())["FM_DISPOSITION"] == "give-back"


def test_unknown_values_have_no_field():
    assert fields("", "t", "q", 0) == {"FM_TOPIC": "t", "FM_QUEUE": "q"}
    assert "FM_ATTEMPT" not in fields_of(DELIVERY, Ack(), attempt=0)


def test_a_batch_has_the_ids_of_all_its_messages_and_equal_values_once():
    other = make_delivery(message_id="m-2", queue="q", routing_key="org.example.t")
    assert fields_of_all([DELIVERY, other]) == {
        "FM_MESSAGE_ID": ["m-1", "m-2"],
        "FM_TOPIC": ["org.example.t"],
        "FM_QUEUE": ["q"],
        "FM_ATTEMPT": ["1"],
    }


def test_a_batch_of_one_and_of_none():
    assert fields_of_all([DELIVERY]) == fields_of(DELIVERY)
    assert fields_of_all([]) == {}


@pytest.mark.parametrize("kind", get_args(Disposition))
def test_every_disposition_has_a_name(kind):
    assert SETTLE_RULES[kind].words.field
