# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer reload``: a running instance reads its configuration again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from . import terminal
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, may_exist, no_such_instance, where, words
from .terminal import Command, safe

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.runtime.control.schema import FileText, ReloadReport

    from .options import Where

REFUSED = 1
# The result for an instance that could not be asked.
NOT_RUNNING = "not running"
# Bytes; no configuration has as many, and a request has its limit.
_LONGEST_FILE = 128 << 10


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer reload sample
  fm-consumer reload builds builds_2          # each of them by itself
  fm-consumer reload sample --json | jq .instances[0].problems
  fm-consumer reload --conf ./test.toml       # as given to 'fm-consumer run'
"""
    + epilog("reload"),
)
@words("INSTANCE...")
@CONF
@STATE_DIR
@JSON
def reload(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Let running instances read their configuration again.

    The file is checked whole before anything changes. One that is wrong is refused, and the
    instance goes on as before. No message is lost or handled twice. Changes that take a restart
    are named, and wait for it. Python modules are not imported again: new code takes a
    restart, too. As root, the command hands over a file that only root may read.
    """
    if conf and words:
        raise click.UsageError("give either INSTANCE or --conf, not both")
    if state_dir and len(words) > 1:
        raise click.UsageError("--state-dir needs one INSTANCE")
    # Refuses impossible names before any instance reloads.
    instances = [where([word], None, state_dir) for word in words] or [where([], conf, state_dir)]
    reports = [(at, _reload(at, as_json=as_json)) for at in instances]
    if as_json:
        from consumer_framework.runtime.control.schema import document_of  # noqa: PLC0415

        found = [{"instance": at.instance, **document_of(report)} for at, report in reports]
        terminal.print_json({"instances": found})
    if any(report.result in {"refused", NOT_RUNNING} for _, report in reports):
        raise click.exceptions.Exit(REFUSED)


def _reload(at: Where, *, as_json: bool) -> ReloadReport:
    report = _ask(at, as_json=as_json)
    if not as_json:
        show(at, report)
    return report


def _ask(at: Where, *, as_json: bool) -> ReloadReport:
    from consumer_framework.runtime.control.client import (  # noqa: PLC0415
        ControlError,
        connected_to,
        sockets_for_operators,
    )
    from consumer_framework.runtime.control.schema import Reload, ReloadReport  # noqa: PLC0415

    with connected_to(sockets_for_operators(at.directory, at.instance)) as running:
        if running is None:
            return ReloadReport(NOT_RUNNING)
        running.wait_long()
        request = Reload(file_of(at))
        for answer in running.ask(request, "it reads the file when it is started again"):
            if isinstance(answer, ReloadReport):
                return answer
            if not as_json:
                click.echo(f"{at.instance}: {safe(answer.step)}", err=True)
    raise ControlError("the instance did not say what came of it; see its log (journalctl)")


def file_of(at: Where) -> FileText | None:
    """Return the file for an instance that runs as another user, if this user is root."""
    from consumer_framework.runtime.control.schema import FileText  # noqa: PLC0415

    if os.geteuid() != 0:
        return None
    try:
        data = at.file.read_bytes()
    except OSError:
        # The instance reports the problem of its file.
        return None
    if len(data) > _LONGEST_FILE:
        return None
    return FileText(str(at.file.absolute()), data.decode(errors="surrogateescape"))


def show(at: Where, report: ReloadReport) -> None:
    """Print the result of a reload."""
    match report.result:
        case "not running":
            _show_absence(at)
        case "refused":
            _complain(f"{at.instance} goes on with its old settings:")
            for problem in report.problems:
                source = f"{problem.source}: " if problem.source else ""
                _complain(f"  {source}{problem}")
        case _:
            _show_changes(at, report)


def _show_absence(at: Where) -> None:
    if may_exist(at.file):
        _complain(f"{at.instance} does not run; it reads {at.file} when it is started")
    else:
        terminal.complain(no_such_instance(at.instance, at.file))


def _show_changes(at: Where, report: ReloadReport) -> None:
    for note in report.notes:
        _complain(f"{at.instance}: {note}")
    if not report.changes:
        click.echo(f"{at.instance}: nothing has changed")
        return
    waiting = report.waiting
    for change in report.changes:
        if change not in waiting:
            click.echo(f"{at.instance}: {safe(str(change))}")
    for change in waiting:
        text = terminal.doubtful(safe(f"{change}: takes a restart"))
        click.echo(f"{at.instance}: {text}")
    click.echo(f"{at.instance}: {terminal.good('reloaded')}")


def _complain(text: str) -> None:
    click.echo(f"fm-consumer: {safe(text)}", err=True)
