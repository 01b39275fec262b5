# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves operators' requests on the control socket of a running instance."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver

from .schema import Done, ProtocolError, decode_request, encode_answer, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from .schema import Request

    ByType: TypeAlias = Mapping[type[Request[Any]], Callable[[Any], AsyncIterator[object]]]

_log = logging.getLogger(__name__)

# Bytes; a request names rows by their numbers, some thousands of them at the most.
LONGEST_REQUEST = 1 << 20


class ControlProtocol(LineOnlyReceiver):
    """One client."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_REQUEST

    def __init__(self, by_type: ByType) -> None:
        self._by_type = by_type
        self._task: asyncio.Task[None] | None = None

    def lineReceived(self, line: bytes) -> None:  # noqa: N802 -- Twisted's name
        """Carry out a request, one at a time for each client."""
        if self._task is not None and not self._task.done():
            self._answer(Done(error="one request at a time"))
            return
        self._task = asyncio.get_running_loop().create_task(self._serve(line))

    def connectionLost(self, reason: Any = None) -> None:  # noqa: ARG002, N802 -- Twisted's name
        """Stop answering; a request that is under way goes on."""
        if self._task is not None:
            self._task.cancel()

    async def _serve(self, line: bytes) -> None:
        try:
            async for answer in self._answers(decode_request(line)):
                self._answer(answer)
        except ProtocolError as error:
            self._answer(Done(error=str(error)))
        except Exception as error:  # noqa: BLE001 -- told to the client
            _log.exception("a request on the control socket failed")
            self._answer(Done(error=f"{type(error).__name__}: {error}"))
        else:
            self._answer(Done())

    def _answers(self, request: Request[Any]) -> AsyncIterator[object]:
        respond = self._by_type.get(type(request))
        if respond is None:
            raise ProtocolError(f"no such request: {name_of(type(request))!r}")
        return respond(request)

    def _answer(self, answer: object) -> None:
        self.sendLine(encode_answer(answer))  # type: ignore[no-untyped-call]


class ControlFactory(Factory):
    """Makes a :class:`ControlProtocol` for each client.

    Args:
        by_type: The function that answers each type of request.
    """

    noisy = False

    def __init__(self, by_type: ByType) -> None:
        self._by_type = by_type

    def buildProtocol(self, _addr: Any) -> ControlProtocol:  # noqa: N802 -- Twisted's name
        """Make the protocol of a new client."""
        client = ControlProtocol(self._by_type)
        client.factory = self
        return client
