# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the routes of a consumer with the bindings that bring it messages, both ways."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from consumer_framework.author.consumer import table_of
from consumer_framework.operate.bindings import feeds_of, hungry, route_needs, superfluous

from .findings import warning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.operate.bindings import Feed
    from consumer_framework.runtime.assembly.loader import Target
    from consumer_framework.settings import Settings

    from .findings import Finding

_HEADER = re.compile(r"\s*\[")
_BINDINGS = re.compile(r"\s*\[\[\s*bindings\s*\]\]")


def route_findings(settings: Settings, target: Target, file: Path | None) -> Iterator[Finding]:
    """Warn of routes that get no message, and of bindings with messages that no route takes.

    Args:
        settings: The configuration.
        target: The author's object.
        file: The configuration file, for the numbers of lines; None for none.
    """
    table = table_of(target.value, settings.topic_prefix)
    if table is None:
        return
    needs = [route_needs(route, table) for route in table.routes]
    for route in needs:
        for name in route.absent:
            what = f"the route {route.route} takes messages of {name}, and no installed package "
            what += "registers that class: no message has it"
            yield warning("callback", what, "install the package with its entry point")
    feeds = list(feeds_of(settings))
    lines = _Lines(file)
    for route in hungry(needs, feeds):
        keys = ", ".join(f'"{key}"' for key in route.keys)
        what = f"{lines.of_bindings}no binding brings messages to the route {route.route} ({keys})"
        yield warning(
            "bindings", what, "add what `fm-consumer bindings` prints, unless others bind the queue"
        )
    for feed, is_all in () if table.takes_rest else superfluous(needs, feeds):
        yield _superfluous(feed, lines.of(feed), is_all=is_all)


def _superfluous(feed: Feed, line: str, *, is_all: bool) -> Finding:
    path = f"bindings[{feed.binding}].routing_keys[{feed.index}]"
    if is_all:
        what = f'{line}"{feed.key}" brings messages that no route takes: all of them are dropped'
        return warning(path, what, "remove it, or add a route")
    what = f'{line}"{feed.key}" also brings messages that no route takes: they are dropped'
    cure = "narrow it to what `fm-consumer bindings` prints, or add a route, or a handle() for them"
    return warning(path, what, cure)


class _Lines:
    """Finds the lines of bindings in a TOML file: its parser does not keep their numbers.

    A binding that is written in another form than ``[[bindings]]`` has no line.
    """

    def __init__(self, file: Path | None) -> None:
        try:
            text = file.read_text(encoding="utf-8") if file is not None else ""
        except (OSError, UnicodeDecodeError):
            text = ""
        self._lines = text.splitlines()
        self._heads = [n for n, line in enumerate(self._lines) if _BINDINGS.match(line)]

    @property
    def of_bindings(self) -> str:
        """The line of the first binding, to be put before a sentence; "" if it is not known."""
        return f"line {self._heads[0] + 1}: " if self._heads else ""

    def of(self, feed: Feed) -> str:
        """Return the line of a routing key in the same way."""
        if feed.binding >= len(self._heads):
            return ""
        head = self._heads[feed.binding]
        for number, line in enumerate(self._lines[head + 1 :], head + 1):
            if _HEADER.match(line) and not line.lstrip().startswith(('["', "['")):
                break
            if f'"{feed.key}"' in line or f"'{feed.key}'" in line:
                return f"line {number + 1}: "
        return f"line {head + 1}: "
