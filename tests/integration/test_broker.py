# SPDX-License-Identifier: GPL-2.0-or-later
"""The private RabbitMQ node."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import (
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAuthenticationError,
    StreamLostError,
)

from consumer_framework.testing.broker import Broker, BrokerError, reserve_port

PERSISTENT = pika.BasicProperties(delivery_mode=2)


@pytest.fixture(scope="module")
def own(broker: Broker) -> Iterator[Broker]:
    """Start a second node, which these tests may stop, in an environment full of traps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RABBITMQ_NODE_PORT", str(broker.port))
        patch.setenv("RABBITMQ_NODENAME", "rabbit@elsewhere.invalid")
        patch.setenv("ERL_EPMD_PORT", "1")
        patch.setenv("ERL_FLAGS", "-no-such-flag +no-such-flag")
        patch.setenv("NOTIFY_SOCKET", "/nonexistent")
        with Broker(
            plugins=["rabbitmq_consistent_hash_exchange"], config={"channel_max": "7"}
        ) as running:
            yield running


def connect(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url))


def publish_confirmed(url: str, queue: str) -> None:
    with connect(url) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", queue, b"kept", PERSISTENT)


def get(url: str, queue: str) -> bytes | None:
    with connect(url) as connection:
        body: bytes | None = connection.channel().basic_get(queue, auto_ack=True)[2]
        return body


def listening_addresses(pid: int) -> set[str]:
    """Return the listening addresses of a process, as in /proc/net/tcp and tcp6 (proc(5))."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        # The descriptor may be closed by now.
        with contextlib.suppress(FileNotFoundError):
            inodes.add(str(fd.readlink()))
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    lines += Path("/proc/net/tcp6").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return {
        row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes
    }


def has_ended(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    # A zombie is dead; its new parent has yet to collect it.
    return status.rpartition(")")[2].split()[0] == "Z"


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_two_nodes_at_once_share_nothing(broker: Broker, own: Broker) -> None:
    publish_confirmed(own.url, "only-here")
    assert own.depth("only-here") == (1, 0)
    with pytest.raises(ChannelClosedByBroker, match="404"):
        broker.depth("only-here")
    assert get(own.url, "only-here") == b"kept"


def test_the_node_listens_on_loopback_only(own: Broker) -> None:
    assert own.pid is not None
    assert listening_addresses(own.pid) == {"0100007F"}


def test_configuration_and_plugins_are_in_force(own: Broker) -> None:
    assert own.ctl("eval", "application:get_env(rabbit, channel_max).").strip() == "{ok,7}"
    with connect(own.url) as connection:
        connection.channel().exchange_declare("spread", "x-consistent-hash")


def test_depth_counts_ready_messages_and_consumers(broker: Broker, queue_name: str) -> None:
    with connect(broker.url) as connection:
        channel = connection.channel()
        channel.queue_declare(queue_name)
        channel.confirm_delivery()
        for _ in range(3):
            channel.basic_publish("", queue_name, b"")
        assert broker.depth(queue_name) == (3, 0)
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue_name, lambda *_: None)
        assert broker.consumers(queue_name) == 1


def test_an_added_user_may_do_what_was_granted_and_nothing_else(
    broker: Broker, queue_name: str
) -> None:
    url = broker.add_user("reader/1", "a password", configure=r"^test\.", read=".*")
    with connect(url) as connection:
        connection.channel().queue_declare(queue_name)
        with pytest.raises(ChannelClosedByBroker, match="403"):
            connection.channel().queue_declare("forbidden")
    with pytest.raises(ProbableAuthenticationError):
        connect(broker.url_for("reader/1", "a guess"))


def test_a_command_that_fails_raises_with_its_output(broker: Broker) -> None:
    with pytest.raises(BrokerError, match=r"(?s)authenticate_user failed.*nobody"):
        broker.ctl("authenticate_user", "nobody", "a guess")


def test_a_command_that_takes_too_long_raises(broker: Broker) -> None:
    with pytest.raises(BrokerError, match=r"status took over 0\.01 seconds"):
        broker.ctl("status", timeout=0.01)


def test_a_running_node_is_not_started_again(broker: Broker) -> None:
    with pytest.raises(BrokerError, match="runs already"):
        broker.start()


def test_a_restart_tells_clients_and_keeps_port_and_persistent_messages(own: Broker) -> None:
    url, pid = own.url, own.pid
    publish_confirmed(url, "restarted")
    client = connect(url)
    own.restart()
    with pytest.raises(ConnectionClosedByBroker, match="320"):
        client.process_data_events()
    assert own.pid != pid
    assert own.url == url
    assert get(url, "restarted") == b"kept"


def test_a_killed_node_is_silent_and_keeps_confirmed_messages(own: Broker) -> None:
    publish_confirmed(own.url, "killed")
    own.ctl("eval", "mnesia:sync_log().")
    client = connect(own.url)
    own.kill()
    with pytest.raises(StreamLostError):
        client.process_data_events()
    assert own.pid is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", own.port))
    own.start()
    assert get(own.url, "killed") == b"kept"


def test_a_node_that_cannot_start_raises_with_the_end_of_its_log_and_leaves_nothing() -> None:
    node = Broker(config={"no.such.key": "1"})
    with pytest.raises(BrokerError, match=r"(?s)ended with status 1.*no\.such\.key"), node:
        pass
    assert node.pid is None
    assert node.log_tail() == ""


def test_a_node_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(BrokerError, match=r"not ready in 0\.2 seconds"), Broker(start_timeout=0.2):
        pass


def test_a_closed_node_leaves_no_directory_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(BrokerError), Broker(start_timeout=0.2):
        pass
    assert list(tmp_path.iterdir()) == []


ORPHAN = """
import os, signal, threading
from pathlib import Path
from consumer_framework.testing.broker import Broker

def die():
    print(node.pid, Path(f"/proc/{node.pid}/cwd").resolve(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

node = Broker()
threading.Timer(1.0, die).start()
node.start()
"""


def test_the_node_and_its_directory_go_when_python_is_killed() -> None:
    parent = subprocess.run(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, check=False
    )
    assert parent.returncode == -signal.SIGKILL
    pid, directory = parent.stdout.split()
    assert eventually(lambda: has_ended(int(pid)))
    assert eventually(lambda: not Path(directory).exists())


def test_a_missing_program_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Broker.missing() is None
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt install rabbitmq-server" in str(Broker.missing())


def test_a_node_that_was_never_started_has_neither_port_nor_log() -> None:
    node = Broker()
    assert node.log_tail() == ""
    assert node.pid is None
    with pytest.raises(BrokerError, match="not started"):
        node.port  # noqa: B018


def test_a_reserved_port_refuses_clients_and_is_given_to_a_server_that_reuses_addresses() -> None:
    with reserve_port() as holder:
        address = holder.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with socket.create_server(address), socket.create_connection(address):
            pass
        with socket.socket() as rude, pytest.raises(OSError, match="in use"):
            rude.bind(address)
