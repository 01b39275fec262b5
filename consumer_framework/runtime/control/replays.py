# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs quarantined rows again, one after the other: all at once, or in stages.

Replays do not overlap, whoever requests them. A replay in stages (:mod:`.core.ramp`) is kept in the
store with the results of its rows, so that it can go on after a stop, a pause, a crash, or the end
of the command that watches it. It never goes on by itself: an operator has to watch it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from consumer_framework.core.conditions import STORED_ROOTS, ConditionError, condition_of
from consumer_framework.core.disposition import GiveBack, Halt, rule_for
from consumer_framework.core.errors import DamagedRowError
from consumer_framework.core.limits import TokenBucket, per_second
from consumer_framework.core.ramp import Progress, Ramp, checked

from .operators import trace_of
from .schema import (
    Begun,
    ConflictError,
    ProtocolError,
    RampEnded,
    Replayed,
    Selected,
    Stage,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from consumer_framework.adapters.store import Store
    from consumer_framework.core.conditions import Condition
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition

    from .schema import Replay, Selection

    Answer: TypeAlias = Step | Selected | Stage | Begun | Replayed | RampEnded

_log = logging.getLogger(__name__)

NO_RAMP = "there is no replay in stages to go on with"


async def conditions_of(texts: Sequence[str]) -> list[Condition]:
    """Read the conditions of a request, in a thread: a regular expression may take its time.

    Raises:
        ProtocolError: One is none.
    """

    def read() -> list[Condition]:
        return [condition_of(text, STORED_ROOTS) for text in texts]

    try:
        return await asyncio.to_thread(read)
    except ConditionError as error:
        raise ProtocolError(str(error)) from None


async def select(store: Store, selection: Selection) -> list[int]:
    """Return the rows that a request is about; those of one lane are in their order.

    Raises:
        ProtocolError: The request names them in no way, or in two, or a condition is none.
        ConflictError: There are more or fewer rows than it expects.
    """
    ways = bool(selection.rows) + bool(selection.where) + selection.everything
    if ways != 1:
        raise ProtocolError("say which rows: rows, where, or everything")
    where, now = await conditions_of(selection.where), time.time()
    found = await store.read_aside(
        lambda reader: reader.in_lane_order(selection.rows or reader.matching(where, now))
    )
    if selection.expect not in {None, len(found)}:
        raise ConflictError(
            f"the rows are {len(found)} now, not {selection.expect}; look again, nothing was done"
        )
    return found


class Replays:
    """The replays of one store.

    Args:
        store: The store, open for writing.
        run: Runs one claimed row through the pipeline and returns its disposition:
            :class:`.GiveBack` if it did not run.
    """

    def __init__(self, store: Store, run: Callable[[Delivery], Awaitable[Disposition]]) -> None:
        self._store = store
        self._run = run
        self._running: dict[asyncio.Task[None], _Replay] = {}
        self._turn = asyncio.Lock()

    @property
    def is_idle(self) -> bool:
        """Tell if no row runs, and none waits to."""
        return not self._running

    async def replay(self, request: Replay) -> AsyncGenerator[Answer, None]:
        """Run rows again, and report each result as it is there.

        Rows of one lane run in their order. After one that does not succeed, the others of its
        lane are skipped.

        If the client goes away, the row that runs is run to its end all the same, and settled.
        The rows after it stay where they are.

        Raises:
            ProtocolError: The request makes no sense.
            ConflictError: Its rows are not those that it expects, or nothing can be resumed.
        """
        plan = _plan_of(request)
        replay = _Replay()
        task = asyncio.get_running_loop().create_task(self._carry_out(request, plan, replay))
        self._running[task] = replay
        task.add_done_callback(self._ended)
        try:
            if self._turn.locked():
                yield Step("waiting for the replay that is under way")
            while (answer := await replay.answers.get()) is not None:
                yield answer
            replay.is_told = True
            await asyncio.shield(task)
        finally:
            replay.unwanted.set()

    def stop(self) -> None:
        """Begin with no other row; rows that run are run to their end, and reported."""
        for replay in self._running.values():
            replay.unwanted.set()

    def cancel(self) -> None:
        """Cancel the replays: their rows are quarantined again."""
        for task in self._running:
            task.cancel()

    async def finish(self) -> None:
        """Wait until no row is replayed."""
        while self._running:
            await asyncio.wait(self._running)

    async def _carry_out(self, request: Replay, plan: Ramp | None, replay: _Replay) -> None:
        try:
            async with self._turn:
                if request.resume:
                    await self._resume(replay)
                elif plan is not None:
                    await self._begin(await self._rows_of(request, replay), plan, replay)
                else:
                    await self._run_all(await self._rows_of(request, replay), replay)
        finally:
            replay.answers.put_nowait(None)

    async def _rows_of(self, request: Replay, replay: _Replay) -> list[int]:
        rows = (await select(self._store, request))[: request.first]
        if not request.rows:
            replay.answer(Selected(len(rows)))
        return rows

    def _ended(self, task: asyncio.Task[None]) -> None:
        replay = self._running.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not (replay.is_wanted or replay.is_told):
            _log.error("a replay that nobody waits for has failed", exc_info=error)

    # All at once.

    async def _run_all(self, rows: list[int], replay: _Replay) -> None:
        for number in rows:
            if not replay.is_wanted or not (await self._run_row(number, replay)).goes_on:
                return

    # In stages.

    async def _begin(self, rows: list[int], plan: Ramp, replay: _Replay) -> None:
        if not replay.is_wanted:
            # It would take the place of one that can go on.
            return
        await self._store.begin_ramp(plan, rows)
        await self._run_ramp(rows, Progress.begin(plan, len(rows)), replay)

    async def _resume(self, replay: _Replay) -> None:
        stored = await self._store.read_aside(lambda reader: reader.ramp())
        if stored is None:
            raise ConflictError(NO_RAMP)
        progress = stored.progress
        replay.answer(Selected(progress.total - progress.position))
        await self._run_ramp(list(stored.rows), progress, replay)

    async def _run_ramp(self, rows: list[int], progress: Progress, replay: _Replay) -> None:
        rate = progress.ramp.rate
        pace = TokenBucket(rate, 1) if rate is not None else None
        announced = None
        reason = ""
        while (stage := progress.stage) is not None and not progress.stop:
            if stage is not announced:
                announced = stage
                self._announce(progress, replay)
            if pace is not None:
                await replay.rest(pace)
            if not replay.is_wanted:
                reason = "nobody watches it any more"
                break
            ran = await self._run_row(rows[progress.position], replay)
            if ran.counts:
                self._store.record_ramp(progress.position, ran.result)
                progress = progress.after(ran.result)
            if not ran.goes_on:
                reason = ran.reason
                break
        await self._end_ramp(progress, reason, replay)

    def _announce(self, progress: Progress, replay: _Replay) -> None:
        stage = progress.stage
        assert stage is not None  # noqa: S101 -- the caller has looked
        rows = stage.end - progress.position
        number, count = stage.number, len(progress.stages)
        _log.info("replay: stage %d of %d begins, with %d messages", number, count, rows)
        replay.answer(Stage(number, count, stage.percent, rows))

    async def _end_ramp(self, progress: Progress, reason: str, replay: _Replay) -> None:
        left = progress.total - progress.position
        if progress.stop:
            ended, reason = "stopped", progress.stop
        elif progress.stage is None:
            ended, reason = "done", ""
            await self._store.end_ramp()
        else:
            ended = "interrupted"
        if ended != "done":
            await self._store.ramp_recorded()
        because = f": {reason}" if reason else ""
        _log.info("replay in stages: %s, %d messages have not run%s", ended, left, because)
        replay.answer(RampEnded(ended, reason, left))

    # One row.

    async def _run_row(self, number: int, replay: _Replay) -> _RowRan:
        """Run one row, and report it."""
        try:
            delivery = self._store.delivery(number)
        except DamagedRowError as error:
            return replay.report(number, "skipped", str(error))
        if delivery is None or not await self._store.claim(number, trace_of("replay")):
            return replay.report(number, "skipped", self._why_unclaimed(number))
        replay.answer(Begun(number))
        try:
            disposition = await self._run(delivery)
        except BaseException:
            await self._store.release(number)
            raise
        result, reason = _result_of(disposition)
        if not replay.is_wanted:
            _log.info("row %d: its replay is done, and %s", number, result)
        is_over = isinstance(disposition, Halt | GiveBack)
        if is_over:
            # Its settle leaves the row as it is; the rows after it wait for the next start.
            await self._store.release(number)
        ran = replay.report(number, result, reason)
        return _RowRan(ran.result, ran.reason, not isinstance(disposition, GiveBack), not is_over)

    def _why_unclaimed(self, number: int) -> str:
        row = self._store.row(number)
        if row is None or row.state != "quarantined" or row.behind is None:
            return "not, or no longer, there"
        return f"behind row {row.behind} of key {row.lane}: replay or drop that one first"


@dataclass(frozen=True, slots=True)
class _RowRan:
    """The result of a row.

    Attributes:
        result: As the client gets it.
        reason: As the client gets it.
        counts: Whether the row is done with, as far as its replay goes.
        goes_on: Whether the next row may run.
    """

    result: str
    reason: str
    counts: bool = True
    goes_on: bool = True


@dataclass(eq=False, slots=True)
class _Replay:
    """One request to replay.

    Attributes:
        answers: The answers that the client gets; None is the last one.
        unwanted: Set once no other row shall begin.
        is_told: Whether the client has all answers, and gets the error of the task.
    """

    answers: asyncio.Queue[Answer | None] = field(default_factory=asyncio.Queue)
    unwanted: asyncio.Event = field(default_factory=asyncio.Event)
    is_told: bool = False

    @property
    def is_wanted(self) -> bool:
        """Tell if another row may begin."""
        return not self.unwanted.is_set()

    def answer(self, answer: Answer) -> None:
        """Give the client an answer."""
        self.answers.put_nowait(answer)

    def report(self, row: int, result: str, reason: str) -> _RowRan:
        """Give the client the result of a row, and return it."""
        self.answer(Replayed(row, result, reason))
        return _RowRan(result, reason)

    async def rest(self, pace: TokenBucket) -> None:
        """Wait until the next row may run, or until none shall."""
        now = asyncio.get_running_loop().time
        while self.is_wanted and (seconds := pace.take(now())):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.unwanted.wait(), seconds)


def _plan_of(request: Replay) -> Ramp | None:
    """Return the stages of a request; None if it has neither stages nor limits.

    Raises:
        ProtocolError: They make no sense.
    """
    is_chosen = request.rows or request.where or request.everything
    if request.resume and (is_chosen or request.is_ramp or request.first is not None):
        raise ProtocolError("a replay is resumed as it was begun: send nothing but resume")
    if not request.is_ramp:
        return None
    try:
        stages = checked(request.ramp or (100.0,))
        rate = per_second(request.rate) if request.rate else None
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    if request.stop_at is not None and not 0 <= request.stop_at <= 100:  # noqa: PLR2004 -- percent
        raise ProtocolError("stop_at is a percentage, from 0 to 100")
    return Ramp(stages, request.stop_at, rate)


def _result_of(disposition: Disposition) -> tuple[str, str]:
    result = rule_for(disposition).words.in_replay
    if isinstance(disposition, GiveBack):
        return result, "the instance stops or pauses"
    return result, disposition.reason
