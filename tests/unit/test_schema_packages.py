# SPDX-License-Identifier: GPL-2.0-or-later
"""Installed message schemas, and messages that Fedora's services sent: verdicts are upstream's.

Whatever is installed in the group ``fedora.messages`` is covered; the session ``schemas`` of nox
installs every package of them that is known.
"""

import copy
import json
import logging
import os
import random
import warnings
from pathlib import Path

import pika
import pytest
from fedora_messaging import message as upstream
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema.validators import validator_for

from consumer_framework.adapters import codec
from consumer_framework.schemas.jsonschema.compiler import compiled
from consumer_framework.testing import make_delivery

from .json_schemas import values_for

REAL_MESSAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "fedora-messages.jsonl"
# Upstream takes milliseconds for each.
EXAMPLES = 2000 if os.environ.get("SCHEMAS") == "full" else 60

codec.load_schemas()
NAMES = sorted(upstream._schema_name_to_class)

fitting = st.fixed_dictionaries(
    {"fedora_messaging_severity": st.sampled_from([10, 20, 30, 40])},
    optional={
        "fedora_messaging_schema_package": st.just("a_package"),
        "sent-at": st.just("2026-01-01T00:00:00+00:00"),
        "fedora_messaging_rpm_kernel": st.booleans(),
        "priority": st.integers(0, 5),
    },
)
odd = st.fixed_dictionaries(
    {},
    optional={
        "fedora_messaging_severity": st.sampled_from([20.0, 25, True, "20", None, [20], 0]),
        "fedora_messaging_schema_package": st.just(5),
        "sent-at": st.sampled_from(["", 5, None]),
    },
)
headers = st.integers(0, 4).flatmap(lambda number: fitting if number else odd)


def delivery_of(topic, body, **properties):
    given = {"message_id": "1", "content_encoding": "utf-8", **properties}
    return make_delivery(body=body)._replace(
        routing_key=topic, properties=pika.BasicProperties(**given)
    )


def result_of(decode, delivery):
    """Return the result in a form that can be compared."""
    delivery = delivery._replace(properties=copy.deepcopy(delivery.properties))
    try:
        message = decode(delivery)
    except Exception as error:  # noqa: BLE001 -- to be compared
        cause = error.__cause__
        return type(error), str(error), type(cause), getattr(cause, "absolute_path", None)
    # Not a number is not equal to itself, but looks like itself.
    return type(message), repr(vars(message))


def upstreams(delivery):
    message = upstream.get_message(delivery.routing_key, delivery.properties, delivery.body)
    message.queue = delivery.queue
    return message


def check(delivery):
    assert result_of(codec.decode, delivery) == result_of(upstreams, delivery)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("fedora_messaging.message").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        # Schema classes that are deprecated say so.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    logging.getLogger("fedora_messaging.message").setLevel(logging.NOTSET)


def body_schema_of(kind):
    schema = kind.body_schema
    return schema if isinstance(schema, dict) else {}


def broken(body, chance):
    """Change one thing in a body, at any depth."""
    path, found = [], body
    while isinstance(found, dict | list) and found:
        keys = list(found) if isinstance(found, dict) else range(len(found))
        path.append((found, chance.choice(list(keys))))
        found = found[path[-1][1]]
    if path:
        parent, key = path[-1]
        if chance.random() < 0.3:
            del parent[key]
        else:
            parent[key] = chance.choice([None, True, 0, 1.0, -1, "", "text", [], [None], {}])
    return body


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.sampled_from(NAMES), headers, st.data())
def test_every_installed_schema_has_upstreams_verdict(name, headers, data):
    schema = body_schema_of(upstream.get_class(name))
    body = data.draw(values_for(schema, schema, depth=12, care=300))
    if data.draw(st.booleans()):
        body = broken(body, data.draw(st.randoms(use_true_random=False)))
    if not body and not isinstance(body, dict):
        return  # Undecodable here, {} there.
    headers = {"fedora_messaging_schema": name, **headers}
    check(delivery_of(name, json.dumps(body).encode(), headers=headers))


@pytest.mark.parametrize("name", NAMES)
def test_every_installed_schema_is_compiled(name):
    kind = upstream.get_class(name)
    if not isinstance(kind.body_schema, dict):
        pytest.skip("it has its schema by the message")
    compiled(kind.body_schema, validator_for(kind.body_schema))


@pytest.mark.skipif(not REAL_MESSAGES.exists(), reason="the real messages are not beside the repo")
def test_messages_of_fedoras_services_have_upstreams_verdict():
    chance = random.Random(1)  # noqa: S311 -- the same each time
    for line in REAL_MESSAGES.read_text().split("\n"):
        if not line:
            continue
        sent = json.loads(line)
        for body in (sent["body"], broken(sent["body"], chance)):
            encoded = json.dumps(body).encode()
            check(delivery_of(sent["topic"], encoded, headers=sent["headers"]))
