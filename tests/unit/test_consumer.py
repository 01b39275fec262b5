# SPDX-License-Identifier: GPL-2.0-or-later
"""The base class, what it hands to the host, and the public names."""

import functools

import pytest

import consumer_framework
from consumer_framework import Consumer, ConsumerFrameworkError, Drop, Halt, Retry
from consumer_framework.core.consumer import handler_of
from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault, Problem
from consumer_framework.core.handler import is_coroutine_callable


class Counting(Consumer):
    def __init__(self, config):
        super().__init__(config)
        self.seen = []

    def setup(self):
        self.seen.append("setup")

    def handle(self, message):
        self.seen.append(message)

    def teardown(self):
        self.seen.append("teardown")


class Least(Consumer):
    def handle(self, message):
        return message


def test_a_consumer_becomes_a_handler_that_runs_its_own_methods():
    consumer = Counting({})
    handler = handler_of(consumer, "module:Counting")
    assert handler.name == "module:Counting"
    assert handler.setup is not None
    assert handler.teardown is not None
    handler.setup()
    handler.call("a message")
    handler.teardown()
    assert consumer.seen == ["setup", "a message", "teardown"]


def test_setup_and_teardown_are_optional():
    handler = handler_of(Least({}), "module:Least")
    assert handler.setup is not None
    assert handler.teardown is not None
    assert handler.setup() is None
    assert handler.teardown() is None


def test_a_consumer_has_the_configuration_it_was_made_with():
    assert Counting({"key": 1}).config == {"key": 1}
    assert Counting.Config is None


def test_a_consumer_without_handle_cannot_be_made():
    class Incomplete(Consumer):
        pass

    with pytest.raises(TypeError, match="handle"):
        Incomplete({})  # type: ignore[abstract]


@pytest.mark.parametrize("name", consumer_framework.__all__)
def test_every_public_name_is_documented(name):
    assert getattr(consumer_framework, name).__doc__


def test_the_signals_have_one_root_and_carry_what_they_were_given():
    assert Retry("busy").reason == str(Retry("busy")) == "busy"
    assert Drop("old").reason == "old"
    halt = Halt(3, "enough", requeue=True)
    assert (halt.exit_code, halt.reason, halt.requeue) == (3, "enough", True)
    assert (Halt().exit_code, Halt().reason, Halt().requeue) == (0, "", False)
    assert all(issubclass(kind, ConsumerFrameworkError) for kind in (Retry, Drop, Halt, Fault))


def test_a_configuration_error_names_source_key_problem_and_cure_on_one_line_each():
    error = ConfigurationError(
        Problem("qos.prefetch", "unknown key", 'did you mean "prefetch_count"?'),
        Problem("", "there is no such file"),
        source="/etc/x.toml",
    )
    assert str(error).splitlines() == [
        '/etc/x.toml: qos.prefetch: unknown key; did you mean "prefetch_count"?',
        "/etc/x.toml: there is no such file",
    ]
    assert error.exit_code == ExitCode.CONFIGURATION == 78


async def coroutine_function(message):
    return message


class AsyncObject:
    async def __call__(self, message):
        return message


class AsyncMethod:
    async def handle(self, message):
        return message


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (coroutine_function, True),
        (AsyncObject(), True),
        (AsyncMethod().handle, True),
        (functools.partial(coroutine_function), True),
        (print, False),
        (lambda message: coroutine_function(message), False),  # noqa: PLW0108 -- is the case
    ],
)
def test_only_what_makes_coroutines_is_a_coroutine_callable(function, answer):
    assert is_coroutine_callable(function) is answer
