# SPDX-License-Identifier: GPL-2.0-or-later
"""The author's callable as the host runs it, whatever form it was written in."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Handler:
    """The functions that the host runs.

    Attributes:
        name: The name in logs (``module:object``).
        call: Takes one message. A plain function, or a coroutine function.
        setup: Runs before the first message; None where the author wrote none.
        teardown: Runs after the last message; likewise.
        call_batch: Takes a :class:`.Batch`, in place of *call*; None for single messages.
        ordering_key: Returns the ordering key of a message; None where the author wrote none.
        stop_requested: Is told on the event loop that the instance stops; likewise.
        health: Reports a fault, as text or as an exception; likewise.
    """

    name: str
    call: Callable[[Any], Any]
    setup: Callable[[], Any] | None = None
    teardown: Callable[[], Any] | None = None
    call_batch: Callable[[Any], Any] | None = None
    ordering_key: Callable[[Any], Any] | None = None
    stop_requested: Callable[[], Any] | None = None
    health: Callable[[], Any] | None = None


def is_coroutine_callable(function: Callable[..., Any]) -> bool:
    """Return whether a call of *function* makes a coroutine: ``async def``, ``async __call__``."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 -- it is callable; how is the question
    )
