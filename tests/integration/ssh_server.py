# SPDX-License-Identifier: GPL-2.0-or-later
"""A private OpenSSH server on a free loopback port, and a client configuration with its names."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

from consumer_framework.testing.broker import HOST, reserve_port

from .instance import until

_SSHD = Path("/usr/sbin/sshd")
# As the server's own unit makes it; it refuses to start without.
_PRIVILEGE_SEPARATION = Path("/run/sshd")


class SshServer:
    """A server that lets this user in with one key.

    Args:
        directory: For its keys and files; the names in it are shorter than those of sockets.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        # It takes connections, and nobody answers on them.
        self._silent = socket.create_server((HOST, 0))
        with reserve_port() as holder:
            self._port: int = holder.getsockname()[1]

    @staticmethod
    def missing() -> str | None:
        if not _SSHD.exists() or shutil.which("ssh") is None:
            return "OpenSSH is missing: packaging/system-packages ssh"
        return None

    @property
    def command(self) -> str:
        """The command that connects to the hosts ``one``, ``two``, ``stranger`` and so on."""
        return shlex.join(["ssh", "-F", str(self._directory / "client")])

    def __enter__(self) -> Self:
        for name in ("host", "known", "unknown"):
            key = str(self._directory / name)
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key]
            subprocess.run(words, check=True, timeout=30)
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        self._write_files()
        words = [str(_SSHD), "-D", "-e", "-f", str(self._directory / "server")]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(words, stderr=log, stdin=subprocess.DEVNULL)
        until(lambda: "Server listening" in self._log(), self._log, 30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)
        self._silent.close()

    def _log(self) -> str:
        return (self._directory / "log").read_text()

    def _write_files(self) -> None:
        here = self._directory
        server = [
            f"Port {self._port}",
            f"ListenAddress {HOST}",
            f"HostKey {here}/host",
            f"AuthorizedKeysFile {here}/known.pub",
            f"PidFile {here}/pid",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            # The directories of tests belong to others, too.
            "StrictModes no",
            "UsePAM no",
        ]
        closed = f"  Port {self._port + 1 if self._port < 65535 else 1}"
        client = [
            *("Host one two stranger", f"  Port {self._port}"),
            *("Host closed", closed, "Host hanging", f"  Port {self._silent.getsockname()[1]}"),
            *("Host stranger", f"  IdentityFile {here}/unknown"),
            *("Host one two", f"  IdentityFile {here}/known"),
            *(
                "Host *",
                f"  HostName {HOST}",
                f"  User {getpass.getuser()}",
                "  IdentitiesOnly yes",
            ),
            *(f"  UserKnownHostsFile {here}/hosts", "  StrictHostKeyChecking accept-new"),
            *("  BatchMode yes", "  LogLevel ERROR"),
        ]
        (here / "server").write_text("\n".join([*server, ""]))
        (here / "client").write_text("\n".join([*client, ""]))
