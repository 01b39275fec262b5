# SPDX-License-Identifier: GPL-2.0-or-later
"""Notifications of the service manager, on a real socket."""

import logging
import os
import socket
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.adapters.systemd import notify
from consumer_framework.adapters.systemd.notify import SystemdNotifier, one_ascii_line


class Manager:
    """The other end of the notification socket."""

    def __init__(self, address):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def told(self):
        """The notifications that wait, oldest first."""
        received = []
        while True:
            try:
                received.append(self._socket.recv(65536).decode("ascii"))
            except BlockingIOError:
                return received

    def close(self):
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    name = f"notify-{uuid.uuid4()}"
    path = str(tmp_path / "notify")
    bound, variable = (path, path) if request.param == "path" else (f"\0{name}", f"@{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", variable)
    running = Manager(bound)
    yield running
    running.close()


@pytest.fixture
def notifier(manager, monkeypatch):
    monkeypatch.setattr(notify, "SEND_TIMEOUT", 0.01)
    made = SystemdNotifier()
    yield made
    assert made._systemd is not None
    made._systemd.socket.close()


def test_without_a_service_manager_nothing_is_said(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = SystemdNotifier()
    notifier.ready("ready")
    notifier.status("status")
    notifier.stopping("stopping")
    notifier.extend(1)
    notifier.restart_reset()
    notifier.watchdog()
    notifier.trigger("trigger")


def test_each_call_is_one_notification_with_a_status(manager, notifier):
    notifier.status("connecting")
    notifier.ready("consuming")
    notifier.stopping("stopping")
    assert manager.told() == [
        "STATUS=connecting",
        "READY=1\nSTATUS=consuming",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_a_status_that_did_not_change_is_not_sent_again(manager, notifier):
    for status in ("one", "one", "two", "two", "one"):
        notifier.status(status)
    notifier.ready("one")
    notifier.status("one")
    assert manager.told() == ["STATUS=one", "STATUS=two", "STATUS=one", "READY=1\nSTATUS=one"]


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ("the queue čaj", "the queue ?aj"),
        ("one\ntwo\r\n  three", "one two three"),
        ("READY=1\nSTOPPING=1", "READY=1 STOPPING=1"),
        ("colour \x1b[31m\x00", r"colour \x1b[31m\x00"),
        ("  tab\tand   spaces ", "tab and spaces"),
    ],
)
def test_a_status_is_one_line_of_ascii(manager, notifier, status, line):
    notifier.ready(status)
    assert manager.told() == [f"READY=1\nSTATUS={line}"]


ODD = [
    "é",
    "č",
    "€",
    "\U0001f600",
    "\ud800",
    "\udce9",
    "\udfff\ud800",
    "\x85",
    "\u2028",
    "\u202e",
    "\0",
]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_no_character_loses_a_notification(manager, notifier, caplog, odd):
    text = f"the queue {odd}: up"
    notifier.ready(text)
    notifier.reloading(text)
    notifier.trigger(text)
    notifier.stopping(text)
    notifier.restart_reset()
    notifier.status(f"{text} again")
    told = [line for datagram in manager.told() for line in datagram.split("\n")]
    assert [line for line in told if not line.startswith(("STATUS=the queue ", "MONOTONIC"))] == [
        "READY=1",
        "RELOADING=1",
        "WATCHDOG=trigger",
        "STOPPING=1",
        "RESTART_RESET=1",
    ]
    assert sum(line.startswith("STATUS=") and ": up" in line for line in told) == 6
    assert caplog.text == ""


def test_a_status_that_is_too_long_for_systemd_loses_its_middle(manager, notifier):
    notifier.ready("begin " + "\U0001f600\x1b" * 5000 + " end")
    (datagram,) = manager.told()
    assert len(datagram) < 4096
    assert datagram.startswith("READY=1\nSTATUS=begin ")
    assert datagram.endswith(" end")


@given(st.text())
def test_any_text_becomes_one_printable_line(text):
    line = one_ascii_line(text)
    assert line.isascii()
    assert len(line.splitlines()) <= 1
    assert line == line.strip()


def fill(notifier, caplog):
    """Notify until the manager's queue is full; return the last status that was sent."""
    for number in range(10_000):
        notifier.status(f"status {number}")
        if "was not told" in caplog.text:
            return f"status {number - 1}"
    raise AssertionError("the queue is endless")


def test_a_manager_that_does_not_read_stops_nothing_and_is_told_later(manager, notifier, caplog):
    with caplog.at_level(logging.WARNING):
        fill(notifier, caplog)
        notifier.ready("consuming")
    assert "was not told READY=1" in caplog.text
    manager.told()
    notifier.status("still consuming")
    assert manager.told() == ["READY=1\nSTATUS=still consuming"]
    notifier.stopping("stopping")
    assert manager.told() == ["STOPPING=1\nSTATUS=stopping"]


