# SPDX-License-Identifier: GPL-2.0-or-later
"""A private RabbitMQ node for tests, and faults of the network in front of it.

    with Broker() as broker, Proxy(HOST, broker.port) as proxy:
        run_a_client(proxy.url_for(broker.url))
        proxy.cut()

The node shares nothing with a RabbitMQ that the machine runs already, nor with another `Broker`:
node name, cookie, port mapper (epmd), ports, configuration, data and log are its own, in one
temporary directory. It listens on loopback only.

Leaving the ``with`` block ends the node and removes its directory. Where the block is never left,
the end of the Python process does the same, whatever its cause.

- :class:`Broker`, here, is the interface for tests.
- :mod:`.place` has all that a node keeps over a restart: directory, ports, environment, guard.
- :mod:`.node` starts and ends its processes.
- :mod:`.tls` adds a certificate authority and a port that demands client certificates.
- :mod:`.proxy` is a TCP proxy that a test makes fail.
- :mod:`.exchange` keeps the tests apart that share a node, and runs consumers against it.

The node needs the program ``rabbitmq-server`` (`Broker.missing`). The Python packages that only
this folder needs are the extra ``broker`` of ``consumer-framework``; nothing else in
:mod:`consumer_framework.testing` imports this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from .node import Node
from .place import HOST, BrokerError, Place, find_programs, port_of, reserve_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["HOST", "Broker", "BrokerError", "reserve_port"]


class Broker:
    """A private RabbitMQ node on loopback, whose data does not outlive it.

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
        self._node: Node | None = None

    @staticmethod
    def missing() -> str | None:
        """Name a program that a node needs and this machine lacks.

        Returns:
            A sentence with the command that installs it, or None if nothing is missing.
        """
        try:
            find_programs()
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
        return port_of(self._place.amqp)

    @property
    def url(self) -> str:
        """The URL of the default virtual host for the user ``guest``, who may do everything."""
        return self.url_for("guest", "guest")

    def url_for(self, name: str, password: str) -> str:
        """Return the AMQP URL of the default virtual host for a user (see `add_user`)."""
        return f"amqp://{quote(name, safe='')}:{quote(password, safe='')}@{HOST}:{self.port}/%2F"

    @property
    def pid(self) -> int | None:
        """The process id of the Erlang VM; None while the node is down."""
        return None if self._node is None else self._node.pid

    def start(self) -> None:
        """Start the node and wait until it accepts connections.

        After `stop` or `kill` the node comes back with the same ports and data.

        Raises:
            BrokerError: A program is missing, the node runs already, or it did not come up in
                time; the message then ends with the end of the log.
        """
        if self.pid is not None:
            raise BrokerError("the node runs already")
        if self._node is None:
            self._node = Node(
                Place.make(self._plugins, self._config),
                start_timeout=self._start_timeout,
                stop_timeout=self._stop_timeout,
            )
        self._node.start()

    def stop(self) -> None:
        """End the node as a service manager would, with SIGTERM.

        The node tells its clients (connection.close with 320, CONNECTION_FORCED). It is killed
        where it is not gone after *stop_timeout* seconds.

        Ports and data are kept for `start`; `close` removes the directory. Does nothing if the node
        is down.
        """
        if self._node is not None:
            self._node.stop()

    def kill(self) -> None:
        """End the Erlang VM with SIGKILL: clients lose their connections without a word.

        After `start` the node has its confirmed persistent messages again, in durable queues.
        RabbitMQ 3 writes *declarations* to the disk with a delay of some seconds: to keep them,
        call ``ctl("eval", "mnesia:sync_log().")`` before the kill. Does nothing if the node is
        down.
        """
        if self._node is not None:
            self._node.kill()

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
        if self._node is not None:
            self._node.place.remove()
            self._node = None

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run rabbitmqctl against this node, which takes a second or two.

        Args:
            arguments: A command and its arguments, as ``"list_queues", "name", "messages"``.
            timeout: Seconds that the command may take.

        Returns:
            The standard output of the command, without banners.

        Raises:
            BrokerError: The command failed or took too long; the message has its error output.
        """
        return self._place.rabbitmqctl(arguments, timeout)

    def add_user(
        self, name: str, password: str, *, configure: str = "", write: str = "", read: str = ""
    ) -> str:
        """Add a user to the default virtual host.

        Args:
            name: The name of the user.
            password: The password.
            configure: A regular expression for the names of the resources that the user may
                configure. The empty one matches no name
                (https://www.rabbitmq.com/docs/access-control).
            write: The same, for writing.
            read: The same, for reading.

        Returns:
            The AMQP URL of the default virtual host for this user.

        Raises:
            BrokerError: rabbitmqctl failed, for instance since the user exists already.
        """
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", "--vhost", "/", name, configure, write, read)
        return self.url_for(name, password)

    def depth(self, queue: str) -> tuple[int, int]:
        """Count messages and consumers of a queue by a passive declaration (queue.declare-ok).

        Args:
            queue: The name of a queue in the default virtual host.

        Returns:
            The number of ready messages (without unacknowledged ones), and of consumers.

        Raises:
            pika.exceptions.ChannelClosedByBroker: 404, there is no such queue; 405, the queue is
                exclusive to another connection.
            pika.exceptions.AMQPConnectionError: The node is down.
        """
        import pika  # noqa: PLC0415 - a node is started without it

        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            counted = connection.channel().queue_declare(queue, passive=True).method
        return counted.message_count, counted.consumer_count

    def consumers(self, queue: str) -> int:
        """Count the consumers of a queue; raises the same as `depth`."""
        return self.depth(queue)[1]

    def log_tail(self, lines: int = 40) -> str:
        """Return the last *lines* lines of the node's log, "" before its first start."""
        return "" if self._node is None else self._node.place.log_tail(lines)

    @property
    def _place(self) -> Place:
        if self._node is None:
            raise BrokerError("the node was not started")
        return self._node.place
