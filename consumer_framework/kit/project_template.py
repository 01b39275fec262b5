# SPDX-License-Identifier: GPL-2.0-or-later
"""Render the template of a project with copier, write a project, and update it.

``template/copier.yml`` has the questions, and copier renders the files. Its own update needs a
template in a git repository, with the old version of it; an installed package is none. So a project
keeps its answers and the rendering that it was made of::

    .copier-answers.yml       the answers, for the next rendering
    .copier-rendered.zip      the files as the template rendered them, before any edit

An update renders anew, and compares the three versions of each file as :mod:`.project` says. Where
author and template have both changed a file, git merges it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import copier
import yaml
from jinja2 import Template
from jinja2.ext import Extension

from consumer_framework.core.errors import ConfigurationError, Problem

from . import project
from .project import Effect, File

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jinja2 import Environment

    Answers = Mapping[str, str | bool]

TEMPLATE = Path(__file__).parent / "template"
ANSWERS = ".copier-answers.yml"
RENDERED = ".copier-rendered.zip"
# No file of an installed package has this mode for sure.
_EXECUTABLE = {"ci"}
# The time of the files in the archive: the same files give the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ELSEWHERE = "change to its directory, or name it with --directory"
# Of `git merge-file`: more is an error, not a number of conflicts.
_MOST_CONFLICTS = 127


class Filters(Extension):
    """The filters of the template, for copier."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters.update(
            # A string of JSON is one of TOML, of YAML and of Python, too.
            quoted=lambda value: json.dumps(value, ensure_ascii=False),
            # For the specs of rpm and the units of systemd.
            percent_doubled=lambda value: value.replace("%", "%%"),
            spec_date=lambda value: date.fromisoformat(value).strftime("%a %b %d %Y"),
        )


@dataclass(frozen=True)
class Question:
    """A question of the template, as ``copier.yml`` has it.

    Attributes:
        key: The key of its answer.
        text: The question in words.
        default: The answer that it suggests; None where there is no good one.
        choices: The answers that it takes; empty for any that the rules allow.
    """

    key: str
    text: str
    default: str | bool | None
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Rendering:
    """The files of a project, as a template renders them.

    Attributes:
        answers: The answers to the questions.
        files: The files by their paths in the project, without those that only an update reads.
    """

    answers: Answers
    files: Mapping[str, File]

    def with_records(self) -> dict[str, File]:
        """Return the files with the two that the next update reads."""
        return {**self.files, **self.records()}

    def records(self) -> dict[str, File]:
        """Return the two files that the next update reads."""
        answers = "".join(f"{key}: {json.dumps(answer)}\n" for key, answer in self.answers.items())
        head = (
            "# The answers that this project was made of. `fm-consumer new --update` reads them.\n"
        )
        return {ANSWERS: File((head + answers).encode()), RENDERED: File(_archive(self.files))}


def render(
    given: Answers,
    better: Answers,
    ask: Callable[[Question, Answers], str | bool] | None = None,
    *,
    template: Path | None = None,
) -> Rendering:
    """Render the template.

    Args:
        given: Answers to some of the questions, those to ``created`` and ``framework`` among them.
        better: Better defaults than those of the template, for some questions.
        ask: Called for the other questions, with the answers before it. Without it, these have
            their defaults.
        template: The template, by default the one of this package.

    Raises:
        ConfigurationError: An answer is wrong.
    """
    template = template or TEMPLATE
    answers = _answered(template, given, better, ask)
    if wrong := project.wrong_answers(answers):
        raise ConfigurationError(*(Problem(key, problem) for key, problem in wrong.items()))
    with tempfile.TemporaryDirectory(prefix="fm-consumer-new-") as directory:
        # "unsafe" allows the filters above, which are of this package.
        copier.run_copy(
            str(template), directory, data=dict(answers), defaults=True, quiet=True, unsafe=True
        )
        names = _names(answers)
        files = {
            _renamed(path, names): replace(file, is_executable=path in _EXECUTABLE)
            for path, file in _read_all(Path(directory)).items()
        }
    return Rendering(answers, files)


def _answered(
    template: Path,
    given: Answers,
    better: Answers,
    ask: Callable[[Question, Answers], str | bool] | None,
) -> dict[str, str | bool]:
    """Return the answers to all questions of the template, in their order."""
    asked: dict[str, Any] = yaml.safe_load((template / "copier.yml").read_bytes())
    answers: dict[str, str | bool] = {}
    for key, details in asked.items():
        if key.startswith("_") or details.get("when") is False:
            continue
        if key in given:
            answers[key] = given[key]
            continue
        default = details.get("default")
        if isinstance(default, str):
            default = Template(default).render(answers)
        default = better.get(key, default)
        question = Question(key, details["help"], default, tuple(details.get("choices", ())))
        answers[key] = ask(question, answers) if ask else default
    return answers


def _names(answers: Answers) -> dict[str, str]:
    """Return the names that files and folders of the template get in the project."""
    name = str(answers["name"])
    module = project.module_of(name)
    return {
        "package": module,
        "messages/package": f"messages/{module}_messages",
        "gitignore": ".gitignore",
        "github-workflow.yml": ".github/workflows/ci.yml",
        "instance.toml": f"{name}.toml",
        "instance.conf": f"systemd/30-{name}.conf",
        "consumer.spec": f"{name}.spec",
        "messages/messages.spec": f"messages/python-{name}-messages.spec",
    }


def _renamed(path: str, names: Mapping[str, str]) -> str:
    for start, name in names.items():
        if PurePosixPath(path).is_relative_to(start):
            return str(PurePosixPath(name, PurePosixPath(path).relative_to(start)))
    return path


