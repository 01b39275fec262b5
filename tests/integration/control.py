# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls the control API of an instance without our client."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def call(path: Path, method: str, target: str, body: Any = None) -> tuple[int, list[Any]]:
    """Return the status and the JSON objects of the response.

    Args:
        path: The control socket.
        method: Such as ``GET``.
        target: The path, with its query.
        body: The JSON to send; None for no body.
    """
    connection = HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with closing(connection):
        connection.sock.settimeout(60)
        connection.sock.connect(str(path))
        connection.request(method, target, None if body is None else json.dumps(body).encode())
        response = connection.getresponse()
        return response.status, [json.loads(line) for line in response]