def test_a_status_that_was_not_sent_is_sent_again(manager, notifier, caplog):
    with caplog.at_level(logging.WARNING):
        fill(notifier, caplog)
        notifier.status("last")
    manager.told()
    notifier.status("last")
    assert manager.told() == ["STATUS=last"]


def test_readiness_that_was_not_sent_is_sent_with_a_status_that_did_not_change(
    manager, notifier, caplog
):
    with caplog.at_level(logging.WARNING):
        status = fill(notifier, caplog)
        notifier.ready(status)
    assert manager.told()[-1] == f"STATUS={status}"
    notifier.status(status)
    assert manager.told() == [f"READY=1\nSTATUS={status}"]


def test_all_that_was_not_sent_goes_out_together_in_order(manager, notifier, caplog):
    with caplog.at_level(logging.WARNING):
        fill(notifier, caplog)
        notifier.ready("consuming")
    manager.told()
    notifier.stopping("stopping")
    assert manager.told() == ["READY=1\nSTOPPING=1\nSTATUS=stopping"]


def test_a_manager_that_is_gone_is_only_logged(manager, notifier, caplog):
    manager.close()
    with caplog.at_level(logging.WARNING):
        notifier.ready("consuming")
        notifier.status("consuming")
    assert "the service manager was not told READY=1" in caplog.text


def test_more_time_is_asked_for_in_microseconds_and_without_a_status(manager, notifier):
    notifier.status("connecting")
    notifier.extend(15.0)
    notifier.extend(0.5)
    assert manager.told()[1:] == ["EXTEND_TIMEOUT_USEC=15000000", "EXTEND_TIMEOUT_USEC=500000"]


def test_more_time_that_could_not_be_asked_for_is_not_asked_for_later(manager, notifier, caplog):
    with caplog.at_level(logging.WARNING):
        fill(notifier, caplog)
        notifier.extend(15.0)
    assert "was not told EXTEND_TIMEOUT_USEC=15000000" in caplog.text
    manager.told()
    notifier.status("connecting")
    assert manager.told() == ["STATUS=connecting"]


def test_a_restart_reset_keeps_the_status_and_is_not_lost(manager, notifier, caplog):
    with caplog.at_level(logging.WARNING):
        status = fill(notifier, caplog)
        notifier.restart_reset()
    manager.told()
    notifier.status(status)
    notifier.restart_reset()
    assert manager.told() == [
        f"RESTART_RESET=1\nSTATUS={status}",
        f"RESTART_RESET=1\nSTATUS={status}",
    ]


# The watchdog, sd_watchdog_enabled(3).


@pytest.fixture
def watchdog(manager, monkeypatch):
    """Makes a notifier as under a watchdog."""
    made = []

    def make(microseconds, process=None):
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        if process is not None:
            monkeypatch.setenv("WATCHDOG_PID", str(process))
        made.append(SystemdNotifier())
        return made[-1].watchdog_seconds

    yield make
    for notifier in made:
        assert notifier._systemd is not None
        notifier._systemd.socket.close()


def test_the_watchdog_waits_for_so_many_microseconds(watchdog):
    assert watchdog("30000000") == 30
    assert watchdog("1500000", os.getpid()) == 1.5


def test_the_watchdog_of_another_process_is_not_ours(watchdog):
    assert watchdog("30000000", os.getpid() + 1) == 0


@pytest.mark.parametrize("microseconds", ["", "0", "soon", "-1"])
def test_a_watchdog_without_a_time_is_none(watchdog, microseconds):
    assert watchdog(microseconds) == 0


def test_without_a_service_manager_no_watchdog_waits(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert SystemdNotifier().watchdog_seconds == 0


def test_a_feed_is_a_notification_of_its_own(manager, notifier):
    notifier.status("consuming")
    notifier.watchdog()
    notifier.watchdog()
    notifier.status("consuming")
    assert manager.told() == ["STATUS=consuming", "WATCHDOG=1", "WATCHDOG=1"]


def test_a_trigger_says_why(manager, notifier):
    notifier.trigger("Stuck: the queue čaj\nWATCHDOG=1")
    assert manager.told() == ["WATCHDOG=trigger\nSTATUS=Stuck: the queue ?aj WATCHDOG=1"]


def test_a_feed_that_was_not_sent_is_not_sent_late(manager, notifier, caplog):
    with caplog.at_level(logging.WARNING):
        fill(notifier, caplog)
        notifier.watchdog()
    assert "was not told WATCHDOG=1" in caplog.text
    manager.told()
    notifier.status("last")
    assert manager.told() == ["STATUS=last"]


def test_a_trigger_that_was_not_sent_is_sent_once_with_the_next(manager, notifier, caplog):
    with caplog.at_level(logging.WARNING):
        fill(notifier, caplog)
        notifier.trigger("stuck")
        notifier.trigger("stuck")
    manager.told()
    notifier.trigger("stuck")
    assert manager.told() == ["WATCHDOG=trigger\nSTATUS=stuck"]
