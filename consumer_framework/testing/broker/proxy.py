# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP proxy with which a test makes the network fail.

    with Proxy("127.0.0.1", broker.port) as proxy:
        client = connect(proxy.url_for(broker.url))
        proxy.cut()

The proxy runs an event loop in a thread of its own, independent of the threads of the program under
test. A method that changes the proxy returns when the change has happened.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from .place import HOST, reserve_port

T = TypeVar("T")

# Bytes that the proxy reads from one side before it writes them to the other.
_CHUNK = 65536
# Writes in a second on a slow link.
_PIECES = 20
# struct linger: close() discards unsent bytes, and sends RST (socket(7)).
_LINGER_NOT = struct.pack("ii", 1, 0)


def _tcp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(0)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class _Link:
    """The connection of one client, and the proxy's own connection to the target."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.upstream = _tcp_socket()
        client.settimeout(0)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def will_reset(self) -> None:
        for end in (self.client, self.upstream):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)

    def will_finish(self) -> None:
        # Before close(), which sends RST instead where unread bytes are left.
        for end in (self.client, self.upstream):
            with suppress(OSError):
                end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.client.close()
        self.upstream.close()


class _Relay:
    """The part of the proxy that runs in the thread of the loop; call it only there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: tuple[str, int]) -> None:
        self._loop = loop
        self._target = target
        self._holder = reserve_port()
        self._listener: socket.socket | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._flowing = asyncio.Event()
        self._hangs_up = False
        self._rate: int | None = None
        self.port: int = self._holder.getsockname()[1]

    async def listen(self) -> None:
        if self._listener is None:
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.settimeout(0)
            self._listener.bind((HOST, self.port))
            self._listener.listen()
            self._loop.add_reader(self._listener, self._take_pending)

    async def unlisten(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def flow(self) -> None:
        self._flowing.set()

    async def stem(self) -> None:
        self._flowing.clear()

    async def hang_up(self, *, ends: bool) -> None:
        self._hangs_up = ends

    async def limit(self, rate: int | None) -> None:
        self._rate = rate

    async def count(self) -> int:
        self._take_pending()
        return len(self._links)

    async def cut(self, end: Callable[[_Link], None]) -> int:
        self._take_pending()
        links = dict(self._links)
        for task, link in links.items():
            end(link)
            # A cancelled task sends nothing more, even if it was about to.
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        return len(links)

    async def close(self) -> None:
        await self.unlisten()
        await self.cut(_Link.will_reset)
        self._holder.close()

    def _take_pending(self) -> None:
        if self._listener is not None:
            with suppress(BlockingIOError):
                while True:
                    self._take(self._listener.accept()[0])

    def _take(self, client: socket.socket) -> None:
        if self._hangs_up:
            client.close()
            return
        link = _Link(client)
        task = self._loop.create_task(self._serve(link))
        self._links[task] = link
        # Not in the task itself, which runs none of its code where it is cancelled before it began.
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._links.pop(task).close()

    async def _serve(self, link: _Link) -> None:
        try:
            await self._loop.sock_connect(link.upstream, self._target)
            await self._relay_both_ways(link)
        except* OSError:
            # One side is gone. The other side gets a reset too, once the network is not stalled.
            await self._flowing.wait()
            link.will_reset()

    async def _relay_both_ways(self, link: _Link) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._relay(link.client, link.upstream))
            both.create_task(self._relay(link.upstream, link.client))

    async def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK):
            await self._flowing.wait()
            if self._rate is None:
                await self._loop.sock_sendall(sink, data)
            else:
                await self._trickle(sink, data, self._rate)
        await self._flowing.wait()
        sink.shutdown(socket.SHUT_WR)

    async def _trickle(self, sink: socket.socket, data: bytes, rate: int) -> None:
        size = max(1, rate // _PIECES)
        for start in range(0, len(data), size):
            await self._loop.sock_sendall(sink, data[start : start + size])
            await asyncio.sleep(1 / _PIECES)


@dataclass(frozen=True)
class _Running:
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    relay: _Relay

    @classmethod
    def start(cls, target: tuple[str, int]) -> Self:
        loop = asyncio.new_event_loop()
        # A daemon, since a proxy that was not closed must not prevent the end of the interpreter.
        thread = threading.Thread(target=loop.run_forever, name="tcp-proxy", daemon=True)
        thread.start()
        return cls(loop, thread, _Relay(loop, target))

    def call(self, change: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(change, self.loop).result()

    def end(self) -> None:
        self.call(self.relay.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Proxy:
    """A TCP proxy on a free port of 127.0.0.1 whose connections a test makes fail.

    Entering the context opens it; leaving it drops all connections. Where the target refuses a
    connection, the proxy has accepted the client already, and resets it: a TCP proxy cannot do
    better.

    Args:
        host: The target: an IPv4 address, or a name that has one.
        port: The TCP port of the target.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._state: _Running | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Open the proxy on a free port. It accepts connections, and forwards them.

        Raises:
            RuntimeError: It is open already.
        """
        if self._state is not None:
            raise RuntimeError("the proxy is open already")
        self._state = _Running.start(self._target)
        self.accept()
        self.resume()

    def close(self) -> None:
        """Drop all connections with RST and give up the port. Does nothing if it is not open."""
        if self._state is not None:
            self._state.end()
            self._state = None

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; the same until `close`, also between `refuse` and `accept`."""
        return self._running.relay.port

    @property
    def connections(self) -> int:
        """The number of connected clients, as far as the proxy has noticed their ends."""
        return self._running.call(self._running.relay.count())

    def url_for(self, amqp_url: str) -> str:
        """Rewrite an AMQP URL so that it leads through the proxy.

        Args:
            amqp_url: A URL of the target. User, password, virtual host and query stay.
        """
        parts = urlsplit(amqp_url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{HOST}:{self.port}"))

    def cut(self, *, reset: bool = True) -> int:
        """Drop all connections, on both sides. The proxy still accepts new ones.

        The proxy discards the bytes that it holds at this moment. Bytes that it gave to the kernel
        before count as delivered: with *reset* the kernel discards those that it has not sent yet;
        without *reset* it sends them first.

        Args:
            reset: True sends RST, as when a host comes back and knows nothing; False sends FIN, as
                when a process closes its socket.

        Returns:
            The number of clients that were cut off.
        """
        end = _Link.will_reset if reset else _Link.will_finish
        return self._running.call(self._running.relay.cut(end))

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED), as if the target were down; keep the others.

        Clients that the kernel has accepted and the proxy has not are reset.
        """
        self._running.call(self._running.relay.unlisten())

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._running.call(self._running.relay.listen())

    def hang_up(self) -> None:
        """Accept new connections and close them at once, as a balancer without a backend does."""
        self._running.call(self._running.relay.hang_up(ends=True))

    def forward(self) -> None:
        """Forward new connections again."""
        self._running.call(self._running.relay.hang_up(ends=False))

    def limit(self, rate: int | None) -> None:
        """Limit the speed in each direction of each connection.

        Args:
            rate: Bytes in a second; None for no limit.
        """
        self._running.call(self._running.relay.limit(rate))

    def stall(self) -> None:
        """Stop forwarding in both directions, as when a network goes dead.

        Connections stay, and clients can make new ones. No bytes pass, and no end of a connection,
        except for at most 64 KiB in each direction that were on their way.
        """
        self._running.call(self._running.relay.stem())

    def resume(self) -> None:
        """Forward again, beginning with the bytes that were held back."""
        self._running.call(self._running.relay.flow())

    @property
    def _running(self) -> _Running:
        if self._state is None:
            raise RuntimeError("the proxy is not open")
        return self._state
