# SPDX-License-Identifier: GPL-2.0-or-later
"""Which deliveries the handler that calls has, so that what it logs can name them.

A context variable, so that the threads of slots, tasks and whatever tasks a handler starts each
see their own (:mod:`contextvars`).
"""

from __future__ import annotations

from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .delivery import Delivery

deliveries: ContextVar[Sequence[Delivery]] = ContextVar("deliveries", default=())


def context_of(those: Sequence[Delivery]) -> Context:
    """Make a context like the caller's, for a task that has *those*."""
    context = copy_context()
    context.run(deliveries.set, those)
    return context
