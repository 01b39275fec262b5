# SPDX-License-Identifier: GPL-2.0-or-later
"""The project of a consumer: the answers that may make one, and the update of one.

``fm-consumer new`` renders a project from a template (:mod:`.project_template`). Later a newer
template renders the same answers anew, and each file is one of three: as the old template rendered
it, as the new one does, and as it is in the project, with the author's edits. :func:`effect_on`
compares them::

    as the old template has it ──┬── as the new one has it     the change of the template
                                 └── as the project has it     the change of the author

The old rendering is kept in the project, because an installed package has no older templates.
"""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING

from consumer_framework.core.topics import matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Below the 28 characters of an instance, so that it is the name of both.
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST_NAME = 28
# With a full stop it is a line of an RPM's description, which rpmlint wants below 80 characters.
_LONGEST_SUMMARY = 78
_LONGEST_TOPIC = 255
# Modules that the project needs, and its own folders.
_TAKEN = {
    *("alembic", "click", "consumer_framework", "fedora_messaging", "messages", "migrations"),
    *("pika", "pydantic", "pytest", "sqlalchemy", "systemd", "test", "tests", "twisted"),
}


def name_problem(name: str) -> str:
    """Say why no project can have this *name*, and name a better one.

    Returns:
        An empty string for a good name. It is the name of the project, of its instance and, with
        ``_`` in place of ``-``, of its Python package.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        rules = (
            f"1 to {_LONGEST_NAME} lower-case letters and digits, with single hyphens between "
            "them, and a letter first"
        )
        return f"{name!r} is no name for a project: it needs {rules}{_suggestion(name)}"
    module = module_of(name)
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        return f"{name!r} is a word of Python: write {name}-consumer"
    if module in sys.stdlib_module_names or module in _TAKEN:
        return f"{name!r} is the name of another Python module: write {name}-consumer"
    return ""


def _suggestion(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name)
    better = re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-0123456789")
    better = better[:_LONGEST_NAME].rstrip("-")
    return f"; write {better}" if _NAME.fullmatch(better) else ""


def topics_problem(topics: str, published: str = "") -> str:
    """Say why a queue cannot be bound with these *topics*.

    Args:
        topics: Patterns of an AMQP topic exchange, with spaces between them.
        published: The topic that the consumer publishes with, "" for none. The consumer must not
            handle its own messages, because each would make one more.

    Returns:
        An empty string if it can.
    """
    if not topics.split():
        return "name at least one topic, such as org.fedoraproject.*.buildsys.#"
    for topic in topics.split():
        if problem := _topic_problem(topic):
            return problem
        if published and matches(topic, published):
            return f"{topic} also matches {published}, which it publishes: name narrower topics"
    return ""


def _topic_problem(topic: str) -> str:
    if len(topic.encode()) > _LONGEST_TOPIC:
        return f"{topic[:20]}... is longer than {_LONGEST_TOPIC} bytes, which no topic may be"
    if not topic.isprintable():
        return f"{topic!r} has characters that cannot be printed"
    if "," in topic:
        return f"{topic}: write spaces between topics, not commas"
    for word in topic.split("."):
        if not word:
            return f"{topic} has an empty word: write one dot between two words"
        if word not in {"*", "#"} and ("*" in word or "#" in word):
            return f"{topic}: * and # stand for whole words, so write them between dots"
    return ""


def summary_problem(summary: str) -> str:
    """Say why a project cannot have this *summary*; return "" if it can."""
    if problem := _text_problem(summary, "a summary"):
        return problem
    if len(summary) > _LONGEST_SUMMARY:
        return f"it has {len(summary)} characters: write at most {_LONGEST_SUMMARY}"
    if summary.endswith("."):
        return "write it without a full stop at its end"
    return "" if summary[0] == summary[0].upper() else "begin it with a capital letter"


def person_problem(person: str) -> str:
    """Say why an author cannot have this name; return "" if one can."""
    return _text_problem(person, "a name")


def _text_problem(text: str, what: str) -> str:
    if not text.strip() or text != text.strip():
        return f"write {what}, without spaces around it"
    if not text.isprintable():
        return "write one line, without characters that cannot be printed"
    wrong = next((character for character in '"\\<>{}' if character in text), "")
    return f"write it without {wrong}" if wrong else ""


def email_problem(email: str) -> str:
    """Say why *email* is no e-mail address; return "" if it is one."""
    is_one = re.fullmatch(r"[^\s@<>\"\\]+@[^\s@<>\"\\]+", email) and email.isprintable()
    return "" if is_one else "write an address, such as jane@example.com"


def url_problem(url: str) -> str:
    """Say why *url* is no address of a page; return "" if it is one."""
    is_one = re.fullmatch(r"https?://[^\s\"\\<>{}]+", url) and url.isprintable()
    return "" if is_one else "write an address, such as https://example.com/project"


_RULES = {
    "name": name_problem,
    "summary": summary_problem,
    "author": person_problem,
    "email": email_problem,
    "url": url_problem,
}
_CHOICES: Mapping[str, tuple[str | bool, ...]] = {
    "handler": ("sync", "async"),
    "license": ("MIT", "GPL-2.0-or-later"),
    **dict.fromkeys(("schema", "database", "publishing"), (False, True)),
}


def wrong_answers(answers: Mapping[str, str | bool]) -> dict[str, str]:
    """Return the problems of *answers*, by their keys; answers that are missing have none."""
    found = {key: rule(str(answers[key])) for key, rule in _RULES.items() if key in answers}
    for key, choices in _CHOICES.items():
        if answers.get(key, choices[0]) not in choices:
            found[key] = f"{answers[key]!r} is none of {', '.join(map(str, choices))}"
    if "topics" in answers:
        published = report_topic(answers) if answers.get("publishing") else ""
        found["topics"] = topics_problem(str(answers["topics"]), published)
    found["created"] = _date_problem(str(answers.get("created", "2000-01-01")))
    return {key: problem for key, problem in found.items() if problem}


def _date_problem(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        return "write a date, such as 2026-11-27"
    return ""


def module_of(name: str) -> str:
    """Return the name of the Python package of the project *name*."""
    return name.replace("-", "_")


def report_topic(answers: Mapping[str, str | bool]) -> str:
    """Return the topic of the messages that the project of *answers* publishes; "" without name."""
    name = answers.get("name")
    return f"org.fedoraproject.dev.{name}.report" if name else ""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a project.

    Attributes:
        data: Its bytes.
        is_executable: Its owner may run it.
    """

    data: bytes
    is_executable: bool = False


