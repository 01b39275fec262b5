# SPDX-License-Identifier: GPL-2.0-or-later
"""The tutorial about publishing from a web application keeps the promises of its text."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest

from consumer_framework.testing.broker import reserve_port

from .instance import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs/tutorial/publish-from-a-web-application.md"
EXAMPLE = ROOT / "examples/web/flask_library.py"
TEXT = TUTORIAL.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


PRINTER, APPLICATION = blocks("python")
SHOWN = blocks("text")


def test_the_tutorial_shows_the_example():
    _, _, rest = EXAMPLE.read_text(encoding="utf-8").partition("\n")
    assert rest == APPLICATION


class Terminals:
    """The terminals of the reader, in one directory."""

    def __init__(self, directory: Path, broker_url: str) -> None:
        self._directory = directory
        with reserve_port() as holder:
            self._port: int = holder.getsockname()[1]
        self._environment = {
            **{k: v for k, v in os.environ.items() if k not in {"STATE_DIRECTORY", "PYTHONPATH"}},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FEDORA_MESSAGING_CONF": "library.toml",
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        printer, library = (self._here(text, broker_url) for text in blocks("toml"))
        (directory / "printer.toml").write_text(printer)
        (directory / "library.toml").write_text(library)
        (directory / "printer.py").write_text(PRINTER)
        (directory / "flask_library.py").write_text(APPLICATION)

    def _here(self, text: str, broker_url: str = "") -> str:
        text = re.sub(r"^amqp_url = .*", f'amqp_url = "{broker_url}"', text)
        text = text.replace("/tmp/library", str(self._directory))  # noqa: S108 -- as the page says
        return re.sub(r"\b5000\b", str(self._port), text)

    def run(self, *words: str) -> str:
        """Run the commands of the page with all *words*, and return their output."""
        [block] = [text for text in blocks("sh") if all(word in text for word in words)]
        done = subprocess.run(
            ["sh", "-ec", self._here(block)],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def start(self, word: str) -> subprocess.Popen[bytes]:
        """Start the command of the page with *word*, as its own process."""
        lines = [line for text in blocks("sh") for line in text.splitlines() if word in line]
        command = f"exec env {self._here(lines[0])}"
        with (self._directory / "log").open("ab") as log:
            process = subprocess.Popen(
                ["sh", "-c", command],
                cwd=self._directory,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text()

    def serves(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/", timeout=5)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 404
        except OSError:
            return False
        return False

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def terminals(broker: Any, tmp_path: Path) -> Iterator[Terminals]:
    if shutil.which("curl") is None:
        lacking = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lacking("curl is not installed: apt-get install curl")
    terminals = Terminals(tmp_path, broker.url)
    yield terminals
    terminals.end()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete("printer")


def timeless(listing: str) -> str:
    """Return a listing without its ages."""
    return re.sub(r" +\d+s ", " ", listing)


def test_the_messages_of_requests_that_succeeded_arrive(terminals):
    code = "%{http_code}"
    terminals.start("fm-consumer run")
    until(lambda: "consuming from printer" in terminals.log, lambda: terminals.log)
    [init] = [line for text in blocks("sh") for line in text.splitlines() if "init-db" in line]
    assert terminals.start(init).wait() == 0, terminals.log
    server = terminals.start("flask --app flask_library run")
    until(terminals.serves, lambda: terminals.log)

    assert terminals.run("Dune", "-s --json") in SHOWN
    assert terminals.run("Dune", code) == "409\n"
    assert terminals.run("books/9/loans") in SHOWN
    [listing] = [text for text in SHOWN if "ATTEMPTS" in text]
    assert timeless(terminals.run("outbox list")) == timeless(listing)

    relay = terminals.start("outbox relay")
    [added, lent, after] = [text for text in SHOWN if text.startswith("org.example")]
    until(lambda: added in terminals.log, lambda: terminals.log)
    [one] = [text for text in blocks("sh") if "2026-01-31" in text and "soon" not in text]
    assert terminals.run(one) == "201\n"
    until(lambda: lent in terminals.log, lambda: terminals.log)

    relay.send_signal(signal.SIGINT)
    assert relay.wait() == 0
    assert terminals.run("Solaris") in SHOWN
    server.send_signal(signal.SIGQUIT)
    assert server.wait() == -signal.SIGQUIT
    assert after not in terminals.log
    terminals.start("outbox relay")
    until(lambda: after in terminals.log, lambda: terminals.log)
    assert terminals.log.count("org.example.library.book.") == 3
