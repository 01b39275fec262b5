# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine expire``: what is too old, in instances that are stopped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.settings import instance_name_problem

from . import options, output
from .options import CONF, JSON, STATE_DIR, no_more, where, words
from .output import Command, plural

# The journal brings half of what `run` needs: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

    from .options import Where

_FAILED = 1


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine expire            # all instances of this host
  fm-consumer quarantine expire sample
\b
Exit code: 0 if it is done, 1 if an instance's messages could not be looked at or exported.
""",
)
@words("[INSTANCE]...")
@CONF
@STATE_DIR
@JSON
def expire(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Export and delete what is quarantined for longer than quarantine_max_age.

    Messages go to expired.jsonl beside the journal, as lines of JSON. An instance that runs does
    so itself, every hour; this is for those that are stopped, and fm-consumer-retention.timer
    calls it once a day. Without INSTANCE it looks at all that have a file in
    /etc/fedora-messaging.
    """
    if conf or state_dir:
        places = [where(words, conf, state_dir)]
        no_more(places[0])
    else:
        places = [where((name,), None, None) for name in words or _instances()]
    done = [_expire(at) for at in places]
    if as_json:
        output.print_json(done)
    else:
        _tell(done)
    if any(one["problem"] for one in done):
        raise click.exceptions.Exit(_FAILED)


def _instances() -> list[str]:
    return [name for name in options.instance_names() if not instance_name_problem(name)]


def _expire(at: Where) -> dict[str, Any]:
    from consumer_framework.host import retention  # noqa: PLC0415

    told: dict[str, Any] = {"instance": at.instance, "expired": 0, "file": None}
    told |= {"running": False, "problem": ""}
    try:
        result = retention.expire(at.instance, at.file, at.directory, time.time())
    except FrameworkError as error:
        # The others have messages too.
        return {**told, "problem": str(error)}
    file = str(result.file) if result.rows else None
    return {**told, "expired": result.rows, "file": file, "running": result.is_running}


def _tell(done: list[dict[str, Any]]) -> None:
    for one in done:
        if one["problem"]:
            output.complain(FrameworkError(f"{one['instance']}: {one['problem']}"))
        elif one["expired"]:
            count = plural(one["expired"], "message")
            click.echo(f"{one['instance']}: {count} expired to {output.safe(one['file'])}")
        elif one["running"]:
            click.echo(f"{one['instance']}: runs, and looks itself every hour")
    if not any(one["expired"] or one["problem"] for one in done):
        click.echo("nothing is too old")
