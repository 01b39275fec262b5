# SPDX-License-Identifier: GPL-2.0-or-later
"""A private RabbitMQ node for tests and demonstrations.

The node shares nothing with a RabbitMQ that the machine runs already, nor with another `Broker`:
node name, cookie, port mapper (epmd), ports, configuration, data and log are its own, in one
temporary directory, and it listens on loopback only.

    with Broker() as broker:
        run_something_against(broker.url)

What must end does end, in this order of preference: leaving the ``with`` block; the end of the
Python process, whatever its cause. The latter is the work of a guard: a small shell that reads a
pipe from us and acts when the kernel closes it. ``PR_SET_PDEATHSIG`` would not do: it fires when
the *thread* that started the child ends (prctl(2)), and a fixture may well run in a thread. A
child that this process forked without exec holds the pipe too, and delays the guard.

The variables set here are those of https://www.rabbitmq.com/docs/configure (environment
variables), of https://www.rabbitmq.com/docs/networking and of epmd(1).
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

HOST = "127.0.0.1"

# Where distributions and the upstream packages keep the scripts themselves. Those in a `sbin` of
# PATH are often wrappers that change to the user "rabbitmq" and use the machine's own node.
_SCRIPT_DIRECTORIES = (
    "usr/lib/rabbitmq/bin",
    "usr/lib64/rabbitmq/bin",
    "usr/lib*/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/rabbitmq/sbin",
)

# All that the node inherits: RABBITMQ_*, ERL_* and their like would reach into it.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")

_ADVICE = "install it with `apt install rabbitmq-server` or `dnf install rabbitmq-server`"

# Reads lists of process ids, the last of which counts, and acts at the end of the input.
_GUARD = """
pids=
while read -r line; do pids=$line; done
[ -z "$pids" ] || kill -KILL $pids 2>/dev/null
rm -rf -- "$1"
"""

# Erlang's own hosts table (ERTS User's Guide, inet configuration): a bare container's /etc/hosts
# may not know the name that the node's is made with.
_NAMES = '{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n'

_LOOPBACK_DISTRIBUTION = "-kernel inet_dist_use_interface {127,0,0,1}"

# Few schedulers (erl(1)), instead of one for each core of a large machine, and these spin for a
# moment before they sleep: RabbitMQ's own `+sbwt none` suits a busy server, but a start loads some
# thousand modules, each of which wakes every scheduler. On two virtual cores a third of the start
# went into such wake-ups.
_SMALL_AND_AWAKE = "+S 2:2 +SDcpu 1:1 +SDio 1 +sbwt short +sbwtdio short"


class BrokerError(RuntimeError):
    """The private node could not be started, or did not do what it was asked to do."""


def reserve_port() -> socket.socket:
    """Take a free TCP port on 127.0.0.1 and keep it from everybody else.

    The socket is bound and does not listen, so that a connection is refused. A server that sets
    SO_REUSEADDR, as Erlang does, can listen on the port in the meantime (socket(7), ip(7)). While
    the socket is open no other process is given the port, even when that server is down. In
    particular no *client* is: with a port from the ephemeral range, a client that keeps trying a
    stopped server may end up connected to itself.

    Returns:
        The socket that holds the port; closing it gives the port up.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.bind((HOST, 0))
    # Only now: the kernel was to choose a port that nobody shares.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder


def _port_of(holder: socket.socket) -> int:
    port: int = holder.getsockname()[1]
    return port


def _script_directories() -> Iterator[Path]:
    for pattern in _SCRIPT_DIRECTORIES:
        yield from sorted(Path("/").glob(pattern), reverse=True)
    if found := shutil.which("rabbitmq-server"):
        yield Path(found).resolve().parent


def _find_scripts() -> Path | None:
    # rabbitmq-env lies beside the scripts themselves, never beside a wrapper.
    for directory in _script_directories():
        if all((directory / name).exists() for name in ("rabbitmq-server", "rabbitmq-env")):
            return directory
    return None


