# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer new``: makes the project of a consumer, and updates one."""

from __future__ import annotations

import contextlib
import shlex
import sys
from datetime import datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.text import plural

from . import terminal
from .exit_codes import epilog
from .options import JSON
from .terminal import Command, Refusal, note, pairs, title

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.kit.project_template import Answers, Question, Rendering, Update

_FAILED = 1
_LICENSES = ("MIT", "GPL-2.0-or-later")

_MORE = """
\b
Examples:
  fm-consumer new build-watcher
  fm-consumer new build-watcher --no-input
  fm-consumer new build-watcher --topic 'org.fedoraproject.*.buildsys.#' --async
  fm-consumer new build-watcher --database --publishing --schema --no-input
  fm-consumer new --update
  fm-consumer new --update --database
\b
The project has a Python package with the handler and its settings, tests that pass, the
configuration file, a drop-in for the unit, the spec of an RPM, and a workflow for GitHub and
Forgejo. --schema adds a package with a message class, --database tables and their migrations,
--publishing a message that the handler publishes.
\b
--update brings the changes of a newer template into a project. Your own changes stay; where both
have changed the same lines, you choose. Answers may change, too: --update --database adds a
database.
""" + epilog("new")


def _flag(name: str, help_: str) -> Callable[[Any], Any]:
    return click.option(f"--{name}/--no-{name}", default=None, help=help_)


