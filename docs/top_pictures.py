# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the pictures of ``fm-consumer top``: the screen of five instances that work, as SVG.

``make picture`` runs the instances on a private broker, and publishes messages to them. One is
slow, two meet messages that they cannot handle, and one is paused.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pika

from consumer_framework.cli import options
from consumer_framework.cli.top_screen import TopApp
from consumer_framework.cli.top_sources import ThisHost
from consumer_framework.runtime import state_files
from consumer_framework.testing.broker import Broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from textual.pilot import Pilot

    from consumer_framework.operate.board import Line
    from consumer_framework.operate.rows import Row

PICTURES = Path(__file__).parent / "howto"
_SIZE = (80, 24)
# Seconds.
_INTERVAL = 4.0
_WORK, _LOOK = 55.0, 9.0
_PATIENCE = 90.0
_CONSUMERS = """\
import time


def quick(message):
    time.sleep(0.004)


def slow(message):
    time.sleep(4 if message.body["task"] % 5 == 0 else 0.2)
    if message.body["task"] % 6 == 0:
        raise TimeoutError("no answer from dist-git")


def picky(message):
    if message.body["task"] % 40 == 0:
        raise KeyError("owner")
"""
_CONFIGURATION = """\
amqp_url = "{url}"
callback = "consumers:{handler}"
[queues.{name}]
durable = true
auto_delete = false
exclusive = false
arguments = {{}}
[[bindings]]
queue = "{name}"
exchange = "amq.topic"
routing_keys = ["org.fedoraproject.prod.{name}.#"]
[consumer_config.framework.recovery]
immediate = 0
delays = []
"""
# The instances, their handlers, their topics, and the messages that they have got after so many
# seconds: all at first, more and more, or the same.
_INSTANCES: dict[str, tuple[str, str, Callable[[float], float]]] = {
    "bodhi": ("picky", "update.request.testing", lambda t: 150 * min(t, 9) + 3 * t),
    "builds": ("quick", "build.state.change", lambda t: 2 * t**2),
    "copr": ("slow", "build.end", lambda t: 12 * t),
    "koji": ("quick", "task.state.change", lambda t: t**1.8),
    "wiki": ("quick", "article.edit", lambda t: 2 * t + 16 * math.sin(t / 8) ** 2),
}
_PAUSED = "koji"
_SHOWN = "copr"


@contextmanager
def _running(directory: Path, url: str) -> Iterator[None]:
    """Run the instances, and let :class:`.ThisHost` find them."""
    etc, lib = directory / "etc", directory / "lib"
    etc.mkdir()
    (directory / "consumers.py").write_text(_CONSUMERS)
    state_files.SYSTEM_STATE = lib
    options.CONFIGURATION_DIRECTORY = etc
    with ExitStack() as stack:
        for name, (handler, _topic, _count) in _INSTANCES.items():
            file = etc / f"{name}.toml"
            file.write_text(_CONFIGURATION.format(url=url, name=name, handler=handler))
            state = str(lib / name)
            environment = {"STATE_DIRECTORY": state, "RUNTIME_DIRECTORY": state}
            # It looks at its queue three times in that time.
            environment["WATCHDOG_USEC"] = "9000000"
            process = subprocess.Popen(  # noqa: S603 -- a command of this file
                [str(Path(sys.executable).with_name("fm-consumer")), "run", "--conf", str(file)],
                env={**os.environ, "PYTHONPATH": str(directory), **environment},
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 60)
            stack.callback(process.kill)
        yield


@contextmanager
def _published(url: str) -> Iterator[None]:
    """Publish to all instances, again and again."""
    ended = threading.Event()
    thread = threading.Thread(target=_publish, args=(url, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _publish(url: str, ended: threading.Event) -> None:
    begun, sent = time.monotonic(), dict.fromkeys(_INSTANCES, 0)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        while not ended.wait(0.1):
            passed = time.monotonic() - begun
            for name, (_handler, topic, count) in _INSTANCES.items():
                while sent[name] < count(passed):
                    sent[name] += 1
                    properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
                        message_id=str(uuid.uuid4()),
                        content_type="application/json",
                        content_encoding="utf-8",
                        headers={"fedora_messaging_schema": "base.message"},
                    )
                    key = f"org.fedoraproject.prod.{name}.{topic}"
                    body = json.dumps({"task": sent[name]}).encode()
                    channel.basic_publish("amq.topic", key, body, properties)


async def _draw(url: str) -> dict[str, str]:
    app = TopApp(ThisHost((), None), _INTERVAL)
    async with app.run_test(size=_SIZE) as pilot:
        await _until(pilot, app, lambda rows: all(row.rate is not None for row in rows))
        with _published(url):
            source = app.source
            await asyncio.to_thread(source.order, _line(app, _PAUSED).row, "pause")
            await _until(pilot, app, lambda rows: all(row.lag is not None for row in rows))
            await pilot.pause(_WORK)
            table = app.export_screenshot(title="fm-consumer top")
            while app.chosen is None or app.chosen.name != _SHOWN:
                await pilot.press("down")
            await pilot.press("enter")
            await pilot.pause(_LOOK)
            details = app.export_screenshot(title=f"fm-consumer top: {_SHOWN}")
    return {"top.svg": table, "top-details.svg": details}


def _line(app: TopApp, name: str) -> Line:
    return next(line for line in app.board.lines() if line.key.name == name)


async def _until(pilot: Pilot[None], app: TopApp, holds: Callable[[list[Row]], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not holds([line.row for line in app.board.lines()]) or not app.board.lines():
        if time.monotonic() > end:
            raise RuntimeError(app.board.summary)
        await pilot.pause(0.2)


def _without_fonts(picture: str) -> str:
    """Return the picture without the fonts that it would fetch from elsewhere."""
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    return picture.replace("Fira Code,", "ui-monospace, DejaVu Sans Mono,")


def main() -> None:
    """Write the pictures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="top-")))
        broker = stack.enter_context(Broker())
        stack.enter_context(_running(directory, broker.url))
        pictures = asyncio.run(_draw(broker.url))
    for file, picture in pictures.items():
        (PICTURES / file).write_text(_without_fonts(picture), encoding="utf-8")


if __name__ == "__main__":
    main()
