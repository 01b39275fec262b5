# SPDX-License-Identifier: GPL-2.0-or-later
"""Which deliveries the handler that calls has, so that what it logs can name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .heartbeat import RUN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .delivery import Delivery


def deliveries() -> Sequence[Delivery]:
    """Return the deliveries of the run that this thread, or this task, is in; none outside one."""
    run = RUN.get()
    return run.deliveries if run is not None else ()
