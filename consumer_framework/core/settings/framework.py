# SPDX-License-Identifier: GPL-2.0-or-later
"""``[consumer_config.framework]``: this framework's own settings."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictInt, StrictStr

from consumer_framework.core.durations import Duration, DurationOrEndless
from consumer_framework.core.ordering import source_of
from consumer_framework.core.rate import Rate
from consumer_framework.core.recovery import OnExhausted, OnInvalid, Then

from .brokers import Broker
from .table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class BreakerSettings(Table):
    """When a dependency counts as broken, and how often it is looked at then."""

    consecutive: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 5
    probe: Annotated[tuple[Duration, ...], Field(min_length=1, max_length=100)] = (30.0, 300.0)


class RuleSettings(Table):
    """What becomes of a message whose handler raised one of some exceptions.

    In a file, exceptions are dotted names; a class may name them itself.
    """

    exceptions: Annotated[
        tuple[str | type[BaseException], ...], Field(min_length=1, max_length=1000)
    ]
    then: Then


class Recovery(Table):
    """What happens when a handler fails; also the ``recovery`` attribute of a :class:`.Consumer`.

    Args:
        immediate: How many retries follow at once.
        delays: How long to wait before each further retry, with a fifth more or less by chance.
        hold_slots: How many messages may wait in memory, unacknowledged.
        ack_timeout: The broker's ``consumer_timeout``; a message is held for half of it.
        on_exhausted: What follows the last attempt.
        on_invalid: What becomes of bytes that are no valid message.
        crash_attempts: How many deaths of the process a message may be in the handler for.
        breaker: When a dependency counts as broken.
        rules: For exceptions that are no signals; the first that matches decides.

    Lengths of time are text such as ``"10s"`` and ``"5m"``, or seconds.
    """

    immediate: Annotated[StrictInt, Field(ge=0, le=100)] = 1
    delays: Annotated[tuple[Duration, ...], Field(max_length=100)] = (10.0, 60.0, 300.0)
    hold_slots: Annotated[StrictInt, Field(ge=0, le=65535)] = 4
    ack_timeout: Annotated[Duration, Field(gt=0)] = 1800.0
    on_exhausted: OnExhausted = OnExhausted.QUARANTINE
    on_invalid: OnInvalid = OnInvalid.QUARANTINE
    crash_attempts: Annotated[StrictInt, Field(ge=1, le=1000)] = 2
    breaker: BreakerSettings = BreakerSettings()
    rules: Annotated[tuple[RuleSettings, ...], Field(max_length=1000)] = ()

    if TYPE_CHECKING:
        # A type checker would ask for the parsed values; authors write what a file says.
        def __init__(  # noqa: PLR0913 -- the keys of the table
            self,
            *,
            immediate: int = ...,
            delays: Sequence[str | float] = ...,
            hold_slots: int = ...,
            ack_timeout: str | float = ...,
            on_exhausted: OnExhausted
            | Literal["quarantine", "reject", "drop", "requeue", "halt"] = ...,
            crash_attempts: int = ...,
            breaker: BreakerSettings | Mapping[str, Any] = ...,
            rules: Sequence[RuleSettings | Mapping[str, Any]] = ...,
        ) -> None: ...

    def overridden_by(self, other: Recovery) -> Recovery:
        """These settings with what *other* says itself, and its rules before these."""
        said = {name: getattr(other, name) for name in other.model_fields_set}
        said["rules"] = (*other.rules, *self.rules)
        return self.model_copy(update=said)


class Ordering(Enum):
    """Which messages may overtake each other."""

    NONE = "none"
    KEY = "key"
    STRICT = "strict"


class Store(Enum):
    """Where messages are that the broker is told to forget."""

    DISK = "disk"
    MEMORY = "memory"


class Batch(Table):
    """How many messages a batch handler gets at once, and how long it waits for them.

    Args:
        size: Messages, at the most.
        seconds: How long the first one waits for the others.
    """

    size: Annotated[StrictInt, Field(ge=1, le=10_000)] = 100
    seconds: Annotated[Duration, Field(gt=0)] = 1.0


def _checked_source(text: str) -> str:
    source_of(text)
    return text


class Framework(Table):
    """``[consumer_config.framework]``: this framework's own settings."""

    brokers: Annotated[tuple[Broker, ...], Field(max_length=100)] = ()
    slots: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    read_ahead: Annotated[StrictInt, Field(ge=0, le=65535)] = 100
    read_ahead_bytes: Annotated[StrictInt, Field(ge=1 << 20, le=1 << 50)] | None = None
    ordering: Ordering = Ordering.NONE
    ordering_key: Annotated[StrictStr, AfterValidator(_checked_source)] | None = None
    # None for what is usual for the form of the consumer: see `handler_limit`.
    handler_timeout: Annotated[DurationOrEndless, Field(gt=0)] | None = None
    start_timeout: Annotated[Duration, Field(gt=0)] = 300.0
    batch: Batch | None = None
    rate: Rate | None = None
    burst: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    store: Store = Store.DISK
    quarantine_max_age: Annotated[Duration, Field(gt=0)] = 90 * 86400.0
    quarantine_max_bytes: Annotated[StrictInt, Field(ge=1, le=1 << 50)] = 1 << 30
    recovery: Recovery = Recovery()

    def handler_limit(self, usual: float) -> float:
        """Seconds that one run of the handler may take.

        Args:
            usual: What counts where nothing is said: infinite for no limit. A finite one gives
                way to a shorter ``ack_timeout``.
        """
        if self.handler_timeout is not None:
            return self.handler_timeout
        return usual if math.isinf(usual) else min(usual, self.recovery.ack_timeout)

    @property
    def at_once(self) -> int:
        """How many messages are in handlers at the most."""
        return self.slots * (self.batch.size if self.batch else 1)

    @property
    def prefetch_count(self) -> int:
        """How many messages the broker sends ahead, where the file does not say."""
        return min(self.at_once + self.recovery.hold_slots + self.read_ahead, 65535)
