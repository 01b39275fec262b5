# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide how far a replay of many messages goes: in stages, and no further if too many fail.

The stages are percentages of all messages, each from the beginning: 1, 5, 20, 100 runs one message
of a hundred, then those up to the twentieth part, and so on. A stage has one message at least; one
that would have none is left out.

A limit of failures holds for each stage by itself. The replay stops at the failure that reaches it,
and not only at the end of the stage: of 400 messages with a limit of 5 %, at the twentieth. A stage
of few messages stops at its first failure. When a replay goes on in the middle of a stage, the rest
of that stage counts as a stage of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ALL = 100.0
# Percent, for a replay in stages without a limit of its own.
DEFAULT_LIMIT = 5.0
# Results of a replayed message, in the words of disposition.Words.in_replay.
SUCCEEDED = ("succeeded", "reject")
FAILED = ("failed", "halt")


def stages_of(text: str) -> tuple[float, ...]:
    """Read stages such as ``1,5,20,100``.

    Raises:
        ValueError: They are none; the message says why.
    """
    try:
        stages = tuple(float(word.strip().removesuffix("%")) for word in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is no list of percentages such as 1,5,20,100") from None
    return checked(stages)


def checked(stages: Sequence[float]) -> tuple[float, ...]:
    """Return *stages*.

    Raises:
        ValueError: They do not rise, or one is not more than 0 and at most 100.
    """
    if not all(0 < stage <= _ALL for stage in stages):
        raise ValueError("each stage is more than 0 and at most 100 percent of all messages")
    if any(later <= earlier for earlier, later in pairwise(stages)):
        raise ValueError("each stage is greater than the one before, as in 1,5,20,100")
    return tuple(stages)


def percentage_of(text: str) -> float:
    """Read a percentage such as ``5%``.

    Raises:
        ValueError: It is none, or not from 0 to 100.
    """
    try:
        percent = float(text.removesuffix("%")) if text.endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if 0 <= percent <= _ALL:
        return percent
    raise ValueError(f"{text!r} is no percentage such as 5%")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        number: Its number, from 1.
        percent: The percentage of all messages that are done at its end.
        first: The position of its first message, from 0.
        end: The position behind its last message.
    """

    number: int
    percent: float
    first: int
    end: int

    @property
    def size(self) -> int:
        """The number of its messages."""
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Ramp:
    """The plan of a replay in stages.

    Attributes:
        stages: Rising percentages of all messages; the last one may be less than 100.
        stop_at: The percentage of a stage's messages that may not fail; None for no limit. With 0
            the first failure stops it.
        rate: Messages a second, at most; None for no limit.
    """

    stages: tuple[float, ...] = (_ALL,)
    stop_at: float | None = None
    rate: float | None = None

    def of(self, total: int) -> tuple[Stage, ...]:
        """Return the stages of *total* messages, without empty ones."""
        stages: list[Stage] = []
        first = 0
        for percent in self.stages:
            # Not more for a rounding error.
            end = min(math.ceil(total * percent / _ALL - 1e-9), total)
            if end > first:
                stages.append(Stage(len(stages) + 1, percent, first, end))
                first = end
        return tuple(stages)

    def most_failures(self, size: int) -> float:
        """Return the number of failures that stops a stage of *size* messages."""
        if self.stop_at is None:
            return math.inf
        return max(math.ceil(size * self.stop_at / _ALL - 1e-9), 1)


@dataclass(frozen=True, slots=True)
class Progress:
    """A point in a replay. Make the first one with :meth:`begin`.

    Attributes:
        ramp: The plan.
        stages: Its stages.
        total: The number of all messages.
        position: The number of messages with a result.
        succeeded: Those that succeeded, or were dropped by their handler.
        failed: Those that failed again.
        stop: The reason why it stops here; "" if it goes on.
    """

    ramp: Ramp
    stages: tuple[Stage, ...]
    total: int
    position: int = 0
    succeeded: int = 0
    failed: int = 0
    stop: str = ""
    _began: int = field(default=0, repr=False)
    _failed_in_stage: int = field(default=0, repr=False)

    @classmethod
    def begin(cls, ramp: Ramp, total: int, results: Iterable[str] = ()) -> Progress:
        """Return the point after *results*, from which on a limit counts messages and failures."""
        known = list(results)
        return cls(
            ramp,
            ramp.of(total),
            total,
            position=len(known),
            succeeded=sum(result in SUCCEEDED for result in known),
            failed=sum(result in FAILED for result in known),
            _began=len(known),
        )

    @property
    def stage(self) -> Stage | None:
        """The stage of the next message; None if there is none."""
        return next((stage for stage in self.stages if self.position < stage.end), None)

    def after(self, result: str) -> Progress:
        """Return the next point.

        Args:
            result: The result of the message at :attr:`position`, as :class:`.Words` has it.
        """
        stage = self.stage
        if stage is None:
            raise ValueError("there is no message left")
        failed = result in FAILED
        in_stage = self._failed_in_stage + failed
        is_end = self.position + 1 == stage.end
        size = stage.end - max(stage.first, self._began)
        stops = failed and in_stage >= self.ramp.most_failures(size)
        return replace(
            self,
            position=self.position + 1,
            succeeded=self.succeeded + (result in SUCCEEDED),
            failed=self.failed + failed,
            stop=self._reason(stage, in_stage, size) if stops else "",
            _failed_in_stage=0 if is_end else in_stage,
        )

    def _reason(self, stage: Stage, failures: int, size: int) -> str:
        which = f"stage {stage.number} of {len(self.stages)}"
        return f"{failures:,} of {size:,} in {which} failed; the limit is {self.limit}"

    @property
    def limit(self) -> str:
        """The limit of failures, for people."""
        return f"{self.ramp.stop_at:g}%" if self.ramp.stop_at is not None else "none"
