# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow a page of the documentation literally: its blocks in their order, as a reader would.

A comment of HTML before a block names its use; readers of the page do not see the comment:

``test: skip, REASON``       The reader has that already.
``test: file PATH``          The block is the content of a file.
``test: line WORD``          The block replaces the line of the configuration that begins with WORD.
``test: append``             The block goes to the end of the configuration.
``test: terminal NAME``      The command keeps running in a terminal of its own.
``test: url``                The terminal before prints such a URL; the real one replaces it.
``test: shown by NAME``      The terminals with these names show the lines of the block.
``test: exits N``            The commands end with this exit code.
``test: stop NAME``          Ctrl-C in that terminal, and the exit code is 0. There is no block.

A block of commands without a comment runs to its end. Each line of the text block after it is in
the output; numbers in it may differ.
"""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from .instance import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PARTS = re.compile(
    r"^<!-- test: (?P<order>[^>]+?) -->\n|^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_URL = re.compile(r"amqp://\S+:\d+/%2F")


@dataclass
class Step:
    """A block of the page, or an order without a block."""

    order: str
    language: str = ""
    text: str = ""


def steps_of(page: str) -> list[Step]:
    """Return the blocks of *page* with their orders."""
    steps: list[Step] = []
    order = ""
    for part in _PARTS.finditer(page):
        if part["order"] is None:
            steps.append(Step(order, part["language"], part["text"]))
            order = ""
        elif part["order"].startswith("stop "):
            steps.append(Step(part["order"]))
        else:
            order = part["order"]
    return steps


def shape(line: str) -> str:
    """Return *line* without its numbers and the widths of its columns."""
    return " ".join(re.sub(r"\d+(\.\d+)*", "0", line).split())


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGINT)
    with process:
        return process.wait(60)


@dataclass
class Reader:
    """A reader, who carries out the steps of a page.

    Args:
        directory: The working directory; a command ``cd`` changes it.
        configuration: The name of the configuration file.
        environment: The environment of the commands.
    """

    directory: Path
    configuration: str
    environment: dict[str, str]
    output: str = ""
    _url: str = ""
    _terminals: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _last: str = ""

    def __post_init__(self) -> None:
        self._root = self.directory

    def follow(self, page: str) -> None:
        """Do all steps of *page*."""
        try:
            for step in steps_of(page):
                self._do(step)
        finally:
            # The consumers first, which came last.
            for process in reversed(self._terminals.values()):
                _interrupt(process)

    def _do(self, step: Step) -> None:
        word, _, rest = step.order.partition(" ")
        actions: dict[str, Callable[[], None]] = {
            "skip,": lambda: None,
            "file": lambda: self._write(rest, step.text),
            "line": lambda: self._replace(rest, step.text),
            "append": lambda: self._write(
                self.configuration, f"{self._file.read_text()}\n{self._real(step.text)}"
            ),
            "terminal": lambda: self._open(rest, step.text),
            "url": self._find_url,
            "shown": lambda: self._shows(step.text, rest.removeprefix("by ").split(" or ")),
            "stop": lambda: self._stop(rest),
            "exits": lambda: self._run(step.text, int(rest)),
            "sh": lambda: self._run(step.text),
            "text": lambda: self._shows(step.text, [self._last] if self._last else []),
        }
        actions[word or step.language]()

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def _find_url(self) -> None:
        found = until(lambda: _URL.search(self._log(self._last)), "the URL")
        self._url = found[0]

    def _stop(self, name: str) -> None:
        assert _interrupt(self._terminals.pop(name)) == 0, self._log(name)

    @property
    def _file(self) -> Path:
        return self.directory / self.configuration

    def _real(self, text: str) -> str:
        return _URL.sub(self._url, text) if self._url else text

    def _replace(self, word: str, text: str) -> None:
        found, count = re.subn(
            rf"^{re.escape(word)}\b.*\n",
            self._real(text),
            self._file.read_text(),
            flags=re.MULTILINE,
        )
        assert count == 1, word
        self._file.write_text(found)

    def _run(self, text: str, exit_code: int = 0) -> None:
        self._last = ""
        place = self.directory / ".place"
        done = subprocess.run(
            ["sh", "-ec", f"trap 'pwd > \"$PLACE\"' EXIT\n{self._real(text)}"],
            cwd=self.directory,
            env={**self.environment, "PLACE": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        self.output = done.stdout
        assert done.returncode == exit_code, f"{text}\n{self.output}"
        self.directory = type(place)(place.read_text().strip())
        place.unlink()

    def _open(self, name: str, text: str) -> None:
        self._last = name
        log = self._root / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {self._real(text)}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
            )
        self._terminals[name] = process

    def _log(self, name: str) -> str:
        return (self._root / f"{name}.log").read_text()

    def _shows(self, text: str, terminals: list[str]) -> None:
        """Check that each line is in the last output, or comes in one of *terminals*."""
        for line in filter(None, text.splitlines()):
            if terminals:
                until(partial(self._is_shown, line, terminals), partial(self._shown, terminals))
            else:
                assert self._is_shown(line, []), f"{line!r} is not in\n{self.output}"

    def _is_shown(self, line: str, terminals: list[str]) -> bool:
        return any(shape(line) in shape(one) for one in self._shown(terminals).splitlines())

    def _shown(self, terminals: list[str]) -> str:
        return "\n".join(map(self._log, terminals)) if terminals else self.output
