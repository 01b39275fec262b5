# SPDX-License-Identifier: GPL-2.0-or-later
"""The first help of the command line."""

import click
from click.testing import CliRunner

from consumer_framework.cli import main


def test_the_first_help_has_a_whole_line_for_each_command():
    done = CliRunner().invoke(main, ["--help"], terminal_width=80)
    assert done.exit_code == 0
    lines = [line.split(maxsplit=1) for line in done.output.splitlines() if line.startswith("  ")]
    told = {words[0]: words[1] for words in lines if len(words) == 2}
    with click.Context(main) as context:
        commands = main.list_commands(context)
    assert len(commands) > 20
    assert {name for name in commands if not told.get(name, "").endswith(".")} == set()
