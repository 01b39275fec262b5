# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP ports on loopback that nobody else is given."""

import socket

HOST = "127.0.0.1"


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


def port_of(holder: socket.socket) -> int:
    """The port that a socket holds."""
    port: int = holder.getsockname()[1]
    return port
