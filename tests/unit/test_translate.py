# SPDX-License-Identifier: GPL-2.0-or-later
"""Authors translate other people's exceptions into signals."""

import asyncio
import functools
import inspect
from contextlib import nullcontext

import pytest
from fedora_messaging import exceptions as upstream
from fedora_messaging.message import Message

from consumer_framework import (
    Defer,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Retry,
    Skip,
    on,
    translate,
)
from consumer_framework.author.translate import hosting, is_hosted
from consumer_framework.testing import Harness

WORDS = {
    "skip": Skip,
    "retry": Retry,
    "defer": Defer,
    "drop": Drop,
    "quarantine": Quarantine,
    "dependency": DependencyFault,
    "halt": Halt,
}
UPSTREAM = {
    "retry": upstream.Nack,
    "defer": upstream.Nack,
    "drop": upstream.Drop,
    "quarantine": upstream.Nack,
    "dependency": upstream.Nack,
    "halt": upstream.HaltConsumer,
}


@pytest.fixture(autouse=True)
def host(request):
    """Most tests here are about a handler that this package's host runs."""
    with nullcontext() if "elsewhere" in request.fixturenames else hosting():
        yield


@pytest.fixture
def elsewhere():
    """As under `fedora-messaging consume`, in a program that imports the testing package."""
    assert not is_hosted()


def test_only_a_running_host_makes_a_process_a_hosted_one(elsewhere):
    seen = []
    with Harness(lambda _message: seen.append(is_hosted())) as harness:
        harness.deliver(Message(topic="a.topic"))
    assert seen == [True]
    assert not is_hosted()


def raising(error, *rules):
    def handler(_message):
        raise error

    for kinds, then in reversed(rules):
        handler = on(*kinds, then=then)(handler)
    return handler


@pytest.mark.parametrize("word", WORDS)
def test_each_word_raises_its_signal(word):
    with pytest.raises(WORDS[word]) as raised:
        raising(KeyError("x"), ([KeyError], word))(None)
    assert str(raised.value) == "KeyError: 'x'"
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(WORDS[word], match="told"), translate({LookupError: word}, reason="told"):
        raise KeyError


@pytest.mark.parametrize("word", UPSTREAM)
def test_outside_an_instance_each_word_raises_the_nearest_exception_of_upstream(word, elsewhere):
    with pytest.raises(UPSTREAM[word]) as raised:
        raising(KeyError("x"), ([KeyError], word))(None)
    assert isinstance(raised.value.__cause__, KeyError)


def test_elsewhere_a_halt_keeps_the_message_and_has_the_exit_code(elsewhere):
    with pytest.raises(upstream.HaltConsumer) as raised:
        raising(KeyError("x"), ([KeyError], "halt"))(None)
    assert (raised.value.exit_code, raised.value.requeue) == (13, True)


def test_elsewhere_a_skip_is_a_success(elsewhere):
    assert raising(KeyError("x"), ([KeyError], "skip"))(None) is None
    with translate({KeyError: "skip"}):
        raise KeyError


@pytest.mark.parametrize(
    ("signal", "theirs"),
    [(Retry("busy"), upstream.Nack), (Drop("old"), upstream.Drop), (Quarantine(), upstream.Nack)],
)
def test_elsewhere_signals_become_upstreams(signal, theirs, elsewhere):
    with pytest.raises(theirs):
        raising(signal, ([KeyError], "drop"))(None)
    with pytest.raises(theirs), translate():
        raise signal


@pytest.mark.parametrize("signal", [Retry(after=5), upstream.Nack(), upstream.HaltConsumer(4)])
def test_signals_pass_through_under_any_rules(signal):
    with pytest.raises(type(signal)) as raised:
        raising(signal, ([Exception], "drop"))(None)
    assert raised.value is signal
    with pytest.raises(type(signal)) as raised, translate({Exception: "drop"}):
        raise signal
    assert raised.value is signal


def test_the_first_rule_that_matches_decides():
    rules = (([ConnectionError], "dependency"), ([OSError, EOFError], "retry"))
    with pytest.raises(DependencyFault):
        raising(ConnectionResetError(), *rules)(None)
    for error in (OSError(), EOFError()):
        with pytest.raises(Retry):
            raising(error, *rules)(None)
    with pytest.raises(Drop), translate({KeyError: "drop", (LookupError, OSError): "retry"}):
        raise KeyError


def test_an_exception_that_no_rule_names_passes_through():
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised:
        raising(error, ([KeyError], "drop"))(None)
    assert raised.value is error


def test_decorated_coroutine_functions_and_methods_keep_their_kind():
    class Consumer:
        @on(KeyError, then="drop")
        async def handle(self, message):
            """Handle."""
            return message["x"]

        @on(KeyError, then="drop")
        def __call__(self, message):
            return message["x"]

    assert inspect.iscoroutinefunction(Consumer().handle)
    assert Consumer.handle.__doc__ == "Handle."
    assert asyncio.run(Consumer().handle({"x": 1})) == Consumer()({"x": 1}) == 1
    with pytest.raises(Drop):
        asyncio.run(Consumer().handle({}))
    with pytest.raises(Drop):
        Consumer()({})


def test_a_decorator_in_between_is_not_passed_over():
    calls = []

    def counted(function):
        @functools.wraps(function)
        def run(message):
            calls.append(message)
            return function(message)

        return run

    @on(KeyError, then="drop")
    @counted
    @on(OSError, then="retry")
    def handle(_message):
        raise KeyError

    with pytest.raises(Drop):
        handle(1)
    assert calls == [1]


def test_an_unknown_word_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="'ignore' is none of skip, retry"):
        on(KeyError, then="ignore")  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match="none of"),
        translate({KeyError: "ignore"}),  # type: ignore[dict-item]
    ):
        pass