class Effect(StrEnum):
    """The effect of an update on one file."""

    NOTHING = "nothing"
    ADD = "added"
    REPLACE = "updated"
    REMOVE = "removed"
    MERGE = "merged"
    # The author has removed the file, and the template has changed it.
    STAY_AWAY = "not added, because you removed it"
    # The template has removed the file, and the author has changed it.
    STAY = "kept, because you changed it"


def effect_on(old: File | None, new: File | None, here: File | None) -> Effect:
    """Return the effect of an update on one file.

    Args:
        old: The file as the old template rendered it; None if it had none.
        new: The file as the new template renders it; None if it has none.
        here: The file as it is in the project; None if it is not there.
    """
    if new in (old, here):
        return Effect.NOTHING
    if here == old:
        if new is None:
            return Effect.REMOVE
        return Effect.ADD if old is None else Effect.REPLACE
    if here is None:
        return Effect.STAY_AWAY
    return Effect.STAY if new is None else Effect.MERGE


def effects(
    old: Mapping[str, File], new: Mapping[str, File], here: Mapping[str, File]
) -> dict[str, Effect]:
    """Return the effects of an update on the files of a project, without those on which is none."""
    found = {
        path: effect_on(old.get(path), new.get(path), here.get(path))
        for path in sorted({*old, *new})
    }
    return {path: effect for path, effect in found.items() if effect is not Effect.NOTHING}


def next_commands(name: str, answers: Mapping[str, str | bool], *, in_venv: bool) -> Sequence[str]:
    """Return the three commands that follow the creation of a project.

    Args:
        name: The directory of the project, quoted for a shell.
        answers: The answers that made it.
        in_venv: ``fm-consumer`` runs in a virtual environment, which the project can use too.
    """
    messages = "-e ./messages " if answers["schema"] else ""
    install = f"pip install {messages}-e '.[test]'"
    if in_venv:
        return f"cd {name}", install, "pytest"
    make = "python3 -m venv --system-site-packages .venv && . .venv/bin/activate"
    return f"cd {name}", make, f"{install} && pytest"
