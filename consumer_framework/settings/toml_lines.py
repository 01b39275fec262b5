# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the line of each key of a TOML file: Python's parser keeps no line numbers.

The text is parsed by :mod:`tomllib` first, so the scan below only meets valid TOML. It needs no
values: it follows tables, keys, inline tables and arrays (toml.io/en/v1.0.0).
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from .problems import toml_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .problems import Location

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'"
    r"|#[^\n]*"
    r"|[\n\[\]{}=,.]"
    r"|[^\s\[\]{}=,.\"'#]+",
    re.DOTALL,
)
_END_OF_VALUE = frozenset({"\n", ",", "]", "}", ""})


class TomlLines:
    """The lines of the keys of one file.

    Args:
        text: The text of the file. One that is not TOML has no lines.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        try:
            tomllib.loads(text)
            found = _Scan(text).document()
        except (ValueError, RecursionError):
            return
        self._lines = {_plain(toml_path("", location)): line for location, line in found.items()}

    def line_of(self, path: str) -> int:
        """Return the line of a TOML path, or that of the nearest table around it.

        Args:
            path: As in :attr:`.Problem.path`: ``bindings[0].routing_keys[1]``.

        Returns:
            The number of the line, from 1; 0 if the file has neither the key nor a table around it.
        """
        wanted = _plain(path)
        while wanted and wanted not in self._lines:
            wanted = wanted[: max(wanted.rfind("."), wanted.rfind("["), 0)]
        return self._lines.get(wanted, 0)


def _plain(path: str) -> str:
    # The same key may be written with and without quotes.
    return path.replace('"', "")


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        if not match[0].startswith("#"):
            yield match[0], line
        line += match[0].count("\n")
    yield "", line


class _Scan:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        # The numbers of tables in the arrays of tables.
        self._counts: dict[Location, int] = {}
        self._found: dict[Location, int] = {}

    def document(self) -> dict[Location, int]:
        """Return the line of each table, key and item."""
        table: Location = ()
        while found := self._ahead:
            if found == "\n":
                self._at += 1
            elif found == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._found

    @property
    def _ahead(self) -> str:
        return self._tokens[self._at][0]

    @property
    def _line(self) -> int:
        return self._tokens[self._at][1]

    def _header(self) -> Location:
        line = self._line
        self._at += 1
        is_array = self._ahead == "["
        self._at += is_array
        keys = self._key()
        self._at += 1 + is_array
        location: Location = ()
        for key in keys[:-1]:
            location = (*location, key)
            if location in self._counts:
                location = (*location, self._counts[location] - 1)
        location = (*location, keys[-1])
        if is_array:
            index = self._counts.get(location, 0)
            self._counts[location] = index + 1
            location = (*location, index)
        self._note(location, line)
        return location

    def _pair(self, table: Location) -> None:
        line = self._line
        location = (*table, *self._key())
        self._at += 1
        self._note(location, line)
        self._value(location)

    def _key(self) -> tuple[str, ...]:
        keys = []
        while True:
            keys.append(_unquoted(self._ahead))
            self._at += 1
            if self._ahead != ".":
                return tuple(keys)
            self._at += 1

    def _value(self, location: Location) -> None:
        if self._ahead == "[":
            self._array(location)
        elif self._ahead == "{":
            self._inline_table(location)
        else:
            while self._ahead not in _END_OF_VALUE:
                self._at += 1

    def _array(self, location: Location) -> None:
        for index, _ in enumerate(self._until("]")):
            self._note((*location, index), self._line)
            self._value((*location, index))

    def _inline_table(self, location: Location) -> None:
        for _ in self._until("}"):
            self._pair(location)

    def _until(self, end: str) -> Iterator[None]:
        self._at += 1
        while True:
            while self._ahead in {"\n", ","}:
                self._at += 1
            if self._ahead == end:
                self._at += 1
                return
            yield

    def _note(self, location: Location, line: int) -> None:
        # read() does not distinguish the case of the outermost keys.
        location = (str(location[0]).lower(), *location[1:])
        for length in range(1, len(location)):
            self._found.setdefault(location[:length], line)
        self._found[location] = line


def _unquoted(key: str) -> str:
    if key.startswith(('"', "'")):
        return str(tomllib.loads(f"key = {key}")["key"])
    return key
