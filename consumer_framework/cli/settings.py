# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer settings``: the settings that an instance has, or would have after a start."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from . import terminal
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, may_exist, no_more, no_such_instance, where, words
from .terminal import Command, safe

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consumer_framework.settings.listing import Setting

    from .options import Where


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer settings sample
  fm-consumer settings sample --changed           # those that are not the default
  fm-consumer settings sample --json | jq -r '.settings[] | select(.takes == "restart").path'
"""
    + epilog("settings"),
)
@words("INSTANCE")
@CONF
@STATE_DIR
@click.option("--changed", is_flag=True, help="Only settings that differ from their default.")
@JSON
def settings(
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    changed: bool,
    as_json: bool,
) -> None:
    """Show the settings of an instance, with their defaults and without secrets.

    A running instance tells those in force, also where its file has changed since. Where it is
    stopped, the settings are those of its file.
    """
    at = where(words, conf, state_dir)
    no_more(at)
    running = _in_force(at)
    found = _of_file(at) if running is None else running
    shown = [one for one in found if not (changed and one.is_default)]
    if as_json:
        document = [asdict(one) for one in shown]
        terminal.print_json(
            {"instance": at.instance, "in_force": running is not None, "settings": document}
        )
        return
    for one in shown:
        click.echo(_line(one))
    if running is None:
        click.echo(f"\n{at.instance} does not run; these are the settings of {at.file}", err=True)


def _in_force(at: Where) -> Sequence[Setting] | None:
    """Ask the instance; return None if it does not run."""
    from consumer_framework.runtime.control.client import connected  # noqa: PLC0415
    from consumer_framework.runtime.control.schema import ListSettings  # noqa: PLC0415

    with connected(at.directory, at.instance) as client:
        if client is None:
            return None
        [report] = client.ask(ListSettings(), "its settings are those of its file")
        return report.settings


def _of_file(at: Where) -> Sequence[Setting]:
    from consumer_framework.adapters import config  # noqa: PLC0415
    from consumer_framework.runtime.assembly.access import from_outside  # noqa: PLC0415
    from consumer_framework.settings import settings_of  # noqa: PLC0415

    if not may_exist(at.file):
        raise no_such_instance(at.instance, at.file)
    return settings_of(config.load(at.file, access=from_outside(at.file, at.instance)))


def _line(one: Setting) -> str:
    value = safe(one.value) or "(none)"
    if one.is_default:
        return terminal.faint(f"{one.path} = {value}")
    default = terminal.faint(f"  (default: {safe(one.default)})") if one.default else ""
    return f"{one.path} = {value}{default}"
