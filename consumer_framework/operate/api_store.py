# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the store of a running instance over its control API.

For users who may not read the file, and may ask the instance: members of ``fm-operators``.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.store import properties
from consumer_framework.adapters.store.records import in_lane_order
from consumer_framework.core.attempt import History, RouteState
from consumer_framework.core.delivery import Delivery
from consumer_framework.runtime.control.client import RefusedError
from consumer_framework.runtime.control.schema import Causes, Quarantine, Show, ShowReplay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from consumer_framework.adapters.store import Group, Row, State
    from consumer_framework.core.conditions import Condition
    from consumer_framework.runtime.control.client import Client
    from consumer_framework.runtime.control.schema import (
        AnswerT,
        RampReport,
        Request,
        StoredMessage,
    )

# Rows of one answer, as the API has them at most.
_PAGE = 1000
_OTHERWISE = "look again when it runs"


class ApiStore:
    """Reads as :class:`.Reader` does, as far as operators may. Known secrets are not shown.

    Every method raises :class:`.ControlError` if the instance stops, or refuses the request.

    Args:
        client: Asks the instance.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rows: dict[int, Row] = {}
        self._shown: StoredMessage | None = None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def rows(  # noqa: PLR0913 -- as of Reader
        self,
        *,
        state: State | None = "quarantined",
        fingerprint: str | None = None,
        queue: str | None = None,
        topic: str | None = None,
        after: int | None = None,
        limit: int = -1,
        where: Sequence[Condition] = (),
        now: float = 0.0,  # noqa: ARG002 -- the clock of the instance counts
    ) -> list[Row]:
        """Return the rows that match; see :meth:`.Reader.rows`."""
        request = Quarantine(
            state=state or "any",
            topic=topic or "",
            fingerprint=fingerprint or "",
            queue=queue or "",
            where=_texts(where),
            after=after or 0,
        )
        rows = [row for page in self._pages(request, limit) for row in page]
        self._rows |= {row.id: row for row in rows}
        return rows

    def _pages(self, request: Quarantine, limit: int) -> Iterator[tuple[Row, ...]]:
        after: int | None = request.after
        while after is not None and limit:
            most = _PAGE if limit < 0 else min(limit, _PAGE)
            page = self._ask(replace(request, after=after, limit=most))
            yield page.rows
            limit -= len(page.rows) if limit > 0 else 0
            after = page.next

    def matching(self, where: Sequence[Condition], now: float) -> list[int]:
        """Return the numbers of the quarantined rows for which all conditions *where* hold."""
        return [row.id for row in self.rows(where=where, now=now)]

    def groups(
        self,
        where: Sequence[Condition] = (),
        now: float = 0.0,  # noqa: ARG002 -- the clock of the instance counts
    ) -> list[Group]:
        """Return the causes of quarantined messages, the most frequent first."""
        return list(self._ask(Causes(_texts(where))).causes)

    def row(self, number: int) -> Row | None:
        """Return row *number*, None where there is none."""
        shown = self._message(number)
        if shown is None:
            return None
        self._rows[number] = shown.row
        return shown.row

    def steps(self, number: int) -> dict[str, Any]:
        """Return the steps that are done for row *number*, with results."""
        shown = self._message(number)
        return {} if shown is None else shown.steps

    def delivery(self, number: int) -> Delivery | None:
        """Return the message of row *number*, with its history; None where there is none."""
        shown = self._message(number)
        return None if shown is None else _delivery_of(shown)

    def in_lane_order(self, numbers: Iterable[int]) -> list[int]:
        """Sort the rows of each lane, in the places that the lane has among *numbers*.

        Args:
            numbers: Rows that this object has returned.
        """
        given = list(numbers)
        rows = sorted((self._rows[number] for number in given), key=lambda row: row.position)
        return in_lane_order(given, [(row.id, row.lane) for row in rows if row.lane])

    def ramp(self) -> RampReport | None:
        """Return the replay in stages that is under way or was interrupted; None for none."""
        return self._if_there(ShowReplay())

    def _message(self, number: int) -> StoredMessage | None:
        # Its row, its steps and the message itself come in one answer.
        if self._shown is None or self._shown.row.id != number:
            self._shown = self._if_there(Show(number, raw=True))
        return self._shown

    def _if_there(self, request: Request[AnswerT]) -> AnswerT | None:
        try:
            return self._ask(request)
        except RefusedError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def _ask(self, request: Request[AnswerT]) -> AnswerT:
        [answer] = self._client.ask(request, _OTHERWISE)
        return answer


def _texts(where: Sequence[Condition]) -> tuple[str, ...]:
    return tuple(condition.text for condition in where)


def _delivery_of(shown: StoredMessage) -> Delivery:
    row, message = shown.row, shown.message
    routes = (RouteState(r.route, r.ending, r.until, r.reason) for r in shown.routes)
    return Delivery(
        queue=row.queue,
        generation=0,
        delivery_tag=row.id,
        redelivered=False,
        exchange=row.exchange,
        routing_key=row.routing_key,
        properties=properties.unpack(json.dumps(message["properties"])),
        body=base64.b64decode(message["body_base64"]),
        received_at=shown.received,
        history=History(shown.failures, row.crashes, tuple(routes)),
        row=row.id,
        lane=row.lane,
    )
