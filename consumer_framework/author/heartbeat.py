# SPDX-License-Identifier: GPL-2.0-or-later
"""The current run of the handler: its deliveries, its time limit, the messages that it publishes.

The executor sets :data:`CURRENT_RUN` in the context of each run. It follows the handler's context,
into ``asyncio.to_thread`` and into tasks, so log lines of a handler can name its messages.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedora_messaging.message import Message

    from consumer_framework.core.delivery import Delivery, Publication
    from consumer_framework.core.ports import Steps


class CurrentRun(Protocol):
    """One run of a handler, as code in the handler sees it."""

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """Return the deliveries that the handler has."""
        ...

    def heartbeat(self) -> None:
        """Restart the time limit of the run."""
        ...

    def collect(self, messages: Sequence[Publication]) -> bool:
        """Let *messages* belong to the run; return False if it is over."""
        ...

    @property
    def steps(self) -> Steps | None:
        """Return the memory of steps; None where there is none, or the run is over."""
        ...

    def delivery_of(self, message: Message) -> Delivery | None:
        """Return the delivery that brought *message*, None if the run has another message."""
        ...


# The run of this thread, or of this task.
CURRENT_RUN: ContextVar[CurrentRun | None] = ContextVar("current_run", default=None)
# The name of the step whose block runs in this thread, or in this task; "" for none.
CURRENT_STEP: ContextVar[str] = ContextVar("current_step", default="")


class _InheritedRun:
    """The run of the parent, in a process that its handler forked. The parent sees no change."""

    def __init__(self, run: CurrentRun) -> None:
        self._run = run

    @property
    def deliveries(self) -> Sequence[Delivery]:
        return self._run.deliveries

    def heartbeat(self) -> None:
        """The parent's time limit goes on."""

    def collect(self, _messages: Sequence[Publication]) -> bool:
        return False

    steps = None

    def delivery_of(self, message: Message) -> Delivery | None:
        return self._run.delivery_of(message)


def _forked() -> None:
    run = CURRENT_RUN.get()
    if run is not None:
        CURRENT_RUN.set(_InheritedRun(run))


os.register_at_fork(after_in_child=_forked)


def heartbeat() -> None:
    """Restart the ``handler_timeout`` of the handler that calls this.

    Call it after each step of a handler that works for long and makes progress. It takes less
    than a microsecond. In a thread that the handler started, it has an effect only if the thread
    has the handler's context (``asyncio.to_thread``, ``contextvars``). Outside a handler it has
    none.
    """
    run = CURRENT_RUN.get()
    if run is not None:
        run.heartbeat()


def deliveries() -> Sequence[Delivery]:
    """Return the deliveries of the current run; empty outside a handler."""
    run = CURRENT_RUN.get()
    return run.deliveries if run is not None else ()


def collect(messages: Sequence[Publication]) -> bool:
    """Let *messages* belong to the current run: they are stored if the run succeeds.

    Returns:
        False outside a handler, once the handler has ended, and in a process that it forked: the
        caller stores them by itself. False also in a step, which is done even if the run fails
        later: no other run would publish its messages.
    """
    run = CURRENT_RUN.get()
    return run is not None and not CURRENT_STEP.get() and run.collect(messages)
