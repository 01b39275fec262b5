# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line. A subcommand imports its modules when it runs, so that --help is quick."""

from __future__ import annotations

import errno
import logging
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from consumer_framework.adapters import log
from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault
from consumer_framework.settings import Overrides

from .exit_codes import epilog
from .options import DEFAULT_FILE, complete_instance, configuration_file
from .terminal import abandon_output, complain

# The errors of a standard output that takes no more, and the exit code for them (EX_IOERR of
# sysexits(3)).
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_NO_OUTPUT = 74

# The commands by their purpose, each with its line in `fm-consumer --help`.
_SECTIONS = {
    "Run": {
        "run": "Consume messages until told to stop.",
        "check": "Find out if an instance will work, and name its risks.",
        "settings": "Show the settings of an instance, with their defaults.",
        "reload": "Let running instances read their configuration again.",
        "scale": "Run several workers that share the queues of an instance.",
        "units": "Install the systemd units, where fm-consumer came with pip.",
    },
    "Watch": {
        "status": "Show the state of instances.",
        "top": "Show instances live, the most urgent first.",
        "web": "Serve a page that shows the instances of this host.",
        "logs": "Show the log of instances.",
        "metrics": "Print the metrics of instances for Prometheus.",
        "events": "Print the events of a running instance as they happen.",
        "in-flight": "List the messages that the handler has now.",
        "stacks": "Show the function that each thread and task is in.",
        "tail": "Show messages as they are published, and take none.",
    },
    "Repair": {
        "quarantine": "Look at messages that were set aside; replay, edit, drop.",
        "explain": "Predict the fate of a message whose handler raises an error.",
        "pause": "Let running instances take no more messages.",
        "resume": "End that pause.",
        "log-level": "Let a running instance log more, or less, for a while.",
    },
    "Publish": {
        "publish": "Publish messages of a file, or one message.",
        "outbox": "Send messages from an outbox; look at those that wait.",
    },
    "Write a consumer": {
        "new": "Make the project of a consumer.",
        "dev": "Run the consumer of a project on a private broker.",
        "replay": "Run a consumer on recorded messages, without a broker.",
        "record": "Record messages of a queue or a topic in a file.",
        "bindings": "Print the [[bindings]] that a consumer's routes need.",
        "schemas": "Show installed message schemas, and find missing ones.",
        "trigger": "Run a command for each message.",
    },
}
# All but `run` have a module of their name.
_IN_MODULES = frozenset(name for section in _SECTIONS.values() for name in section) - {"run"}


class _Commands(click.Group):
    """The commands, whose modules are imported when somebody asks for them: `run` needs none."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *_IN_MODULES])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _IN_MODULES:
            return super().get_command(context, name)
        module = name.replace("-", "_")
        command: click.Command = getattr(import_module(f"{__package__}.{module}"), module)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError as error:
            # An error of a file has the file's name; click reports a closed pipe.
            if error.filename is not None or error.errno not in _FULL:
                raise
            abandon_output(error)
            sys.exit(_NO_OUTPUT)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="consumer-framework")
def main() -> None:
    """Run fedora-messaging consumers as services, and publish messages.

    `fm-consumer COMMAND --help` explains a command, with examples.
    """
    log.hide_secrets()


_EXAMPLES_OF_RUN = """
\b
Examples:
  fm-consumer run sample                              # as fm-consumer@sample does
  fm-consumer run --conf sample.toml --state-dir ./state
  fm-consumer run --callback-file sample.py:Sample    # with fedora-messaging's defaults
"""


@main.command(
    epilog=_EXAMPLES_OF_RUN + epilog("run", "Any other code is one that the handler halted with.")
)
@click.argument("name", required=False, shell_complete=complete_instance)
@click.option(
    "--conf",
    type=click.Path(path_type=Path),
    help="Read this file instead. Without NAME and --conf, $FEDORA_MESSAGING_CONF names it; "
    f"without that, {DEFAULT_FILE} is read if it exists.",
)
@click.option(
    "--callback",
    default="",
    metavar="MODULE:OBJECT",
    help="Handle messages with this object, not with the file's 'callback'.",
)
@click.option(
    "--callback-file",
    default="",
    metavar="FILE.py:OBJECT",
    help="Handle messages with an object of this Python file.",
)
@click.option("--app-name", default="", help="How the broker's administrators see the connection.")
@click.option("--queue-name", default="", help="Consume from this queue alone.")
@click.option("--exchange", default="", help="Bind the queues to this exchange.")
@click.option(
    "--routing-key",
    multiple=True,
    help="Bind the queues with this key; may be given several times.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Keep quarantine and deferred messages here. Default: $STATE_DIRECTORY; without it "
    "/var/lib/fedora-messaging/NAME for root, ~/.local/state/fedora-messaging/NAME for others.",
)
@click.pass_context
def run(  # noqa: PLR0913, PLR0917 -- one for each option of `fedora-messaging consume`
    context: click.Context,
    name: str | None,
    conf: Path | None,
    callback: str,
    callback_file: str,
    app_name: str,
    queue_name: str,
    exchange: str,
    routing_key: tuple[str, ...],
    state_dir: Path | None,
) -> None:
    """Consume messages until told to stop.

    NAME is an instance: its configuration is /etc/fedora-messaging/NAME.toml, in the format of
    fedora-messaging. `systemctl start fm-consumer@NAME` runs this command as a service. On
    SIGTERM or SIGINT the running handlers finish, and other messages go back to the
    broker; a second signal does not wait for them. On SIGHUP it reads its file again, as
    `fm-consumer reload` tells it to.
    """
    # Late: the reactor must be installed before anything imports it, and --help must be quick.
    from consumer_framework.runtime import reactor  # noqa: PLC0415

    reactor.install()
    from consumer_framework.runtime import app  # noqa: PLC0415
    from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415

    overrides = Overrides(app_name, queue_name, exchange, routing_key)
    try:
        file = configuration_file(name, conf)
        instance = name or (file.stem if file else "default")
        exit_code = app.run(
            RunOptions(file, callback, callback_file, overrides, instance, state_dir)
        )
    except (ConfigurationError, Fault) as error:
        complain(error)
        tell_service_manager(error)
        exit_code = error.exit_code
    except click.ClickException:
        raise
    except Exception:
        logging.exception("please report this defect of consumer_framework")  # noqa: LOG015
        exit_code = ExitCode.UNEXPECTED
    context.exit(exit_code)


def tell_service_manager(error: Exception) -> None:
    """Let `systemctl status` and `fm-consumer status` say why the instance did not start."""
    from consumer_framework.adapters.systemd.notify import SystemdNotifier  # noqa: PLC0415

    first, *others = str(error).splitlines() or [type(error).__name__]
    more = f" (and {len(others)} more: see the log)" if others else ""
    with closing(SystemdNotifier()) as notifier:
        notifier.status(f"Not started: {first}{more}")
