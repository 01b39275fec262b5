# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the picture of the front page: a real session in a terminal, as SVG.

``make picture`` runs a consumer on a private broker. A message fails, is tried again, is
quarantined, looked at, and replayed by the mended consumer. Every line is real output; tracebacks
and parts of long output are cut, which a line with "…" shows. A test compares the text with a new
session.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pika

from consumer_framework.testing.broker import Broker

if TYPE_CHECKING:
    from collections.abc import Iterable

PICTURE = Path(__file__).with_name("front-page.svg")
_COLUMNS = 122
_CONSUMER = """\
from consumer_framework import Consumer


class Builds(Consumer):
    def handle(self, message):
        print(message.body["name"], "is built", flush=True)
"""
_CONFIGURATION = """\
amqp_url = "{url}"
callback = "builds:Builds"
queues.{queue} = {{durable = true, auto_delete = false, exclusive = false, arguments = {{}}}}

[[bindings]]
queue = "{queue}"
exchange = "amq.topic"
routing_keys = ["build.#"]

[consumer_config.framework.recovery]
delays = ["1s"]

[log_config]
version = 1
disable_existing_loggers = false
formatters.short.format = "%(levelname)-8s%(message)s"
handlers.console = {{class = "logging.StreamHandler", formatter = "short"}}
root = {{level = "ERROR", handlers = ["console"]}}
loggers.consumer_framework = {{level = "INFO"}}
"""
_CUT = "\x1b[2m    …\x1b[0m"
QUEUE = "builds"


class _Terminal:
    """A program that believes to be in a terminal, and its output so far."""

    def __init__(self, directory: Path, line: str) -> None:
        master, slave = pty.openpty()
        self._line = line
        self._output = b""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {
            **{key: value for key, value in os.environ.items() if key != "NO_COLOR"},
            "PATH": programs,
            "PYTHONPATH": str(directory),
            "STATE_DIRECTORY": str(directory / "state"),
            "COLUMNS": str(_COLUMNS),
            "TERM": "xterm",
        }
        self._process = subprocess.Popen(  # noqa: S603 -- a command of this file
            ["/bin/sh", "-c", f"exec {line}"],
            cwd=directory,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, args=(master,))
        self._reader.start()

    def _read(self, master: int) -> None:
        try:
            while more := os.read(master, 65536):
                self._output += more
        except OSError:
            pass  # Linux: the program has closed its side.
        os.close(master)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 60
        while text.encode() not in self._output:
            if time.monotonic() > deadline or not self._reader.is_alive():
                raise RuntimeError(f"{self._line}: no {text!r} in\n{self._output.decode()}")
            time.sleep(0.05)

    def end(self, *, stop: bool = False) -> list[str]:
        """Return the lines, with the command as the first, once the program has ended."""
        if stop:
            self._process.terminate()
        self._reader.join()
        self._process.wait()
        lines = self._output.decode().replace("\r\n", "\n").rstrip("\n").split("\n")
        return [f"\x1b[1;32m$\x1b[0m \x1b[1m{self._line}\x1b[0m", *lines, ""]


def session(url: str) -> str:
    """Run the session with the broker at *url*, and return the text of the terminal."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "builds"
        directory.mkdir()
        consumer = directory / "builds.py"
        consumer.write_text(_CONSUMER)
        (directory / "builds.toml").write_text(_CONFIGURATION.format(url=url, queue=QUEUE))
        run = _Terminal(directory, "fm-consumer run --conf builds.toml")
        run.wait_for(f"consuming from {QUEUE}")
        _publish(url, '{"package": "bash"}', '{"name": "zsh"}')
        run.wait_for("it is quarantined")
        lines = _without_tracebacks(run.end(stop=True))
        show = _Terminal(directory, "fm-consumer quarantine show --conf builds.toml 1").end()
        lines += [*_part(show, 7), *_part(_from(show, "Body"), 4), ""]
        mend = r"""sed -i 's/\["name"\]/.get("name", "a package")/' builds.py"""
        lines += _Terminal(directory, mend).end()[:1]
        lines += _Terminal(directory, "fm-consumer quarantine replay --conf builds.toml 1").end()
    return "\n".join(lines).rstrip("\n")


def _publish(url: str, *bodies: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        for number, body in enumerate(bodies):
            properties = pika.BasicProperties(
                message_id=f"7d1f{number}",
                content_type="application/json",
                content_encoding="utf-8",
                headers={"fedora_messaging_schema": "base.message"},
            )
            key = "build.done"
            connection.channel().basic_publish("amq.topic", key, body.encode(), properties)


def _without_tracebacks(lines: Iterable[str]) -> list[str]:
    text = "\n".join(lines)
    return re.sub(r"\nTraceback .*?\n(?=\w+Error)", f"\n{_CUT}\n", text, flags=re.DOTALL).split(
        "\n"
    )


def _from(lines: list[str], word: str) -> list[str]:
    first = next(number for number, line in enumerate(lines) if word in line)
    return lines[first:]


def _part(lines: list[str], count: int) -> list[str]:
    return [*lines[:count], _CUT]


def plain(text: str) -> str:
    """Return *text* without the sequences that colour it."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


# As rich has it, but without fonts that are fetched from elsewhere.
_FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>A message that fails is tried again, quarantined, looked at and replayed</title>
<desc>%s</desc>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def svg(text: str) -> str:
    """Return the picture of a terminal that shows *text*."""
    from rich.console import Console  # noqa: PLC0415 -- the test of the text does not need it
    from rich.text import Text  # noqa: PLC0415

    console = Console(width=_COLUMNS, record=True, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(text))
    described = escape(plain(text)).replace("{", "{{").replace("}", "}}")
    form = _FORMAT % described
    return console.export_svg(title="fm-consumer", code_format=form, unique_id="front")


def text_of(picture: str) -> str:
    """Return the text that *picture* shows."""
    return picture.partition("<desc>")[2].partition("</desc>")[0]


if __name__ == "__main__":
    with Broker() as broker:
        PICTURE.write_text(svg(session(broker.url)), encoding="utf-8")
