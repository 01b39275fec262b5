# SPDX-License-Identifier: GPL-2.0-or-later
"""The base class, the handler that it gives to the host, and the public names."""

import functools
from datetime import UTC, datetime, timedelta, timezone

import pytest

import consumer_framework
from consumer_framework import (
    Consumer,
    ConsumerFrameworkError,
    Defer,
    DependencyFault,
    Drop,
    Halt,
    Quarantine,
    Recovery,
    Retry,
    Skip,
)
from consumer_framework.author.consumer import handler_of
from consumer_framework.author.handler import is_coroutine_callable
from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault, Problem, Signal


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
        Incomplete({})


@pytest.mark.parametrize("name", consumer_framework.__all__)
def test_every_public_name_is_documented(name):
    assert getattr(consumer_framework, name).__doc__


def test_the_signals_have_one_root_and_carry_what_they_were_given():
    assert Retry("busy").reason == str(Retry("busy")) == "busy"
    for kind in (Skip, Drop, Quarantine, DependencyFault):
        assert kind("old").reason == str(kind("old")) == "old"
        assert kind().reason == ""
    halt = Halt(3, "enough", requeue=True)
    assert (halt.exit_code, halt.reason, halt.requeue) == (3, "enough", True)
    assert (Halt().exit_code, Halt().reason, Halt().requeue) == (0, "", False)
    assert Defer(5, "later").reason == str(Defer(5, "later")) == "later"
    signals = (Skip, Retry, Defer, Drop, Quarantine, DependencyFault, Halt)
    assert all(issubclass(kind, Signal) for kind in signals)
    assert all(issubclass(kind, ConsumerFrameworkError) for kind in (Signal, Fault))


@pytest.mark.parametrize(
    ("after", "seconds"), [(None, None), (0, 0.0), (2.5, 2.5), ("90s", 90.0), ("1h 30m", 5400.0)]
)
def test_the_delay_of_a_retry_is_in_seconds_or_as_people_write_it(after, seconds):
    assert Retry(after=after).after == seconds


@pytest.mark.parametrize("after", ["soon", "", -1, True, "5"])
def test_a_retry_after_no_length_of_time_is_an_error_of_the_authors(after):
    with pytest.raises(ValueError, match="length of time"):
        Retry(after=after)


@pytest.mark.parametrize(
    "until",
    [
        1_000_000_000,
        datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC),
        datetime(2001, 9, 9, 3, 46, 40, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_a_deferral_takes_a_moment_in_any_zone_or_seconds_since_the_epoch(until):
    assert Defer(until).until == 1e9


def test_a_consumer_has_no_recovery_settings_unless_its_class_has():
    class Careful(Least):
        recovery = Recovery(immediate=0, delays=(5,))

    assert Least.recovery is None
    assert Careful({}).recovery == Recovery(immediate=0, delays=(5.0,))


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
def test_only_callables_that_make_coroutines_are_coroutine_callables(function, answer):
    assert is_coroutine_callable(function) is answer
