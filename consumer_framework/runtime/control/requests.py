# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator may order of the store's owner, be that an instance or the command itself."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer_framework.core.disposition import Ack, GiveBack, Halt, Quarantine, Reject
from consumer_framework.core.errors import DamagedRowError
from consumer_framework.core.log_fields import fields
from consumer_framework.runtime.observe.wording import describe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from consumer_framework.adapters.store import Row, Store
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition

    Answers = AsyncGenerator[dict[str, Any], None]

_log = logging.getLogger(__name__)

# Rows of one order that each have a line in the log; reading them takes the event loop's time.
MOST_NAMED = 1000


@dataclass(eq=False, slots=True)
class _Replay:
    """One order to replay.

    Attributes:
        numbers: The rows, in the order in which they run.
        answers: What became of each; None is the last one.
        is_wanted: Whether rows are begun with that were not yet.
    """

    numbers: list[int]
    answers: asyncio.Queue[dict[str, Any] | None] = field(default_factory=asyncio.Queue)
    is_wanted: bool = True


class Orders:
    """Carries out what changes the quarantine.

    Args:
        store: The store, open for writing.
        run: Runs one claimed row through the pipeline and returns what became of it:
            :class:`.GiveBack` where it was not begun with.
        dropped: Called with rows that were dropped; they must not begin to run.
        changed: Called when rows are gone that others may have waited for.
        report: Says what the instance does, as a value for JSON.
    """

    def __init__(
        self,
        store: Store,
        run: Callable[[Delivery], Awaitable[Disposition]],
        dropped: Callable[[Collection[int]], None] = lambda _rows: None,
        changed: Callable[[], None] = lambda: None,
        report: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._store = store
        self._run = run
        self._dropped = dropped
        self._changed = changed
        self._report = report
        self._replays: dict[asyncio.Task[None], _Replay] = {}
        # Replays do not overlap, whoever orders them.
        self._turn = asyncio.Lock()
        self.by_name = {"ping": self.ping, "drop": self.drop, "edit": self.edit}
        self.by_name |= {"replay": self.replay, "status": self.status}

    async def ping(self, _request: dict[str, Any]) -> Answers:
        """Show that somebody listens."""
        yield {"pong": True}

    async def status(self, _request: dict[str, Any]) -> Answers:
        """Tell what the instance does, and how much is in its store."""
        stats = self._store.stats()
        yield {
            **self._report(),
            "deferred": stats.deferred,
            "quarantined": stats.quarantined + stats.replaying,
            "next_due": stats.next_due,
        }

    async def drop(self, request: dict[str, Any]) -> Answers:
        """Lose the rows in ``rows``."""
        numbers = _numbers(request)
        rows = [self._store.row(number) for number in numbers[:MOST_NAMED]]
        dropped = await self._store.drop(numbers)
        self._dropped(dropped)
        self._changed()
        named = [row for row in rows if row is not None and row.id in dropped]
        for row in named:
            _say(row, "dropped by an operator", Reject())
        if len(dropped) > len(named):
            _log.info("%d more messages are dropped by an operator", len(dropped) - len(named))
        yield {"dropped": dropped}

    async def edit(self, request: dict[str, Any]) -> Answers:
        """Let a copy with the JSON in ``body`` stand for ``row``; its number, None for neither."""
        number = int(request["row"])
        original = self._store.delivery(number)
        encoding = getattr(original and original.properties, "content_encoding", None) or "utf-8"
        # The copy keeps the properties, and so must be what they say.
        body = json.dumps(request["body"]).encode(encoding)
        row = self._store.row(number)
        copy = await self._store.supersede(number, body)
        if row is not None and copy is not None:
            _say(row, "edited by an operator")
        yield {"row": copy}

    async def replay(self, request: dict[str, Any]) -> Answers:
        """Run the rows in ``rows`` again, one after the other, and tell of each as it is done.

        Those of one lane run in their order. Where one does not succeed, the others are skipped.

        Where nobody takes the answers any more, the row that runs is run to its end all the same,
        and settled. Those after it stay where they are.
        """
        replay = _Replay(self._store.in_lane_order(_numbers(request)))
        task = asyncio.get_running_loop().create_task(self._replay(replay))
        self._replays[task] = replay
        task.add_done_callback(self._replayed)
        try:
            if self._turn.locked():
                yield {"step": "waiting for the replay that is under way"}
            while (answer := await replay.answers.get()) is not None:
                yield answer
            await asyncio.shield(task)
        finally:
            replay.is_wanted = False

    def stop_replays(self) -> None:
        """Begin with no other row; those that run are run to their end, and told of."""
        for replay in self._replays.values():
            replay.is_wanted = False

    def cancel(self) -> None:
        """Give up what is replayed: its rows are quarantined again."""
        for task in self._replays:
            task.cancel()

    async def finish(self) -> None:
        """Wait until no row is replayed."""
        while self._replays:
            await asyncio.wait(self._replays)

    async def _replay(self, replay: _Replay) -> None:
        try:
            async with self._turn:
                for number in replay.numbers:
                    if not (replay.is_wanted and await self._replay_one(number, replay)):
                        return
        finally:
            replay.answers.put_nowait(None)

    async def _replay_one(self, number: int, replay: _Replay) -> bool:
        """Run one row; returns whether the next one may run."""
        tell = replay.answers.put_nowait
        try:
            delivery = self._store.delivery(number)
        except DamagedRowError as error:
            tell({"row": number, "result": "skipped", "reason": str(error)})
            return True
        if delivery is None or not await self._store.claim(number):
            tell({"row": number, "result": "skipped", "reason": self._why_not(number)})
            return True
        tell({"begun": number})
        try:
            disposition = await self._run(delivery)
        except BaseException:
            await self._store.release(number)
            raise
        if not replay.is_wanted:
            _log.info("row %d: its replay is done, and %s", number, _told(disposition)["result"])
        is_over = isinstance(disposition, Halt | GiveBack)
        if is_over:
            # Its settle leaves the row as it is; what follows waits for the next start.
            await self._store.release(number)
        tell({"row": number, **_told(disposition)})
        return not is_over

    def _replayed(self, task: asyncio.Task[None]) -> None:
        replay = self._replays.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not replay.is_wanted:
            _log.error("a replay that nobody waits for has failed", exc_info=error)

    def _why_not(self, number: int) -> str:
        """Why a row cannot be claimed."""
        row = self._store.row(number)
        if row is None or row.state != "quarantined" or row.behind is None:
            return "not, or no longer, there"
        return f"behind row {row.behind} of key {row.lane}: replay or drop that one first"


def _say(row: Row, what: str, disposition: Disposition | None = None) -> None:
    about = fields(row.message_id, row.routing_key, row.queue, disposition=disposition)
    _log.info("%s is %s", describe(row), what, extra=about)


def _numbers(request: dict[str, Any]) -> list[int]:
    return [int(number) for number in request["rows"]]


def _told(disposition: Disposition) -> dict[str, Any]:
    if isinstance(disposition, Ack):
        return {"result": "succeeded", "reason": ""}
    if isinstance(disposition, GiveBack):
        return {"result": "skipped", "reason": "the instance stops or pauses"}
    result = "failed" if isinstance(disposition, Quarantine) else type(disposition).__name__.lower()
    return {"result": result, "reason": getattr(disposition, "reason", "")}
