# SPDX-License-Identifier: GPL-2.0-or-later
"""Output of commands: safe text and fitting tables for terminals, JSON for programs."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.adapters.systemd.notify import is_journal
from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.log_fields import priority_of
from consumer_framework.core.secrets import redact, redacted
from consumer_framework.core.text import fit, width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# The exit code after Ctrl-C, as in a shell.
_INTERRUPTED = 130
# Columns: a cell that has to give way keeps so many.
_NARROWEST = 10
_GAP = "  "


class Refusal(click.ClickException):
    """The command cannot do that: one line, and exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print it to standard error."""
        text = safe_lines(self.format_message())
        click.echo(f"fm-consumer: {text}", file=file, err=file is None)


class Command(click.Command):
    """A command whose errors are one line each, with the exit code that fits, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        try:
            return super().invoke(ctx)
        except FrameworkError as error:
            complain(error)
            ctx.exit(getattr(error, "exit_code", 78))
        except KeyboardInterrupt:
            # click would end with 1, which has other meanings here. The terminal shows "^C".
            click.echo(err=True)
            note("interrupted")
            ctx.exit(_INTERRUPTED)


def complain(error: BaseException) -> None:
    """Print *error* to standard error, with a priority where that is the journal."""
    to_journal = is_journal(_descriptor(sys.stderr))
    prefix = f"<{priority_of(logging.ERROR)}>" if to_journal else "fm-consumer: "
    for line in redact(str(error)).splitlines():
        click.echo(f"{prefix}{safe(line)}", err=True)


def note(line: str) -> None:
    """Print *line*, which is no error, to standard error."""
    click.echo(f"fm-consumer: {safe(line)}", err=True)


def abandon_output(error: OSError) -> None:
    """Say that standard output cannot be written, and drop the text that waits for it."""
    # The interpreter would try again to write it, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    complain(OSError(f"standard output cannot be written: {error.strerror}"))


def _descriptor(stream: Any) -> int:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return -1


def safe(text: str) -> str:
    """Make *text* one line that does nothing to a terminal.

    Publishers write topics, bodies and ids; unprintable characters are shown escaped.
    """
    text = redact(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def safe_lines(text: str, indent: str = "") -> str:
    """As :func:`safe`, with the lines kept and each one indented."""
    lines = redact(text).split("\n")
    return "\n".join(f"{indent}{safe(line.expandtabs())}".rstrip() for line in lines)


# Seconds between two updates of a live line.
_TICK = 0.2
# Erases to the end of the line. It is no color: NO_COLOR must not take it away.
_ERASE = "\x1b[K"


class LiveLine:
    """One line of progress on a terminal, rewritten in place; elsewhere it shows nothing.

    Args:
        is_on: False to show nothing at all.
    """

    def __init__(self, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self._shown_at = -math.inf
        self._is_shown = False

    def show(self, text: Callable[[float], str]) -> None:
        """Show the *text* of now, in monotonic seconds, unless the line was shown just now."""
        now = time.monotonic()
        if self._is_on and now - self._shown_at >= _TICK and sys.stderr.isatty():
            self._shown_at, self._is_shown = now, True
            columns = shutil.get_terminal_size().columns
            click.echo(
                f"\r{fit(safe(text(now)), columns - 1)}{_ERASE}", nl=False, err=True, color=True
            )

    def clear(self) -> None:
        """Take the line away."""
        if self._is_shown:
            click.echo(f"\r{_ERASE}", nl=False, err=True, color=True)
        self._is_shown = False


def terminal_width() -> int | None:
    """Return the columns of the terminal; None if standard output is none."""
    if columns := os.environ.get("COLUMNS", ""):
        return int(columns) if columns.isdigit() and int(columns) else None
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        right: Numbers are flush right.
        gives_way: It is cut if the table is too wide.
        keep_end: Its beginning is cut, not its end: the end of a topic tells most.
    """

    title: str
    right: bool = False
    gives_way: bool = False
    keep_end: bool = False


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int | None
) -> list[str]:
    """Return the lines of a table, its head first, each at most *available* columns wide."""
    cells = [[safe(cell) for cell in row] for row in rows]
    titles = [column.title for column in columns]
    widths = [max(width(row[i]) for row in [titles, *cells]) for i in range(len(columns))]
    if available is not None:
        _shrink(columns, widths, available - len(_GAP) * (len(columns) - 1))
    return [_line(columns, widths, row) for row in [titles, *cells]]


def _shrink(columns: Sequence[Column], widths: list[int], available: int) -> None:
    # The widest of those that give way shrinks by one column, again and again.
    while sum(widths) > available:
        candidates = [i for i, c in enumerate(columns) if c.gives_way and widths[i] > _NARROWEST]
        if not candidates:
            return
        widths[max(candidates, key=lambda i: widths[i])] -= 1


def _line(columns: Sequence[Column], widths: Sequence[int], row: Sequence[str]) -> str:
    parts = []
    for column, columns_wide, cell in zip(columns, widths, row, strict=True):
        text = fit(cell, columns_wide, keep_end=column.keep_end)
        padding = " " * (columns_wide - width(text))
        parts.append(padding + text if column.right else text + padding)
    return _GAP.join(parts).rstrip()


def pairs(items: Iterable[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Return lines of names and values, the values below each other."""
    shown = [(safe(name), safe(value)) for name, value in items]
    widest = max((width(name) for name, _ in shown), default=0)
    return [
        f"{indent}{name}{' ' * (widest - width(name))}  {value}".rstrip() for name, value in shown
    ]


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a JSON document; with *indent* None on a line of its own."""
    click.echo(json_of(value, indent=indent))


def json_of(value: Any, *, indent: int | None = 2) -> str:
    """Write a JSON document without secrets; a number that JSON has not becomes text.

    Raises:
        RecursionError: It is nested too deeply.
    """
    shown = redacted(value)
    try:
        return json.dumps(shown, indent=indent, default=as_json, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(shown), indent=indent, default=as_json)


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list():
            return [_finite(inner) for inner in value]
    return value


def as_json(value: Any) -> Any:
    """Convert a value of an AMQP type that JSON does not have."""
    match value:
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
    return repr(value)


def title(text: str) -> str:
    """Make *text* stand out on a terminal."""
    return click.style(text, bold=True)


def faint(text: str) -> str:
    """Make *text* stand back on a terminal."""
    return click.style(text, dim=True)


def good(text: str) -> str:
    """Colour *text* as success."""
    return click.style(text, fg="green")


def doubtful(text: str) -> str:
    """Colour *text* as a warning."""
    return click.style(text, fg="yellow")


def bad(text: str) -> str:
    """Colour *text* as failure."""
    return click.style(text, fg="red")
