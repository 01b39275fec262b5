# SPDX-License-Identifier: GPL-2.0-or-later
"""FakeNotifier, and SystemdNotifier on a real socket."""

import socket

import pytest

from consumer_framework.adapters.systemd import SystemdNotifier
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
        notifier.stopping("three")
        assert notifier.calls == [("status", "one"), ("ready", "two"), ("stopping", "three")]


class Manager:
    """What systemd knows of a service (sd_notify(3))."""

    def __init__(self, notify_socket):
        self._socket = notify_socket
        self._known = {}
        self.all = []

    def _read(self):
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self._known
            self.all += [line.split("=", 1) for line in text.splitlines()]
            self._known.update(self.all)

    @property
    def is_ready(self):
        return self._read().get("READY") == "1"

    @property
    def is_stopping(self):
        return self._read().get("STOPPING") == "1"

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
