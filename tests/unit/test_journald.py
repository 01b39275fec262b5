# SPDX-License-Identifier: GPL-2.0-or-later
"""Log records in systemd's journal, with fields."""

from __future__ import annotations

import logging
import socket
import sys
from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import consumer_framework
from consumer_framework.adapters import log
from consumer_framework.adapters.executor.run import Run
from consumer_framework.adapters.systemd import journald
from consumer_framework.adapters.systemd.journald import JournalHandler
from consumer_framework.author.heartbeat import CURRENT_RUN
from consumer_framework.core import secrets
from consumer_framework.core.disposition import Quarantine
from consumer_framework.core.log_fields import fields_of
from consumer_framework.testing import make_delivery

from .journal_socket import JournalSocket, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from consumer_framework.core.delivery import Delivery


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


@pytest.fixture
def journal(path: str) -> Iterator[JournalSocket]:
    with JournalSocket(path) as listening:
        yield listening


@pytest.fixture
def handler(path: str) -> Iterator[JournalHandler]:
    made = JournalHandler(instance="sample", path=path)
    yield made
    made.close()


@pytest.fixture
def logger(handler: JournalHandler) -> Iterator[logging.Logger]:
    own = logging.getLogger("author.module")
    own.setLevel(logging.DEBUG)
    own.propagate = False
    own.addHandler(handler)
    yield own
    own.removeHandler(handler)


# The protocol.


@given(
    st.lists(
        st.tuples(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), st.text()), max_size=8
    )
)
def test_an_entry_is_read_as_it_was_written(fields):
    expected: dict[str, list[str]] = {}
    for name, value in fields:
        readable = value.encode(errors="backslashreplace").decode()
        expected.setdefault(name, []).append(readable)
    assert parsed(journald.entry(fields)) == expected


def test_a_value_of_one_line_is_text_and_one_with_more_has_its_length_before_it():
    assert (
        journald.entry([("A", "x=y"), ("B", "1\n2")]) == b"A=x=y\nB\n\3\0\0\0\0\0\0\0" + b"1\n2\n"
    )


# The fields of a record.


def in_handler(deliveries: list[Delivery], function: Callable[..., None], *args, **more) -> None:
    """Call *function* as a handler would that has *deliveries*."""
    context = copy_context()
    context.run(CURRENT_RUN.set, Run(deliveries))
    context.run(function, *args, **more)


def test_a_record_has_its_text_priority_place_and_instance(logger, journal):
    logger.warning("hello %s", "world")
    found = journal.entry()
    assert found["MESSAGE"] == ["hello world"]
    assert found["PRIORITY"] == ["4"]
    assert found["LOGGER"] == ["author.module"]
    assert found["CODE_FILE"] == [__file__]
    assert found["CODE_FUNC"] == ["test_a_record_has_its_text_priority_place_and_instance"]
    assert int(found["CODE_LINE"][0]) > 0
    assert found["SYSLOG_IDENTIFIER"] == ["fm-consumer@sample"]
    assert found["FM_INSTANCE"] == ["sample"]
    assert "FM_MESSAGE_ID" not in found


def test_without_an_instance_the_program_is_named(path, journal):
    nameless = JournalHandler(path=path)
    nameless.handle(logging.LogRecord("a", logging.INFO, "file", 1, "hello", (), None))
    nameless.close()
    found = journal.entry()
    assert found["SYSLOG_IDENTIFIER"] == ["fm-consumer"]
    assert "FM_INSTANCE" not in found


def test_a_traceback_is_part_of_the_text(logger, journal):
    try:
        raise ValueError("two\nlines")  # noqa: TRY301
    except ValueError:
        logger.exception("it failed")
    (text,) = journal.entry()["MESSAGE"]
    assert text.startswith("it failed\nTraceback (most recent call last):\n")
    assert text.split()[-3:] == ["ValueError:", "two", "lines"]


def test_log_records_of_a_handler_name_its_message(logger, journal):
    delivery = make_delivery(message_id="m-1", queue="q", routing_key="t")
    in_handler([delivery], logger.info, "from the handler")
    found = journal.entry()
    assert found["FM_MESSAGE_ID"] == ["m-1"]
    assert found["FM_TOPIC"] == ["t"]
    assert found["FM_QUEUE"] == ["q"]
    assert found["FM_ATTEMPT"] == ["1"]


def test_log_records_of_a_batch_handler_name_all_its_messages(logger, journal):
    batch = [make_delivery(message_id=f"m-{n}", routing_key="t") for n in range(3)]
    in_handler(batch, logger.info, "from the handler")
    found = journal.entry()
    assert found["FM_MESSAGE_ID"] == ["m-0", "m-1", "m-2"]
    assert found["FM_TOPIC"] == ["t"]


