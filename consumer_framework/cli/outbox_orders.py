# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of ``fm-consumer outbox`` that change rows: retry, discard and purge."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.text import plural

from . import terminal
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, no_more, where, words
from .outbox_selection import Selection, command, filters, opened, selection
from .terminal import Command

# The store is imported late: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .options import Where

# Rows that one order to the database changes; a terminal shows the progress of more.
_PORTION = 1000

_STATE = click.option(
    "--state",
    type=click.Choice(["waiting", "dead", "any"]),
    default="dead",
    show_default=True,
    help="Of the rows that are not named by their numbers: those in this state.",
)
_YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox retry web 41 42
  fm-consumer outbox retry web --all                        # all dead ones
  fm-consumer outbox retry web --state waiting --all        # do not wait for the next attempt
  fm-consumer outbox retry web --topic 'org.fedoraproject.*.pdc.*'
"""
    + epilog("outbox retry"),
)
@words("NAME [ROW]...")
@CONF
@STATE_DIR
@_STATE
@filters
@click.option("--all", "everything", is_flag=True, help="All in that state.")
@JSON
def retry(  # noqa: PLR0913 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    state: str,
    everything: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Let messages be sent at once: dead ones wait again, and delayed ones wait no longer.

    A relay sends them, in the order of their publication. Rows that a relay is sending are left
    alone.
    """
    at = where(words, conf, state_dir)
    wanted = selection(at, state, everything=everything, **chosen)
    with opened(at) as store:
        numbers = [row.row for row in wanted.rows(store)]
        done = _in_portions(numbers, store.retry, quiet=as_json)
    _tell(at, "to be sent", numbers, done, as_json=as_json)


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox export web --state dead --output dead.jsonl
  fm-consumer outbox discard web 41 42
  fm-consumer outbox discard web --topic 'org.example.test.*' --state any
"""
    + epilog("outbox discard"),
)
@words("NAME [ROW]...")
@CONF
@STATE_DIR
@_STATE
@filters
@click.option("--all", "everything", is_flag=True, help="All in that state.")
@_YES
@JSON
def discard(  # noqa: PLR0913 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    state: str,
    everything: bool,
    yes: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Delete messages that were not sent, for ever. Asks before it does; 'export' keeps a copy.

    Rows that a relay is sending are left alone.
    """
    at = where(words, conf, state_dir)
    wanted = selection(at, state, everything=everything, **chosen)
    _discard(at, wanted, yes=yes, as_json=as_json)


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox purge web --older-than 30d
  fm-consumer outbox purge web --older-than 30d --yes      # for a timer
"""
    + epilog("outbox purge"),
)
@words("NAME")
@CONF
@STATE_DIR
@filters
@click.option("--all", "everything", is_flag=True, help="All dead ones.")
@_YES
@JSON
def purge(  # noqa: PLR0913 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Delete dead messages that are old, for ever. Asks before it does.

    Messages that wait to be sent are never deleted by it.
    """
    at = where(words, conf, state_dir)
    no_more(at)
    wanted = selection(at, "dead", everything=everything, **chosen)
    _discard(at, wanted, yes=yes, as_json=as_json)


def _discard(at: Where, wanted: Selection, *, yes: bool, as_json: bool) -> None:
    with opened(at) as store:
        rows = [(row.row, row.state) for row in wanted.rows(store)]
        if rows and not yes:
            unsent = sum(state == "waiting" for _, state in rows)
            waiting = f" ({unsent:,} of them still to be sent)" if unsent else ""
            what = f"Delete {plural(len(rows), 'message')}{waiting} of {at.instance} for ever?"
            click.confirm(what, abort=True, err=True)
        numbers = [number for number, _ in rows]
        done = _in_portions(numbers, store.discard, quiet=as_json)
    _tell(at, "deleted", numbers, done, as_json=as_json)


def _in_portions(
    numbers: Sequence[int], order: Callable[[Sequence[int]], int], *, quiet: bool
) -> int:
    """Give *order* the rows by portions; return the number of rows that it changed."""
    portions = [numbers[at : at + _PORTION] for at in range(0, len(numbers), _PORTION)]
    if quiet or len(portions) <= 1 or not sys.stderr.isatty():
        return sum(order(portion) for portion in portions)
    done = 0
    with click.progressbar(length=len(numbers), show_pos=True, file=sys.stderr) as bar:
        for portion in portions:
            done += order(portion)
            bar.update(len(portion))
    return done


def _tell(at: Where, what: str, numbers: Sequence[int], done: int, *, as_json: bool) -> None:
    kept = len(numbers) - done
    if as_json:
        terminal.print_json({"selected": len(numbers), "changed": done, "kept": kept})
        return
    if not numbers:
        click.echo("nothing fits: nothing was changed")
        return
    click.echo(f"{plural(done, 'message')} {what}")
    if kept:
        text = f"{plural(kept, 'message')} left alone: a relay is sending, or has sent, them"
        click.echo(terminal.doubtful(text))
        click.echo(f"See: {terminal.faint(command(at, 'list'))}")
