# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster of RabbitMQ nodes on loopback, with a proxy to each node, and a balancer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from consumer_framework.testing.broker.node import Node
from consumer_framework.testing.broker.place import HOST, Place, port_of, reserve_port
from consumer_framework.testing.broker.proxy import Proxy

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 3
# A minority pauses, and the nodes notice a hanging node in some ten seconds.
CONFIG = {"cluster_partition_handling": "pause_minority", "net_ticktime": "8"}
HAPROXY = """
global
    maxconn 200
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 2s
listen brokers
    bind {host}:{port}
    balance roundrobin
    option tcp-check
    tcp-check connect
    tcp-check send-binary 414d515000000901
    tcp-check expect rbinary ^01
    default-server check inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""


def missing() -> str:
    """Return the missing program with its cure; "" if nothing is missing."""
    return "" if shutil.which("haproxy") else "haproxy is not installed: apt install haproxy"


class _Member(Node):
    """A node that uses the port mapper of the first one."""

    def _start_epmd(self) -> None:
        pass


class Cluster:
    """A cluster, which starts in about half a minute.

    Attributes:
        proxies: The proxies to the nodes, in the order of the nodes.
        balancer_port: The port of HAProxy.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: list[Node] = []
        self.proxies: list[Proxy] = []
        self._holder = reserve_port()
        self.balancer_port = port_of(self._holder)
        self._haproxy: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start_nodes()
            for node in self._nodes:
                self.proxies.append(Proxy(HOST, port_of(node.place.amqp)))
                self.proxies[-1].start()
            self._start_haproxy()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._haproxy is not None:
            self._haproxy.kill()
            self._haproxy.wait()
        for proxy in self.proxies:
            proxy.close()
        for node in reversed(self._nodes):
            # SIGKILL also ends a stopped process at once.
            node.kill()
        for node in reversed(self._nodes):
            node.stop()
            node.place.remove()
        self._holder.close()

    def _start_nodes(self) -> None:
        first = Place.make((), CONFIG)
        self._nodes.append(Node(first, start_timeout=120, stop_timeout=20))
        self._nodes[0].start()
        name = first.environment["RABBITMQ_NODENAME"]
        discovery = {
            "cluster_formation.peer_discovery_backend": "classic_config",
            "cluster_formation.classic_config.nodes.1": name,
        }
        for _ in range(1, SIZE):
            made = Place.make((), CONFIG | discovery)
            made.mapper.close()
            place = replace(made, mapper=first.mapper)
            cookie = place.directory / ".erlang.cookie"
            cookie.chmod(0o600)
            cookie.write_bytes((first.directory / ".erlang.cookie").read_bytes())
            cookie.chmod(0o400)
            self._nodes.append(_Member(place, start_timeout=120, stop_timeout=20))
            self._nodes[-1].start()

    def _start_haproxy(self) -> None:
        servers = [f"    server n{n} {HOST}:{p.port}" for n, p in enumerate(self.proxies)]
        config = self._directory / "haproxy.cfg"
        config.write_text(
            HAPROXY.format(host=HOST, port=self.balancer_port, servers="\n".join(servers))
        )
        with (self._directory / "haproxy.log").open("wb") as log:
            self._haproxy = subprocess.Popen(
                [str(shutil.which("haproxy")), "-db", "-f", str(config)], stdout=log, stderr=log
            )

    def url(self, port: int) -> str:
        return f"amqp://guest:guest@{HOST}:{port}/%2F?heartbeat=4"

    def name(self, number: int) -> str:
        return self._nodes[number].place.environment["RABBITMQ_NODENAME"]

    def ctl(self, number: int, *arguments: str) -> str:
        return self._nodes[number].place.rabbitmqctl(arguments, 120)

    # Faults of a node.

    def kill(self, number: int) -> None:
        self._nodes[number].kill()

    def start(self, number: int) -> None:
        self._nodes[number].start()

    def pause(self, number: int, seconds: float) -> None:
        """Stop the process, so that TCP connects and nobody answers."""
        pid = self._nodes[number].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    def split(self, number: int, seconds: float) -> None:
        """Separate it from the others, which get another cookie for it for that time."""
        others = [self.name(n) for n in range(SIZE) if n != number]
        real = (self._nodes[0].place.directory / ".erlang.cookie").read_text()

        def cookies(word: str) -> str:
            sets = "".join(f"erlang:set_cookie('{other}', '{word}'), " for other in others)
            cuts = "".join(f"erlang:disconnect_node('{other}'), " for other in others)
            return f"{sets}{cuts} ok."

        self.ctl(number, "eval", cookies("another"))
        time.sleep(seconds)
        self.ctl(number, "eval", cookies(real))

    def drain(self, number: int, seconds: float) -> None:
        """Put it into maintenance, as before an upgrade."""
        for command in ("drain", "revive"):
            deadline = time.monotonic() + 120
            # A node that has just come back from a partition refuses for a while.
            while (done := self._upgrade(number, command)).returncode:
                assert time.monotonic() < deadline, done.stderr
                time.sleep(2)
            time.sleep(seconds)

    def _upgrade(self, number: int, command: str) -> subprocess.CompletedProcess[str]:
        place = self._nodes[number].place
        return subprocess.run(
            [str(place.scripts / "rabbitmq-upgrade"), command],
            env=place.environment,
            cwd=place.directory,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
