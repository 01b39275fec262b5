# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer status``: how the instances of this host are, workers by their name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options, output
from .options import JSON, complete_instance, instance_file
from .output import Command, Refusal

# `run` needs what these import: --help and shell completion must be quick.
if TYPE_CHECKING:
    from consumer_framework.host.census import Census

# As systemctl(1) and the LSB have it.
_NOT_ALL_ACTIVE = 3
_UNKNOWN = 4


class _Unknown(Refusal):
    """There is no such instance."""

    exit_code = _UNKNOWN


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer status                 # all of this host
  fm-consumer status builds          # builds, builds_2, ... and their sum
  fm-consumer status builds_2        # that worker alone
  fm-consumer status --json | jq '.groups[].totals'
  fm-consumer status sample --state-dir ./state    # as given to 'fm-consumer run'
\b
Exit code, as of 'systemctl status': 0 if all are active; 3 if one is not; 4 if there is no such
instance. Without NAME, one that is disabled and was stopped is shown and does not count.
""",
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_instance)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Where the one instance NAME keeps its state, as given to 'fm-consumer run'.",
)
@JSON
def status(names: tuple[str, ...], state_dir: Path | None, *, as_json: bool) -> None:
    """Show how instances are: each NAME with its workers, or all of this host.

    The state is systemd's. What was handled, what runs and what waits the instance tells itself,
    which takes root or its own user; of one that does not answer, the journal tells what is
    deferred and quarantined. One that was started by hand is found in its state directory; its
    NAME is that of its configuration file, without .toml.
    """
    if state_dir and len(names) != 1:
        raise click.UsageError("--state-dir needs the NAME of one instance")
    for name in names:
        # Refuses what no instance can be called.
        instance_file(name)
    from consumer_framework.adapters.systemctl import Systemctl  # noqa: PLC0415
    from consumer_framework.host import census  # noqa: PLC0415

    found = census.take(names, options.CONFIGURATION_DIRECTORY, Systemctl(), state_dir)
    _refuse_unknown(found, names)
    _show(found, as_json=as_json)
    counted = (one for one in found.instances if names or one.should_run)
    if not all(instance.is_active for instance in counted):
        raise click.exceptions.Exit(_NOT_ALL_ACTIVE)


def _refuse_unknown(found: Census, names: tuple[str, ...]) -> None:
    unknown = [one.name for one in found.instances if one.name in names and not one.is_known]
    if unknown:
        known = ", ".join(options.instance_names())
        cure = f"the instances here are {known}" if known else "'fm-consumer run --help' tells more"
        raise _Unknown(f"there is no instance {unknown[0]!r}; {cure}")


def _show(found: Census, *, as_json: bool) -> None:
    from . import status_views  # noqa: PLC0415

    if as_json:
        output.print_json(status_views.document(found))
        return
    if not found.groups:
        click.echo(f"no instance is configured in {options.CONFIGURATION_DIRECTORY}, and none runs")
    now = time.time()
    for name, group in found.groups.items():
        for line in status_views.group_lines(name, group, now):
            click.echo(line)
    if found.problem:
        click.echo(output.faint(f"\nsystemd was not asked: {output.safe(found.problem)}"))
