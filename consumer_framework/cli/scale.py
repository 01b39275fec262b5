# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer scale``: changes the number of an instance's workers on this host."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import click

from consumer_framework.core.text import plural

from . import options, terminal
from .exit_codes import epilog
from .options import JSON, complete_instance, instance_file, may_exist, no_such_instance
from .terminal import Command

# Commands import these when they run: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from consumer_framework.operate.scaling import ScaleStep

_INTERRUPTED = 130
# Against a slip of the finger; far more than a host has memory for.
_MOST = 1000
_WIDEST_ACTION = len("disable")


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer scale builds 3             # builds, builds_2 and builds_3
  fm-consumer scale builds 1 --dry-run   # what would be stopped and removed?
  fm-consumer scale builds 3 --json | jq '.steps[].action'
  fm-consumer status builds              # all of them, and their sum
"""
    + epilog("scale"),
)
@click.argument("name", shell_complete=complete_instance)
@click.argument("count", metavar="N", type=click.IntRange(1, _MOST))
@click.option("--dry-run", is_flag=True, help="Print the steps, and do nothing.")
@click.option(
    "--leave-deferred",
    is_flag=True,
    help="Remove a worker also while deferred messages, or published ones that are not sent, wait "
    "in its state directory, until it is back.",
)
@JSON
def scale(name: str, count: int, *, dry_run: bool, leave_deferred: bool, as_json: bool) -> None:
    """Run N workers of NAME on this host, which share its queues.

    The first worker is NAME itself, the others are NAME_2, NAME_3 and so on: instances of their
    own, with their own process, user, state directory and log, whose file NAME_2.toml is a
    symbolic link to NAME.toml. This command makes and removes the links, and
    enables, starts, stops and disables the services. It leaves alone all that is right already, so
    it also completes a command that was interrupted. It never touches a file that is no link to
    NAME.toml.

    A worker that goes finishes the messages in its handler, and gives the others back to the
    queue. It stays while messages that it has deferred, or published, wait in its state directory:
    nobody else would run or send them.
    """
    file = instance_file(name)
    if not may_exist(file):
        raise no_such_instance(name, file, otherwise="write that file first")
    from consumer_framework.adapters.systemd.systemctl import Systemctl, SystemctlError  # noqa: PLC0415
    from consumer_framework.operate import scaling  # noqa: PLC0415
    from consumer_framework.operate.scaling import ScalingError, plan  # noqa: PLC0415

    directory, services = options.CONFIGURATION_DIRECTORY, Systemctl()
    found = scaling.find_workers(directory, services, name, count, strict=not leave_deferred)
    steps = plan(found, count, leave_deferred=leave_deferred)
    _check_configuration(file, name, steps)
    if dry_run:
        _print(name, steps, as_json=as_json)
        return
    done: list[ScaleStep] = []
    tell = done.append if as_json else partial(_tell, name)
    runner = scaling.StepRunner(name, directory, services, tell, terminal.note)
    again = f"'fm-consumer scale {name} {count}' goes on where it was"
    try:
        runner.run(steps)
    except KeyboardInterrupt:
        click.echo(f"\nfm-consumer: interrupted; {again}", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    except SystemctlError as error:
        raise ScalingError(f"{error} When that is mended, {again}") from error
    if as_json:
        terminal.print_json({"name": name, "workers": count, "steps": [*map(asdict, done)]})
    else:
        click.echo(terminal.good(f"{name}: {plural(count, 'worker')}"))


def _check_configuration(file: Path, name: str, steps: Sequence[ScaleStep]) -> None:
    from consumer_framework.operate import scaling  # noqa: PLC0415
    from consumer_framework.operate.scaling import ScaleAction  # noqa: PLC0415
    from consumer_framework.runtime import state_files  # noqa: PLC0415
    from consumer_framework.runtime.assembly import access  # noqa: PLC0415
    from consumer_framework.settings.model import SINGLE_ACTIVE  # noqa: PLC0415

    starts = (
        step.instance for step in steps if step.action in (ScaleAction.LINK, ScaleAction.START)
    )
    added = [instance for instance in dict.fromkeys(starts) if instance != name]
    if not added:
        return
    settings = access.load_outside(file)
    scaling.refuse_unshareable(settings, str(file))
    for instance in added:
        access.require_credentials(file, instance)
    files = state_files.SYSTEM_STATE / name / state_files.CONSUMER_FILES
    if state_files.has_files(files):
        terminal.note(
            f"the consumer keeps files in {files}; each worker has a directory of its own, and "
            "sees no other worker's files"
        )
    for queue in scaling.standby_queues(settings):
        terminal.note(
            f"the queue {queue} has {SINGLE_ACTIVE}: one worker at a time gets its "
            "messages, the others stand by"
        )


def _print(name: str, steps: Sequence[ScaleStep], *, as_json: bool) -> None:
    if as_json:
        terminal.print_json({"name": name, "steps": [*map(asdict, steps)]})
        return
    for step in steps:
        _tell(name, step)
    if not steps:
        click.echo("nothing to do")


def _tell(name: str, step: ScaleStep) -> None:
    from consumer_framework.adapters.systemd.systemctl import unit_name  # noqa: PLC0415
    from consumer_framework.operate.scaling import ScaleAction  # noqa: PLC0415

    if step.action is ScaleAction.WARN:
        terminal.note(step.text)
        return
    service = unit_name(step.instance).removesuffix(".service")
    file = options.CONFIGURATION_DIRECTORY / f"{step.instance}.toml"
    details = {
        ScaleAction.LINK: f"{file} -> {name}.toml",
        ScaleAction.UNLINK: str(file),
        ScaleAction.STOP: f"{service}, which finishes what is in its handler",
        ScaleAction.CHECK: f"that {step.instance} has no deferred and no unsent message",
    }
    click.echo(f"{step.action:<{_WIDEST_ACTION}}  {details.get(step.action, service)}")