@click.command(cls=Command, epilog=_MORE)
@click.argument("name", required=False)
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="TOPIC",
    help="Handle messages with this topic: * is one word, # any number of words. May be given "
    "several times.",
)
@click.option(
    "--async/--sync",
    "is_async",
    default=None,
    help="Write the handler as a coroutine method, which must not block, or as a plain one.",
)
@_flag("schema", "Define a message class: published with --publishing, handled without.")
@_flag("database", "Keep data in a database, with SQLAlchemy and migrations.")
@_flag("publishing", "Publish a message for each handled one, through the outbox.")
@click.option("--summary", metavar="TEXT", help="The purpose of the consumer, in one line.")
@click.option("--author", metavar="NAME", help="Your name. Default: the one of git.")
@click.option("--email", metavar="ADDRESS", help="Your address. Default: the one of git.")
@click.option("--url", metavar="URL", help="The home page of the project.")
@click.option("--license", type=click.Choice(_LICENSES), help="The license. Default: MIT.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="Write the project there. Default: a new directory NAME; with --update, the current one.",
)
@click.option(
    "--no-input",
    is_flag=True,
    help="Ask nothing: take the defaults. So does a command without a terminal.",
)
@click.option("--update", "updates", is_flag=True, help="Update the project in DIRECTORY.")
@click.option(
    "--force",
    is_flag=True,
    help="Write into a directory that has files, and replace those of the same names. With "
    "--update: go on though git has changes that are not committed.",
)
@JSON
@click.pass_context
def new(  # noqa: PLR0913 -- one for each option
    context: click.Context,
    /,
    directory: Path | None,
    *,
    no_input: bool,
    updates: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the project of a consumer, from answers or options.

    NAME is the name of the project and of its instance, such as build-watcher. The command asks for
    everything that no option says.
    """
    given = _answers(**options)
    asks = not no_input and sys.stdin.isatty() and sys.stdout.isatty()
    _needs_copier()
    if updates:
        if "name" in given:
            raise click.UsageError("a project keeps its name: give --update without NAME")
        code = _update(directory or Path(), given, asks=asks, force=force, as_json=as_json)
        context.exit(code)
    if "name" not in given and not asks:
        raise click.UsageError("name the project: fm-consumer new NAME")
    _create(directory, given, asks=asks, force=force, as_json=as_json)


def _needs_copier() -> None:
    try:
        import_module("copier")
    except ImportError as error:
        cure = "install it: pip install 'consumer-framework[new]'"
        raise ConfigurationError(
            Problem("", f"the package copier is missing ({error})", cure)
        ) from error


def _answers(
    topics: tuple[str, ...],
    is_async: bool | None,  # noqa: FBT001 -- click passes it by its name
    **others: str | bool | None,
) -> dict[str, str | bool]:
    """Return the answers that the options give.

    Raises:
        click.UsageError: One is wrong.
    """
    from consumer_framework.kit import project  # noqa: PLC0415 -- see .main

    for topic in topics:
        if not topic.split() or topic.split() != [topic]:
            raise click.UsageError(f"--topic: {topic!r} is no topic; give --topic once for each")
    handler = {None: None, True: "async", False: "sync"}[is_async]
    found = {**others, "topics": " ".join(topics) or None, "handler": handler}
    given = {key: answer for key, answer in found.items() if answer is not None}
    for key, problem in project.wrong_answers(given).items():
        option = {"name": "", "topics": "--topic: "}.get(key, f"--{key}: ")
        raise click.UsageError(f"{option}{problem}")
    return given


def _create(
    directory: Path | None, given: Answers, *, asks: bool, force: bool, as_json: bool
) -> None:
    from consumer_framework.kit import project_template  # noqa: PLC0415 -- see .main

    name = given.get("name")
    # Before the questions, and again after the one for the name.
    if directory or name:
        _refuse_full(directory or Path(str(name)), force=force)
    rendering = _rendered(given, asks=asks)
    target = directory or Path(str(rendering.answers["name"]))
    _refuse_full(target, force=force)
    try:
        project_template.create(target, rendering)
    except OSError as error:
        raise _UnwritableError(error) from error
    _show_created(target, rendering, as_json=as_json)


def _refuse_full(directory: Path, *, force: bool) -> None:
    """Refuse a directory with files, but for those of a new git repository."""
    try:
        there = sorted(path.name for path in directory.iterdir() if path.name != ".git")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Refusal(f"{directory}: {error.strerror}; choose another with --directory") from error
    if there and not force:
        shown = ", ".join(there[:3]) + (" ..." if there[3:] else "")
        raise Refusal(
            f"{directory} has files already ({shown}): choose another directory with --directory, "
            "or replace files of the same names with --force"
        )


def _rendered(given: Answers, *, asks: bool) -> Rendering:
    from consumer_framework.kit import project_template  # noqa: PLC0415 -- see .main

    today = datetime.now().astimezone().date().isoformat()
    framework = ".".join(version("consumer-framework").split(".")[:2])
    complete = {"created": today, **given, "framework": framework}
    return project_template.render(complete, _of_git(), _ask if asks else None)


def _ask(question: Question, before: Answers) -> str | bool:
    """Ask on the terminal until the answer is good."""
    from consumer_framework.kit import project  # noqa: PLC0415 -- see .main

    if isinstance(question.default, bool):
        return click.confirm(question.text.removesuffix("?"), question.default, prompt_suffix="? ")
    if question.choices:
        return str(
            click.prompt(question.text, question.default, type=click.Choice(question.choices))
        )

    def good(answer: str) -> str:
        problem = project.wrong_answers({**before, question.key: answer.strip()}).get(question.key)
        if problem:
            raise click.UsageError(problem)
        return answer.strip()

    return str(click.prompt(question.text, question.default, value_proc=good))


def _of_git() -> dict[str, str]:
    """Return the name and address of the author that git knows, where a project can have them."""
    from consumer_framework.kit import project, project_template  # noqa: PLC0415 -- see .main

    keys = {"author": "user.name", "email": "user.email"}
    with contextlib.suppress(ConfigurationError):
        said = {key: project_template.git("config", name).stdout for key, name in keys.items()}
        found = {key: text.decode("utf-8", "replace").strip() for key, text in said.items()}
        wrong = project.wrong_answers(found)
        return {key: answer for key, answer in found.items() if key not in wrong}
    return {}


class _UnwritableError(Refusal):
    exit_code = _FAILED

    def __init__(self, error: OSError) -> None:
        super().__init__(f"{error.filename}: cannot be written: {error.strerror}")


def _show_created(directory: Path, rendering: Rendering, *, as_json: bool) -> None:
    from consumer_framework.kit.project import module_of, next_commands  # noqa: PLC0415 -- see .main

    files = sorted(rendering.with_records())
    where = shlex.quote(str(directory))
    commands = next_commands(where, rendering.answers, in_venv=sys.prefix != sys.base_prefix)
    if as_json:
        terminal.print_json({"directory": str(directory), "files": files, "next": commands})
        return
    click.echo(
        f"made {terminal.safe(str(directory))} with {plural(len(files), 'file')}; begin with"
    )
    module = module_of(str(rendering.answers["name"]))
    first = {
        f"{module}/consumer.py": "the handler",
        f"{rendering.answers['name']}.toml": "its configuration",
    }
    for line in pairs((f"{directory}/{path}", purpose) for path, purpose in first.items()):
        click.echo(line)
    click.echo("next:")
    for command in commands:
        click.echo(f"  {title(command)}")


def _update(directory: Path, given: Answers, *, asks: bool, force: bool, as_json: bool) -> int:
    from consumer_framework.kit import project, project_template  # noqa: PLC0415 -- see .main

    recorded = project_template.answers_of(directory)
    if wrong := project.wrong_answers(recorded):
        source = str(directory / project_template.ANSWERS)
        cure = "restore it from version control"
        raise ConfigurationError(
            *(Problem(key, problem, cure) for key, problem in wrong.items()), source=source
        )
    if not force:
        _refuse_dirty(directory)
    rendering = _rendered({**recorded, **given}, asks=asks)
    try:
        update = project_template.update(directory, rendering)
        update.write(directory)
    except OSError as error:
        raise _UnwritableError(error) from error
    _show_update(update, as_json=as_json)
    return _FAILED if update.conflicts else 0


def _refuse_dirty(directory: Path) -> None:
    from consumer_framework.kit.project_template import git  # noqa: PLC0415 -- see .main

    said = git("-C", str(directory), "status", "--porcelain", "--", ".")
    if said.returncode == 0 and said.stdout:
        raise Refusal(
            "git has changes here that are not committed: commit them first, so that you can see "
            "the update by itself, or give --force"
        )


def _show_update(update: Update, *, as_json: bool) -> None:
    if as_json:
        effects = {path: effect.name.lower() for path, effect in update.effects.items()}
        terminal.print_json({"effects": effects, "conflicts": update.conflicts})
        return
    for line in pairs((path, _effect_words(update, path)) for path in update.effects):
        click.echo(line)
    if not update.effects:
        click.echo("the project is up to date")
    for path in update.conflicts:
        note(f"{path}: both you and the template changed the same lines: choose between the marks")


def _effect_words(update: Update, path: str) -> str:
    return "conflict" if path in update.conflicts else update.effects[path].value
