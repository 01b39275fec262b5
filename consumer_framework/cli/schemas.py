# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer schemas``: the message schemas that are installed, needed, and changed."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.text import plural

from . import terminal
from .exit_codes import epilog
from .options import JSON
from .terminal import Column, Command, Refusal, faint, note, safe, title

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.shell_completion import CompletionItem

    from consumer_framework.kit.schema_changes import Comparison
    from consumer_framework.kit.schema_packages import Need, Schema

_UNKNOWN = _DO_NOT_SURVIVE = 1
_SEVERITIES = {10: "debug", 20: "info", 30: "warning", 40: "error"}
_COLUMNS = (
    Column("NAME", gives_way=True),
    Column("SEVERITY"),
    Column("TOPIC", gives_way=True, keep_end=True),
    Column("PACKAGE", gives_way=True),
    Column("VERSION"),
)
_SHOWN_CANDIDATES = 5

_MORE = """
\b
Examples:
  fm-consumer schemas
  fm-consumer schemas show bodhi.update.edit.v2
  fm-consumer schemas for org.fedoraproject.prod.copr.build.end
  fm-consumer schemas diff bodhi.update.edit.v2 old.json
"""
_MORE_LIST = """
\b
Examples:
  fm-consumer schemas list
  fm-consumer schemas list --json | jq '.[] | select(.is_deprecated).name'
""" + epilog("schemas list")
_MORE_SHOW = """
\b
Examples:
  fm-consumer schemas show bodhi.update.edit.v2
  fm-consumer schemas show mine.done.v1 > old.json
  fm-consumer schemas show mine.done.v1 --json | jq .package
""" + epilog("schemas show")
_MORE_FOR = """
\b
Examples:
  fm-consumer schemas for org.fedoraproject.prod.bodhi.update.edit
  fm-consumer schemas for 'org.fedoraproject.*.buildsys.#'
""" + epilog("schemas for")
_MORE_DIFF = """
\b
Examples:
  fm-consumer schemas show mine.done.v1 > old.json
  fm-consumer schemas diff mine.done.v1 old.json
  fm-consumer schemas diff old.json new.json
  fm-consumer schemas diff bodhi.update.edit.v1 bodhi.update.edit.v2
""" + epilog("schemas diff")


