# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer logs``: the lines of instances in systemd's journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core import log_fields
from consumer_framework.core.disposition import SETTLE_RULES
from consumer_framework.core.errors import FrameworkError

from . import options
from .exit_codes import epilog
from .options import JSON, complete_instance, instance_file
from .terminal import Command, note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem

    from consumer_framework.adapters.systemd.journalctl import Journal

_PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_DISPOSITIONS = tuple(rule.words.field for rule in SETTLE_RULES.values())


def _complete_from_journal(field: str) -> Callable[..., list[CompletionItem | str]]:
    def complete(
        context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem | str]:
        from consumer_framework.adapters.systemd.journalctl import Journal  # noqa: PLC0415

        try:
            values = Journal(context.params.get("directory")).values(field)
        except FrameworkError:
            return []
        return [value for value in values if value.startswith(incomplete)]

    return complete


def _filter(option: str, name: str, metavar: str, field: str, what: str) -> Callable[[Any], Any]:
    return click.option(
        option,
        name,
        multiple=True,
        metavar=metavar,
        shell_complete=_complete_from_journal(field),
        help=f"{what} May be given several times.",
    )


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer logs builds -f                        # follow builds, builds_2, ...
  fm-consumer logs builds -p warning --since today
  fm-consumer logs builds --disposition quarantine -n 20
  fm-consumer logs builds --cause 'KeyError in *'
  fm-consumer logs --topic 'org.fedoraproject.*.bodhi.#' --since -1h
  fm-consumer logs --message 43c89899-bfbf-4c3c-849f-1b76c95edacf
  fm-consumer logs builds -n 1 --json | jq -r .FM_FINGERPRINT
"""
    + epilog("logs"),
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_instance)
@click.option("--follow", "-f", is_flag=True, help="Show new lines as they come, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(0), metavar="N", help="The last N lines.")
@click.option("--since", metavar="TIME", help="From this time on: today, '10:30', -1h.")
@click.option("--until", metavar="TIME", help="Up to this time.")
@click.option("--grep", "-g", metavar="REGEX", help="Lines whose text matches REGEX (PCRE).")
@click.option(
    "--priority",
    "-p",
    type=click.Choice(_PRIORITIES),
    metavar="LEVEL",
    help="Lines of this level, and worse: warning, err, ...",
)
@_filter("--message", "messages", "ID", log_fields.MESSAGE_ID, "Lines about the message ID.")
@_filter(
    "--topic",
    "topics",
    "PATTERN",
    log_fields.TOPIC,
    "Lines about messages of a topic; '*' stands for one word, '#' for any number.",
)
@click.option(
    "--disposition",
    "dispositions",
    multiple=True,
    type=click.Choice(_DISPOSITIONS),
    metavar="WORD",
    help=f"Lines about messages that ended so: {', '.join(_DISPOSITIONS)}. May be given several "
    "times.",
)
@_filter(
    "--cause",
    "causes",
    "CAUSE",
    log_fields.FINGERPRINT,
    "Lines about failures of this cause, as 'quarantine list' shows it; '*' stands for any text.",
)
@JSON
@click.option(
    "--directory",
    "-D",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIRECTORY",
    help="Read the files of this directory, not this host's journal.",
)
def logs(  # noqa: PLR0913, PLR0917 -- one for each option
    names: tuple[str, ...],
    messages: tuple[str, ...],
    topics: tuple[str, ...],
    dispositions: tuple[str, ...],
    causes: tuple[str, ...],
    directory: Path | None,
    *,
    as_json: bool,
    **asked: Any,
) -> None:
    """Show the log of instances: each NAME with its workers, or all of this host.

    The lines are those of systemd's journal, and journalctl shows them. Without --message,
    --topic, --disposition and --cause, systemd's own lines about the units are shown too. Options
    of different kinds hold together; the same option again is an alternative.
    """
    from consumer_framework.adapters.systemd.journalctl import Journal  # noqa: PLC0415
    from consumer_framework.operate.logs import (  # noqa: PLC0415
        Filters,
        causes_like,
        matches,
        topics_like,
    )

    if asked["follow"]:
        _refuse_patterns(topics, causes)
    journal = Journal(directory)
    caveat = journal.caveat()
    if caveat:
        note(caveat)
    filters = Filters(
        messages,
        topics_like(topics, lambda: journal.values(log_fields.TOPIC)),
        dispositions,
        causes_like(causes, lambda: journal.values(log_fields.FINGERPRINT)),
    )
    instances = _instances(names, journal, is_any=bool(filters.matches()))
    form = ["--output=json", "--all"] if as_json else []
    arguments = [*form, *_arguments(asked), "--", *matches(instances, filters)]
    journal.show(arguments, quiet=as_json or bool(caveat))


def _refuse_patterns(topics: Sequence[str], causes: Sequence[str]) -> None:
    from consumer_framework.operate.logs import is_cause_pattern, is_topic_pattern  # noqa: PLC0415

    patterns = [*filter(is_topic_pattern, topics), *filter(is_cause_pattern, causes)]
    if patterns:
        # journalctl matches whole values, and a new one may come at any time.
        raise click.UsageError(f"--follow takes no pattern such as {patterns[0]!r}; use --grep")


def _arguments(asked: dict[str, Any]) -> list[str]:
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in asked.items()
        if value is not None and value is not False
    ]


def _instances(names: Sequence[str], journal: Journal, *, is_any: bool) -> list[str]:
    """Return the instances of *names* with their workers.

    Args:
        names: Names; none for all.
        journal: Knows instances that have no file any more.
        is_any: Without names, return none, which stands for any.
    """
    from consumer_framework.operate.logs import NoLineError  # noqa: PLC0415
    from consumer_framework.settings.workers import files_in, group_of  # noqa: PLC0415

    for name in names:
        # Refuses a name that no instance can have.
        instance_file(name)
    if not names and is_any:
        return []
    files = files_in(options.CONFIGURATION_DIRECTORY)
    known = sorted({*files, *journal.values(log_fields.INSTANCE)})
    wanted = [name for name in known if not names or {name, group_of(name, files)} & {*names}]
    for name in names:
        if name not in known:
            raise options.no_such_instance(name, instance_file(name), "the journal has none")
    if not wanted:
        where = options.CONFIGURATION_DIRECTORY
        raise NoLineError(f"the journal has no line of an instance, and {where} configures none")
    return wanted
