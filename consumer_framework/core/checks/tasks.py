# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether there may be as many threads as the slots need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.core.errors import Problem

if TYPE_CHECKING:
    from consumer_framework.core.settings import Framework

# Threads besides those of the slots: the event loop's, the journal's, those that resolve names.
RESERVE = 12


def tasks_problem(framework: Framework, most: int | None) -> Problem | None:
    """Say what is wrong where no more than *most* processes and threads are allowed.

    Args:
        framework: The settings.
        most: ``TasksMax=`` of the unit, or ``pids.max`` of the control group; None for no limit.
    """
    needed = framework.slots + RESERVE
    if most is None or needed <= most:
        return None
    return Problem(
        "consumer_config.framework.slots",
        f"{framework.slots} slots need {needed} threads, and {most} tasks are allowed "
        "(TasksMax= of the unit, pids.max of the control group)",
        f"set TasksMax={4 * needed} or more with systemctl edit, or the container's limit of pids; "
        "or set fewer slots",
    )
