# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP proxy makes the network fail as tests ask."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pika
import pytest
from pika.exceptions import AMQPConnectionError, StreamLostError

from consumer_framework.testing.broker import Broker, reserve_port
from consumer_framework.testing.broker.proxy import Proxy

MOMENT = 0.2
"""Seconds after which nothing more happens on loopback."""


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


@pytest.fixture
def front(server: socket.socket) -> Iterator[Proxy]:
    """Start a proxy in front of `server`."""
    with Proxy("127.0.0.1", server.getsockname()[1]) as running:
        yield running


@pytest.fixture
def pair(front: Proxy, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the two ends of one connection through `front`."""
    client = socket.create_connection(("127.0.0.1", front.port), timeout=5)
    with client, server.accept()[0] as peer:
        peer.settimeout(5)
        yield client, peer


def hears_nothing(end: socket.socket) -> bool:
    end.settimeout(MOMENT)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(5)
    return False


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_bytes_and_ends_pass_in_both_directions(
    pair: tuple[socket.socket, socket.socket], front: Proxy
) -> None:
    client, peer = pair
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert (peer.recv(99), peer.recv(99)) == (b"question", b"")
    assert front.connections == 1
    peer.sendall(b"answer")
    peer.close()
    assert (client.recv(99), client.recv(99)) == (b"answer", b"")
    assert eventually(lambda: front.connections == 0)


def test_a_large_transfer_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    client, peer = pair
    sent = bytes(range(256)) * 20_000
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.sendall, sent)
        received = b""
        while len(received) < len(sent):
            received += peer.recv(65536)
        sending.result()
    assert received == sent


def test_a_cut_resets_both_ends(pair: tuple[socket.socket, socket.socket], front: Proxy) -> None:
    assert front.cut() == 1
    assert front.connections == 0
    for end in pair:
        with pytest.raises(ConnectionResetError):
            end.recv(1)


def test_a_gentle_cut_ends_the_stream_at_both_ends(
    pair: tuple[socket.socket, socket.socket], front: Proxy
) -> None:
    assert front.cut(reset=False) == 1
    assert [end.recv(1) for end in pair] == [b"", b""]


@pytest.mark.parametrize("reset", [True, False])
def test_nothing_that_was_held_back_is_delivered_after_a_cut(
    pair: tuple[socket.socket, socket.socket], front: Proxy, *, reset: bool
) -> None:
    client, peer = pair
    front.stall()
    client.sendall(b"lost")
    assert hears_nothing(peer)
    front.cut(reset=reset)
    front.resume()
    try:
        assert peer.recv(99) == b""
    except ConnectionResetError:
        assert reset


def test_a_cut_drops_the_client_that_has_just_connected(front: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=5) as client:
        assert front.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_refusing_proxy_keeps_its_connections_and_comes_back_on_the_same_port(
    pair: tuple[socket.socket, socket.socket], front: Proxy
) -> None:
    client, peer = pair
    address = ("127.0.0.1", front.port)
    front.refuse()
    front.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    client.sendall(b"still here")
    assert peer.recv(99) == b"still here"
    front.accept()
    front.accept()
    with socket.create_connection(address):
        assert eventually(lambda: front.connections == 2)


def test_a_stalled_proxy_holds_back_bytes_and_ends_until_it_is_resumed(
    pair: tuple[socket.socket, socket.socket], front: Proxy
) -> None:
    client, peer = pair
    front.stall()
    client.sendall(b"late")
    client.shutdown(socket.SHUT_WR)
    assert hears_nothing(peer)
    front.resume()
    assert (peer.recv(99), peer.recv(99)) == (b"late", b"")


def test_a_reset_at_one_end_reaches_the_other_but_not_through_a_stalled_proxy(
    pair: tuple[socket.socket, socket.socket], front: Proxy
) -> None:
    client, peer = pair
    front.stall()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    assert hears_nothing(client)
    front.resume()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_client_is_reset_when_the_target_refuses_it() -> None:
    with reserve_port() as nobody, Proxy("127.0.0.1", nobody.getsockname()[1]) as front:
        # The reset may come while the connection is being made.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", front.port), timeout=5) as client,
        ):
            client.recv(1)
        assert eventually(lambda: front.connections == 0)


def test_a_url_is_rewritten_and_keeps_everything_but_host_and_port(front: Proxy) -> None:
    rewritten = front.url_for("amqps://me:p%40ss@broker.example:5671/%2Fpubsub?heartbeat=5")
    assert rewritten == f"amqps://me:p%40ss@127.0.0.1:{front.port}/%2Fpubsub?heartbeat=5"
    assert front.url_for("amqp://broker.example") == f"amqp://127.0.0.1:{front.port}"


def test_a_proxy_is_usable_between_start_and_close_only() -> None:
    front = Proxy("127.0.0.1", 9)
    with pytest.raises(RuntimeError, match="not open"):
        front.cut()
    front.start()
    with pytest.raises(RuntimeError, match="open already"):
        front.start()
    address = ("127.0.0.1", front.port)
    front.close()
    front.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_cut_drops_a_real_client_which_can_connect_again(broker: Broker, proxy: Proxy) -> None:
    parameters = pika.URLParameters(proxy.url_for(broker.url))
    client = pika.BlockingConnection(parameters)
    proxy.cut()
    with pytest.raises(StreamLostError):
        client.process_data_events(time_limit=5)
    with pika.BlockingConnection(parameters) as again:
        assert again.is_open


def test_a_refusing_proxy_keeps_a_real_client_out(broker: Broker, proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(proxy.url_for(broker.url)))


def test_a_real_client_without_heartbeats_hangs_while_the_proxy_is_stalled(
    broker: Broker, proxy: Proxy, queue_name: str
) -> None:
    parameters = pika.URLParameters(proxy.url_for(broker.url) + "?heartbeat=0")
    with pika.BlockingConnection(parameters) as client, ThreadPoolExecutor(1) as pool:
        channel = client.channel()
        proxy.stall()
        declaring = pool.submit(channel.queue_declare, queue_name)
        time.sleep(MOMENT)
        assert not declaring.done()
        proxy.resume()
        assert declaring.result(timeout=5).method.queue == queue_name
