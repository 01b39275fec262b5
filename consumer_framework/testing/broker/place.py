# SPDX-License-Identifier: GPL-2.0-or-later
"""The place of a private node: all that it keeps over a restart.

A :class:`Place` is one temporary directory, three TCP ports, the environment for the node's
programs, and a guard. The variables of the environment are those of
https://www.rabbitmq.com/docs/configure (environment variables),
https://www.rabbitmq.com/docs/networking and epmd(1).

The guard ends the node when the Python process ends in any way. It is a small shell that reads a
pipe from this process, and acts when the kernel closes that pipe. ``PR_SET_PDEATHSIG`` will not do:
it fires when the *thread* that started the child ends (prctl(2)), and a fixture may run in a
thread. A child that this process forked without exec holds the pipe too, and delays the guard.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class BrokerError(RuntimeError):
    """The private node could not be started, or did not obey."""


HOST = "127.0.0.1"


def reserve_port() -> socket.socket:
    """Reserve a free TCP port on 127.0.0.1.

    The socket is bound and does not listen, so the kernel refuses connections. A server that sets
    SO_REUSEADDR, as Erlang does, can listen on the port meanwhile (socket(7), ip(7)). While the
    socket is open, the kernel gives the port to no other process, even when that server is down.
    This matters for clients too: with a port of the ephemeral range, a client that keeps trying a
    stopped server may end up connected to itself.

    Returns:
        The socket that holds the port; close it to give the port up.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.bind((HOST, 0))
    # After bind(), so that the kernel chose a port that nobody shares.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder


def port_of(holder: socket.socket) -> int:
    """Return the port that a socket holds."""
    port: int = holder.getsockname()[1]
    return port


# The directories of the scripts themselves, in distributions and in the upstream packages. Those in
# a `sbin` of PATH are often wrappers that change to the user "rabbitmq" and use the machine's node.
_SCRIPT_DIRECTORIES = (
    "usr/lib/rabbitmq/bin",
    "usr/lib64/rabbitmq/bin",
    "usr/lib*/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/rabbitmq/sbin",
)

_ADVICE = "install it with `apt install rabbitmq-server` or `dnf install rabbitmq-server`"


def _script_directories() -> Iterator[Path]:
    for pattern in _SCRIPT_DIRECTORIES:
        yield from sorted(Path("/").glob(pattern), reverse=True)
    if found := shutil.which("rabbitmq-server"):
        yield Path(found).resolve().parent


def _find_scripts() -> Path | None:
    # rabbitmq-env is in the directory of the scripts, never in that of a wrapper.
    for directory in _script_directories():
        if all((directory / name).exists() for name in ("rabbitmq-server", "rabbitmq-env")):
            return directory
    return None


def _find_epmd() -> str | None:
    if found := shutil.which("epmd"):
        return found
    return next((str(path) for path in Path("/").glob("usr/lib*/erlang/erts-*/bin/epmd")), None)


def find_programs() -> tuple[Path, str]:
    """Return the directory of RabbitMQ's scripts, and the path of epmd.

    Raises:
        BrokerError: A program is missing; the message has the command that installs it.
    """
    scripts, epmd = _find_scripts(), _find_epmd()
    if scripts is None:
        raise BrokerError(f"the RabbitMQ server is not installed; {_ADVICE}")
    if epmd is None or shutil.which("erl") is None:
        raise BrokerError(f"Erlang, which RabbitMQ needs, is not in PATH; {_ADVICE}")
    return scripts, epmd


# Reads lists of process ids, and acts on the last list at the end of the input. Each process leads
# a group, whose other members are ended too.
_GUARD = """
pids=
while read -r line; do pids=$line; done
for pid in $pids; do kill -s KILL -- "-$pid" "$pid" 2>/dev/null; done
rm -rf -- "$1"
"""


