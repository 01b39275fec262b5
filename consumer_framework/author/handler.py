# SPDX-License-Identifier: GPL-2.0-or-later
"""The author's callable, whatever form it was written in."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Handler:
    """What the host runs for each message.

    Attributes:
        name: How logs call it (``module:object``).
        call: Takes one message. Sync, or a coroutine function.
        call_batch: Takes a :class:`.Batch` instead, None for a handler of single messages.
        ordering_key: Gives the ordering key of a message, None where the author wrote none.
        setup: Runs before the first message, None where there is nothing to do.
        teardown: Runs after the last one.
    """

    name: str
    call: Callable[[Any], Any]
    setup: Callable[[], Any] | None = None
    teardown: Callable[[], Any] | None = None
    call_batch: Callable[[Any], Any] | None = None
    ordering_key: Callable[[Any], Any] | None = None


def is_coroutine_callable(function: Callable[..., Any]) -> bool:
    """Whether calling *function* only makes a coroutine: ``async def``, or ``async __call__``."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 -- it is callable; how is the question
    )
