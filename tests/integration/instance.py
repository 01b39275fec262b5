# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``fm-consumer run`` as a separate process, as a service manager does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pika

from consumer_framework.adapters.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from consumer_framework.adapters.store import Row

FM_CONSUMER = Path(sys.executable).with_name("fm-consumer")

# The handlers of these tests share this: `note(...)` appends a line that the test reads.
PRELUDE = """
import json, os, threading, time
from fedora_messaging import config
from fedora_messaging.exceptions import Drop, HaltConsumer, Nack

def note(event, message, **more):
    line = {"event": event, "id": message.id, "queue": message.queue, "body": message.body,
            "at": time.monotonic(), "thread": threading.current_thread().name, **more}
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps(line) + "\\n")
"""

HEADERS = {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20}


def queue_table(name: str, *, keys: Iterable[str] | None = None, **more: Any) -> str:
    """Return the TOML of a durable queue and its binding."""
    table = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}, **more}
    lines = [f"[queues.{json.dumps(name)}]"]
    lines += [f"{key} = {toml(value)}" for key, value in table.items()]
    binding = {"queue": name, "exchange": "amq.topic", "routing_keys": list(keys or [name])}
    lines += ["[[bindings]]", *(f"{key} = {toml(value)}" for key, value in binding.items())]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def until(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = 60) -> Any:
    """Wait for *condition* to become true and return its value.

    Args:
        what: The name of the condition, for the failure. A function is called only on failure.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"in {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.02)
    return value


def publish(url: str, key: str, bodies: Iterable[Any], **properties: Any) -> None:
    """Publish messages to amq.topic, confirmed; the id of an int body is that number."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for body in bodies:
            raw = body if isinstance(body, bytes) else json.dumps({"n": body}).encode()
            given = {
                "message_id": str(body) if isinstance(body, int) else str(uuid.uuid4()),
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "delivery_mode": 2,
                "headers": HEADERS,
                **properties,
            }
            channel.basic_publish(
                "amq.topic", key, raw, pika.BasicProperties(**given), mandatory=True
            )


class Instance:
    """One process of ``fm-consumer run``, its notifications, its log, and its handler's notes.

    Args:
        directory: The directory of its files.
        url: The broker's URL.
        queues: TOML of queues and bindings.
        handler: Python source of the callback ``handler``.
        options: More arguments of ``fm-consumer run``.
        extra: More TOML, before the queues.
        environment: More environment variables.
        command: A whole other command.
        prefix: The command, with arguments, in place of ``fm-consumer``.
    """

    def __init__(
        self,
        directory: Path,
        url: str,
        queues: str,
        handler: str,
        *,
        options: Iterable[str] = (),
        extra: str = "",
        environment: Mapping[str, str] | None = None,
        command: Iterable[str] | None = None,
        prefix: Iterable[str] | None = None,
    ) -> None:
        self._directory = directory
        self._notes = directory / "notes"
        self._log = directory / "log"
        module = f"handlers_{directory.name.replace('-', '_')}"
        (directory / f"{module}.py").write_text(PRELUDE + handler)
        self.configuration = directory / "instance.toml"
        self.state = directory / "state"
        self.configuration.write_text(
            f'amqp_url = "{url}"\ncallback = "{module}:handler"\n{extra}\n{queues}'
        )
        conf = ["--conf", str(self.configuration)]
        program = list(prefix or [str(FM_CONSUMER)])
        self._command = list(command or [*program, "run", *conf, *options])
        self._environment = dict(environment or {})
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.notifications: list[str] = []

    def start(self) -> Self:
        self.notifications = []
        address = self._directory / "notify"
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        threading.Thread(target=self._receive, args=(self._socket,), daemon=True).start()
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(address),
            "NOTES": str(self._notes),
            "PYTHONPATH": str(self._directory),
            "PYTHONUNBUFFERED": "1",
            "FEDORA_MESSAGING_CONF": str(self.configuration),
            "STATE_DIRECTORY": str(self.state),
            "RUNTIME_DIRECTORY": str(self._directory),
            **self._environment,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                # SIGHUP from a terminal means that the terminal is gone.
                stdin=subprocess.DEVNULL,
                stderr=log,
                stdout=log,
                env=environment,
            )
        return self

    def ready(self, seconds: float = 60) -> Self:
        """Wait for READY=1."""
        until(lambda: self.told("READY=1") or self._ended(), f"READY=1\n{self.log}", seconds)
        assert self.told("READY=1"), self.log
        return self

    def told(self, text: str) -> bool:
        """Return True if a notification with *text* has come."""
        return any(text in notification for notification in list(self.notifications))

    def _receive(self, notify_socket: socket.socket) -> None:
        """Receive at once, as a service manager does, because the socket's queue is short."""
        notifications = self.notifications
        while notification := notify_socket.recv(65536):
            notifications.append(notification.decode())

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Wait for the end and return the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.log}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and return the exit code."""
        self.send(number)
        return self.wait()

    def end(self) -> None:
        """End the process and close its socket, after any test."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def notes(self, event: str = "") -> list[dict[str, Any]]:
        """Return the handler's notes so far."""
        if not self._notes.exists():
            return []
        # A read may meet a write: the last line is not complete then.
        complete, _, _ = self._notes.read_text().rpartition("\n")
        return [
            n for n in map(json.loads, complete.splitlines()) if not event or n["event"] == event
        ]

    def noted(self, event: str, count: int, seconds: float = 60) -> list[dict[str, Any]]:
        """Wait until the handler has noted *event* that often."""
        until(lambda: len(self.notes(event)) >= count, f"{count} x {event}\n{self.log}", seconds)
        return self.notes(event)

    def store(self) -> list[Row]:
        """Return the rows of its store, oldest first."""
        reader = Store.read(self.state)
        try:
            return list(reader.rows(state=None))
        finally:
            reader.close()

    def bodies(self) -> list[bytes]:
        """Return the bodies in its store, oldest first."""
        reader = Store.read(self.state)
        try:
            found = [reader.delivery(row.id) for row in reader.rows(state=None)]
            return [delivery.body for delivery in found if delivery is not None]
        finally:
            reader.close()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None
