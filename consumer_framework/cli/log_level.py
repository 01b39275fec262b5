# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer log-level``: a running instance logs more, or less, for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from consumer_framework.core.text import moment

from . import terminal
from .asking import ask
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, duration, where, words
from .terminal import Command, Refusal, safe

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LONGEST = 86400.0


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer log-level sample DEBUG                          # for 10 minutes
  fm-consumer log-level sample DEBUG --for 1h --logger requests
  fm-consumer log-level sample WARNING --for 30s --json | jq .former
"""
    + epilog("log-level"),
)
@words("INSTANCE LEVEL")
@CONF
@STATE_DIR
@click.option(
    "--for",
    "seconds",
    default="10m",
    show_default=True,
    callback=duration,
    metavar="DURATION",
    help="Its former level comes back after so long, such as 30s, 10m or 1h; a day at most.",
)
@click.option("--logger", default="", metavar="NAME", help="This logger alone. Default: all.")
@JSON
def log_level(  # noqa: PLR0913 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    seconds: float,
    logger: str,
    as_json: bool,
) -> None:
    """Let a running instance log with another level for a while.

    LEVEL is DEBUG, INFO, WARNING, ERROR or CRITICAL. A handler of [log_config] that has a level of
    its own keeps it. Only root and the user of the instance may do this: details may show the
    contents of messages.
    """
    from consumer_framework.runtime.control.schema import LogLevel, document_of  # noqa: PLC0415

    at = where(words, conf, state_dir)
    if len(at.rest) != 1 or at.rest[0].upper() not in _LEVELS:
        raise click.UsageError(f"name one LEVEL: {', '.join(_LEVELS)}")
    if not 0 < seconds <= _LONGEST:
        raise Refusal("--for takes a duration up to a day, such as 10m")
    level = at.rest[0].upper()
    # Checked above.
    request = LogLevel(level, seconds, logger)  # type: ignore[arg-type]
    report = ask(at, request, "its level is as configured when it starts")
    if as_json:
        terminal.print_json(document_of(report))
        return
    what = safe(report.logger) or "everything"
    click.echo(
        f"{at.instance}: {what} is logged from {report.level} up until {moment(report.until)}"
    )