def _find_epmd() -> str | None:
    if found := shutil.which("epmd"):
        return found
    return next((str(path) for path in Path("/").glob("usr/lib*/erlang/erts-*/bin/epmd")), None)


def _find_programs() -> tuple[Path, str]:
    scripts, epmd = _find_scripts(), _find_epmd()
    if scripts is None:
        raise BrokerError(f"the RabbitMQ server is not installed; {_ADVICE}")
    if epmd is None or shutil.which("erl") is None:
        raise BrokerError(f"Erlang, which RabbitMQ needs, is not in PATH; {_ADVICE}")
    return scripts, epmd


class _Guard:
    """Outlives us just long enough to kill what we started and to remove its directory."""

    def __init__(self, directory: Path) -> None:
        self._shell = subprocess.Popen(  # noqa: S603 - our own script
            ["/bin/sh", "-c", _GUARD, "broker-guard", str(directory)],
            stdin=subprocess.PIPE,
            bufsize=0,
            # A Ctrl-C at the terminal is for us; it must not take the guard away first.
            start_new_session=True,
        )
        assert self._shell.stdin is not None  # noqa: S101 - Popen promises it for PIPE
        self._pipe = self._shell.stdin

    def watch(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        line = " ".join(str(process.pid) for process in processes)
        # A guard that somebody killed is no reason not to end the node.
        with suppress(BrokenPipeError):
            self._pipe.write(line.encode() + b"\n")

    def close(self) -> None:
        # Closes the pipe, and waits until the directory is gone.
        self._shell.communicate()


@dataclass(frozen=True)
class _Place:
    """What one node keeps over a restart: its directory, its ports, its name."""

    scripts: Path
    epmd: str
    directory: Path
    guard: _Guard
    amqp: socket.socket = field(default_factory=reserve_port)
    distribution: socket.socket = field(default_factory=reserve_port)
    mapper: socket.socket = field(default_factory=reserve_port)

    @classmethod
    def make(cls, plugins: Sequence[str], config: Mapping[str, str]) -> Self:
        scripts, epmd = _find_programs()
        directory = Path(tempfile.mkdtemp(prefix="broker-"))
        place = cls(scripts, epmd, directory, _Guard(directory))
        place.write_files(plugins, config)
        return place

    def write_files(self, plugins: Sequence[str], config: Mapping[str, str]) -> None:
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
        return self.directory / "log"

    @cached_property
    def notify(self) -> Path:
        return self.directory / "notify"

    @cached_property
    def environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return inherited | self._erlang() | self._rabbitmq() | self._files()

    def _erlang(self) -> dict[str, str]:
        return {
            "HOME": str(self.directory),  # where Erlang looks for the cookie
            "ERL_INETRC": str(self.directory / "inetrc"),
            "ERL_CRASH_DUMP_BYTES": "0",  # nobody would read the dump
            "LC_ALL": "C.UTF-8",  # rabbitmqctl complains about anything but UTF-8
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(_port_of(self.mapper)),
        }

    def _rabbitmq(self) -> dict[str, str]:
        return {
            "RABBITMQ_NODENAME": f"{self.directory.name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(_port_of(self.amqp)),
            "RABBITMQ_DIST_PORT": str(_port_of(self.distribution)),
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
        self.guard.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # in case the guard was killed
        for holder in (self.amqp, self.distribution, self.mapper):
            holder.close()


class Broker:
    """A real RabbitMQ node of one's own, on loopback, with data that does not outlive it.

    Entering the context starts the node; leaving it ends the node and removes its directory.
    Use it from one thread at a time.

    Args:
        plugins: Names of plugins to enable. A plugin with a listener of its own, such as
            ``rabbitmq_management``, needs an address and a port in *config* to be private.
        config: Lines for rabbitmq.conf, such as ``{"consumer_timeout": "5000"}`` (milliseconds).
        start_timeout: Seconds that the node may take to come up.
        stop_timeout: Seconds that the node may take to go down before it is killed.
    """

    def __init__(
        self,
        *,
        plugins: Sequence[str] = (),
        config: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        stop_timeout: float = 20.0,
    ) -> None:
        self._plugins = tuple(plugins)
        self._config = dict(config or {})
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._place: _Place | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str | None:
        """Say what this machine lacks for a node to be started.

        Returns:
            A sentence with the command that installs it, or None if nothing is missing.
        """
        try:
            _find_programs()
        except BrokerError as error:
            return str(error)
        return None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1; the same until `close`, also while the node is down.

        Raises:
            BrokerError: The node was never started.
        """
        return _port_of(self._placed.amqp)

    @property
    def url(self) -> str:
        """The URL of the default virtual host for the user ``guest``, who may do everything."""
        return self.url_for("guest", "guest")

    def url_for(self, name: str, password: str) -> str:
        """The AMQP URL of the default virtual host for a user (see `add_user`)."""
        return f"amqp://{quote(name, safe='')}:{quote(password, safe='')}@{HOST}:{self.port}/%2F"

    @property
    def pid(self) -> int | None:
        """The process id of the Erlang VM; None while the node is down."""
        if self._node is None or self._node.poll() is not None:
            return None
        return self._node.pid

    def start(self) -> None:
        """Start the node and wait until it accepts connections.

        After `stop` or `kill` the node comes back with the same ports and data.

        Raises:
            BrokerError: Something is missing, the node runs already, or it did not come up in
                time; the message then ends with the end of the log.
        """
        if self.pid is not None:
            raise BrokerError("the node runs already")
        if self._place is None:
            self._place = _Place.make(self._plugins, self._config)
        try:
            self._start_epmd(self._place)
            self._start_node(self._place)
        except BaseException:
            self._end_at_once()
            raise

    def stop(self) -> None:
        """End the node as a service manager would, with SIGTERM.

        Clients are told (connection.close with 320, CONNECTION_FORCED). A node that is not gone
        after *stop_timeout* seconds is killed.

        Ports and data are kept for `start`; the directory is removed by `close`, and by the guard
        when this process ends. Does nothing if the node is down.
        """
        if self._node is not None:
            self._node.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._node.wait(self._stop_timeout)
        self._end_at_once()

    def kill(self) -> None:
        """End the Erlang VM with SIGKILL: clients lose their connections without a word.

        After `start` the node has its confirmed persistent messages again, in durable queues.
        Mind that RabbitMQ 3 writes what was *declared* with a delay of some seconds: right before
        the kill, ``ctl("eval", "mnesia:sync_log().")`` makes sure of that. Does nothing if the
        node is down.
        """
        if self._node is not None:
            self._node.kill()
            self._node.wait()
            self._node = None
            self._tell_guard()

    def restart(self) -> None:
        """Stop the node and start it again, with the same ports and data.

        Raises:
            BrokerError: As for `start`.
        """
        self.stop()
        self.start()

    def close(self) -> None:
        """End the node for good, remove its directory and give up its ports.

        A later `start` begins with an empty node on other ports.
        """
        self.stop()
        if self._place is not None:
            self._place.remove()
            self._place = None

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run rabbitmqctl against this node. It takes a second or two: it starts an Erlang VM.

        Args:
            arguments: Such as ``"list_queues", "name", "messages"``.
            timeout: Seconds that the command may take.

        Returns:
            What the command wrote to its standard output, without banners.

        Raises:
            BrokerError: The command failed or took too long; the message has its error output.
        """
        command = [str(self._placed.scripts / "rabbitmqctl"), "--quiet", *arguments]
        try:
            return self._run(command, timeout)
        except subprocess.TimeoutExpired:
            raise BrokerError(f"rabbitmqctl {arguments[0]} took over {timeout} seconds") from None
        except subprocess.CalledProcessError as error:
            output = f"{error.stderr}{error.stdout}".strip()
            raise BrokerError(f"rabbitmqctl {arguments[0]} failed: {output}") from None

    def add_user(
        self, name: str, password: str, *, configure: str = "", write: str = "", read: str = ""
    ) -> str:
        """Add a user to the default virtual host.

        Args:
            name: The name of the user.
            password: Their password.
            configure: A regular expression for the names of the resources that the user may
                configure. The empty one matches no name
                (https://www.rabbitmq.com/docs/access-control).
            write: The same, for writing.
            read: The same, for reading.

        Returns:
            The AMQP URL of the default virtual host for this user.

        Raises:
            BrokerError: rabbitmqctl failed, for instance since the user is there already.
        """
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", "--vhost", "/", name, configure, write, read)
        return self.url_for(name, password)

    def depth(self, queue: str) -> tuple[int, int]:
        """Count what is in a queue, by a passive declaration (AMQP 0-9-1, queue.declare-ok).

        Args:
            queue: The name of a queue in the default virtual host.

        Returns:
            Messages that are ready (not those delivered and unacknowledged), and consumers.

        Raises:
            pika.exceptions.ChannelClosedByBroker: 404, there is no such queue; 405, it is
                exclusive to another connection.
            pika.exceptions.AMQPConnectionError: The node is down.
        """
        import pika  # noqa: PLC0415 - a node can be started without it

        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            counted = connection.channel().queue_declare(queue, passive=True).method
        return counted.message_count, counted.consumer_count

    def consumers(self, queue: str) -> int:
        """Count the consumers of a queue; raises what `depth` raises."""
        return self.depth(queue)[1]

    def log_tail(self, lines: int = 40) -> str:
        """The last *lines* lines that the node logged, over all its starts; "" before the first."""
        if self._place is None or not self._place.log.exists():
            return ""
        return "\n".join(self._place.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def _placed(self) -> _Place:
        if self._place is None:
            raise BrokerError("the node was not started")
        return self._place

    def _run(self, command: Sequence[str], timeout: float) -> str:
        return subprocess.run(  # noqa: S603 - a script that we looked up
            command,
            env=self._placed.environment,
            cwd=self._placed.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        ).stdout

    def _tell_guard(self) -> None:
        if self._place is not None:
            self._place.guard.watch([p for p in (self._node, self._epmd) if p is not None])

    def _start_epmd(self, place: _Place) -> None:
        # In the foreground and ours: the one that a node starts by itself detaches and stays.
        if self._epmd is None:
            self._epmd = place.spawn(place.epmd, "-port", str(_port_of(place.mapper)))
            self._tell_guard()
            self._await_epmd(place)

    def _await_epmd(self, place: _Place) -> None:
        deadline = time.monotonic() + self._start_timeout
        while not _epmd_answers(_port_of(place.mapper)):
            if time.monotonic() > deadline:
                raise self._failure("epmd did not come up")
            time.sleep(0.01)

    def _end_at_once(self) -> None:
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
            self._tell_guard()

    def _start_node(self, place: _Place) -> None:
        place.notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
            notifications.bind(str(place.notify))
            # With NOTIFY_SOCKET the scripts exec the VM, so that its process id is the one we
            # know, and the node says itself when it is ready (sd_notify(3)).
            self._node = place.spawn(
                str(place.scripts / "rabbitmq-server"), NOTIFY_SOCKET=str(place.notify)
            )
            self._tell_guard()
            self._await_ready(notifications, self._node)

    def _await_ready(self, notifications: socket.socket, node: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout
        notifications.settimeout(0.1)
        while not _says_ready(notifications):
            if node.poll() is not None:
                raise self._failure(f"the node ended with status {node.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"the node was not ready in {self._start_timeout} seconds")

    def _failure(self, what: str) -> BrokerError:
        # The crash report of an Erlang VM takes some fifty lines; the reason comes before it.
        return BrokerError(f"{what}; the end of its log:\n{self.log_tail(100)}")


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
