# SPDX-License-Identifier: GPL-2.0-or-later
"""The consumers of the README and the picture of the front page keep their promises."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pika
import pytest

from consumer_framework.core.errors import ExitCode

from .instance import Instance, publish, until

if TYPE_CHECKING:
    from consumer_framework.testing.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
# As in a terminal with the virtual environment, in the directory of the files.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

Start = Callable[..., Instance]


@pytest.fixture
def start_command(start: Start, broker: Broker, tmp_path: Path) -> Start:
    def start_in_directory(line: str) -> Instance:
        command = ["sh", "-c", f'cd "$0" && exec env {line}', str(tmp_path)]
        # As in a terminal, where no service manager names directories.
        unset = dict.fromkeys(["PYTHONPATH", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"], "")
        environment = {"PATH": PATH, "XDG_STATE_HOME": str(tmp_path), **unset}
        return start(broker.url, "", "", command=command, environment=environment)

    return start_in_directory


@pytest.fixture
def fresh_queues(broker: Broker) -> Iterator[None]:
    yield
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete("sample")


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of *page*."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def line_of(page: Path, text: str) -> str:
    """Return the line with *text* in the commands of *page*."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return next(line for line in lines if text in line)


def configuration(page: Path, broker: Broker) -> str:
    return re.sub(r"^amqp_url = .*", f'amqp_url = "{broker.url}"', blocks(page, "toml")[0])


@pytest.mark.usefixtures("fresh_queues")
def test_the_smallest_consumer_of_the_readme_runs(
    broker: Broker, start_command: Start, tmp_path: Path
):
    (tmp_path / "sample.py").write_text(blocks(README, "python")[0])
    (tmp_path / "sample.toml").write_text(configuration(README, broker))
    instance = start_command(line_of(README, "fm-consumer run")).ready()
    publish(broker.url, "org.example.hello", [1])
    until(lambda: "org.example.hello" in instance.log, "the consumer's line")
    assert instance.stop() == ExitCode.OK
    assert broker.depth("sample") == (0, 0)


def test_the_publisher_of_the_readme_stores_and_its_relay_sends(broker: Broker, tmp_path: Path):
    (tmp_path / "builds.py").write_text(blocks(README, "python")[1])
    document = re.sub(r"^amqp_url = .*", f'amqp_url = "{broker.url}"', blocks(README, "toml")[1])
    (tmp_path / "builds.toml").write_text(re.sub(r"(?<=sqlite:///)/\w+", str(tmp_path), document))
    environment = {**os.environ, "PATH": PATH, "PYTHONPATH": ""}

    def run(text: str) -> subprocess.Popen[str]:
        line = line_of(README, text)
        command = ["sh", "-c", f"exec env {line}"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, text=True)

    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, "amq.topic", "org.example.app.#")
        output, _ = run("python builds.py").communicate(timeout=60)
        assert output.count(" org.example.app.build.done\n") == 2
        relay = run("fm-consumer outbox relay")
        try:
            received: list[bytes] = []

            def is_complete() -> bool:
                _, _, body = channel.basic_get(queue, auto_ack=True)
                received.extend([] if body is None else [body])
                return len(received) == 2

            until(is_complete, "both messages")
        finally:
            relay.terminate()
            relay.communicate(timeout=60)
        assert received == [b'{"build": 17}', b'{"build": 18}']
        assert relay.returncode == 0


def test_the_picture_of_the_front_page_shows_a_real_session(broker: Broker):
    found = importlib.util.spec_from_file_location("front_page", ROOT / "docs/front_page.py")
    assert found is not None
    assert found.loader is not None
    front_page = importlib.util.module_from_spec(found)
    found.loader.exec_module(front_page)

    def lines(text: str) -> list[str]:
        # The messages overtake each other, at other times.
        return sorted(re.sub(r"\d+", "0", html.unescape(text)).splitlines())

    shown = front_page.text_of((ROOT / "docs/front-page.svg").read_text())
    try:
        assert lines(shown) == lines(front_page.plain(front_page.session(broker.url)))
    finally:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            connection.channel().queue_delete(front_page.QUEUE)
