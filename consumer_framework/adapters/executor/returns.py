# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges what the author's code returned: nothing, work to be awaited, or a mistake."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import Any

from twisted.internet import defer

_log = logging.getLogger(__name__)

# Objects that stand for work which nobody has begun with: iterating over them would do it.
_NEVER_RUN = (Generator, AsyncGenerator, map, filter)


def is_later(returned: Any) -> bool:
    """Whether a plain function only began what it is to do."""
    return isinstance(returned, defer.Deferred) or inspect.isawaitable(returned)


def as_awaitable(returned: Any) -> Awaitable[Any]:
    """Make what an asyncio task can await of a coroutine, a future or a Deferred."""
    if isinstance(returned, defer.Deferred):
        future: asyncio.Future[Any] = returned.asFuture(asyncio.get_running_loop())
        return future
    awaitable: Awaitable[Any] = returned
    return awaitable


async def finished(returned: Any) -> Any:
    """Await *returned*, and what that returns, as long as it can be awaited; return the rest."""
    while is_later(returned):
        returned = await as_awaitable(returned)
    return returned


def refuse_never_run(returned: Any) -> None:
    """Refuse the object that a function with ``yield`` returns instead of running.

    Raises:
        TypeError: *returned* is a generator, or another iterator that does its work only when
            somebody iterates over it.
    """
    if isinstance(returned, _NEVER_RUN):
        kind = type(returned).__name__
        raise TypeError(
            f"the handler returned a {kind} object, whose code was never run; "
            "remove the yield, or iterate over it in the handler"
        )


class Returns:
    """Judges what one handler returns for its messages.

    Args:
        name: How logs call the handler.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_said = False

    def check(self, returned: Any) -> None:
        """Accept *returned*, which is not awaitable; log the first one that is not None.

        Raises:
            TypeError: It stands for work that was never begun.
        """
        if returned is None:
            return
        refuse_never_run(returned)
        if not self._is_said:
            self._is_said = True
            _log.warning(
                "%s returned an object of type %s, which is ignored: returning means success; "
                "to say something else, raise an exception of consumer_framework",
                self._name,
                type(returned).__name__,
            )

    async def finish(self, returned: Any) -> None:
        """Await *returned* where it can be awaited, and check the rest.

        Raises:
            BaseException: What the author's code raised.
            TypeError: As :meth:`check` does.
        """
        self.check(await finished(returned))