class Guard:
    """Outlives this process just long enough to kill the node and to remove its directory."""

    def __init__(self, directory: Path) -> None:
        self._shell = subprocess.Popen(  # noqa: S603 - a constant script
            ["/bin/sh", "-c", _GUARD, "broker-guard", str(directory)],
            stdin=subprocess.PIPE,
            bufsize=0,
            # A Ctrl-C at the terminal must not end the guard before this process.
            start_new_session=True,
        )
        assert self._shell.stdin is not None  # noqa: S101 - Popen promises it for PIPE
        self._pipe = self._shell.stdin

    def watch(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Kill *processes* at the end of this process, instead of those named before.

        Each was started with ``start_new_session``; the others of its session are killed too.
        """
        line = " ".join(str(process.pid) for process in processes)
        # The guard may have been killed; the node must be ended all the same.
        with suppress(BrokenPipeError):
            self._pipe.write(line.encode() + b"\n")

    def close(self) -> None:
        """Close the pipe, and wait until the directory is gone."""
        self._shell.communicate()


# The variables that the node inherits. RABBITMQ_*, ERL_* and the like would change it.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")

# Erlang's own hosts table (ERTS User's Guide, inet configuration): the /etc/hosts of a bare
# container may lack the name of the host, which is part of the node's name.
_NAMES = '{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n'

_LOOPBACK_DISTRIBUTION = "-kernel inet_dist_use_interface {127,0,0,1}"

# Few schedulers (erl(1)), instead of one for each core of a large machine, which spin for a moment
# before they sleep. RabbitMQ's own `+sbwt none` suits a busy server, but a start loads some
# thousand modules, and each wakes every scheduler. On two virtual cores a third of the start went
# into such wake-ups.
_SMALL_AND_AWAKE = "+S 2:2 +SDcpu 1:1 +SDio 1 +sbwt short +sbwtdio short"


@dataclass(frozen=True)
class Place:
    """The directory, the ports and the name of one node, which stay over a restart.

    Attributes:
        scripts: The directory of RabbitMQ's scripts.
        epmd: The path of Erlang's port mapper.
        directory: The directory of the node; its name is the name of the node.
        guard: Cleans up when this process dies.
        amqp: Holds the AMQP port.
        distribution: Holds the port for rabbitmqctl and other nodes.
        mapper: Holds the port of epmd.
    """

    scripts: Path
    epmd: str
    directory: Path
    guard: Guard
    amqp: socket.socket = field(default_factory=reserve_port)
    distribution: socket.socket = field(default_factory=reserve_port)
    mapper: socket.socket = field(default_factory=reserve_port)

    @classmethod
    def make(cls, plugins: Sequence[str], config: Mapping[str, str]) -> Self:
        """Make the directory of a node with these plugins and these lines of rabbitmq.conf.

        Raises:
            BrokerError: A program is missing.
        """
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
        # An empty file keeps the node from the machine's own rabbitmq-env.conf.
        (self.directory / "rabbitmq-env.conf").touch()
        if config:  # reading even an empty rabbitmq.conf costs half a second of the start
            lines = [f"{key} = {value}\n" for key, value in config.items()]
            (self.directory / "rabbitmq.conf").write_text("".join(lines))

    @cached_property
    def log(self) -> Path:
        """The output of the node and of epmd, over all their starts."""
        return self.directory / "log"

    def log_tail(self, lines: int) -> str:
        """Return the last *lines* lines of the log, "" before there is one."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @cached_property
    def notify(self) -> Path:
        """The socket that the node tells that it is ready."""
        return self.directory / "notify"

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of the node, and of programs such as rabbitmqctl that address it."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return inherited | self._erlang() | self._rabbitmq() | self._files()

    def _erlang(self) -> dict[str, str]:
        return {
            "HOME": str(self.directory),  # Erlang looks here for the cookie
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
        return paths | {"RABBITMQ_LOGS": "-"}  # standard output, which is the file "log"

    def spawn(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a program of the node, with *variables* in addition to :attr:`environment`."""
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - programs that find_programs() found
                command,
                env=self.environment | variables,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is not for the node
            )

    def rabbitmqctl(self, arguments: Sequence[str], timeout: float) -> str:
        """Run rabbitmqctl against the node.

        Args:
            arguments: The name of the command, and its arguments.
            timeout: Seconds that the command may take.

        Returns:
            The standard output of the command, without banners.

        Raises:
            BrokerError: The command failed or took too long; the message has its error output.
        """
        command = [str(self.scripts / "rabbitmqctl"), "--quiet", *arguments]
        try:
            return subprocess.run(  # noqa: S603 - a script that find_programs() found
                command,
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=True,
            ).stdout
        except subprocess.TimeoutExpired:
            raise BrokerError(f"rabbitmqctl {arguments[0]} took over {timeout} seconds") from None
        except subprocess.CalledProcessError as error:
            output = f"{error.stderr}{error.stdout}".strip()
            raise BrokerError(f"rabbitmqctl {arguments[0]} failed: {output}") from None

    def remove(self) -> None:
        """Remove the directory, give up the ports, and kill all processes of the node."""
        self.guard.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # in case the guard was killed
        for holder in (self.amqp, self.distribution, self.mapper):
            holder.close()
