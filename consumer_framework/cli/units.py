# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer units``: the systemd units, for an fm-consumer that no package brought."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import terminal
from .exit_codes import epilog
from .options import JSON
from .terminal import Command, Refusal

# Commands import these when they run: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.operate.units import Plan, UnitFile

_DIFFERENT = 1
_WIDEST_ACTION = len("remove")
# Where systemd as PID 1 says that it is there (sd_booted(3)).
RUNS = Path("/run/systemd/system")

ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    default=Path("/"),
    metavar="DIRECTORY",
    help="The root directory of the system; for images. systemd is not told then.",
)
DIRECTORY = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("/etc/systemd/system"),
    show_default=True,
    metavar="DIRECTORY",
    help="Where units are, on that system.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the steps, and do nothing.")


@click.group()
def units() -> None:
    """Install the systemd units, where fm-consumer came with pip.

    They run this very fm-consumer. Where a package owns fm-consumer@.service, as Fedora's
    fedora-messaging does, a drop-in makes it run this one.

    \b
    fm-consumer units install      after each installation and upgrade
    fm-consumer units diff         would that change anything?
    fm-consumer units show --names all files, also drop-ins for the usual needs
    """  # noqa: D301 -- click wants the backspace character


def _survey(root: Path, directory: Path) -> list[UnitFile]:
    from consumer_framework.operate.units import own_command, survey  # noqa: PLC0415

    if not directory.is_absolute():
        raise click.UsageError("--directory needs an absolute path")
    command = own_command()
    if command.is_relative_to(root):
        command = Path("/") / command.relative_to(root)
    return survey(str(command), root, directory)


@units.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer units install --dry-run
  fm-consumer units install && systemctl start fm-consumer@sample
  fm-consumer units install --root /mnt/image
"""
    + epilog("units install"),
)
@ROOT
@DIRECTORY
@DRY_RUN
@click.option("--force", is_flag=True, help="Replace files that were edited, or put there.")
@JSON
def install(root: Path, directory: Path, *, dry_run: bool, force: bool, as_json: bool) -> None:
    """Write the units, and have systemd read them.

    Files that are right already stay. A file that somebody edited, or put there, is in the way:
    nothing is written then.
    """
    from consumer_framework.operate import units  # noqa: PLC0415

    files = _survey(root, directory)
    needed = units.needed_by(units.own_command())
    if problems := list(units.hidden(needed)):
        raise units.UnitsError(*problems, units.CURE)
    for problem in units.unreadable(needed):
        terminal.note(problem)
    _do(units.plan_install(files, force=force), root, dry_run=dry_run, as_json=as_json)


@units.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer units uninstall --dry-run
  fm-consumer units uninstall
"""
    + epilog("units uninstall"),
)
@ROOT
@DIRECTORY
@DRY_RUN
@click.option("--force", is_flag=True, help="Also files that were edited, and while instances run.")
@JSON
def uninstall(root: Path, directory: Path, *, dry_run: bool, force: bool, as_json: bool) -> None:
    """Remove the units that 'install' wrote; files of others stay.

    Refuses while instances run: without their unit, systemd could not restart them.
    """
    from consumer_framework.adapters.systemd.systemctl import Systemctl, unit_name  # noqa: PLC0415
    from consumer_framework.operate import units  # noqa: PLC0415

    plan = units.plan_uninstall(_survey(root, directory), force=force)
    is_removal = any(action is units.UnitFileAction.REMOVE for action, _ in plan)
    if is_removal and root == Path("/") and RUNS.is_dir() and not force:
        relays = units.RELAY_TEMPLATE.replace("@", "@*")
        units.refuse_running(Systemctl().show([unit_name("*"), relays]).values())
    _do(plan, root, dry_run=dry_run, as_json=as_json)


_TOLD = "systemd has read its units again"


def _do(plan: Plan, root: Path, *, dry_run: bool, as_json: bool) -> None:
    from consumer_framework.operate.units import UnitFileAction, carry_out  # noqa: PLC0415

    told = "" if dry_run or not carry_out(plan) else _reload(root)
    if as_json:
        files = [{"path": str(file.path), "action": action.value} for action, file in plan]
        terminal.print_json({"files": files, "dry_run": dry_run, "systemd_told": told == _TOLD})
        return
    for action, file in plan:
        click.echo(f"{action:<{_WIDEST_ACTION}}  {terminal.safe(str(file.path))}")
    if all(action is UnitFileAction.KEEP for action, _ in plan):
        click.echo("nothing to do")
    if told:
        click.echo(told)


def _reload(root: Path) -> str:
    if root != Path("/"):
        return ""
    if not RUNS.is_dir():
        return "systemd does not run here; where it does, run: systemctl daemon-reload"
    from consumer_framework.adapters.systemd.systemctl import Systemctl  # noqa: PLC0415

    Systemctl().daemon_reload()
    return _TOLD


@units.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer units diff
  fm-consumer units diff --json | jq '.[].path'
"""
    + epilog("units diff"),
)
@ROOT
@DIRECTORY
@JSON
def diff(root: Path, directory: Path, *, as_json: bool) -> None:
    """Show the changes that 'install' would make, as a unified diff."""
    files = [file for file in _survey(root, directory) if not file.is_right]
    if as_json:
        terminal.print_json(
            [
                {"path": str(f.path), "found": f.found.value, "diff": "\n".join(f.difference())}
                for f in files
            ]
        )
    else:
        colours = {"+": terminal.good, "-": terminal.bad}
        for line in (terminal.safe(line) for file in files for line in file.difference()):
            colour = colours.get(line[:1])
            click.echo(colour(line) if colour else line)
    if files:
        raise click.exceptions.Exit(_DIFFERENT)


@units.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer units show --names
  fm-consumer units show memory.conf
  d=/etc/systemd/system/fm-consumer@sample.service.d
  mkdir -p $d && fm-consumer units show memory.conf > $d/memory.conf && systemctl daemon-reload
"""
    + epilog("units show"),
)
@click.argument("names", metavar="[FILE]...", nargs=-1)
@click.option("--names", "only_names", is_flag=True, help="Print the names of all files.")
@ROOT
@DIRECTORY
@JSON
def show(
    names: tuple[str, ...], root: Path, directory: Path, *, only_names: bool, as_json: bool
) -> None:
    """Print the files that 'install' writes; or these files, examples among them."""
    if only_names or names:
        texts = _shipped(names)
    else:
        files = _survey(root, directory)
        texts = {str(file.path): file.text for file in files if file.text is not None}
    if as_json:
        terminal.print_json([{"name": name, "text": text} for name, text in texts.items()])
        return
    for name, text in texts.items():
        if only_names:
            click.echo(name)
        else:
            # As `systemctl cat` does.
            click.echo(text if names else f"# {name}\n{text}", nl=bool(not names))


def _shipped(names: Sequence[str]) -> dict[str, str]:
    from consumer_framework.adapters.systemd.unit_files import shipped, with_command  # noqa: PLC0415
    from consumer_framework.operate.units import own_command  # noqa: PLC0415

    known, command = shipped(), str(own_command())
    chosen = [_one(name, known) for name in names] or known
    return {name: with_command(known[name], command) for name in chosen}


def _one(name: str, known: dict[str, str]) -> str:
    fitting = [one for one in known if name in (one, Path(one).name)]
    if len(fitting) != 1:
        raise Refusal(f"there is no unit file {name!r}; there are: {', '.join(known)}")
    return fitting[0]
