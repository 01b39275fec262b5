# SPDX-License-Identifier: GPL-2.0-or-later
"""The stored and logged parts of an exception are bounded, and forge no line of the log."""

import logging
import traceback

import jsonschema
import pytest
from fedora_messaging.exceptions import ValidationError

from consumer_framework.adapters.log import RedactedRecord
from consumer_framework.core.attempt import (
    TRACEBACK_LIMIT,
    attempt_of,
    bounded,
    one_line,
    traceback_text,
)
from consumer_framework.core.text import clipped, printable, printable_lines

LARGE = "x" * 10_000_000
FORGED = "first\nERROR forged \x1b[2J\x9b\u2028\x85\r\u202eend"


def caught(function):
    with pytest.raises(BaseException) as raised:  # noqa: PT011 -- whatever it is
        function()
    return raised.value


def raising(error, cause=None):
    def raises():
        raise error from cause

    return caught(raises)


def schema_error():
    body = {"a": list(range(1_000_000))}
    return caught(lambda: jsonschema.validate(body, {"properties": {"a": {"type": "string"}}}))


def with_note():
    error = ValueError("plain")
    error.add_note(LARGE)
    return error


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError(LARGE),
        lambda: ValueError(*[LARGE] * 10),
        lambda: KeyError(LARGE),
        with_note,
        schema_error,
        lambda: ValidationError(schema_error()),
        lambda: raising(ValueError("outer"), ValueError(LARGE)),
        lambda: raising(RuntimeError("outer"), ValidationError(schema_error())),
        lambda: ExceptionGroup("many", [ValueError(LARGE), ValueError("small")]),
        lambda: SyntaxError(LARGE),
    ],
)
def test_every_stored_part_of_an_exception_is_bounded(make):
    error = raising(make())
    attempt = attempt_of(error, 1.0)
    assert len(attempt.message) < 1000
    assert len(attempt.traceback) <= TRACEBACK_LIMIT + 100
    assert len(one_line(error)) < 1000
    assert "in raises" in attempt.traceback
    assert type(error).__name__ in attempt.traceback


def test_a_large_value_that_a_schema_refuses_is_never_formatted(monkeypatch):
    error = schema_error()
    monkeypatch.setattr(type(error), "__str__", lambda _: pytest.fail("it is formatted"))
    assert "is not of type" in attempt_of(ValidationError(error), 1.0).message


def test_a_small_value_that_a_schema_refuses_is_shown_with_its_place():
    error = caught(lambda: jsonschema.validate({"a": 1}, {"properties": {"a": {"type": "string"}}}))
    assert "On instance['a']:" in traceback_text(error)


def test_a_short_exception_is_shown_whole():
    error = raising(ValueError("outer"), ValueError("inner"))
    assert bounded(error) is error
    assert traceback_text(error) == "".join(traceback.format_exception(error))


def test_a_chain_of_exceptions_with_a_cycle_ends():
    one, other = ValueError(LARGE), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert len(traceback_text(other)) <= TRACEBACK_LIMIT + 100


def test_the_text_of_an_exception_forges_no_line_and_controls_no_terminal():
    error = raising(ValueError(FORGED))
    text = traceback_text(error) + one_line(error) + attempt_of(error, 1.0).message
    assert not any(line.startswith("ERROR") for line in text.splitlines())
    assert not set("\x1b\x9b\u2028\x85\r\u202e") & set(text)


def test_a_log_record_is_bounded_and_shows_no_control_character():
    error = raising(ValueError(FORGED + LARGE))
    exc_info = (type(error), error, error.__traceback__)
    name = "consumer_framework.runtime.observe.log"
    record = RedactedRecord(name, 40, "f", 1, "about %s", (FORGED + LARGE,), exc_info)
    text = logging.Formatter().format(record)
    assert len(text) < 2 * TRACEBACK_LIMIT + 1000
    assert not set("\x1b\x9b\u2028\x85\r\u202e") & set(text)


def test_log_records_of_authors_are_unchanged():
    record = RedactedRecord("app", 20, "f", 1, "\x1b[31m%s", ("red",), None)
    assert record.getMessage() == "\x1b[31mred"


def test_text_is_clipped_in_its_middle():
    assert clipped("abc", 3) == "abc"
    assert clipped("a" * 50 + "b" * 50, 10) == "aaaaa [... 90 characters left out ...] bbbbb"


def test_printable_text_is_unchanged():
    assert printable("Žluťoučký 😀") == "Žluťoučký 😀"
    assert printable("a\nb\tc\udcff") == "a\\nb\\tc\\udcff"
    assert printable_lines("a\nb\tc\x00") == "a\nb\tc\\x00"


def with_attributes(**attributes):
    error = ValueError("plain")
    vars(error).update(attributes)
    return error


def carrying_itself():
    error = ValueError()
    error.args = (error,)
    return error


class Unspeakable:
    def __str__(self):
        raise RuntimeError("no text")


class OddPropertyError(Exception):
    @property
    def instance(self):
        raise RuntimeError("not now")


class ExitingError(Exception):
    def __str__(self):
        raise SystemExit(1)


class ProxyError(Exception):
    def __getattr__(self, name):
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_attributes(__notes__=None),
        lambda: with_attributes(__notes__=5),
        lambda: with_attributes(__notes__=[Unspeakable()]),
        lambda: with_attributes(exceptions=None),
        lambda: with_attributes(exceptions=["one", "two"]),
        lambda: with_attributes(exceptions={"one": 1}),
        carrying_itself,
        lambda: OddPropertyError("plain"),
        lambda: ExitingError("plain"),
        lambda: ProxyError("plain"),
    ],
)
def test_an_exception_with_odd_attributes_is_summarized_like_any_other(make):
    error = raising(make())
    attempt = attempt_of(error, 0.0)
    assert attempt.error.endswith(type(error).__name__)
    assert "in raises" in attempt.traceback
    record = RedactedRecord("a", 40, "f", 1, "failed", (), (type(error), error, None))
    assert type(error).__name__ in logging.Formatter().format(record)


def long_chain():
    error = ValueError(FORGED)
    for number in range(10_000):
        outer = ValueError(str(number))
        outer.__cause__ = error
        error = outer
    return error


def circle():
    error, other = ValueError("plain"), ValueError(FORGED)
    error.__cause__, other.__cause__ = other, error
    return error


def source_of_strangers():
    return caught(lambda: compile("a b\x1b[2J\x9b", "f", "eval"))


@pytest.mark.parametrize("make", [long_chain, circle, source_of_strangers])
def test_no_exception_of_a_chain_forges_a_line(make):
    text = traceback_text(make())
    assert "\nERROR forged" not in text
    assert not set("\x1b\x9b\x85\u2028\u202e") & set(text)


def test_a_group_with_a_very_long_member_shows_every_member():
    text = traceback_text(ExceptionGroup("many", [ValueError(LARGE), KeyError("small")]))
    assert "ValueError: xxx" in text
    assert "KeyError: 'small'" in text


def test_empty_lines_at_the_start_of_an_exceptions_text_are_left_out():
    assert one_line(ValueError("\n  what is wrong\nmore")) == "ValueError: what is wrong"
