# SPDX-License-Identifier: GPL-2.0-or-later
"""Reload instances of these tests, while messages come all the time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pika

from .control import call
from .instance import FM_CONSUMER, HEADERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .instance import Instance


def config_of(instance: Instance, url: str, queues: str, extra: str = "") -> None:
    """Write another configuration for the existing callback."""
    module = f"handlers_{instance.configuration.parent.name}"
    instance.configuration.write_text(
        f'amqp_url = "{url}"\ncallback = "{module}:handler"\n{extra}\n{queues}'
    )


def reload(instance: Instance, *options: str) -> subprocess.CompletedProcess[str]:
    """Reload as an operator does, and return the exit code and the output."""
    command = [str(FM_CONSUMER), "reload", "--conf", str(instance.configuration)]
    command += ["--state-dir", str(instance.state), *options]
    directory = instance.configuration.parent
    environment = {
        **os.environ,
        "STATE_DIRECTORY": str(instance.state),
        "RUNTIME_DIRECTORY": str(directory),
    }
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )


def ask(instance: Instance) -> list[dict[str, Any]]:
    """Reload as the command does, but without starting it, and return all answers."""
    path = instance.configuration.with_name("control")
    _, answers = call(path, "POST", "/v1/reload")
    assert answers.pop() == {"done": True}
    return answers


def reloaded(instance: Instance) -> dict[str, tuple[str, str]]:
    """Reload, check that the settings are in force, and return the changes."""
    answer = ask(instance)[-1]
    assert answer["result"] in {"reloaded", "unchanged"}, str(answer) + instance.log
    assert answer["problems"] == []
    return {change["path"]: (change["takes"], change["text"]) for change in answer["changes"]}


def refused(instance: Instance) -> list[dict[str, str]]:
    """Reload, check that it is refused, and return the reasons."""
    answer = ask(instance)[-1]
    assert answer["result"] == "refused"
    problems: list[dict[str, str]] = answer["problems"]
    return problems


@contextlib.contextmanager
def published_all_the_time(url: str, key: str, pause: float = 0.003) -> Iterator[list[int]]:
    """Publish numbers from 0 on within the context; yield the published numbers."""
    published: list[int] = []
    is_over = threading.Event()

    def publish_all() -> None:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while not is_over.is_set():
                number = len(published)
                properties = pika.BasicProperties(
                    message_id=str(number),
                    content_type="application/json",
                    content_encoding="utf-8",
                    delivery_mode=2,
                    headers=HEADERS,
                )
                body = json.dumps({"n": number}).encode()
                channel.basic_publish("amq.topic", key, body, properties, mandatory=True)
                published.append(number)
                connection.sleep(pause)

    thread = threading.Thread(target=publish_all)
    thread.start()
    try:
        yield published
    finally:
        is_over.set()
        thread.join()


def handled_once(instance: Instance, event: str, published: Sequence[int]) -> list[dict[str, Any]]:
    """Wait until all messages are handled, and check that none is handled twice."""
    notes = instance.noted(event, len(published), 60)
    counts = Counter(note["body"]["n"] for note in notes)
    assert counts == dict.fromkeys(published, 1)
    return notes
