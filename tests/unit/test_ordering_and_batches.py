# SPDX-License-Identifier: GPL-2.0-or-later
"""A consumer and its settings must agree about ordering keys and batches."""

import asyncio
from typing import Any

import pytest
from fedora_messaging.message import Message

from consumer_framework import Consumer
from consumer_framework.author.consumer import BatchConsumer, handler_of
from consumer_framework.author.handler import Handler
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.runtime.assembly.plan import (
    check_batch,
    source_for,
    takes_batches,
    with_batch,
)
from consumer_framework.settings import Batch, Framework
from consumer_framework.testing import make_delivery

MESSAGE = Message(topic="org.example", body={"package": "kernel", "n": 7})
KEYED = Framework.model_validate({"ordering": "key"})
BATCHED = Framework.model_validate({"batch": {}})


class Plain(Consumer):
    def handle(self, message):
        return message


class ByMethod(Plain):
    def ordering_key(self, message):
        return message.body["package"]


class ByCoroutine(Plain):
    async def ordering_key(self, message):
        return "never"


class ByText(Plain):
    ordering_key = "topic"


class Batches(BatchConsumer):
    def handle_batch(self, messages):
        return ["batch", *messages]


class AsyncBatches(BatchConsumer):
    async def handle_batch(self, messages):
        return ["async", *messages]


class Inherited(Batches):
    pass


def function(message):
    pass


def key_of(framework: Framework, value: Any, handler: Handler) -> str:
    source = source_for(framework, value)
    assert source is not None
    return source(handler)(make_delivery(), lambda: MESSAGE)


def problem_of(call: Any, *args: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        call(*args)
    (problem,) = caught.value.problems
    return str(problem)


def test_without_an_order_by_key_there_is_no_source():
    assert source_for(Framework(), ByMethod) is None
    assert source_for(Framework.model_validate({"ordering": "strict"}), function) is None


def test_the_consumers_own_method_returns_the_key():
    assert key_of(KEYED, ByMethod, handler_of(ByMethod({}), "name")) == "kernel"


@pytest.mark.parametrize("value", [ByMethod, Plain, function])
def test_the_ordering_key_of_the_file_overrides_the_method(value):
    framework = Framework.model_validate({"ordering": "key", "ordering_key": "body:n"})
    assert key_of(framework, value, handler_of(ByMethod({}), "name")) == "7"


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        (Plain, "add it, or a method ordering_key(self, message) to the consumer"),
        (function, "add it, or let a consumer_framework.Consumer have a method ordering_key(self"),
        (object(), "add it, or let a consumer_framework.Consumer have a method"),
    ],
)
def test_an_order_by_key_without_a_key_is_refused(value, cure):
    problem = problem_of(source_for, KEYED, value)
    start = 'consumer_config.framework.ordering_key: is required with ordering = "key"; it is "top'
    assert problem.startswith(start)
    assert cure in problem


@pytest.mark.parametrize(
    ("value", "kind"), [(ByCoroutine, "is a coroutine method now"), (ByText, "is a str now")]
)
def test_an_ordering_key_attribute_that_is_no_method_is_refused(value, kind):
    problem = problem_of(source_for, KEYED, value)
    assert kind in problem
    assert "write def ordering_key(self, message)" in problem


# Batches.


@pytest.mark.parametrize("value", [Batches, AsyncBatches, Inherited])
def test_a_batch_consumer_takes_batches(value):
    assert takes_batches(value)
    check_batch(BATCHED, value)
    assert handler_of(value({}), "name").call_batch is not None


@pytest.mark.parametrize(("value", "name"), [(Plain, "Plain"), (function, "function")])
def test_a_batch_table_for_a_consumer_without_batches_is_refused(value, name):
    assert problem_of(check_batch, BATCHED, value) == (
        f"consumer_config.framework.batch: {name} takes single messages; "
        "make it a subclass of consumer_framework.BatchConsumer, or remove this table"
    )
    check_batch(Framework(), value)


def test_an_object_without_a_name_is_named_by_its_class():
    assert "object takes single messages" in problem_of(check_batch, BATCHED, object())


def test_a_batch_consumer_has_batches_without_a_batch_table():
    assert with_batch(Framework(), Batches).batch == Batch()
    assert with_batch(BATCHED, Batches) is BATCHED
    strict = Framework.model_validate({"ordering": "strict"})
    assert with_batch(strict, Batches).batch == Batch(size=1)
    assert with_batch(Framework(), Plain).batch is None
    assert with_batch(Framework(), function).batch is None


def test_a_batch_consumer_handles_a_message_as_a_batch_of_one():
    handler = handler_of(Batches({}), "name")
    assert handler.call(MESSAGE) == ["batch", MESSAGE]
    assert asyncio.run(handler_of(AsyncBatches({}), "name").call(MESSAGE)) == ["async", MESSAGE]


def test_a_consumer_without_them_has_neither_batches_nor_keys():
    assert handler_of(Plain({}), "name").call_batch is None
    assert handler_of(Plain({}), "name").ordering_key is None
