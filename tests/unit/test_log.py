# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: readable on a terminal, with priorities in the journal."""

import io
import logging
import logging.config
import os
import socket
import sys
from typing import Any

import pytest

from consumer_framework.adapters import log
from consumer_framework.adapters.systemd.journald import JournalHandler
from consumer_framework.adapters.systemd.notify import is_journal

from .journal_socket import JournalSocket


@pytest.fixture
def stderr(capfd):
    """Return the text written to standard error, which has a file descriptor."""
    return lambda: capfd.readouterr().err


def never(_descriptor):
    return False


def always(descriptor):
    return descriptor >= 0


def fail():
    error = ValueError("two\nlines")
    logging.getLogger("author").error("failed", exc_info=error)


def test_a_terminal_gets_time_level_and_name(stderr):
    log.set_up(None, never)
    logging.getLogger("author").warning("hello %s", "world")
    line = stderr()
    assert line.endswith("WARNING author: hello world\n")
    assert line[:4].isdigit()


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (logging.CRITICAL, "<2>"),
        (logging.ERROR, "<3>"),
        (logging.WARNING, "<4>"),
        (logging.WARNING + 1, "<4>"),
        (logging.INFO, "<6>"),
        (logging.DEBUG, "<7>"),
        (1, "<7>"),
    ],
)
def test_the_journal_gets_the_priority_and_neither_time_nor_level(stderr, level, prefix):
    log.set_up(None, always)
    logging.getLogger("author").setLevel(1)
    logging.getLogger("author").log(level, "hello")
    assert stderr() == f"{prefix}author: hello\n"


def test_every_line_of_a_traceback_carries_the_priority(stderr):
    log.set_up(None, always)
    fail()
    lines = stderr().splitlines()
    assert lines[0] == "<3>author: failed"
    # Lines after the first are indented in an instance.
    assert [line[3:].strip() for line in lines[1:]] == ["ValueError: two", "lines"]
    assert all(line.startswith("<3>") for line in lines)


def test_an_empty_message_is_still_one_line_with_a_priority():
    formatter = log.PriorityFormatter(logging.Formatter("%(message)s"))
    record = logging.LogRecord("author", logging.INFO, "file", 1, "", (), None)
    assert formatter.format(record) == "<6>"


def test_debug_is_not_shown_and_the_layers_below_are_quiet(stderr):
    log.set_up(None, never)
    logging.getLogger("author").debug("hidden")
    logging.getLogger("pika.connection").error("hidden")
    logging.getLogger("twisted").info("hidden")
    logging.getLogger("fedora_messaging.twisted.protocol").info("hidden")
    logging.getLogger("fedora_messaging.cli").info("shown")
    (line,) = stderr().splitlines()
    assert line.endswith("shown")


USERS = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"short": {"format": "%(levelname)s/%(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "short"},
        "bare": {"class": "logging.StreamHandler"},
    },
    "loggers": {"author": {"handlers": ["console"], "propagate": False}},
    "root": {"level": "ERROR", "handlers": ["bare"]},
}


def test_the_users_own_configuration_is_taken_as_it_is_on_a_terminal(stderr):
    log.set_up(USERS, never)
    logging.getLogger("author").error("hello")
    logging.getLogger("other").error("root's")
    logging.getLogger("other").warning("too low")
    assert stderr() == "ERROR/hello\nroot's\n"


def test_the_users_own_handlers_get_priorities_in_the_journal(stderr):
    log.set_up(USERS, always)
    logging.getLogger("author").error("one\ntwo")
    logging.getLogger("other").error("root's")
    assert stderr() == "<3>ERROR/one\n<3>two\n<3>other: root's\n"


def test_a_handler_that_leads_elsewhere_gets_no_priorities(tmp_path, stderr):
    file = tmp_path / "file.log"
    handlers = {"file": {"class": "logging.FileHandler", "filename": str(file)}}
    log.set_up(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": handlers,
            "root": {"handlers": ["file"]},
        },
        always,
    )
    logging.getLogger("author").error("hello")
    for handler in logging.root.handlers:
        handler.close()
    assert file.read_text() == "hello\n"


def test_a_stream_without_a_descriptor_is_not_the_journal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.set_up(None, always)
    logging.getLogger("author").error("hello")
    assert "ERROR   author: hello\n" in stream.getvalue()


@pytest.mark.parametrize(
    "log_config", [{}, {"version": 2}, {"version": 1, "handlers": {"a": {"class": "no.such"}}}]
)
def test_a_configuration_that_logging_refuses_raises(log_config):
    with pytest.raises((ValueError, TypeError)):
        log.set_up(log_config, never)


# The native journal.


def test_the_journals_own_socket_takes_everything_in_the_place_of_standard_error(tmp_path, stderr):
    native = JournalHandler(path=str(tmp_path / "socket"))
    log.set_up(None, always, native)
    with JournalSocket(tmp_path / "socket") as journal:
        logging.getLogger("author").warning("hello %s", "world")
        logging.getLogger("author").debug("hidden")
        logging.getLogger("pika.connection").error("hidden")
        logging.getLogger("author").info("next")
        entries = [journal.entry(), journal.entry()]
    assert [entry["MESSAGE"] for entry in entries] == [["hello world"], ["next"]]
    native.close()
    assert stderr() == ""


def test_a_record_that_the_socket_does_not_take_has_its_priority_and_name(stderr, tmp_path):
    native = JournalHandler(path=str(tmp_path / "socket"))
    log.set_up(None, always, native)
    fail()
    native.close()
    assert stderr().splitlines()[:2] == ["<3>author: failed", "<3>ValueError: two"]


