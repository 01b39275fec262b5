# SPDX-License-Identifier: GPL-2.0-or-later
"""What a private node keeps over a restart.

The variables set here are those of https://www.rabbitmq.com/docs/configure (environment
variables), of https://www.rabbitmq.com/docs/networking and of epmd(1).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .broker_guard import Guard
from .broker_programs import find_programs
from .loopback import HOST, port_of, reserve_port

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

# All that the node inherits: RABBITMQ_*, ERL_* and their like would reach into it.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")

# Erlang's own hosts table (ERTS User's Guide, inet configuration): a bare container's /etc/hosts
# may not know the name that the node's is made with.
_NAMES = '{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n'

_LOOPBACK_DISTRIBUTION = "-kernel inet_dist_use_interface {127,0,0,1}"

# Few schedulers (erl(1)), instead of one for each core of a large machine, and these spin for a
# moment before they sleep: RabbitMQ's own `+sbwt none` suits a busy server, but a start loads some
# thousand modules, each of which wakes every scheduler. On two virtual cores a third of the start
# went into such wake-ups.
_SMALL_AND_AWAKE = "+S 2:2 +SDcpu 1:1 +SDio 1 +sbwt short +sbwtdio short"


@dataclass(frozen=True)
class Place:
    """What one node keeps over a restart: its directory, its ports, its name."""

    scripts: Path
    epmd: str
    directory: Path
    guard: Guard
    amqp: socket.socket = field(default_factory=reserve_port)
    distribution: socket.socket = field(default_factory=reserve_port)
    mapper: socket.socket = field(default_factory=reserve_port)

    @classmethod
    def make(cls, plugins: Sequence[str], config: Mapping[str, str]) -> Self:
        """Make the directory of a node that has these plugins and these lines of rabbitmq.conf."""
        scripts, epmd = find_programs()
        directory = Path(tempfile.mkdtemp(prefix="broker-"))
        place = cls(scripts, epmd, directory, Guard(directory))
        place._write_files(plugins, config)
        return place

    def _write_files(self, plugins: Sequence[str], config: Mapping[str, str]) -> None:
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)  # Erlang refuses a cookie that others can read
        (self.directory / "inetrc").write_text(_NAMES)
        (self.directory / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        # An empty file, so that the machine's own rabbitmq-env.conf is not read.
        (self.directory / "rabbitmq-env.conf").touch()
        if config:  # reading even an empty rabbitmq.conf costs half a second of the start
            lines = [f"{key} = {value}\n" for key, value in config.items()]
            (self.directory / "rabbitmq.conf").write_text("".join(lines))

    @cached_property
    def log(self) -> Path:
        """What the node and epmd write, over all their starts."""
        return self.directory / "log"

    def log_tail(self, lines: int) -> str:
        """The last *lines* lines of the log; "" before there is one."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @cached_property
    def notify(self) -> Path:
        """The socket to which the node says that it is ready."""
        return self.directory / "notify"

    @cached_property
    def environment(self) -> dict[str, str]:
        """The variables that make a program, such as rabbitmqctl, one of this node."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return inherited | self._erlang() | self._rabbitmq() | self._files()

    def _erlang(self) -> dict[str, str]:
        return {
            "HOME": str(self.directory),  # where Erlang looks for the cookie
            "ERL_INETRC": str(self.directory / "inetrc"),
            "ERL_CRASH_DUMP_BYTES": "0",  # nobody would read the dump
            "LC_ALL": "C.UTF-8",  # rabbitmqctl complains about anything but UTF-8
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(port_of(self.mapper)),
        }

    def _rabbitmq(self) -> dict[str, str]:
        return {
            "RABBITMQ_NODENAME": f"{self.directory.name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(port_of(self.amqp)),
            "RABBITMQ_DIST_PORT": str(port_of(self.distribution)),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_LOOPBACK_DISTRIBUTION} {_SMALL_AND_AWAKE}",
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_DISTRIBUTION,
            # Any free port, instead of one of eleven that all users of the machine share.
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
        }

    def _files(self) -> dict[str, str]:
        names = {
            "RABBITMQ_CONF_ENV_FILE": "rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": "advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
            "RABBITMQ_MNESIA_BASE": "data",
            "RABBITMQ_LOG_BASE": "logs",
            "RABBITMQ_PID_FILE": "pid",
        }
        paths = {variable: str(self.directory / name) for variable, name in names.items()}
        return paths | {"RABBITMQ_LOGS": "-"}  # to standard output, which is our file "log"

    def spawn(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a program of the node, with *variables* besides :attr:`environment`."""
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - programs that we looked up
                command,
                env=self.environment | variables,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is not for the node
            )

    def remove(self) -> None:
        """Remove the directory and give up the ports; what runs there is killed."""
        self.guard.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # in case the guard was killed
        for holder in (self.amqp, self.distribution, self.mapper):
            holder.close()
