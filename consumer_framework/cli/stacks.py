# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer stacks``: the functions that the threads of a running instance are in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import terminal
from .asking import ask
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, no_more, where, words
from .terminal import Command, faint, safe, title

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.runtime.control.schema import Stack


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer stacks sample
  fm-consumer stacks sample --json | jq -r '.threads[].name'
"""
    + epilog("stacks"),
)
@words("INSTANCE")
@CONF
@STATE_DIR
@JSON
def stacks(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Show the functions that every thread and every task of a running instance is in.

    A handler runs in a thread "slot-N", or in a task if it is a coroutine. An instance whose event
    loop is blocked does not answer; its log names the function that blocks it.
    """
    from consumer_framework.runtime.control.schema import Stacks, document_of  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    report = ask(at, Stacks(), "it has no stacks now")
    if as_json:
        terminal.print_json(document_of(report))
        return
    for kind, found in (("Thread", report.threads), ("Task", report.tasks)):
        for stack in found:
            for line in _lines(kind, stack):
                click.echo(line)


def _lines(kind: str, stack: Stack) -> Iterator[str]:
    yield title(f"{kind} {safe(stack.name)}")
    for frame in stack.frames:
        yield f"  {safe(frame.function)}  {faint(f'{safe(frame.file)}:{frame.line}')}"
    yield ""
