# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of the page: complete, unmodified where others wrote them, and nothing inline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest

from consumer_framework.cli import main
from consumer_framework.runtime.control.routes import ROUTES

PAGE = Path(__file__).resolve().parents[2] / "packaging" / "cockpit"
KNOWN: dict[str, Any] = json.loads((PAGE / "calls.json").read_text())
SCRIPTS = sorted(PAGE.glob("*.js"))
HOLE = re.compile(r"\{(\w+)\}")


def vendored(page: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(page / "vendor.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_files_of_others_are_those_that_the_list_has_hashes_of():
    done = vendored(PAGE)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_changed_a_missing_and_an_unlisted_file_of_others_are_named(tmp_path):
    page = tmp_path / "page"
    shutil.copytree(PAGE, page)
    with (page / "vendor/htm/htm.module.js").open("a") as file:
        file.write("\n")
    (page / "vendor/htm/LICENSE").unlink()
    (page / "vendor/more.js").touch()
    done = vendored(page)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "vendor.py: vendor/more.js: not in vendor.json",
        "vendor.py: vendor/htm/htm.module.js: its SHA-256 differs from vendor.json",
        "vendor.py: vendor/htm/LICENSE: missing; make vendor gets it",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_import_of_a_script_is_a_file_of_the_page(script):
    imported = re.findall(r'^import (?:.* from )?"([^"]+)";$', script.read_text(), re.MULTILINE)
    missing = [name for name in imported if not (PAGE / name).is_file()]
    assert missing == []


class Parts(HTMLParser):
    """Collects the files that a document loads, and its inline parts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.files: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.inline += [name for name in values if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and not values.get("src")):
            self.inline.append(tag)
        address = values.get("src") or (values.get("href") if tag == "link" else None)
        self.files += [address] if address else []


def test_the_document_loads_files_of_the_page_and_has_nothing_inline():
    parts = Parts((PAGE / "index.html").read_text())
    assert parts.inline == []
    foreign = [name for name in parts.files if not (PAGE / name).is_file()]
    assert foreign == ["data:,", "../base1/cockpit.js"]


def test_every_value_of_a_call_has_a_pattern():
    words = [
        word
        for call in KNOWN["calls"].values()
        for word in [
            *call["argv"],
            *(w for words in call.get("options", {}).values() for w in words),
        ]
    ]
    assert {name for word in words for name in HOLE.findall(word)} == {*KNOWN["values"]}


@pytest.mark.parametrize(
    "value", ["--all", "-y", "../x", "a b", "a;b", "$(id)", "", "a\n", "x" * 29]
)
@pytest.mark.parametrize("name", ["instance", "row", "rows"])
def test_no_argument_of_its_own_is_an_option_or_leaves_its_word(name, value):
    assert re.fullmatch(KNOWN["values"][name], value) is None


def test_every_argument_with_free_text_belongs_to_an_option():
    free = {name for name, pattern in KNOWN["values"].items() if re.fullmatch(pattern, "--all")}
    assert free == {"text"}
    for call in KNOWN["calls"].values():
        for word in call["argv"]:
            assert word != "{text}", f"{call}: --option={{text}}"


VALUES = {
    "instance": "sample",
    "row": "41",
    "rows": "41",
    "number": "50",
    "text": "error~timeout",
    "ramp": "1,5.5,100",
    "rate": "10/s",
    "share": "5%",
    "age": "10m",
    "priority": "warning",
    "row_state": "quarantined",
    "outbox_state": "dead",
    "level": "DEBUG",
}


@pytest.mark.parametrize("name", [*KNOWN["calls"]])
def test_every_call_is_a_command_with_these_arguments_and_options(name):
    call = KNOWN["calls"][name]
    options = [word for words in call.get("options", {}).values() for word in words]
    program, *words = [HOLE.sub(lambda m: VALUES[m[1]], word) for word in [*call["argv"], *options]]
    if program == "systemctl":
        assert words[0] in {"start", "stop", "restart"}
        return
    assert program == "fm-consumer"
    command: click.Command | None = main
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None
    assert command.make_context(name, words) is not None


@pytest.mark.parametrize("name", [name for name, call in KNOWN["calls"].items() if "path" in call])
def test_a_call_that_an_instance_answers_itself_is_a_route_that_changes_nothing(name):
    path = KNOWN["calls"][name]["path"]
    assert [route.method for route in ROUTES if route.path == path] == ["GET"]
