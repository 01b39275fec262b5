# SPDX-License-Identifier: GPL-2.0-or-later
"""What an instance is going to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer_framework.adapters.executor import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.handler import Handler
    from consumer_framework.core.recovery import Policy
    from consumer_framework.core.settings import Framework


@dataclass(frozen=True, slots=True)
class Plan:
    """A handler to be made, and how it is run.

    Attributes:
        name: How logs call the handler.
        factory: Makes it, on the event loop's thread; raises what the author's code raises.
        policy: Decides what becomes of its failures.
        framework: The settings in force, those of the author's class included.
        prefetch_count: How many messages the broker sends ahead, per queue; 0 for no limit.
    """

    name: str
    factory: Callable[[], Handler]
    policy: Policy
    framework: Framework
    prefetch_count: int

    @property
    def limits(self) -> Limits:
        """How much of the handler runs at once, and for how long."""
        limits = Limits(self.framework.slots, self.framework.handler_timeout)
        batch = self.framework.batch
        if batch is None:
            return limits
        return Limits(limits.slots, limits.timeout, batch.size, batch.seconds)
