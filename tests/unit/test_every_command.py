# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command has examples that it understands, JSON for programs, and completion of names."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from consumer_framework.cli import main, options

# They print no facts: they run until they are told to stop, draw, or write a program's source.
WITHOUT_JSON = {"run", "outbox relay", "trigger", "top", "quarantine to-test"}


def below(command, name=""):
    """Yield each command that is no group of others, with its name."""
    context = click.Context(command)
    for word in command.list_commands(context):
        found = command.get_command(context, word)
        if isinstance(found, click.Group):
            yield from below(found, f"{name}{word} ")
        else:
            yield f"{name}{word}", found


COMMANDS = dict(below(main))


def examples(command):
    """Return the lines of the examples, without their comments."""
    block = re.search(r"\n\x08\nExamples?:\n((?:  .*\n)+)", f"\n{command.epilog or ''}")
    lines = block[1].splitlines() if block else []
    return [line.strip() for line in lines]


def calls(line):
    """Yield the words of each call of fm-consumer in a line for a shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in (*lexer, ";"):
        if not word.strip("|&;<>()"):
            if "fm-consumer" in words:
                yield words[words.index("fm-consumer") + 1 :]
            words = []
        else:
            words.append(word)


def named(words):
    """Return the command that the words name, and the words after its name."""
    command: click.Command = main
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            break
        command = found
        rest.pop(0)
    return command, rest


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_an_example_of_itself(name):
    lines = examples(COMMANDS[name])
    assert any(f"fm-consumer {name}" in line for line in lines), lines


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_have_commands_and_options_that_exist(name):
    for line in examples(COMMANDS[name]):
        for words in calls(line):
            command, rest = named(words)
            known = {text for one in command.params for text in (*one.opts, *one.secondary_opts)}
            own = rest[: rest.index("--")] if "--" in rest else rest
            given = {word.partition("=")[0] for word in own if word.startswith("--")}
            assert given <= known, line
            assert not isinstance(command, click.Group) or command.invoke_without_command, line


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_prints_facts_has_json(name):
    has_json = any("--json" in one.opts for one in COMMANDS[name].params)
    assert has_json is (name not in WITHOUT_JSON)


# Their NAME is none of an instance: of a project, of a schema, of a unit file.
OTHER_NAMES = {"new", "schemas show", "schemas diff", "units show"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_name_of_an_instance_is_completed(name, tmp_path, monkeypatch):
    monkeypatch.setattr(options, "CONFIGURATION_DIRECTORY", tmp_path)
    (tmp_path / "sample.toml").touch()
    (tmp_path / "other.toml").touch()
    context = click.Context(COMMANDS[name])
    for one in COMMANDS[name].params:
        metavar = str(one.metavar or one.name).upper()
        is_instance = isinstance(one, click.Argument) and re.search("INSTANCE|NAME", metavar)
        if is_instance and name not in OTHER_NAMES:
            assert [found.value for found in one.shell_complete(context, "sa")] == ["sample"]
