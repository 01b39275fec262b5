# SPDX-License-Identifier: GPL-2.0-or-later
"""FakeNotifier, and SystemdNotifier on a real socket."""

import socket

import pytest

from consumer_framework.adapters.systemd.notify import SystemdNotifier
from consumer_framework.testing import FakeNotifier

from .notifier import NotifierSuite


class TestFakeNotifier(NotifierSuite):
    @pytest.fixture
    def notifier(self):
        return FakeNotifier()

    @pytest.fixture
    def manager(self, notifier):
        return notifier

    def test_it_keeps_every_call_in_order(self, notifier):
        notifier.status("one")
        notifier.ready("two")
        notifier.watchdog()
        notifier.stopping("three")
        assert notifier.calls == [
            ("status", "one"),
            ("ready", "two"),
            ("watchdog", ""),
            ("stopping", "three"),
        ]

    def test_it_waits_for_as_long_as_it_is_told(self):
        assert FakeNotifier(watchdog_seconds=30).watchdog_seconds == 30


class Manager:
    """The state of a service as systemd knows it (sd_notify(3))."""

    def __init__(self, notify_socket):
        self._socket = notify_socket
        self._known = {}
        self.all = []
        self._watchdogs = []

    def _read(self):
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self._known
            lines = [line.split("=", 1) for line in text.splitlines()]
            self.all += lines
            self._known.update(lines)
            self._watchdogs += [value for name, value in lines if name == "WATCHDOG"]

    @property
    def is_ready(self):
        return self._read().get("READY") == "1"

    @property
    def is_reloading(self):
        self._read()
        told = [name for name, _ in self.all if name in {"READY", "RELOADING"}]
        return told[-1:] == ["RELOADING"]

    @property
    def is_stopping(self):
        return self._read().get("STOPPING") == "1"

    @property
    def is_triggered(self):
        self._read()
        return "trigger" in self._watchdogs

    @property
    def feeds(self):
        self._read()
        return self._watchdogs.count("1")

    @property
    def status_line(self):
        return self._read().get("STATUS", "")

    @property
    def extensions(self):
        self._read()
        return [int(value) / 1e6 for name, value in self.all if name == "EXTEND_TIMEOUT_USEC"]

    @property
    def restart_resets(self):
        self._read()
        return self.all.count(["RESTART_RESET", "1"])


class TestSystemdNotifier(NotifierSuite):
    @pytest.fixture
    def manager(self, tmp_path, monkeypatch):
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket:
            notify_socket.bind(str(tmp_path / "notify"))
            notify_socket.setblocking(False)
            yield Manager(notify_socket)

    @pytest.fixture
    def notifier(self, manager):
        made = SystemdNotifier()
        yield made
        assert made._systemd is not None
        made._systemd.socket.close()
