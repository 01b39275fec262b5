# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that are right one by one, and do not go together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from consumer_framework.core.durations import text
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.recovery import OnExhausted

from .framework import Ordering, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .framework import Framework, Recovery

# The TOML path of the framework's own settings.
FRAMEWORK = "consumer_config.framework"

# Messages in handlers. Each has a task, a record of the flight recorder, and itself in memory.
MOST_AT_ONCE = 10_000


def conflicts(framework: Framework) -> Iterator[Problem]:
    """Say which of the framework's settings contradict each other."""
    if framework.ordering_key is not None and framework.ordering is not Ordering.KEY:
        cure = 'set ordering = "key", or remove this key'
        what = f'has no effect with ordering = "{framework.ordering.value}"'
        yield Problem(f"{FRAMEWORK}.ordering_key", what, cure)
    if framework.burst is not None and framework.rate is None:
        yield Problem(f"{FRAMEWORK}.burst", "has no effect without rate", "set rate, or remove it")
    if framework.batch is not None and framework.ordering is Ordering.STRICT:
        what = 'with ordering = "strict" one message is handled at a time'
        yield Problem(f"{FRAMEWORK}.batch", what, "remove it, or order by key")
    if framework.batch is not None and framework.at_once > MOST_AT_ONCE:
        what = f"{framework.slots} slots of {framework.batch.size} are more than {MOST_AT_ONCE}"
        cure = f"set it to {MOST_AT_ONCE // framework.slots} or less, or set fewer slots"
        yield Problem(f"{FRAMEWORK}.batch.size", f"{what} messages in handlers at once", cure)
    if framework.store is Store.MEMORY and framework.ordering is not Ordering.NONE:
        what = 'with store = "memory" a message that fails is overtaken by those behind it'
        yield Problem(f"{FRAMEWORK}.ordering", what, 'set ordering = "none", or remove store')
    yield from _timeouts(framework)
    recovery = framework.recovery
    if recovery.on_exhausted is OnExhausted.REJECT and recovery.delays and not recovery.hold_slots:
        what = 'with on_exhausted = "reject" a message is held until its next attempt'
        yield Problem(f"{FRAMEWORK}.recovery.hold_slots", what, "set it above 0, or delays = []")


def refuse_conflicts(framework: Framework, recovery: Recovery) -> None:
    """Check again with what the consumer's class says of recovery.

    Raises:
        ConfigurationError: *framework*, with *recovery* for its own, contradicts itself.
    """
    problems = tuple(conflicts(framework.model_copy(update={"recovery": recovery})))
    if problems:
        raise ConfigurationError(*problems)


def _timeouts(framework: Framework) -> Iterator[Problem]:
    timeout, ack_timeout = framework.handler_timeout, framework.recovery.ack_timeout
    # No limit is a choice: such a handler's message may be delivered again while it runs.
    if timeout is None or math.isinf(timeout) or timeout < ack_timeout:
        return
    yield Problem(
        f"{FRAMEWORK}.handler_timeout",
        f"{text(timeout)} is not shorter than "
        f"recovery.ack_timeout ({text(ack_timeout)}), after which the broker takes messages back",
        f"set it below {text(ack_timeout)}, or ack_timeout to the broker's consumer_timeout",
    )
