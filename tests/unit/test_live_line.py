# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands on a terminal: the line of progress, and Ctrl-C."""

import io
import signal
import sys

import click
from click.testing import CliRunner

from consumer_framework.cli.terminal import Command, LiveLine, Refusal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, *, color):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with click.Context(click.Command("replay"), color=color):
        line = LiveLine()
        line.show(lambda _now: "1 of 2 messages")
        line.clear()
    return terminal.getvalue()


def test_a_line_is_erased_at_its_end_without_colors_too(monkeypatch):
    erased = "\r1 of 2 messages\x1b[K\r\x1b[K"
    assert shown(monkeypatch, color=None) == erased
    assert shown(monkeypatch, color=False) == erased


def test_ctrl_c_ends_a_command_with_a_line_and_the_code_of_a_shell():
    @click.command(cls=Command)
    def slow():
        signal.raise_signal(signal.SIGINT)

    done = CliRunner().invoke(slow)
    assert (done.exit_code, done.stderr) == (130, "\nfm-consumer: interrupted\n")


def test_a_refusal_does_nothing_to_a_terminal():
    shown = io.StringIO()
    Refusal("a\x1b]0;title\x07b\x9b").show(shown)
    assert shown.getvalue() == "fm-consumer: a\\x1b]0;title\\x07b\\x9b\n"
