# SPDX-License-Identifier: GPL-2.0-or-later
"""`fm-consumer logs`, with the lines of a real log handler in files of a real journal."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from consumer_framework.adapters.systemd.journald import JournalHandler
from consumer_framework.adapters.systemd.systemctl import unit_name
from consumer_framework.cli import main
from consumer_framework.core.disposition import Ack, Quarantine
from consumer_framework.core.log_fields import fields_of
from consumer_framework.operate import logs
from consumer_framework.operate.logs import Filters, NoLineError
from consumer_framework.testing import make_delivery

from .journal_socket import JournalSocket
from .machine import make_host

if TYPE_CHECKING:
    from consumer_framework.core.disposition import Disposition

    from .machine import Host

WRITER = Path("/lib/systemd/systemd-journal-remote")
CAUSE = "KeyError in site-packages/sample.py:handle"
BUILD, UPDATE = "org.fedoraproject.prod.buildsys.build", "org.fedoraproject.prod.bodhi.update"
PROGRAM = [str(Path(sys.executable).with_name("fm-consumer")), "logs"]


@pytest.fixture
def host(short_tmp_path, monkeypatch) -> Host:
    return make_host(short_tmp_path, monkeypatch)


class Written:
    """A journal in files: each line is sent as an instance sends it, and written by systemd."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._socket = str(place / "socket")
        self._entries: list[dict[str, str]] = []

    def logs(self, instance: str, text: str, **fields: object) -> None:
        level = fields.pop("level", logging.INFO)
        handler = JournalHandler(instance=instance, path=self._socket)
        with JournalSocket(Path(self._socket)) as journal:
            record = logging.LogRecord("a", level, "file", 1, text, (), None)  # type: ignore[arg-type]
            record.__dict__.update(fields)
            handler.handle(record)
            entry = journal.entry()
        handler.close()
        self._entries.append({name: value for name, [value] in entry.items()})

    def about(
        self, instance: str, text: str, topic: str, end: Disposition, cause: str = ""
    ) -> None:
        delivery = make_delivery(routing_key=topic, message_id=f"id of {text}")
        self.logs(instance, text, **fields_of(delivery, end, cause))

    def adds(self, **entry: str) -> None:
        self._entries.append(entry)

    def write(self) -> None:
        lines = []
        for number, entry in enumerate(self._entries, 1):
            stamps = {
                "__REALTIME_TIMESTAMP": 1_700_000_000_000_000 + number * 1_000_000,
                "__MONOTONIC_TIMESTAMP": number,
                "_BOOT_ID": f"{1:032}",
            }
            lines += [f"{name}={value}" for name, value in {**stamps, **entry}.items()] + [""]
        subprocess.run(
            [WRITER, "--output", self.place / "a.journal", "-"],
            input="\n".join([*lines, ""]).encode(),
            check=True,
            capture_output=True,
        )

    def shown(self, *words: str, code: int = 0) -> list[str]:
        """Return the texts of the lines that the command shows."""
        done = self.ran(*words, "--json")
        assert done.returncode == code, done.stderr
        return [json.loads(line)["MESSAGE"] for line in done.stdout.splitlines()]

    def ran(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, "--directory", self.place, *words],
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    if not (WRITER.exists() and shutil.which("journalctl")):
        pytest.skip("systemd-journal-remote is missing: packaging/system-packages journal")
    journal = Written(tmp_path_factory.mktemp("journal"))
    journal.about("builds", "poison", BUILD, Quarantine("bad"), CAUSE)
    journal.about("builds", "good", BUILD, Ack())
    journal.about("updates", "update", UPDATE, Quarantine("bad"), "OSError in x.py:handle")
    journal.logs("updates", "the connection is lost", level=logging.WARNING)
    journal.adds(MESSAGE="Started", UNIT=unit_name("builds"), _PID="1", PRIORITY="6")
    journal.adds(MESSAGE="printed", _SYSTEMD_UNIT=unit_name("builds"), PRIORITY="6")
    journal.adds(MESSAGE="of another program", _SYSTEMD_UNIT="sshd.service", PRIORITY="3")
    journal.write()
    return journal


def test_the_log_of_an_instance_has_its_lines_its_output_and_those_of_systemd(written):
    assert written.shown("builds") == ["poison", "good", "Started", "printed"]
    assert written.shown("builds", "updates", "-n", "1") == ["printed"]


def test_without_a_name_the_lines_of_all_instances_are_shown_and_of_nobody_else(written):
    assert "the connection is lost" in written.shown()
    assert "of another program" not in written.shown()


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("builds", "--disposition", "quarantine"), ["poison"]),
        (("--disposition", "quarantine"), ["poison", "update"]),
        (("--disposition", "quarantine", "--disposition", "ack"), ["poison", "good", "update"]),
        (("--topic", BUILD), ["poison", "good"]),
        (("--topic", "org.*.prod.bodhi.#"), ["update"]),
        (("--topic", UPDATE, "--topic", "#.build"), ["poison", "good", "update"]),
        (("--cause", CAUSE), ["poison"]),
        (("--cause", "*Error in *"), ["poison", "update"]),
        (("--message", "id of good"), ["good"]),
        (("updates", "--message", "id of good"), []),
        (("updates", "-p", "warning"), ["the connection is lost"]),
        (("updates", "--since", "-1h"), []),
        (("updates", "--until", "2023-11-14", "--grep", "upd"), []),
        (("updates", "--grep", "is l.st"), ["the connection is lost"]),
    ],
)
def test_options_of_one_kind_are_alternatives_and_those_of_different_kinds_hold_together(
    written, words, texts
):
    is_grep_in_vain = "--grep" in words and not texts
    assert written.shown(*words, code=int(is_grep_in_vain)) == texts


