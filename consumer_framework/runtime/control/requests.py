# SPDX-License-Identifier: GPL-2.0-or-later
"""Carries operators' requests out on the store that this process has open.

That process is the instance, or a command while the instance is stopped.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.store.export import line_of, raw_line_of
from consumer_framework.core.disposition import GiveBack, Halt, Reject, rule_for
from consumer_framework.core.errors import DamagedRowError
from consumer_framework.core.log_fields import fields
from consumer_framework.runtime.observe.log import describe

from . import schema
from .routes import Refusal, this_process
from .schema import (
    Begun,
    CausesReport,
    Dropped,
    Edited,
    Pong,
    QuarantineReport,
    Replayed,
    StatusReport,
    Step,
    StoredMessage,
    encode_answer,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection

    from consumer_framework.adapters.store import Row, Store
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition

    from .schema import AnswerT, Request

_log = logging.getLogger(__name__)

# Rows of one request that each have a line in the log; reading them takes the event loop's time.
MOST_NAMED = 1000


class Responder:
    """Carries out the requests that read or change the store.

    Args:
        store: The store, open for writing.
        run: Runs one claimed row through the pipeline and returns its disposition:
            :class:`.GiveBack` if it did not run.
        dropped: Called with rows that were dropped; they must not begin to run.
        changed: Called when rows are gone that others may have waited for.
        report: Reports the state of the instance, without the numbers of its store.

    Attributes:
        by_type: The method that answers each type of request.
    """

    def __init__(
        self,
        store: Store,
        run: Callable[[Delivery], Awaitable[Disposition]],
        dropped: Callable[[Collection[int]], None] = lambda _rows: None,
        changed: Callable[[], None] = lambda: None,
        report: Callable[[], StatusReport] = StatusReport,
    ) -> None:
        self._store = store
        self._run = run
        self._dropped = dropped
        self._changed = changed
        self._report = report
        self._replays: dict[asyncio.Task[None], _ReplayInProgress] = {}
        # Replays do not overlap, whoever requests them.
        self._turn = asyncio.Lock()
        self.by_type: dict[type[Request[Any]], Callable[[Any], AsyncIterator[Any]]] = {
            schema.Ping: self.ping,
            schema.Status: self.status,
            schema.Quarantine: self.quarantine,
            schema.Causes: self.causes,
            schema.Show: self.show,
            schema.Drop: self.drop,
            schema.Edit: self.edit,
            schema.Replay: self.replay,
        }

    def respond(self, request: Request[AnswerT]) -> AsyncIterator[AnswerT]:
        """Carry out *request*, and yield its answers."""
        return self.by_type[type(request)](request)

    async def ping(self, _request: schema.Ping) -> AsyncGenerator[Pong, None]:
        """Name this process."""
        yield this_process()

    async def status(self, _request: schema.Status) -> AsyncGenerator[StatusReport, None]:
        """Report the state of the instance, and the counts of its store."""
        stats = self._store.stats()
        yield replace(
            self._report(),
            deferred=stats.deferred,
            quarantined=stats.quarantined + stats.replaying,
            next_due=stats.next_due,
        )

    async def quarantine(
        self, request: schema.Quarantine
    ) -> AsyncGenerator[QuarantineReport, None]:
        """List messages."""
        # One more than asked for tells whether there are more.
        rows = self._store.rows(
            state=request.state,
            fingerprint=request.fingerprint or None,
            queue=request.queue or None,
            topic=request.topic or None,
            after=request.after,
            limit=request.limit + 1,
        )
        shown = tuple(rows[: request.limit])
        yield QuarantineReport(shown, shown[-1].id if len(rows) > len(shown) else None)

    async def causes(self, _request: schema.Causes) -> AsyncGenerator[CausesReport, None]:
        """List the causes of the quarantined messages."""
        yield CausesReport(tuple(self._store.groups()))

    async def show(self, request: schema.Show) -> AsyncGenerator[StoredMessage, None]:
        """Show one message.

        Raises:
            Refusal: It is not there, or damaged.
        """
        row = self._store.row(request.row)
        try:
            delivery = self._store.delivery(request.row)
        except DamagedRowError as error:
            raise Refusal(HTTPStatus.CONFLICT, str(error)) from error
        if row is None or delivery is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"row {request.row} is not, or no longer, there")
        steps = self._store.steps(request.row)
        failures = delivery.history.attempts
        shown = StoredMessage(row, json.loads(line_of(delivery)), failures, steps)
        try:
            encode_answer(shown)
        except RecursionError:
            # Its body is nested too deeply for JSON.
            shown = replace(shown, message=json.loads(raw_line_of(delivery)))
        yield shown

    async def drop(self, request: schema.Drop) -> AsyncGenerator[Dropped, None]:
        """Lose rows."""
        rows = [self._store.row(number) for number in request.rows[:MOST_NAMED]]
        dropped = await self._store.drop(request.rows)
        self._dropped(dropped)
        self._changed()
        named = [row for row in rows if row is not None and row.id in dropped]
        for row in named:
            _log_row(row, "dropped by an operator", Reject())
        if len(dropped) > len(named):
            _log.info("%d more messages are dropped by an operator", len(dropped) - len(named))
        yield Dropped(tuple(dropped))

    async def edit(self, request: schema.Edit) -> AsyncGenerator[Edited, None]:
        """Let a copy with another body stand for a row."""
        original = self._store.delivery(request.row)
        encoding = getattr(original and original.properties, "content_encoding", None) or "utf-8"
        # The copy keeps the properties, and they name the encoding of its body.
        body = json.dumps(request.body).encode(encoding)
        row = self._store.row(request.row)
        copy = await self._store.supersede(request.row, body)
        if row is not None and copy is not None:
            _log_row(row, "edited by an operator")
        yield Edited(copy)

    async def replay(self, request: schema.Replay) -> AsyncGenerator[Step | Begun | Replayed, None]:
        """Run rows again, one after the other, and report each result as it is there.

        Rows of one lane run in their order. After one that does not succeed, the others of its
        lane are skipped.

        If the client goes away, the row that runs is run to its end all the same, and settled.
        The rows after it stay where they are.
        """
        replay = _ReplayInProgress(self._store.in_lane_order(request.rows))
        task = asyncio.get_running_loop().create_task(self._replay(replay))
        self._replays[task] = replay
        task.add_done_callback(self._replay_ended)
        try:
            if self._turn.locked():
                yield Step("waiting for the replay that is under way")
            while (answer := await replay.answers.get()) is not None:
                yield answer
            await asyncio.shield(task)
        finally:
            replay.is_wanted = False

    def stop_replays(self) -> None:
        """Begin with no other row; rows that run are run to their end, and reported."""
        for replay in self._replays.values():
            replay.is_wanted = False

    def cancel(self) -> None:
        """Cancel the replays: their rows are quarantined again."""
        for task in self._replays:
            task.cancel()

    async def finish(self) -> None:
        """Wait until no row is replayed."""
        while self._replays:
            await asyncio.wait(self._replays)

    async def _replay(self, replay: _ReplayInProgress) -> None:
        try:
            async with self._turn:
                for number in replay.numbers:
                    if not (replay.is_wanted and await self._replay_row(number, replay)):
                        return
        finally:
            replay.answers.put_nowait(None)

    async def _replay_row(self, number: int, replay: _ReplayInProgress) -> bool:
        """Run one row; returns True if the next one may run."""
        answer = replay.answers.put_nowait
        try:
            delivery = self._store.delivery(number)
        except DamagedRowError as error:
            answer(Replayed(number, "skipped", str(error)))
            return True
        if delivery is None or not await self._store.claim(number):
            answer(Replayed(number, "skipped", self._why_unclaimed(number)))
            return True
        answer(Begun(number))
        try:
            disposition = await self._run(delivery)
        except BaseException:
            await self._store.release(number)
            raise
        replayed = _result_of(number, disposition)
        if not replay.is_wanted:
            _log.info("row %d: its replay is done, and %s", number, replayed.result)
        is_over = isinstance(disposition, Halt | GiveBack)
        if is_over:
            # Its settle leaves the row as it is; the rows after it wait for the next start.
            await self._store.release(number)
        answer(replayed)
        return not is_over

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        replay = self._replays.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not replay.is_wanted:
            _log.error("a replay that nobody waits for has failed", exc_info=error)

    def _why_unclaimed(self, number: int) -> str:
        row = self._store.row(number)
        if row is None or row.state != "quarantined" or row.behind is None:
            return "not, or no longer, there"
        return f"behind row {row.behind} of key {row.lane}: replay or drop that one first"


@dataclass(eq=False, slots=True)
class _ReplayInProgress:
    """One request to replay.

    Attributes:
        numbers: The rows, in the order in which they run.
        answers: The answers that the client gets; None is the last one.
        is_wanted: False once no other row shall begin.
    """

    numbers: list[int]
    answers: asyncio.Queue[Step | Begun | Replayed | None] = field(default_factory=asyncio.Queue)
    is_wanted: bool = True


def _log_row(row: Row, what: str, disposition: Disposition | None = None) -> None:
    about = fields(row.message_id, row.routing_key, row.queue, disposition=disposition)
    _log.info("%s is %s", describe(row), what, extra=about)


def _result_of(row: int, disposition: Disposition) -> Replayed:
    result = rule_for(disposition).words.in_replay
    if isinstance(disposition, GiveBack):
        return Replayed(row, result, "the instance stops or pauses")
    return Replayed(row, result, disposition.reason)
