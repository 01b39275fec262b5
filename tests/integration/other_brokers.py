# SPDX-License-Identifier: GPL-2.0-or-later
"""Brokers beside the usual RabbitMQ: one with more protocols, the next major version, ActiveMQ."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from consumer_framework.testing.broker import HOST, Broker, reserve_port
from consumer_framework.testing.broker.node import Node
from consumer_framework.testing.broker.place import Place, port_of
from tests.acceptance.container import RootUnavailable, build_root, why_not

from .instance import until

ACTIVEMQ = Path("/usr/share/activemq/bin/activemq.jar")
# RabbitMQ 4.0 in Debian's trixie. The acceptance tests boot the same root, so both make it once.
SUITE = "trixie"
PACKAGES = ("rabbitmq-server",)

# The program runs in its own mount namespace, in which the directory of the node has the same path
# in the other Debian. "exec" all along, so that the process is the Erlang VM in the end.
INSIDE = """#!/bin/sh
exec unshare --mount --propagation private sh -c '
    mount --bind "{root}" "{root}" && cd "{root}" &&
    mkdir -p "{root}{parent}" && mount -t tmpfs tmpfs "{root}{parent}" &&
    mkdir -p "{root}{directory}" && mount --bind "{directory}" "{root}{directory}" &&
    mount --rbind /dev "{root}/dev" && mount -t proc proc "{root}/proc" &&
    exec chroot "{root}" "$@"' sh {program} "$@"
"""


class ManyProtocols(Broker):
    """A RabbitMQ that speaks STOMP and AMQP 1.0 too.

    AMQP 1.0 has the same port as AMQP 0-9-1.
    """

    def __init__(self, **config: str) -> None:
        self._stomp = reserve_port()
        settings = {"stomp.listeners.tcp.1": f"{HOST}:{port_of(self._stomp)}", **config}
        super().__init__(plugins=["rabbitmq_stomp", "rabbitmq_amqp1_0"], config=settings)

    @property
    def stomp_port(self) -> int:
        return port_of(self._stomp)

    @property
    def stomp_url(self) -> str:
        return f"stomp://guest:guest@{HOST}:{self.stomp_port}/%2F"

    def close(self) -> None:
        super().close()
        self._stomp.close()


class NextRabbitMQ(ManyProtocols):
    """The same, of the next Debian, in a chroot. It needs root."""

    @staticmethod
    def missing() -> str | None:
        lacking = Broker.missing() or why_not()
        if lacking is None:
            try:
                build_root(SUITE, PACKAGES)
            except RootUnavailable as error:
                return str(error)
        return lacking

    def start(self) -> None:
        if self._node is None:
            made = Place.make(self._plugins, self._config)
            place = replace(made, scripts=self._scripts(made.directory))
            self._node = Node(place, start_timeout=60, stop_timeout=20)
        super().start()

    def _scripts(self, directory: Path) -> Path:
        root = build_root(SUITE, PACKAGES)
        scripts = directory / "scripts"
        scripts.mkdir()
        for name in ("rabbitmq-server", "rabbitmqctl"):
            program = f"/usr/lib/rabbitmq/bin/{name}"
            script = INSIDE.format(
                root=root, directory=directory, parent=directory.parent, program=program
            )
            (scripts / name).write_text(script)
            (scripts / name).chmod(0o755)
        return scripts


class ActiveMQ:
    """A private ActiveMQ that speaks STOMP. Debian's package has no AMQP 1.0."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="activemq-"))
        self._holder = reserve_port()
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str | None:
        if not ACTIVEMQ.exists():
            return "ActiveMQ is not installed: apt-get install activemq"
        return None if shutil.which("java") else "Java is not in PATH: apt-get install activemq"

    @property
    def port(self) -> int:
        return port_of(self._holder)

    @property
    def stomp_url(self) -> str:
        return f"stomp://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        properties = [f"-Dactivemq.{name}={self._directory}" for name in ("base", "data")]
        properties += ["-Dactivemq.home=/usr/share/activemq", "-Xmx128M"]
        broker = f"broker:(stomp://{HOST}:{self.port})?useJmx=false"
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["java", *properties, "-jar", str(ACTIVEMQ), "start", broker],
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        until(self._answers, "ActiveMQ answers")
        return self

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1.0):
            return True
        return False

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._holder.close()
        shutil.rmtree(self._directory)
