# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer trigger``: runs a command for each message, without a configuration file."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.text import plural, seconds
from consumer_framework.settings import instance_name_problem

from .exit_codes import epilog
from .options import configuration_file
from .terminal import Command, note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consumer_framework.kit.trigger import Trigger

_INSTANCE = "trigger"

_MORE = """
\b
Examples:
  fm-consumer trigger --topic 'org.fedoraproject.prod.git.#' -- ./build.sh
  fm-consumer trigger --topic '#' --once -- jq .topic
  fm-consumer trigger --topic a.b --queue builds --timeout 10m -- make all
  fm-consumer trigger --topic '#' -- sh -c 'echo "$FM_TOPIC $FM_ID"'
\b
The command gets the message as one line of JSON on its standard input, and these variables:
  FM_ID FM_TOPIC FM_QUEUE FM_SCHEMA FM_SEVERITY FM_SENT_AT FM_ATTEMPT
\b
The exit code of the command decides:
   0  the message is done
  75  try it again later
  any other: a failure; the message is tried again, and set aside in the end
""" + epilog("trigger")


def _duration(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        if seconds(value) > 0:
            return value
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    raise click.BadParameter("must be longer than 0")


@click.command(cls=Command, epilog=_MORE)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option(
    "--topic",
    "topics",
    multiple=True,
    required=True,
    metavar="TOPIC",
    help="Take messages with this topic: * is one word, # any number of words. May be given "
    "several times.",
)
@click.option(
    "--queue",
    default="",
    metavar="NAME",
    help="Take them from this durable queue, which keeps messages while the command does not run. "
    "Default: a queue of its own, which ends with it.",
)
@click.option("--exchange", default="amq.topic", show_default=True, help="Bind the queue to it.")
@click.option(
    "--url",
    metavar="URL",
    help="The broker, as amqp://USER@HOST. Default: the one of --conf.",
)
@click.option(
    "--conf",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the broker, and the keys and certificates for it, from this configuration. Default: "
    "$FEDORA_MESSAGING_CONF, or /etc/fedora-messaging/config.toml, or the broker of this machine.",
)
@click.option(
    "--timeout",
    default="5m",
    show_default=True,
    callback=_duration,
    metavar="TIME",
    help="End the command after this time, such as 30s.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after N messages.")
@click.option("--once", is_flag=True, help="Stop after one message; the same as --count 1.")
@click.option(
    "--env",
    "environment",
    multiple=True,
    metavar="NAME",
    help="Give the command this variable too. It gets PATH, HOME and TERM, and no others.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Keep failed messages here. Default with --queue: as for an instance of that name; "
    "otherwise a temporary directory, which stays only if it has messages.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log what happens to each message.")
@click.option(
    "--print-config",
    is_flag=True,
    help="Print the configuration for a service that does the same, and run nothing.",
)
@click.pass_context
def trigger(  # noqa: PLR0913, PLR0917 -- one for each option
    context: click.Context,
    command: tuple[str, ...],
    topics: tuple[str, ...],
    queue: str,
    exchange: str,
    url: str | None,
    conf: Path | None,
    timeout: str,
    count: int | None,
    once: bool,  # noqa: FBT001 -- click passes it by its name
    environment: tuple[str, ...],
    state_dir: Path | None,
    verbose: bool,  # noqa: FBT001 -- click passes it by its name
    print_config: bool,  # noqa: FBT001 -- click passes it by its name
) -> None:
    """Run COMMAND for each message, without a configuration file.

    The messages come one after the other. Ctrl-C ends the running command, and its message goes
    back to the queue.
    """
    from consumer_framework.kit.trigger import Trigger  # noqa: PLC0415 -- see .main
    from consumer_framework.settings.toml_writer import to_toml  # noqa: PLC0415

    if once and count is not None:
        raise click.UsageError("give either --once or --count, not both")
    options = Trigger(
        topics=topics,
        command=command,
        connection=_connection(url, configuration_file(None, conf)),
        queue=queue,
        exchange=exchange,
        timeout=timeout,
        count=1 if once else count,
        directory=str(Path.cwd()),
        environment=("PATH", "HOME", "TERM", *environment),
        log_level="INFO" if verbose else "WARNING",
    )
    if print_config:
        click.echo(to_toml(options.of_service()), nl=False)
        return
    context.exit(_run(options, _instance(queue), state_dir))


def _connection(url: str | None, file: Path | None) -> Mapping[str, Any]:
    from consumer_framework.adapters import config  # noqa: PLC0415 -- see .main
    from consumer_framework.kit.trigger import CONNECTION  # noqa: PLC0415

    written = config.read(file) if file is not None else {}
    found = {key: written[key] for key in CONNECTION if key in written}
    return {**found, "amqp_url": url} if url else found


def _run(options: Trigger, instance: str, state_dir: Path | None) -> int:
    from consumer_framework.runtime import reactor  # noqa: PLC0415
    from consumer_framework.settings.toml_writer import to_toml  # noqa: PLC0415 -- see .main

    reactor.install()
    from consumer_framework.runtime import app  # noqa: PLC0415
    from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415
    from consumer_framework.runtime.state_files import state_directory  # noqa: PLC0415

    # It may have a password: mkdtemp lets nobody else read it.
    temporary = Path(tempfile.mkdtemp(prefix="fm-trigger-"))
    own_state = None if options.queue else temporary / "state"
    state = state_dir or own_state or state_directory(instance, None)
    file = temporary / f"{instance}.toml"
    try:
        file.write_text(to_toml(options.document()), encoding="utf-8")
        return app.run(RunOptions(file, instance=instance, state_directory=state))
    except ConfigurationError as error:
        # Nobody has written the file, nor can mend it.
        problems = (replace(problem, source="") for problem in error.located)
        raise ConfigurationError(*problems) from error
    finally:
        _tidy(temporary, state, instance, keeps=state == own_state)


def _instance(queue: str) -> str:
    if not queue:
        return _INSTANCE
    if instance_name_problem(queue) is None:
        return queue
    what = f"{queue!r} is no name for a trigger"
    cure = 'use 1 to 28 of the characters a-z, A-Z, 0-9, "_" and "-"'
    raise ConfigurationError(Problem("--queue", what, cure))


def _tidy(temporary: Path, state: Path, instance: str, *, keeps: bool) -> None:
    """Remove the temporary directory, unless failed messages are in it, and report these."""
    from consumer_framework.runtime.state_files import count_stored, has_files  # noqa: PLC0415

    stored = count_stored(state) if has_files(state) else None
    waiting = stored.quarantined + stored.deferred if stored is not None else 0
    if not (waiting and keeps):
        shutil.rmtree(temporary, ignore_errors=True)
    if waiting:
        list_them = f"fm-consumer quarantine list {instance} --state-dir {state}"
        note(f"{plural(waiting, 'message')} failed: {list_them}")