def test_a_line_about_a_message_has_its_fields_and_not_those_of_the_handler_that_runs(
    logger, journal
):
    mine, other = make_delivery(message_id="mine"), make_delivery(message_id="other")
    extra = fields_of(other, Quarantine("x"))
    in_handler([mine], logger.info, "about another", extra=extra)
    found = journal.entry()
    assert found["FM_MESSAGE_ID"] == ["other"]
    assert found["FM_DISPOSITION"] == ["quarantine"]


def test_an_authors_extra_in_capitals_is_a_field_unless_it_is_one_of_the_journals_own(
    logger, journal
):
    extra = {"UPDATE": "FEDORA-2026", "COUNT": 3, "lower": 1, "PRIORITY": "0", "_PID": "1"}
    logger.info("hello", extra=extra)
    found = journal.entry()
    assert found["UPDATE"] == ["FEDORA-2026"]
    assert found["COUNT"] == ["3"]
    assert found["PRIORITY"] == ["6"]
    assert not {"lower", "_PID"} & found.keys()


def test_a_secret_is_in_no_field(logger, journal, monkeypatch):
    secrets.hide("in-no-field-8231", "credential:token")
    monkeypatch.setattr(logging, "_logRecordFactory", log.RedactedRecord)
    logger.info("with %s", "in-no-field-8231", extra={"URL": "amqp://me:in-no-field-8231@broker"})
    found = journal.entry()
    assert found["MESSAGE"] == ["with <credential:token>"]
    assert found["URL"] == ["amqp://me:<credential:token>@broker"]


def test_a_formatter_of_the_users_makes_the_text(handler, logger, journal):
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.info("hello")
    assert journal.entry()["MESSAGE"] == ["INFO hello"]


def test_an_entry_too_large_for_a_datagram_arrives_whole_as_a_sealed_file(logger, journal):
    text = "0123456789\n" * 100_000
    logger.error(text)
    logger.error("small")
    assert journal.entry()["MESSAGE"] == [text]
    assert journal.files == 1
    assert journal.entry()["MESSAGE"] == ["small"]
    assert journal.files == 1


# Where the journal does not take it.


def test_without_a_journal_a_line_goes_to_standard_error(logger, handler, capsys):
    handler.fallback.setStream(sys.stderr)
    logger.error("to stderr")
    assert capsys.readouterr().err == "to stderr\n"


def test_a_journal_that_starts_again_gets_the_next_lines(logger, handler, path, capsys):
    handler.fallback.setStream(sys.stderr)
    with JournalSocket(path) as before:
        logger.error("one")
        assert before.entry()["MESSAGE"] == ["one"]
    logger.error("two")
    with JournalSocket(path) as after:
        logger.error("three")
        assert after.entry()["MESSAGE"] == ["three"]
    assert capsys.readouterr().err == "two\n"


def test_a_socket_without_a_reader_is_no_journal(logger, handler, path, capsys):
    handler.fallback.setStream(sys.stderr)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(path)
    logger.error("refused")
    assert capsys.readouterr().err == "refused\n"
    assert not journald.is_reachable(path)


def test_a_journal_that_hangs_blocks_no_thread_and_loses_no_record(
    logger, handler, journal, capsys
):
    handler.fallback.setStream(sys.stderr)
    sent = 0
    # Nobody reads, until the socket's queue is full.
    while not (err := capsys.readouterr().err):
        logger.error("line %d", sent)
        sent += 1
        assert sent < 100_000
    assert err == f"line {sent - 1}\n"
    received = [journal.entry()["MESSAGE"] for _ in range(sent - 1)]
    assert received == [[f"line {n}"] for n in range(sent - 1)]


def test_a_handler_that_was_closed_sends_again(logger, handler, journal):
    logger.error("one")
    handler.close()
    logger.error("two")
    assert [journal.entry()["MESSAGE"], journal.entry()["MESSAGE"]] == [["one"], ["two"]]


def test_a_record_that_cannot_be_formatted_raises_nothing(logger, journal, monkeypatch, capsys):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.error("%d", "no number")
    logger.error("next")
    assert journal.entry()["MESSAGE"] == ["next"]


def test_the_journal_is_reachable_where_its_socket_has_a_reader(path, tmp_path):
    assert not journald.is_reachable(path)
    with JournalSocket(path):
        assert journald.is_reachable(path)
    assert not journald.is_reachable(str(tmp_path / "no" / "such"))


def test_a_log_config_can_name_the_handler():
    assert consumer_framework.JournalHandler is JournalHandler
