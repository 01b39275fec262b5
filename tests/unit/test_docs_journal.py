# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of the journal's fields lists what the code sends."""

from __future__ import annotations

import logging
import tomllib
from typing import TYPE_CHECKING

from consumer_framework.adapters import log
from consumer_framework.adapters.log import LINES, QUIET
from consumer_framework.adapters.systemd.journald import JournalHandler
from consumer_framework.core import limits, log_fields
from consumer_framework.core.disposition import SETTLE_RULES
from consumer_framework.core.log_fields import priority_of

from .journal_socket import JournalSocket
from .test_docs import DOCS, blocks, table

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "reference" / "journal.md"
HOWTO = DOCS / "howto" / "read-the-journal.md"


def first_cells(heading: str) -> list[str]:
    cells = [row[0] for row in table(PAGE, heading)]
    return [name.strip("`") for cell in cells for name in cell.split(", ")]


def test_the_fields_about_a_message_are_those_of_the_code():
    names = {str(value) for name, value in vars(log_fields).items() if name.isupper()}
    own = {name for name in names if name.startswith("FM_")}
    assert set(first_cells("Fields about a message")) == own


def test_the_dispositions_are_those_of_the_code():
    assert set(first_cells("FM_DISPOSITION")) == {
        rule.words.field for rule in SETTLE_RULES.values()
    }


def test_the_other_fields_are_those_that_a_record_is_sent_with(tmp_path: Path):
    handler = JournalHandler(path=str(tmp_path / "socket"))
    with JournalSocket(tmp_path / "socket") as journal:
        handler.handle(logging.LogRecord("a", logging.INFO, "file", 1, "hello", (), None))
        sent = journal.entry()
    handler.close()
    listed = [name for name in first_cells("Other fields") if name.isupper()]
    assert set(listed) == set(sent)


def test_the_priorities_are_those_of_the_code():
    [row] = [row for row in table(PAGE, "Other fields") if row[0] == "`PRIORITY`"]
    levels = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
    said = ", ".join(f"{priority_of(getattr(logging, level))} for `{level}`" for level in levels)
    assert row[1] == said


def test_the_log_configuration_of_the_page_is_one():
    [text] = [block for block in blocks(HOWTO, "toml") if "JournalHandler" in block]
    before = logging.root.handlers[:], logging.root.level
    try:
        log.set_up(tomllib.loads(text)["log_config"], lambda _: False)
        assert [type(handler) for handler in logging.root.handlers] == [JournalHandler]
    finally:
        logging.root.handlers, logging.root.level = before


def test_the_numbers_are_those_of_the_code():
    text = HOWTO.read_text()
    assert LINES == 10
    assert "up to ten messages in all" in text
    assert QUIET == 5 * 60
    assert "in five minutes" in text
    systemd = (DOCS / "howto" / "run-under-systemd.md").read_text()
    assert f"After {limits.CALM:.0f} seconds without pressure" in systemd
    assert 5 * 60 <= limits.LONGEST_CALM < 6 * 60
    assert "up to about 5 minutes" in systemd
