# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer metrics``: the metrics of the instances and relays of this host."""

from __future__ import annotations

from pathlib import Path

import click

from . import terminal
from .exit_codes import epilog
from .options import JSON, complete_instance
from .terminal import Command, note

_NOT_ALL = 1


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer metrics                # all instances and relays of this host
  fm-consumer metrics sample | grep ^fm_consumer_lag
  fm-consumer metrics --json | jq '.[] | select(.name == "fm_consumer_up")'
  fm-consumer metrics --textfile /var/lib/prometheus/node-exporter
  systemctl enable --now fm-consumer-metrics.timer    # does that every minute
"""
    + epilog("metrics"),
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_instance)
@click.option(
    "--textfile",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIRECTORY",
    help="Write the file fm_consumers.prom there, for node-exporter's textfile collector.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Where the one instance NAME keeps its state, as given to 'fm-consumer run'.",
)
@JSON
def metrics(
    names: tuple[str, ...], textfile: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Print the metrics of instances, in Prometheus' text format.

    Each NAME stands for the instance and its workers. Without NAME, the metrics are those of all
    instances that run, or should, and of all relays. An instance that does not answer has
    fm_consumer_up 0, and the numbers of its store. To ask an instance takes root or its own user.

    Prometheus reads an instance with a [monitoring] port directly. Others it can read through
    node-exporter: --textfile writes a file for that.
    """
    from consumer_framework.operate import metrics as of_host  # noqa: PLC0415
    from consumer_framework.runtime.control.client import LOOK_TIMEOUT  # noqa: PLC0415

    from .status import look, refuse_unknown  # noqa: PLC0415

    if textfile is not None and as_json:
        raise click.UsageError("give either --json or --textfile, not both")
    host = look(names, state_dir, LOOK_TIMEOUT)
    refuse_unknown(host, names)
    relays = () if names else of_host.relay_sockets_on_host()
    found = of_host.gather(host, every=bool(names), state=state_dir, relays=relays)
    for problem in found.problems:
        note(problem)
    if textfile is not None:
        of_host.write(textfile, found.text())
    elif as_json:
        terminal.print_json(list(found.samples()))
    else:
        click.echo(found.text().decode(), nl=False)
    if found.problems:
        raise click.exceptions.Exit(_NOT_ALL)
