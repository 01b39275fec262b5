# SPDX-License-Identifier: GPL-2.0-or-later
"""How a handler says that it is slow, and not stuck.

Which deliveries the handler that calls has, so that what it logs can name them.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.core.delivery import Delivery


class Run(Protocol):
    """One run of a handler."""

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """What the handler has."""
        ...

    def heartbeat(self) -> None:
        """Let its time begin anew."""
        ...


# The run that this thread, or this task, is in.
CURRENT_RUN: ContextVar[Run | None] = ContextVar("run", default=None)


def heartbeat() -> None:
    """Let the ``handler_timeout`` of the handler that calls this begin anew.

    For a handler that is long at work, and knows that it gets on: call it after each step. It
    takes less than a microsecond. From a thread of the handler's own it does nothing, unless the
    thread was begun with the handler's context (``asyncio.to_thread``, ``contextvars``); outside
    of a handler it does nothing at all.
    """
    run = CURRENT_RUN.get()
    if run is not None:
        run.heartbeat()


def deliveries() -> Sequence[Delivery]:
    """Return the deliveries of the run that this thread, or this task, is in; none outside one."""
    run = CURRENT_RUN.get()
    return run.deliveries if run is not None else ()
