# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of ``fm-consumer status --host``: the instances of several hosts, a line each."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.text import duration_text
from consumer_framework.operate.hosts import PROGRAM, SSH, HostAnswer, Hosts, Way

from . import terminal
from .terminal import Column, bad, doubtful

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumer_framework.operate.rows import Row

_COLUMNS = (
    Column("HOST", gives_way=True),
    Column("INSTANCE"),
    Column("STATE"),
    Column("RATE", right=True),
    Column("LAG", right=True),
    Column("WAIT", right=True),
    Column("QUAR", right=True),
    Column("REASON", gives_way=True),
)
# The states in which an instance does its work.
_WELL = frozenset({"consuming", "idle"})


@dataclass(frozen=True, slots=True)
class _Line:
    cells: Sequence[str]
    style: Callable[[str], str]


def way_of(ssh: str, program: str, timeout: float) -> Way:
    """Return the way to the hosts that the options name.

    Args:
        ssh: A command line; "" for OpenSSH's.
        program: A command line for the shell of the host; "" for ``fm-consumer``.
        timeout: Seconds.

    Raises:
        click.UsageError: *ssh* is no command line.
    """
    try:
        words = shlex.split(ssh)
    except ValueError as error:
        raise click.UsageError(f"--ssh is no command line: {error}") from None
    return Way(words or SSH, program or PROGRAM, timeout)


def show(hosts: Sequence[str], names: Sequence[str], way: Way, *, as_json: bool) -> int:
    """Print the instances of *hosts*.

    Returns:
        The exit code: 4 if a host could not be asked, 3 if an instance that should run does not.
    """
    answers = Hosts(way).ask_all(hosts, names)
    if as_json:
        terminal.print_json({"hosts": [_document(answer) for answer in answers]})
    else:
        lines = [line for answer in answers for line in _lines(answer)]
        texts = terminal.table(_COLUMNS, [line.cells for line in lines], terminal.terminal_width())
        click.echo(terminal.faint(texts[0]))
        for line, text in zip(lines, texts[1:], strict=True):
            click.echo(line.style(text))
        for answer in answers:
            if answer.problem:
                click.echo(bad(terminal.safe(f"{answer.host}: {answer.problem}")))
    return _exit_code(answers, names)


def _exit_code(answers: Sequence[HostAnswer], names: Sequence[str]) -> int:
    if any(answer.document is None for answer in answers):
        return 4
    rows = (row for answer in answers for row in answer.rows)
    return 0 if all(row.is_active for row in rows if names or row.should_run) else 3


def _document(answer: HostAnswer) -> dict[str, Any]:
    found = dict(answer.document or {"groups": []})
    # "problem" is that of systemd there, too: without a document there is only ours.
    return {"host": answer.host, "answers": answer.document is not None, **found} | (
        {} if answer.document else {"problem": answer.problem}
    )


def _lines(answer: HostAnswer) -> Iterator[_Line]:
    if answer.document is None:
        # The reason follows the table, uncut.
        yield _note(answer.host, "does not answer", bad)
    elif not answer.rows:
        yield _note(answer.host, "no instance is configured, and none runs", str)
    for row in answer.rows:
        yield _Line(_cells(row), _style(row))


def _note(host: str, text: str, style: Callable[[str], str]) -> _Line:
    return _Line([host, *["-"] * (len(_COLUMNS) - 2), text], style)


def _cells(row: Row) -> list[str]:
    waiting = None if row.deferred is None else row.deferred + (row.held or 0)
    return [
        *(row.host, row.name, row.condition),
        *(_rate(row.rate), _count(row.lag), _count(waiting), _count(row.quarantined)),
        _reason(row),
    ]


def _reason(row: Row) -> str:
    if row.loss is None:
        return row.reason
    loss = f"loss in {duration_text(row.loss.seconds)}: {row.loss.subject}"
    return f"{row.reason}; {loss}" if row.reason else loss


def _style(row: Row) -> Callable[[str], str]:
    if not row.is_active:
        return bad if row.should_run else str
    return str if row.condition in _WELL and not row.quarantined else doubtful


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}/s"
