# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of a private node: the Erlang VM and its port mapper (epmd)."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from .place import HOST, BrokerError, port_of

if TYPE_CHECKING:
    from .place import Place


class Node:
    """Starts and ends the processes of a node.

    Args:
        place: The directory, ports and environment of the node.
        start_timeout: Seconds that the node may take to come up.
        stop_timeout: Seconds that the node may take to go down before it is killed.
    """

    def __init__(self, place: Place, *, start_timeout: float, stop_timeout: float) -> None:
        self.place = place
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._epmd: subprocess.Popen[bytes] | None = None
        self._vm: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the Erlang VM; None while the node is down."""
        if self._vm is None or self._vm.poll() is not None:
            return None
        return self._vm.pid

    def start(self) -> None:
        """Start the node and wait until it accepts connections.

        Raises:
            BrokerError: It did not come up in time; the message ends with the end of the log.
        """
        try:
            self._start_epmd()
            self._start_vm()
        except BaseException:
            self._end_at_once()
            raise

    def stop(self) -> None:
        """End the node with SIGTERM, and with SIGKILL where that takes too long."""
        if self._vm is not None:
            self._vm.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._vm.wait(self._stop_timeout)
        self._end_at_once()

    def kill(self) -> None:
        """End the Erlang VM, and not epmd, with SIGKILL."""
        if self._vm is not None:
            self._vm.kill()
            self._vm.wait()
            self._vm = None
            self._tell_guard()

    def _start_epmd(self) -> None:
        # In the foreground, as a child: an epmd that a node starts by itself detaches and stays.
        if self._epmd is None:
            self._epmd = self.place.spawn(self.place.epmd, "-port", str(port_of(self.place.mapper)))
            self._tell_guard()
            self._await_epmd()

    def _await_epmd(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        while not _epmd_answers(port_of(self.place.mapper)):
            if time.monotonic() > deadline:
                raise self._failure("epmd did not come up")
            time.sleep(0.01)

    def _start_vm(self) -> None:
        self.place.notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
            notifications.bind(str(self.place.notify))
            # With NOTIFY_SOCKET the scripts exec the VM, so that the child is the VM, and the node
            # itself tells that it is ready (sd_notify(3)).
            self._vm = self.place.spawn(
                str(self.place.scripts / "rabbitmq-server"), NOTIFY_SOCKET=str(self.place.notify)
            )
            self._tell_guard()
            self._await_ready(notifications, self._vm)

    def _await_ready(self, notifications: socket.socket, vm: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout
        notifications.settimeout(0.1)
        while not _says_ready(notifications):
            if vm.poll() is not None:
                raise self._failure(f"the node ended with status {vm.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"the node was not ready in {self._start_timeout} seconds")

    def _end_at_once(self) -> None:
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
            self._tell_guard()

    def _tell_guard(self) -> None:
        self.place.guard.watch([p for p in (self._vm, self._epmd) if p is not None])

    def _failure(self, reason: str) -> BrokerError:
        # The crash report of an Erlang VM takes some fifty lines; the reason comes before it.
        return BrokerError(f"{reason}; the end of its log:\n{self.place.log_tail(100)}")


def _says_ready(notifications: socket.socket) -> bool:
    try:
        return b"READY=1" in notifications.recv(4096).split(b"\n")
    except TimeoutError:
        return False


def _epmd_answers(port: int) -> bool:
    # NAMES_REQ, whose answer begins with the port of epmd (Erlang distribution protocol, 14.2).
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(b"\x00\x01n")
            return connection.recv(4) == port.to_bytes(4)
    except OSError:
        return False