def _archive(files: Mapping[str, File]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, file in sorted(files.items()):
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = _mode(file) << 16
            archive.writestr(entry, file.data)
    return packed.getvalue()


def _mode(file: File) -> int:
    return 0o755 if file.is_executable else 0o644


def _read_all(directory: Path) -> dict[str, File]:
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): _read(path) for path in paths}


def _read(path: Path) -> File:
    return File(path.read_bytes(), is_executable=bool(path.stat().st_mode & 0o100))


def write(directory: Path, files: Mapping[str, File]) -> None:
    """Write *files* into *directory*, each of them whole or not at all, and in their order.

    Raises:
        OSError: One cannot be written; those before it are.
    """
    for path, file in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with open(descriptor, "wb") as stream:  # noqa: PTH123 -- it is open already
                stream.write(file.data)
            Path(temporary).chmod(_mode(file) & ~_umask())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def create(directory: Path, rendering: Rendering) -> None:
    """Write a project. A directory that does not exist appears whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    files = rendering.with_records()
    if directory.exists():
        write(directory, files)
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        write(temporary, files)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@dataclass
class Update:
    """An update of a project, decided and not yet written.

    Attributes:
        effects: The effects on the files, by their paths.
        conflicts: The files that git could not merge. They get the marks of git around both texts.
        files: The files to write, in that order: last the two that the next update reads.
        removed: The files to remove.
    """

    effects: dict[str, Effect]
    conflicts: list[str] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)

    def write(self, directory: Path) -> None:
        """Write it into *directory*. If the process dies in between, another update completes it.

        Raises:
            OSError: A file cannot be written, or removed.
        """
        for path in self.removed:
            (directory / path).unlink(missing_ok=True)
            # The folders that are empty now.
            with contextlib.suppress(OSError):
                for folder in PurePosixPath(path).parents:
                    (directory / folder).rmdir()
        write(directory, self.files)


def update(directory: Path, rendering: Rendering) -> Update:
    """Decide an update of the project in *directory*, whose files no author has to fear for.

    Raises:
        ConfigurationError: The project lacks the file with its old rendering, or git is missing.
        OSError: A file of the project cannot be read.
    """
    old = _old_files(directory / RENDERED)
    here = _files_here(directory, {*old, *rendering.files})
    found = Update(project.effects(old, rendering.files, here))
    for path, effect in found.effects.items():
        if effect is Effect.REMOVE:
            found.removed.append(path)
        elif effect in {Effect.ADD, Effect.REPLACE}:
            found.files[path] = rendering.files[path]
        elif effect is Effect.MERGE:
            before = old.get(path, File(b""))
            found.files[path], is_clean = merged(path, before, rendering.files[path], here[path])
            if not is_clean:
                found.conflicts.append(path)
    found.files.update(rendering.records())
    return found


def _files_here(directory: Path, paths: Iterable[str]) -> dict[str, File]:
    return {path: _read(directory / path) for path in paths if (directory / path).exists()}


def _old_files(path: Path) -> dict[str, File]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                entry.filename: File(
                    archive.read(entry), is_executable=bool(entry.external_attr >> 16 & 0o100)
                )
                for entry in archive.infolist()
                if _is_inside(entry.filename)
            }
    except FileNotFoundError:
        problem = "is missing"
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        problem = f"cannot be read: {error}"
    raise ConfigurationError(
        Problem("", problem, "restore it from the project's version control"), source=str(path)
    )


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts


def answers_of(directory: Path) -> dict[str, str | bool]:
    """Return the recorded answers of the project in *directory*.

    Raises:
        ConfigurationError: They are missing, or somebody has broken them.
    """
    path = directory / ANSWERS
    try:
        found = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        problem = Problem("", "is missing, so this is no project of 'fm-consumer new'", _ELSEWHERE)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        problem = Problem("", f"cannot be read: {error}", "restore it from version control")
    else:
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            return {str(k): v for k, v in found.items() if isinstance(v, str | bool)}
        problem = Problem("", "has no name of a project", "restore it from version control")
    raise ConfigurationError(problem, source=str(path))


def merged(path: str, old: File, new: File, here: File) -> tuple[File, bool]:
    """Merge the changes of the template into the file *path* that its author has changed.

    Returns:
        The file, and true if the two changes are in different places. Otherwise both texts are in
        it, with the marks of git around them.

    Raises:
        ConfigurationError: git is missing, or cannot merge such a file.
    """
    labels = ("yours", "the old template", "the new template")
    with tempfile.TemporaryDirectory(prefix="fm-consumer-merge-") as directory:
        paths = [Path(directory, str(number)) for number in range(3)]
        for place, file in zip(paths, (here, old, new), strict=True):
            place.write_bytes(file.data)
        options = [word for label in labels for word in ("-L", label)]
        done = git("merge-file", "-p", "--diff3", *options, *map(str, paths))
    if not 0 <= done.returncode <= _MOST_CONFLICTS:
        reason = done.stderr.decode("utf-8", "replace").strip()
        cure = "rename yours, update, and bring your changes into the new one"
        raise ConfigurationError(Problem("", f"git cannot merge it: {reason}", cure), source=path)
    return File(done.stdout, here.is_executable), done.returncode == 0


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run git.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        return subprocess.run(["git", *words], capture_output=True, check=False)  # noqa: S603, S607
    except FileNotFoundError as error:
        raise ConfigurationError(Problem("", "the program git is missing", "install it")) from error
