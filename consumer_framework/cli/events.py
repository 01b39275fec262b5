# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer events``: the events of a running instance, as they happen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from . import terminal
from .asking import running
from .exit_codes import epilog
from .options import CONF, STATE_DIR, no_more, where, words
from .terminal import Command, safe

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.runtime.control.schema import Happened, Missed, Watching

_KINDS = ("ran", "settled", "state", "paused")


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer events sample
  fm-consumer events sample --kind state --kind paused
  fm-consumer events sample --json | jq -c 'select(.result == "quarantine")'
"""
    + epilog("events"),
)
@words("INSTANCE")
@CONF
@STATE_DIR
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(_KINDS),
    help="Only these events. May be given several times. Default: all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def events(
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    kinds: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the events of a running instance as they happen, until Ctrl-C.

    "ran" is a run of the handler, "settled" its consequence for the message, "state" another state
    of the instance, and "paused" a pause or its end. The instance does not wait for this command:
    events that are printed too slowly are lost, and their number is printed.
    """
    from consumer_framework.runtime.control.schema import Events, document_of  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    with running(at) as client:
        client.wait_long()
        # click checked them.
        request = Events(kinds)  # type: ignore[arg-type]
        try:
            for answer in client.ask(request, "there are no more events"):
                if as_json:
                    terminal.print_json(document_of(answer), indent=None)
                else:
                    click.echo(_line(answer))
        except KeyboardInterrupt:
            raise click.exceptions.Exit(0) from None


def _line(answer: Watching | Happened | Missed) -> str:
    from consumer_framework.runtime.control.schema import Missed, Watching  # noqa: PLC0415

    if isinstance(answer, Watching):
        return terminal.faint(f"events of {safe(answer.watching)}; Ctrl-C ends this")
    if isinstance(answer, Missed):
        return terminal.doubtful(f"{answer.missed} events were lost: they came too quickly")
    when = time.strftime("%H:%M:%S", time.localtime(answer.at))
    parts = [answer.event.ljust(7), answer.result, answer.topic, answer.message_id]
    text = safe("  ".join(filter(None, parts)))
    return f"{when}  {text}  {safe(answer.reason)}".rstrip()
