# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer check``: finds errors and possible losses of messages before a start."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.text import plural
from consumer_framework.operate.check.findings import Level, Report, error

from . import terminal
from .exit_codes import epilog
from .options import CONFIGURATION_DIRECTORY, JSON, STATE_DIR, complete_instance, configuration_file
from .terminal import Command

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.operate.check.findings import Finding


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer check sample                 before systemctl start fm-consumer@sample
  fm-consumer check sample --broker        also before the first start, or a move
  fm-consumer check --conf sample.toml --strict --json    in a pipeline
  fm-consumer check --json-schema >sample.schema.json    for an editor that completes keys
"""
    + epilog("check"),
)
@click.argument("name", required=False, shell_complete=complete_instance)
@click.option(
    "--conf",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check this file instead. Without NAME and --conf, the file that 'run' would read.",
)
@click.option("--callback", default="", metavar="MODULE:OBJECT", help="As for 'run'.")
@click.option("--callback-file", default="", metavar="FILE.py:OBJECT", help="As for 'run'.")
@STATE_DIR
@click.option(
    "--broker",
    is_flag=True,
    help="Connect to the broker too, as the instance would, and look at its queues and exchanges. "
    "Nothing is made, changed or consumed.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 where there are warnings.")
@JSON
@click.option(
    "--json-schema",
    is_flag=True,
    help="Print the JSON schema of a configuration file, for editors, and check nothing.",
)
@click.pass_context
def check(  # noqa: PLR0913, PLR0917 -- one for each option
    context: click.Context,
    name: str | None,
    conf: Path | None,
    callback: str,
    callback_file: str,
    state_dir: Path | None,
    *,
    broker: bool,
    strict: bool,
    as_json: bool,
    json_schema: bool,
) -> None:
    """Check that an instance will work, and name the risks that lie outside the guarantee.

    NAME is an instance, as for 'run'. Each line names a file, the key in it, the problem and its
    cure: an error keeps the instance from its work; a warning names a way in which the broker, the
    disk or a certificate may lose messages. The configuration, the callback with its Config, the
    rules, the message schemas, the state directory and TLS files are checked. The author's module
    is imported; its class is not made, and nothing is started.
    """
    if json_schema:
        from consumer_framework.settings import schema  # noqa: PLC0415 -- --help must be quick

        terminal.print_json(schema.json_schema())
        return
    try:
        file = configuration_file(name, conf)
    except ConfigurationError as refused:
        report = Report(str(name), tuple(error(problem) for problem in refused.problems))
    else:
        instance = name or (file.stem if file else "default")
        as_service = name is not None or (file is not None and _is_systems(file))
        told = (file, callback, callback_file)
        report = _look(told, instance, state_dir, as_service=as_service, broker=broker)
    exit_code = report.exit_code(strict=strict)
    if as_json:
        terminal.print_json(document(report, exit_code))
    else:
        for line in (*map(_line, report.findings), _verdict(report, exit_code)):
            click.echo(line)
    context.exit(exit_code)


def _look(
    told: tuple[Path | None, str, str],
    instance: str,
    state_dir: Path | None,
    *,
    as_service: bool,
    broker: bool,
) -> Report:
    # Late: the reactor must be installed before anything imports it, and --help must be quick.
    from consumer_framework.runtime import reactor  # noqa: PLC0415

    reactor.install()
    from consumer_framework.operate.check import all_checks  # noqa: PLC0415
    from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415

    options = RunOptions(*told, instance=instance, state_directory=state_dir)
    # Authors' modules may print; that is no part of the report.
    with redirect_stdout(sys.stderr):
        return all_checks.check(options, as_service=as_service, ask_broker=broker)


def _is_systems(file: Path) -> bool:
    # In the directory of ``fm-consumer@.service``.
    return file.absolute().parent == CONFIGURATION_DIRECTORY


_COLOURS = {Level.ERROR: terminal.bad, Level.WARNING: terminal.doubtful, Level.INFO: terminal.faint}


def _line(finding: Finding) -> str:
    problem = finding.problem
    level = _COLOURS[finding.level](f"{finding.level.value}:")
    line = f":{problem.line}" if problem.line else ""
    place = f"{problem.source}{line}: " if problem.source else ""
    return f"{level} {terminal.safe(f'{place}{problem}')}"


def _verdict(report: Report, exit_code: int) -> str:
    said = " and ".join(_counts(report)) or "nothing is wrong"
    if report.count(Level.ERROR):
        end = terminal.bad(f"it cannot run (exit code {exit_code})")
    elif exit_code:
        end = terminal.bad(f"refused by --strict (exit code {exit_code})")
    else:
        end = terminal.good("it can start")
    return f"{terminal.safe(report.subject)}: {said}: {end}"


def _counts(report: Report) -> Iterator[str]:
    for level in (Level.ERROR, Level.WARNING):
        if count := report.count(level):
            yield plural(count, level.value)


def document(report: Report, exit_code: int) -> dict[str, Any]:
    """Return the report as JSON has it."""
    return {
        "subject": report.subject,
        "exit_code": int(exit_code),
        "errors": report.count(Level.ERROR),
        "warnings": report.count(Level.WARNING),
        "findings": [
            {
                "level": finding.level.value,
                "source": finding.problem.source or None,
                "line": finding.problem.line or None,
                "path": finding.problem.path or None,
                "message": finding.problem.message,
                "cure": finding.problem.cure or None,
            }
            for finding in report.findings
        ],
    }