def test_the_output_is_that_of_journalctl(written):
    assert written.ran("builds", "--message", "id of poison").stdout.endswith(": poison\n")
    assert "-- No entries --" in written.ran("--message", "gone").stdout


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ("--topic gone.#", 1, "no line of the journal is about a topic like 'gone.#'"),
        ("gone", 78, "there is no instance 'gone'"),
        ("../etc", 78, "name"),
        ("--topic a.# --follow", 2, "--follow takes no pattern such as 'a.#'; use --grep"),
        ("--cause K* -f", 2, "--follow takes no pattern such as 'K*'"),
        ("--disposition gone", 2, "'gone' is not one of 'ack'"),
        ("--since nonsense builds", 1, "nonsense"),
    ],
)
def test_a_command_in_vain_says_why(written, words, code, why):
    done = written.ran(*words.split())
    assert done.returncode == code
    assert why in done.stderr
    assert done.stdout == ""


def test_values_are_completed_from_the_journal(written):
    found = main.get_command(click.Context(main), "logs")
    assert found is not None
    context = click.Context(found)
    context.params["directory"] = written.place
    options = {option.name: option for option in found.params}
    completed = {
        name: [item.value for item in options[name].shell_complete(context, start)]
        for name, start in (("topics", "org"), ("causes", "Key"), ("dispositions", "q"))
    }
    assert completed == {
        "topics": [UPDATE, BUILD],
        "causes": [CAUSE],
        "dispositions": ["quarantine"],
    }


# With a program in the place of journalctl.


def has_journalctl(host: Host, script: str) -> None:
    program = host.directory / "bin/journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "there is no journalctl in $PATH"),
        ("echo No journal files were found. >&2", "there is no journal in /var/log/journal"),
        (
            "echo No journal files were opened due to insufficient permissions. >&2; exit 1",
            "use sudo, or join the group systemd-journal",
        ),
        ("echo 'Bad message' >&2; exit 1", "journalctl: Bad message"),
        ("exit 1", "journalctl: it failed without a word"),
    ],
)
def test_a_journal_that_cannot_be_read_is_reported_with_the_cure(host, script, why):
    if script:
        has_journalctl(host, script)
    host.configures()
    result = host.does("logs", "sample")
    assert result.exit_code == 78
    assert why in result.stderr
    assert len(result.stderr.splitlines()) == 1
    found = main.get_command(click.Context(main), "logs")
    assert found is not None
    [topics] = [option for option in found.params if option.name == "topics"]
    assert [item.value for item in topics.shell_complete(click.Context(found), "o")] == []


def test_a_journalctl_that_is_no_program_is_reported(host):
    has_journalctl(host, "")
    (host.directory / "bin/journalctl").write_text("\x00")
    result = host.does("logs", "sample")
    assert result.exit_code == 78
    assert "journalctl cannot be run" in result.stderr


def test_a_host_without_instances_says_so(host):
    has_journalctl(host, "")
    result = host.does("logs")
    assert result.exit_code == 1
    assert f"the journal has no line of an instance, and {host.etc} configures none" in (
        result.stderr
    )


def test_a_name_stands_for_its_workers_and_a_user_with_half_the_journal_is_told(host):
    """The command becomes journalctl: a process of its own shows what it is given."""
    hint = "Hint: You are currently not seeing messages from other users and the system."
    has_journalctl(host, f'case $* in *--lines=0*) echo "{hint}" >&2;; *) echo "$*";; esac')
    host.configures()
    (host.etc / "sample_2.toml").symlink_to("sample.toml")
    host.configures("other")
    here = (
        "import sys; from pathlib import Path; from consumer_framework.cli import main, options; "
        f"options.CONFIGURATION_DIRECTORY = Path({str(host.etc)!r}); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", here, "logs", "sample", "-f", "--since", "-1h"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    assert "you see your own lines of the journal only: use sudo" in done.stderr
    assert done.stdout.startswith("--quiet --follow --since=-1h -- _SYSTEMD_UNIT=")
    assert {*re.findall(r"FM_INSTANCE=(\S+)", done.stdout)} == {"sample", "sample_2"}


# Matches.


def test_matches_of_an_instance_without_filters_are_those_of_its_unit_and_of_a_run_by_hand():
    sets = " ".join(logs.matches(["a"], Filters())).split(" + ")
    unit = unit_name("a")
    assert sets == [
        f"_SYSTEMD_UNIT={unit}",
        f"UNIT={unit} _PID=1",
        f"COREDUMP_UNIT={unit} _UID=0",
        f"OBJECT_SYSTEMD_UNIT={unit} _UID=0",
        "FM_INSTANCE=a",
    ]


def test_a_cause_without_a_star_is_taken_literally_and_the_journal_is_not_asked():
    assert logs.causes_like(["a[b]"], lambda: pytest.fail("it was asked")) == ["a[b]"]
    assert logs.causes_like(["a[b]*"], lambda: ["a[b]c", "ab"]) == ["a[b]c"]


def test_a_pattern_that_fits_too_many_topics_is_refused():
    with pytest.raises(NoLineError, match="2,000 topics are like '#'; give a narrower one"):
        logs.topics_like(["#"], lambda: [f"topic.{n}" for n in range(2000)])
