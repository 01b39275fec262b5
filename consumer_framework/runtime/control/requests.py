# SPDX-License-Identifier: GPL-2.0-or-later
"""Carries operators' requests out on the store that this process has open.

That process is the instance, or a command while the instance is stopped.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.store.export import line_of, raw_line_of
from consumer_framework.core.delivery import codec_of
from consumer_framework.core.disposition import Reject
from consumer_framework.core.errors import DamagedRowError
from consumer_framework.core.log_fields import fields
from consumer_framework.core.secrets import redact
from consumer_framework.runtime.observe.log import describe

from . import replays, schema
from .operators import order_fields, trace_of, who_orders
from .replays import NO_RAMP, Replays, conditions_of, select
from .routes import Refusal, this_process
from .schema import (
    CausesReport,
    Dropped,
    Edited,
    Pong,
    QuarantineReport,
    RouteReport,
    StatusReport,
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

# Rows that are dropped together: to read and to log them takes the time of the event loop.
_PORTION = 50


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
        self._dropped = dropped
        self._changed = changed
        self._report = report
        self._replays = Replays(store, run)
        self.by_type: dict[type[Request[Any]], Callable[[Any], AsyncIterator[Any]]] = {
            schema.Ping: self.ping,
            schema.Status: self.status,
            schema.Quarantine: self.quarantine,
            schema.Causes: self.causes,
            schema.Show: self.show,
            schema.Drop: self.drop,
            schema.Edit: self.edit,
            schema.Replay: self.replay,
            schema.ShowReplay: self.show_replay,
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
        where, now = await conditions_of(request.where), time.time()
        rows = await self._store.read_aside(
            lambda reader: reader.rows(
                state=None if request.state == "any" else request.state,
                fingerprint=request.fingerprint or None,
                queue=request.queue or None,
                topic=request.topic or None,
                after=request.after,
                # One more than asked for tells whether there are more.
                limit=request.limit + 1,
                where=where,
                now=now,
            )
        )
        shown = tuple(rows[: request.limit])
        yield QuarantineReport(shown, shown[-1].id if len(rows) > len(shown) else None)

    async def causes(self, request: schema.Causes) -> AsyncGenerator[CausesReport, None]:
        """List the causes of the quarantined messages."""
        where, now = await conditions_of(request.where), time.time()
        groups = await self._store.read_aside(lambda reader: reader.groups(where, now))
        yield CausesReport(tuple(groups))

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
        failures, states = delivery.history.attempts, delivery.history.routes
        raw = json.loads(raw_line_of(_without_secrets(delivery)))
        shown = StoredMessage(
            row,
            raw if request.raw else json.loads(line_of(delivery)),
            failures,
            steps,
            delivery.received_at,
            tuple(RouteReport(*state) for state in states),
        )
        try:
            encode_answer(shown)
        except RecursionError:
            # Its body is nested too deeply for JSON.
            shown = replace(shown, message=raw)
        yield shown

    async def drop(self, request: schema.Drop) -> AsyncGenerator[Dropped, None]:
        """Lose rows."""
        numbers = await select(self._store, request)
        dropped: list[int] = []
        for start in range(0, len(numbers), _PORTION):
            dropped += await self._drop(numbers[start : start + _PORTION])
        yield Dropped(tuple(dropped))

    async def _drop(self, numbers: list[int]) -> list[int]:
        rows = [self._store.row(number) for number in numbers]
        dropped = await self._store.drop(numbers)
        self._dropped(dropped)
        self._changed()
        gone = set(dropped)
        for row in rows:
            if row is not None and row.id in gone:
                _log_row(row, "dropped", Reject())
        return dropped

    async def edit(self, request: schema.Edit) -> AsyncGenerator[Edited, None]:
        """Let a copy with another body stand for a row."""
        original = self._store.delivery(request.row)
        encoding = getattr(original and original.properties, "content_encoding", None) or "utf-8"
        try:
            # The copy keeps the properties, and they name the encoding of its body.
            body = json.dumps(request.body, allow_nan=False).encode(codec_of(encoding))
        except LookupError as error:
            raise Refusal(HTTPStatus.CONFLICT, str(error)) from error
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"body: {error}") from error
        row = self._store.row(request.row)
        copy = await self._store.supersede(request.row, body, trace_of("edit"))
        if row is not None and copy is not None:
            _log_row(row, "edited")
        yield Edited(copy)

    async def replay(self, request: schema.Replay) -> AsyncGenerator[replays.Answer, None]:
        """Run rows again; see :meth:`.Replays.replay`."""
        async with aclosing(self._replays.replay(request)) as answers:
            async for answer in answers:
                yield answer

    async def show_replay(
        self, _request: schema.ShowReplay
    ) -> AsyncGenerator[schema.RampReport, None]:
        """Report the replay in stages.

        Raises:
            Refusal: There is none.
        """
        ramp = await self._store.read_aside(lambda reader: reader.ramp())
        if ramp is None:
            raise Refusal(HTTPStatus.NOT_FOUND, NO_RAMP)
        yield schema.RampReport(**ramp.facts, running=not self.is_idle)

    def stop_replays(self) -> None:
        """Begin with no other row; rows that run are run to their end, and reported."""
        self._replays.stop()

    def cancel(self) -> None:
        """Cancel the replays: their rows are quarantined again."""
        self._replays.cancel()

    async def finish(self) -> None:
        """Wait until no row is replayed."""
        await self._replays.finish()

    @property
    def is_idle(self) -> bool:
        """Tell if no row is replayed, and none waits for that."""
        return self._replays.is_idle


def _without_secrets(delivery: Delivery) -> Delivery:
    # In base64 nobody would find them again.
    text = delivery.body.decode("utf-8", "surrogateescape")
    return delivery._replace(body=redact(text).encode("utf-8", "surrogateescape"))


def _log_row(row: Row, what: str, disposition: Disposition | None = None) -> None:
    about = fields(row.message_id, row.routing_key, row.queue, disposition=disposition)
    text = f"{what} by {who_orders()}"
    _log.info("%s is %s", describe(row), text, extra={**about, **order_fields()})
