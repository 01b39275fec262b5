# SPDX-License-Identifier: GPL-2.0-or-later
"""The arguments and options that name an instance and its files."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from consumer_framework import settings
from consumer_framework.core import text
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.settings import instance_name_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem

    from consumer_framework.core.conditions import Condition

CONFIGURATION_DIRECTORY = settings.CONFIGURATION_DIRECTORY
# The file that fedora-messaging reads by default.
DEFAULT_FILE = CONFIGURATION_DIRECTORY / "config.toml"


def complete_instance(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    """Complete the name of an instance."""
    return [name for name in instance_names() if name.startswith(incomplete)]


def instance_names() -> list[str]:
    """Return the instances that have a configuration file on this machine."""
    return sorted(path.stem for path in CONFIGURATION_DIRECTORY.glob("*.toml"))


def instance_file(name: str) -> Path:
    """Return the configuration file of the instance *name*.

    Raises:
        ConfigurationError: No instance can have that name.
    """
    problem = instance_name_problem(name)
    if problem:
        raise ConfigurationError(problem)
    return CONFIGURATION_DIRECTORY / f"{name}.toml"


def configuration_file(name: str | None, conf: Path | None) -> Path | None:
    """Return the file that configures an instance; None for fedora-messaging's defaults.

    Raises:
        click.UsageError: Both *name* and *conf* are given.
        ConfigurationError: No instance can have that name.
    """
    if name is not None and conf:
        raise click.UsageError("give either NAME or --conf, not both")
    if name is not None:
        return instance_file(name)
    if conf:
        return conf
    if from_environment := os.environ.get("FEDORA_MESSAGING_CONF"):
        return Path(from_environment)
    return DEFAULT_FILE if may_exist(DEFAULT_FILE) else None


def may_exist(file: Path) -> bool:
    """Return True if *file* is there, or if this user may not look: its reader names the cause."""
    try:
        return file.exists()
    except PermissionError:
        return True


CONF = click.option(
    "--conf",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The instance is the one that was started with this configuration file, not one of "
    "/etc/fedora-messaging.",
)
STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Where it keeps its state, as given to 'fm-consumer run'. Default: $STATE_DIRECTORY; "
    "without it /var/lib/fedora-messaging/NAME for root, ~/.local/state/fedora-messaging/NAME "
    "for others.",
)
OUTPUT = click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to this new file, for this user's eyes only. Default: standard output.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def duration(
    _context: click.Context, _parameter: click.Parameter, given: str | None
) -> float | None:
    """Read a length of time, in seconds; a callback of options."""
    try:
        return None if given is None else text.seconds(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _read_hosts(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    from consumer_framework.operate.hosts import hosts_in  # noqa: PLC0415

    try:
        return tuple(hosts_in(given))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


HOST = click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST,...",
    callback=_read_hosts,
    help="Ask these hosts over ssh in place of this one: HOST or USER@HOST, with commas between "
    "them. May be given several times.",
)
SSH = click.option(
    "--ssh",
    default="",
    metavar="COMMAND",
    help="With --host: connect with this command, such as 'ssh -p 2222'. Default: ssh -n -o "
    "BatchMode=yes -o ConnectTimeout=5.",
)
REMOTE = click.option(
    "--remote",
    default="",
    metavar="COMMAND",
    help="With --host: the command there, such as 'sudo -n fm-consumer'. Default: fm-consumer.",
)
HOST_TIMEOUT = click.option(
    "--timeout",
    default="15s",
    metavar="TIME",
    callback=duration,
    help="With --host: a host must answer within this time. Default: 15s.",
)


def refuse_without_hosts(hosts: tuple[str, ...]) -> None:
    """Refuse the options that say how to reach hosts, if no host is named.

    Raises:
        click.UsageError: One of them is given, and *hosts* is empty.
    """
    source = click.get_current_context().get_parameter_source
    for name in ("ssh", "remote", "timeout"):
        if not hosts and source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} needs --host")


def _complete_topic(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from consumer_framework.kit.schema_packages import PACKAGES  # noqa: PLC0415

    topics = [f"org.fedoraproject.*.{word}.#" for word in PACKAGES]
    return ["#", *topics] if not incomplete else [t for t in topics if t.startswith(incomplete)]


def _read_conditions(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[Condition, ...]:
    from consumer_framework.core.conditions import ROOTS  # noqa: PLC0415

    return _conditions_of(given, ROOTS)


def _read_stored_conditions(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[Condition, ...]:
    from consumer_framework.core.conditions import STORED_ROOTS  # noqa: PLC0415

    return _conditions_of(given, STORED_ROOTS)


def _complete_word(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from consumer_framework.core.conditions import ROOTS  # noqa: PLC0415

    return [word for word in ROOTS if word.startswith(incomplete)]


def _complete_stored_word(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from consumer_framework.core.conditions import STORED_ROOTS  # noqa: PLC0415

    return [word for word in STORED_ROOTS if word.startswith(incomplete)]


def _conditions_of(given: Sequence[str], roots: Sequence[str]) -> tuple[Condition, ...]:
    from consumer_framework.core.conditions import ConditionError, condition_of  # noqa: PLC0415

    try:
        return tuple(condition_of(text, roots) for text in given)
    except ConditionError as error:
        raise click.BadParameter(str(error)) from None


def topics(what: str, more: str = "") -> Callable[[Any], Any]:
    """Declare ``--topic``, which selects messages; its parameter is ``topics``."""
    return click.option(
        "--topic",
        "topics",
        multiple=True,
        metavar="PATTERN",
        shell_complete=_complete_topic,
        help=f"{what}: '*' stands for one word, '#' for any number. May be given several times."
        f"{more}",
    )


def conditions(what: str, *, stored: bool = False) -> Callable[[Any], Any]:
    """Declare ``--where``, which selects messages; its parameter is ``conditions``.

    Args:
        what: The help text, up to an example.
        stored: Whether the messages are rows of a store, which have an error, a cause and an age.
    """
    example = "error~timeout or body.build.name=kernel" if stored else "body.build.name=kernel"
    return click.option(
        "--where",
        "conditions",
        multiple=True,
        metavar="CONDITION",
        callback=_read_stored_conditions if stored else _read_conditions,
        shell_complete=_complete_stored_word if stored else _complete_word,
        help=f"{what}, such as {example}. May be given several times: all must fit.",
    )


def words(metavar: str) -> Callable[[Any], Any]:
    """Declare the arguments of a command: an instance, unless --conf names one, and *metavar*."""
    return click.argument("words", nargs=-1, metavar=metavar, shell_complete=complete_instance)


@dataclass(frozen=True, slots=True)
class Where:
    """The instance that the arguments of a command name.

    Attributes:
        instance: Its name.
        file: Its configuration file.
        directory: Its state directory.
        rest: The arguments after it.
        spelled: The arguments that name it, for the next command line.
    """

    instance: str
    file: Path
    directory: Path
    rest: tuple[str, ...]
    spelled: str

    def command(self, verb: str, *more: object) -> str:
        """Return a command line to try next."""
        tail = " ".join(["", *(str(word) for word in more)]).rstrip()
        return f"fm-consumer quarantine {verb} {self.spelled}{tail}"


def where(given: Sequence[str], conf: Path | None, state_dir: Path | None) -> Where:
    """Return the instance that the arguments of a command name.

    Raises:
        click.UsageError: None is named.
        ConfigurationError: No instance can have that name.
    """
    # Late: it imports the store, and with it half of the framework.
    from consumer_framework.runtime.state_files import state_directory  # noqa: PLC0415

    if conf is None and not given:
        raise click.UsageError("name an INSTANCE, or its configuration file with --conf")
    instance = conf.stem if conf else given[0]
    file = conf or instance_file(instance)
    spelled = ["--conf", str(conf)] if conf else [instance]
    if state_dir:
        spelled += ["--state-dir", str(state_dir)]
    return Where(
        instance=instance,
        file=file,
        directory=state_directory(instance, state_dir),
        rest=tuple(given if conf else given[1:]),
        spelled=shlex.join(spelled),
    )


def no_such_instance(
    name: str, file: Path, otherwise: str = "name its file with --conf"
) -> ConfigurationError:
    """Return the error that there is no instance *name*; *otherwise* cures a host without any.

    A *file* that --conf named is missing itself.
    """
    if file != CONFIGURATION_DIRECTORY / f"{name}.toml":
        what, mend = "there is no such file", "create it, or name another one"
        return ConfigurationError(Problem("", what, mend), source=str(file))
    known = ", ".join(instance_names())
    cure = f"the instances here are {known}" if known else otherwise
    return ConfigurationError(
        Problem("", f"there is no instance {name!r}: no file {file}", cure), source=""
    )


def no_more(at: Where) -> None:
    """Refuse arguments after the instance.

    Raises:
        click.UsageError: There are some.
    """
    if at.rest:
        raise click.UsageError(f"unexpected argument: {at.rest[0]}")
