# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer in-flight``: the messages that the handler of a running instance has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from consumer_framework.core.text import age, plural

from . import terminal
from .asking import ask
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, no_more, where, words
from .terminal import Column, Command

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.runtime.control.schema import MessageInFlight

_COLUMNS = (
    Column("AGE", right=True),
    Column("RUN", right=True),
    Column("SLOT"),
    Column("TOPIC", gives_way=True, keep_end=True),
    Column("MESSAGE", gives_way=True),
    Column("IN", gives_way=True),
)


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer in-flight sample
  fm-consumer in-flight sample --json | jq '.messages[] | select(.age > 60)'
"""
    + epilog("in-flight"),
)
@words("INSTANCE")
@CONF
@STATE_DIR
@JSON
def in_flight(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """List the messages that the handler of a running instance has, the longest first.

    RUN is the number of this run of the handler on the message, and IN the function of your
    consumer that it is in.
    """
    from consumer_framework.runtime.control.schema import InFlight, document_of  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    report = ask(at, InFlight(), "nothing is in flight now")
    if as_json:
        terminal.print_json(document_of(report))
        return
    if not report.messages:
        click.echo("the handler has no message")
        return
    width = terminal.terminal_width()
    head, *lines = terminal.table(_COLUMNS, [*map(_cells, report.messages)], width)
    click.echo(terminal.title(head))
    for line in lines:
        click.echo(line)
    click.echo(f"\n{plural(len(report.messages), 'message')}")


def _cells(message: MessageInFlight) -> list[str]:
    return [
        age(message.age),
        str(message.attempt),
        message.slot or "-",
        message.topic,
        message.message_id or f"row {message.row}",
        message.place,
    ]