def _complete(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from consumer_framework.kit.schema_packages import names  # noqa: PLC0415

    return [name for name in names() if name.startswith(incomplete)]


@click.group(epilog=_MORE, invoke_without_command=True)
@click.pass_context
def schemas(context: click.Context) -> None:
    """Show the installed message schemas, find missing ones, compare versions.

    A schema is a message class that a package installs as an entry point of the group
    fedora.messages. Messages name it in the header fedora_messaging_schema. Without a command, the
    installed ones are listed.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_, as_json=False)


@schemas.command("list", cls=Command, epilog=_MORE_LIST)
@JSON
def list_(*, as_json: bool) -> None:
    """List the installed schemas with severity, topic, package and version.

    The topic is the one of the class, without 'topic_prefix'. Many classes name none.
    """
    from consumer_framework.kit.schema_packages import installed  # noqa: PLC0415

    found = installed()
    if as_json:
        terminal.print_json([_document(schema) for schema in found])
        return
    head, *lines = terminal.table(_COLUMNS, list(map(_row, found)), terminal.terminal_width())
    click.echo(title(head))
    for schema, line in zip(found, lines, strict=True):
        click.echo(faint(line) if schema.is_deprecated else line)
    for schema in found:
        if schema.fault:
            cure = f"repair or remove the package {schema.package}"
            note(f"the class of {schema.name} cannot be loaded: {schema.fault}; {cure}")


def _row(schema: Schema) -> list[str]:
    severity = _SEVERITIES.get(schema.severity, str(schema.severity))
    deprecated = " (deprecated)" if schema.is_deprecated else ""
    return [
        f"{schema.name}{deprecated}",
        "broken" if schema.fault else severity,
        schema.topic or "-",
        schema.package,
        schema.version,
    ]


def _document(schema: Schema) -> dict[str, Any]:
    found = asdict(schema)
    del found["body"]
    return found


@schemas.command(cls=Command, epilog=_MORE_SHOW)
@click.argument("name", shell_complete=_complete)
@JSON
def show(name: str, *, as_json: bool) -> None:
    """Print the JSON schema of the body of the message class NAME.

    With --json, its package, topic and severity are beside it.
    """
    schema = _named(name)
    if as_json:
        terminal.print_json({**_document(schema), "body": schema.body})
        return
    click.echo(json.dumps(schema.body, indent=2, default=terminal.as_json))


def _named(name: str) -> Schema:
    from consumer_framework.kit.schema_packages import named, names  # noqa: PLC0415

    schema = named(name)
    if schema is None:
        known = names()
        near = difflib.get_close_matches(name, known, 3, 0.5) or known[:3]
        what = f"there is no message schema {safe(name)} here"
        raise Refusal(f"{what}; there are {', '.join(near)}: see 'fm-consumer schemas list'")
    if schema.fault:
        what = f"cannot be loaded: {schema.fault}"
        cure = f"repair or remove the package {schema.package}"
        raise ConfigurationError(Problem("", what, cure), source=schema.place)
    return schema


@schemas.command("for", cls=Command, epilog=_MORE_FOR)
@click.argument("topic")
@JSON
def for_(topic: str, *, as_json: bool) -> None:
    """Find the schema that the messages of TOPIC need, and the package that has it.

    A TOPIC that ends with '.*' or '.#' stands for all topics there. The packages of Fedora's own
    applications are known; for others, ask those who publish the messages.
    """
    from consumer_framework.kit.schema_packages import installed, is_installed, need_of  # noqa: PLC0415

    known = installed()
    need = need_of(topic, known)
    missing = tuple(package for package in need.packages if not is_installed(package, known))
    if as_json:
        terminal.print_json(
            {
                "topic": topic,
                "schemas": [_document(schema) for schema in need.exact],
                "others": [schema.name for schema in need.others],
                "packages": need.packages,
                "missing": missing,
            }
        )
    else:
        for line in _need_lines(topic, need, missing):
            click.echo(safe(line))
    raise click.exceptions.Exit(0 if need.exact else _UNKNOWN)


def _need_lines(topic: str, need: Need, missing: tuple[str, ...]) -> Iterator[str]:
    for schema in need.exact:
        old = " (deprecated)" if schema.is_deprecated else ""
        yield f"{schema.name}{old}, of the package {schema.package} {schema.version}"
    if need.exact:
        return
    yield f"no installed schema is known for the topic {topic}"
    if need.others:
        names = [schema.name for schema in need.others]
        near = difflib.get_close_matches(topic, names, _SHOWN_CANDIDATES, 0)
        yield f"the same application has {plural(len(names), 'schema')}, such as {', '.join(near)}"
    if len(missing) == 1 and len(need.packages) == 1:
        yield from _install_lines(missing[0])
    elif missing:
        yield "these packages have schemas of such topics:"
        for package in missing:
            yield from _install_lines(package)
    if not need.packages:
        yield "its application is not known here: ask those who publish it for their package"


def _install_lines(package: str) -> Iterator[str]:
    yield f"  pip install {package}"
    yield f"  dnf install 'python3dist({package})'    (on Fedora, if it is packaged there)"


@schemas.command(cls=Command, epilog=_MORE_DIFF)
@click.argument("first", metavar="NAME|OLD.json", shell_complete=_complete)
@click.argument("second", metavar="OLD.json|NEW.json|NAME", shell_complete=_complete)
@JSON
def diff(first: str, second: str, *, as_json: bool) -> None:
    """Compare two versions of a schema: do consumers of the old one survive?

    Of an installed schema and a file, the file is the old version. Of two files, or two installed
    schemas, the first is the old one. 'fm-consumer schemas show NAME' writes such a file.

    A consumer survives if every message that fits the new schema fits the old one, too, and has its
    properties. Keywords that cannot be compared, such as two different regular expressions, count
    as a break.
    """
    from consumer_framework.kit.schema_changes import compare  # noqa: PLC0415

    if _is_file(second) and not _is_file(first):
        first, second = second, first
    comparison = compare(_schema(first), _schema(second))
    if as_json:
        _print_comparison(first, second, comparison)
    else:
        for line in _comparison_lines(first, second, comparison):
            click.echo(line)
    raise click.exceptions.Exit(0 if comparison.consumers_survive else _DO_NOT_SURVIVE)


def _is_file(given: str) -> bool:
    return given.endswith(".json") or "/" in given or Path(given).is_file()


def _schema(given: str) -> Any:
    if not _is_file(given):
        return _named(given).body
    try:
        found = json.loads(Path(given).read_bytes())
    except OSError as error:
        problem = Problem("", f"cannot be read: {error.strerror}", "name another file")
    except (ValueError, RecursionError) as error:
        cure = "write it with 'fm-consumer schemas show NAME'"
        problem = Problem("", f"is no JSON: {error}", cure)
    else:
        if isinstance(found, dict | bool):
            return found
        problem = Problem("", "is no JSON schema", "write an object, as JSON Schema demands")
    raise ConfigurationError(problem, source=given)


def _print_comparison(old: str, new: str, comparison: Comparison) -> None:
    terminal.print_json(
        {
            "old": old,
            "new": new,
            "consumers_survive": comparison.consumers_survive,
            "publishers_survive": comparison.publishers_survive,
            "changes": [
                {"path": change.path, "text": change.text, "breaks": change.breaks.value}
                for change in comparison.changes
            ],
        }
    )


def _comparison_lines(old: str, new: str, comparison: Comparison) -> Iterator[str]:
    yield f"old: {safe(old)}, new: {safe(new)}"
    parts = (
        ("Breaks consumers", [c for c in comparison.changes if c.breaks.consumers]),
        ("Breaks publishers", [c for c in comparison.changes if c.breaks.publishers]),
        ("Breaks nobody", [c for c in comparison.changes if c.breaks.value == "nobody"]),
    )
    for head, changes in parts:
        if changes:
            yield title(f"{head}:")
            yield from (f"  {safe(change.path)} {safe(change.text)}" for change in changes)
    if not comparison.changes:
        yield "they accept the same messages"
    yield _verdict("Consumers", is_good=comparison.consumers_survive)
    yield _verdict("Publishers", is_good=comparison.publishers_survive)


def _verdict(programs: str, *, is_good: bool) -> str:
    colour = terminal.good if is_good else terminal.bad
    return colour(f"{programs} of the old version {'survive' if is_good else 'do not survive'}.")
