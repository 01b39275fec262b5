# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a failed attempt, and the fingerprint that equal failures share."""

import json
import sys
import sysconfig
import types
from pathlib import Path

import pytest

from consumer_framework.core.attempt import (
    NO_HISTORY,
    attempt_of,
    fingerprint,
    one_line,
    set_author_packages,
)
from consumer_framework.kit.command import RunCommand
from consumer_framework.runtime.assembly.loader import Target, packages_of


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


def test_an_attempt_has_the_error_and_its_time():
    attempt = attempt_of(caught(fails, OddError("first\nsecond")), 12.5)
    assert (attempt.at, attempt.message) == (12.5, "first")
    assert attempt.error.endswith("test_attempt.OddError")
    assert "in fails" in attempt.traceback
    assert attempt.traceback.endswith("OddError: first\n    second\n")


def test_attempts_are_appended_to_a_history_that_stays_as_it_was():
    first, second = (attempt_of(ValueError(text), 1.0) for text in "ab")
    assert NO_HISTORY.failed(first).failed(second).attempts == (first, second)
    assert NO_HISTORY.attempts == ()


def test_a_fingerprint_is_the_class_and_the_innermost_own_function():
    assert fingerprint(caught(fails, OddError())).endswith("OddError in unit/test_attempt.py:fails")


def test_the_text_and_the_line_of_an_error_change_no_fingerprint():
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


def test_an_error_that_cannot_be_printed_is_described_by_its_class():
    attempt = attempt_of(caught(fails, MuteError()), 0.0)
    assert attempt.message == ""
    assert "MuteError" in attempt.traceback
    assert one_line(MuteError()) == "MuteError"


def test_half_a_surrogate_pair_can_be_stored():
    attempt = attempt_of(caught(fails, ValueError(json.loads(r'"\ud800"'))), 0.0)
    assert attempt.message == "\\ud800"
    assert attempt.traceback.encode()


# Installed consumers.


def installed(module, code, directory, **names):
    """Return the names that *code* defines, as if it were installed as *module*."""
    file = f"{directory}/{module.replace('.', '/')}.py"
    namespace = {"__name__": module, "json": json, **names}
    exec(compile(code, file, "exec"), namespace)  # noqa: S102 -- the test's own
    return namespace


@pytest.fixture
def _consumer():
    set_author_packages("robosignatory")
    yield
    set_author_packages()


@pytest.mark.usefixtures("_consumer")
@pytest.mark.parametrize(
    "directory", [sysconfig.get_path("purelib"), "/usr/lib/python3/site-packages"]
)
def test_the_code_of_an_installed_consumer_is_the_authors_and_its_libraries_are_not(directory):
    library = installed("requests.models", "def parse(text): return json.loads(text)", directory)
    code = "def tag(): parse('{')\ndef sign(): parse('{')"
    consumer = installed("robosignatory.work", code, directory, parse=library["parse"])
    assert fingerprint(caught(consumer["tag"])).endswith(" in robosignatory/work.py:tag")
    assert fingerprint(caught(consumer["sign"])).endswith(" in robosignatory/work.py:sign")
    other = installed("robosignatory_of_others", "def sign(): json.loads('{')", directory)
    set_author_packages("robo", "robosignatory_of")
    found = fingerprint(caught(other["sign"]))
    assert "robosignatory_of_others" not in found, "a name that only begins alike"


@pytest.mark.parametrize(
    ("name", "module", "has_code", "packages"),
    [
        ("robo.consumer:Consumer", "robo.consumer", {"robo"}, {"robo"}),
        ("sample:handle", "sample", {"sample"}, {"sample"}),
        ("fedora.bodhi.server:C", "fedora.bodhi.server", {"fedora.bodhi"}, {"fedora.bodhi"}),
        ("entry:handle", "real.place", {"entry", "real"}, {"entry", "real"}),
        ("some.py:handle", "callback_file.some", {"callback_file.some"}, {"callback_file.some"}),
    ],
)
def test_the_authors_package_is_where_the_callback_lives(
    monkeypatch, name, module, has_code, packages
):
    def handle(message):
        pass

    handle.__module__ = module
    parts = module.split(".")
    for each in [*(".".join(parts[: n + 1]) for n in range(len(parts))), name.partition(":")[0]]:
        if each.endswith(".py") or each == "callback_file":
            continue
        made = types.ModuleType(each)
        if each in has_code:
            made.__file__ = str(Path("/somewhere", each))
        monkeypatch.setitem(sys.modules, each, made)
    assert packages_of(Target(name, "file", handle)) == packages


def test_a_callback_of_the_standard_library_does_not_add_that_library():
    assert packages_of(Target("json:loads", "file", json.loads)) == set()


def test_a_ready_made_consumer_is_no_code_of_the_author():
    name = "consumer_framework.kit.command:RunCommand"
    assert packages_of(Target(name, "file", RunCommand)) == set()