def test_a_log_config_may_name_the_handler_and_falls_back_readably(tmp_path, stderr):
    journal = {"class": "consumer_framework.JournalHandler", "path": str(tmp_path / "socket")}
    log.set_up(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"journal": journal},
            "root": {"handlers": ["journal"], "level": "INFO"},
        },
        never,
    )
    [handler] = logging.root.handlers
    assert isinstance(handler, JournalHandler)
    logging.getLogger("author").error("hello")
    handler.close()
    line = stderr()
    assert line.endswith("ERROR   author: hello\n")
    assert line[:4].isdigit()


# The journal is recognized (systemd.exec(5), $JOURNAL_STREAM).


def stream_of(descriptor):
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


def test_a_socket_is_the_journal_if_the_manager_says_that_it_is(monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setenv("JOURNAL_STREAM", stream_of(ours.fileno()))
        assert is_journal(ours.fileno())
        assert not is_journal(theirs.fileno())


def test_a_redirection_into_a_file_is_not_the_journal(monkeypatch, tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("w") as file:
        monkeypatch.setenv("JOURNAL_STREAM", stream_of(ours.fileno()))
        assert not is_journal(file.fileno())


@pytest.mark.parametrize("value", ["", ":", "1", "a:b", "1:2:3"])
def test_a_malformed_journal_stream_is_no_journal(monkeypatch, tmp_path, value):
    monkeypatch.setenv("JOURNAL_STREAM", value)
    with (tmp_path / "file").open("w") as file:
        assert not is_journal(file.fileno())


def test_without_a_manager_or_a_descriptor_there_is_no_journal(monkeypatch, tmp_path):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with (tmp_path / "file").open("w") as file:
        assert not is_journal(file.fileno())
    assert not is_journal(-1)


# Another configuration while the process runs.

NAMED = {
    "version": 1,
    "disable_existing_loggers": True,
    "handlers": {"out": {"class": "logging.StreamHandler"}},
    "root": {"level": "WARNING", "handlers": ["out"]},
    "loggers": {"named": {"level": "DEBUG", "handlers": ["out"], "propagate": False}},
}


def test_the_logger_settings_of_a_former_configuration_are_forgotten(stderr):
    named, silenced = logging.getLogger("named"), logging.getLogger("silenced")
    authors = logging.getLogger("authors")
    authors.setLevel(logging.ERROR)
    log.set_up(NAMED, never)
    assert silenced.disabled
    log.forget(NAMED)
    log.set_up(None, never)
    named.debug("not any more")
    named.info("once")
    silenced.info("heard again")
    assert authors.level == logging.ERROR, "that was not ours"
    said = stderr()
    assert "not any more" not in said
    assert said.count("once") == 1
    assert said.count("heard again") == 1


def test_the_frameworks_own_levels_are_forgotten_for_those_of_a_file(stderr):
    log.set_up(None, never)
    log.forget(None)
    log.set_up({**NAMED, "disable_existing_loggers": False}, never)
    logging.getLogger("pika").error("heard")
    assert "heard" in stderr()


# Files of Fedora's own, and callbacks that configure logging.

FEDORAS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": True,
    "formatters": {"simple": {"format": "[%(levelname)s %(name)s] %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "simple"}},
    "loggers": {"fedora_messaging": {"level": "INFO", "propagate": False, "handlers": ["console"]}},
    "root": {"level": "ERROR", "handlers": ["console"]},
}
OWN = logging.getLogger("consumer_framework.runtime.some_part")


@pytest.fixture
def _ours():
    yield
    log.forget(FEDORAS)


@pytest.mark.usefixtures("_ours")
def test_the_framework_logs_as_fedora_messaging_does(stderr):
    log.set_up(FEDORAS, never)
    OWN.info("hello")
    OWN.debug("too low")
    logging.getLogger("author").warning("too low for the root logger")
    assert stderr() == "[INFO consumer_framework.runtime.some_part] hello\n"


@pytest.mark.usefixtures("_ours")
def test_a_file_that_names_the_framework_has_its_way(stderr):
    own = {"level": "ERROR", "propagate": False, "handlers": ["console"]}
    log.set_up({**FEDORAS, "loggers": {**FEDORAS["loggers"], "consumer_framework": own}}, never)
    OWN.info("hidden")
    OWN.error("shown")
    assert stderr() == "[ERROR consumer_framework.runtime.some_part] shown\n"


AUTHORS = {
    "version": 1,
    "disable_existing_loggers": True,
    "handlers": {"out": {"class": "logging.StreamHandler"}},
    "root": {"level": "ERROR", "handlers": ["out"]},
}


@pytest.mark.usefixtures("_ours")
@pytest.mark.parametrize("before", [None, FEDORAS])
@pytest.mark.parametrize("theirs", [FEDORAS, AUTHORS])
def test_a_callback_that_configures_logging_does_not_silence_the_framework(before, theirs, stderr):
    log.set_up(before, never)
    logging.config.dictConfig(theirs)
    log.adapt(always)
    OWN.info("hello")
    assert stderr().startswith("<6>")
    # Later than at its import, too.
    logging.config.dictConfig(theirs)
    fail_as(OWN)
    said = stderr()
    assert "failed" in said
    assert "ValueError: two" in said


def fail_as(logger):
    logger.error("failed", exc_info=ValueError("two"))


@pytest.mark.usefixtures("_ours")
def test_after_a_reload_the_framework_logs_by_the_new_file(stderr):
    log.set_up(FEDORAS, never)
    log.forget(FEDORAS)
    log.set_up(AUTHORS, never)
    OWN.warning("hidden")
    OWN.error("shown")
    assert stderr() == "shown\n"
