# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that the page may run, and the values that it gives them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import FrameworkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The part of a command that stands for several arguments, and the number of them.
_SEVERAL = "rows"
_MOST_VALUES = 1000
# Values of an option that the page leaves out.
_NOT_GIVEN = (None, "", False)
# The part of an argument that a value fills.
_PLACE = re.compile(r"\{(\w+)\}")


class CallError(FrameworkError):
    """The page asks for a command that it may not run.

    Args:
        message: One line about the wrong part.
    """


@dataclass(frozen=True, slots=True)
class _Call:
    argv: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    takes_input: bool = False


class Calls:
    """The commands of ``calls.json``, which ``packaging/cockpit/README.md`` describes.

    Args:
        document: The content of that file.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._patterns = {name: re.compile(text) for name, text in document["values"].items()}
        self._calls = {
            name: _Call(
                tuple(call["argv"]),
                {option: tuple(words) for option, words in call.get("options", {}).items()},
                call.get("input", False),
            )
            for name, call in document["calls"].items()
        }

    @classmethod
    def of(cls, directory: Path) -> Calls:
        """Read the list in the directory of the page."""
        return cls(json.loads((directory / "calls.json").read_text(encoding="utf-8")))

    def arguments(self, name: str, values: Mapping[str, Any]) -> list[str]:
        """Return the command line of a call; no part of it is for a shell.

        Args:
            name: The call.
            values: The value of each part that the call leaves open, and of options; None, "" and
                False stand for an option that is not wanted.

        Raises:
            CallError: There is no such call, or a value is missing, too much, or has another form.
        """
        call = self._named(name)
        places = {place for word in call.argv for place in _PLACE.findall(word)}
        for given in values:
            if given not in places and given not in call.options:
                raise CallError(f"{name}: there is no value {given!r}")
        words = [part for word in call.argv for part in self._filled(word, values)]
        for option, parts in call.options.items():
            if values.get(option) not in _NOT_GIVEN:
                words += self._option(option, parts, values[option])
        return words

    def takes_input(self, name: str) -> bool:
        """Tell whether a call gets text on its standard input."""
        return self._named(name).takes_input

    def _named(self, name: str) -> _Call:
        if name not in self._calls:
            raise CallError(f"there is no call {name!r}")
        return self._calls[name]

    def _filled(self, word: str, values: Mapping[str, Any]) -> Iterator[str]:
        place = _PLACE.search(word)
        if place is None:
            yield word
            return
        value = values.get(place[1])
        several = value if isinstance(value, list) and place[1] == _SEVERAL else [value]
        if not 0 < len(several) <= _MOST_VALUES:
            raise CallError(f"{place[1]}: 1 to {_MOST_VALUES} values are needed")
        for one in several:
            yield word.replace(place[0], self._checked(place[1], one))

    def _option(self, option: str, parts: tuple[str, ...], value: Any) -> Iterator[str]:
        for part in parts:
            place = _PLACE.search(part)
            if place is not None:
                yield part.replace(place[0], self._checked(place[1], value))
            elif value is True:
                yield part
            else:
                raise CallError(f"{option}: it takes true")

    def _checked(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or self._patterns[name].fullmatch(value) is None:
            raise CallError(f"{name}: {value!r} is no such value")
        check_text(name, value)
        return value


def check_text(name: str, text: str) -> None:
    """Refuse a text that no command can get.

    Raises:
        CallError: It has half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CallError(f"{name}: it is no valid text: {error.reason}") from None


def directory_of_page() -> Path:
    """Return the directory with the files of the page."""
    package = Path(__file__).parents[2]
    # In a wheel they are in the package; in a checkout, and so in an editable one, beside it.
    beside = package.parent / "packaging" / "cockpit"
    return next(d for d in (package / "page", beside) if (d / "calls.json").is_file())
