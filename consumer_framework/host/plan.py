# SPDX-License-Identifier: GPL-2.0-or-later
"""What an instance is going to run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consumer_framework.adapters.executor import Limits
from consumer_framework.core.delivery_limit import limit_of
from consumer_framework.core.settings import Ordering

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.handler import Handler
    from consumer_framework.core.recovery import Policy
    from consumer_framework.core.settings import Framework, Recovery, Settings

    from .loader import Target
    from .ordering import SourceOf


@dataclass(frozen=True, slots=True)
class Plan:
    """A handler to be made, and how it is run.

    Attributes:
        name: How logs call the handler.
        factory: Makes it, on the event loop's thread; raises what the author's code raises.
        policy: Decides what becomes of its failures.
        framework: The settings in force, those of the author's class included.
        source_of: Gives what finds the ordering key of a message, once the handler is made; None
            where there is no order by key.
        prefetch_count: How many messages the broker sends ahead, per queue; 0 for no limit.
        target: What the handler is made of; None where nobody makes another one.
        usual_timeout: Seconds that a run may take where the file does not say: infinite for a
            callback as fedora-messaging runs it, which sets no limit.
    """

    name: str
    factory: Callable[[], Handler]
    policy: Policy
    framework: Framework
    source_of: SourceOf | None = None
    prefetch_count: int = 0
    target: Target | None = None
    usual_timeout: float = math.inf

    @property
    def most_behind(self) -> int | None:
        """How many messages may wait behind failed ones of their keys; None for no limit.

        They use up half of what the broker sends ahead, and leave the rest to other keys.
        """
        if self.policy.strict or not self.prefetch_count:
            return None
        return self.prefetch_count // 2

    @property
    def tidy_interval(self) -> float:
        """Seconds between two looks for deliveries that wait for too long."""
        return self.framework.recovery.ack_timeout / 20

    def patience(self, longest: float) -> float:
        """Seconds that a delivery may wait for a slot, so that its run ends within ack_timeout.

        Args:
            longest: Seconds that a run takes.
        """
        ack_timeout = self.framework.recovery.ack_timeout
        left = ack_timeout - longest - 2 * self.tidy_interval
        return min(self.policy.hold_ceiling, max(left, ack_timeout / 4))

    @property
    def limits(self) -> Limits:
        """How much of the handler runs at once, and for how long."""
        limits = Limits(self.framework.slots, self.framework.handler_limit(self.usual_timeout))
        batch = self.framework.batch
        if batch is None:
            return limits
        return Limits(limits.slots, limits.timeout, batch.size, batch.seconds)


def fitted(plan: Plan, settings: Settings, recovery: Recovery) -> Plan:
    """Return *plan* with numbers that fit together.

    Args:
        plan: What is to be run.
        settings: What the file says.
        recovery: The recovery settings in force, those of the author's class included.
    """
    framework = plan.framework
    # A batch that fails is held whole, to be tried again message by message.
    batch = framework.batch.size if framework.batch else 0
    wanted = max(recovery.hold_slots, batch)
    holding = recovery.model_copy(update={"hold_slots": wanted})
    framework = framework.model_copy(update={"recovery": holding})
    written = settings.qos.prefetch_count
    prefetch_count = _derived(framework, settings) if written is None else written
    if prefetch_count:
        # What is held counts against it, and the slots need something to take.
        room = max(prefetch_count - framework.at_once, 0)
        holding = recovery.model_copy(update={"hold_slots": min(wanted, room)})
        framework = framework.model_copy(update={"recovery": holding})
    policy = replace(plan.policy, strict=framework.ordering is Ordering.STRICT)
    return replace(plan, policy=policy, framework=framework, prefetch_count=prefetch_count)


def _derived(framework: Framework, settings: Settings) -> int:
    """Return how many messages the broker sends ahead where the file does not say.

    A crash counts against the delivery limit of a queue, for each message that was sent ahead.
    """
    limits = [limit_of(queue.arguments, None) for queue in settings.queues.values()]
    smallest = min((limit for limit in limits if limit is not None), default=None)
    if smallest is None:
        return framework.prefetch_count
    return min(framework.prefetch_count, framework.at_once + max(smallest, 1))
