# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a consumer and its settings agree about ordering keys and batches."""

import asyncio
from typing import Any

import pytest
from fedora_messaging.message import Message

from consumer_framework import Consumer
from consumer_framework.core.consumer import handler_of, handles_singly
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.handler import Handler, is_coroutine_callable
from consumer_framework.core.settings import Framework
from consumer_framework.host.batching import check_batch, idle_batch, takes_batches
from consumer_framework.host.ordering import source_for
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


class Batches(Consumer):
    def handle_batch(self, messages):
        return ["batch", *messages]


class AsyncBatches(Consumer):
    async def handle_batch(self, messages):
        return ["async", *messages]


class Both(Batches):
    def handle(self, message):
        return message


class Inherited(Batches):
    pass


def function(message):
    pass


def made(value: Any) -> Consumer:
    """A type checker does not know that ``handle_batch`` stands for ``handle``."""
    consumer: Consumer = value({})
    return consumer


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


def test_the_consumers_own_method_says_the_key():
    assert key_of(KEYED, ByMethod, handler_of(ByMethod({}), "name")) == "kernel"


@pytest.mark.parametrize("value", [ByMethod, Plain, function])
def test_the_files_word_stands_before_the_method(value):
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
def test_what_cannot_be_called_for_a_key_is_refused(value, kind):
    problem = problem_of(source_for, KEYED, value)
    assert kind in problem
    assert "write def ordering_key(self, message)" in problem


# Batches.


@pytest.mark.parametrize("value", [Batches, AsyncBatches, Both, Inherited])
def test_a_consumer_with_handle_batch_takes_batches(value):
    assert takes_batches(value)
    check_batch(BATCHED, value)
    assert handler_of(value({}), "name").call_batch is not None


@pytest.mark.parametrize(("value", "name"), [(Plain, "Plain"), (function, "function")])
def test_a_batch_table_for_what_takes_no_batches_is_refused(value, name):
    assert problem_of(check_batch, BATCHED, value) == (
        f"consumer_config.framework.batch: {name} has no method handle_batch(self, messages); "
        "add it to a subclass of consumer_framework.Consumer, or remove this table"
    )
    check_batch(Framework(), value)


def test_an_object_without_a_name_is_named_by_its_class():
    assert "object has no method" in problem_of(check_batch, BATCHED, object())


@pytest.mark.parametrize(
    ("value", "idle"),
    [(Batches, True), (AsyncBatches, True), (Inherited, True), (Both, False), (Plain, False)],
)
def test_batches_of_one_are_pointed_out(value, idle):
    problem = idle_batch(Framework(), value)
    assert (problem is not None) is idle
    assert problem is None or "gets one message at a time" in problem.message
    assert idle_batch(BATCHED, value) is None
    assert idle_batch(Framework(), function) is None


@pytest.mark.parametrize("value", [Batches, Inherited])
def test_a_consumer_of_batches_alone_handles_a_message_as_a_batch_of_one(value):
    assert not handles_singly(value)
    handler = handler_of(value({}), "name")
    assert handler.call(MESSAGE) == ["batch", MESSAGE]
    assert not is_coroutine_callable(handler.call)


def test_a_consumer_of_coroutine_batches_handles_a_message_in_a_coroutine():
    handler = handler_of(made(AsyncBatches), "name")
    assert is_coroutine_callable(handler.call)
    assert asyncio.run(handler.call(MESSAGE)) == ["async", MESSAGE]


def test_a_consumer_that_handles_both_is_asked_for_a_single_message():
    assert handles_singly(Both)
    assert handler_of(Both({}), "name").call(MESSAGE) is MESSAGE
    assert handler_of(Plain({}), "name").call_batch is None
    assert handler_of(Plain({}), "name").ordering_key is None
