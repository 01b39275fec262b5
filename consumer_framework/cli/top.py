# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer top``: the instances of this host, or of several, live in a terminal."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import terminal
from .exit_codes import epilog
from .options import (
    HOST,
    HOST_TIMEOUT,
    REMOTE,
    SSH,
    complete_instance,
    duration,
    instance_file,
    refuse_without_hosts,
)
from .terminal import Column, Command, Refusal

# Commands import these when they run: --help and shell completion must be quick.
if TYPE_CHECKING:
    from consumer_framework.operate.board import Board

    from .top_sources import Source

_COLUMNS = (
    Column("INSTANCE", gives_way=True),
    Column("STATE"),
    Column("RATE", right=True),
    Column("LAG", right=True),
    Column("AGE", right=True),
    Column("QUAR", right=True),
    Column("LOSS", right=True),
    Column("REASON", gives_way=True),
)


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer top                        # all instances of this host
  fm-consumer top builds                 # builds, builds_2, ...
  fm-consumer top --host web1,web2       # those of other hosts, over ssh
  fm-consumer top --once                 # a look, for a pipe or a mail
  fm-consumer status --json              # the same values for programs
"""
    + epilog("top"),
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_instance)
@click.option(
    "--interval",
    default="2s",
    metavar="TIME",
    callback=duration,
    help="Look again after this time. Default: 2s.",
)
@click.option("--once", is_flag=True, help="Print one look as text, and end.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Where the one instance NAME keeps its state, as given to 'fm-consumer run'.",
)
@HOST
@SSH
@REMOTE
@HOST_TIMEOUT
def top(  # noqa: PLR0913, PLR0917 -- one for each option
    names: tuple[str, ...],
    interval: float,
    state_dir: Path | None,
    hosts: tuple[str, ...],
    ssh: str,
    remote: str,
    timeout: float,
    *,
    once: bool,
) -> None:
    """Show instances live, the most urgent first.

    A line has the state of an instance, its rate and its lag with their recent past, the age of the
    oldest message that waits (AGE), the number of quarantined messages (QUAR), and the time to the
    next loss of messages (LOSS).

    Keys: the arrows choose an instance, Enter shows its messages in flight, its slowest handlers
    and its causes of failure, p pauses it, r resumes it, / filters, q quits. A question comes
    before each order.

    The screen needs the package textual: pip install 'consumer-framework[top]'.
    """
    refuse_without_hosts(hosts)
    if not once:
        _refuse_without_terminal()
    source = _source(names, state_dir, hosts, (ssh, remote, timeout))
    if once:
        _print(source)
        return
    from .top_screen import TopApp  # noqa: PLC0415

    TopApp(source, interval).run()


def _refuse_without_terminal() -> None:
    can_draw = os.environ.get("TERM", "dumb") != "dumb"
    if not (can_draw and sys.stdin.isatty() and sys.stdout.isatty()):
        cure = "use 'fm-consumer top --once', or 'fm-consumer status --json' for a program"
        raise Refusal(f"top draws in a terminal, and there is none; {cure}")
    if find_spec("textual") is None:
        cure = "pip install 'consumer-framework[top]', or use 'fm-consumer top --once'"
        raise Refusal(f"top needs the package textual, which is not installed; {cure}")


def _source(
    names: tuple[str, ...],
    state_dir: Path | None,
    hosts: tuple[str, ...],
    way: tuple[str, str, float],
) -> Source:
    for name in names:
        instance_file(name)
    from .status_of_hosts import way_of  # noqa: PLC0415
    from .top_sources import OtherHosts, ThisHost  # noqa: PLC0415

    if state_dir and (hosts or len(names) != 1):
        raise click.UsageError("--state-dir needs the NAME of one instance, and no --host")
    if hosts:
        return OtherHosts(hosts, names, way_of(*way))
    from .status import look, refuse_unknown  # noqa: PLC0415

    if names:
        refuse_unknown(look(names, state_dir), names)
    return ThisHost(names, state_dir)


def _print(source: Source) -> None:
    from consumer_framework.operate.board import Board  # noqa: PLC0415

    board = Board()
    board.add(source.rows())
    click.echo(terminal.safe(board.summary))
    for line in _lines(board):
        click.echo(line)


def _lines(board: Board) -> list[str]:
    from consumer_framework.operate.board import age_cell, rate_cell, short  # noqa: PLC0415

    cells = [
        [
            *(str(line.key), line.row.condition),
            *(rate_cell(line.row.rate), short(line.row.lag), age_cell(line.row.lag_seconds)),
            short(line.row.quarantined),
            age_cell(line.row.loss.seconds if line.row.loss else None),
            line.row.reason,
        ]
        for line in board.lines()
    ]
    head, *lines = terminal.table(_COLUMNS, cells, terminal.terminal_width())
    return [terminal.faint(head), *lines]
