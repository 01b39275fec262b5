# SPDX-License-Identifier: GPL-2.0-or-later
"""The consumers of the README and of the tutorial keep the promises of the text."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest

from consumer_framework.core.errors import ExitCode

from .instance import Instance, publish, until

if TYPE_CHECKING:
    from consumer_framework.testing.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial/first-consumer.md"
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
        for name in ("sample", "greeter"):
            connection.channel().queue_delete(name)


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


@pytest.mark.usefixtures("fresh_queues")
class TestTutorial:
    @pytest.fixture(autouse=True)
    def files(self, broker: Broker, tmp_path: Path) -> None:
        (tmp_path / "greeter.py").write_text(blocks(TUTORIAL, "python")[0])
        (tmp_path / "greeter.toml").write_text(configuration(TUTORIAL, broker))

    @pytest.fixture
    def run(self, start_command: Start) -> Callable[[], Instance]:
        return lambda: start_command(line_of(TUTORIAL, "fm-consumer run"))

    @pytest.fixture
    def publish_as_told(self, tmp_path: Path) -> Callable[..., Any]:
        def run_block(body: str, instead: str = "") -> None:
            [script] = [text for text in blocks(TUTORIAL, "sh") if f"body={body})" in text]
            script = script.replace(body, instead or body)
            environment = {**os.environ, "PATH": PATH}
            subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, check=True)

        return run_block

    @pytest.fixture
    def as_told(self, tmp_path: Path) -> Callable[[str], str]:
        def output_of(text: str) -> str:
            """Return the output of the tutorial's command that contains *text*."""
            known = [line for block in blocks(TUTORIAL, "sh") for line in block.splitlines()]
            line = next((line for line in known if text in line), text)
            result = subprocess.run(
                ["sh", "-c", line],
                cwd=tmp_path,
                env={**os.environ, "PATH": PATH},
                check=True,
                capture_output=True,
                text=True,
            )
            return result.stdout

        return output_of

    def test_the_consumer_greets(self, run, publish_as_told):
        instance = run().ready()
        publish_as_told('{"name": "world"}')
        until(lambda: "\nGood morning, world!\n" in instance.log, "the greeting")
        assert instance.stop() == ExitCode.OK

    def test_a_misspelt_name_is_reported_as_shown(self, run, tmp_path):
        path = tmp_path / "greeter.toml"
        path.write_text(path.read_text().replace("\ngreeting =", "\ngreting ="))
        instance = run()
        assert instance.wait() == ExitCode.CONFIGURATION
        assert instance.log in blocks(TUTORIAL, "text")

    def test_a_message_without_a_name_is_quarantined_and_replayed_once_it_can_be_handled(
        self, broker, run, publish_as_told, as_told, tmp_path
    ):
        failing = run().ready()
        publish_as_told("{}")
        publish_as_told('{"name": "world"}')
        until(lambda: "\nGood morning, world!\n" in failing.log, "it goes on")
        until(lambda: "1 message, 1 cause" in as_told("quarantine list"), "it is quarantined")
        assert "it is held until" in failing.log
        assert "it is quarantined: KeyError: 'name'" in failing.log
        [shown] = [text for text in blocks(TUTORIAL, "text") if "COUNT" in text]
        assert timeless(as_told("quarantine list")) == timeless(
            shown.replace("first/", f"{tmp_path.name}/")
        )
        [_, show] = shown.strip().rsplit("\n", 1)
        assert "Attempt 4 of 4" in as_told(show)
        assert failing.stop() == ExitCode.OK
        (tmp_path / "greeter.py").write_text(blocks(TUTORIAL, "python")[1])
        mended = run().ready()
        assert as_told("quarantine replay") in blocks(TUTORIAL, "text")
        [greeting] = [text for text in blocks(TUTORIAL, "text") if "stranger" in text]
        assert f"\n{greeting}" in mended.log
        publish_as_told('{"name": "world"}', '{"name": "nobody"}')
        until(lambda: "is dropped: there is nobody to greet" in mended.log, "drop")
        assert mended.stop() == ExitCode.OK
        assert broker.depth("greeter") == (0, 0)


def timeless(listing: str) -> str:
    """Return a listing without its ages."""
    return re.sub(r" +\d+s ", " ", listing)
