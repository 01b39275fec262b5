# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of a failed attempt, and what makes two of them equal."""

import json

import pytest

from consumer_framework.core.attempt import NO_HISTORY, attempt_of, fingerprint, said


class OddError(Exception):
    pass


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("cannot say")


def fails(error):
    raise error


def fails_elsewhere(error):
    raise error


def caught(function, *args):
    with pytest.raises(BaseException) as raised:  # noqa: PT011 -- whatever it is
        function(*args)
    return raised.value


def test_an_attempt_says_what_happened_and_when():
    attempt = attempt_of(caught(fails, OddError("first\nsecond")), 12.5)
    assert (attempt.at, attempt.message) == (12.5, "first")
    assert attempt.error.endswith("test_attempt.OddError")
    assert "in fails" in attempt.traceback
    assert attempt.traceback.endswith("OddError: first\nsecond\n")


def test_attempts_are_appended_to_a_history_that_stays_as_it_was():
    first, second = (attempt_of(ValueError(text), 1.0) for text in "ab")
    assert NO_HISTORY.failed(first).failed(second).attempts == (first, second)
    assert NO_HISTORY.attempts == ()


def test_a_fingerprint_is_the_class_and_the_innermost_own_function():
    assert fingerprint(caught(fails, OddError())).endswith("OddError in unit/test_attempt.py:fails")


def test_what_the_error_says_and_its_line_change_no_fingerprint():
    assert fingerprint(caught(fails, KeyError(1))) == fingerprint(caught(fails, KeyError(2)))


@pytest.mark.parametrize(
    "other", [(fails, IndexError()), (fails_elsewhere, KeyError()), (json.loads, "{")]
)
def test_another_class_or_function_is_another_fingerprint(other):
    assert fingerprint(caught(fails, KeyError())) != fingerprint(caught(*other))


def test_a_library_that_fails_is_named_by_the_function_that_called_it():
    def parses():
        json.loads("{")

    assert fingerprint(caught(parses)).endswith(":parses")


def test_an_error_that_was_never_raised_is_named_by_its_class():
    assert fingerprint(ValueError()) == "ValueError"


def test_an_error_that_cannot_be_printed_is_described_all_the_same():
    attempt = attempt_of(caught(fails, MuteError()), 0.0)
    assert attempt.message == ""
    assert "MuteError" in attempt.traceback
    assert said(MuteError()) == "MuteError"


def test_half_a_surrogate_pair_can_be_stored():
    attempt = attempt_of(caught(fails, ValueError(json.loads(r'"\ud800"'))), 0.0)
    assert attempt.message == "\\ud800"
    assert attempt.traceback.encode()
