# SPDX-License-Identifier: GPL-2.0-or-later
"""The line of progress that a command rewrites on a terminal."""

import io
import sys

import click

from consumer_framework.cli.terminal import LiveLine


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
