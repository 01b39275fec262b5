# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket of a running instance: operators' orders, as lines of JSON.

A request is ``{"do": NAME, ...}``; the answers are any number of lines, the last of which has
``"done": true``, and ``"error"`` where something went wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver

from consumer_framework.core.secrets import redacted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    Orders: TypeAlias = Mapping[str, Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]]

_log = logging.getLogger(__name__)

# Bytes; a request names rows by their numbers, some thousands of them at the most.
LONGEST_REQUEST = 1 << 20


class ControlProtocol(LineOnlyReceiver):
    """One client."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_REQUEST

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._task: asyncio.Task[None] | None = None

    def lineReceived(self, line: bytes) -> None:  # noqa: N802 -- Twisted's name
        """Carry out a request, one at a time for each client."""
        if self._task is not None and not self._task.done():
            self._say({"error": "one request at a time", "done": True})
            return
        self._task = asyncio.get_running_loop().create_task(self._serve(line))

    def connectionLost(self, reason: Any = None) -> None:  # noqa: ARG002, N802 -- Twisted's name
        """Stop answering; what was begun goes on."""
        if self._task is not None:
            self._task.cancel()

    async def _serve(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            order = self._orders[request["do"]]
            async for answer in order(request):
                self._say(answer)
        except (ValueError, KeyError, TypeError) as error:
            self._say({"error": f"no such request: {error}", "done": True})
        except Exception as error:  # noqa: BLE001 -- told to the client
            _log.exception("a request on the control socket failed")
            self._say({"error": f"{type(error).__name__}: {error}", "done": True})
        else:
            self._say({"done": True})

    def _say(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(redacted(answer)).encode())  # type: ignore[no-untyped-call]


class ControlFactory(Factory):
    """Makes a :class:`ControlProtocol` for each client.

    Args:
        orders: What clients may ask for, by name.
    """

    noisy = False

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def buildProtocol(self, _addr: Any) -> ControlProtocol:  # noqa: N802 -- Twisted's name
        """Make the protocol of a new client."""
        client = ControlProtocol(self._orders)
        client.factory = self
        return client
