# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer pause``: a running instance takes no more messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from consumer_framework.core.text import plural

from . import terminal
from .asking import ask
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, where, words
from .terminal import Command, safe

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.runtime.control.schema import GateReport, Pause, Resume

    from .options import Where


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer pause sample --reason "the database moves, ticket 4711"
  fm-consumer pause builds builds_2
  fm-consumer quarantine replay sample --first 1   # a replay runs during a pause
  fm-consumer resume sample
"""
    + epilog("pause"),
)
@words("INSTANCE...")
@CONF
@STATE_DIR
@click.option("--reason", default="", metavar="TEXT", help="For the log and for the status.")
@JSON
def pause(
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    reason: str,
    as_json: bool,
) -> None:
    """Let running instances take no more messages.

    Messages that the handler has are finished. Others go back to their queue, and deferred ones
    stay in the store. `fm-consumer resume` ends the pause, and so does a restart; a reload does
    not.
    """
    from consumer_framework.runtime.control.schema import Pause  # noqa: PLC0415

    order(instances_of(words, conf, state_dir), Pause(reason), as_json=as_json)


def instances_of(words: tuple[str, ...], conf: Path | None, state_dir: Path | None) -> list[Where]:
    """Return the instances that the arguments of a command name, one or several.

    Raises:
        click.UsageError: The arguments contradict each other.
        ConfigurationError: No instance can have such a name.
    """
    if conf and words:
        raise click.UsageError("give either INSTANCE or --conf, not both")
    if state_dir and len(words) > 1:
        raise click.UsageError("--state-dir needs one INSTANCE")
    return [where([word], None, state_dir) for word in words] or [where([], conf, state_dir)]


def order(instances: list[Where], request: Pause | Resume, *, as_json: bool) -> None:
    """Send *request* to each instance, and print what keeps it from taking messages."""
    from consumer_framework.runtime.control.schema import document_of  # noqa: PLC0415

    otherwise = "a restart ends a pause"
    reports = []
    for at in instances:
        report = ask(at, request, otherwise)
        reports.append({"instance": at.instance, **document_of(report)})
        if not as_json:
            click.echo(f"{at.instance}: {_text(report)}")
    if as_json:
        terminal.print_json({"instances": reports})


def _text(report: GateReport) -> str:
    if not report.reasons:
        return terminal.good("takes messages")
    left = f"; {plural(report.running, 'message')} to finish" if report.running else ""
    return terminal.doubtful(f"paused: {safe('; '.join(report.reasons))}{left}")
