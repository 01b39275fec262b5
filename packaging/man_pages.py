#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the man pages of fm-consumer from its --help: one page for each command.

packaging/man_pages.py DIRECTORY

The date is that of $SOURCE_DATE_EPOCH (seconds since the epoch), or of today. The version is in
pyproject.toml. So the same source gives the same pages.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consumer_framework.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Marks a paragraph in click's help that is not to be filled.
VERBATIM = "\b\n"
# The names that man-pages(7) gives to sections.
HEADINGS = {"Exit codes:": "EXIT STATUS"}


def escaped(text: str) -> str:
    """Return *text* so that groff prints it as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    # A line that begins with one of these would be a request.
    return "\n".join("\\&" + line if line[:1] in {".", "'"} else line for line in text.split("\n"))


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield *command* and all visible commands below it, each with its full name."""
    yield name, command
    if isinstance(command, click.Group):
        for word, below in visible(command):
            yield from commands(below, f"{name} {word}")


def visible(group: click.Group) -> list[tuple[str, click.Command]]:
    """Return the visible commands of *group*, by their names."""
    context = click.Context(group)
    below = ((word, group.get_command(context, word)) for word in group.list_commands(context))
    return [(word, command) for word, command in below if command and not command.hidden]


def prose(text: str) -> Iterator[str]:
    """Yield the lines of help text, whose paragraphs are separated by empty lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith(VERBATIM):
            yield from (".PP", ".nf", escaped(paragraph.removeprefix(VERBATIM).rstrip()), ".fi")
        else:
            yield from (".PP", escaped(paragraph.strip()))


def epilog(text: str) -> Iterator[str]:
    """Yield each verbatim paragraph of an epilog as a section; its first line is the heading."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        heading, _, rest = paragraph.removeprefix(VERBATIM).partition("\n")
        yield f".SH {escaped(HEADINGS.get(heading, heading.rstrip(':').upper()))}"
        yield from prose(VERBATIM + textwrap.dedent(rest))


def described(terms: list[tuple[str, str]]) -> Iterator[str]:
    """Yield a list of terms, each with its description."""
    for term, description in terms:
        yield from (".TP", f"\\fB{escaped(term)}\\fR", escaped(description))


def page(name: str, command: click.Command, version: str, date: str) -> Iterator[str]:
    """Yield the lines of the page of *command*, in the layout of man-pages(7)."""
    context = click.Context(command, info_name=name, **main.context_settings)
    title = name.replace(" ", "-")
    summary = command.get_short_help_str(limit=200).rstrip(".")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.TH "{escaped(title.upper())}" "1" "{date}" "consumer_framework {version}"'
    yield from (".SH NAME", f"{escaped(title)} \\- {escaped(summary)}")
    yield from (".SH SYNOPSIS", f"\\fB{escaped(name)}\\fR {escaped(usage)}")
    yield ".SH DESCRIPTION"
    yield from prose(command.help or "")
    yield ".SH OPTIONS"
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    yield from described([record for record in records if record and record[1]])
    related = [name.rpartition(" ")[0]] if " " in name else []
    if isinstance(command, click.Group):
        below = visible(command)
        yield ".SH COMMANDS"
        yield from described([(word, one.get_short_help_str(limit=200)) for word, one in below])
        related += [f"{name} {word}" for word, _ in below]
    if command.epilog:
        yield from epilog(command.epilog)
    yield from (".SH FILES", ".TP", "/etc/fedora\\-messaging/\\fINAME\\fR.toml")
    yield "The configuration of the instance \\fINAME\\fR."
    yield from (".TP", "/var/lib/fedora\\-messaging/\\fINAME\\fR")
    yield "Its quarantined and deferred messages."
    pages = [f"\\fB{escaped(one.replace(' ', '-'))}\\fR(1)" for one in related]
    yield from (".SH SEE ALSO", ", ".join([*pages, "\\fBsystemctl\\fR(1)"]))


def write_all(directory: Path) -> None:
    """Write the pages of all commands, as fm-consumer-COMMAND.1, into *directory*."""
    version = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"]
    epoch = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(epoch))
    directory.mkdir(parents=True, exist_ok=True)
    for name, command in commands(main, "fm-consumer"):
        text = "\n".join(page(name, command, version, date)) + "\n"
        (directory / f"{name.replace(' ', '-')}.1").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 -- the program and its argument
        sys.exit(__doc__)
    write_all(Path(sys.argv[1]))
